-- Training plans between coaches and athletes, and what athletes share with everybody.
-- shapes: own, exists, sql-definer, boolean, to-anon
-- expect: native A public.coaching athletes
-- expect: native A public.coaching coaches
-- expect: native A public.plans given
-- expect: native A public.plans written
-- expect: native D public.sessions coached
-- expect: native A public.sessions own
-- expect: native A public.sessions shared
-- expect: native D public.weights coached
-- expect: native A public.weights own
create table coaching (coach uuid, athlete uuid, paused boolean not null default false, primary key (coach, athlete));
create table plans (id int primary key, coach uuid, athlete uuid, title text);
create table sessions (id int primary key, athlete uuid, shared boolean not null default false);
create table weights (id int primary key, athlete uuid, kilos real);
create function coaches(a uuid) returns boolean language sql stable security definer set search_path = '' as $$
  select exists (select 1 from public.coaching c where c.athlete = a and c.coach = auth.uid() and not c.paused)
$$;
alter table coaching enable row level security;
alter table plans enable row level security;
alter table sessions enable row level security;
alter table weights enable row level security;
create policy coaches on coaching for select to authenticated using (coach = auth.uid());
create policy athletes on coaching for select to authenticated using (athlete = auth.uid());
create policy written on plans for select to authenticated using (coach = auth.uid());
create policy given on plans for select to authenticated using (athlete = auth.uid());
create policy own on sessions for select to authenticated using (athlete = auth.uid());
create policy coached on sessions for select to authenticated using (coaches(athlete));
create policy shared on sessions for select to anon, authenticated using (shared);
create policy own on weights for select to authenticated using (athlete = auth.uid());
create policy coached on weights for select to authenticated using (coaches(athlete) and kilos is not null);
