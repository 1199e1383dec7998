-- What the catalog says of tables that are to be mirrored: $1 their oids, $2 the publication whose
-- tables can be subscribed to, $3 the lookups' own.
with recursive publications as (
  select p.oid, p.pubname, p.pubviaroot, p.xmin::pg_catalog.text as version,
         p.pubinsert and p.pubupdate and p.pubdelete and p.pubtruncate as complete,
         pg_catalog.pg_has_role(current_user, p.pubowner, 'usage') as owned
  from pg_catalog.pg_publication p
  where p.pubname in ($2::text, $3::text)
),
listed as (
  select t.pubname, c.oid
  from pg_catalog.pg_publication_tables t
  join pg_catalog.pg_namespace n on n.nspname = t.schemaname
  join pg_catalog.pg_class c on c.relnamespace = n.oid and c.relname = t.tablename
  where t.pubname in ($2::text, $3::text)
),
-- A partitioned table and its partitions, or a partition. Not by pg_partition_tree: it locks them
-- all, and somebody who alters root and partitions at that moment would meet a deadlock.
tree(root, oid) as (
  select c.oid, c.oid from pg_catalog.pg_class c
  where c.oid = any ($1::pg_catalog.oid[]) and (c.relkind = 'p' or c.relispartition)
  union all
  select tree.root, i.inhrelid from tree
  join pg_catalog.pg_inherits i on i.inhparent = tree.oid and not i.inhdetachpending
)
select c.oid, pg_catalog.jsonb_build_object(
  'name', pg_catalog.format('%I.%I', n.nspname, c.relname),
  'kind', c.relkind,
  'persistence', c.relpersistence,
  'system', c.oid < 16384,
  'partition', c.relispartition,
  'children', c.relkind <> 'p' and exists (select from pg_catalog.pg_inherits i where i.inhparent = c.oid),
  'unstreamed', exists (
      select from tree t join pg_catalog.pg_class m on m.oid = t.oid
      where t.root = c.oid and (m.relkind not in ('r', 'p') or m.relpersistence <> 'p')),
  'owned', pg_catalog.pg_has_role(current_user, c.relowner, 'usage'),
  'readable', pg_catalog.has_schema_privilege(n.oid, 'usage') and pg_catalog.has_table_privilege(c.oid, 'select'),
  'secured', pg_catalog.row_security_active(c.oid),
  -- Whether a policy shows the login every row, and none keeps any.
  'open', exists (
      select from pg_catalog.pg_policy p
      where p.polrelid = c.oid and p.polpermissive and p.polcmd in ('r', '*')
        and pg_catalog.pg_get_expr(p.polqual, p.polrelid) = 'true'
        and exists (select from pg_catalog.unnest(p.polroles) r(oid)
                    where r.oid = 0 or pg_catalog.pg_has_role(current_user, r.oid, 'usage')))
    and not exists (
      select from pg_catalog.pg_policy p
      where p.polrelid = c.oid and not p.polpermissive and p.polcmd in ('r', '*')
        and exists (select from pg_catalog.unnest(p.polroles) r(oid)
                    where r.oid = 0 or pg_catalog.pg_has_role(current_user, r.oid, 'usage'))),
  'login', current_user,
  'identity', c.relreplident,
  'identities', coalesce((
      select pg_catalog.string_agg(distinct m.relreplident::pg_catalog.text, '')
      from tree t
      join pg_catalog.pg_class m on m.oid = t.oid
      where t.root = c.oid), ''),
  'key', (
      select pg_catalog.jsonb_build_object('index', i.indexrelid::pg_catalog.int8, 'columns', (
        select pg_catalog.jsonb_agg(a.attname order by a.attnum)
        from pg_catalog.pg_attribute a
        where a.attrelid = c.oid and a.attnum = any (i.indkey::pg_catalog.int2[])))
      from pg_catalog.pg_index i
      where i.indrelid = c.oid and i.indisvalid and i.indimmediate and i.indisunique
        and i.indpred is null and i.indexprs is null
        and case c.relreplident when 'i' then i.indisreplident else i.indisprimary end
      limit 1),
  'columns', (
      select pg_catalog.jsonb_object_agg(a.attname, pg_catalog.jsonb_build_object(
        'number', a.attnum, 'type', a.atttypid::pg_catalog.int8, 'modifier', a.atttypmod,
        'generated', a.attgenerated <> '', 'version', a.xmin::pg_catalog.text))
      from pg_catalog.pg_attribute a
      where a.attrelid = c.oid and a.attnum > 0 and not a.attisdropped),
  -- What takes rows out of a partitioned table, or puts them into it, without a change of a row.
  'members', coalesce((
      select pg_catalog.string_agg(pg_catalog.format('%s:%s:%s', m.oid, m.relfilenode, i.xmin), ',' order by m.oid)
      from tree t
      join pg_catalog.pg_class m on m.oid = t.oid
      left join pg_catalog.pg_inherits i on i.inhrelid = m.oid
      where t.root = c.oid), ''),
  'publications', coalesce((
      select pg_catalog.jsonb_object_agg(p.pubname, pg_catalog.jsonb_build_object(
        'oid', p.oid::pg_catalog.int8, 'version', p.version, 'complete', p.complete, 'owned', p.owned,
        'listed', exists (select from listed l where l.pubname = p.pubname and l.oid = c.oid),
        'touched', exists (select from listed l where l.pubname = p.pubname and l.oid in (
            select c.oid union all select t.oid from tree t where t.root = c.oid)),
        'columns', exists (select from pg_catalog.pg_publication_rel r
            where r.prpubid = p.oid and pg_catalog.to_jsonb(r) ->> 'prattrs' is not null
              and r.prrelid in (select c.oid union all select t.oid from tree t where t.root = c.oid)),
        'filter', exists (select from pg_catalog.pg_publication_rel r
            where r.prpubid = p.oid and pg_catalog.to_jsonb(r) ->> 'prqual' is not null
              and r.prrelid in (select c.oid union all select t.oid from tree t where t.root = c.oid)),
        'members', coalesce((
            select pg_catalog.string_agg(pg_catalog.format('%s:%s', r.oid, r.xmin), ',' order by r.oid)
            from pg_catalog.pg_publication_rel r
            where r.prpubid = p.oid
              and r.prrelid in (select c.oid union all select t.oid from tree t where t.root = c.oid)), '')))
      from publications p), '{}'))
from pg_catalog.pg_class c
join pg_catalog.pg_namespace n on n.oid = c.relnamespace
where c.oid = any ($1::pg_catalog.oid[])
