-- Topics of a private channel, by the beginning of their names.
-- shapes: like, own, boolean
-- values: public.topics.topic = 'room:1' | 'room:2' | 'user:00000000-0000-4000-8000-00000000000a' | 'public:news' | 'public_news' | null
-- expect: native A public.topics my topic
-- expect: native A public.topics public topics
-- expect: native B public.topics room
create table topics (id bigint primary key, topic text, extension text default 'broadcast', inserted_at timestamp default now());
create table room_users (room text, user_id uuid, primary key (room, user_id));
alter table topics enable row level security;
create policy "public topics" on topics for select using (topic like 'public:%');
create policy "my topic" on topics for select to authenticated using (topic = 'user:' || (select auth.uid())::text);
create policy "room" on topics for select to authenticated using (
  extension in ('broadcast', 'presence') and topic like 'room:%'
  and exists (select 1 from room_users r where r.user_id = auth.uid() and 'room:' || r.room = topic));
