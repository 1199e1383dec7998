-- Policies that PostgreSQL is asked about for several users at once, each with a sub-select that it runs
-- once a statement: whose claims it reads must not be those of who was asked about before.
-- shapes: own, init-plan, plpgsql-invoker, exists
-- traps: 14
-- watch: public.errands
-- expect: asked - public.errands reached because function reaches: has a loop
-- expect: hybrid - public.errands shared because function reaches: has a loop
create table errand_helpers (errand_id int, helper uuid, primary key (errand_id, helper));
create table errands (id int primary key, owner uuid, urgent boolean not null default false);
alter table errands enable row level security;
create function reaches(who uuid, owner uuid) returns boolean language plpgsql stable as $$
declare n int := 0;
begin
  while n < 2 loop
    if who = owner then return true; end if;
    n := n + 1;
  end loop;
  return false;
end $$;
create policy reached on errands for select to authenticated using (reaches((select auth.uid()), owner));
create policy shared on errands for select to authenticated
  using (urgent and reaches((select auth.uid()), (
    select h.helper from errand_helpers h
    where h.errand_id = errands.id and h.helper = (select auth.uid()))));
grant select on errand_helpers to authenticated;
