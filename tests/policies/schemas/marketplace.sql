-- Buyers and sellers of the same order; messages of a sale.
-- shapes: join, nested, own
-- expect: native A public.listings open
-- expect: native A public.listings own
-- expect: native C public.sale_messages both_sides
-- expect: native A public.sales buyer
create table listings (id int primary key, seller uuid not null, state text not null default 'open');
create table sales (id int primary key, listing int references listings on delete cascade, buyer uuid);
create table sale_messages (id int primary key, sale int references sales on delete cascade, body text);
alter table listings enable row level security;
alter table sales enable row level security;
alter table sale_messages enable row level security;
create policy open on listings for select using (state = 'open');
create policy own on listings for select to authenticated using (seller = auth.uid());
create policy buyer on sales for select to authenticated using (buyer = (select auth.uid()));
create policy both_sides on sale_messages for select to authenticated using (exists (
  select 1 from sales s join listings l on l.id = s.listing
  where s.id = sale_messages.sale and (s.buyer = auth.uid() or l.seller = auth.uid())));
