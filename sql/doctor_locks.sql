-- Who holds a lock that keeps the catalog from being read: the text of an expression cannot be had while
-- its table is locked so. A transaction that is prepared has no process.
select pg_catalog.format('%I.%I', n.nspname, c.relname), l.pid, a.application_name,
  (select p.gid from pg_catalog.pg_prepared_xacts p
   where l.pid is null and l.virtualtransaction = '-1/' || p.transaction) as gid,
  extract(epoch from pg_catalog.clock_timestamp() - a.xact_start)::pg_catalog.int8
from pg_catalog.pg_locks l
join pg_catalog.pg_database d on d.oid = l.database and d.datname = pg_catalog.current_database()
join pg_catalog.pg_class c on c.oid = l.relation and c.relkind in ('r', 'p', 'v', 'm')
join pg_catalog.pg_namespace n on n.oid = c.relnamespace
left join pg_catalog.pg_stat_activity a on a.pid = l.pid
where l.locktype = 'relation' and l.mode = 'AccessExclusiveLock' and l.granted
  and l.pid is distinct from pg_catalog.pg_backend_pid() and n.nspname not in ('pg_catalog', 'pg_toast')
order by a.xact_start nulls first, 1
limit 10
