-- Values that a variable holds, which sub-selects over other tables compare their rows with.
-- shapes: array, plpgsql-definer, straight-line, join
-- expect: native F public.documents shared
-- expect: native F public.notes nested
create table team_members (id int primary key, team_id int, user_id uuid);
create table shares (id int primary key, document_id int, team_id int);
create table documents (id int primary key, name text);
create table notes (id int primary key, team_id int, text text);
create function may_read(document int) returns boolean language plpgsql stable security definer set search_path = public as $$
declare teams int[];
begin
  select array_agg(team_id) into teams from team_members where user_id = auth.uid();
  return exists (select 1 from shares where document_id = document and team_id = any (teams));
end $$;
create function may_note(team int) returns boolean language plpgsql stable security definer set search_path = public as $$
declare teams int[] := array(select team_id from team_members where user_id = auth.uid());
declare shared boolean;
begin
  select exists (
    select 1 from documents d where d.id = team
    and exists (select 1 from shares s where s.document_id = d.id and s.team_id = any (teams))) into shared;
  return shared;
end $$;
alter table documents enable row level security;
alter table notes enable row level security;
create policy shared on documents for select to authenticated using (may_read(id));
create policy nested on notes for select to authenticated using (may_note(team_id));
