-- A setting that an application would make in each of its sessions: in nobody's here.
-- shapes: current-setting, io-cast, restrictive, own
-- traps: 12
-- expect: native A public.ledgers tenant
-- expect: native A public.ledgers own
-- expect: native A public.stamps tenant
-- expect: native D public.stamps open
-- raises: public.stamps
create table ledgers (id int primary key, tenant_id uuid, owner uuid);
create table stamps (id int primary key, tenant_id text, open boolean);
create function tenant() returns text language sql stable as $$
  select nullif(current_setting('ledger.tenant', true), '') $$;
alter table ledgers enable row level security;
alter table stamps enable row level security;
create policy tenant on ledgers using (tenant_id = current_setting('ledger.tenant', true)::uuid);
create policy own on ledgers for select using (owner = auth.uid());
create policy tenant on stamps for select to anon using (tenant_id = current_setting('ledger.tenant', true));
create policy open on stamps for select to authenticated using (open and (tenant() is null or tenant_id = tenant()));
