-- Bookings: a host sees all, guests theirs; a case over an enum.
-- shapes: enum, case, own, scalar
-- expect: native A public.bookings guests
-- expect: native B public.bookings hosts
-- expect: native A public.venues hosts
create type booking_state as enum ('requested', 'confirmed', 'cancelled');
create table venues (id uuid primary key, host uuid not null);
create table bookings (id uuid primary key, venue_id uuid references venues on delete cascade, guest uuid, state booking_state not null default 'requested');
alter table venues enable row level security;
alter table bookings enable row level security;
create policy hosts on venues for select to authenticated using (host = auth.uid());
create policy guests on bookings for select to authenticated using (
  case when state = 'cancelled' then false else guest = auth.uid() end);
create policy hosts on bookings for select to authenticated using (
  (select v.host from venues v where v.id = bookings.venue_id) = auth.uid() and state >= 'confirmed');
