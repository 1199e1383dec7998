-- Cases with walls between teams: everything is restrictive somewhere.
-- shapes: restrictive, exists, force, boolean
-- expect: native A public.cases everybody
-- expect: native A public.cases sealed
-- expect: native B public.cases walled
-- expect: native B public.filings filings
create table walls (case_id int, user_id uuid, primary key (case_id, user_id));
create table cases (id int primary key, lead uuid, sealed boolean not null default false);
create table filings (id int primary key, case_id int, public boolean default false);
alter table cases enable row level security;
alter table cases force row level security;
alter table filings enable row level security;
create policy everybody on cases for select to authenticated using (true);
create policy walled on cases as restrictive for select to authenticated using (not exists (
  select 1 from walls w where w.case_id = cases.id and w.user_id = auth.uid()));
create policy sealed on cases as restrictive for select using (not sealed or lead = auth.uid());
create policy filings on filings for select to authenticated using (public or exists (
  select 1 from cases c where c.id = filings.case_id));
