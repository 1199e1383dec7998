//! The helper functions that people write for Supabase, each with a policy.

pub const SHAPES: &[(&str, &str)] = &[
    ("is_member", "create function f_is_member(p_org int) returns boolean language sql security definer stable set search_path = public as
      $$ select exists (select 1 from m where org = p_org and u = auth.uid()) $$;
      create policy p on t for select using (f_is_member(org))"),
    ("is_member, unpinned and volatile", "create function f_is_member(p_org int) returns boolean language sql security definer as
      $$ select exists (select 1 from m where m.org = p_org and m.u = auth.uid()); $$;
      create policy p on t for select using (f_is_member(org))"),
    ("has_role by an enum", "create function f_has_role(_user uuid, _role app_role) returns boolean language sql stable security definer set search_path = public as
      $$ select exists (select 1 from public.profiles where id = _user and role = _role) $$;
      create policy p on t for select to authenticated, anon using (f_has_role(auth.uid(), 'admin'))"),
    ("current_org", "create function f_current_org() returns int language sql stable security definer set search_path = '' as
      $$ select org from public.profiles where id = auth.uid() $$;
      create policy p on t for select using (org = f_current_org())"),
    ("current_org in a sub-select", "create function f_current_org() returns int language sql stable security definer set search_path = '' as
      $$ select org from public.profiles where id = (select auth.uid()) limit 1 $$;
      create policy p on t for select using (org = (select f_current_org()))"),
    ("is_admin via profiles", "create function f_is_admin() returns boolean language sql stable security definer as
      $$ select exists (select 1 from public.profiles where id = auth.uid() and role = 'admin'); $$;
      create policy p on t for select using (f_is_admin() or u = auth.uid())"),
    ("is_admin via a role column", "create function f_is_admin() returns boolean language sql stable security definer as
      $$ select coalesce((select role = 'admin' from public.profiles where id = auth.uid()), false) $$;
      create policy p on t for select using (f_is_admin())"),
    ("is_admin in PL/pgSQL", "create function f_is_admin() returns boolean language plpgsql security definer set search_path = public as
      $$ begin return exists (select 1 from profiles where id = auth.uid() and role = 'admin'); end; $$;
      create policy p on t for select using (f_is_admin())"),
    ("is_admin by SELECT INTO", "create function f_is_admin() returns boolean language plpgsql security definer as
      $$ declare v_role app_role; begin
         select role into v_role from public.profiles where id = auth.uid();
         return v_role = 'admin'; end; $$;
      create policy p on t for select using (f_is_admin())"),
    ("user_role as text", "create function f_user_role() returns text language sql stable security definer as
      $$ select role::text from public.profiles where id = auth.uid() $$;
      create policy p on t for select using (f_user_role() in ('admin', 'member'))"),
    ("get_my_claim", "create function f_claim(claim text) returns jsonb language sql stable as
      $$ select coalesce(nullif(current_setting('request.jwt.claims', true), '')::jsonb -> 'app_metadata' -> claim, null) $$;
      create policy p on t for select using (f_claim('role') = '\"admin\"'::jsonb or f_claim('role') is null and ok)"),
    ("is_claims_admin", "create function f_claims_admin() returns boolean language plpgsql stable as
      $$ begin
         if current_setting('role', true) = 'anon' then return false; end if;
         if auth.jwt() ->> 'user_role' = 'admin' then return true; else return false; end if;
      end; $$;
      create policy p on t for select using (f_claims_admin())"),
    ("authorize(permission)", "create function f_authorize(requested text) returns boolean language plpgsql stable security definer set search_path = '' as
      $$ declare user_role text; bind boolean; begin
         select (auth.jwt() ->> 'user_role')::text into user_role;
         select exists (select 1 from public.g where g.s = requested and g.s = user_role) into bind;
         return bind; end; $$;
      create policy p on t for select using (f_authorize(s))"),
    ("tenant from app_metadata", "create function f_tenant() returns int language sql stable as
      $$ select (auth.jwt() -> 'app_metadata' ->> 'org_id')::int $$;
      create policy p on t for select using (org = f_tenant())"),
    ("aal2", "create function f_aal2() returns boolean language plpgsql stable as
      $$ begin return coalesce(auth.jwt() ->> 'aal', 'aal1') = 'aal2'; end $$;
      create policy p on t for select using (ok); create policy q on t as restrictive for select using (f_aal2())"),
    ("my orgs as a set", "create function f_my_orgs() returns setof int language sql stable security definer set search_path = public as
      $$ select org from m where u = auth.uid() $$;
      create policy p on t for select using (org in (select f_my_orgs()))"),
    ("my orgs as a set in PL/pgSQL", "create function f_my_orgs() returns setof int language plpgsql stable security definer as
      $$ begin return query select x.org from public.m x where x.u = auth.uid(); end $$;
      create policy p on t for select using (org in (select f_my_orgs()))"),
    ("role in an organisation", "create function f_role_in(p_org int) returns text language sql stable security definer as
      $$ select s from public.m where org = p_org and u = auth.uid() limit 1 $$;
      create policy p on t for select using (f_role_in(org) = any (array['admin', 'member']))"),
    ("has_any_role", "create function f_any(p_org int, p_user uuid) returns boolean language plpgsql stable security definer set search_path = public as
      $$ begin
         if p_user is null then return false; end if;
         return exists (select 1 from m x where x.org = p_org and x.u = p_user and x.s in ('admin', 'member'));
      end $$;
      create policy p on t for select using (f_any(org, auth.uid()))"),
    ("helpers that call helpers", "create function f_uid() returns uuid language sql stable as $$ select auth.uid() $$;
      create function f_is_member(p_org int) returns boolean language sql stable security definer as
      $$ select exists (select 1 from public.m where org = p_org and u = public.f_uid()) $$;
      create function f_can(p_org int) returns boolean language sql stable as
      $$ select public.f_is_member(p_org) or auth.role() = 'service_role' $$;
      create policy p on t for select using (f_can(org))"),
    ("an array of a variable, compared with inside a sub-select", "create function f_shared(p_org int) returns boolean language plpgsql stable security definer set search_path = public as
      $$ declare orgs int[]; begin
         select array_agg(org) into orgs from m where u = auth.uid();
         return exists (select 1 from g where g.org = p_org and g.org = any (orgs)); end $$;
      create function f_joined() returns boolean language plpgsql stable security definer set search_path = public as
      $$ declare people uuid[] := array(select u from m where u = auth.uid()); found_one boolean; begin
         select exists (select 1 from g join m on m.org = g.org where m.u = any (people)) into found_one;
         return found_one; end $$;
      create policy p on t for select using (f_shared(org) or s = '2' and f_joined())"),
    ("early return for admins", "create function f_can(p_org int) returns boolean language plpgsql stable security definer as
      $$ declare v_role text; begin
         select p.role::text into v_role from public.profiles p where p.id = auth.uid();
         if not found then return false; end if;
         if v_role = 'admin' then return true; end if;
         return exists (select 1 from public.m x where x.org = p_org and x.u = auth.uid());
      end $$;
      create policy p on t for select using (f_can(org))"),
    ("owner of a row of another table", "create function f_owns(p_id int) returns boolean language sql stable security definer as
      $$ select u = auth.uid() from public.g where id = p_id $$;
      create policy p on t for select using (f_owns(id))"),
    ("two values INTO two variables", "create function f_two() returns boolean language plpgsql stable security definer as
      $$ declare v_role app_role; v_org int; begin
         select role, org into v_role, v_org from public.profiles where id = auth.uid();
         return v_role = 'admin' and v_org = 1; end $$;
      create policy p on t for select using (f_two())"),
    ("rows of a function in FROM", "create function f_my_orgs() returns setof int language sql stable security definer as
      $$ select org from public.m where u = auth.uid() $$;
      create policy p on t for select using (org in (select o from f_my_orgs() as o))"),
    ("an argument left out", "create function f_admin(_who uuid default auth.uid()) returns boolean language sql stable security definer set search_path = public as
      $$ select exists (select 1 from profiles where id = _who and role = 'admin') $$;
      create policy p on t for select using (f_admin() or f_admin(u))"),
    ("one of several arguments left out, one named", "create function f_in(_org int, _role text default null, _who uuid default auth.uid()) returns boolean language plpgsql stable security definer as
      $$ begin return exists (select 1 from public.m x where x.org = _org and x.u = _who and (x.s = _role or _role is null)); end $$;
      create policy p on t for select using (f_in(org) or f_in(_role => 'admin', _org => 2))"),
    ("authorize with a count", "create function f_authorize(requested text) returns boolean language plpgsql stable security definer set search_path = '' as
      $$ declare bind_permissions int; user_role public.app_role; begin
         select (auth.jwt() ->> 'user_role')::public.app_role into user_role;
         select count(*) into bind_permissions from public.profiles where profiles.s = requested and profiles.role = user_role;
         return bind_permissions > 0; end $$;
      create policy p on t for select using ((select f_authorize('admin')) or f_authorize(s))"),
    ("nobody where claims cannot be read", "create function f_me() returns uuid language plpgsql stable as
      $$ begin return (nullif(current_setting('request.jwt.claims', true), '')::jsonb ->> 'sub')::uuid;
         exception when others then return null; end $$;
      create policy p on t for select using (u = f_me() or f_me() is null and ok)"),
    ("a cast that is tried", "create function f_owner(p text) returns boolean language plpgsql stable security definer as
      $$ declare n int; begin
         begin n := p::int; exception when others then return false; end;
         return exists (select 1 from public.m x where x.org = n and x.u = auth.uid()); end $$;
      create policy p on t for select using (f_owner(s))"),
    ("CASE by a role", "create function f_may(p_role text) returns boolean language plpgsql stable security definer as
      $$ declare v text; begin
         select role::text into v from public.profiles where id = auth.uid();
         if v is null then return false; end if;
         case p_role when 'member', '1' then return v in ('admin', 'member'); when 'admin' then return v = 'admin'; else return false; end case;
      end $$;
      create policy p on t for select using (f_may(s))"),
    ("CASE by conditions, notices", "create function f_may(p_org int) returns boolean language plpgsql stable security definer as
      $$ begin
         raise notice 'asked about % by %', p_org, auth.uid();
         case when p_org is null then return true; when p_org > 1 then return false; else null; end case;
         return auth.uid() is not null; end $$;
      create policy p on t for select using (f_may(org))"),
    ("PERFORM and FOUND", "create function f_is(p_org int) returns boolean language plpgsql stable security definer as
      $$ begin perform 1 from public.m x where x.org = p_org and x.u = auth.uid(); return found; end $$;
      create policy p on t for select using (f_is(org))"),
    ("RETURNS TABLE in PL/pgSQL, in FROM", "create function f_orgs() returns table (org_id int) language plpgsql stable security definer as
      $$ begin return query select x.org from public.m x where x.u = auth.uid(); return; end $$;
      create policy p on t for select using (org in (select * from f_orgs()) or org in (select o.org_id from f_orgs() o where o.org_id > 3))"),
    ("rows by who asks", "create function f_orgs() returns setof int language plpgsql stable security definer as
      $$ declare v text; begin
         select role::text into v from public.profiles where id = auth.uid();
         if v = 'admin' then return query select g.org from public.g; return; end if;
         return query select x.org from public.m x where x.u = auth.uid();
         return query select y.org from public.g y where y.u = auth.uid();
      end $$;
      create policy p on t for select using (org in (select f_orgs()))"),
    ("a union in FROM", "create function f_orgs() returns setof int language sql stable security definer as
      $$ select org from public.m where u = auth.uid() union select org from public.g where u = auth.uid() $$;
      create policy p on t for select using (org in (select * from f_orgs()))"),
    ("blocks with variables of a column's type", "create function f_may() returns boolean language plpgsql stable security definer as
      $$ declare v public.profiles.role%type; begin
         declare w uuid := auth.uid(); begin
           select role into v from public.profiles where id = w;
         end;
         return v = 'admin'; end $$;
      create policy p on t for select using (f_may())"),
    ("WITH before SELECT INTO", "create function f_may() returns boolean language plpgsql stable security definer as
      $$ declare b boolean; begin
         with mine as (select x.s from public.m x where x.u = auth.uid()) select exists (select 1 from mine where s = 'admin') into b;
         return b; end $$;
      create policy p on t for select using (f_may())"),
    ("a setting that nobody sets", "create function f_tenant() returns int language sql stable as
      $$ select nullif(current_setting('app.tenant', true), '')::int $$;
      create policy p on t for select using (org = f_tenant() or org = current_setting('app.current_org', true)::int or u = auth.uid())"),
    ("rows of several columns of a function in FROM", "create function f_mine() returns table (org int, role text) language sql stable security definer set search_path = public as
      $$ select m.org, m.s from m where m.u = auth.uid() $$;
      create policy p on t for select using (exists (select 1 from f_mine() f where f.org = t.org and f.role = 'admin') or org in (select f.org from f_mine() f where f.role = t.s))"),
    ("rows of several columns in PL/pgSQL", "create function f_mine(p uuid default auth.uid()) returns table (org_id int, role text) language plpgsql stable security definer as
      $$ begin return query select m.org, m.s from public.m where m.u = p; end $$;
      create policy p on t for select using (exists (select 1 from f_mine() f where f.org_id = t.org))"),
];
