-- The publication has the lookup without the column that a policy needs, and a row filter.
-- shapes: exists, sql-definer
-- traps: 5
-- watch: public.shared_files
-- expect: native A public.shared_files own
-- expect: native D public.shared_files shared
create table shares (id int primary key, file_id int, user_id uuid, revoked boolean not null default false);
create table shared_files (id int primary key, owner uuid, name text);
create publication others for table shares;
alter table shared_files enable row level security;
create function shared_with_me(f int) returns boolean language sql stable security definer set search_path = '' as $$
  select exists (select 1 from public.shares s where s.file_id = f and s.user_id = auth.uid() and not s.revoked)
$$;
create policy own on shared_files for select using (owner = auth.uid());
create policy shared on shared_files for select to authenticated using (shared_with_me(id));
