-- What the compiler does not follow, a loop, and what it does, a caught error.
-- shapes: loop, exception, plpgsql-definer, own
-- expect: asked - public.nodes below because function above: has a loop
-- expect: native A public.nodes own
-- expect: native - public.secrets numbers
-- expect: native A public.secrets own
create table nodes (id int primary key, parent int, owner uuid);
create table secrets (id int primary key, text text, owner uuid);
create function above(n int) returns boolean language plpgsql stable security definer set search_path = public as $$
declare p int := n;
begin
  for i in 1..3 loop
    if exists (select 1 from nodes x where x.id = p and x.owner = auth.uid()) then return true; end if;
    select parent into p from nodes x where x.id = p;
  end loop;
  return false;
end $$;
create function safely(t text) returns boolean language plpgsql stable as $$
begin
  return t::int > 1;
exception when others then
  return false;
end $$;
alter table nodes enable row level security;
alter table secrets enable row level security;
create policy own on nodes for select using (owner = auth.uid());
create policy below on nodes for select to authenticated using (above(id));
create policy numbers on secrets for select using (safely(text));
create policy own on secrets for select using (owner = auth.uid());
