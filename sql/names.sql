-- What names in the bodies of functions can mean, as one text: what there is by which name in which
-- schema, the columns of tables, casts, and whether a body can be analysed at all. Two equal texts
-- mean that a body that was analysed once would come out the same.
with schemas as materialized (
  select n.oid, n.nspname from pg_namespace n
  where n.nspname not in ('pg_catalog', 'information_schema') and n.nspname not like 'pg\_temp\_%' and n.nspname not like 'pg\_toast%'
)
select array[
  pg_is_in_recovery()::text,
  has_database_privilege(current_database(), 'temp')::text,
  (select sum(hashtextextended(format('%s %s', s.oid, s.nspname), 0))::text from schemas s),
  (select sum(hashtextextended(format('%s %s %s %s', c.oid, c.relname, c.relnamespace, c.relkind), 0))::text
   from pg_class c where c.relnamespace in (select oid from schemas) and c.relkind in ('r', 'p', 'v', 'm', 'f', 'c', 'S')),
  (select sum(hashtextextended(format('%s %s %s %s %s %s', a.attrelid, a.attnum, a.attname, a.atttypid, a.atttypmod, a.attcollation), 0))::text
   from pg_attribute a join pg_class c on c.oid = a.attrelid
   where c.relnamespace in (select oid from schemas) and c.relkind in ('r', 'p', 'v', 'm', 'f', 'c') and a.attnum > 0 and not a.attisdropped),
  (select sum(hashtextextended(format('%s %s %s %s %s %s %s %s', p.oid, p.proname, p.pronamespace, p.proargtypes, p.prorettype, p.proretset, p.pronargdefaults, p.provariadic), 0))::text
   from pg_proc p where p.pronamespace in (select oid from schemas)),
  (select sum(hashtextextended(format('%s %s %s %s', y.oid, y.typname, y.typnamespace, y.typbasetype), 0))::text
   from pg_type y where y.typnamespace in (select oid from schemas)),
  (select sum(hashtextextended(format('%s %s', e.enumtypid, e.enumlabel), 0))::text from pg_enum e),
  (select sum(hashtextextended(format('%s %s %s %s %s %s', o.oid, o.oprname, o.oprnamespace, o.oprleft, o.oprright, o.oprcode::oid), 0))::text
   from pg_operator o where o.oid >= 16384),
  (select sum(hashtextextended(format('%s %s %s %s %s', k.castsource, k.casttarget, k.castfunc, k.castcontext, k.castmethod), 0))::text
   from pg_cast k where k.oid >= 16384),
  (select sum(hashtextextended(format('%s %s %s', k.oid, k.collname, k.collnamespace), 0))::text from pg_collation k where k.oid >= 16384)
]::text
