-- What `rowcast doctor` looks at of the server, the login and the slot: $1 the slot. It reads only
-- what everybody may read; what a login may not see is null.
select pg_catalog.jsonb_build_object(
  'version', pg_catalog.current_setting('server_version'),
  'version_num', pg_catalog.current_setting('server_version_num')::int,
  'database', pg_catalog.current_database(),
  'login', session_user,
  'acting', current_user,
  'standby', pg_catalog.pg_is_in_recovery(),
  'replicates', (
    select r.rolsuper or r.rolreplication or exists (
        select from pg_catalog.pg_roles p
        where p.rolname in ('rds_replication', 'rds_superuser') and pg_catalog.pg_has_role(session_user, p.oid, 'member'))
    from pg_catalog.pg_roles r where r.rolname = session_user),
  'temporary', pg_catalog.has_database_privilege(pg_catalog.current_database(), 'temporary'),
  'settings', (
    select pg_catalog.jsonb_object_agg(s.name, s.setting) from pg_catalog.pg_settings s
    where s.name in ('max_wal_senders', 'max_replication_slots', 'max_slot_wal_keep_size',
      'max_connections', 'superuser_reserved_connections', 'reserved_connections', 'statement_timeout',
      'idle_session_timeout', 'transaction_timeout', 'idle_replication_slot_timeout', 'wal_level',
      'synchronous_standby_names', 'synchronous_commit')),
  'slots', (select pg_catalog.count(*) from pg_catalog.pg_replication_slots),
  'senders', (select pg_catalog.count(*) from pg_catalog.pg_stat_replication),
  -- Who may not see others' sessions does not see what they are to commits.
  'synchronous', (
    select pg_catalog.count(*) from pg_catalog.pg_stat_replication s
    where s.sync_state is null or s.sync_state in ('sync', 'quorum')),
  'standbys', (select pg_catalog.count(*) from pg_catalog.pg_replication_slots where slot_type = 'physical'),
  'connections', (select pg_catalog.sum(numbackends) from pg_catalog.pg_stat_database),
  'database_limit', (select datconnlimit from pg_catalog.pg_database where datname = pg_catalog.current_database()),
  'login_limit', (select rolconnlimit from pg_catalog.pg_roles where rolname = session_user),
  'login_sessions', (select pg_catalog.count(*) from pg_catalog.pg_stat_activity where usename = session_user),
  'hidden_sessions', (
    select pg_catalog.count(*) from pg_catalog.pg_stat_activity a
    where a.usesysid is not null and a.query = '<insufficient privilege>'),
  'slot', (
    select pg_catalog.to_jsonb(s) || pg_catalog.jsonb_build_object(
      'retained', pg_catalog.pg_wal_lsn_diff(w.lsn, s.restart_lsn)::pg_catalog.int8,
      'behind', pg_catalog.pg_wal_lsn_diff(w.lsn, s.confirmed_flush_lsn)::pg_catalog.int8,
      'reader', (select a.application_name from pg_catalog.pg_stat_activity a where a.pid = s.active_pid),
      'reader_login', (select a.usename from pg_catalog.pg_stat_activity a where a.pid = s.active_pid))
    from pg_catalog.pg_replication_slots s where s.slot_name = $1::text),
  'others', coalesce((
    select pg_catalog.jsonb_agg(pg_catalog.jsonb_build_object(
      'name', s.slot_name, 'retained', pg_catalog.pg_wal_lsn_diff(w.lsn, s.restart_lsn)::pg_catalog.int8)
      order by s.slot_name)
    from pg_catalog.pg_replication_slots s
    where s.slot_name <> $1::text and not s.active and s.restart_lsn is not null), '[]'),
  'clock', extract(epoch from pg_catalog.clock_timestamp())::pg_catalog.float8)
from (
  select case when pg_catalog.pg_is_in_recovery() then pg_catalog.pg_last_wal_replay_lsn()
              else pg_catalog.pg_current_wal_insert_lsn() end as lsn) w
