-- Invoices with a generated total, which the stream does not carry.
-- shapes: generated, own, ordering
-- traps: 13
-- expect: native A public.invoices own
-- expect: native A public.invoices small
-- expect: hybrid B public.payments paid because policy own of invoices: column 6 is generated, or not known
create table invoices (
  id int primary key,
  user_id uuid,
  net numeric(10, 2) not null default 1,
  tax numeric(10, 2) not null default 0,
  total numeric(10, 2) generated always as (net + tax) stored,
  is_big boolean generated always as (net > 1) stored
);
create table payments (id int primary key, invoice_id int references invoices on delete cascade, paid boolean);
alter table invoices enable row level security;
alter table payments enable row level security;
create policy own on invoices for select to authenticated using (user_id = auth.uid() and is_big);
create policy small on invoices for select to anon using (total < 2);
create policy paid on payments for select to authenticated using (paid and invoice_id in (
  select i.id from invoices i where i.user_id = auth.uid()));
