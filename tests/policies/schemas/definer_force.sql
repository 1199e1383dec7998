-- A definer function whose owner is held back as well, because row security is forced on its table.
-- shapes: sql-definer, force, exists
-- traps: 2
-- expect: native D public.reports paid
-- expect: native D public.reports seated
-- expect: native A public.seats keeper
-- expect: native A public.seats oneself
create role keeper_of_forced nologin;
grant usage on schema public, auth to keeper_of_forced;
create table seats (org_id int, user_id uuid, active boolean, primary key (org_id, user_id));
create table plans (org_id int primary key, tier text);
alter table seats owner to keeper_of_forced;
alter table plans owner to keeper_of_forced;
alter table seats enable row level security;
alter table seats force row level security;
alter table plans enable row level security;
create policy keeper on seats for select to keeper_of_forced using (active);
create policy oneself on seats for select to authenticated using (user_id = auth.uid());
create function has_seat(o int) returns boolean language sql stable security definer set search_path = '' as $$
  select exists (select 1 from public.seats s where s.org_id = o and s.user_id = auth.uid())
$$;
create function is_paid(o int) returns boolean language sql stable security definer set search_path = '' as $$
  select exists (select 1 from public.plans p where p.org_id = o and p.tier = 'pro')
$$;
alter function has_seat(int) owner to keeper_of_forced;
alter function is_paid(int) owner to keeper_of_forced;
create table reports (id int primary key, org_id int, body text);
alter table reports enable row level security;
create policy seated on reports for select to authenticated using (has_seat(org_id));
create policy paid on reports for select to authenticated using (is_paid(org_id) and body is null);
