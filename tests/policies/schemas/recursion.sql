-- A policy that reads its own table, and two tables that read each other: every select fails.
-- shapes: recursion, exists, own
-- expect: native A public.fine own
-- expect: deny B public.left_side l because infinite recursion detected in policy for relation left_side
-- expect: deny B public.members colleagues because infinite recursion detected in policy for relation members
-- expect: deny B public.right_side r because infinite recursion detected in policy for relation right_side
create table members (id int primary key, org int, user_id uuid);
create table left_side (id int primary key, other int);
create table right_side (id int primary key, other int);
create table fine (id int primary key, user_id uuid);
alter table members enable row level security;
alter table left_side enable row level security;
alter table right_side enable row level security;
alter table fine enable row level security;
create policy colleagues on members for select to authenticated using (
  exists (select 1 from members m where m.org = members.org and m.user_id = auth.uid()));
create policy l on left_side for select using (exists (select 1 from right_side r where r.id = left_side.other));
create policy r on right_side for select using (exists (select 1 from left_side l where l.id = right_side.other));
create policy own on fine for select using (user_id = auth.uid());
