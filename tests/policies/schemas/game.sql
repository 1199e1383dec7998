-- Matches with players in two columns and spectators.
-- shapes: in-list, own, to-public
-- expect: native A public.matches players
-- expect: native A public.matches unrated
-- expect: native B public.moves players
-- expect: native B public.moves spectators
create table matches (id uuid primary key, white uuid, black uuid, rated boolean default true);
create table moves (match_id uuid references matches on delete cascade, ply int, san text, primary key (match_id, ply));
create table spectators (match_id uuid, user_id uuid, primary key (match_id, user_id));
alter table matches enable row level security;
alter table moves enable row level security;
create policy players on matches for select using (auth.uid() in (white, black));
create policy unrated on matches for select to anon using (not rated);
create policy players on moves for select to authenticated using (exists (
  select 1 from matches m where m.id = moves.match_id and (m.white = auth.uid() or m.black = auth.uid())));
create policy spectators on moves for select to authenticated using ((select auth.uid()) in (
  select s.user_id from spectators s where s.match_id = moves.match_id));
