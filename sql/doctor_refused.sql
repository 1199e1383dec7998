-- Published tables whose UPDATEs and DELETEs PostgreSQL refuses, for what a publication, whichever it
-- is, shows of them does not go with their replica identity: $1 the publication that the relay follows.
-- What has no identity at all is not among them. Of pg_publication and its kin by way of JSON, as their
-- columns differ from version to version.
with recursive listed as materialized (
  select c.oid
  from pg_catalog.pg_publication_tables t
  join pg_catalog.pg_namespace n on n.nspname = t.schemaname
  join pg_catalog.pg_class c on c.relnamespace = n.oid and c.relname = t.tablename
  where t.pubname = $1::text
),
-- The tables that rows are in.
tree(root, oid) as (
  select l.oid, l.oid from listed l
  union all
  select tree.root, i.inhrelid from tree
  join pg_catalog.pg_class c on c.oid = tree.oid and c.relkind = 'p'
  join pg_catalog.pg_inherits i on i.inhparent = tree.oid and not i.inhdetachpending
),
-- Which of their columns old rows carry.
identities as (
  select t.root, c.oid, pg_catalog.format('%I.%I', n.nspname, c.relname) as name, c.relreplident = 'f' as whole,
    exists (
      select from pg_catalog.pg_index i
      where i.indrelid = c.oid and i.indisprimary and i.indisvalid and i.indimmediate) as keyed,
    i.indkey::pg_catalog.int2[] as columns
  from tree t
  join pg_catalog.pg_class c on c.oid = t.oid and c.relkind = 'r'
  join pg_catalog.pg_namespace n on n.oid = c.relnamespace
  left join pg_catalog.pg_index i on i.indrelid = c.oid and i.indisvalid and i.indisunique and i.indimmediate
    and i.indpred is null and case c.relreplident when 'd' then i.indisprimary when 'i' then i.indisreplident end
  where c.relreplident = 'f' or i.indrelid is not null
),
-- These and those that they are partitions of.
up(root, leaf, oid) as (
  select i.root, i.oid, i.oid from identities i
  union all
  select up.root, up.leaf, h.inhparent from up
  join pg_catalog.pg_inherits h on h.inhrelid = up.oid
  join pg_catalog.pg_class p on p.oid = h.inhparent and p.relkind = 'p'
),
-- As which table a publication shows each, if it tells of more than INSERT.
shown as (
  select distinct up.root, up.leaf, up.oid as item, n.nspname, c.relname, p.oid as publication, p.pubname,
    pg_catalog.to_jsonb(p) ->> 'pubgencols' as generated, pg_catalog.to_jsonb(v) ->> 'rowfilter' as filter
  from up
  join pg_catalog.pg_class c on c.oid = up.oid
  join pg_catalog.pg_namespace n on n.oid = c.relnamespace
  join pg_catalog.pg_publication_tables v on v.schemaname = n.nspname and v.tablename = c.relname
  join pg_catalog.pg_publication p on p.pubname = v.pubname and (p.pubupdate or p.pubdelete)
),
-- By the columns' numbers in the table that the row is in.
parts as (
  select s.*, i.name, i.whole, i.keyed, i.columns as carried,
    (select pg_catalog.array_agg(own.attnum)
     from pg_catalog.jsonb_array_elements_text(nullif(pg_catalog.to_jsonb(r) -> 'prattrs', 'null')) k(number)
     join pg_catalog.pg_attribute a on a.attrelid = s.item and a.attnum = k.number::pg_catalog.int2
     join pg_catalog.pg_attribute own on own.attrelid = s.leaf and own.attname = a.attname and not own.attisdropped
    ) as published,
    (select pg_catalog.array_agg(own.attnum)
     from pg_catalog.pg_depend d
     join pg_catalog.pg_attribute a on a.attrelid = s.item and a.attnum = d.refobjsubid
     join pg_catalog.pg_attribute own on own.attrelid = s.leaf and own.attname = a.attname and not own.attisdropped
     where d.classid = 'pg_catalog.pg_publication_rel'::pg_catalog.regclass and d.objid = r.oid
       and d.refclassid = 'pg_catalog.pg_class'::pg_catalog.regclass and d.refobjid = s.item and d.refobjsubid > 0
       and s.filter is not null) as filtered,
    (select pg_catalog.array_agg(a.attnum) from pg_catalog.pg_attribute a
     where a.attrelid = s.leaf and a.attgenerated = 's' and not a.attisdropped) as stored,
    exists (
      select from pg_catalog.pg_attribute a
      where a.attrelid = s.leaf and a.attgenerated = 'v' and not a.attisdropped) as virtual
  from shown s
  join identities i on i.root = s.root and i.oid = s.leaf
  left join pg_catalog.pg_publication_rel r on r.prpubid = s.publication and r.prrelid = s.item
),
why as (
  select p.*,
    coalesce(p.published is not null and (p.whole or not p.carried <@ p.published), false) as by_columns,
    coalesce(not p.whole and not p.filtered <@ p.carried, false) as by_filter,
    coalesce(p.published is null and p.generated = 'n' and (p.whole or p.stored && p.carried) and p.stored is not null, false)
      as by_generated,
    -- 18 is the first that has them.
    coalesce(p.whole and p.virtual, false) as by_virtual
  from parts p
)
select w.root, w.name, w.pubname::pg_catalog.text, pg_catalog.format('%I.%I', w.nspname, w.relname), w.whole, w.keyed,
  w.filter, w.by_columns, w.by_filter, w.by_generated, w.by_virtual,
  -- Whether a filter can be helped by having old rows carry all.
  not exists (
    select from parts o
    where o.leaf = w.leaf
      and (o.published is not null or o.generated = 'n' and o.stored is not null or o.virtual)) as could_be_whole,
  (select pg_catalog.string_agg(pg_catalog.quote_ident(a.attname), ', ' order by a.attnum)
   from pg_catalog.pg_attribute a
   where a.attrelid = w.leaf and a.attnum = any (w.published || w.carried)) as wanted
from why w
where w.by_columns or w.by_filter or w.by_generated or w.by_virtual
order by w.name, w.pubname
