-- What `rowcast doctor` looks at of a publication: $1 its name, $2 names of tables that are meant, as
-- SQL. Of pg_publication and pg_publication_rel by way of JSON, as their columns differ from version to
-- version.
with publication as (
  select p.*, pg_catalog.to_jsonb(p) as said from pg_catalog.pg_publication p where p.pubname = $1::text
),
listed as materialized (
  select c.oid, c.relkind, pg_catalog.format('%I.%I', n.nspname, c.relname) as name
  from pg_catalog.pg_publication_tables t
  join pg_catalog.pg_namespace n on n.nspname = t.schemaname
  join pg_catalog.pg_class c on c.relnamespace = n.oid and c.relname = t.tablename
  where t.pubname = $1::text
),
meant as materialized (
  select m.text, m.place, c.*
  from pg_catalog.unnest($2::text[]) with ordinality m(text, place)
  left join lateral (
    select c.oid, n.nspname, c.relname, c.relkind, c.relpersistence, c.relispartition, c.relrowsecurity
    from pg_catalog.pg_class c join pg_catalog.pg_namespace n on n.oid = c.relnamespace
    where c.oid = pg_catalog.to_regclass(m.text)) c on true
),
-- The tables that rows are in. Not by pg_partition_tree: it locks them all.
tree(root, oid) as (
  with recursive tree(root, oid) as (
    select l.oid, l.oid from listed l
    union
    select m.oid, m.oid from meant m where m.oid is not null
    union all
    select tree.root, i.inhrelid from tree
    join pg_catalog.pg_class c on c.oid = tree.oid and c.relkind = 'p'
    join pg_catalog.pg_inherits i on i.inhparent = tree.oid and not i.inhdetachpending)
  select root, oid from tree
),
-- PostgreSQL refuses UPDATE and DELETE of these once they are published.
unidentified as (
  select t.root, pg_catalog.format('%I.%I', n.nspname, c.relname) as name
  from tree t
  join pg_catalog.pg_class c on c.oid = t.oid and c.relkind = 'r'
  join pg_catalog.pg_namespace n on n.oid = c.relnamespace
  where case c.relreplident
      when 'f' then false
      when 'n' then true
      else not exists (
        -- A deferrable primary key is no identity.
        select from pg_catalog.pg_index i
        where i.indrelid = c.oid and i.indisvalid and i.indisunique and i.indimmediate and i.indpred is null
          and case c.relreplident when 'd' then i.indisprimary else i.indisreplident end) end
),
elsewhere as (
  select c.oid, pg_catalog.format('%I.%I', n.nspname, c.relname) as name
  from pg_catalog.pg_publication_tables t
  join pg_catalog.pg_namespace n on n.nspname = t.schemaname
  join pg_catalog.pg_class c on c.relnamespace = n.oid and c.relname = t.tablename
  where t.pubname = 'supabase_realtime' and $1::text <> 'supabase_realtime'
    and c.oid not in (select tree.oid from tree join listed l on l.oid = tree.root)
)
select pg_catalog.jsonb_build_object(
  'insert', p.pubinsert, 'update', p.pubupdate, 'delete', p.pubdelete, 'truncate', p.pubtruncate,
  'via_root', p.pubviaroot, 'everything', p.puballtables,
  'items', coalesce((
    select pg_catalog.jsonb_agg(pg_catalog.jsonb_build_object(
      'oid', c.oid::pg_catalog.int8,
      'name', pg_catalog.format('%I.%I', n.nspname, c.relname), 'partitioned', c.relkind = 'p',
      'filter', pg_catalog.to_jsonb(r) ->> 'prqual' is not null,
      'columns', pg_catalog.to_jsonb(r) ->> 'prattrs' is not null) order by n.nspname, c.relname)
    from pg_catalog.pg_publication_rel r
    join pg_catalog.pg_class c on c.oid = r.prrelid
    join pg_catalog.pg_namespace n on n.oid = c.relnamespace
    where r.prpubid = p.oid), '[]'),
  'unidentified', coalesce((
    select pg_catalog.jsonb_agg(pg_catalog.jsonb_build_array(u.root::pg_catalog.int8, u.name) order by u.name)
    from unidentified u join listed l on l.oid = u.root), '[]'),
  -- Rows of these are in no stream of the table that they belong to.
  'silent', coalesce((
    select pg_catalog.jsonb_agg(pg_catalog.jsonb_build_array(
        t.root::pg_catalog.int8, pg_catalog.format('%I.%I', n.nspname, c.relname), t.kind) order by n.nspname, c.relname)
    from (
      select tree.root, tree.oid, case when c.relkind = 'f' then 'foreign' else 'unlogged' end as kind
      from tree
      join listed l on l.oid = tree.root
      join pg_catalog.pg_class c on c.oid = tree.oid and tree.oid <> tree.root
        and (c.relkind = 'f' or c.relkind = 'r' and c.relpersistence <> 'p')
      union all
      select l.oid, i.inhrelid, 'inherits'
      from listed l
      join pg_catalog.pg_inherits i on i.inhparent = l.oid
      where l.relkind = 'r' and i.inhrelid not in (select l.oid from listed l)) t
    join pg_catalog.pg_class c on c.oid = t.oid
    join pg_catalog.pg_namespace n on n.oid = c.relnamespace), '[]'),
  'leaves', coalesce((
    select pg_catalog.jsonb_agg(pg_catalog.jsonb_build_array(t.root::pg_catalog.int8, pg_catalog.format('%I.%I', n.nspname, c.relname))
      order by n.nspname, c.relname)
    from tree t
    join listed l on l.oid = t.root
    join pg_catalog.pg_class c on c.oid = t.oid and c.relkind = 'r'
    join pg_catalog.pg_namespace n on n.oid = c.relnamespace
    where t.oid <> t.root), '[]'),
  'elsewhere', coalesce((select pg_catalog.jsonb_agg(e.name order by e.name) from elsewhere e), '[]'),
  'meant', coalesce((
    select pg_catalog.jsonb_agg(pg_catalog.jsonb_build_object(
      'text', m.text, 'oid', m.oid::pg_catalog.int8,
      'name', case when m.oid is null then m.text else pg_catalog.format('%I.%I', m.nspname, m.relname) end,
      'kind', m.relkind, 'persistence', m.relpersistence, 'partition', m.relispartition,
      'system', m.oid < 16384, 'row_security', m.relrowsecurity,
      'unidentified', coalesce((
        select pg_catalog.jsonb_agg(u.name order by u.name) from unidentified u where u.root = m.oid), '[]'),
      'folded', exists (
        select from pg_catalog.pg_class f join pg_catalog.pg_namespace fn on fn.oid = f.relnamespace
        where m.oid is null and lower(pg_catalog.format('%s.%s', fn.nspname, f.relname)) = lower(replace(m.text, '"', ''))))
      order by m.place)
    from meant m), '[]'))
from publication p
