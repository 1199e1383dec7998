-- What roles are members of is asked in the policies themselves, and in functions.
-- shapes: to-authenticated, own, sql-definer, plpgsql-invoker, one-return
-- traps: 18
-- claims: desk_clerk {"sub": "00000000-0000-4000-8000-00000000000a"}
-- claims: desk_trainee {"sub": "00000000-0000-4000-8000-00000000000a"}
-- values: public.tills.amount = 1 | 2 | 5
-- values: public.tills.owner = '00000000-0000-4000-8000-00000000000a' | null
-- values: public.notes.owner = '00000000-0000-4000-8000-00000000000a' | null
-- expect: native A public.tills clerks
-- expect: native A public.tills members
-- expect: native E public.notes by_function
-- expect: native D public.notes by_owner
-- expect: asked A public.slips unknown because pg_has_role of such a privilege
create role desk_staff nologin;
create role desk_clerk nologin inherit in role desk_staff;
create role desk_trainee nologin noinherit in role desk_staff;
grant usage on schema public, auth to desk_staff, desk_clerk, desk_trainee;
create table tills (id int primary key, owner uuid, amount int);
create table notes (id int primary key, owner uuid, body text);
create table slips (id int primary key, owner uuid, body text);
grant select on tills, notes, slips to desk_clerk, desk_trainee;
alter table tills enable row level security;
alter table notes enable row level security;
alter table slips enable row level security;
create policy clerks on tills for select to public
  using (pg_has_role('desk_staff', 'USAGE') and amount < 3);
create policy members on tills for select to public
  using (pg_has_role(current_user, 'desk_staff', 'member') and owner = auth.uid());
create function is_staff() returns boolean language plpgsql stable as $$
begin
  return pg_has_role('desk_staff', 'usage');
end $$;
create function owner_is_staff() returns boolean language sql stable security definer as $$
  select pg_has_role(current_user, 'desk_staff', 'member')
$$;
create policy by_function on notes for select to public using (is_staff() and body is not null);
create policy by_owner on notes for select to public using (owner_is_staff() and owner = auth.uid());
create policy unknown on slips for select to public
  using (pg_has_role('desk_staff', 'member with admin option'));
