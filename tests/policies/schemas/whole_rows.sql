-- Helpers that are handed the row as a whole, as they are written for computed fields too.
-- shapes: whole-row, sql-definer, sql-invoker, plpgsql-definer, exists, jsonb, own, boolean, dropped-column
-- expect: native D public.docs shared
-- expect: native D public.docs mine
-- expect: native F public.notes readable
-- expect: native D public.notes about
-- expect: hybrid D public.drafts tagged because function tagged: a row as a whole
-- expect: hybrid A public.drafts unlike because a row as a whole
-- expect: asked A public.drafts all_there because a row as a whole
-- values: public.docs.state = 'open' | 'closed'
-- values: public.drafts.kind = 'plan' | 'open'
create table members (id int primary key, team int, user_id uuid);
create table docs (
  id int primary key, gone text, team int, owner uuid, "State" text, state text,
  title varchar(20) collate "C", tags text[]
);
alter table docs drop column gone;
create table notes (id int primary key, doc int, owner uuid, open boolean);
create table drafts (
  id int primary key, kind text, owner uuid, meta jsonb, tags text[], amount numeric(8, 2), at timestamptz,
  twice numeric generated always as (amount * 2) stored
);
create function is_open(docs) returns boolean language sql stable as $$ select $1.state = 'open' $$;
create function is_shared(d docs) returns boolean language sql stable security definer
  set search_path = public as $$
    select is_open(d) and exists (select from members m where m.team = d.team and m.user_id = auth.uid()) $$;
create function may_read(n notes) returns boolean language plpgsql stable security definer
  set search_path = public as $$
  begin
    if n.open then
      return true;
    end if;
    return n.owner = auth.uid();
  end $$;
create function tagged(d drafts) returns boolean language sql stable as $$
  select to_jsonb(d) ->> 'kind' = 'plan' and d.tags is not null and (to_jsonb(d) ->> 'twice') is not null $$;
alter table docs enable row level security;
alter table notes enable row level security;
alter table drafts enable row level security;
create policy shared on docs for select using (is_shared(docs));
create policy mine on docs for select using (owner = auth.uid() and is_open(docs.*));
create policy readable on notes for select to authenticated using (may_read(notes));
create policy about on notes for select to authenticated
  using (exists (select from docs d where d.id = notes.doc and is_open(d)));
create policy all_there on drafts for select to anon using (num_nulls(drafts) = 0 or drafts is not null);
create policy tagged on drafts for select using (tagged(drafts) and meta is not null);
create policy unlike on drafts for select to authenticated
  using (drafts::text not like '%open%' and owner = auth.uid());
grant select on all tables in schema public to anon, authenticated, service_role;
