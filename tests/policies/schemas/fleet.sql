-- Vehicles by region, with numbers of every width.
-- shapes: ordering, own, io-cast, scalar
-- expect: native B public.positions mine
-- expect: native A public.positions slow
-- expect: native A public.vehicles driver
-- expect: native B public.vehicles region
create table drivers (user_id uuid primary key, region smallint, rank bigint not null default 1);
create table vehicles (id bigint primary key, region int, min_rank smallint default 1, driver uuid);
create table positions (id bigint primary key, vehicle bigint, speed double precision, load numeric(6, 2));
alter table vehicles enable row level security;
alter table positions enable row level security;
create policy driver on vehicles for select to authenticated using (driver = auth.uid());
create policy region on vehicles for select to authenticated using (exists (
  select 1 from drivers d where d.user_id = auth.uid() and d.region = vehicles.region and d.rank >= vehicles.min_rank));
create policy slow on positions for select to anon using (speed < 1.5 and load <= 1.5);
create policy mine on positions for select to authenticated using (vehicle = (
  select v.id from vehicles v where v.driver = auth.uid() and v.id::text = '1'));
