-- Pages inherit what their space allows; helpers that call helpers.
-- shapes: sql-definer, sql-invoker, one-return, plpgsql-definer
-- expect: native D public.pages own
-- expect: native E public.pages read
-- expect: native D public.spaces read
create table spaces (id int primary key, public boolean not null default false, owner uuid);
create table space_users (space int, user_id uuid, can_read boolean not null default true, primary key (space, user_id));
create table pages (id int primary key, space int, body text, author uuid);
create function me() returns uuid language sql stable as $$ select auth.uid() $$;
create function in_space(s int) returns boolean language sql stable security definer set search_path = public as $$
  select exists (select 1 from space_users u where u.space = s and u.user_id = me() and u.can_read)
$$;
create function may_read(s int) returns boolean language plpgsql stable security definer set search_path = public as $$
begin
  return in_space(s) or exists (select 1 from spaces x where x.id = s and (x.public or x.owner = me()));
end $$;
alter table spaces enable row level security;
alter table pages enable row level security;
create policy read on spaces for select using (public or in_space(id));
create policy read on pages for select using (may_read(space));
create policy own on pages for select using (author = me());
