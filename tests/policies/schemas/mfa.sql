-- A second factor for some tables only, through one plpgsql helper, restrictive.
-- shapes: restrictive, plpgsql-invoker, straight-line, jsonb
-- expect: native F public.bank_accounts mfa
-- expect: native A public.bank_accounts own
-- expect: native B public.transfers mfa
-- expect: native A public.transfers own
create table mfa_required (user_id uuid primary key);
create table bank_accounts (id int primary key, owner uuid, iban text);
create table transfers (id int primary key, account_id int, owner uuid);
create function has_second_factor() returns boolean language plpgsql stable as $$
declare level text;
begin
  level := auth.jwt() ->> 'aal';
  if level is null then
    return false;
  end if;
  return level = 'aal2';
end $$;
alter table bank_accounts enable row level security;
alter table transfers enable row level security;
create policy own on bank_accounts for select to authenticated using (owner = auth.uid());
create policy mfa on bank_accounts as restrictive to authenticated using (has_second_factor());
create policy own on transfers for select to authenticated using (owner = auth.uid());
create policy mfa on transfers as restrictive for select to authenticated using (
  (select auth.jwt() ->> 'aal') = 'aal2' or not exists (select 1 from mfa_required r where r.user_id = auth.uid()));
