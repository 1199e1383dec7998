-- A help desk: customers by e-mail, agents by a table, internal notes restrictive.
-- shapes: jsonb, restrictive, sql-invoker, exists
-- expect: native D public.ticket_notes internal
-- expect: native B public.ticket_notes of_tickets
-- expect: native D public.tickets agents
-- expect: native A public.tickets customer
create table agents (user_id uuid primary key, active boolean not null default true);
create table tickets (id int primary key, customer_email text, assignee uuid, state text default 'open');
create table ticket_notes (id int primary key, ticket int, internal boolean not null default false);
create function is_agent() returns boolean language sql stable as $$
  select exists (select 1 from public.agents a where a.user_id = auth.uid() and a.active)
$$;
alter table tickets enable row level security;
alter table ticket_notes enable row level security;
create policy customer on tickets for select to authenticated using (lower(customer_email) = lower(auth.jwt() ->> 'email'));
create policy agents on tickets for select to authenticated using (is_agent() or assignee = auth.uid());
create policy of_tickets on ticket_notes for select to authenticated using (ticket in (select t.id from tickets t));
create policy internal on ticket_notes as restrictive for select to authenticated using (not internal or is_agent());
