-- Helpers that pin no search path, and one that names its table through it.
-- shapes: sql-definer, plpgsql-invoker, one-return
-- traps: 7
-- expect: native D public.letters admins
-- expect: native E public.letters mine
-- expect: native D public.stamps private
create schema private;
create table private.admins (user_id uuid primary key);
create table admins (user_id uuid primary key, since date);
create table letters (id int primary key, to_user uuid, body text);
create table stamps (id int primary key, letter_id int);
create function is_admin() returns boolean language sql stable security definer as $$
  select exists (select 1 from admins where user_id = auth.uid())
$$;
create function private.is_admin() returns boolean language sql stable security definer set search_path = private, public as $$
  select exists (select 1 from admins where user_id = auth.uid())
$$;
grant usage on schema private to authenticated;
create function addressed(who uuid) returns boolean language plpgsql stable as $$ begin return who = auth.uid(); end $$;
alter table letters enable row level security;
alter table stamps enable row level security;
create policy mine on letters for select to authenticated using (addressed(to_user));
create policy admins on letters for select to authenticated using (is_admin());
create policy private on stamps for select to authenticated using (private.is_admin() and letter_id is not null);
