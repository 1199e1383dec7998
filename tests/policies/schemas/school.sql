-- A school: pupils, teachers and marks, in the style of one function for each role.
-- shapes: plpgsql-definer, one-return, scalar, enum
-- expect: native E public.marks head
-- expect: native A public.marks pupils
-- expect: native E public.marks teachers
-- expect: native E public.profiles self
create type school_role as enum ('pupil', 'teacher', 'head');
create table profiles (id uuid primary key, role school_role not null default 'pupil', class_id int);
create table marks (id int primary key, pupil_id uuid, class_id int, mark smallint);
create function my_role() returns school_role language plpgsql stable security definer set search_path = public as $$
begin
  return (select role from profiles where id = auth.uid());
end $$;
create function teaches(c int) returns boolean language plpgsql stable security definer set search_path = public as $$
begin
  return exists (select 1 from profiles p where p.id = auth.uid() and p.role = 'teacher' and p.class_id = c);
end $$;
alter table profiles enable row level security;
alter table marks enable row level security;
create policy self on profiles for select to authenticated using (id = auth.uid() or my_role() = 'head');
create policy pupils on marks for select to authenticated using (pupil_id = auth.uid());
create policy teachers on marks for select to authenticated using (teaches(class_id));
create policy head on marks for all to authenticated using (my_role() = 'head'::school_role);
