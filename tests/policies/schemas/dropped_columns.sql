-- Columns came and went, and one came later: their numbers have holes.
-- shapes: dropped-column, own, in
-- expect: native A public.files own
-- expect: native B public.files shared
create table memberships (junk int, org int, junk2 text, user_id uuid, id serial primary key);
alter table memberships drop column junk, drop column junk2;
create table files (junk bytea, id int primary key, org int, junk2 uuid, owner uuid);
alter table files drop column junk, drop column junk2;
alter table files add column shared boolean not null default false;
alter table files enable row level security;
create policy own on files for select using (owner = auth.uid());
create policy shared on files for select to authenticated using (shared and org in (
  select m.org from memberships m where m.user_id = auth.uid()));
