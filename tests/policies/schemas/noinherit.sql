-- Roles that are members of others, with and without inheriting their policies.
-- shapes: to-authenticated, true, own
-- traps: 18
-- claims: reader_heir {"sub": "00000000-0000-4000-8000-00000000000a"}
-- claims: reader_disinherited {"sub": "00000000-0000-4000-8000-00000000000a"}
-- expect: native A public.books group_reads
-- expect: native A public.books own
create role readers_group nologin;
create role reader_heir nologin inherit in role readers_group;
create role reader_disinherited nologin noinherit in role readers_group;
grant usage on schema public, auth to readers_group, reader_heir, reader_disinherited;
create table books (id int primary key, owner uuid, shelf text);
grant select on books to readers_group, reader_heir, reader_disinherited;
alter table books enable row level security;
create policy group_reads on books for select to readers_group using (shelf = 'open');
create policy own on books for select to public using (owner = auth.uid());
