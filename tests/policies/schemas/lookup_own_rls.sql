-- A policy looks into a table whose own policies hide most of it.
-- shapes: exists, nested, boolean
-- traps: 1
-- expect: native B public.calendars visible
-- expect: native B public.events visible
-- expect: native A public.group_members visible
-- expect: native B public.groups visible
create table groups (id int primary key, secret boolean not null default false, owner uuid);
create table group_members (group_id int, user_id uuid, hidden boolean default false, primary key (group_id, user_id));
create table events (id int primary key, group_id int, title text);
create table calendars (id int primary key, group_id int);
alter table groups enable row level security;
alter table group_members enable row level security;
alter table events enable row level security;
alter table calendars enable row level security;
create policy visible on group_members for select to authenticated using (user_id = auth.uid() and not hidden);
create policy visible on groups for select to authenticated using (
  not secret or owner = auth.uid() or id in (select group_id from group_members));
create policy visible on events for select to authenticated using (exists (select 1 from groups g where g.id = events.group_id));
create policy visible on calendars for select to authenticated using (not exists (
  select 1 from groups g where g.id = calendars.group_id and g.owner <> auth.uid()));
