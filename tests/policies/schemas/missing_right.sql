-- A lookup that clients may not read, one of which they may read some columns, and a table of the back end.
-- shapes: missing-right, column-grant, exists
-- expect: native A public.chairs noted
-- expect: native B public.desks via_people
-- expect: native A public.doors own
-- expect: deny B public.doors via_vault because permission denied for table vault
create table vault (id int primary key, user_id uuid);
create table people (id int primary key, user_id uuid, salary int);
create table doors (id int primary key, keeper uuid);
create table desks (id int primary key, person int);
create table chairs (id int primary key, person int, note text);
revoke all on vault, people, chairs from anon, authenticated;
grant select (id, user_id) on people to authenticated;
grant select (id, person) on chairs to authenticated;
alter table doors enable row level security;
alter table desks enable row level security;
alter table chairs enable row level security;
create policy via_vault on doors for select to authenticated using (exists (select 1 from vault v where v.user_id = auth.uid()));
create policy own on doors for select to anon using (keeper is null);
create policy via_people on desks for select to authenticated using (exists (
  select 1 from people p where p.id = desks.person and p.user_id = auth.uid()));
create policy noted on chairs for select to authenticated using (note = 'open');
