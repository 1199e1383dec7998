-- Has the log say in which transactions something changes that decides who sees what: then a changed
-- policy holds from its own place in the stream on, and nothing around it has to be hidden. Without it
-- the relay works as well: it notices changes in its stream and by looking once a second, and hides
-- rows of which it cannot tell on which side of a change they lie.
--
-- An event trigger; making one takes a superuser, or what a managed host lets its owners do. It never
-- fails what somebody does: what goes wrong in it is passed over, and then noticed as without it.
--
-- This file changes nothing by itself. Its query writes the statements that are missing in this
-- database, each with its reason, and `\gexec` has psql run them. `rowcast setup --print --only ddl`
-- prints the same.
--
--   rowcast.slot   the relay's replication slot: each relay has a trigger of its own   rowcast
with settings as (
  select coalesce(nullif(current_setting('rowcast.slot', true), ''), 'rowcast') as slot
),
names as (
  select s.slot,
         case when octet_length(s.slot) <= 51 then 'rowcast_ddl_' || s.slot else 'rowcast_ddl_' || md5(s.slot) end as name,
         to_regnamespace('rowcast') as schema
  from settings s
),
me as (
  select r.rolsuper
           -- Where the owner of a managed database is no superuser, and may all the same.
           or exists (select from pg_roles o where o.rolname = 'rds_superuser' and pg_has_role(current_user, o.oid, 'member')) as may
  from pg_roles r where r.rolname = current_user
),
trigger as (
  select t.oid, t.evtenabled, coalesce(obj_description(t.oid, 'pg_event_trigger') like 'Made by rowcast setup%', false) as made,
         -- One of an earlier build is told of less.
         t.evttags is not null and not t.evttags @> '{CREATE VIEW,CREATE RULE,CREATE MATERIALIZED VIEW}' as narrow
  from names n join pg_event_trigger t on t.evtname = n.name
),
word as (
  select case when may then '' else E'-- advice: only a superuser may make an event trigger; without it rows that commit within a second of a changed policy may be hidden, and their clients told to read again.\n' end as may
  from me
),
statements(place, statement) as (
  select 0, w.may || format(E'-- One of an earlier build, which is not told of all that changes rules.\ndrop event trigger %I;', n.name)
  from names n cross join word w
  where exists (select from trigger t where t.narrow and t.made)
  union all
  select 1, w.may || format(
    E'-- Has the log say in which transactions rules change.\n'
    '%1$screate or replace function rowcast.%2$I() returns event_trigger language plpgsql security definer\n'
    'set search_path = pg_catalog, pg_temp as $ddl$\n'
    'begin\n'
    '  -- Nobody reads a temporary table''s changes.\n'
    '  if tg_tag not in (''CREATE TABLE'', ''CREATE TABLE AS'', ''SELECT INTO'', ''ALTER TABLE'', ''CREATE FUNCTION'',\n'
    '     ''CREATE SEQUENCE'', ''CREATE INDEX'')\n'
    '     or not exists (select from pg_event_trigger_ddl_commands())\n'
    '     or exists (select from pg_event_trigger_ddl_commands() c where c.schema_name is distinct from ''pg_temp'') then\n'
    '    perform pg_logical_emit_message(true, ''rowcast.ddl'', %3$L);\n'
    '  end if;\n'
    'exception when others then\n'
    '  -- The relay notices the change later.\n'
    'end $ddl$;\n'
    'comment on function rowcast.%2$I() is ''Made by rowcast setup.'';\n'
    'revoke all on function rowcast.%2$I() from public;\n'
    'create event trigger %2$I on ddl_command_end when tag in (%4$s)\n'
    '  execute function rowcast.%2$I();\n'
    'alter event trigger %2$I enable always;\n'
    'comment on event trigger %2$I is ''Made by rowcast setup.'';',
    case when n.schema is null
         then E'create schema rowcast;\ncomment on schema rowcast is ''Made by rowcast setup.'';\n' else '' end,
    n.name, n.slot,
    (select string_agg(quote_literal(tag), ', ')
     from unnest(array['CREATE POLICY', 'ALTER POLICY', 'DROP POLICY', 'GRANT', 'REVOKE', 'CREATE TABLE', 'CREATE TABLE AS', 'CREATE VIEW', 'ALTER VIEW', 'DROP VIEW',
       'SELECT INTO', 'ALTER TABLE', 'DROP TABLE', 'CREATE FUNCTION', 'ALTER FUNCTION', 'DROP FUNCTION', 'CREATE PROCEDURE',
       'ALTER PROCEDURE', 'DROP PROCEDURE', 'ALTER ROUTINE', 'DROP ROUTINE', 'CREATE AGGREGATE', 'ALTER AGGREGATE',
       'DROP AGGREGATE', 'CREATE PUBLICATION', 'ALTER PUBLICATION', 'DROP PUBLICATION', 'ALTER SCHEMA', 'DROP SCHEMA',
       'CREATE TYPE', 'ALTER TYPE', 'DROP TYPE', 'CREATE DOMAIN', 'ALTER DOMAIN', 'DROP DOMAIN', 'CREATE CAST', 'DROP CAST',
       'CREATE OPERATOR', 'ALTER OPERATOR', 'DROP OPERATOR', 'CREATE COLLATION', 'ALTER COLLATION', 'DROP COLLATION',
       'CREATE RULE', 'ALTER RULE', 'DROP RULE', 'CREATE FOREIGN TABLE', 'ALTER FOREIGN TABLE', 'DROP FOREIGN TABLE',
       'CREATE INDEX', 'ALTER INDEX', 'DROP INDEX', 'CREATE MATERIALIZED VIEW', 'ALTER MATERIALIZED VIEW',
       'DROP MATERIALIZED VIEW', 'CREATE SEQUENCE', 'ALTER SEQUENCE', 'DROP SEQUENCE', 'IMPORT FOREIGN SCHEMA',
       'CREATE SCHEMA', 'CREATE LANGUAGE', 'ALTER LANGUAGE', 'DROP LANGUAGE',
       'CREATE EXTENSION', 'ALTER EXTENSION', 'DROP EXTENSION', 'DROP OWNED']) as tag))
  from names n cross join word w
  where not exists (select from trigger t where not (t.narrow and t.made))
  union all
  select 2, w.may || format(E'-- Ordinary event triggers do not fire where session_replication_role says so.\nalter event trigger %I enable always;', n.name)
  from names n cross join word w
  where exists (select from trigger t where t.evtenabled <> 'A' and t.made and not t.narrow)
  union all
  select 3, format('-- note: the event trigger %I was there before setup and is not enabled always: as it is, the relay does not count on it.', n.name)
  from names n
  where exists (select from trigger t where t.evtenabled <> 'A' and not t.made)
)
select statement from statements order by place
\gexec
