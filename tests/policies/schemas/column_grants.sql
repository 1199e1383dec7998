-- Column rights: what policies read clients may not.
-- shapes: column-grant, own, in
-- expect: native A public.accounts own
-- expect: native B public.cards by_account
-- expect: native A public.cards some
create table accounts (id int primary key, owner uuid, name text, secret text);
create table cards (id int primary key, account int, number text);
revoke all on accounts, cards from anon, authenticated;
grant select (id, name) on accounts to authenticated;
grant select (id, account) on cards to authenticated, anon;
create view my_accounts as select id from accounts;
alter table accounts enable row level security;
alter table cards enable row level security;
create policy own on accounts for select to authenticated using (owner = auth.uid() or secret = 'shared');
create policy by_account on cards for select to authenticated using (account in (select a.id from accounts a));
create policy "some" on cards for select to anon using (number = 'shared');
