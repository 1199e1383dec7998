-- Quotas and votes: counts and maxima in policies and helpers.
-- shapes: aggregate, scalar, sql-definer
-- expect: native B public.polls enough
-- expect: native A public.polls own
-- expect: native B public.results heavy
-- expect: native D public.results quorum
create table votes (poll int, user_id uuid, weight int not null default 1, primary key (poll, user_id));
create table polls (id int primary key, owner uuid, quorum int not null default 2);
create table results (id int primary key, poll int, body text);
create function voted(p int) returns bigint language sql stable security definer set search_path = public as $$
  select count(*) from votes v where v.poll = p
$$;
alter table polls enable row level security;
alter table results enable row level security;
create policy enough on polls for select using ((select count(*) from votes v where v.poll = polls.id) >= quorum);
create policy own on polls for select using (owner = auth.uid());
create policy quorum on results for select to authenticated using (voted(poll) > 1);
create policy heavy on results for select to anon using ((select max(v.weight) from votes v where v.poll = results.poll) > 2);
