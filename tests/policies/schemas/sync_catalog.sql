-- Read as fast as the catalog is: functions and enums that policies were made with early on.
-- shapes: enum, one-return, plpgsql-definer, ordering
-- traps: 20
-- told: what a function or a type says is in no row's table
-- alter: create or replace function on_call_for(t int) returns boolean language plpgsql stable security definer set search_path = public as $$ begin return exists (select 1 from on_call o where o.user_id = auth.uid() and o.team = t and o.most > 'low'); end $$
-- alter: alter type severity rename value 'middle' to 'medium'
-- alter: alter type severity rename value 'medium' to 'middle'
-- alter: create or replace function on_call_for(t int) returns boolean language plpgsql stable security definer set search_path = public as $$ begin return exists (select 1 from on_call o where o.user_id = auth.uid() and o.team = t); end $$
-- expect: native E public.incidents called
-- expect: native A public.incidents mild
-- expect: native A public.incidents own
create type severity as enum ('low', 'middling', 'high');
alter type severity rename value 'middling' to 'middle';
create table incidents (id int primary key, level severity, team int, owner uuid);
create table on_call (user_id uuid primary key, team int, most severity not null default 'low');
create function on_call_for(t int) returns boolean language plpgsql stable security definer set search_path = public as $$
begin return exists (select 1 from on_call o where o.user_id = auth.uid() and o.team = t); end $$;
alter table incidents enable row level security;
create policy mild on incidents for select using (level < 'middle' and owner is not null);
create policy called on incidents for select to authenticated using (on_call_for(team));
create policy own on incidents for select to authenticated using (owner = auth.uid() or level::text = 'middle');
