-- Family albums: a membership inside JSON claims, as an array of texts.
-- shapes: jsonb, app-metadata, in, boolean
-- expect: native A public.albums editors
-- expect: native A public.albums plan
-- expect: native A public.albums tenant
-- expect: native B public.photos own
create table albums (id int primary key, tenant_id text, family uuid, kind text);
create table photos (id int primary key, album int references albums on delete cascade, taken_by uuid);
alter table albums enable row level security;
alter table photos enable row level security;
create policy tenant on albums for select to authenticated using (tenant_id = (auth.jwt() -> 'app_metadata' ->> 'tenant_id'));
create policy editors on albums for select to authenticated using (
  (auth.jwt() -> 'app_metadata' -> 'roles') ? 'editor' and kind = 'shared');
create policy plan on albums for select to authenticated using (
  (auth.jwt() #>> '{user_metadata,plan}') = 'pro' and family is not null);
create policy own on photos for select to authenticated using (taken_by = auth.uid() or album in (
  select a.id from albums a where a.family = auth.uid()));
