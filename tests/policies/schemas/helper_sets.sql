-- Helpers that return sets, in FROM, of several queries, and by who asks.
-- shapes: sql-definer, plpgsql-definer, set-operation, in, own
-- expect: native D public.sites reached
-- expect: native F public.pages reached
-- expect: native D public.pages listed
-- expect: native F public.edits by_rank
create table sites (id uuid primary key, owner uuid);
create table crew (site_id uuid, user_id uuid, level int, primary key (site_id, user_id));
create table pages (id int primary key, site_id uuid);
create table edits (id int primary key, site_id uuid, editor uuid);
create function reached() returns setof uuid language sql stable security definer set search_path = public as $$
  select s.id from sites s where s.owner = auth.uid()
  union
  select c.site_id from crew c where c.user_id = auth.uid() $$;
create function reached_pages() returns table (site uuid) language plpgsql stable security definer as $$
  begin
    return query select c.site_id from public.crew c where c.user_id = auth.uid() and c.level > 0;
    return query select s.id from public.sites s where s.owner = auth.uid();
  end $$;
create function by_rank(_who uuid default auth.uid()) returns setof uuid
  language plpgsql stable security definer set search_path = public as $$
  begin
    if _who is null then
      return;
    end if;
    if exists (select from crew c where c.user_id = _who and c.level > 2) then
      return query select s.id from sites s;
    else
      return query select c.site_id from crew c where c.user_id = _who;
    end if;
  end $$;
alter table sites enable row level security;
alter table pages enable row level security;
alter table edits enable row level security;
create policy reached on sites for select using (id in (select * from reached()));
create policy reached on pages for select to authenticated using (site_id in (select site from reached_pages()));
create policy listed on pages for select to anon using (site_id in (select r.id from reached() as r(id)) or id < 3);
create policy by_rank on edits for select using (site_id in (select by_rank()));
