-- An agency's whole back office: every table has the organisation, and helpers decide, as generators write it.
-- shapes: sql-definer, in, own, init-plan, to-authenticated, coalesce
-- expect: native D public.assets assets of the organisation
-- expect: native A public.assets public assets
-- expect: native A public.briefs own briefs
-- expect: native D public.briefs sent briefs
-- expect: native D public.clients clients for admins
-- expect: native D public.clients clients of the organisation
-- expect: native D public.comments comments of the organisation
-- expect: native A public.comments own comments
-- expect: native D public.invoices invoices for admins
-- expect: native D public.invoices sent invoices
-- expect: native D public.memberships colleagues
-- expect: native A public.memberships own membership
-- expect: native A public.timesheets own time
-- expect: native D public.timesheets time for admins
create table memberships (org_id int, user_id uuid, role text not null default 'member', primary key (org_id, user_id));
create table clients (id int primary key, org_id int, name text);
create table briefs (id int primary key, org_id int, author_id uuid, state text default 'draft');
create table assets (id int primary key, org_id int, path text, public boolean default false);
create table timesheets (id int primary key, org_id int, user_id uuid, minutes int);
create table invoices (id int primary key, org_id int, state text default 'draft');
create table comments (id int primary key, brief_id int, author_id uuid);
create function is_member_of(o int) returns boolean language sql stable security definer set search_path = '' as $$
  select exists (select 1 from public.memberships m where m.org_id = o and m.user_id = (select auth.uid()))
$$;
create function role_of(o int) returns text language sql stable security definer set search_path = '' as $$
  select m.role from public.memberships m where m.org_id = o and m.user_id = (select auth.uid())
$$;
create function brief_org(b int) returns int language sql stable security definer set search_path = '' as $$
  select org_id from public.briefs where id = b
$$;
alter table memberships enable row level security;
alter table clients enable row level security;
alter table briefs enable row level security;
alter table assets enable row level security;
alter table timesheets enable row level security;
alter table invoices enable row level security;
alter table comments enable row level security;
create policy "own membership" on memberships for select to authenticated using (user_id = (select auth.uid()));
create policy "colleagues" on memberships for select to authenticated using (is_member_of(org_id));
create policy "clients of the organisation" on clients for select to authenticated using (is_member_of(org_id));
create policy "clients for admins" on clients for all to authenticated using (role_of(org_id) = 'admin');
create policy "own briefs" on briefs for all to authenticated using (author_id = (select auth.uid()));
create policy "sent briefs" on briefs for select to authenticated using (state <> 'draft' and is_member_of(org_id));
create policy "public assets" on assets for select using (public);
create policy "assets of the organisation" on assets for select to authenticated using (is_member_of(org_id));
create policy "own time" on timesheets for all to authenticated using (user_id = auth.uid()) with check (user_id = auth.uid());
create policy "time for admins" on timesheets for select to authenticated using (role_of(org_id) in ('admin', 'owner'));
create policy "invoices for admins" on invoices for select to authenticated using (coalesce(role_of(org_id), '') = 'admin');
create policy "sent invoices" on invoices for select to authenticated using (is_member_of(org_id) and state = 'sent');
create policy "own comments" on comments for select to authenticated using (author_id = auth.uid());
create policy "comments of the organisation" on comments for select to authenticated using (is_member_of(brief_org(brief_id)));
