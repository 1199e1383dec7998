-- Domains over uuid and text, and a composite key.
-- shapes: domain, composite-key, own, in-list
-- expect: native A public.site_pages open
-- expect: native B public.site_pages own
-- expect: native A public.sites own
create domain user_ref as uuid;
create domain slug as text check (value <> '');
create table sites (tenant int, name slug, owner user_ref, primary key (tenant, name));
create table site_pages (tenant int, site slug, id int, state slug, primary key (tenant, id));
alter table sites enable row level security;
alter table site_pages enable row level security;
create policy own on sites for select using (owner = auth.uid());
create policy open on site_pages for select using (state in ('open', 'news'));
create policy own on site_pages for select to authenticated using (exists (
  select 1 from sites s where s.tenant = site_pages.tenant and s.name = site_pages.site and s.owner = auth.uid()));
