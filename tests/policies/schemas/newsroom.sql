-- A newsroom: ranks in one table, desks in another, and everything that is published for the world.
-- shapes: sql-definer, scalar, enum, true, boolean, restrictive
-- expect: native A public.corrections authors
-- expect: native B public.corrections of_stories
-- expect: native A public.desks everybody
-- expect: native D public.profiles desk
-- expect: native A public.profiles self
-- expect: native D public.sources chief
-- expect: native A public.sources owners
-- expect: native A public.stories authors
-- expect: native D public.stories chief
-- expect: native D public.stories desk
-- expect: native D public.stories embargo
-- expect: native A public.stories published
-- expect: native A public.tags everybody
create type rank as enum ('reader', 'writer', 'editor', 'chief');
create table profiles (id uuid primary key, rank rank not null default 'reader', desk int);
create table stories (id int primary key, desk int, author uuid, published boolean not null default false, embargo boolean default false);
create table corrections (id int primary key, story int, author uuid);
create table sources (id int primary key, story int, owner uuid);
create table desks (id int primary key, name text);
create table tags (id int primary key, name text);
create function my_rank() returns rank language sql stable security definer set search_path = public as $$
  select rank from profiles where id = auth.uid()
$$;
create function my_desk() returns int language sql stable security definer set search_path = public as $$
  select desk from profiles where id = auth.uid()
$$;
alter table profiles enable row level security;
alter table stories enable row level security;
alter table corrections enable row level security;
alter table sources enable row level security;
alter table desks enable row level security;
alter table tags enable row level security;
create policy self on profiles for select to authenticated using (id = auth.uid());
create policy desk on profiles for select to authenticated using (desk = my_desk());
create policy published on stories for select using (published);
create policy authors on stories for select to authenticated using (author = auth.uid());
create policy desk on stories for select to authenticated using (desk = my_desk() and my_rank() >= 'editor');
create policy chief on stories for all to authenticated using (my_rank() = 'chief');
create policy embargo on stories as restrictive for select using (not coalesce(embargo, false) or my_rank() = 'chief');
create policy authors on corrections for select to authenticated using (author = auth.uid());
create policy of_stories on corrections for select using (exists (select 1 from stories s where s.id = corrections.story and s.published));
create policy owners on sources for select to authenticated using (owner = auth.uid());
create policy chief on sources for select to authenticated using ((select my_rank()) = 'chief');
create policy everybody on desks for select to authenticated using (true);
create policy everybody on tags for select using (true);
