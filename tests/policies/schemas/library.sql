-- A library: loans, reservations and fines by card, with claims for the staff.
-- shapes: own, app-metadata, in, coalesce, to-public
-- expect: native A public.cards own
-- expect: native A public.cards staff
-- expect: native B public.fines own
-- expect: native A public.fines staff
-- expect: native B public.loans own
-- expect: native A public.loans returned
-- expect: native A public.titles staff
-- expect: native A public.titles there
create table cards (id int primary key, user_id uuid);
create table titles (id int primary key, name text, withdrawn boolean not null default false);
create table loans (id int primary key, card int, title int, returned_at date);
create table fines (id int primary key, card int, cents int not null default 1);
alter table cards enable row level security;
alter table titles enable row level security;
alter table loans enable row level security;
alter table fines enable row level security;
create policy own on cards for select to authenticated using (user_id = auth.uid());
create policy staff on cards for select to authenticated using (coalesce(auth.jwt() -> 'app_metadata' ->> 'role', '') = 'admin');
create policy there on titles for select using (not withdrawn);
create policy staff on titles for select to authenticated using ((auth.jwt() -> 'app_metadata' ->> 'role') = 'admin');
create policy own on loans for select to authenticated using (card in (select c.id from cards c where c.user_id = auth.uid()));
create policy returned on loans for select to anon using (returned_at is not null);
create policy own on fines for select to authenticated using (card in (select c.id from cards c where c.user_id = auth.uid()) and cents > 1);
create policy staff on fines for select to authenticated using ((auth.jwt() -> 'app_metadata' ->> 'role') in ('admin', 'clerk'));
