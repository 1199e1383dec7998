-- Landlords and tenants: the same three facts behind a dozen tables.
-- shapes: exists, join, own, sql-definer, plpgsql-definer
-- expect: native A public.buildings landlords
-- expect: native E public.leases landlords
-- expect: native A public.leases tenants
-- expect: native B public.letters landlords
-- expect: native A public.letters notices
-- expect: native E public.meters landlords
-- expect: native D public.meters tenants
-- expect: native E public.repairs landlords
-- expect: native A public.repairs reporters
-- expect: native D public.repairs tenants
-- expect: native E public.units landlords
-- expect: native D public.units tenants
create table buildings (id int primary key, landlord uuid);
create table units (id int primary key, building int references buildings on delete cascade, rent numeric);
create table leases (unit int, tenant uuid, active boolean not null default true, primary key (unit, tenant));
create table repairs (id int primary key, unit int, reported_by uuid, state text default 'new');
create table meters (id int primary key, unit int, value int);
create table letters (id int primary key, building int, body text);
create function rents(u int) returns boolean language sql stable security definer set search_path = public as $$
  select exists (select 1 from leases l where l.unit = u and l.tenant = auth.uid() and l.active)
$$;
create function lets(u int) returns boolean language plpgsql stable security definer set search_path = public as $$
begin
  return exists (select 1 from units x join buildings b on b.id = x.building where x.id = u and b.landlord = auth.uid());
end $$;
alter table buildings enable row level security;
alter table units enable row level security;
alter table leases enable row level security;
alter table repairs enable row level security;
alter table meters enable row level security;
alter table letters enable row level security;
create policy landlords on buildings for select to authenticated using (landlord = auth.uid());
create policy tenants on units for select to authenticated using (rents(id));
create policy landlords on units for select to authenticated using (lets(id));
create policy tenants on leases for select to authenticated using (tenant = auth.uid());
create policy landlords on leases for select to authenticated using (lets(unit));
create policy reporters on repairs for select to authenticated using (reported_by = (select auth.uid()));
create policy tenants on repairs for select to authenticated using (rents(unit) and state <> 'new');
create policy landlords on repairs for all to authenticated using (lets(unit));
create policy tenants on meters for select to authenticated using (rents(unit));
create policy landlords on meters for select to authenticated using (lets(unit));
create policy landlords on letters for select to authenticated using (exists (
  select 1 from buildings b where b.id = letters.building and b.landlord = auth.uid()));
create policy notices on letters for select to authenticated using (body = 'notice');
