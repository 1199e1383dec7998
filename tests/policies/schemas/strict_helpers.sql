-- STRICT helpers, and helpers that return the first of several rows.
-- shapes: sql-invoker, sql-definer, order-limit, scalar
-- traps: 8
-- expect: native D public.papers best
-- expect: native D public.papers not_mine
-- expect: native D public.papers org
-- expect: native D public.papers owner
create table profiles (id uuid primary key, role text, org_id int);
create table grants (user_id uuid, org_id int, level int not null default 1, primary key (user_id, org_id));
create table papers (id int primary key, org_id int, level int, owner uuid);
create function same(a uuid, b uuid) returns boolean language sql immutable strict as $$ select a = b $$;
create function my_org() returns int language sql stable security definer set search_path = public as $$
  select org_id from profiles where id = auth.uid()
$$;
create function my_best() returns int language sql stable security definer set search_path = public as $$
  select level from grants where user_id = auth.uid() order by level desc limit 1
$$;
alter table papers enable row level security;
create policy owner on papers for select using (same(owner, auth.uid()));
create policy not_mine on papers for select to anon using (same(owner, auth.uid()) is null and level = 1);
create policy org on papers for select to authenticated using (org_id = my_org());
create policy best on papers for select to authenticated using (level < my_best());
