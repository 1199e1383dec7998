-- A CRM: contacts are seen through the team of their owner; three tables in one sub-select.
-- shapes: join, exists, scalar
-- expect: native B public.contacts managers
-- expect: native C public.contacts team
-- expect: native C public.deals deals
create table teams (id int primary key, name text);
create table staff (user_id uuid primary key, team_id int references teams, manager boolean not null default false);
create table contacts (id uuid primary key, owner_id uuid, email text, stage text default 'lead');
create table deals (id int primary key, contact_id uuid, amount numeric(10, 2));
alter table contacts enable row level security;
alter table deals enable row level security;
create policy team on contacts for select to authenticated using (exists (
  select 1 from staff me join staff them on them.team_id = me.team_id
  where me.user_id = auth.uid() and them.user_id = contacts.owner_id));
create policy managers on contacts for select to authenticated
  using ((select s.manager from staff s where s.user_id = auth.uid()));
create policy deals on deals for select to authenticated using (exists (
  select 1 from contacts c join staff s on s.user_id = c.owner_id
  where c.id = deals.contact_id and s.user_id = (select auth.uid())));
