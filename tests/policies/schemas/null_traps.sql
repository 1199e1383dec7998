-- NULL under NOT, COALESCE, IS DISTINCT FROM and in lists.
-- shapes: is-null, coalesce, in-list, any-array, boolean
-- traps: 6
-- expect: native A public.n1 p1
-- expect: native A public.n1 p2
-- expect: native A public.n1 p3
-- expect: native A public.n2 p1
-- expect: native A public.n2 p2
-- expect: native A public.n3 p1
-- expect: native A public.n3 p2
create table n1 (id int primary key, owner uuid, level int, tag text);
create table n2 (id int primary key, owner uuid, tags text[]);
create table n3 (id int primary key, ok boolean, who uuid);
alter table n1 enable row level security;
alter table n2 enable row level security;
alter table n3 enable row level security;
create policy p1 on n1 for select using (not (owner = auth.uid()) or level in (1, null, 3));
create policy p2 on n1 for select using (coalesce(tag = any (array['a', null, 'b']), level > 2));
create policy p3 on n1 as restrictive for select using (owner is distinct from auth.uid() or level is not null);
create policy p1 on n2 for select using (owner is not distinct from auth.uid());
create policy p2 on n2 for select using (tags is null or cardinality(tags) = 0);
create policy p1 on n3 for select using ((ok is not true) = (who is null));
create policy p2 on n3 for select using (who <> all (array[auth.uid(), '00000000-0000-4000-8000-00000000000a'::uuid]) and nullif(ok, false));
