-- A CRM in which AI agents do chores for people, and people watch them do it.
--
-- Load `sql/auth.sql` first. May be loaded more than once: what is there stays, policies and
-- triggers are put back to what is written here. Each table says in its comment that it came with
-- the example, by which `rowcast setup --remove --example agent_tasks` knows it again.

-- Somebody else's table or function of the same name is left alone, and so is everything else then.
do $$
declare
  taken text;
begin
  select string_agg(name, ', ' order by name) into taken
  from (
    select format('table public.%I', c.relname)
    from pg_class c
    where c.relnamespace = to_regnamespace('public')
      and c.relname in ('organizations', 'org_members', 'contacts', 'agents', 'agent_tasks', 'drafts', 'follow_ups')
      and coalesce(obj_description(c.oid, 'pg_class'), '') not like 'Made by rowcast setup: example agent_tasks%'
    union all
    select 'function ' || f.oid::regprocedure::text
    from pg_proc f
    where f.oid = to_regprocedure('public.touch_updated_at()')
      and coalesce(obj_description(f.oid, 'pg_proc'), '') not like 'Made by rowcast setup: example agent_tasks%'
  ) as others(name);
  if taken is not null then
    raise exception 'the example would take the place of what is there already: %', taken;
  end if;
end
$$;

-- Tables -------------------------------------------------------------------------------------
create table if not exists public.organizations (
  id         uuid primary key default gen_random_uuid(),
  name       text not null,
  created_at timestamptz not null default now()
);

-- Who belongs where. Every other policy that speaks of an organisation reads this table.
create table if not exists public.org_members (
  organization_id uuid not null references public.organizations on delete cascade,
  user_id         uuid not null,
  role            text not null default 'member' check (role in ('owner', 'member')),
  primary key (organization_id, user_id)
);

create table if not exists public.contacts (
  id              uuid primary key default gen_random_uuid(),
  organization_id uuid not null references public.organizations on delete cascade,
  name            text not null,
  email           text
);

-- The states below are text with a check, not enums: a client's filter (`status=eq.pending`) then
-- names a value that may not exist yet without an error, and a new state needs no new type.
create table if not exists public.agents (
  id              uuid primary key default gen_random_uuid(),
  organization_id uuid not null references public.organizations on delete cascade,
  name            text not null,
  status          text not null default 'idle' check (status in ('idle', 'active')),
  updated_at      timestamptz not null default now()
);

create table if not exists public.agent_tasks (
  id              uuid primary key default gen_random_uuid(),
  organization_id uuid not null references public.organizations on delete cascade,
  user_id         uuid not null,
  contact_id      uuid references public.contacts on delete set null,
  agent_id        uuid references public.agents on delete set null,
  title           text not null,
  status          text not null default 'pending'
                  check (status in ('pending', 'in_progress', 'completed', 'failed')),
  error           text,
  -- What happened so far, oldest first: [{"at": "…", "text": "…"}].
  events          jsonb not null default '[]' check (jsonb_typeof(events) = 'array'),
  created_at      timestamptz not null default now(),
  updated_at      timestamptz not null default now(),
  -- A reason stands exactly where something failed.
  check ((status = 'failed') = (error is not null))
);

create table if not exists public.drafts (
  id         uuid primary key default gen_random_uuid(),
  user_id    uuid not null,
  contact_id uuid references public.contacts on delete set null,
  agent_id   uuid references public.agents on delete set null,
  body       text not null,
  status     text not null default 'pending'
             check (status in ('pending', 'approved', 'rejected', 'sent')),
  created_at timestamptz not null default now(),
  updated_at timestamptz not null default now()
);

create table if not exists public.follow_ups (
  id         uuid primary key default gen_random_uuid(),
  user_id    uuid not null,
  contact_id uuid references public.contacts on delete set null,
  note       text not null,
  due_at     timestamptz not null,
  status     text not null default 'scheduled'
             check (status in ('scheduled', 'executed', 'cancelled')),
  created_at timestamptz not null default now(),
  updated_at timestamptz not null default now()
);

comment on table public.organizations is 'Made by rowcast setup: example agent_tasks.';
comment on table public.org_members is 'Made by rowcast setup: example agent_tasks.';
comment on table public.contacts is 'Made by rowcast setup: example agent_tasks.';
comment on table public.agents is 'Made by rowcast setup: example agent_tasks.';
comment on table public.agent_tasks is 'Made by rowcast setup: example agent_tasks.';
comment on table public.drafts is 'Made by rowcast setup: example agent_tasks.';
comment on table public.follow_ups is 'Made by rowcast setup: example agent_tasks.';

-- Policies compare these columns on every read, and the worker looks for work by state.
create index if not exists org_members_user on public.org_members (user_id);
create index if not exists contacts_organization on public.contacts (organization_id);
create index if not exists agents_organization on public.agents (organization_id);
create index if not exists agent_tasks_organization_status
  on public.agent_tasks (organization_id, status, created_at);
create index if not exists agent_tasks_agent on public.agent_tasks (agent_id);
create index if not exists drafts_user_status on public.drafts (user_id, status);
create index if not exists follow_ups_user_status on public.follow_ups (user_id, status);

