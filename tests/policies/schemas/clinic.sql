-- A clinic: straight-line plpgsql decides by the role first, and restrictive MFA on the records.
-- shapes: straight-line, plpgsql-definer, restrictive, jsonb
-- expect: native A clinic.patients oneself
-- expect: native F clinic.patients treating
-- expect: native B clinic.records records
-- expect: native A clinic.records second factor
create schema clinic;
grant usage on schema clinic to authenticated, service_role;
create table clinic.staff (user_id uuid primary key, role varchar(20) not null, ward int);
create table clinic.patients (id int primary key, user_id uuid, ward int, born date);
create table clinic.records (id int primary key, patient_id int references clinic.patients on delete cascade, note text);
grant select on all tables in schema clinic to authenticated, service_role;
create function clinic.may_see(p_ward int) returns boolean language plpgsql stable security definer set search_path = clinic, public as $$
declare
  my_role text;
  my_ward int;
begin
  select s.role, s.ward into my_role, my_ward from clinic.staff s where s.user_id = auth.uid();
  if my_role = 'doctor' then
    return true;
  end if;
  if my_role = 'nurse' and my_ward = p_ward then
    return true;
  end if;
  return false;
end $$;
alter table clinic.patients enable row level security;
alter table clinic.records enable row level security;
create policy treating on clinic.patients for select to authenticated using (clinic.may_see(ward));
create policy oneself on clinic.patients for select to authenticated using (user_id = auth.uid());
create policy records on clinic.records for select to authenticated using (exists (
  select 1 from clinic.patients p where p.id = records.patient_id));
create policy "second factor" on clinic.records as restrictive for select to authenticated
  using ((select auth.jwt() ->> 'aal') = 'aal2');
