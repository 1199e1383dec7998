-- Tasks that agents work on: an owner's, or of a workspace whose members may read them.
-- shapes: own, init-plan, exists, enum, to-authenticated, boolean
-- traps: 1 14
-- expect: native A public.agent_tasks Own tasks
-- expect: native B public.agent_tasks Tasks of my workspaces
-- expect: native A public.workspace_members Members see themselves
-- expect: native A public.workspaces Owners see their workspaces
create type task_state as enum ('queued', 'running', 'done', 'failed');
create table workspaces (id uuid primary key, name text not null, owner_id uuid not null);
create table workspace_members (
  workspace_id uuid not null references workspaces on delete cascade,
  user_id uuid not null,
  role text not null default 'viewer' check (role in ('viewer', 'editor', 'admin')),
  primary key (workspace_id, user_id)
);
create table agent_tasks (
  id uuid primary key,
  workspace_id uuid references workspaces on delete cascade,
  created_by uuid,
  state task_state not null default 'queued',
  input jsonb not null default '{}',
  created_at timestamptz not null default now()
);
alter table workspaces enable row level security;
alter table workspace_members enable row level security;
alter table agent_tasks enable row level security;
create policy "Owners see their workspaces" on workspaces for select to authenticated
  using ((select auth.uid()) = owner_id);
create policy "Members see themselves" on workspace_members for select to authenticated
  using (user_id = (select auth.uid()));
create policy "Own tasks" on agent_tasks for all to authenticated
  using ((select auth.uid()) = created_by) with check ((select auth.uid()) = created_by);
create policy "Tasks of my workspaces" on agent_tasks for select to authenticated
  using (state <> 'failed' and exists (
    select 1 from workspace_members m
    where m.workspace_id = agent_tasks.workspace_id and m.user_id = (select auth.uid())));
