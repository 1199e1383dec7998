-- A tree of functions with a role table keyed by an enum, as generators write it.
-- shapes: enum, sql-definer, any-array, one-return
-- expect: native D public.ledgers Own ledgers
-- expect: native D public.notices Notices
-- expect: native D public.user_roles All roles for admins
-- expect: native A public.user_roles My roles
create type app_role as enum ('admin', 'moderator', 'user');
create table user_roles (id uuid primary key, user_id uuid not null, role app_role not null, unique (user_id, role));
create table ledgers (id uuid primary key, owner uuid, balance numeric);
create table notices (id uuid primary key, roles text[], body text);
create function has_role(_user_id uuid, _role app_role) returns boolean language sql stable security definer set search_path = public as $$
  select exists (select 1 from user_roles where user_id = _user_id and role = _role)
$$;
alter table user_roles enable row level security;
alter table ledgers enable row level security;
alter table notices enable row level security;
create policy "My roles" on user_roles for select to authenticated using (auth.uid() = user_id);
create policy "All roles for admins" on user_roles for select to authenticated using (has_role(auth.uid(), 'admin'));
create policy "Own ledgers" on ledgers for select to authenticated using (owner = auth.uid() or has_role(auth.uid(), 'moderator'::app_role));
create policy "Notices" on notices for select to authenticated using (has_role(auth.uid(), 'user') and body is not null);
