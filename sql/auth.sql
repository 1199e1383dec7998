-- What row-level-security policies written for Supabase expect to find in a database: the roles
-- that tokens name, and the functions through which a policy asks who is asking.
--
-- Safe to run anywhere and more than once: on a Supabase project everything is there already and
-- nothing here touches it.

-- Roles --------------------------------------------------------------------------------------
-- None of them can log in. The relay, or an API server, logs in as itself and acts as one of these
-- for the length of a transaction.
do $$
begin
  -- Roles belong to the whole cluster: another database may be creating them right now, which the
  -- inner blocks forgive.
  if to_regrole('anon') is null then
    begin
      create role anon nologin noinherit;
    exception when duplicate_object or unique_violation then null;
    end;
  end if;

  if to_regrole('authenticated') is null then
    begin
      create role authenticated nologin noinherit;
    exception when duplicate_object or unique_violation then null;
    end;
  end if;

  if to_regrole('service_role') is null then
    begin
      -- The back end's own role: no policy holds it back.
      create role service_role nologin noinherit bypassrls;
    exception
      when duplicate_object or unique_violation then null;
      when insufficient_privilege then
        raise warning 'service_role is left out: only a role with BYPASSRLS may create it';
    end;
  end if;
end
$$;

-- Since PostgreSQL 16 whoever creates a role may administer it but not act as it. The relay has to
-- act as these two to ask what they may see. A superuser needs no grant, and whoever may not grant
-- has been granted the roles by somebody else.
do $$
begin
  if not (select rolsuper from pg_roles where rolname = current_user) then
    execute format('grant anon, authenticated to %I', current_user);
  end if;
exception when insufficient_privilege then
  raise notice 'could not grant anon and authenticated to %', current_user;
end
$$;

-- Who is asking ------------------------------------------------------------------------------
-- The claims of the caller's token arrive as settings of the transaction: `request.jwt.claims`
-- holds all of them as JSON; older servers set `request.jwt.claim.<name>` for each.
create schema if not exists auth;

do $$
begin
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
    comment on function auth.uid() is 'The user that the token was issued to, or null.';
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
    comment on function auth.role() is 'The role that the token names, or null.';
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
    comment on function auth.jwt() is 'All claims of the token, or null.';
  end if;
end
$$;

do $$
begin
  grant usage on schema auth to anon, authenticated;
  if to_regrole('service_role') is not null then
    grant usage on schema auth to service_role;
  end if;
exception when insufficient_privilege then
  -- Supabase owns the schema on its own projects, and has granted this.
  null;
end
$$;
