-- A partition that is published on its own and open by its own policy: its root's policies hold beside it.
-- shapes: partition, boolean, true
-- traps: 10
-- watch: public.visits_low
-- judged as: public.visits_low public.visits
-- expect: native A public.visits first_site
-- expect: native A public.visits own
-- expect: native A public.visits_low everything
create table visits (id int, site int not null, owner uuid, primary key (id, site)) partition by range (site);
create table visits_low partition of visits for values from (0) to (4);
create table visits_high partition of visits for values from (4) to (1000);
alter table visits enable row level security;
alter table visits_low enable row level security;
create policy own on visits for select to authenticated using (owner = auth.uid());
create policy first_site on visits for select to anon using (site = 1);
create policy everything on visits_low for select using (true);
