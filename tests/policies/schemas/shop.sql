-- A shop: everybody sees what is for sale, customers their orders, and items through orders.
-- shapes: true, false, own, exists, to-anon, ordering
-- expect: native B public.order_items my items
-- expect: native A public.orders my orders
-- expect: native A public.products all for customers
-- expect: native A public.products for sale
-- expect: native A public.suppliers nobody
create table products (id int primary key, name text, price numeric not null default 1, hidden boolean default false);
create table orders (id int primary key, customer uuid not null, state text not null default 'cart');
create table order_items (order_id int references orders on delete cascade, product_id int, count int not null default 1,
  primary key (order_id, product_id));
create table suppliers (id int primary key, name text);
alter table products enable row level security;
alter table orders enable row level security;
alter table order_items enable row level security;
alter table suppliers enable row level security;
create policy "for sale" on products for select to anon, authenticated using (not hidden and price > 0);
create policy "all for customers" on products for select to authenticated using (true);
create policy "my orders" on orders for select using (customer = auth.uid());
create policy "my items" on order_items for select using (exists (
  select 1 from orders o where o.id = order_items.order_id and o.customer = auth.uid()));
create policy "nobody" on suppliers for select using (false);
