-- Tables that could be published, for `rowcast doctor`: $1 names of tables that are meant, as SQL, or
-- none. Those with row-level security and a policy that lets rows be read of which one of the roles in $2 may read something, and whose
-- UPDATEs would not fail then.
select pg_catalog.format('%I.%I', n.nspname, c.relname)
from pg_catalog.pg_class c
join pg_catalog.pg_namespace n on n.oid = c.relnamespace
where c.relkind in ('r', 'p') and c.relpersistence = 'p' and not c.relispartition and c.oid >= 16384
  and n.nspname not in ('pg_catalog', 'information_schema')
  and case when pg_catalog.cardinality($1::text[]) > 0
        then pg_catalog.format('%I.%I', n.nspname, c.relname) = any ($1::text[])
        else c.relrowsecurity and exists (
          select from pg_catalog.pg_policy p
          where p.polrelid = c.oid and p.polpermissive and p.polcmd in ('r', '*') and p.polqual is not null
        ) and exists (
          select from pg_catalog.pg_roles r
          where r.rolname = any ($2::text[]) and not r.rolsuper and not r.rolbypassrls
            and pg_catalog.has_schema_privilege(r.oid, n.oid, 'usage')
            and pg_catalog.has_any_column_privilege(r.oid, c.oid, 'select')) end
  and (c.relreplident = 'f' or exists (
    select from pg_catalog.pg_index i
    where i.indrelid = c.oid and i.indisvalid and i.indisunique and i.indimmediate and i.indpred is null
      and case c.relreplident when 'd' then i.indisprimary when 'i' then i.indisreplident end))
order by n.nspname, c.relname
limit 1000
