-- A tenant in a setting of the session, as servers without tokens have it, beside the claims.
-- shapes: current-setting, io-cast, boolean
-- traps: 12
-- expect: native A public.entries tenant
-- expect: native A public.notes old_claim
-- expect: native A public.notes unset
create table tenants (id uuid primary key, name text);
create table entries (id int primary key, tenant_id uuid, body text);
create table notes (id int primary key, user_id text, body text);
alter table entries enable row level security;
alter table notes enable row level security;
create policy tenant on entries for select
  using (tenant_id = nullif(current_setting('request.jwt.claims', true)::json ->> 'sub', '')::uuid);
create policy old_claim on notes for select
  using (user_id = coalesce(nullif(current_setting('request.jwt.claim.sub', true), ''),
    nullif(current_setting('request.jwt.claims', true), '')::jsonb ->> 'sub'));
create policy unset on notes as restrictive for select to anon
  using (nullif(current_setting('request.jwt.claim.sub', true), '') is null);
