-- Everything about the published tables that decides who may see their rows, as one JSON text.
-- It is read as a whole when it changed, and once a second only its md5: two texts that are equal
-- mean the same policies, rights, columns, types and functions. xmin is in it where a row could be
-- changed and changed back between two looks.
--   $1 publication   $2 roles that clients act as
--   $3 functions that bodies of policies' functions call, and so on   $4 tables that those look into
-- and, as a setting of the session that need not be there:
--   rowcast.explained    tables to be described as if they were published
-- search_path must be empty, so that pg_get_expr qualifies every name outside pg_catalog.
with recursive
published as (
    select c.oid,
    -- Without generated columns, which old streams do not carry.
    -- The view tells them from PostgreSQL 15 on.
    to_jsonb(p) -> 'attnames' as columns
  from pg_publication_tables p
  join pg_namespace n on n.nspname = p.schemaname
  join pg_class c on c.relnamespace = n.oid and c.relname = p.tablename
  where p.pubname = $1
  union all
  select e.oid, null
  from unnest(nullif(current_setting('rowcast.explained', true), '')::oid[]) as e(oid)
  where not exists (
    select from pg_publication_tables p
    join pg_namespace n on n.nspname = p.schemaname
    join pg_class c on c.relnamespace = n.oid and c.relname = p.tablename
    where p.pubname = $1 and c.oid = e.oid)
),
-- A partition published on its own is judged by its ancestors' policies too.
judged as (
  select oid, true as published, columns from published
  union
  select a.relid, false, null
  from published p, pg_partition_ancestors(p.oid) as a(relid)
  where a.relid not in (select oid from published)
),
-- What policies of those look into, policies of these, what views among them read, and so on.
lookups(oid) as (
  select d.refobjid from judged t
  join pg_policy p on p.polrelid = t.oid and p.polcmd in ('r', '*')
  join pg_depend d on d.classid = 'pg_policy'::regclass and d.objid = p.oid
    and d.refclassid = 'pg_class'::regclass and d.refobjid <> t.oid
  union
  select c.oid from pg_class c where c.oid = any ($4::oid[])
  union
  select d.refobjid from lookups l
  cross join lateral (
    select 'pg_policy'::regclass as of, p.oid from pg_policy p
    where p.polrelid = l.oid and p.polcmd in ('r', '*')
    union all
    select 'pg_rewrite'::regclass, w.oid from pg_rewrite w
    join pg_class c on c.oid = w.ev_class and c.relkind = 'v'
    where w.ev_class = l.oid) p
  join pg_depend d on d.classid = p.of and d.objid = p.oid
    and d.refclassid = 'pg_class'::regclass and d.refobjid <> l.oid
),
tables as (
  select oid, published, columns from judged
  union all
  select l.oid, false, null from lookups l where l.oid not in (select oid from judged)
),
-- The partitions that hold the rows of a published root. Not by pg_partition_tree: it locks them
-- all, and somebody who alters root and partitions at that moment would meet a deadlock.
tree(root, oid) as (
  select t.oid, t.oid from tables t
  join pg_class c on c.oid = t.oid and c.relkind = 'p'
  where t.published or t.oid in (select oid from lookups)
  union all
  select tree.root, i.inhrelid from tree
  join pg_inherits i on i.inhparent = tree.oid and not i.inhdetachpending
),
leaves as (
  select tree.root, l.oid, l.xmin as version, l.relreplident, l.relfilenode
  from tree join pg_class l on l.oid = tree.oid and l.relkind <> 'p'
),
roles as (
  select r.oid, r.rolname, r.rolsuper or r.rolbypassrls as bypass
  from pg_roles r
  where r.rolname = any ($2::text[])
    -- Bodies of SECURITY DEFINER functions run as their owners.
    or r.oid in (select p.proowner from functions f join pg_proc p on p.oid = f.oid where p.prosecdef)
    -- What a view reads it reads with its owner's rights.
    or r.oid in (select c.relowner from tables t join pg_class c on c.oid = t.oid where c.relkind = 'v')
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
    union all select y.typarray where y.typtype = 'e' and y.typarray <> 0
    union all select y.typbasetype where y.typbasetype <> 0
    union all select a.atttypid from pg_attribute a
      where y.typrelid <> 0 and a.attrelid = y.typrelid and a.attnum > 0 and not a.attisdropped
  ) part
),
-- Looked up table by table with pg_policy's index: as a list of its own it would be read through for
-- each table again, which takes ten seconds for 2,500 of them.
policies as not materialized (
  select p.oid, p.xmin as version, p.polname, p.polrelid, p.polpermissive, p.polroles, p.polqual, p.polwithcheck
  from pg_policy p where p.polcmd in ('r', '*')
),
functions(oid) as (
  select d.refobjid
  from pg_depend d
  where d.classid = 'pg_policy'::regclass and d.refclassid = 'pg_proc'::regclass
    and d.objid in (select p.oid from policies p where p.polrelid in (select oid from tables))
  union
  select d.refobjid
  from lookups l
  join pg_class c on c.oid = l.oid and c.relkind = 'v'
  join pg_rewrite w on w.ev_class = l.oid
  join pg_depend d on d.classid = 'pg_rewrite'::regclass and d.objid = w.oid
    and d.refclassid = 'pg_proc'::regclass
  union
  select p.oid from pg_proc p where p.oid = any ($3::oid[])
),
-- Whose members the roles are, at last.
acting(oid) as (
  select oid from roles
  union
  select m.roleid from acting join pg_auth_members m on m.member = acting.oid
)
select jsonb_build_object(
  -- Sums of the places and writers of what counts for many tables: what was changed and changed back between two
  -- looks says the same, and was written.
  'elsewhere', jsonb_build_object(
    'memberships', (select coalesce(jsonb_object_agg(a.rolname, (
        select sum(hash_record_extended(row(m.ctid, m.xmin), 0))::text from pg_auth_members m where m.member = a.oid)), '{}')
      from pg_roles a where a.oid in (select oid from acting)),
    'labels', (select coalesce(jsonb_object_agg(l.enumtypid, l.sum), '{}') from (
      select e.enumtypid, sum(hash_record_extended(row(e.ctid, e.xmin), 0))::text
      from pg_enum e where e.enumtypid in (select oid from types) group by 1) l),
    'schemas', (select coalesce(jsonb_object_agg(n.nspname, hash_record_extended(row(n.ctid, n.xmin), 0)::text), '{}')
      from pg_namespace n where n.oid in (
        select c.relnamespace from tables t join pg_class c on c.oid = t.oid
        union all
        select p.pronamespace from functions f join pg_proc p on p.oid = f.oid)),
    'views', (select coalesce(jsonb_object_agg(v.ev_class, v.sum), '{}') from (
      select w.ev_class, sum(hash_record_extended(row(w.ctid, w.xmin), 0))::text
      from pg_rewrite w where w.ev_class in (select oid from tables) group by 1) v),
    'settings', (select coalesce(jsonb_object_agg(s.setdatabase || '/' || s.setrole,
        hash_record_extended(row(s.ctid, s.xmin), 0)::text), '{}')
      from pg_db_role_setting s
      where s.setdatabase in (0, (select oid from pg_database where datname = current_database()))
        and s.setrole in (0, (select oid from pg_roles where rolname = session_user)))),
  'database', (select jsonb_build_object(
    'version', current_setting('server_version_num')::int,
    'oid', (select d.oid from pg_database d where d.datname = current_database()),
    'login', (select r.oid from pg_roles r where r.rolname = session_user),
    -- What a session begins with.
    'search_path', (select s.reset_val from pg_settings s where s.name = 'search_path'),
    'deletes', coalesce((select p.pubdelete from pg_publication p where p.pubname = $1), false),
    'encoding', (select pg_encoding_to_char(d.encoding) from pg_database d where d.datname = current_database()),
    'collate', (select d.datcollate from pg_database d where d.datname = current_database()),
    -- Absent before PostgreSQL 15, where there was only libc.
    'provider', (select coalesce(to_jsonb(d) ->> 'datlocprovider', 'c')
                 from pg_database d where d.datname = current_database()),
    -- What lower() and upper() go by. ICU and the built-in provider have a locale of their own,
    -- under a name that changed with PostgreSQL 17.
    'ctype', (select coalesce(to_jsonb(d) ->> 'datlocale', to_jsonb(d) ->> 'daticulocale', d.datctype)
              from pg_database d where d.datname = current_database()),
    -- What policies and functions may ask current_setting about, as far as it is not set here: not by
    -- the server, nor for the login.
    'unset', coalesce((
      select jsonb_agg(distinct lower(q.name[1]) order by lower(q.name[1]))
      from (
        select pg_get_expr(p.polqual, p.polrelid) as text
        from policies p
        where p.polrelid in (select oid from tables) and p.polqual::text ~ ':funcid (2077|3294) '
        union all
        select p.prosrc from functions f join pg_proc p on p.oid = f.oid
        where p.prosrc like '%current_setting%') s
      cross join regexp_matches(s.text, $$'([A-Za-z_]\w*(?:\.\w+)+)'$$, 'g') as q(name)
      where current_setting(q.name[1], true) is null), '[]'),
    'settings', coalesce((
      select jsonb_agg(jsonb_build_array(s.setdatabase, s.setrole, s.setconfig) order by s.setdatabase, s.setrole)
      from pg_db_role_setting s
      where s.setdatabase in (0, (select oid from pg_database where datname = current_database()))), '[]'))),
  'roles', coalesce((
    select jsonb_agg(jsonb_build_object(
      'oid', r.oid, 'name', r.rolname, 'bypass', r.bypass,
      -- Whether questions can be asked under this role.
      'settable', pg_has_role(session_user, r.oid,
        case when current_setting('server_version_num')::int >= 160000 then 'set' else 'member' end),
      -- What pg_has_role says of it, of the roles that policies and functions may ask that about.
      'memberships', coalesce((
        select jsonb_agg(jsonb_build_array(m.rolname, pg_has_role(r.oid, m.oid, 'usage'),
          pg_has_role(r.oid, m.oid, 'member')) order by m.oid)
        from pg_roles m
        where m.rolname in (
          select q.name[1]
          from (
            select pg_get_expr(p.polqual, p.polrelid) as text
            from policies p
            where p.polrelid in (select oid from tables) and p.polqual::text ~ ':funcid (270[5-9]|2710) '
            union all
            select p.prosrc from functions f join pg_proc p on p.oid = f.oid
            where p.prosrc ilike '%pg_has_role%') s
          cross join regexp_matches(s.text, $$'([^']+)'$$, 'g') as q(name))), '[]')
    ) order by r.oid) from roles r), '[]'),
  'schemas', coalesce((
    select jsonb_object_agg(n.nspname, jsonb_build_object(
      'usable', has_schema_privilege(n.oid, 'usage'),
      'usage', coalesce((
        select jsonb_agg(r.rolname order by r.oid) from roles r
        where has_schema_privilege(r.oid, n.oid, 'usage')), '[]')) order by n.nspname)
    from pg_namespace n
    where exists (select from functions) and n.nspname not like 'pg\_temp\_%' and n.nspname not like 'pg\_toast%'), '{}'),
  'tables', coalesce((
    select jsonb_agg(jsonb_build_object(
      'oid', c.oid, 'schema', n.nspname, 'name', c.relname, 'published', t.published, 'published_columns', t.columns,
      -- How it is published: what no longer was, and is again, may have changed without a word.
      'publishing', (
        select jsonb_build_object(
          'operations', jsonb_build_array(p.pubinsert, p.pubupdate, p.pubdelete),
          'publication', p.oid,
          'said', to_jsonb(p)::text, 'version', p.xmin::text,
          'entries', coalesce((
            select string_agg(to_jsonb(r)::text, ' ' order by r.oid) from pg_publication_rel r
            where r.prpubid = p.oid
              and (r.prrelid = c.oid or r.prrelid in (select a.relid from pg_partition_ancestors(c.oid) as a(relid)))), ''))
        from pg_publication p where p.pubname = $1 and t.published),
      -- The transactions that last wrote what is read here of the table: whether one of them is
      -- younger than a row of the stream.
      'written_by', (
        select jsonb_agg(distinct x.xmin::text) from (
          select c.xmin union all
          select p.version from policies p where p.polrelid = c.oid union all
          select l.version from leaves l where l.root = c.oid union all
          select a.xmin from pg_attribute a where a.attrelid = c.oid and a.attnum > 0) x(xmin)),
      'version', c.xmin::text,
      'policy_versions', coalesce((
        select jsonb_agg(jsonb_build_array(p.polname, p.version::text) order by p.polname)
        from policies p where p.polrelid = c.oid), '[]'),
      'row_security', c.relrowsecurity, 'force_row_security', c.relforcerowsecurity,
      -- Whether policies look into it, and why its rows cannot all be followed in the stream.
      'lookup', c.oid in (select oid from lookups),
      'unfollowed', case
        when c.relkind = 'm' then 'is a materialized view'
        when c.relkind = 'f' then 'is a foreign table'
        when c.relkind not in ('r', 'p', 'v') then 'is not a table'
        when c.relpersistence = 'u' then 'is unlogged'
        when c.relpersistence = 't' then 'is temporary'
        when c.relispartition then 'is a partition'
        when c.relkind = 'r' and exists (select from pg_inherits i where i.inhparent = c.oid)
          then 'has tables that inherit from it'
        when exists (
          select from leaves l join pg_class leaf on leaf.oid = l.oid
          where l.root = c.oid and (leaf.relkind <> 'r' or leaf.relpersistence <> 'p'))
          then 'has a partition that is foreign or unlogged' end,
      -- What a view shows, and with whose rights.
      'view', case when c.relkind = 'v' then (
        select jsonb_build_object('tree', w.ev_action::text, 'owner', c.relowner, 'invoker', coalesce((
          select o.option_value::boolean from pg_options_to_table(c.reloptions) o
          where o.option_name = 'security_invoker'), false))
        from pg_rewrite w where w.ev_class = c.oid and w.rulename = '_RETURN') end,
      'ancestors', coalesce((
        select jsonb_agg(a.relid::oid order by a.relid)
        from pg_partition_ancestors(c.oid) as a(relid) where a.relid <> c.oid), '[]'),
      'columns', coalesce((
        select jsonb_agg(jsonb_build_object(
          'number', a.attnum, 'name', a.attname, 'type', a.atttypid, 'modifier', a.atttypmod,
          'collation', a.attcollation,
          'type_sql', format_type(a.atttypid, a.atttypmod),
          -- A value that is put in the column's place has to be told its collation.
          'collation_sql', case when a.attcollation not in (0, 100) then (
            select quote_ident(kn.nspname) || '.' || quote_ident(k.collname)
            from pg_collation k join pg_namespace kn on kn.oid = k.collnamespace
            where k.oid = a.attcollation) end,
          'generated', case when a.attgenerated <> '' then (
            select pg_get_expr(d.adbin, d.adrelid) from pg_attrdef d
            where d.adrelid = a.attrelid and d.adnum = a.attnum) end,
          -- What that is computed from. Until PostgreSQL 14 the column itself depends on it, then
          -- its expression does.
          'computed_from', case when a.attgenerated <> '' then coalesce((
            select jsonb_agg(distinct k.refobjsubid)
            from pg_depend k
            left join pg_attrdef d on k.classid = 'pg_attrdef'::regclass and d.oid = k.objid
            where k.refclassid = 'pg_class'::regclass and k.refobjid = a.attrelid
              and k.refobjsubid > 0 and k.refobjsubid <> a.attnum
              and (d.adrelid = a.attrelid and d.adnum = a.attnum
                or k.classid = 'pg_class'::regclass and k.objid = a.attrelid
                  and k.objsubid = a.attnum)), '[]') end
        ) order by a.attnum)
        from pg_attribute a where a.attrelid = c.oid and a.attnum > 0 and not a.attisdropped), '[]'),
      'key', coalesce((
        select to_jsonb(i.indkey::int2[]) from pg_index i where i.indrelid = c.oid and i.indisprimary), '[]'),
      -- What old rows carry; null for everything. Those of a partitioned table carry what their
      -- partition's own identity names, whatever the root's says: what all of them carry counts.
      'identity', case
        when exists (select from leaves l where l.root = c.oid) then (
          select case when not bool_and(l.relreplident = 'f') then (
            select coalesce(jsonb_agg(a.attnum order by a.attnum), '[]')
            from pg_attribute a
            where a.attrelid = c.oid and a.attnum > 0 and not a.attisdropped
              and not exists (
                select from leaves l
                where l.root = c.oid and l.relreplident <> 'f' and not exists (
                  select from pg_index i
                  join pg_attribute b on b.attrelid = i.indrelid and b.attnum = any (i.indkey::int2[])
                  where i.indrelid = l.oid and b.attname = a.attname
                    and case l.relreplident when 'd' then i.indisprimary when 'i' then i.indisreplident end))) end
          from leaves l where l.root = c.oid)
        when c.relreplident = 'f' then null
        else coalesce((
          select to_jsonb(i.indkey::int2[]) from pg_index i
          where i.indrelid = c.oid
            and case c.relreplident when 'd' then i.indisprimary when 'i' then i.indisreplident end), '[]') end,
      -- By number and file: a new file means that the partition was emptied or rewritten, by the
      -- transaction behind it.
      'leaves', case when c.relkind = 'p' and t.published then coalesce((
        select jsonb_agg(jsonb_build_array(l.oid, l.relfilenode, l.version::text) order by l.oid)
        from leaves l where l.root = c.oid), '[]') end,
      -- In another file and with another row of a column: that column's values may be others.
      'file', case when c.relkind = 'r' then c.relfilenode end,
      'column_versions', (
        select jsonb_agg(jsonb_build_array(a.attname, a.xmin::text) order by a.attnum)
        from pg_attribute a where a.attrelid = c.oid and a.attnum > 0 and not a.attisdropped),
      'policies', coalesce((
        select jsonb_agg(jsonb_build_object(
          'name', p.polname, 'permissive', p.polpermissive, 'roles', p.polroles,
          'using', pg_get_expr(p.polqual, p.polrelid), 'tree', p.polqual::text,
          'version', p.version::text, 'checks', p.polwithcheck is not null,
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
      'row', (select jsonb_build_object('of', y.typrelid, 'columns',
                coalesce(jsonb_agg(jsonb_build_array(a.attnum, a.atttypid) order by a.attnum)
                         filter (where a.attnum > 0 and not a.attisdropped), '[]'))
              from pg_type y join pg_attribute a on a.attrelid = y.typrelid
              where y.oid = p.prorettype and y.typrelid <> 0
              group by y.typrelid),
      'argument_names', p.proargnames[:p.pronargs],
      'argument_types', coalesce((
        select jsonb_agg(format_type(a.type, null) order by a.at)
        from unnest(p.proargtypes::oid[]) with ordinality as a(type, at)), '[]'),
      'table_columns', coalesce((
        select jsonb_agg(jsonb_build_array(p.proargnames[a.at], format_type(a.type, null)) order by a.at)
        from unnest(p.proallargtypes) with ordinality as a(type, at) where p.proargmodes[a.at] = 't'), '[]'),
      'defaults', p.proargdefaults::text,
      -- Others than arguments that are only that, and the columns of RETURNS TABLE.
      'unusual_arguments', coalesce(not p.proargmodes <@ '{i,t}', false),
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
      'element', case when y.typsubscript = 'array_subscript_handler'::regproc then y.typelem else 0 end,
      -- Wherever it was installed, and whatever it is called.
      'hstore', exists (
        select 1 from pg_cast k join pg_proc f on f.oid = k.castfunc
        where k.castsource = y.oid and k.casttarget = 'json'::regtype
          and f.prosrc = 'hstore_to_json' and f.probin is not null),
      -- Likewise, with its = and <>.
      'citext', (
        select jsonb_agg(o.oid order by o.oprname desc)
        from pg_operator o join pg_proc f on f.oid = o.oprcode
        where o.oprname in ('=', '<>') and o.oprleft = y.oid and o.oprright = y.oid
          and f.prosrc in ('citext_eq', 'citext_ne') and f.probin is not null),
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
  -- Operators that filters mean by what they are called, and that somebody made for a type.
  'operators', coalesce((
    select jsonb_agg(distinct jsonb_build_array(o.oprleft, o.oprname, n.nspname))
    from pg_operator o join pg_namespace n on n.oid = o.oprnamespace
    where o.oid >= 16384 and o.oprleft in (select oid from types)
      and o.oprname in ('=', '<>', '<', '<=', '>', '>=', '~~', '~~*', '~', '~*')
      -- A literal is taken for the left side's own type first, wherever that has such an operator.
      and (o.oprright = o.oprleft or not exists (
        select from pg_operator own
        where own.oid < 16384 and own.oprname = o.oprname
          and own.oprleft = o.oprleft and own.oprright = o.oprleft))), '[]'),
  -- Casts that somebody made from text: what is asked casts text outputs back to their types.
  'casts', coalesce((
    select jsonb_agg(k.casttarget order by k.casttarget) from pg_cast k
    where k.castsource = 'text'::regtype and k.castmethod = 'f' and k.oid >= 16384), '[]'),
  'collations', coalesce((
    -- Where equality is not equality of bytes.
    select jsonb_agg(k.oid order by k.oid) from pg_collation k where not k.collisdeterministic), '[]')
)::text
