-- Profiles, followers and blocks.
-- shapes: exists, boolean, own
-- expect: native A public.follows my follows
-- expect: native B public.posts followed
-- expect: native B public.posts not blocked
-- expect: native A public.profiles public or mine
create table profiles (id uuid primary key, handle text, private boolean not null default false);
create table follows (follower uuid, followee uuid, accepted boolean default false, primary key (follower, followee));
create table blocks (blocker uuid, blocked uuid, primary key (blocker, blocked));
create table posts (id bigint primary key, author uuid not null, body text);
alter table profiles enable row level security;
alter table follows enable row level security;
alter table posts enable row level security;
create policy "public or mine" on profiles for select using (not private or id = auth.uid());
create policy "my follows" on follows for select to authenticated using (follower = auth.uid() or followee = auth.uid());
create policy "followed" on posts for select to authenticated using (author = auth.uid() or exists (
  select 1 from follows f where f.followee = posts.author and f.follower = auth.uid() and f.accepted));
create policy "not blocked" on posts as restrictive for select to authenticated using (not exists (
  select 1 from blocks b where b.blocker = posts.author and b.blocked = auth.uid()));
