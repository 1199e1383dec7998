-- Childcare centres whose helper returns the caller's account as a row, of which others read a field. The account's table has lost a column.
-- shapes: sql-definer, sql-invoker, case, order-limit, exists, in, enum, to-authenticated, dropped-column
-- expect: native D public.accounts own account
-- expect: native D public.centres own centre
-- expect: native D public.children children of the centre
-- expect: native D public.invoices invoices for managers
-- expect: native D public.notices notices by role
-- expect: native B public.rosters rosters of accounts one sees
-- expect: native B public.notices notices for a kind that one sees
-- values: public.accounts.centre = 1 | 2
-- values: public.children.centre = 1 | 2
-- values: public.invoices.centre = 1 | 2
-- values: public.notices.centre = 1 | 2
-- values: public.rosters.centre = 1 | 2
-- values: public.accounts.active = true | false
create type account_kind as enum ('manager', 'guardian', 'staff');
create table centres (id int primary key, name text);
create table accounts (id int primary key, legacy int, owner uuid not null, centre int, kind account_kind, active boolean default true);
alter table accounts drop column legacy;
create table children (id int primary key, centre int, name text);
create table invoices (id int primary key, centre int, amount int);
create table notices (id int primary key, centre int, audience account_kind, body text);
create table rosters (id int primary key, centre int);
create function my_account() returns accounts language sql stable security definer set search_path = public as $$
  select a.* from accounts a where a.owner = auth.uid() and a.active order by a.id limit 1
$$;
create function my_centre() returns int language sql stable as $$ select (my_account()).centre $$;
create function my_kind() returns account_kind language sql stable as $$ select (my_account()).kind $$;
create function is_manager() returns boolean language sql stable as $$ select my_kind() = 'manager' $$;
create policy "own account" on accounts for select to authenticated using (id = (my_account()).id);
create policy "own centre" on centres for select to authenticated using (id = my_centre());
create policy "children of the centre" on children for select to authenticated using (centre = (select my_centre()));
create policy "invoices for managers" on invoices for select to authenticated using (is_manager() and centre = my_centre());
create policy "notices by role" on notices for select to authenticated using (
  case my_kind()
    when 'manager' then centre = (my_account()).centre
    when 'staff' then audience <> 'guardian' and centre = my_centre()
    else exists (select 1 from children c where c.centre = notices.centre) and audience = 'guardian'
  end
);
create policy "rosters of accounts one sees" on rosters for select to authenticated using (
  exists (select 1 from accounts a where a.centre = rosters.centre)
);
create policy "notices for a kind that one sees" on notices for select to authenticated using (
  audience in (select a.kind from accounts a where a.centre = notices.centre)
);
alter table centres enable row level security;
alter table accounts enable row level security;
alter table children enable row level security;
alter table invoices enable row level security;
alter table notices enable row level security;
alter table rosters enable row level security;
insert into accounts (id, owner, centre, kind) values
  (101, '00000000-0000-4000-8000-00000000000a', 1, 'manager'),
  (102, '00000000-0000-4000-8000-00000000000b', 2, 'staff');
grant select on centres, accounts, children, invoices, notices, rosters to authenticated;
