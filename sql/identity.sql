-- What a DELETE, and the row before an UPDATE, carries into the log. By default that is the primary
-- key; who may hear of it is decided by the columns that policies read, and who asked for it by the
-- columns that filters name. Where the replica identity does not carry those, nobody hears of the
-- DELETE, nor, with `rowcast: {leave: true}`, of an UPDATE that takes a row out of somebody's view.
--
-- The cheapest remedy is a unique index over key and deciding columns as the identity: a few more
-- bytes for each UPDATE that changes one of them and for each DELETE. It takes columns that are NOT
-- NULL and of a fixed or small size (a long text would not fit into an index, and INSERTs of it would
-- fail). Elsewhere, and for partitions, FULL: the whole old row for each UPDATE and DELETE.
--
-- This file changes nothing by itself. Its query writes the statements that are missing in this
-- database, each with its reason, and `\gexec` has psql run them (`psql -e` shows them). To only
-- read them, put a semicolon where \gexec stands; `rowcast setup --print --only identity` prints the same.
--
--   psql -c "set rowcast.filter_columns = 'app.todos.list_id'" -f sql/identity.sql
--
--   rowcast.publication      the publication                                     rowcast
--   rowcast.tables           tables that will be in it, as SQL names
--   rowcast.schemas          and schemas
--   rowcast.without_rls      on: also those without row-level security           off
--   rowcast.client_roles     the roles that tokens name, as SQL names            anon, authenticated
--   rowcast.filter_columns   columns that clients filter by, as SQL names with schema and table
--
-- What the identity was before is noted in a comment (of the index, or of the publication), so that
-- `rowcast setup --remove` puts it back; where that cannot be noted, nothing is changed.
\set ON_ERROR_STOP on
with settings as (
  select coalesce(nullif(current_setting('rowcast.publication', true), ''), 'rowcast') as publication,
         coalesce(nullif(current_setting('rowcast.client_roles', true), ''), 'anon, authenticated') as clients,
         coalesce(current_setting('rowcast.tables', true), '') as tables,
         coalesce(current_setting('rowcast.schemas', true), '') as schemas,
         coalesce(current_setting('rowcast.filter_columns', true), '') as filters,
         coalesce(current_setting('rowcast.without_rls', true), '') = 'on' as without_rls,
         coalesce(nullif(current_setting('rowcast.parts', true), ''), 'publication') ~ 'publication' as with_publication
),
publication as (
  select s.publication as name, p.oid, obj_description(p.oid, 'pg_publication') as comment,
         case when p.oid is null then has_database_privilege(current_database(), 'create')
              else pg_has_role(current_user, p.pubowner, 'usage') end as owned
  from settings s left join pg_publication p on p.pubname = s.publication
),
clients as (
  select r.oid
  from settings s, regexp_matches(s.clients, '((?:"(?:[^"]|"")*"|[^",])+)', 'g') as given(part)
  join pg_roles r on r.rolname = (parse_ident(btrim(given.part[1])))[1]
  where not r.rolsuper and not r.rolbypassrls
),
given as (
  select parse_ident(btrim(part[1])) as name
  from settings s, regexp_matches(s.tables, '((?:"(?:[^"]|"")*"|[^",])+)', 'g') as given(part)
),
schemas as (
  select (parse_ident(btrim(part[1])))[1] as name
  from settings s, regexp_matches(s.schemas, '((?:"(?:[^"]|"")*"|[^",])+)', 'g') as given(part)
),
-- What is in which publication, by whatever way. Asked once: the view computes all of it each time.
listed as materialized (
  select p.pubname, c.oid
  from pg_publication_tables p
  join pg_namespace n on n.nspname = p.schemaname
  join pg_class c on c.relnamespace = n.oid and c.relname = p.tablename
),
filters as (
  select btrim(part[1]) as text, parse_ident(btrim(part[1])) as name
  from settings s, regexp_matches(s.filters, '((?:"(?:[^"]|"")*"|[^",])+)', 'g') as given(part)
),
tables as (
  select c.oid, n.nspname, c.relname, c.relkind, o.rolname as owner, pg_has_role(current_user, c.relowner, 'usage') as owned
  from pg_class c
  join pg_namespace n on n.oid = c.relnamespace
  join pg_roles o on o.oid = c.relowner
  cross join settings s
  where c.relkind in ('r', 'p') and c.relpersistence = 'p'
    and n.nspname not in ('pg_catalog', 'information_schema')
    and ((s.publication, c.oid) in (select pubname, oid from listed)
      or (c.relrowsecurity or s.without_rls)
         and (array[n.nspname::text, c.relname::text] in (select name from given)
           or not c.relispartition and n.nspname::text in (select name from schemas)))
),
-- The policies of a table and of the tables that it is a partition of.
policies as (
  select t.oid as judged, p.polrelid, p.oid
  from tables t
  cross join lateral (select t.oid union select a.relid from pg_partition_ancestors(t.oid) as a(relid)) judge(oid)
  join pg_policy p on p.polrelid = judge.oid
  join pg_class c on c.oid = p.polrelid and c.relrowsecurity
  where p.polcmd in ('r', '*')
    and (0 = any (p.polroles)
      or exists (select from clients, unnest(p.polroles) as member(oid)
                 where member.oid <> 0 and pg_has_role(clients.oid, member.oid, 'usage')))
),
read as (
  select distinct p.judged, p.polrelid, a.attname, a.attgenerated <> '' as generated
  from policies p
  join pg_depend d on d.classid = 'pg_policy'::regclass and d.objid = p.oid
    and d.refclassid = 'pg_class'::regclass and d.refobjid = p.polrelid and d.refobjsubid > 0
  join pg_attribute a on a.attrelid = p.polrelid and a.attnum = d.refobjsubid
  union
  -- A row that is read as a whole is no dependency on its columns.
  select p.judged, p.polrelid, a.attname, a.attgenerated <> ''
  from policies p
  join pg_policy q on q.oid = p.oid and position(':varattno 0 ' in q.polqual::text) > 0
  join pg_attribute a on a.attrelid = p.polrelid and a.attnum > 0 and not a.attisdropped
),
needed(judged, attname) as (
  select judged, attname from read where not generated
  union
  -- What a generated column is computed from is not known by column: all of them.
  select r.judged, a.attname
  from read r join pg_attribute a on a.attrelid = r.polrelid and a.attnum > 0 and not a.attisdropped and a.attgenerated = ''
  where r.generated
  union
  select t.oid, a.attname
  from filters f join tables t on t.nspname = f.name[1] and t.relname = f.name[2]
  join pg_attribute a on a.attrelid = t.oid and a.attname = f.name[3] and a.attnum > 0 and not a.attisdropped
),
-- Where the identity is kept: a partitioned table's counts for how the row is described, and its
-- partitions' for what is in the log.
places as (
  select t.oid as judged, t.relkind = 'p' as partitioned, t.owned, t.owner,
         l.oid, m.nspname, l.relname, l.relkind, l.relreplident
  from tables t
  cross join lateral (select t.oid union select x.relid from pg_partition_tree(t.oid) x where t.relkind = 'p') place(oid)
  join pg_class l on l.oid = place.oid
  join pg_namespace m on m.oid = l.relnamespace
),
-- The index that rows are found by: the identity's, or else the primary key's.
usable as (
  select p.oid, i.indexrelid, i.indisreplident, i.indisprimary,
         (select array_agg(a.attname order by k.place)
          from unnest(i.indkey::int2[]) with ordinality as k(attnum, place)
          join pg_attribute a on a.attrelid = i.indrelid and a.attnum = k.attnum
          where k.place <= i.indnkeyatts) as columns
  from places p join pg_index i on i.indrelid = p.oid
  where i.indisvalid and i.indisunique and i.indimmediate and i.indpred is null and i.indexprs is null
),
identities as (
  select p.*, u.indexrelid, u.columns, c.relname as index_name,
         coalesce(obj_description(u.indexrelid, 'pg_class') like 'Made by rowcast setup%', false) as made,
         k.columns as key
  from places p
  left join usable u on u.oid = p.oid
    and (p.relreplident = 'd' and u.indisprimary or p.relreplident = 'i' and u.indisreplident)
  left join pg_class c on c.oid = u.indexrelid
  left join usable k on k.oid = p.oid and k.indisprimary
),
lacking as (
  select i.*,
         (select array_agg(a.attname order by a.attnum) from pg_attribute a
          where a.attrelid = i.oid and a.attname = any (n.names)
            and not a.attname = any (coalesce(i.columns, '{}'))) as missing,
         (select array_agg(a.attname order by a.attnum) from pg_attribute a
          where a.attrelid = i.oid and a.attname = any (n.names)
            and not a.attname = any (coalesce(i.key, i.columns, '{}'))) as deciding,
         case i.relreplident when 'd' then 'default' when 'n' then 'nothing'
              else coalesce('index ' || quote_ident(i.index_name), 'default') end as before
  from identities i
  join (select judged, array_agg(attname) as names from needed group by judged) n on n.judged = i.judged
  where i.relreplident <> 'f'
    -- A table that could not be published is not; see publication.sql.
    and (i.relkind = 'p' or i.indexrelid is not null)
    and not exists (select from identities o where o.judged = i.judged and o.relkind = 'r'
                      and o.relreplident <> 'f' and o.indexrelid is null)
),
-- Never less than the identity of before: other subscribers, and the row filters of other
-- publications, may need its columns.
widened as (
  select l.*, coalesce(l.key, '{}') || array(select n from unnest(l.columns) with ordinality as x(n, place)
                                             where not n = any (coalesce(l.key, '{}')) order by place)
                || array(select n from unnest(l.deciding) with ordinality as x(n, place)
                         where not n = any (l.columns) order by place) as indexed
  from lacking l where l.missing is not null
),
chosen as (
  select l.*,
         case when octet_length(l.relname) <= 45 then l.relname else 'table_' || l.oid end
           || '_identity_' || left(md5(l.indexed::text), 8) as wanted,
         not l.partitioned and l.relkind = 'r'
           and cardinality(l.indexed) <= 32
           and not exists (
             select from unnest(l.indexed) as x(name)
             join pg_attribute a on a.attrelid = l.oid and a.attname = x.name
             join pg_type y on y.oid = a.atttypid
             left join pg_type b on b.oid = y.typbasetype
             where not a.attnotnull
               or x.name = any (l.deciding) and not (
                 (y.typlen > 0 or y.typname in ('varchar', 'bpchar') and a.atttypmod between 5 and 259)
                 and (y.typtype = 'e' or y.typname in ('varchar', 'bpchar')
                   or exists (select from pg_opclass o join pg_am m on m.oid = o.opcmethod
                              where m.amname = 'btree' and o.opcdefault and o.opcintype in (y.oid, b.oid))))
           ) as by_index
  from widened l
),
-- The publications, also others', that a table is in, and what each bears as its replica identity:
-- PostgreSQL refuses UPDATE and DELETE where a column list does not cover the identity, and since 18
-- where generated columns are part of it (of FULL, all are) and the publication leaves them out.
bearing as (
  select c.oid, x.pubname,
         (select array_agg(a.attname)
          from pg_publication_rel r
          join pg_attribute a on a.attrelid = r.prrelid
            and to_jsonb(r) -> 'prattrs' @> to_jsonb(a.attnum)
          where r.prpubid = x.oid and r.prrelid in (select c.oid union select a.relid from pg_partition_ancestors(c.oid) as a(relid))
         ) as list,
         coalesce(to_jsonb(x) ->> 'pubgencols', 's') in ('s', 't', 'true')
           or x.pubname = s.publication and s.with_publication and obj_description(x.oid, 'pg_publication') like 'Made by rowcast setup%'
           as generated
  from chosen c cross join settings s cross join pg_publication x
  where (x.pubupdate or x.pubdelete)
    and (x.puballtables
      or exists (select from pg_publication_rel r where r.prpubid = x.oid
                   and r.prrelid in (select c.oid union select a.relid from pg_partition_ancestors(c.oid) as a(relid)))
      or (x.pubname, c.oid) in (select pubname, oid from listed))
),
judged as (
  select c.*,
         coalesce(
           case when not c.by_index and exists (select from pg_attribute a where a.attrelid = c.oid and a.attgenerated = 'v')
             then 'FULL would contain virtual generated columns, which are never published' end,
           (select format('publication %s lists only some of its columns: have its list cover %s',
                     string_agg(quote_ident(b.pubname), ', ' order by b.pubname),
                     case when c.by_index then array_to_string(array(select quote_ident(n) from unnest(c.indexed) as x(n)), ', ')
                          else 'all, by leaving it out' end)
            from bearing b where b.oid = c.oid and b.list is not null and not (c.by_index and c.indexed <@ b.list)
            having count(*) > 0),
           case when not c.by_index and current_setting('server_version_num')::int >= 180000
                  and exists (select from pg_attribute a where a.attrelid = c.oid and a.attgenerated = 's')
             then (select format('its generated columns are not published: %s',
                            string_agg(format('alter publication %I set (publish_generated_columns = stored)', b.pubname), '; ' order by b.pubname))
                   from bearing b where b.oid = c.oid and not b.generated having count(*) > 0) end
         ) as hindrance
  from chosen c
),
-- The wanted index as it stands: made already, or left behind by a build that was broken off.
planned as (
  select c.*, i.indexrelid as standing, coalesce(i.indisvalid, false) as valid,
         -- Where setup's own index is replaced, what was before that one.
         case when c.made then coalesce(substring(obj_description(c.indexrelid, 'pg_class') from 'before: (.*)$'), 'default')
              else c.before end as original,
         array_to_string(array(select quote_ident(name) from unnest(c.indexed) as x(name)), ', ') as column_list,
         regexp_replace(array_to_string(array(select quote_ident(name) from unnest(c.missing) as x(name)), ', '), '[[:cntrl:]]', '?', 'g') as missing_list,
         case when c.owned then '' else format(E'-- administrator: only the table''s owner %I may do this; without it DELETEs reach nobody whose policies or filters read the columns.\n', regexp_replace(c.owner, '[[:cntrl:]]', '?', 'g')) end as tag,
         regexp_replace(format('%I.%I', c.nspname, c.relname), '[[:cntrl:]]', '?', 'g') as shown
  from judged c
  left join pg_class x on x.relname = c.wanted and x.relnamespace = (select relnamespace from pg_class where oid = c.oid)
  left join pg_index i on i.indexrelid = x.oid and i.indrelid = c.oid
  where c.hindrance is null
),
noted as (
  select p.name, p.oid, p.comment, p.owned,
         coalesce(substring(p.comment from 'identities before: (\{.*\})$')::jsonb, '{}') as before,
         coalesce(p.comment is null or p.comment like 'Made by rowcast setup%'
           or p.comment like 'Not made by rowcast setup, which notes here%', true) as ours
  from publication p
),
statements(place, detail, step, statement) as (
  -- An index is built beside the traffic: that waits for older transactions, and holds up nobody.
  select 1, nspname || '.' || relname, 1, tag || E'-- The build waits for older transactions and holds up nobody: without a limit.\nset lock_timeout = 0;'
  from planned where by_index and owned and (standing is null or not valid)
  union all
  select 1, nspname || '.' || relname, 2, tag || format(E'-- Left behind by a build that was broken off.\ndrop index concurrently %I.%I;', nspname, wanted)
  from planned where by_index and standing is not null and not valid
  union all
  select 1, nspname || '.' || relname, 3, tag || format(
    E'-- Policies or filters read %s, which a DELETE on %s does not carry.\ncreate unique index concurrently %I on %I.%I (%s);',
    missing_list, shown, wanted, nspname, relname, column_list)
  from planned where by_index and (standing is null or not valid)
  union all
  select 1, nspname || '.' || relname, 4, tag || E'-- From here on, nobody waits longer than this for a lock.\nset lock_timeout = ''2s'';'
  from planned where by_index and owned and (standing is null or not valid)
  union all
  select 1, nspname || '.' || relname, 5, tag || format(
    E'-- So that --remove puts back what was.\ncomment on index %I.%I is %L;',
    nspname, wanted, 'Made by rowcast setup. Replica identity before: ' || original)
  from planned
  where by_index and (standing is null or not valid or obj_description(standing, 'pg_class') is null)
  union all
  select 1, nspname || '.' || relname, 6, tag || format(
    E'-- Costs the index''s columns in the log for each DELETE, and for each UPDATE that changes one of them.\nalter table %I.%I replica identity using index %I;',
    nspname, relname, wanted)
  from planned where by_index
  union all
  select 1, nspname || '.' || relname, 7, tag || format(
    E'-- Setup''s own index of before, which the new one replaces.\ndrop index %I.%I;', nspname, index_name)
  from planned where by_index and made and index_name <> wanted
  union all
  select 2, '', 1, format(
    E'%1$s-- So that --remove puts back what was.\ncomment on publication %2$I is %3$L;',
    case when not n.owned then E'-- administrator: only the publication''s owner may note it; without it --remove does not know what was before.\n' else '' end,
    n.name,
    case when n.oid is null or n.comment like 'Made by rowcast setup%' then 'Made by rowcast setup: what can be subscribed to.'
         else 'Not made by rowcast setup, which notes here what it has changed.' end
      || ' Replica identities before: ' || ((select jsonb_object_agg(format('%I.%I', p.nspname, p.relname), p.original)
                        from planned p where not p.by_index and p.owned) || n.before)::text)
  from noted n
  where n.ours and exists (select from planned p where not p.by_index and p.owned and not n.before ? format('%I.%I', p.nspname, p.relname))
  union all
  select 3, p.nspname || '.' || p.relname, 1, case
      when p.tag = '' and not (n.ours and n.owned) then E'-- administrator: setup may not note in the publication''s comment what was before; without this DELETEs reach nobody whose policies or filters read the columns.\n'
      else p.tag end || format(
    E'-- Policies or filters read %1$s, which a DELETE on %5$s does not carry, and an index over key and these\n'
    '-- columns cannot be its identity (%4$s). Costs the whole old row in the log for each UPDATE and DELETE.\n'
    'alter table %2$I.%3$I replica identity full;',
    p.missing_list, p.nspname, p.relname,
    case when p.partitioned then 'partitions have no index in common that is one'
         else 'it takes NOT NULL columns of a small size' end, p.shown)
  from planned p, noted n where not p.by_index
  union all
  select 4, j.nspname || '.' || j.relname, 1, regexp_replace(format(
    '-- refused: %1$I.%2$I keeps its replica identity, so DELETEs on it do not carry %3$s and reach nobody whose policies or filters read that: with the one that carries it UPDATEs and DELETEs would fail (%4$s).',
    j.nspname, j.relname, array_to_string(array(select quote_ident(name) from unnest(j.missing) as x(name)), ', '), j.hindrance),
    '[[:cntrl:]]', '?', 'g')
  from judged j where j.hindrance is not null
  union all
  select 4, f.text, 1, format('-- refused: filter column %s: there is no such column of a published table.', regexp_replace(f.text, '[[:cntrl:]]', '?', 'g'))
  from filters f
  where not exists (select from tables t join pg_attribute a on a.attrelid = t.oid and a.attnum > 0 and not a.attisdropped
                    where t.nspname = f.name[1] and t.relname = f.name[2] and a.attname = f.name[3])
)
select statement from statements order by place, detail, step
\gexec
