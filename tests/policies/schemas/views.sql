-- A policy that looks through a view, with the rights of the view's owner.
-- shapes: view, exists, own
-- expect: native B public.items granted
-- expect: native A public.items own
create table grants (id int primary key, user_id uuid, item_id int, until date);
create view live_grants as select user_id, item_id from grants where until > '2022-01-01';
create table items (id int primary key, owner uuid, name text);
revoke all on grants from anon, authenticated;
grant select on live_grants to authenticated, anon;
alter table items enable row level security;
create policy own on items for select using (owner = auth.uid());
create policy granted on items for select to authenticated using (exists (
  select 1 from live_grants g where g.item_id = items.id and g.user_id = auth.uid()));
