-- A club whose members are known by e-mail addresses in any case, stories that end, sites of two sorts.
-- shapes: citext, timezone-utc, coalesced-times, array-of-union
-- claims: authenticated {"sub": "00000000-0000-4000-8000-00000000000d", "email": "Ann@example.org"}
-- claims: authenticated {"sub": "00000000-0000-4000-8000-00000000000e", "email": "ann@example.org"}
-- expect: native A public.members own
-- expect: native D public.pages member
-- expect: native A public.stories running
-- expect: native A public.stories subscribed
-- expect: native E public.sites mine
create extension if not exists citext with schema public;
create table members (id int primary key, email citext not null, active boolean);
create table profiles (id uuid primary key, email citext);
create table pages (id int primary key, title text);
create table stories (id int primary key, expires_at timestamptz, grace_until timestamptz, period_end timestamptz);
create table sites (id int primary key, owner uuid, name text);
create table staff ("user" uuid, site int, primary key ("user", site));
create function is_member() returns boolean language sql stable security definer set search_path = public as $$
  select exists (
    select 1 from members m join profiles p on p.email = m.email where p.id = auth.uid() and m.active)
$$;
create function my_sites() returns int[] language plpgsql stable security definer set search_path = public as $$
begin
  return array(
    select s.site from staff s where s."user" = auth.uid()
    union
    select t.id from sites t where t.owner = auth.uid());
end $$;
alter table members enable row level security;
alter table pages enable row level security;
alter table stories enable row level security;
alter table sites enable row level security;
create policy own on members for select to authenticated using (email = (auth.jwt() ->> 'email')::citext);
create policy member on pages for select to authenticated using (is_member());
create policy running on stories for select to authenticated using (expires_at > timezone('utc'::text, now()));
create policy subscribed on stories for select to authenticated using (
  now() <= coalesce(grace_until, period_end + interval '3 days'));
create policy mine on sites for select to authenticated using (id = any (my_sites()));