-- `updated_at` is the database's business, so that no writer can forget it. The clock's time, not
-- the transaction's: two updates in one transaction differ.
create or replace function public.touch_updated_at() returns trigger
  language plpgsql
  as $$
begin
  new.updated_at := clock_timestamp();
  return new;
end
$$;

comment on function public.touch_updated_at() is 'Made by rowcast setup: example agent_tasks.';

create or replace trigger touch_updated_at before update on public.agents
  for each row execute function public.touch_updated_at();
create or replace trigger touch_updated_at before update on public.agent_tasks
  for each row execute function public.touch_updated_at();
create or replace trigger touch_updated_at before update on public.drafts
  for each row execute function public.touch_updated_at();
create or replace trigger touch_updated_at before update on public.follow_ups
  for each row execute function public.touch_updated_at();

-- Who may see what ---------------------------------------------------------------------------
-- Agents and the demo's worker write as the owner or as service_role. People only read, so there
-- are policies for SELECT and none for writing. `anon` may ask, as on Supabase, and since no policy
-- names it, it sees nothing.
do $$
declare
  reader text;
begin
  foreach reader in array array['anon', 'authenticated', 'service_role'] loop
    -- Everybody has it unless it was revoked.
    if to_regrole(reader) is not null and not has_schema_privilege(reader, 'public', 'usage') then
      execute format('grant usage on schema public to %I', reader);
    end if;
  end loop;
end
$$;

grant select on
  public.organizations, public.org_members, public.contacts, public.agents,
  public.agent_tasks, public.drafts, public.follow_ups
  to anon, authenticated;

do $$
begin
  if to_regrole('service_role') is not null then
    grant select, insert, update, delete on
      public.organizations, public.org_members, public.contacts, public.agents,
      public.agent_tasks, public.drafts, public.follow_ups
      to service_role;
  end if;
end
$$;

alter table public.organizations enable row level security;
alter table public.org_members enable row level security;
alter table public.contacts enable row level security;
alter table public.agents enable row level security;
alter table public.agent_tasks enable row level security;
alter table public.drafts enable row level security;
alter table public.follow_ups enable row level security;

-- One's own memberships only, decided by the row itself. If this policy looked up memberships to
-- decide about memberships, PostgreSQL would refuse it as an infinite recursion.
drop policy if exists "own memberships" on public.org_members;
create policy "own memberships" on public.org_members for select to authenticated
  using (user_id = (select auth.uid()));

drop policy if exists "members see their organisation" on public.organizations;
create policy "members see their organisation" on public.organizations for select to authenticated
  using (id in (
    select organization_id from public.org_members where user_id = (select auth.uid())));

-- What belongs to the organisation is seen by all its members …
drop policy if exists "members see contacts" on public.contacts;
create policy "members see contacts" on public.contacts for select to authenticated
  using (organization_id in (
    select organization_id from public.org_members where user_id = (select auth.uid())));

drop policy if exists "members see agents" on public.agents;
create policy "members see agents" on public.agents for select to authenticated
  using (organization_id in (
    select organization_id from public.org_members where user_id = (select auth.uid())));

drop policy if exists "members see tasks" on public.agent_tasks;
create policy "members see tasks" on public.agent_tasks for select to authenticated
  using (organization_id in (
    select organization_id from public.org_members where user_id = (select auth.uid())));

-- … and what somebody is still writing is seen by nobody else.
drop policy if exists "own drafts" on public.drafts;
create policy "own drafts" on public.drafts for select to authenticated
  using (user_id = (select auth.uid()));

drop policy if exists "own follow-ups" on public.follow_ups;
create policy "own follow-ups" on public.follow_ups for select to authenticated
  using (user_id = (select auth.uid()));

-- What is relayed ----------------------------------------------------------------------------
-- A DELETE reaches the log as the old row's identity: by default the primary key and nothing else.
-- Whether somebody may hear of it is decided by `organization_id` or `user_id`, and whether they
-- asked for it by `agent_id` or `status`. FULL puts the whole old row into the log. It costs WAL on
-- updates and deletes; where that hurts, an index over key and owner as identity does the same.
alter table public.contacts replica identity full;
alter table public.agents replica identity full;
alter table public.agent_tasks replica identity full;
alter table public.drafts replica identity full;
alter table public.follow_ups replica identity full;

-- Table by table, never FOR ALL TABLES: what is published can be subscribed to, and a new table
-- should not be until somebody has thought about its policies. `org_members` decides who sees what
-- but is nobody's business to watch, so it stays out.
--
-- The publication is called rowcast unless the setting rowcast.publication names another.
do $$
declare
  publication text := coalesce(nullif(current_setting('rowcast.publication', true), ''), 'rowcast');
  wanted text;
begin
  if not exists (select from pg_publication where pubname = publication) then
    execute format('create publication %I with (publish_via_partition_root = true)', publication);
    execute format('comment on publication %I is %L', publication,
      'Made by rowcast setup: what can be subscribed to.');
  end if;
  foreach wanted in array array['contacts', 'agents', 'agent_tasks', 'drafts', 'follow_ups'] loop
    if not exists (
      select from pg_publication_tables
      where pubname = publication and schemaname = 'public' and tablename = wanted
    ) then
      execute format('alter publication %I add table public.%I', publication, wanted);
    end if;
  end loop;
end
$$;
