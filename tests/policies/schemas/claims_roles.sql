-- Roles from app_metadata behind a helper, with an old claim beside it.
-- shapes: app-metadata, sql-invoker, jsonb, coalesce
-- expect: native D public.audit auditors
-- expect: native D public.documents admins
-- expect: native D public.documents of my organisation
create function jwt_role() returns text language sql stable as $$
  select coalesce(auth.jwt() -> 'app_metadata' ->> 'role', auth.jwt() ->> 'user_role', 'none')
$$;
create function jwt_org() returns uuid language sql stable as $$
  select nullif(auth.jwt() -> 'app_metadata' ->> 'org_id', '')::uuid
$$;
create table documents (id uuid primary key, org_id uuid, kind text, body text);
create table audit (id bigint primary key, actor uuid, at timestamptz default now());
alter table documents enable row level security;
alter table audit enable row level security;
create policy "of my organisation" on documents for select to authenticated using (org_id = jwt_org());
create policy "admins" on documents for select to authenticated using (jwt_role() = 'admin' and kind <> 'secret');
create policy "auditors" on audit for select to authenticated using (jwt_role() in ('admin', 'auditor') or actor = auth.uid());
