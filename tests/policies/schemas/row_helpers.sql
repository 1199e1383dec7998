-- A network whose helper takes a post's row as a whole, in policies of other tables too, and whose WITH CHECKs name what nobody needs for reading.
-- shapes: sql-definer, whole-row, exists, with-check, in, boolean, to-authenticated, order-limit
-- expect: native D public.posts posts one may see
-- expect: native D public.reactions reactions to posts one may see
-- expect: native D public.reposts reposts by way of the newest
-- expect: native B public.post_circles the author chooses circles
-- expect: native A public.circles own circles
-- expect: native A public.circles writers
-- values: public.posts.visibility = 'public' | 'followers' | 'none'
-- values: public.posts.id = 1 | 2 | 3
-- values: public.reactions.post_id = 1 | 2 | 3
-- values: public.reposts.post_id = 1 | 2 | 3
-- values: public.post_circles.post_id = 1 | 2 | 3
create table posts (id int primary key, legacy text, author uuid, visibility text not null, gone boolean not null default false);
alter table posts drop column legacy;
create table follows (follower uuid, followee uuid, primary key (follower, followee));
create table circles (id int primary key, owner uuid, name text);
create table post_circles (post_id int, note text, circle_id int, primary key (post_id, circle_id));
create table reactions (id int primary key, post_id int, actor uuid);
create table reposts (id int primary key, post_id int);
create function can_see(p posts, viewer uuid) returns boolean language sql stable security definer set search_path = public as $$
  select not p.gone and (p.author = viewer or p.visibility = 'public'
    or p.visibility = 'followers' and exists (select 1 from follows f where f.follower = viewer and f.followee = p.author))
$$;
create function may_write() returns boolean language sql stable security definer set search_path = public as $$
  select exists (select 1 from follows where follower = auth.uid())
$$;
revoke execute on function may_write() from public;
create policy "posts one may see" on posts for select to authenticated using (can_see(posts, auth.uid()));
create policy "reactions to posts one may see" on reactions for select to authenticated using (
  exists (select 1 from posts p where p.id = post_id and can_see(p, auth.uid()))
);
create policy "reposts by way of the newest" on reposts for select to authenticated using (
  post_id in (select p.id from posts p where can_see(p.*, auth.uid()) and p.visibility <> 'public')
);
create policy "the author chooses circles" on post_circles for all to authenticated using (
  exists (select 1 from posts p where p.id = post_id and p.author = auth.uid())
) with check (
  may_write() and post_id > 0 and exists (select 1 from circles c where c.id = circle_id and c.owner = auth.uid() and c.name <> '')
);
create policy "own circles" on circles for all to authenticated using (owner = auth.uid()) with check (
  owner = auth.uid() and name is not null and may_write() and not exists (select 1 from reposts where id = circles.id)
);
create policy "writers" on circles for all to authenticated with check (may_write());
alter table posts enable row level security;
alter table circles enable row level security;
alter table post_circles enable row level security;
alter table reactions enable row level security;
alter table reposts enable row level security;
insert into follows values
  ('00000000-0000-4000-8000-00000000000a', '00000000-0000-4000-8000-00000000000b'),
  ('00000000-0000-4000-8000-00000000000c', '00000000-0000-4000-8000-00000000000a');
grant select on posts, circles, post_circles, reactions, reposts to authenticated;
