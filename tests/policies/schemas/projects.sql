-- Projects of organisations: roles by rank, COALESCE and CASE over the membership.
-- shapes: case, coalesce, scalar, in-list, sql-definer
-- expect: native A public.org_members self
-- expect: native D public.projects by_rank
-- expect: native A public.projects guests
-- expect: native D public.projects not_secret
create table org_members (org_id uuid, user_id uuid, role text not null default 'guest', primary key (org_id, user_id));
create table projects (id uuid primary key, org_id uuid not null, visibility text not null default 'private', created_by uuid);
create function role_in(o uuid) returns text language sql stable security definer set search_path = '' as $$
  select m.role from public.org_members m where m.org_id = o and m.user_id = auth.uid()
$$;
alter table org_members enable row level security;
alter table projects enable row level security;
create policy self on org_members for select using (user_id = auth.uid());
create policy by_rank on projects for select to authenticated using (
  case visibility
    when 'public' then true
    when 'internal' then coalesce(role_in(org_id), 'none') <> 'none'
    else role_in(org_id) in ('owner', 'admin') or created_by = auth.uid()
  end);
create policy guests on projects for select to anon using (visibility = 'public');
create policy not_secret on projects as restrictive for select
  using (visibility <> 'secret' or coalesce(role_in(org_id) = 'owner', false));
