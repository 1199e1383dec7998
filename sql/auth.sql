-- What row-level-security policies written for Supabase expect to find in a database: the roles
-- that tokens name, and the functions through which a policy asks who is asking.
--
-- Safe to run anywhere and more than once: on a Supabase project everything is there already and
-- nothing here touches it. What is made here says so in its comment, by which `rowcast setup
-- --remove` knows it again. `rowcast setup --print` prints this file; `psql -f` runs it as it is.

-- Roles --------------------------------------------------------------------------------------
-- None of them can log in. The relay, or an API server, logs in as itself and acts as one of these
-- for the length of a transaction. Only service_role, the back end's own, is held back by no policy.
do $$
declare
  wanted record;
begin
  for wanted in
    select * from (values
      ('anon', 'nologin noinherit', 'whoever has not logged in'),
      ('authenticated', 'nologin noinherit', 'whoever has'),
      ('service_role', 'nologin noinherit bypassrls', 'the back end; no policy holds it back')
    ) as roles(name, attributes, meaning)
  loop
    continue when to_regrole(wanted.name) is not null;
    begin
      execute format('create role %I %s', wanted.name, wanted.attributes);
      execute format('comment on role %I is %L', wanted.name,
        'Made by rowcast setup: ' || wanted.meaning || '.');
    exception
      -- Roles belong to the whole cluster: another database may be creating them right now.
      when duplicate_object or unique_violation then null;
      -- What is left out is said at the end.
      when insufficient_privilege then null;
    end;
  end loop;
end
$$;

-- Who is asking ------------------------------------------------------------------------------
-- The claims of the caller's token arrive as settings of the transaction: `request.jwt.claims`
-- holds all of them as JSON; older servers set `request.jwt.claim.<name>` for each.
do $$
begin
  if to_regnamespace('auth') is null then
    if not has_database_privilege(current_database(), 'create') then
      return;
    end if;
    create schema auth;
    comment on schema auth is 'Made by rowcast setup: who is asking.';
    -- Whoever looks after the database writes policies that name these functions.
    execute format('grant usage on schema auth to %I',
      (select pg_get_userbyid(datdba) from pg_database where datname = current_database()));
  end if;
end
$$;

do $$
declare
  -- What can be called without arguments: another one beside it would make calls ambiguous. Not by
  -- to_regprocedure(), which fails where the schema is another's.
  there text[] := array(select proname from pg_proc where pronamespace = to_regnamespace('auth') and pronargs = pronargdefaults);
begin
  if not coalesce(has_schema_privilege(to_regnamespace('auth'), 'usage')
      and has_schema_privilege(to_regnamespace('auth'), 'create'), false) then
    return;
  end if;

  -- The settings are absent (null) in a session that never had them, and empty after a transaction
  -- that set them locally has ended: both mean "nobody".
  if not 'uid' = any (there) then
    create function auth.uid() returns uuid
      language sql stable parallel safe
      as $body$
        select coalesce(
          nullif(current_setting('request.jwt.claim.sub', true), ''),
          nullif(current_setting('request.jwt.claims', true), '')::jsonb ->> 'sub'
        )::uuid
      $body$;
    comment on function auth.uid() is 'Made by rowcast setup: the user that the token was issued to, or null.';
  end if;

  if not 'role' = any (there) then
    create function auth.role() returns text
      language sql stable parallel safe
      as $body$
        select coalesce(
          nullif(current_setting('request.jwt.claim.role', true), ''),
          nullif(current_setting('request.jwt.claims', true), '')::jsonb ->> 'role'
        )
      $body$;
    comment on function auth.role() is 'Made by rowcast setup: the role that the token names, or null.';
  end if;

  if not 'jwt' = any (there) then
    create function auth.jwt() returns jsonb
      language sql stable parallel safe
      as $body$
        select coalesce(
          nullif(current_setting('request.jwt.claim', true), ''),
          nullif(current_setting('request.jwt.claims', true), '')
        )::jsonb
      $body$;
    comment on function auth.jwt() is 'Made by rowcast setup: all claims of the token, or null.';
  end if;
end
$$;

-- Without USAGE a policy that names auth.uid() still works, and a query that names it does not.
-- Granted only where it is missing, so that what others have granted is nobody's business here.
do $$
declare
  client text;
begin
  foreach client in array array['anon', 'authenticated', 'service_role'] loop
    if to_regrole(client) is not null and to_regnamespace('auth') is not null
      and not has_schema_privilege(client, 'auth', 'usage') then
      execute format('grant usage on schema auth to %I', client);
    end if;
  end loop;
exception when insufficient_privilege then null;
end
$$;

-- What could not be made, and what was there and is not what policies expect; nothing, mostly.
with schema as (
  select n.oid, pg_get_userbyid(n.nspowner) as owner from pg_namespace n where n.nspname = 'auth'
),
functions(name, result) as (
  values ('uid', 'uuid'::regtype), ('role', 'text'), ('jwt', 'jsonb')
)
select format('role %s is left out: this login may not make it', name) as "left out"
from (values ('anon'), ('authenticated'), ('service_role')) as roles(name)
where to_regrole(name) is null
union all
select 'schema auth, with auth.uid(), auth.role() and auth.jwt(), is left out: this login may not make it'
where not exists (select from schema)
union all
select format('auth.%s() is left out: schema auth belongs to %I, and this login may not make functions in it', f.name, s.owner)
from functions f, schema s
where not exists (select from pg_proc p where p.pronamespace = s.oid and p.proname = f.name and p.pronargs = p.pronargdefaults)
union all
select format('auth.%s() was there, stays as it is, and returns %s where policies written for Supabase expect %s',
  f.name, p.prorettype::regtype, f.result)
from functions f, schema s, pg_proc p
where p.pronamespace = s.oid and p.proname = f.name and p.pronargs = p.pronargdefaults and p.prorettype <> f.result
union all
select format('role %s has no USAGE on schema auth, which %I may grant', name, s.owner)
from schema s, (values ('anon'), ('authenticated'), ('service_role')) as roles(name)
where to_regrole(name) is not null and not has_schema_privilege(to_regrole(name), s.oid, 'usage')
-- A claim that everybody has by default: whoever brings none is taken for that user.
union all
select format('%s is set as a default%s: sessions that set none of their own act as the user that it names', split_part(c.entry, '=', 1),
  case when d.setrole <> 0 then format(' of role %I', pg_get_userbyid(d.setrole)) when d.setdatabase <> 0 then ' of this database' else '' end)
from pg_db_role_setting d, unnest(d.setconfig) as c(entry)
where c.entry ~ '^request[.]jwt' and d.setdatabase in (0, (select oid from pg_database where datname = current_database()));
