-- Old policies that ask auth.role() instead of naming roles.
-- shapes: auth-role, to-public, init-plan, current-user
-- expect: native A public.flags flags
-- expect: native A public.internal_log by the role itself
-- expect: native A public.internal_log the back end
-- expect: native A public.posts anonymous see closed ones
-- expect: native A public.posts logged in
create table posts (id int primary key, author uuid, body text, state char(5) default 'open');
create table flags (id int primary key, post_id int references posts on delete cascade, reason text);
create table internal_log (id int primary key, line text);
alter table posts enable row level security;
alter table flags enable row level security;
alter table internal_log enable row level security;
create policy "logged in" on posts for select using (auth.role() = 'authenticated' and state = 'open');
create policy "anonymous see closed ones" on posts for select using ((select auth.role()) = 'anon' and state = 'done');
create policy "flags" on flags for select using (auth.role() in ('authenticated', 'service_role') and reason <> '');
create policy "the back end" on internal_log for select using (auth.role() = 'service_role');
create policy "by the role itself" on internal_log for select using (current_user = 'authenticated' and line = 'open');
