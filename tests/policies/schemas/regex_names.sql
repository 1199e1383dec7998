-- A regular expression, beside policies that need none.
-- shapes: regex, own, true
-- expect: native A public.hosts own
-- expect: native A public.hosts public_hosts
-- expect: native A public.zones api
-- expect: native A public.zones zones
create table hosts (id int primary key, name text, owner uuid);
create table zones (id int primary key, name text);
alter table hosts enable row level security;
alter table zones enable row level security;
create policy public_hosts on hosts for select to authenticated using (name ~ '^(web|api)-');
create policy own on hosts for select using (owner = auth.uid());
create policy zones on zones for select to authenticated using (true);
create policy api on zones for select to anon using (name = 'api-1' or name = 'web-1');
