-- The partitions of partitioned tables, $1 their oids, as lookups.sql has them: a TRUNCATE of one is in no
-- stream of its root.
with recursive tree(root, oid) as (
  select r.oid, r.oid from pg_catalog.unnest($1::pg_catalog.oid[]) r(oid)
  union all
  select tree.root, i.inhrelid from tree
  join pg_catalog.pg_inherits i on i.inhparent = tree.oid and not i.inhdetachpending
)
select r.oid, coalesce((
  select pg_catalog.string_agg(pg_catalog.format('%s:%s:%s', m.oid, m.relfilenode, i.xmin), ',' order by m.oid)
  from tree t
  join pg_catalog.pg_class m on m.oid = t.oid
  left join pg_catalog.pg_inherits i on i.inhrelid = m.oid
  where t.root = r.oid), '')
from pg_catalog.unnest($1::pg_catalog.oid[]) r(oid)
