-- Conversations and messages; a definer helper hides the circle between participants and themselves.
-- shapes: sql-definer, exists, to-authenticated, composite-key
-- traps: 4
-- expect: native D public.conversations see mine
-- expect: native D public.messages read
-- expect: native D public.participants see who is there
create table conversations (id uuid primary key, subject text);
create table participants (
  conversation_id uuid references conversations on delete cascade,
  user_id uuid not null,
  muted boolean default false,
  primary key (conversation_id, user_id)
);
create table messages (
  id bigint primary key,
  conversation_id uuid references conversations on delete cascade,
  sender_id uuid,
  body text
);
create function is_participant(cid uuid) returns boolean language sql stable security definer set search_path = '' as $$
  select exists (select 1 from public.participants p where p.conversation_id = cid and p.user_id = auth.uid())
$$;
alter table conversations enable row level security;
alter table participants enable row level security;
alter table messages enable row level security;
create policy "see mine" on conversations for select to authenticated using (is_participant(id));
create policy "see who is there" on participants for select to authenticated using (is_participant(conversation_id));
create policy "read" on messages for select to authenticated using (is_participant(conversation_id));
create policy "delete own" on messages for delete to authenticated using (sender_id = auth.uid());
