-- Everything about the published tables that decides who may see their rows, as one JSON text.
-- It is read as a whole when it changed, and once a second only its md5: two texts that are equal
-- mean the same policies, rights, columns, types and functions. xmin is in it where a row could be
-- changed and changed back between two looks.
--   $1 publication   $2 roles that clients act as
-- search_path must be empty, so that pg_get_expr qualifies every name outside pg_catalog.
with recursive
published as (
    select c.oid,
    -- The columns that the stream carries. The view tells of column lists, which there are from
    -- PostgreSQL 15 on; but 15 lists generated columns as well, which none before 18 carries.
    coalesce((
      select jsonb_agg(a.attname order by a.attnum) from pg_attribute a
      where a.attrelid = c.oid and a.attnum > 0 and not a.attisdropped
        and (listed.names is null or listed.names ? a.attname::text)
        and (a.attgenerated = '' or a.attgenerated = 's' and current_setting('server_version_num')::int >= 180000)),
      '[]') as columns
  from pg_publication_tables p
  join pg_namespace n on n.nspname = p.schemaname
  join pg_class c on c.relnamespace = n.oid and c.relname = p.tablename
  cross join lateral (select to_jsonb(p) -> 'attnames' as names offset 0) listed
  where p.pubname = $1
),
-- A partition published on its own is judged by its ancestors' policies too.
tables as (
  select oid, true as published, columns from published
  union
  select a.relid, false, null
  from published p, pg_partition_ancestors(p.oid) as a(relid)
  where a.relid not in (select oid from published)
),
roles as (
  select r.oid, r.rolname, r.rolsuper or r.rolbypassrls as bypass
  from pg_roles r where r.rolname = any ($2::text[])
),
-- The types of all columns, and what those are made of.
types(oid) as (
  select a.atttypid from tables t join pg_attribute a on a.attrelid = t.oid and a.attnum > 0 and not a.attisdropped
  union
  select part.oid
  from types t
  -- "offset 0" keeps the planner from joining all of pg_type for a handful of rows.
  cross join lateral (select y.* from pg_type y where y.oid = t.oid offset 0) y
  cross join lateral (
    select y.typelem as oid where y.typelem <> 0
    union all select y.typbasetype where y.typbasetype <> 0
    union all select a.atttypid from pg_attribute a
      where y.typrelid <> 0 and a.attrelid = y.typrelid and a.attnum > 0 and not a.attisdropped
  ) part
),
policies as (
  select p.oid, p.xmin as version, p.polname, p.polrelid, p.polpermissive, p.polroles, p.polqual
  from pg_policy p where p.polrelid in (select oid from tables) and p.polcmd in ('r', '*')
),
functions(oid) as (
  select distinct d.refobjid
  from pg_depend d
  where d.classid = 'pg_policy'::regclass and d.refclassid = 'pg_proc'::regclass
    and d.objid in (select oid from policies)
)
select jsonb_build_object(
  'database', (select jsonb_build_object(
    'version', current_setting('server_version_num')::int,
    'deletes', coalesce((select p.pubdelete from pg_publication p where p.pubname = $1), false),
    'collate', (select d.datcollate from pg_database d where d.datname = current_database()),
    -- Absent before PostgreSQL 15, where there was only libc.
    'provider', (select coalesce(to_jsonb(d) ->> 'datlocprovider', 'c')
                 from pg_database d where d.datname = current_database()),
    -- What lower() and upper() go by. ICU and the built-in provider have a locale of their own,
    -- under a name that changed with PostgreSQL 17.
    'ctype', (select coalesce(to_jsonb(d) ->> 'datlocale', to_jsonb(d) ->> 'daticulocale', d.datctype)
              from pg_database d where d.datname = current_database()),
    'settings', coalesce((
      select jsonb_agg(jsonb_build_array(s.setdatabase, s.setrole, s.setconfig) order by s.setdatabase, s.setrole)
      from pg_db_role_setting s
      where s.setdatabase in (0, (select oid from pg_database where datname = current_database()))), '[]'))),
  'roles', coalesce((
    select jsonb_agg(jsonb_build_object(
      'oid', r.oid, 'name', r.rolname, 'bypass', r.bypass,
      -- Whether questions can be asked under this role.
      'settable', pg_has_role(session_user, r.oid,
        case when current_setting('server_version_num')::int >= 160000 then 'set' else 'member' end)
    ) order by r.oid) from roles r), '[]'),
  'tables', coalesce((
    select jsonb_agg(jsonb_build_object(
      'oid', c.oid, 'schema', n.nspname, 'name', c.relname, 'published', t.published, 'published_columns', t.columns,
      -- The transactions that last wrote what is read here of the table: whether one of them is
      -- younger than a row of the stream.
      'written_by', (
        select jsonb_agg(distinct x.xmin::text) from (
          select c.xmin union all
          select p.version from policies p where p.polrelid = c.oid union all
          select a.xmin from pg_attribute a where a.attrelid = c.oid and a.attnum > 0) x(xmin)),
      'row_security', c.relrowsecurity, 'force_row_security', c.relforcerowsecurity,
      'ancestors', coalesce((
        select jsonb_agg(a.relid::oid order by a.relid)
        from pg_partition_ancestors(c.oid) as a(relid) where a.relid <> c.oid), '[]'),
      'columns', coalesce((
        select jsonb_agg(jsonb_build_object(
          'number', a.attnum, 'name', a.attname, 'type', a.atttypid, 'modifier', a.atttypmod,
          'collation', a.attcollation,
          'type_sql', format_type(a.atttypid, a.atttypmod),
          'generated', case when a.attgenerated <> '' then (
            select pg_get_expr(d.adbin, d.adrelid) from pg_attrdef d
            where d.adrelid = a.attrelid and d.adnum = a.attnum) end
        ) order by a.attnum)
        from pg_attribute a where a.attrelid = c.oid and a.attnum > 0 and not a.attisdropped), '[]'),
      'key', coalesce((
        select to_jsonb(i.indkey::int2[]) from pg_index i where i.indrelid = c.oid and i.indisprimary), '[]'),
      -- What old rows carry; null for everything.
      'identity', case c.relreplident when 'f' then null else coalesce((
        select to_jsonb(i.indkey::int2[]) from pg_index i
        where i.indrelid = c.oid
          and case c.relreplident when 'd' then i.indisprimary when 'i' then i.indisreplident end), '[]') end,
      'policies', coalesce((
        select jsonb_agg(jsonb_build_object(
          'name', p.polname, 'permissive', p.polpermissive, 'roles', p.polroles,
          'using', pg_get_expr(p.polqual, p.polrelid), 'tree', p.polqual::text,
          'version', p.version::text,
          'depends', coalesce((
            select jsonb_agg(jsonb_build_array(d.refclassid::oid, d.refobjid, d.refobjsubid)
              order by d.refclassid, d.refobjid, d.refobjsubid)
            from (select distinct d.refclassid, d.refobjid, d.refobjsubid from pg_depend d
                  where d.classid = 'pg_policy'::regclass and d.objid = p.oid) d), '[]')
        ) order by p.polname)
        from policies p where p.polrelid = c.oid), '[]'),
      'rights', coalesce((
        select jsonb_agg(jsonb_build_object(
          'role', r.rolname,
          'usage', has_schema_privilege(r.oid, n.oid, 'usage'),
          'columns', coalesce((
            select jsonb_agg(a.attnum order by a.attnum) from pg_attribute a
            where a.attrelid = c.oid and a.attnum > 0 and not a.attisdropped
              and has_column_privilege(r.oid, c.oid, a.attnum, 'select')), '[]'),
          'owner', pg_has_role(r.oid, c.relowner, 'usage'),
          'policies', coalesce((
            select jsonb_agg(p.polname order by p.polname) from policies p
            where p.polrelid = c.oid and exists (
              select 1 from unnest(p.polroles) as member(oid)
              where member.oid = 0 or pg_has_role(r.oid, member.oid, 'usage'))), '[]'))
          order by r.oid)
        from roles r), '[]')
    ) order by c.oid)
    from tables t
    join pg_class c on c.oid = t.oid
    join pg_namespace n on n.oid = c.relnamespace), '[]'),
  'functions', coalesce((
    select jsonb_agg(jsonb_build_object(
      'oid', f.oid, 'schema', n.nspname, 'name', p.proname, 'language', l.lanname,
      'source', p.prosrc, 'body', p.prosqlbody::text, 'kind', p.prokind, 'set', p.proretset,
      'strict', p.proisstrict, 'definer', p.prosecdef, 'config', p.proconfig,
      'arguments', p.proargtypes::oid[], 'returns', p.prorettype,
      'signature', pg_get_function_arguments(f.oid), 'result', pg_get_function_result(f.oid),
      'version', p.xmin::text, 'owner', p.proowner,
      'execute', coalesce((
        select jsonb_agg(r.rolname order by r.oid) from roles r
        where has_function_privilege(r.oid, f.oid, 'execute')), '[]')
    ) order by f.oid)
    from functions f
    join pg_proc p on p.oid = f.oid
    join pg_namespace n on n.oid = p.pronamespace
    join pg_language l on l.oid = p.prolang), '[]'),
  'types', coalesce((
    select jsonb_agg(jsonb_build_object(
      'oid', y.oid, 'schema', n.nspname, 'name', y.typname, 'kind', y.typtype, 'category', y.typcategory,
      'element', case when y.typcategory = 'A' and y.typelem <> 0 then y.typelem else 0 end,
      'delimiter', y.typdelim, 'base', y.typbasetype, 'collation', y.typcollation,
      'labels', (select jsonb_agg(jsonb_build_array(e.oid, e.enumlabel, e.enumsortorder) order by e.enumsortorder)
                 from pg_enum e where e.enumtypid = y.oid),
      'attributes', (select jsonb_agg(jsonb_build_array(a.attname, a.atttypid) order by a.attnum)
                     from pg_attribute a where y.typrelid <> 0 and y.typtype = 'c' and a.attrelid = y.typrelid
                       and a.attnum > 0 and not a.attisdropped)
    ) order by y.oid)
    from (select distinct oid from types) t
    join pg_type y on y.oid = t.oid
    join pg_namespace n on n.oid = y.typnamespace), '[]'),
  -- Casts that somebody made from text: what is asked casts text outputs back to their types.
  'casts', coalesce((
    select jsonb_agg(k.casttarget order by k.casttarget) from pg_cast k
    where k.castsource = 'text'::regtype and k.castmethod = 'f' and k.oid >= 16384), '[]'),
  'collations', coalesce((
    -- Where equality is not equality of bytes.
    select jsonb_agg(k.oid order by k.oid) from pg_collation k where not k.collisdeterministic), '[]')
)::text
