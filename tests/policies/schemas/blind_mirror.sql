-- The lookup is published a second time without the column that a policy needs, or with a row filter, and taken out of the relay's own.
-- shapes: exists, sql-definer
-- traps: 5
-- alter: do $$ begin if current_setting('server_version_num')::int >= 150000 then alter publication rowcast add table shares (id, file_id); end if; end $$
-- alter: alter publication rowcast set table fence, shared_files
-- alter: do $$ begin if current_setting('server_version_num')::int >= 150000 then alter publication rowcast add table shares where (id < 4); end if; end $$
-- alter: alter publication rowcast set table fence, shared_files
-- alter: do $$ declare p name; begin select pubname into p from pg_publication where pubname like '%\_lookups'; if current_setting('server_version_num')::int >= 150000 then execute format('alter publication %I set table shares where (id < 4)', p); else execute format('alter publication %I drop table shares', p); end if; end $$
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
