-- Policies on a table where row security was never enabled protect nothing.
-- shapes: inert, own, false
-- traps: 16
-- expect: native A public.closed_table own
-- expect: native A public.half own
-- expect: native A public.open_table never
-- expect: native A public.open_table own
create table open_table (id int primary key, user_id uuid);
create table closed_table (id int primary key, user_id uuid);
create table half (id int primary key, user_id uuid);
create policy own on open_table for select using (user_id = auth.uid());
create policy never on open_table for select using (false);
alter table closed_table enable row level security;
create policy own on closed_table for select using (user_id = auth.uid());
alter table half enable row level security;
alter table half disable row level security;
create policy own on half using (user_id = auth.uid());
