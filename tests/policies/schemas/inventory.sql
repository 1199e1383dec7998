-- Stock by warehouse, with a definer function that returns a set.
-- shapes: in, sql-definer, any-array, array
-- expect: native A public.counts own
-- expect: native A public.stock samples
-- expect: native D public.stock staff
create table warehouse_staff (warehouse int, user_id uuid, primary key (warehouse, user_id));
create table stock (id int primary key, warehouse int, sku varchar(10), amount int);
create table counts (id int primary key, warehouses int[], by_user uuid);
create function my_warehouses() returns setof int language sql stable security definer set search_path = '' as $$
  select w.warehouse from public.warehouse_staff w where w.user_id = auth.uid()
$$;
alter table stock enable row level security;
alter table counts enable row level security;
create policy staff on stock for select to authenticated using (warehouse in (select my_warehouses()));
create policy samples on stock for select to anon using (sku = any (array['a-1', 'b-2']));
create policy own on counts for select to authenticated using (by_user = auth.uid());
