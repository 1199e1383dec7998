-- Which changes of what catalog.sql reads the stream tells of by itself: the event trigger that has
-- it do so (ddl.sql), null where there is none or it can be passed by; and a sum of all that no event
-- trigger is told of. The text of the first differs where the trigger or its function was altered in
-- between: then it may have been off.
--   $1 replication slot   $2 roles that clients act as
with recursive
-- Those, and the ones whose members they are: other roles' comings and goings do not count.
roles(oid) as (
  select r.oid from pg_roles r where r.rolname = any ($2::text[]) or r.rolname = session_user
  union
  select m.roleid from roles join pg_auth_members m on m.member = roles.oid
)
select
  (select format('%s %s %s %s', t.ctid, t.xmin, p.ctid, p.xmin)
   from pg_event_trigger t join pg_proc p on p.oid = t.evtfoid
   where t.evtname = case when octet_length($1::text) <= 51 then 'rowcast_ddl_' || $1::text else 'rowcast_ddl_' || md5($1::text) end
     and t.evtevent = 'ddl_command_end'
     -- Also where session_replication_role says that ordinary ones do not fire.
     and t.evtenabled = 'A'
     and position(quote_literal($1::text) in p.prosrc) > 0
     -- One of an earlier build is not told of views, or of the rules that make them.
     and (t.evttags is null or t.evttags @> '{CREATE VIEW,ALTER VIEW,DROP VIEW,CREATE RULE,CREATE MATERIALIZED VIEW}')),
  array[
    (select sum(hash_record_extended(row(d.ctid, d.xmin), 0)) from pg_database d where d.datname = current_database()),
    (select sum(hash_record_extended(row(s.ctid, s.xmin), 0)) from pg_db_role_setting s
     where s.setdatabase in (0, (select oid from pg_database where datname = current_database()))
       and (s.setrole = 0 or s.setrole in (select oid from roles))),
    (select sum(hash_record_extended(row(r.oid, r.rolname, r.rolsuper, r.rolbypassrls, r.rolinherit), 0))
     from pg_roles r where r.oid in (select oid from roles)),
    (select sum(hash_record_extended(row(m.ctid, m.xmin), 0)) from pg_auth_members m where m.member in (select oid from roles))
  ]::text
