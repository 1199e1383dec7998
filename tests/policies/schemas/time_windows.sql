-- Rows that are visible in a window of time; nothing is written when it opens or closes.
-- shapes: time, coalesce, ordering
-- traps: 15
-- values: public.announcements.starts_at = now() - interval '1 day' | now() + interval '120 milliseconds' | now() + interval '350 milliseconds' | '2999-12-31'
-- values: public.announcements.ends_at = now() + interval '80 milliseconds' | now() + interval '280 milliseconds' | '2020-01-01' | '2999-12-31'
-- flips: public.announcements select starts_at from announcements union select ends_at from announcements
-- expect: native A public.announcements window_open
-- expect: native A public.archive old
-- expect: native A public.archive own
create table announcements (id int primary key, starts_at timestamptz, ends_at timestamptz, body text);
create table archive (id int primary key, on_day date, owner uuid);
alter table announcements enable row level security;
alter table archive enable row level security;
create policy window_open on announcements for select
  using (starts_at <= now() and coalesce(ends_at, 'infinity'::timestamptz) > now());
create policy old on archive for select to authenticated using (on_day < '2021-01-01'::date);
create policy own on archive for select to authenticated using (owner = (select auth.uid()));
