-- Courses and lessons in two schemas; enrolment decides.
-- shapes: nested, in, own
-- expect: native B lms.courses see
-- expect: native B lms.lessons see
-- expect: native C public.submissions graded
-- expect: native A public.submissions own
create schema lms;
grant usage on schema lms to authenticated, service_role;
create table lms.enrolments (course int, student uuid, primary key (course, student));
create table lms.courses (id int primary key, teacher uuid, open boolean not null default false);
create table lms.lessons (id int primary key, course int);
create table public.submissions (id int primary key, lesson int, student uuid);
grant select on all tables in schema lms to authenticated, service_role;
alter table lms.courses enable row level security;
alter table lms.lessons enable row level security;
alter table submissions enable row level security;
create policy see on lms.courses for select to authenticated using (open or teacher = auth.uid()
  or id in (select e.course from lms.enrolments e where e.student = auth.uid()));
create policy see on lms.lessons for select to authenticated using (course in (select c.id from lms.courses c));
create policy own on submissions for select to authenticated using (student = auth.uid());
create policy graded on submissions for select to authenticated using (lesson in (
  select l.id from lms.lessons l where l.course in (select c.id from lms.courses c where c.teacher = auth.uid())));
