-- Devices that log in as users, readings by composite keys, numbers that are texts in claims.
-- shapes: io-cast, composite-key, jsonb, app-metadata
-- claims: authenticated {"sub": "00000000-0000-4000-8000-00000000000d", "app_metadata": {"device": 2, "site": "3"}}
-- claims: authenticated {"sub": "00000000-0000-4000-8000-00000000000e", "app_metadata": {"device": "x"}}
-- expect: native A public.device_owners own
-- expect: native A public.readings device
-- expect: native B public.readings owner
-- expect: native A public.readings site
create table device_owners (device int primary key, owner uuid);
create table readings (device int, seq int, site text, value numeric, primary key (device, seq));
alter table device_owners enable row level security;
alter table readings enable row level security;
create policy own on device_owners for select to authenticated using (owner = auth.uid());
create policy device on readings for select to authenticated using (device::text = (auth.jwt() -> 'app_metadata' ->> 'device'));
create policy site on readings for select to authenticated using (site = (auth.jwt() -> 'app_metadata' ->> 'site'));
create policy owner on readings for select to authenticated using (device in (
  select d.device from device_owners d where d.owner = auth.uid()));
