-- A setting that is there and empty, as it is in a session that has had it for a transaction: not NULL.
-- shapes: current-setting, coalesce, is-null, own
-- traps: 12
-- expect: asked A public.ledgers no_tenant because setting ledger.tenant is not known
-- expect: asked A public.ledgers own because setting ledger.tenant is not known
-- expect: asked A public.stamps untold because setting ledger.tenant is not known
-- expect: asked A public.stamps strangers because setting ledger.tenant is not known
create table ledgers (id int primary key, tenant_id text, owner uuid);
create table stamps (id int primary key, tenant_id text, open boolean);
do $$ begin execute format('alter database %I set ledger.tenant = %L', current_database(), ''); end $$;
alter table ledgers enable row level security;
alter table stamps enable row level security;
create policy no_tenant on ledgers for select to authenticated
  using (tenant_id = current_setting('ledger.tenant', true) or current_setting('ledger.tenant', true) is null);
create policy own on ledgers for select
  using (owner = auth.uid() and coalesce(current_setting('ledger.tenant', true), 'none') <> 'none');
create policy untold on stamps for select to anon
  using (open and nullif(current_setting('ledger.tenant', true), '') is null);
create policy strangers on stamps for select to authenticated
  using (open and tenant_id is distinct from current_setting('ledger.tenant', true));
