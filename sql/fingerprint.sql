-- Whether anything may have changed of what catalog.sql reads: the rows of the system catalogs that
-- it looks into, directly or by the functions that it calls, each by its place and the transaction
-- that wrote it. A row that is written, changed or deleted changes its catalog's sum. So two equal
-- fingerprints mean the same document; two that differ may as well.
--   $1 publication
-- Passwords and the like hide pg_authid: of roles it is what decides about them that counts.
with
-- Somebody may make temporary tables all the time.
temporary as materialized (
  select c.oid from pg_class c where c.relpersistence = 't'
),
temporary_schemas as materialized (
  select n.oid from pg_namespace n where n.nspname like 'pg\_temp\_%' or n.nspname like 'pg\_toast\_temp\_%'
)
select array[
  -- What the publication comes to is in these three, and what is below. (That of schemas is not in all
  -- versions, its dependencies are.) To ask for it would take the lock of each table, and wait for whoever has it.
  (select sum(hash_record_extended(row(p.ctid, p.xmin), 0)) from pg_publication p where p.pubname = $1),
  (select sum(hash_record_extended(row(r.oid, r.ctid, r.xmin), 0))
   from pg_publication_rel r join pg_publication p on p.oid = r.prpubid where p.pubname = $1),
  (select sum(hash_record_extended(row(d.ctid, d.xmin), 0)) from pg_depend d where d.refclassid = 'pg_publication'::regclass),
  (select sum(hash_record_extended(row(d.ctid, d.xmin), 0)) from pg_database d where d.datname = current_database()),
  (select sum(hash_record_extended(row(s.ctid, s.xmin), 0)) from pg_db_role_setting s),
  (select sum(hash_record_extended(row(r.oid, r.rolname, r.rolsuper, r.rolbypassrls, r.rolinherit), 0)) from pg_roles r),
  (select sum(hash_record_extended(row(m.ctid, m.xmin), 0)) from pg_auth_members m),
  (select sum(hash_record_extended(row(n.ctid, n.xmin), 0)) from pg_namespace n where n.oid not in (select oid from temporary_schemas)),
  (select sum(hash_record_extended(row(c.ctid, c.xmin), 0)) from pg_class c where c.relpersistence <> 't'),
  (select sum(hash_record_extended(row(i.ctid, i.xmin), 0)) from pg_inherits i),
  (select sum(hash_record_extended(row(i.ctid, i.xmin), 0)) from pg_index i where i.indrelid not in (select oid from temporary)),
  (select sum(hash_record_extended(row(a.ctid, a.xmin), 0)) from pg_attribute a
   where a.attnum > 0 and a.attrelid not in (select oid from temporary)),
  (select sum(hash_record_extended(row(d.ctid, d.xmin), 0)) from pg_attrdef d where d.adrelid not in (select oid from temporary)),
  (select sum(hash_record_extended(row(p.ctid, p.xmin), 0)) from pg_policy p),
  (select sum(hash_record_extended(row(w.ctid, w.xmin), 0)) from pg_rewrite w where w.ev_class not in (select oid from temporary)),
  (select sum(hash_record_extended(row(d.ctid, d.xmin), 0)) from pg_depend d where d.classid = 'pg_policy'::regclass),
  (select sum(hash_record_extended(row(p.ctid, p.xmin), 0)) from pg_proc p where p.pronamespace not in (select oid from temporary_schemas)),
  (select sum(hash_record_extended(row(l.ctid, l.xmin), 0)) from pg_language l),
  (select sum(hash_record_extended(row(y.ctid, y.xmin), 0)) from pg_type y where y.typnamespace not in (select oid from temporary_schemas)),
  (select sum(hash_record_extended(row(e.ctid, e.xmin), 0)) from pg_enum e),
  (select sum(hash_record_extended(row(k.ctid, k.xmin), 0)) from pg_cast k),
  (select sum(hash_record_extended(row(o.ctid, o.xmin), 0)) from pg_operator o),
  (select sum(hash_record_extended(row(k.ctid, k.xmin), 0)) from pg_collation k)
]::text
