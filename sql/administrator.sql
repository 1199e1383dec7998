-- What only the server's administrator can do, once, and what is lost without it. `rowcast setup`
-- never does any of it: it prints what this query returns, apart from the rest.
--
-- Nothing here needs an extension, and the relay itself never needs a superuser. Only an event trigger
-- does (ddl.sql), and everything works without that.
with settings as (
  select coalesce(nullif(current_setting('rowcast.role', true), ''), 'rowcast') as login,
         coalesce(nullif(current_setting('rowcast.parts', true), ''), 'auth, role, publication, identity, ddl') as parts
),
server as (
  select (select setting from pg_settings where name = 'wal_level') as wal_level,
         (select setting from pg_settings where name = 'max_slot_wal_keep_size') as keep,
         (select setting::int from pg_settings where name = 'max_replication_slots') as slots,
         (select setting::int from pg_settings where name = 'max_wal_senders') as senders,
         (select count(*) from pg_replication_slots) as slots_taken,
         exists (select from pg_settings where name = 'rds.logical_replication') as rds,
         exists (select from pg_settings where name = 'cloudsql.logical_decoding') as cloud_sql,
         exists (select from pg_roles where rolname = 'azure_pg_admin') as azure
),
me as (
  select r.rolsuper, r.rolcreaterole, r.rolbypassrls,
         current_setting('server_version_num')::int >= 160000 as since_16
  from pg_roles r where r.rolname = current_user
),
statements(place, detail, statement) as (
  select 1, '', E'-- administrator: without it there is no stream of changes at all. Needs a restart of the server.\n'
    || case when rds then '-- On Amazon RDS: rds.logical_replication = 1 in the parameter group, then a reboot.'
            when cloud_sql then '-- On Cloud SQL: the flag cloudsql.logical_decoding = on, then a restart.'
            when azure then '-- On Azure: the server parameter wal_level = logical, then a restart.'
            else 'alter system set wal_level = logical;' end
  from server where wal_level <> 'logical'
  union all
  select 2, '', E'-- advice: a slot keeps the log for as long as its reader is away; without a limit a relay that is down\n'
    || E'-- fills the disk. Past the limit the slot is lost, the relay says so and clients read their tables again.\n'
    || 'alter system set max_slot_wal_keep_size = ''10GB'';' || E'\nselect pg_reload_conf();'
  from server where keep = '-1'
  union all
  select 3, '', format(E'-- administrator: all %s replication slots are taken; without a free one the relay cannot start. Needs a restart.\nalter system set max_replication_slots = %s;', slots, slots + 10)
  from server where slots_taken >= slots
  union all
  select 4, '', E'-- administrator: without it nothing can be replicated. Needs a restart.\nalter system set max_wal_senders = 10;'
  from server where senders = 0
  union all
  select 5, wanted.name, format(E'-- administrator: %s.\ncreate role %I %s;\ncomment on role %2$I is ''Made by rowcast setup.'';', wanted.lost, wanted.name, wanted.attributes)
  from me, settings s, (values
    ('anon', 'nologin noinherit', 'only a role with CREATEROLE may make it; without it there is nobody for tokens to be before a login'),
    ('authenticated', 'nologin noinherit', 'only a role with CREATEROLE may make it; without it there is nobody for users'' tokens to be')) as wanted(name, attributes, lost)
  where s.parts ~ 'auth' and to_regrole(wanted.name) is null and not me.rolsuper and not me.rolcreaterole
  union all
  select 6, '', E'-- advice: only a role with BYPASSRLS may make it; without it tokens with the role service_role are refused.\ncreate role service_role nologin noinherit bypassrls;\ncomment on role service_role is ''Made by rowcast setup.'';'
  from me, settings s
  where s.parts ~ 'auth' and to_regrole('service_role') is null
    and not me.rolsuper and not (me.since_16 and me.rolcreaterole and me.rolbypassrls)
  union all
  select 7, '', format(E'-- administrator: without it neither the schema auth nor a publication can be made.\ngrant create on database %I to %I;', current_database(), current_user)
  from settings s
  where not has_database_privilege(current_database(), 'create')
    and (s.parts ~ 'auth' and to_regnamespace('auth') is null)
  union all
  select 8, '', format(E'-- administrator: only %1$I, its owner, may grant it; without it setup cannot make there what is missing: %2$s.\ngrant usage, create on schema auth to %3$I;',
    regexp_replace(pg_get_userbyid(n.nspowner), '[[:cntrl:]]', '?', 'g'), string_agg(format('auth.%s()', f.name), ', ' order by f.name), current_user)
  from settings s cross join pg_namespace n cross join (values ('uid'), ('role'), ('jwt')) as f(name)
  where s.parts ~ 'auth' and n.nspname = 'auth'
    and not (has_schema_privilege(n.oid, 'usage') and has_schema_privilege(n.oid, 'create'))
    and not exists (select from pg_proc p where p.pronamespace = n.oid and p.proname = f.name and p.pronargs = p.pronargdefaults)
  group by n.nspowner
  union all
  select 9, '', format(E'-- advice: only %1$I, its owner, may grant it; queries of these roles that name what is in it fail without.\ngrant usage on schema auth to %2$s;',
    regexp_replace(pg_get_userbyid(n.nspowner), '[[:cntrl:]]', '?', 'g'), string_agg(r.rolname, ', ' order by r.rolname))
  from settings s cross join pg_namespace n cross join pg_roles r
  where s.parts ~ 'auth' and n.nspname = 'auth' and not pg_has_role(current_user, n.nspowner, 'usage')
    and r.rolname in ('anon', 'authenticated', 'service_role') and not has_schema_privilege(r.oid, n.oid, 'usage')
  group by n.nspowner
)
select statement from statements order by place, detail;
