-- The newest membership decides.
-- shapes: order-limit, scalar, plpgsql-definer, straight-line
-- expect: native B public.boards newest
-- expect: native F public.pins newest
create table memberships (id int primary key, user_id uuid, org_id int, state text);
create table boards (id int primary key, org_id int, name text);
create table pins (id int primary key, org_id int);
create function newest_org() returns int language plpgsql stable security definer set search_path = public as $$
declare found_org int;
begin
  select m.org_id into found_org from memberships m where m.user_id = auth.uid() order by m.id desc limit 1;
  return found_org;
end $$;
alter table boards enable row level security;
alter table pins enable row level security;
create policy newest on boards for select to authenticated using (org_id = (
  select m.org_id from memberships m where m.user_id = auth.uid() order by m.id desc limit 1));
create policy newest on pins for select to authenticated using (org_id = newest_org());
