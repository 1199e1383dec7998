-- Notifications to a user, to everybody, or to a role in a table.
-- shapes: is-null, own, in, init-plan
-- expect: native A public.devices own
-- expect: native A public.notifications broadcast
-- expect: native A public.notifications own
-- expect: native B public.notifications role
-- expect: native A public.user_roles own
create table user_roles (user_id uuid, role text, primary key (user_id, role));
create table notifications (id bigint primary key, user_id uuid, for_role text, read_at timestamptz, body text);
create table devices (token text primary key, user_id uuid not null);
alter table user_roles enable row level security;
alter table notifications enable row level security;
alter table devices enable row level security;
create policy own on user_roles for select to authenticated using (user_id = (select auth.uid()));
create policy own on notifications for select to authenticated using (user_id = (select auth.uid()));
create policy broadcast on notifications for select to authenticated using (user_id is null and for_role is null);
create policy role on notifications for select to authenticated using (for_role in (
  select r.role from user_roles r where r.user_id = (select auth.uid())));
create policy own on devices for select to authenticated using (user_id = (select auth.uid()));
