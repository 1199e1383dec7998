-- Rooms in a schema of their own, with kicked users; NOT IN over a column that may be NULL.
-- shapes: in, nested, boolean
-- traps: 6
-- expect: native B chat.lines lines
-- expect: native A chat.rooms rooms
create schema chat;
grant usage on schema chat to anon, authenticated, service_role;
create table chat.rooms (id int primary key, is_open boolean, owner uuid);
create table chat.kicked (id int primary key, room_id int, user_id uuid);
create table chat.lines (id bigint primary key, room_id int references chat.rooms on delete cascade, body text);
grant select on all tables in schema chat to anon, authenticated, service_role;
alter table chat.rooms enable row level security;
alter table chat.lines enable row level security;
create policy rooms on chat.rooms for select using (is_open or owner = auth.uid());
create policy lines on chat.lines for select to authenticated
  using (room_id in (select r.id from chat.rooms r)
    and auth.uid() not in (select k.user_id from chat.kicked k where k.room_id = lines.room_id));
