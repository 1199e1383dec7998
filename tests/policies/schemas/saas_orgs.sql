-- Organisations with roles behind helpers in a private schema.
-- shapes: sql-definer, in-list, in, to-authenticated
-- expect: native D public.api_keys owners
-- expect: native D public.organization_members members
-- expect: native D public.organizations members
create schema app_private;
grant usage on schema app_private to authenticated;
create table organizations (id uuid primary key, slug text, created_by uuid);
create table organization_members (organization_id uuid, user_id uuid, role text not null default 'member',
  primary key (organization_id, user_id));
create table api_keys (id uuid primary key, organization_id uuid not null, name text);
create function app_private.my_orgs() returns setof uuid language sql stable security definer set search_path = '' as $$
  select m.organization_id from public.organization_members m where m.user_id = (select auth.uid())
$$;
create function app_private.has_role(o uuid, variadic roles text[]) returns boolean language sql stable security definer set search_path = '' as $$
  select exists (select 1 from public.organization_members m
    where m.organization_id = o and m.user_id = (select auth.uid()) and m.role = any (roles))
$$;
create function app_private.is_owner(o uuid) returns boolean language sql stable security definer set search_path = '' as $$
  select exists (select 1 from public.organization_members m
    where m.organization_id = o and m.user_id = (select auth.uid()) and m.role in ('owner', 'admin'))
$$;
alter table organizations enable row level security;
alter table organization_members enable row level security;
alter table api_keys enable row level security;
create policy members on organizations for select to authenticated using (id in (select app_private.my_orgs()));
create policy members on organization_members for select to authenticated using (organization_id in (select app_private.my_orgs()));
create policy owners on api_keys for select to authenticated using (app_private.is_owner(organization_id));
