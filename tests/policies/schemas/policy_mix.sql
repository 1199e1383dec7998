-- Many permissive and restrictive policies for different roles and commands on one table.
-- shapes: restrictive, boolean, to-authenticated, to-anon, to-public
-- traps: 3 17
-- alter: drop policy one on items
-- alter: create policy one on items for select to authenticated using (a or owner = auth.uid())
-- alter: revoke select on items from anon
-- alter: grant select (id, b) on items to anon
-- alter: grant select on items to anon
-- alter: alter policy three on items using (c)
-- alter: alter policy three on items using (c is not false)
-- alter: alter table narrowed disable row level security
-- alter: alter table narrowed enable row level security
-- expect: native A public.items four
-- expect: native A public.items one
-- expect: native A public.items three
-- expect: native A public.items two
-- expect: native A public.narrowed lonely
create table items (id int primary key, a boolean, b boolean, c boolean, owner uuid);
create table narrowed (id int primary key, a boolean);
alter table items enable row level security;
alter table narrowed enable row level security;
create policy one on items for select to authenticated using (a or owner = auth.uid());
create policy two on items for all to anon using (b) with check (false);
create policy three on items as restrictive using (c is not false);
create policy four on items as restrictive for select to authenticated using (not b or owner is not null);
create policy five on items for update using (true);
create policy six on items for insert to authenticated with check (true);
create policy lonely on narrowed as restrictive using (a);
