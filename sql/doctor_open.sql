-- Transactions that making a replication slot waits for: $1 the session that makes it, and what it waits
-- for now; without one, what has been open for ten seconds. Of transactions in other people's sessions
-- a login may not see for how long.
with waited_for as (
  select pg_catalog.unnest(pg_catalog.pg_blocking_pids($1::int)) as pid
)
select a.pid, null::text as gid, a.datname::text, a.application_name,
  extract(epoch from pg_catalog.clock_timestamp() - a.xact_start)::pg_catalog.int8 as seconds
from pg_catalog.pg_stat_activity a
where case when $1::int is null
    then a.backend_xid is not null and a.xact_start < pg_catalog.clock_timestamp() - interval '10 s'
      and a.pid <> pg_catalog.pg_backend_pid()
    else a.pid in (select w.pid from waited_for w) end
union all
-- One that is prepared belongs to no session: its process is 0.
select 0, p.gid, p.database::text, null,
  extract(epoch from pg_catalog.clock_timestamp() - p.prepared)::pg_catalog.int8
from pg_catalog.pg_prepared_xacts p
where case when $1::int is null
    then p.prepared < pg_catalog.clock_timestamp() - interval '10 s'
    else 0 in (select w.pid from waited_for w) end
order by seconds desc nulls last
limit 10
