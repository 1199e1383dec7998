-- FORCE on everything, as templates do.
-- shapes: force, own, to-service, to-authenticated
-- expect: native A public.lists lists
-- expect: native A public.chores Seen by whose it is
-- expect: native A public.chores Service role
create table chores (id bigint primary key, user_id uuid not null, task text, is_complete boolean default false);
create table lists (id bigint primary key, user_id uuid);
alter table chores enable row level security;
alter table chores force row level security;
alter table lists enable row level security;
alter table lists force row level security;
create policy "Seen by whose it is" on chores for select using ((select auth.uid()) = user_id);
create policy "Deleted by whose it is" on chores for delete using ((select auth.uid()) = user_id);
create policy "Service role" on chores for all to service_role using (true);
create policy "lists" on lists to authenticated using (user_id = auth.uid()) with check (user_id = auth.uid());
