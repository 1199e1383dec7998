-- Fixed length texts, a nondeterministic collation and the order of texts.
-- shapes: ordering, is-null, boolean
-- traps: 11
-- expect: native A public.codes ordered
-- expect: native A public.codes padded
-- expect: native A public.codes short
-- expect: asked A public.folded folded because is not native here
-- expect: native A public.folded plain
create collation nobody_cares (provider = icu, locale = 'und-u-ks-level2', deterministic = false);
create table codes (id int primary key, code char(4), short varchar(3), c text collate "C");
create table folded (id int primary key, name text collate nobody_cares);
alter table codes enable row level security;
alter table folded enable row level security;
create policy padded on codes for select to authenticated using (code = 'ab');
create policy ordered on codes for select to authenticated using (c > 'abc' and c <= 'xyz');
create policy short on codes for select to anon using (short::text = 'ab' or short is null);
create policy folded on folded for select using (name = 'ABC');
create policy plain on folded for select to authenticated using (name collate "C" = 'xyz');
