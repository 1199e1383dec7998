-- The relay's own login: exactly the rights it needs, and none on the rows of any table.
--
-- This file changes nothing by itself. Its query writes the statements that are missing in this
-- database, each with its reason, and `\gexec` has psql run them (`psql -e` shows them). To only
-- read them, put a semicolon where \gexec stands; `rowcast setup --print --only role` prints the same.
--
--   psql -c "set rowcast.role = 'rowcast'" -f sql/role.sql
--
--   rowcast.role           the login                                     rowcast
--   rowcast.client_roles   the roles that tokens name, as SQL names      anon, authenticated
--   rowcast.publication    whose policies are looked at                  rowcast
--   rowcast.tables         and of these tables, as SQL names
--   rowcast.lookups        on: let lookup tables be kept in memory       off
--   rowcast.lookup_publication   the publication of those tables         rowcast_lookups
--
-- A line "-- administrator:" before a statement says that the login that runs this may not, or
-- should not, and what is lost without it.
with settings as (
  select coalesce(nullif(current_setting('rowcast.role', true), ''), 'rowcast') as login,
         coalesce(nullif(current_setting('rowcast.client_roles', true), ''), 'anon, authenticated') as clients,
         coalesce(nullif(current_setting('rowcast.publication', true), ''), 'rowcast') as publication,
         coalesce(current_setting('rowcast.tables', true), '') as tables,
         coalesce(current_setting('rowcast.lookups', true), '') = 'on' as lookups,
         coalesce(nullif(current_setting('rowcast.lookup_publication', true), ''), 'rowcast_lookups') as lookup_publication,
         current_setting('server_version_num')::int >= 160000 as since_16
),
-- What whoever runs this may do. Before PostgreSQL 16 only a superuser hands out REPLICATION, since
-- then whoever creates roles and has it. Cloud SQL's and Azure's administrators may as well.
me as (
  select r.rolsuper or r.rolcreaterole as creates_roles,
         r.rolsuper
           or (r.rolcreaterole and r.rolreplication and s.since_16)
           or exists (select from pg_roles provider
                      where provider.rolname in ('cloudsqlsuperuser', 'azure_pg_admin')
                        and pg_has_role(current_user, provider.oid, 'member')) as gives_replication,
         r.rolsuper, r.rolcreaterole
  from pg_roles r, settings s where r.rolname = current_user
),
relay as (
  select s.login, r.oid, r.rolname is not null as exists,
         -- Why nothing is granted to it by whoever runs this.
         case when r.oid is null and not m.creates_roles then 'the login has to be made first'
              when shobj_description(r.oid, 'pg_authid') like 'Made by rowcast setup%' or r.oid is null then null
              else 'the login was there before setup, which does not change it' end as hold,
         coalesce(r.rolsuper, false) as super,
         coalesce(r.rolreplication, false) or coalesce(r.rolsuper, false) as replicates
  from settings s cross join me m left join pg_roles r on r.rolname = s.login
),
clients as (
  select n.name, r.oid,
         m.rolsuper
           or (m.rolcreaterole and (not s.since_16 or r.oid is null))
           or coalesce(pg_has_role(current_user, r.oid, 'member with admin option'), false) as grantable
  from settings s, me m,
       regexp_matches(s.clients, '((?:"(?:[^"]|"")*"|[^",])+)', 'g') as given(part),
       lateral (select (parse_ident(btrim(given.part[1])))[1] as name) n
       left join pg_roles r on r.rolname = n.name
),
-- The tables that are or will be published, and those whose partitions they are.
published(oid) as (
  select c.oid
  from settings s
  join pg_publication_tables p on p.pubname = s.publication
  join pg_namespace n on n.nspname = p.schemaname
  join pg_class c on c.relnamespace = n.oid and c.relname = p.tablename
  union
  select c.oid
  from settings s,
       regexp_matches(s.tables, '((?:"(?:[^"]|"")*"|[^",])+)', 'g') as given(part),
       lateral (select parse_ident(btrim(given.part[1])) as part) name
  join pg_namespace n on n.nspname = name.part[1]
  join pg_class c on c.relnamespace = n.oid and c.relname = name.part[2]
),
policies as (
  select p.oid, p.polrelid
  from pg_policy p
  where p.polcmd in ('r', '*')
    and (p.polrelid in (select oid from published)
         or p.polrelid in (select a.relid from published t, pg_partition_ancestors(t.oid) as a(relid)))
),
-- What the policies name outside their own table.
named as (
  select distinct d.refclassid, d.refobjid, coalesce(c.relnamespace, f.pronamespace) as namespace
  from policies p
  join pg_depend d on d.classid = 'pg_policy'::regclass and d.objid = p.oid
  left join pg_class c on d.refclassid = 'pg_class'::regclass and c.oid = d.refobjid
  left join pg_proc f on d.refclassid = 'pg_proc'::regclass and f.oid = d.refobjid
  where coalesce(c.oid, f.oid) is not null and d.refobjid <> p.polrelid
),
lookups as (
  select c.oid, n.nspname, c.relname, c.relrowsecurity, pg_has_role(current_user, c.relowner, 'usage') as owned,
         exists (select from pg_policy r where r.polrelid = c.oid and not r.polpermissive
                   and r.polcmd in ('r', '*') and 0 = any (r.polroles)) as restricted
  from named
  join pg_class c on c.oid = named.refobjid and named.refclassid = 'pg_class'::regclass
  join pg_namespace n on n.oid = c.relnamespace
  where c.relkind in ('r', 'p')
),
-- Those whose changes do not come with what is published anyway. A table without a replica identity
-- must not be published: it could not be written any more.
mirrored as (
  select l.*, c.relreplident = 'f' or exists (
      select from pg_index i
      where i.indrelid = c.oid and i.indisvalid and i.indimmediate
        and case c.relreplident when 'd' then i.indisprimary when 'i' then i.indisreplident end) as identified
  from lookups l join pg_class c on c.oid = l.oid
  where c.relpersistence = 'p' and not c.relispartition
    and c.oid not in (select oid from published)
    and not exists (select from pg_partition_tree(c.oid) t where t.relid in (select oid from published))
),
lookup_publication as (
  select s.lookup_publication as name, p.oid,
         case when p.oid is null then has_database_privilege(current_database(), 'create')
              else pg_has_role(current_user, p.pubowner, 'usage') end as owned
  from settings s left join pg_publication p on p.pubname = s.lookup_publication
),
statements(place, detail, statement) as (
  -- LOGIN, and INHERIT, the default: the schemas that policies name are found with the rights that
  -- it inherits from the clients' roles.
  select 1, '', format(
    E'%1$s-- The login under which the relay reads the log and asks what policies say. INHERIT: the schemas\n'
    '-- that policies name are found with the rights of the clients'' roles. It owns nothing.\n'
    'create role %2$I login inherit%3$s;\ncomment on role %2$I is %4$L;',
    case when not m.creates_roles then E'-- administrator: only a role with CREATEROLE may make it; without it there is no relay.\n' else '' end,
    r.login,
    case when not exists (select from pg_roles where rolname = 'rds_replication')
           and (m.gives_replication or not m.creates_roles) then ' replication' else '' end,
    'Made by rowcast setup: the relay''s login.')
  from relay r, me m where not r.exists
  union all
  select 2, '', format(
    E'%s-- To read the replication slot.\n%s;',
    case
      when r.hold is not null then format(E'-- administrator: %s; without this it cannot read the log.\n', r.hold)
      when rds.oid is not null and not (m.rolsuper or coalesce(pg_has_role(current_user, rds.oid, 'member with admin option'), false))
        then E'-- administrator: only rds_superuser may grant it; without it the relay cannot read the log.\n'
      when rds.oid is null and not m.gives_replication
        then E'-- administrator: only a superuser (since PostgreSQL 16 also a role with CREATEROLE and REPLICATION) may give it; without it the relay cannot read the log.\n'
      else '' end,
    case when rds.oid is not null then format('grant rds_replication to %I', r.login)
         else format('alter role %I replication', r.login) end)
  from relay r cross join me m left join pg_roles rds on rds.rolname = 'rds_replication'
  where not r.replicates
    and not coalesce(pg_has_role(r.oid, rds.oid, 'member'), false)
    -- Else it is made with it above.
    and (r.exists or rds.oid is not null or (m.creates_roles and not m.gives_replication))
  union all
  select 3, c.name, case
    when c.oid is null and c.name not in ('anon', 'authenticated', 'service_role') then
      format('-- refused: there is no role %I for the relay to act as.', c.name)
    else format(
      E'%1$s-- To ask PostgreSQL, as %2$I, what a policy says that is not compiled.\ngrant %2$I to %3$I%4$s;',
      case
        when r.hold is not null then format(E'-- administrator: %s; without this, subscriptions under the role to tables whose policies are asked are refused.\n', r.hold)
        when not c.grantable then E'-- administrator: only who administers the role may grant it; without it, subscriptions under the role to tables whose policies are asked are refused.\n'
        else '' end,
      c.name, r.login,
      -- Since 16 a grant says by itself whether the role may be acted as.
      case when s.since_16 then ' with inherit true, set true' else '' end) end
  from clients c, relay r, settings s
  where not r.super
    and not exists (
      select from pg_auth_members a
      where a.roleid = c.oid and a.member = r.oid and coalesce((to_jsonb(a) ->> 'set_option')::boolean, true))
  union all
  select 4, needed.privilege, format(
    E'%s-- %s\ngrant %s on database %I to %I;',
    case when r.hold is not null or not pg_has_role(current_user, d.datdba, 'usage')
         then format(E'-- administrator: %s; without it %s.\n',
           coalesce(r.hold, 'only the database''s owner may grant it'), needed.lost)
         else '' end,
    needed.reason, needed.privilege, d.datname, r.login)
  from relay r cross join me m
  join pg_database d on d.datname = current_database()
  cross join (values
    ('connect', 'Everybody has this unless it was revoked, as it was here.', 'the relay cannot connect'),
    ('temporary', 'For the resolved bodies of SQL functions that policies call, in transactions that are rolled back.',
     'policies with such functions are asked instead of compiled, and some rows are hidden')) as needed(privilege, reason, lost)
  where case when r.exists then not has_database_privilege(r.oid, d.oid, needed.privilege)
             else not has_database_privilege('public', d.oid, needed.privilege) end
  union all
  select 5, n.nspname, format(
    E'%s-- Policies name what is in this schema, and no client''s role can use it.\ngrant usage on schema %I to %I;',
    case when r.hold is not null or not pg_has_role(current_user, n.nspowner, 'usage')
         then format(E'-- administrator: %s; without it those policies cannot be asked and their rows are hidden.\n',
           coalesce(r.hold, 'only the schema''s owner may grant it'))
         else '' end,
    n.nspname, r.login)
  from relay r
  join pg_namespace n on n.oid in (select namespace from named)
  where not coalesce(has_schema_privilege(r.oid, n.oid, 'usage'), has_schema_privilege('public', n.oid, 'usage'))
    and not exists (select from clients c where has_schema_privilege(c.oid, n.oid, 'usage'))
  union all
  -- Lookup tables. The relay reads those tables itself and keeps them in memory; what it may not
  -- read is asked under the client's role. A policy of its own lets the login past row-level
  -- security on these tables and no other; BYPASSRLS would do so on all that the clients' roles may
  -- read.
  select 6, l.nspname || '.' || l.relname, format(
    E'%s-- Policies of published tables read this one; the relay keeps it in memory.\ngrant select on table %I.%I to %I;',
    case when r.hold is not null or not l.owned
         then format(E'-- administrator: %s; without it policies that read the table are asked of PostgreSQL, row by row.\n',
           coalesce(r.hold, 'only the table''s owner may grant it'))
         else '' end,
    l.nspname, l.relname, r.login)
  from lookups l, relay r, settings s
  where s.lookups and not coalesce(has_table_privilege(r.oid, l.oid, 'select'), false)
  union all
  select 7, l.nspname || '.' || l.relname, format(
    E'%1$s-- … and all of its rows: the relay decides with them who sees what, as PostgreSQL does.\n'
    'create policy %2$I on %3$I.%4$I for select to %5$I using (true);\ncomment on policy %2$I on %3$I.%4$I is %6$L;',
    case when r.hold is not null or not l.owned
         then format(E'-- administrator: %s; without it policies that read the table are asked of PostgreSQL, row by row.\n',
           coalesce(r.hold, 'only the table''s owner may make it'))
         else '' end,
    'rowcast reads lookups', l.nspname, l.relname, r.login, 'Made by rowcast setup.')
  from lookups l, relay r, settings s
  where s.lookups and l.relrowsecurity
    and not exists (select from pg_policy p where p.polrelid = l.oid and p.polname = 'rowcast reads lookups')
  union all
  select 8, l.nspname || '.' || l.relname, regexp_replace(format(
    '-- note: a restrictive policy for everybody narrows what %1$I reads of %2$I.%3$I; only BYPASSRLS ("alter role %1$I bypassrls", by a superuser) reads past it, on every table that the clients'' roles may read.',
    r.login, l.nspname, l.relname), '[[:cntrl:]]', '?', 'g')
  from lookups l, relay r, settings s
  where s.lookups and l.restricted
  union all
  select 9, '', format(
    E'%1$s-- What happens to the tables that policies read, for the relay; nobody can subscribe to it.\n'
    'create publication %2$I with (publish_via_partition_root = true);\ncomment on publication %2$I is %3$L;',
    case when p.owned then '' else E'-- administrator: only who may create in the database may make it; without it policies that read other tables are asked of PostgreSQL, row by row.\n' end,
    p.name, 'Made by rowcast setup: the tables that policies look into.')
  from lookup_publication p, settings s
  where s.lookups and p.oid is null and exists (select from mirrored where identified)
  union all
  select 10, l.nspname || '.' || l.relname, format(
    E'%s-- … so that its changes reach the relay.\nalter publication %I add table %I.%I;',
    case when p.owned and l.owned then '' else E'-- administrator: only who owns both the table and the publication may add it; without it policies that read the table are asked of PostgreSQL, row by row.\n' end,
    p.name, l.nspname, l.relname)
  from mirrored l, lookup_publication p, settings s
  where s.lookups and l.identified
    and not exists (select from pg_publication_rel r where r.prpubid = p.oid and r.prrelid = l.oid)
    and not exists (select from pg_publication_tables t where t.pubname = p.name and t.schemaname = l.nspname and t.tablename = l.relname)
  union all
  select 11, l.nspname || '.' || l.relname, regexp_replace(format(
    '-- note: policies read %1$I.%2$I, which has no replica identity and so is not kept in memory: add a primary key, or run "alter table %1$I.%2$I replica identity full".',
    l.nspname, l.relname), '[[:cntrl:]]', '?', 'g')
  from mirrored l, settings s
  where s.lookups and not l.identified
)
select statement from statements order by place, detail
\gexec
