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
      when insufficient_privilege then
        raise warning '% is left out: this login may not create it', wanted.name;
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
      raise warning 'schema auth is left out: this login may not create it';
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
begin
  if to_regnamespace('auth') is null then
    return;
  end if;

  -- The settings are absent (null) in a session that never had them, and empty after a transaction
  -- that set them locally has ended: both mean "nobody".
  if to_regprocedure('auth.uid()') is null then
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

  if to_regprocedure('auth.role()') is null then
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

  if to_regprocedure('auth.jwt()') is null then
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
exception when insufficient_privilege then
  raise warning 'USAGE on schema auth is left to its owner';
end
$$;
