-- Undoes what `rowcast setup` made, and nothing else. Everything that it makes says so in its
-- comment, and what it has changed of others' (replica identities) is noted in one.
--
-- This file changes nothing by itself. Its query writes the statements, each with its reason, and
-- `\gexec` has psql run them. `rowcast setup --remove --print` prints the same.
--
--   psql -c "set rowcast.role = 'rowcast'" -f sql/remove.sql
--
--   rowcast.role          the relay's login                                 rowcast
--   rowcast.publication   the publication                                   rowcast
--   rowcast.lookup_publication   that of the lookup tables                  rowcast_lookups
--   rowcast.slot          the relay's replication slot; its event trigger   rowcast
--   rowcast.parts         what to undo                                      auth, role, publication, identity, ddl
--   rowcast.example       agent_tasks: the example's tables and their rows as well
--
-- What is still used is kept: PostgreSQL refuses to drop a role that owns or may do something, or a
-- function that a policy calls, and names what that is.
with settings as (
  select coalesce(nullif(current_setting('rowcast.role', true), ''), 'rowcast') as login,
         coalesce(nullif(current_setting('rowcast.publication', true), ''), 'rowcast') as publication,
         coalesce(nullif(current_setting('rowcast.lookup_publication', true), ''), 'rowcast_lookups') as lookup_publication,
         coalesce(nullif(current_setting('rowcast.slot', true), ''), 'rowcast') as slot,
         coalesce(nullif(current_setting('rowcast.parts', true), ''), 'auth, role, publication, identity, ddl') as parts,
         coalesce(current_setting('rowcast.example', true), '') = 'agent_tasks' as example,
         (select rolsuper or rolreplication from pg_roles where rolname = current_user) as replicates
),
publication as (
  select p.oid, p.pubname, obj_description(p.oid, 'pg_publication') as comment,
         pg_has_role(current_user, p.pubowner, 'usage') as owned
  from settings s join pg_publication p on p.pubname = s.publication
),
relay as (
  select r.oid, r.rolname from settings s join pg_roles r on r.rolname = s.login
  where shobj_description(r.oid, 'pg_authid') like 'Made by rowcast setup%'
),
clients as (
  select r.oid, r.rolname from pg_roles r
  where r.rolname in ('anon', 'authenticated', 'service_role')
    and shobj_description(r.oid, 'pg_authid') like 'Made by rowcast setup%'
),
-- Tables whose identity setup has set to FULL, and is FULL still.
full_identities as (
  select n.nspname, c.relname, e.value as before, pg_has_role(current_user, c.relowner, 'usage') as owned,
         (select quote_ident(x.relname) from pg_index i join pg_class x on x.oid = i.indexrelid
          where i.indrelid = c.oid and e.value = 'index ' || quote_ident(x.relname)) as index
  from publication p,
       jsonb_each_text(coalesce(substring(p.comment from 'identities before: (\{.*\})$')::jsonb, '{}')) as e
  join pg_namespace n on n.nspname = (parse_ident(e.key))[1]
  join pg_class c on c.relnamespace = n.oid and c.relname = (parse_ident(e.key))[2] and c.relreplident = 'f'
  where p.comment like 'Made by rowcast setup%' or p.comment like 'Not made by rowcast setup, which notes here%'
),
indexes as (
  select n.nspname, c.relname, x.relname as index_name, i.indisreplident and c.relreplident = 'i' as identity,
         substring(obj_description(x.oid, 'pg_class') from 'before: (.*)$') as before,
         pg_has_role(current_user, c.relowner, 'usage') as owned,
         (select quote_ident(o.relname) from pg_index j join pg_class o on o.oid = j.indexrelid
          where j.indrelid = c.oid
            and substring(obj_description(x.oid, 'pg_class') from 'before: (.*)$') = 'index ' || quote_ident(o.relname)) as index
  from pg_index i
  join pg_class x on x.oid = i.indexrelid
  join pg_class c on c.oid = i.indrelid
  join pg_namespace n on n.oid = c.relnamespace
  where obj_description(x.oid, 'pg_class') like 'Made by rowcast setup. Replica identity before: %'
),
example as (
  select c.oid, format('public.%I', c.relname) as name
  from pg_class c
  where c.relnamespace = to_regnamespace('public') and c.relkind = 'r'
    and obj_description(c.oid, 'pg_class') like 'Made by rowcast setup: example agent_tasks%'
),
functions as (
  select f.oid::regprocedure as name, f.pronamespace from pg_proc f
  where f.pronamespace in (to_regnamespace('auth'), to_regnamespace('public'))
    and obj_description(f.oid, 'pg_proc') like 'Made by rowcast setup%'
),
-- Each relay has one of its own.
ddl as (
  select t.evtname as name, to_regprocedure(format('rowcast.%I()', t.evtname)) as function,
         (select r.rolsuper from pg_roles r where r.rolname = current_user) or pg_has_role(current_user, t.evtowner, 'usage') as owned
  from settings s join pg_event_trigger t on t.evtname
    = case when octet_length(s.slot) <= 51 then 'rowcast_ddl_' || s.slot else 'rowcast_ddl_' || md5(s.slot) end
  where obj_description(t.oid, 'pg_event_trigger') like 'Made by rowcast setup%'
),
statements(place, detail, statement) as (
  select 0, '', format('-- refused: a relay reads replication slot %s: stop it first.', x.slot_name)
  from settings s join pg_replication_slots x on x.slot_name = s.slot and x.database = current_database()
  where s.parts ~ 'publication' and x.active
  union all
  select 1, '', case when s.replicates then '' else E'-- administrator: only a superuser or a role with REPLICATION may drop it; until then it keeps the log.\n' end
    || format(E'-- The relay''s slot: without a reader it would keep the log from being recycled.\nselect pg_drop_replication_slot(%L);', x.slot_name)
  from settings s join pg_replication_slots x on x.slot_name = s.slot and x.database = current_database()
  where s.parts ~ 'publication' and not x.active and x.plugin = 'pgoutput'
  union all
  select 2, f.nspname || '.' || f.relname, format(
    E'%s-- As it was before setup.\nalter table %I.%I replica identity %s;',
    case when f.owned then '' else E'-- administrator: only the table''s owner may do this; until then its whole old rows go into the log.\n' end,
    f.nspname, f.relname, case when f.index is not null then 'using index ' || f.index when f.before = 'nothing' then f.before else 'default' end)
  from full_identities f, settings s where s.parts ~ 'identity'
  union all
  select 2, i.nspname || '.' || i.relname, format(
    E'%s-- As it was before setup.\nalter table %I.%I replica identity %s;',
    case when i.owned then '' else E'-- administrator: only the table''s owner may do this.\n' end,
    i.nspname, i.relname, case when i.index is not null then 'using index ' || i.index when i.before = 'nothing' then i.before else 'default' end)
  from indexes i, settings s where s.parts ~ 'identity' and i.identity
  union all
  select 3, i.nspname || '.' || i.index_name, format(
    E'%s-- Was there only to be a replica identity.\ndrop index %I.%I;',
    case when i.owned then '' else E'-- administrator: only the table''s owner may do this.\n' end,
    i.nspname, i.index_name)
  from indexes i, settings s where s.parts ~ 'identity'
  union all
  select 4, p.pubname, format(E'%s-- Ends what can be subscribed to.\ndrop publication %I;',
    case when p.owned then '' else E'-- administrator: only its owner may drop it.\n' end, p.pubname)
  from publication p, settings s
  where s.parts ~ 'publication' and p.comment like 'Made by rowcast setup%'
    -- It holds the note of what the identities were.
    and (s.parts ~ 'identity' or not exists (select from full_identities))
  union all
  select 4, p.pubname, format(E'-- It was there before setup; the note in its comment is used up.\ncomment on publication %I is null;', p.pubname)
  from publication p, settings s
  where s.parts ~ 'identity' and p.comment like 'Not made by rowcast setup, which notes here%'
  union all
  -- The relay's own as well, where it could make it.
  select 4, p.pubname, format(E'%s-- Brought the relay what policies read.\ndrop publication %I;',
    case when pg_has_role(current_user, p.pubowner, 'usage') then '' else E'-- administrator: only its owner may drop it.\n' end, p.pubname)
  from settings s join pg_publication p on p.pubname = s.lookup_publication
  where s.parts ~ 'role' and obj_description(p.oid, 'pg_publication') like 'Made by rowcast%'
  union all
  select 5, n.nspname || '.' || c.relname, format(E'-- Let the relay''s login read a lookup table.\ndrop policy %I on %I.%I;', l.polname, n.nspname, c.relname)
  from settings s cross join pg_policy l
  join pg_class c on c.oid = l.polrelid join pg_namespace n on n.oid = c.relnamespace
  where s.parts ~ 'role' and obj_description(l.oid, 'pg_policy') = 'Made by rowcast setup.'
  union all
  -- What the relay's login was granted in this database, so that it can be dropped.
  select 6, 'table ' || n.nspname || '.' || c.relname, format(E'-- Goes with the login.\nrevoke all on table %I.%I from %I;', n.nspname, c.relname, r.rolname)
  from settings s cross join relay r
  join pg_class c on exists (select from aclexplode(c.relacl) a where a.grantee = r.oid)
  join pg_namespace n on n.oid = c.relnamespace where s.parts ~ 'role'
  union all
  select 6, 'schema ' || n.nspname, format(E'-- Goes with the login.\nrevoke all on schema %I from %I;', n.nspname, r.rolname)
  from settings s cross join relay r
  join pg_namespace n on exists (select from aclexplode(n.nspacl) a where a.grantee = r.oid) where s.parts ~ 'role'
  union all
  select 6, 'database', format(E'-- Goes with the login.\nrevoke all on database %I from %I;', d.datname, r.rolname)
  from settings s cross join relay r
  join pg_database d on d.datname = current_database() and exists (select from aclexplode(d.datacl) a where a.grantee = r.oid)
  where s.parts ~ 'role'
  union all
  select 7, 'ddl', case when d.owned then '' else E'-- administrator: only its owner may drop it; until then the log says what nobody reads.\n' end
    || format(E'-- The log need not say any more where rules change.\ndrop event trigger %I;\ndrop function %s;', d.name, d.function)
    || case when obj_description(to_regnamespace('rowcast'), 'pg_namespace') like 'Made by rowcast setup%'
              and not exists (select from pg_proc p where p.pronamespace = to_regnamespace('rowcast') and p.oid <> d.function)
              and not exists (select from pg_class c where c.relnamespace = to_regnamespace('rowcast'))
       then E'\ndrop schema rowcast;' else '' end
  from ddl d, settings s where s.parts ~ 'ddl' and d.function is not null
  union all
  select 7, '', format(E'-- The example''s tables, with their rows.\ndrop table %s;', string_agg(e.name, ', ' order by e.name))
  from example e, settings s where s.example having count(*) > 0
  union all
  select 7, '', format('-- note: the example''s tables stay, since there are rows in them: %s. With --example agent_tasks they go as well.', string_agg(e.name, ', ' order by e.name))
  from example e, settings s where not s.example having count(*) > 0
  union all
  select 8, f.name::text, format(E'-- Made for policies; kept where one still calls it.\ndrop function %s;', f.name)
  from functions f, settings s
  where case when f.pronamespace = to_regnamespace('public') then s.example else s.parts ~ 'auth' end
  union all
  select 9, '', E'-- Kept where anything else is in it.\ndrop schema auth;'
  from settings s
  where s.parts ~ 'auth' and obj_description(to_regnamespace('auth'), 'pg_namespace') like 'Made by rowcast setup%'
  union all
  select 9, c.rolname, format(E'-- The schema was there before; what the role was granted there goes with the role.\nrevoke usage on schema auth from %I;', c.rolname)
  from clients c, settings s
  where s.parts ~ 'auth'
    and coalesce(obj_description(to_regnamespace('auth'), 'pg_namespace'), '') not like 'Made by rowcast setup%'
    and exists (select from pg_namespace n, aclexplode(n.nspacl) a where n.nspname = 'auth' and a.grantee = c.oid)
  union all
  select 10, '', format(E'-- The relay''s login. Kept where it owns or may do something, also in another database.\ndrop role %I;', r.rolname)
  from relay r, settings s where s.parts ~ 'role'
  union all
  -- Under another name since, or another database's.
  select 10, r.rolname, regexp_replace(format('-- note: setup made login %1$I as well; where no relay uses it, --remove --role %1$I drops it.', r.rolname),
    '[[:cntrl:]]', '?', 'g')
  from settings s cross join pg_roles r
  where s.parts ~ 'role' and r.rolname <> s.login
    and shobj_description(r.oid, 'pg_authid') = 'Made by rowcast setup: the relay''s login.'
  union all
  select 11, c.rolname, format(E'-- Kept where it may do something, also in another database: grants and policies name it.\ndrop role %I;', c.rolname)
  from clients c, settings s where s.parts ~ 'auth'
)
-- While a relay reads the slot, only that is said.
select statement from statements
where place = 0 or not exists (select from statements where place = 0)
order by place, detail
\gexec
