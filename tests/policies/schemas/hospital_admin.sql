-- One role table for everybody, and a policy for each role and table.
-- shapes: scalar, in-list, exists, own, to-authenticated
-- expect: native A public.beds Patients see their bed
-- expect: native B public.beds Staff see beds of their ward
-- expect: native B public.doses Doctors see doses
-- expect: native A public.doses Given by me
-- expect: native A public.doses Own doses
-- expect: native A public.reports Authors
-- expect: native B public.reports Doctors see reports
-- expect: native A public.reports Own reports
-- expect: native B public.shifts Heads see shifts
-- expect: native A public.shifts Own shifts
-- expect: native A public.users Self
create table users (id uuid primary key, role varchar(16) not null default 'patient', ward int);
create table beds (id int primary key, ward int, patient uuid);
create table shifts (id int primary key, user_id uuid, ward int);
create table doses (id int primary key, patient_id uuid, nurse_id uuid, given boolean default false);
create table reports (id int primary key, patient_id uuid, author_id uuid);
alter table users enable row level security;
alter table beds enable row level security;
alter table shifts enable row level security;
alter table doses enable row level security;
alter table reports enable row level security;
create policy "Self" on users for select to authenticated using (id = auth.uid());
create policy "Patients see their bed" on beds for select to authenticated using (patient = auth.uid());
create policy "Staff see beds of their ward" on beds for select to authenticated using (exists (
  select 1 from users u where u.id = auth.uid() and u.role in ('nurse', 'doctor') and u.ward = beds.ward));
create policy "Own shifts" on shifts for select to authenticated using (user_id = auth.uid());
create policy "Heads see shifts" on shifts for select to authenticated using (
  (select u.role from users u where u.id = auth.uid()) = 'head');
create policy "Own doses" on doses for select to authenticated using (patient_id = auth.uid() and given);
create policy "Given by me" on doses for select to authenticated using (nurse_id = auth.uid());
create policy "Doctors see doses" on doses for select to authenticated using (exists (
  select 1 from users u where u.id = auth.uid() and u.role = 'doctor'));
create policy "Own reports" on reports for select to authenticated using (patient_id = auth.uid());
create policy "Authors" on reports for select to authenticated using (author_id = (select auth.uid()));
create policy "Doctors see reports" on reports for select to authenticated using (
  auth.uid() in (select u.id from users u where u.role = 'doctor'));
