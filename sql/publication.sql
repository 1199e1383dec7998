-- The tables that can be subscribed to, listed one by one: never FOR ALL TABLES, so that a new table
-- is not shown to anybody before somebody has thought about its policies.
--
-- This file changes nothing by itself. Its query writes the statements that are missing in this
-- database, each with its reason, and `\gexec` has psql run them (`psql -e` shows them). To only
-- read them, put a semicolon where \gexec stands; `rowcast setup --print --only publication` prints the same.
--
--   psql -c "set rowcast.tables = 'app.todos, app.\"Messages\"'" -f sql/publication.sql
--
--   rowcast.publication   the publication                                     rowcast
--   rowcast.tables        tables, as SQL names with their schema
--   rowcast.schemas       schemas, as SQL names: the tables that fit, as of now
--   rowcast.without_rls   on: also tables without row-level security          off
--
-- A line "-- refused:" names a table that is left out, and why. "-- administrator:" before a
-- statement says that the login that runs this may not, and what is lost without it.
with settings as (
  select coalesce(nullif(current_setting('rowcast.publication', true), ''), 'rowcast') as publication,
         coalesce(current_setting('rowcast.tables', true), '') as tables,
         coalesce(current_setting('rowcast.schemas', true), '') as schemas,
         coalesce(current_setting('rowcast.without_rls', true), '') = 'on' as without_rls,
         coalesce(current_setting('rowcast.example', true), '') <> '' as example
),
publication as (
  select p.oid, s.publication as name, p.oid is not null as exists, coalesce(p.puballtables, false) as everything,
         coalesce(p.pubviaroot, true) as via_root,
         -- Since PostgreSQL 18 a publication says whether it shows generated columns, and UPDATE and
         -- DELETE fail on its tables that have such and the replica identity FULL if it does not.
         current_setting('server_version_num')::int >= 180000 as since_18,
         coalesce(to_jsonb(p) ->> 'pubgencols', 's') = 's' as generated,
         p.oid is null or coalesce(obj_description(p.oid, 'pg_publication') like 'Made by rowcast setup%', false) as made,
         case when p.oid is null then has_database_privilege(current_database(), 'create')
              else pg_has_role(current_user, p.pubowner, 'usage') end as owned,
         case when p.oid is null then true else p.pubinsert and p.pubupdate and p.pubdelete and p.pubtruncate end as complete
  from settings s left join pg_publication p on p.pubname = s.publication
),
-- What is in it, by whatever way. Asked once: the view computes all of it each time.
listed as materialized (
  select c.oid
  from publication p
  join pg_publication_tables x on x.pubname = p.name
  join pg_namespace n on n.nspname = x.schemaname
  join pg_class c on c.relnamespace = n.oid and c.relname = x.tablename
),
given as (
  select btrim(part[1]) as text, parse_ident(btrim(part[1])) as name
  from settings s, regexp_matches(s.tables, '((?:"(?:[^"]|"")*"|[^",])+)', 'g') as given(part)
),
schemas as (
  select btrim(part[1]) as text, n.oid
  from settings s, regexp_matches(s.schemas, '((?:"(?:[^"]|"")*"|[^",])+)', 'g') as given(part)
  left join pg_namespace n on n.nspname = (parse_ident(btrim(part[1])))[1]
),
candidates as (
  select g.text, c.oid, true as named
  from given g
  left join pg_namespace n on n.nspname = g.name[1] and array_length(g.name, 1) = 2
  left join pg_class c on c.relnamespace = n.oid and c.relname = g.name[2]
  union
  -- A partition comes with its root.
  select format('%I.%I', n.nspname, c.relname), c.oid, false
  from schemas s
  join pg_namespace n on n.oid = s.oid
  join pg_class c on c.relnamespace = n.oid
  where c.relkind in ('r', 'p') and not c.relispartition
    and not exists (select from given g where g.name = array[n.nspname::text, c.relname::text])
),
-- The tables that rows are in: the table itself, or its partitions. PostgreSQL refuses UPDATE and
-- DELETE on one that is published and has no replica identity; a deferrable primary key is none.
leaves as (
  select t.oid as root, l.oid, l.relnamespace, l.relname,
         case l.relreplident
           when 'f' then true
           when 'n' then false
           else exists (
             select from pg_index i
             where i.indrelid = l.oid and i.indisvalid and i.indisunique and i.indimmediate and i.indpred is null
               and case l.relreplident when 'd' then i.indisprimary else i.indisreplident end) end as identified,
         l.relreplident = 'f' and exists (select from pg_attribute a where a.attrelid = l.oid and a.attgenerated = 'v') as virtual,
         l.relreplident = 'f' and exists (select from pg_attribute a where a.attrelid = l.oid and a.attgenerated = 's') as stored
  from (select oid from candidates union select oid from listed) t
  join pg_class r on r.oid = t.oid
  cross join lateral (
    select r.oid where r.relkind = 'r'
    union all select x.relid from pg_partition_tree(r.oid) x where x.isleaf and r.relkind = 'p') leaf(oid)
  join pg_class l on l.oid = leaf.oid
),
checked as (
  select t.*, c.relkind, n.nspname, c.relname, o.rolname as owner,
         pg_has_role(current_user, c.relowner, 'usage') as owned,
         exists (select from publication p
                 where exists (select from pg_publication_rel r where r.prpubid = p.oid and r.prrelid = c.oid)
                    or c.oid in (select oid from listed)) as published,
         case
           when c.oid is null and t.text !~ '\.' then
             format('write the schema with it, such as public.%s', t.text)
           when c.oid is null then
             'there is no such table (names are SQL''s: one that is not all lower case goes in double quotes)'
           when c.relkind in ('v', 'm') then 'a view has no changes of its own: name the tables that it reads'
           when c.relkind = 'f' then 'a foreign table''s changes are in another server''s log'
           when c.relkind not in ('r', 'p') then 'it is no table'
           when n.nspname in ('pg_catalog', 'information_schema') or n.nspname like 'pg\_toast%' then
             'PostgreSQL''s own tables cannot be published'
           when c.relpersistence = 'u' then
             format('an unlogged table leaves no changes in the log: alter table %I.%I set logged', n.nspname, c.relname)
           when c.relpersistence = 't' then 'a temporary table is its own session''s business'
           when not c.relrowsecurity and not s.without_rls then
             format('it has no row-level security, so everybody who may SELECT from it would hear of every row: '
                    'alter table %I.%I enable row level security, with policies; or allow it with --without-rls',
                    n.nspname, c.relname)
           when exists (select from leaves l where l.root = c.oid and not l.identified) then (
             select format('its UPDATEs and DELETEs would fail, because %s no replica identity (%s): '
                           'give it a primary key that is not deferrable, or run: %s',
               case when count(*) = 1 and bool_and(l.oid = c.oid) then 'it has' else 'partitions have' end,
               string_agg(format('%I.%I', m.nspname, l.relname), ', ' order by m.nspname, l.relname),
               string_agg(format('alter table %I.%I replica identity full', m.nspname, l.relname), '; ' order by m.nspname, l.relname))
             from leaves l join pg_namespace m on m.oid = l.relnamespace
             where l.root = c.oid and not l.identified)
           when exists (select from leaves l where l.root = c.oid and l.virtual) then
             'its UPDATEs and DELETEs would fail, because its replica identity is FULL and virtual generated columns are never published: '
             'give it a primary key and replica identity default, or have the columns stored'
           when exists (select from leaves l, publication p where l.root = c.oid and l.stored and p.since_18 and not p.generated and not p.made) then (
             select format('its UPDATEs and DELETEs would fail, because its replica identity is FULL and the publication leaves out generated columns: '
                           'alter publication %I set (publish_generated_columns = stored)', p.name) from publication p)
         end as refusal
  from candidates t
  cross join settings s
  left join pg_class c on c.oid = t.oid
  left join pg_namespace n on n.oid = c.relnamespace
  left join pg_roles o on o.oid = c.relowner
),
statements(place, detail, statement) as (
  select 1, '', format(
    E'%1$s-- What the relay follows. Partitions are published as their root: its policies are the ones that a\n'
    '-- query would be held to.\n'
    '%4$screate publication %2$I with (publish_via_partition_root = true%5$s);\n'
    'comment on publication %2$I is %3$L;',
    case when not has_database_privilege(current_database(), 'create')
         then format(E'-- administrator: only a role with CREATE on the database may make it (grant create on database %I to %I); without it there is nothing to follow.\n', current_database(), current_user)
         else '' end,
    p.name, 'Made by rowcast setup: what can be subscribed to.',
    case when p.since_18 then E'-- Without generated columns UPDATEs of tables that have such and the replica identity FULL would fail.\n' else '' end,
    case when p.since_18 then ', publish_generated_columns = stored' else '' end)
  from publication p
  where not p.exists and exists (select from checked where refusal is null)
  union all
  select 1, 'generated', format(
    E'%s-- Without generated columns UPDATEs of tables that have such and the replica identity FULL would fail.\n'
    'alter publication %I set (publish_generated_columns = stored);',
    case when p.owned then '' else E'-- administrator: only the publication''s owner may change it; without it UPDATEs of tables with generated columns and the replica identity FULL fail.\n' end,
    p.name)
  from publication p
  where p.exists and p.made and p.since_18 and not p.generated
  union all
  select 1, 'generated', format(
    E'-- administrator: the publication was there before setup, which does not change it; until this is done UPDATE and DELETE fail on %s.\n'
    'alter publication %I set (publish_generated_columns = stored);',
    regexp_replace(string_agg(distinct format('%I.%I', n.nspname, l.relname), ', '), '[[:cntrl:]]', '?', 'g'), p.name)
  from publication p
  cross join leaves l
  join pg_namespace n on n.oid = l.relnamespace
  where p.exists and not p.made and p.since_18 and not p.generated and l.stored
    and l.root in (select oid from listed)
  group by p.name
  union all
  select 2, c.text, format(
    E'%s-- %s\nalter publication %I add table only %I.%I;',
    case
      when not p.made then E'-- administrator: the publication was there before setup, which does not change it; without this the table cannot be subscribed to.\n'
      when not c.owned then format(E'-- administrator: only the table''s owner %I may add it; without this it cannot be subscribed to.\n', regexp_replace(c.owner, '[[:cntrl:]]', '?', 'g'))
      when not p.owned then E'-- administrator: only the publication''s owner may add to it; without this the table cannot be subscribed to.\n'
      else '' end,
    case when k.relrowsecurity then 'Its policies decide who sees which row.'
         else 'Without row-level security: every role that may SELECT from it sees every row.' end,
    p.name, c.nspname, c.relname)
  from checked c cross join publication p join pg_class k on k.oid = c.oid
  where c.refusal is null and not c.published and not p.everything
  union all
  select 3, c.text, format('-- %s: %s is not published: %s.', case when c.named then 'refused' else 'note' end,
      regexp_replace(c.text, '[[:cntrl:]]', '?', 'g'), regexp_replace(c.refusal, '[[:cntrl:]]', '?', 'g'))
  from checked c where c.refusal is not null and not c.published
  union all
  select 3, s.text, format('-- refused: there is no schema %s.', regexp_replace(s.text, '[[:cntrl:]]', '?', 'g')) from schemas s where s.oid is null
  union all
  -- Published already, by whomever.
  select 4, n.nspname || '.' || l.relname, format(
    E'-- administrator: the published table %3$s has no replica identity: UPDATE and DELETE on it fail until one is there.\n'
    'alter table %1$I.%2$I replica identity full;',
    n.nspname, l.relname, regexp_replace(format('%I.%I', n.nspname, l.relname), '[[:cntrl:]]', '?', 'g'))
  from leaves l join pg_namespace n on n.oid = l.relnamespace
  where not l.identified
    and l.root in (select oid from listed)
  union all
  select 5, '', format('-- note: publication %I is FOR ALL TABLES: every table, also the next one, can be subscribed to, and what has no replica identity refuses UPDATE and DELETE. A list of tables is safer.', p.name)
  from publication p where p.everything
  union all
  select 5, 'supabase', '-- note: the relay follows supabase_realtime only as long as there is no publication rowcast, and then no longer: --publication supabase_realtime stays with it; or name its tables here as well.'
  from publication p
  where not p.exists and p.name = 'rowcast' and exists (select from checked where refusal is null)
    and exists (select from pg_publication where pubname = 'supabase_realtime')
  union all
  select 5, 'partitions', format('-- note: publication %I does not publish partitions as their root; a partition''s rows then have to pass its own policies and those of its root.', p.name)
  from publication p where p.exists and not p.via_root
  union all
  select 5, 'operations', format('-- note: publication %I leaves out some of insert, update, delete and truncate; clients do not hear of those.', p.name)
  from publication p where p.exists and not p.complete
  union all
  -- Columns of PostgreSQL 15, hence by way of JSON.
  select 6, c.relname, regexp_replace(format('-- note: publication %I shows only some %s of %I.%I: clients and policies do not see the others.',
    p.name,
    concat_ws(' and ', case when to_jsonb(r) ->> 'prqual' is not null then 'rows' end,
                       case when to_jsonb(r) ->> 'prattrs' is not null then 'columns' end),
    n.nspname, c.relname), '[[:cntrl:]]', '?', 'g')
  from publication p
  join pg_publication_rel r on r.prpubid = p.oid
  join pg_class c on c.oid = r.prrelid
  join pg_namespace n on n.oid = c.relnamespace
  where to_jsonb(r) ->> 'prqual' is not null or to_jsonb(r) ->> 'prattrs' is not null
  union all
  select 7, '', regexp_replace(format('-- note: no table is named, so none is published. %s', coalesce(
    'With row-level security and a replica identity, and so fit: ' || string_agg(format('--table %L', format('%I.%I', n.nspname, c.relname)), ' ' order by n.nspname, c.relname)
        filter (where c.oid is not null),
    'None has row-level security and a replica identity; see "Who sees what" in the README.')), '[[:cntrl:]]', '?', 'g')
  from publication p cross join settings s
  left join (pg_class c join pg_namespace n on n.oid = c.relnamespace)
    on c.relkind in ('r', 'p') and not c.relispartition and c.relpersistence = 'p' and c.relrowsecurity
       and n.nspname not in ('pg_catalog', 'information_schema')
       and (c.relkind = 'p' or c.relreplident = 'f' or exists (select from pg_index i where i.indrelid = c.oid
         and i.indisvalid and i.indimmediate and case c.relreplident when 'd' then i.indisprimary when 'i' then i.indisreplident end))
  where not s.example
    and not exists (select from candidates) and not exists (select from schemas)
    and not exists (select from listed)
  having count(p.name) > 0
)
select statement from statements order by place, detail
\gexec
