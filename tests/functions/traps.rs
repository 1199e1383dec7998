//! What is easily judged wrongly, by hand.

pub struct Trap {
    pub name: &'static str,
    pub sql: &'static str,
    /// The search path of `authenticated`, where it has one of its own.
    pub path: Option<&'static str>,
    /// Whether errors are raised beside what decides.
    pub errors: bool,
    /// Part of what becomes of it, both roles together.
    pub becomes: &'static str,
}

const NATIVE: &str = "native 2";

const fn trap(name: &'static str, becomes: &'static str, sql: &'static str) -> Trap {
    Trap {
        name,
        sql,
        path: None,
        errors: false,
        becomes,
    }
}

const fn raising(trap: Trap) -> Trap {
    Trap {
        errors: true,
        ..trap
    }
}

const fn along(path: &'static str, trap: Trap) -> Trap {
    Trap {
        path: Some(path),
        ..trap
    }
}

pub const TRAPS: &[Trap] = &[
    trap("a strict function of NULL is not evaluated", NATIVE,
        "create function f_s(p int) returns boolean language sql stable strict as
         $$ select p is null or p > 1 $$;
         create policy p on t for select using (coalesce(f_s(org), true))"),
    trap("a strict function that looks into a table", NATIVE,
        "create function f_s(p int) returns boolean language sql stable strict security definer as
         $$ select not exists (select from public.m where org = p) $$;
         create policy p on t for select using (f_s(org) is null or f_s(org))"),
    trap("the first of several rows", NATIVE,
        "create function f_r() returns text language sql stable security definer as
         $$ select s from public.m where u = auth.uid() $$;
         create policy p on t for select using (f_r() = 'admin' or ok)"),
    trap("several rows that agree", NATIVE,
        "create function f_r() returns boolean language sql stable security definer as
         $$ select s is not null or true from public.m where u = auth.uid() $$;
         create policy p on t for select using (f_r())"),
    trap("a sub-select of several rows raises an error", NATIVE,
        "create function f_r() returns text language sql stable security definer as
         $$ select (select s from public.m where u = auth.uid()) $$;
         create policy p on t for select using (f_r() = 'admin')"),
    along("decoy, public", trap("another table comes first in the caller's search path", NATIVE,
        "create table decoy.m (org int, u uuid); grant select on decoy.m to public;
         insert into decoy.m values (3, '00000000-0000-0000-0000-00000000000a');
         create function f_m(p int) returns boolean language sql stable as
         $$ select exists (select 1 from m where org = p and u = auth.uid()) $$;
         grant select on m to anon;
         create policy p on t for select using (f_m(org))")),
    along("decoy, public", trap("a schema of the path that the role may not use is passed over", NATIVE,
        "create table decoy.m (org int, u uuid);
         revoke usage on schema decoy from public;
         create function f_m(p int) returns boolean language plpgsql stable as
         $$ begin return exists (select 1 from m where org = p and u = auth.uid()); end $$;
         grant select on m to anon;
         create policy p on t for select using (f_m(org))")),
    along("decoy, public", trap("inside a function with a search path others are resolved by that", NATIVE,
        "create table decoy.m (org int, u uuid); grant select on decoy.m to public;
         create function f_in(p int) returns boolean language sql stable as
         $$ select exists (select 1 from m where org = p and u = auth.uid()) $$;
         create function f_out(p int) returns boolean language sql stable security definer
         set search_path = public as $$ select f_in(p) $$;
         create policy p on t for select using (f_out(org))")),
    trap("names outside the search path raise an error, when it comes to that", "was not analysed",
        "create function f_in() returns boolean language sql stable as
         $$ select exists (select 1 from m) $$;
         create function f_out() returns boolean language sql stable set search_path = '' as
         $$ select public.f_in() $$;
         create policy p on t for select using (ok or f_out())"),
    trap("the owner of a table with forced policies sees what they let it see", NATIVE,
        "alter table m enable row level security; alter table m force row level security;
         create policy k on m for select to keeper using (ok);
         create policy a on m for select to authenticated using (true);
         create function f_m(p int) returns boolean language sql stable security definer as
         $$ select exists (select 1 from public.m where org = p) $$;
         alter function f_m owner to keeper;
         create policy p on t for select using (f_m(org))"),
    trap("the owner of a table sees all of it", NATIVE,
        "alter table m enable row level security;
         create policy k on m for select to keeper using (false);
         create function f_m(p int) returns boolean language sql stable security definer as
         $$ select exists (select 1 from public.m where org = p) $$;
         alter function f_m owner to keeper;
         create policy p on t for select using (f_m(org))"),
    trap("a definer who is not the owner sees what policies for it let it see, by the caller's claims", NATIVE,
        "alter table m enable row level security;
         create policy k on m for select to plain using (u = auth.uid());
         create policy a on m for select to authenticated using (true);
         create function f_m(p int) returns boolean language sql stable security definer as
         $$ select exists (select 1 from public.m where org = p) $$;
         alter function f_m owner to plain;
         create policy p on t for select using (f_m(org))"),
    trap("no policy for the definer, no rows", NATIVE,
        "alter table m enable row level security;
         create policy a on m for select to authenticated using (true);
         create function f_m(p int) returns boolean language sql stable security definer as
         $$ select exists (select 1 from public.m where org = p) $$;
         alter function f_m owner to plain;
         create policy p on t for select using (not f_m(org))"),
    trap("a superuser's function sees everything", NATIVE,
        "alter table m enable row level security; alter table m force row level security;
         create function f_m(p int) returns boolean language plpgsql stable security definer as
         $$ begin return exists (select 1 from public.m where org = p); end $$;
         create policy p on t for select using (f_m(org))"),
    trap("an invoker's function sees what the caller sees", NATIVE,
        "alter table m enable row level security;
         create policy a on m for select to authenticated using (u = auth.uid());
         grant select on m to anon;
         create function f_m(p int) returns boolean language sql stable as
         $$ select exists (select 1 from public.m where org = p) $$;
         create policy p on t for select using (f_m(org))"),
    trap("inside a definer the invoker's function is the definer's", NATIVE,
        "alter table m enable row level security;
         create policy a on m for select to authenticated using (false);
         create policy k on m for select to plain using (ok);
         create function f_in(p int) returns boolean language sql stable as
         $$ select exists (select 1 from public.m where org = p) $$;
         create function f_out(p int) returns boolean language sql stable security definer as
         $$ select public.f_in(p) $$;
         alter function f_out owner to plain;
         create policy p on t for select using (f_out(org))"),
    trap("who may not execute a function sees nothing", "permission denied for function f_m",
        "create function f_m() returns boolean language sql stable as $$ select true $$;
         revoke execute on function f_m from public;
         create policy p on t for select using (ok or f_m())"),
    trap("a definer may execute what the caller may not", NATIVE,
        "create function f_in() returns boolean language sql stable as $$ select true $$;
         revoke execute on function f_in from public;
         create function f_out() returns boolean language sql stable security definer as
         $$ select public.f_in() $$;
         create policy p on t for select using (ok and f_out())"),
    trap("who may not execute what a plain function calls sees nothing", "permission denied for function f_in",
        "create function f_in() returns boolean language sql stable as $$ select true $$;
         revoke execute on function f_in from public;
         create function f_out() returns boolean language sql stable as $$ select public.f_in() $$;
         create policy p on t for select using (ok or f_out())"),
    trap("a function that may not look is an error when it comes to that", NATIVE,
        "revoke select on m from authenticated;
         create function f_m(p int) returns boolean language plpgsql stable as
         $$ begin if p = 1 then return true; end if;
            return exists (select 1 from public.m where org = p); end $$;
         create policy p on t for select using (f_m(org))"),
    trap("a column that may not be read is an error when it comes to that", NATIVE,
        "revoke select on m from authenticated; grant select (org) on m to authenticated, anon;
         create function f_m(p int) returns boolean language sql stable as
         $$ select exists (select 1 from public.m where org = p and ok) $$;
         create policy p on t for select using (org is null or f_m(org))"),
    raising(trap("policies that call what looks into their own table do not end", NATIVE,
        "alter table m enable row level security; grant select on m to anon;
         create function f_m(p int) returns boolean language sql stable as
         $$ select exists (select 1 from public.m where org = p) $$;
         create policy a on m for select using (f_m(org));
         create policy p on t for select using (f_m(org))")),
    trap("policies in a circle inside a function are an error when it comes to that", NATIVE,
        "alter table m enable row level security; grant select on m to anon;
         create policy a on m for select using (exists (select 1 from m other where other.org = m.org));
         create function f_m(p int) returns boolean language plpgsql stable as
         $$ begin if p = 1 then return true; end if;
            return exists (select 1 from public.m where org = p); end $$;
         create policy p on t for select using (f_m(org))"),
    trap("a function that calls itself", "calls itself",
        "create function f_r(p int) returns boolean language plpgsql stable as
         $$ begin if p > 3 then return true; end if; return public.f_r(4); end $$;
         create policy p on t for select using (f_r(org))"),
    trap("NULL stays NULL under NOT and COALESCE", NATIVE,
        "create function f_b(p int) returns boolean language sql stable security definer as
         $$ select ok from public.m where org = p limit 1 $$;
         create policy p on t for select using (not f_b(org));
         create policy q on t for select using (coalesce(f_b(org), s = 'admin'))"),
    trap("a column hides the argument of its name", NATIVE,
        "create function f_t(org int) returns boolean language sql stable security definer as
         $$ select exists (select 1 from public.m where org = org and u = auth.uid()) $$;
         create policy p on t for select using (f_t(org))"),
    trap("a name that is a variable and a column", "a variable and a column",
        "create function f_t(org int) returns boolean language plpgsql stable security definer as
         $$ begin return exists (select 1 from public.m where org = org and u = auth.uid()); end $$;
         create policy p on t for select using (f_t(org))"),
    trap("an argument by the function's name", NATIVE,
        "create function f_t(org int) returns boolean language plpgsql stable security definer as
         $$ begin return exists (select 1 from public.m x where x.org = f_t.org and x.u = auth.uid()); end $$;
         create policy p on t for select using (f_t(org))"),
    trap("an option of the language", "an option",
        "create function f_t(org int) returns boolean language plpgsql stable security definer as
         $$ #variable_conflict use_variable
            begin return exists (select 1 from public.m where org = org); end $$;
         create policy p on t for select using (f_t(org))"),
    trap("row_security off where the owner sees all anyway", NATIVE,
        "alter table m enable row level security;
         create function f_m(p int) returns boolean language sql stable security definer
         set row_security = off as $$ select exists (select 1 from public.m where org = p) $$;
         create policy p on t for select using (f_m(org))"),
    trap("row_security off where rows would be left out", NATIVE,
        "alter table m enable row level security;
         create policy k on m for select to plain using (true);
         create function f_m(p int) returns boolean language sql stable security definer
         set row_security = off as $$ select exists (select 1 from public.m where org = p) $$;
         alter function f_m owner to plain;
         create policy p on t for select using (org is null or f_m(org))"),
    trap("another setting of a function's own", "sets TimeZone",
        "create function f_z() returns boolean language sql stable set timezone = 'UTC' as
         $$ select true $$; create policy p on t for select using (f_z())"),
    trap("a body that would end its wrapper", "was not analysed",
        "set check_function_bodies = off;
         create function f_e() returns boolean language sql stable as
         $$ select true; end; drop table public.g; select true $$;
         create policy p on t for select using (f_e()); reset check_function_bodies"),
    trap("a body that would begin another wrapper", "was not analysed",
        "set check_function_bodies = off;
         create function f_e() returns boolean language sql stable as
         $$ select true; end; create function public.f_x() returns int language sql begin atomic select 1 $$;
         create policy p on t for select using (f_e()); reset check_function_bodies"),
    trap("a body with a comment that does not end", "does not end",
        "set check_function_bodies = off;
         create function f_e() returns boolean language sql stable as $$ select true /* $$;
         create policy p on t for select using (f_e()); reset check_function_bodies"),
    trap("a body with a literal that does not end", "does not end",
        "set check_function_bodies = off;
         create function f_e() returns boolean language sql stable as $$ select 'a' = 'b $$;
         create policy p on t for select using (f_e()); reset check_function_bodies"),
    trap("a body that ends in a comment", NATIVE,
        "create function f_e() returns boolean language sql stable as $$ select true; -- end; $$;
         create policy p on t for select using (ok and f_e())"),
    trap("a body that writes", "more to it than tables",
        "create function f_e() returns boolean language sql volatile security definer as
         $$ insert into public.g values (9) returning true $$;
         create policy p on t for select using (f_e())"),
    trap("a body of several statements", "is not one statement",
        "create function f_e() returns boolean language sql stable as $$ select false; select true $$;
         create policy p on t for select using (f_e())"),
    trap("RETURN is no statement of a body kept as text", "RETURN",
        "set check_function_bodies = off;
         create function f_e() returns boolean language sql stable as $$ return true $$;
         create policy p on t for select using (f_e()); reset check_function_bodies"),
    trap("a set by IN, ANY and EXISTS", NATIVE,
        "create function f_o() returns setof int language sql stable security definer as
         $$ select org from public.m where u = auth.uid() $$;
         create policy p on t for select using (org in (select f_o()));
         create policy q on t for select using (s = '2' and org = any (array(select f_o())));
         create policy r on t for select using (ok is null and exists (select f_o()))"),
    trap("an array of rows of which another one raises an error", NATIVE,
        "create function f_a() returns int[] language sql stable security definer as
         $$ select array(select org + 0 / (org - 2) from public.m where u = auth.uid()) $$;
         create policy p on t for select using (org = any (f_a()))"),
    trap("an array of rows, where whether one is in it raises an error", NATIVE,
        "create function f_a() returns int[] language sql stable security definer as
         $$ select array_agg(org) from public.m where u = auth.uid() and 1 / (org - 2) < 5 $$;
         create policy p on t for select using (org = any (f_a()))"),
    trap("an array of rows in which a CASE guards what raises an error", NATIVE,
        "create function f_a() returns int[] language sql stable security definer as
         $$ select array(select case when s = 'admin' then 1 / (org - org) else org end from public.m where u = auth.uid()) $$;
         create policy p on t for select using (org = any (f_a()))"),
    trap("a set with a NULL under NOT IN", NATIVE,
        "create function f_o() returns setof int language sql stable security definer as
         $$ select org from public.m where u = auth.uid() $$;
         create policy p on t for select using (org not in (select f_o()))"),
    trap("a set of a strict function without an argument is empty", NATIVE,
        "create function f_o(p uuid) returns table (o int) language sql stable strict security definer as
         $$ select org from public.m where u = p or p is null $$;
         create policy p on t for select using (org not in (select f_o(auth.uid())))"),
    trap("current_user inside a definer is the owner, the role setting is not", NATIVE,
        "create function f_c() returns boolean language sql stable security definer as
         $$ select current_user = 'keeper' and current_setting('role') = 'authenticated' $$;
         alter function f_c owner to keeper;
         create policy p on t for select using (ok and f_c())"),
    trap("control reaches the end of the function without RETURN", NATIVE,
        "create function f_n(p int) returns boolean language plpgsql stable as
         $$ begin if p = 1 then return true; end if; end $$;
         create policy p on t for select using (coalesce(f_n(org), true))"),
    trap("STRICT with no row, and with several", NATIVE,
        "create function f_n(p int) returns boolean language plpgsql stable security definer as
         $$ declare b boolean; begin select ok into strict b from public.m where org = p; return true; end $$;
         create policy p on t for select using (f_n(org))"),
    trap("an error in what is assigned and not used", NATIVE,
        "create function f_n(p text) returns boolean language plpgsql stable as
         $$ declare n int; begin n := p::int; return true; end $$;
         create policy p on t for select using (f_n(s))"),
    trap("FOUND is false before the first query, and NULL rows are found", NATIVE,
        "create function f_n(p int) returns boolean language plpgsql stable security definer as
         $$ declare b boolean; begin if found then return true; end if;
            select ok into b from public.m where org = p limit 1;
            if found then return b is null or b; end if; return not found and p = 3; end $$;
         create policy p on t for select using (f_n(org))"),
    trap("FOUND is false where HAVING leaves the only row out", NATIVE,
        "create function f_i(p int) returns boolean language plpgsql stable security definer as
         $$ declare n int; begin
            select count(*) into n from public.m where org = p having count(*) > 1;
            if found then return true; end if;
            perform 1 from public.m where org = p having bool_and(ok);
            return found; end $$;
         create policy p on t for select using (f_i(org))"),
    trap("FOUND of groups", "GROUP BY",
        "create function f_i(p int) returns boolean language plpgsql stable security definer as
         $$ begin perform 1 from public.m where org = p group by u having count(*) > 1; return found; end $$;
         create policy p on t for select using (f_i(org))"),
    trap("RETURN QUERY says what it found", NATIVE,
        "create function f_i() returns setof int language plpgsql stable security definer as
         $$ begin
            return query select x.org from public.m x where x.u = auth.uid();
            if not found then return query select y.org from public.g y; end if; end $$;
         create policy p on t for select using (org in (select f_i()))"),
    trap("RETURN QUERY in a branch says what it found", NATIVE,
        "create function f_i(p int) returns setof int language plpgsql stable security definer as
         $$ begin
            if p > 1 then return query select x.org from public.m x where x.org = p and x.ok; end if;
            if found then return query select y.org + 1 from public.g y; return; end if;
            return query select y.org from public.g y where y.u = auth.uid(); end $$;
         create policy p on t for select using (org in (select f_i(org)) or 3 in (select f_i(org)))"),
    trap("INTO STRICT where HAVING leaves the only row out", NATIVE,
        "create function f_i(p int) returns boolean language plpgsql stable security definer as
         $$ declare n int; begin
            select count(*) into strict n from public.m where org = p having count(*) > 1;
            return n is null or n > 1; end $$;
         create policy p on t for select using (coalesce(f_i(org), true))"),
    trap("a value is cast as it is returned", NATIVE,
        "create function f_n() returns uuid language plpgsql stable as
         $$ begin return auth.jwt() ->> 'sub'; end $$;
         create policy p on t for select using (u = f_n())"),
    trap("a loop", "a loop",
        "create function f_l() returns boolean language plpgsql stable as
         $$ begin loop return true; end loop; end $$;
         create policy p on t for select using (f_l())"),
    trap("EXECUTE", "EXECUTE",
        "create function f_l() returns boolean language plpgsql stable as
         $$ declare b boolean; begin execute 'select true' into b; return b; end $$;
         create policy p on t for select using (f_l())"),
    trap("a variable in a branch keeps what it had", NATIVE,
        "create function f_v(p int) returns boolean language plpgsql stable as
         $$ declare n int := 5; begin if p = 1 then n := 1; elsif p = 2 then n := null; end if;
            return n = 1 or n is null; end $$;
         create policy p on t for select using (f_v(org))"),
    trap("an error in a block with EXCEPTION is what the handler says, under NOT too", NATIVE,
        "create function f_e(p text) returns boolean language plpgsql stable as
         $$ begin return p::int > 1; exception when others then return false; end $$;
         create policy p on t for select using (not f_e(s))"),
    trap("an error beside what decides is caught all the same", NATIVE,
        "create function f_e(p text, b boolean) returns boolean language plpgsql stable as
         $$ begin return p::int > 1 or b; exception when others then return false; end $$;
         create policy p on t for select using (f_e(s, ok))"),
    trap("an error beside what decides ends a block that does not return", NATIVE,
        "create function f_e(p text, b boolean) returns boolean language plpgsql stable as
         $$ declare v boolean; begin
            begin v := not (p::int > 1 and b); exception when others then return false; end;
            return v; end $$;
         create policy p on t for select using (f_e(s, ok))"),
    trap("an error in the claims is caught where a row is found without", NATIVE,
        "create function f_e() returns boolean language plpgsql stable security definer as
         $$ begin return exists (select 1 from public.m x where x.ok or x.u = auth.uid());
            exception when others then return false; end $$;
         create policy p on t for select using (f_e())"),
    trap("an error of another row is caught where one is found", "an error of another table's row",
        "create function f_e() returns boolean language plpgsql stable security definer as
         $$ begin return exists (select 1 from public.g x where x.s::int = 1 or x.ok);
            exception when others then return false; end $$;
         create policy p on t for select using (f_e())"),
    trap("an error in a declaration is not caught", NATIVE,
        "create function f_e(p text) returns boolean language plpgsql stable as
         $$ declare n int := p::int; begin return n > 1; exception when others then return true; end $$;
         create policy p on t for select using (f_e(s))"),
    trap("an error in a handler is not caught", NATIVE,
        "create function f_e(p text) returns boolean language plpgsql stable as
         $$ begin return p::int > 1; exception when others then return p::boolean; end $$;
         create policy p on t for select using (coalesce(f_e(s), true))"),
    trap("an error beside an argument that decides is caught, as nobody plans by the argument", NATIVE,
        "create function f_e(p text, q int) returns boolean language plpgsql stable as
         $$ begin return p::int > 1 or q = 1; exception when others then return false; end $$;
         create policy p on t for select using (f_e(s, 1) or u = auth.uid() and f_e(s, 2))"),
    trap("an error behind a block with EXCEPTION is not caught", NATIVE,
        "create function f_e(p text) returns boolean language plpgsql stable as
         $$ declare n int; begin
            begin n := 3; exception when others then return true; end;
            return p::int < n; end $$;
         create policy p on t for select using (f_e(s))"),
    trap("what a variable is after an error is asked", NATIVE,
        "create function f_e(p text) returns boolean language plpgsql stable as
         $$ declare n int := 0; begin
            begin n := 1; n := p::int; exception when others then null; end;
            return n = 1; end $$;
         create policy p on t for select using (f_e(s))"),
    trap("other conditions than all are asked where there is an error", NATIVE,
        "create function f_e(p text) returns boolean language plpgsql stable as
         $$ begin return p::int > 1; exception when division_by_zero then return true; end $$;
         create policy p on t for select using (f_e(s))"),
    trap("a value is cast outside of the block", "asked 2",
        "create function f_e(p text) returns int language plpgsql stable as
         $$ begin return p; exception when others then return 1; end $$;
         create policy p on t for select using (f_e(s) = 1)"),
    trap("no CASE that fits, and no ELSE, is an error", NATIVE,
        "create function f_c(p text) returns boolean language plpgsql stable as
         $$ begin case p when 'admin' then return true; when '1' then return false; end case; end $$;
         create policy p on t for select using (coalesce(f_c(s), true))"),
    trap("a number that does not fit a variable is an error", NATIVE,
        "create function f_n(p int) returns boolean language plpgsql stable as
         $$ declare n smallint; begin n := case when p > 1 then 70000 else 1 end; return n > 0; end $$;
         create policy p on t for select using (coalesce(f_n(org), true))"),
    trap("a default is evaluated as whoever calls", NATIVE,
        "create function f_who() returns text language sql stable as $$ select current_user::text $$;
         create function f_d(p text default f_who()) returns boolean language sql stable security definer as
         $$ select p = 'authenticated' $$;
         alter function f_d owner to keeper;
         create policy p on t for select using (f_d())"),
    trap("a default that may not be evaluated", "denied",
        "create function f_who() returns text language sql stable as $$ select current_user::text $$;
         revoke execute on function f_who from public;
         create function f_d(p text default f_who()) returns boolean language sql stable security definer as
         $$ select p = 'authenticated' $$;
         create policy p on t for select using (f_d())"),
    trap("RETURN QUERY behind a condition that raises an error", NATIVE,
        "create function f_q(p text) returns setof int language plpgsql stable security definer as
         $$ begin
            if p::int > 1 then return query select x.org from public.m x; end if;
            return query select y.org from public.g y where y.u = auth.uid(); end $$;
         create policy p on t for select using (org in (select f_q(s)))"),
    trap("a notice that cannot be told is an error", NATIVE,
        "create function f_t(p text) returns boolean language plpgsql stable as
         $$ begin raise notice 'n %', p::int; return true; end $$;
         create policy p on t for select using (f_t(s))"),
    trap("PERFORM of a function that raises an error", NATIVE,
        "create function f_a() returns boolean language plpgsql stable as
         $$ begin if auth.uid() is null then raise exception 'nobody'; end if; return true; end $$;
         create function f_t() returns boolean language plpgsql stable as
         $$ begin perform f_a(); return found; end $$;
         create policy p on t for select using (f_t())"),
    trap("a row that no row was found for is NULL, and its fields are", NATIVE,
        "create function f_r(p int) returns boolean language plpgsql stable security definer as
         $$ declare r record; begin select * into r from public.m where org = p;
            return r is null and r.s is null and not (r is not null) and not found; end $$;
         create policy p on t for select using (f_r(org))"),
    trap("a row with some fields NULL is neither NULL nor not NULL", NATIVE,
        "create function f_r(p int) returns boolean language plpgsql stable security definer as
         $$ declare r public.m%rowtype; begin select * into r from public.m where org = p order by ok limit 1;
            return not (r is null) and not (r is not null); end $$;
         create policy p on t for select using (f_r(org))"),
    trap("a row of any kind that is not set", NATIVE,
        "create function f_r(p int) returns boolean language plpgsql stable security definer as
         $$ declare r record; begin if p = 1 then select s, ok into r from public.m where org = p; end if;
            return r.s is null or r.ok; end $$;
         create policy p on t for select using (f_r(org))"),
    trap("a table's row that is not set is NULL", NATIVE,
        "create function f_r(p int) returns boolean language plpgsql stable security definer as
         $$ declare r public.m; begin if p = 1 then select * into r from public.m where org = p; end if;
            return r.s is null or r.ok; end $$;
         create policy p on t for select using (f_r(org))"),
    trap("fewer columns than fields, and fields of other types", NATIVE,
        "create function f_r(p int) returns boolean language plpgsql stable security definer as
         $$ declare r public.profiles%rowtype; begin
            select u, s into r from public.m where org = p and s is not null order by ok limit 1;
            return r.id is not null and r.org is null and r.role is null; end $$;
         create policy p on t for select using (coalesce(f_r(org), true))"),
    trap("variables for which there is no column are NULL", NATIVE,
        "create function f_r(p int) returns boolean language plpgsql stable security definer as
         $$ declare a int; b boolean := true; begin select org into a, b from public.m where org = p limit 1;
            return b; end $$;
         create policy p on t for select using (f_r(org))"),
    trap("a column for which there is no variable may raise an error", NATIVE,
        "create function f_r(p text) returns boolean language plpgsql stable security definer as
         $$ declare a int; begin select 1, p::int into a; return a = 1; end $$;
         create policy p on t for select using (f_r(s))"),
    trap("rows of several kinds in one variable", "several kinds",
        "create function f_r(p int) returns boolean language plpgsql stable security definer as
         $$ declare r record; begin
            if p = 1 then select s into r from public.m where org = p limit 1;
            else select org, s into r from public.m where org = p limit 1; end if;
            return r.s = 'admin'; end $$;
         create policy p on t for select using (f_r(org))"),
    trap("a row as a whole", "as a whole",
        "create function f_r(p int) returns boolean language plpgsql stable security definer as
         $$ declare r record; begin select * into r from public.m where org = p limit 1;
            return to_jsonb(r) ->> 's' = 'admin'; end $$;
         create policy p on t for select using (f_r(org))"),
    trap("the row that is judged as an argument", NATIVE,
        "create function f_in(r t) returns boolean language sql stable as $$ select r.s = 'admin' $$;
         create function f_out(int, r t) returns boolean language sql stable security definer
         set search_path = public as $$ select f_in(r) or $2.org = $1 and (r).ok $$;
         create policy p on t for select using (f_out(1, t))"),
    trap("the row that is judged in PL/pgSQL", NATIVE,
        "create function f_r(r t) returns boolean language plpgsql stable security definer as
         $$ declare o int := r.org; begin if r.ok then return true; end if;
            return exists (select 1 from public.m where org = o and s = $1.s); end $$;
         create policy p on t for select using (f_r(t.*))"),
    trap("a strict function of the row that is judged is evaluated", NATIVE,
        "create function f_r(r t) returns boolean language sql stable strict as $$ select r.org is null or r.ok $$;
         create policy p on t for select using (f_r(t))"),
    trap("a table of the argument's name beside it", "as a whole",
        "create function f_r(r t) returns boolean language plpgsql stable security definer as
         $$ begin if r.ok then return true; end if;
            return exists (select 1 from public.m r where r.u = auth.uid()); end $$;
         create policy p on t for select using (f_r(t))"),
    trap("a function that looks like a field of the argument", "is not there",
        "create function is_ok(r t) returns boolean language sql stable as $$ select r.ok $$;
         create function f_r(r t) returns boolean language plpgsql stable security definer set search_path = public as
         $$ begin return r.is_ok; end $$;
         create policy p on t for select using (is_ok(t) and f_r(t))"),
    trap("a field of the row that a function returns", NATIVE,
        "create function f_row() returns m language sql stable security definer as
         $$ select x.* from public.m x where x.u = auth.uid() order by x.org, x.ok limit 1 $$;
         create function f_org() returns int language sql stable as $$ select (f_row()).org $$;
         create policy p on t for select using ((f_row()).s = 'admin' or f_org() = org)"),
    trap("a field of the first of several rows", NATIVE,
        "create function f_row(p int) returns m language sql stable security definer as
         $$ select * from public.m where org = p $$;
         create policy p on t for select using ((f_row(org)).s is null or (f_row(org)).ok)"),
    trap("a field of what a strict function returns for NULL", NATIVE,
        "create function f_row(p int) returns m language sql stable strict security definer as
         $$ select x.* from public.m x where x.org is not distinct from p order by x.u, x.ok limit 1 $$;
         create policy p on t for select using (coalesce((f_row(org)).ok, true))"),
    trap("a field of a row whose type has lost a column", NATIVE,
        "create table decoy.l (gone int, org int, other int); alter table decoy.l drop column gone;
         create function f_row() returns decoy.l language sql stable security definer as
         $$ select x.org, 7 from public.m x where x.u = auth.uid() order by x.org limit 1 $$;
         create policy p on t for select using ((f_row()).org = org)"),
    trap("a field of a row of which another column may raise an error", "of what is computed",
        "create function f_row(p int) returns m language sql stable security definer as
         $$ select x.org, x.u, x.s, x.s::int = 1 from public.m x where x.org = p limit 1 $$;
         create policy p on t for select using ((f_row(org)).org = org)"),
    trap("a field of a row that is one value", "a row as a whole",
        "create function f_row(p int) returns m language sql stable security definer as
         $$ select x from public.m x where x.org = p limit 1 $$;
         create policy p on t for select using ((f_row(org)).ok)"),
    trap("a field of a row of a UNION", "UNION or DISTINCT",
        "create function f_row(p int) returns m language sql stable security definer as
         $$ select * from public.m where org = p union select * from public.m where ok $$;
         create policy p on t for select using ((f_row(org)).org = org)"),
    trap("a field of a row that PL/pgSQL returns", "as a whole",
        "create function f_row(p int) returns m language plpgsql stable security definer as
         $$ declare r public.m; begin select * into r from public.m where org = p limit 1; return r; end $$;
         create policy p on t for select using ((f_row(org)).org = org)"),
    trap("a field of a row that the role may not read", NATIVE,
        "revoke select on m from authenticated;
         create function f_row(p int) returns m language sql stable as
         $$ select * from public.m where org = p limit 1 $$;
         create policy p on t for select using ((f_row(org)).org = org)"),
    trap("another row of the same type", "a field of another row",
        "create function f_none() returns t language plpgsql stable as $$ begin raise exception 'none'; end $$;
         create function f_r(r t) returns boolean language sql stable as $$ select r.ok $$;
         create policy p on t for select using (f_r(t) and f_r(f_none()))"),
    trap("a row of a sub-select of the same table", NATIVE,
        "create function f_r(r t) returns boolean language sql stable as $$ select r.ok $$;
         create function f_any() returns boolean language sql stable security definer set search_path = public as
         $$ select exists (select 1 from t x where f_r(x)) $$;
         create policy p on t for select using (f_r(t) and f_any())"),
    trap("a row of a table that is looked into as an argument", NATIVE,
        "create function f_g(r g) returns boolean language sql stable as $$ select r.ok or r.u = auth.uid() $$;
         grant select on g to public; alter table g enable row level security; create policy o on g for select using (f_g(g));
         create policy p on t for select using (exists (select 1 from g where g.org = t.org and g.s = t.s))"),
    trap("a row of a table that is looked into beside the one that is judged", NATIVE,
        "create function f_g(r g, boolean) returns boolean language plpgsql stable security definer as
         $$ declare o int := r.org; begin if r.s = 'admin' then return $2; end if;
            return exists (select 1 from public.m where org = o and u = auth.uid()); end $$;
         grant select on g to public; alter table g enable row level security; create policy o on g for select using (f_g(g, ok));
         create function f_r(r t) returns boolean language sql stable set search_path = public as
         $$ select exists (select 1 from g where g.org = r.org) and r.ok $$;
         create policy p on t for select using (f_r(t))"),
    trap("a row of the judged table's own type by way of another table", NATIVE,
        "create function f_r(r t) returns boolean language sql stable as $$ select r.ok $$;
         grant select on g to public; alter table g enable row level security; create policy o on g for select using (ok or u = auth.uid());
         create policy p on t for select using (f_r(t) or s in (select s from g))"),
    trap("rows of tables in FROM as arguments", NATIVE,
        "create function f_g(r g, boolean) returns boolean language sql stable strict security definer
         set search_path = public as
         $$ select r.ok and $2 or exists (select 1 from m x where x.org = r.org and x.u = auth.uid()) $$;
         create function f_both(r t, q g) returns boolean language sql stable as
         $$ select case when q.s = r.s then false else f_g(q, r.ok) end $$;
         grant select on g to public;
         create policy p on t for select using (exists (
            select 1 from g a join g b on a.org = b.org where f_both(t, b) and a.id <= t.id))"),
    trap("a row of FROM in a sub-select of its own", NATIVE,
        "create function f_g(r g) returns boolean language sql stable as $$ select r.ok $$;
         grant select on g to public;
         create policy p on t for select using (org in (
            select a.org from g a where not exists (select 1 from g b where b.org = a.org and b.id > a.id and f_g(a))))"),
    trap("a row that an outer join gives NULLs for", "a row as a whole",
        "create function f_g(r g) returns boolean language sql stable strict as $$ select r.ok is null $$;
         grant select on g to public;
         create policy p on t for select using (exists (
            select 1 from g a left join g b on a.org = b.org and b.ok where a.id = t.id and f_g(b)))"),
    trap("what looks at the row that is judged as a whole", "NULLTEST of a row",
        "create function f_r(r t) returns boolean language sql stable as $$ select r is not null and r.ok $$;
         create policy p on t for select using (f_r(t))"),
    trap("a table of the row's name beside it", "r",
        "create function f_r(p int) returns boolean language plpgsql stable security definer as
         $$ declare r record; begin select * into r from public.m where org = p limit 1;
            return exists (select 1 from public.g r where r.s = 'admin'); end $$;
         create policy p on t for select using (f_r(org))"),
    trap("a row after an error is asked", NATIVE,
        "create function f_r(p text) returns boolean language plpgsql stable security definer as
         $$ declare r public.m; begin
            begin select * into r from public.m where org = p::int limit 1; exception when others then null; end;
            return r.ok; end $$;
         create policy p on t for select using (f_r(s))"),
    trap("a variable of a column's type that has a length", "with a length",
        "create table decoy.l (c varchar(3));
         create function f_r(p text) returns boolean language plpgsql stable security definer as
         $$ declare v decoy.l.c%type; begin v := p; return v = 'adm'; end $$;
         create policy p on t for select using (f_r(s))"),
    trap("a parameter that is what it is compared with", NATIVE,
        "create function f_p(p uuid, o int) returns boolean language sql stable as
         $$ select case when p = auth.uid() then exists (select 1 from public.m x where x.u = p and x.org = o)
            else false end $$;
         grant select on m to anon;
         create function f_q(p uuid) returns boolean language plpgsql stable as
         $$ begin return p = auth.uid(); end $$;
         create function f_r(p uuid) returns boolean language sql stable security definer as
         $$ select p = auth.uid() $$;
         create policy p on t for select using (f_p(auth.uid(), org));
         create policy q on t for select using (s = '1' and f_q(auth.uid()));
         create policy r on t for select using (s = '2' and f_r((select auth.uid())))"),
    trap("a parameter that is what a body in its place compares it with", "compared with itself",
        "create function f_p(p uuid) returns boolean language sql stable as $$ select p = auth.uid() $$;
         create policy p on t for select using (f_p(auth.uid()))"),
    trap("a view shows its owner what policies for it let it see, by the caller's claims", NATIVE,
        "alter table m enable row level security;
         create policy k on m for select to plain using (u = auth.uid());
         create policy a on m for select to authenticated using (false);
         create view decoy.f_v as select x.org from public.m x;
         alter view decoy.f_v owner to plain;
         grant select on decoy.f_v to authenticated, anon;
         create policy p on t for select using (exists (select from decoy.f_v v where v.org = t.org))"),
    trap("a function in a view runs as who asks", NATIVE,
        "create function f_who() returns text language sql stable as $$ select current_user::text $$;
         create view decoy.f_v as select x.org, f_who() as who, current_user::text as own from public.m x;
         alter view decoy.f_v owner to plain;
         grant select on decoy.f_v to authenticated, anon;
         create policy p on t for select using (
           exists (select from decoy.f_v v where v.org = t.org and v.who = 'authenticated' and v.own = 'authenticated'))"),
    trap("a view of whose tables its owner may not read one", "denied",
        "revoke select on g from plain;
         create view decoy.f_v as select x.org from public.g x;
         alter view decoy.f_v owner to plain;
         grant select on decoy.f_v to authenticated, anon;
         create policy p on t for select using (exists (select from decoy.f_v v where v.org = t.org))"),
    trap("a view that the role may not read", "denied 2",
        "create view decoy.f_v as select x.org from public.g x;
         create policy p on t for select using (exists (select from decoy.f_v v where v.org = t.org))"),
    trap("a view in a function, and a view in that", NATIVE,
        "create view decoy.f_v as select x.org, x.u from public.m x where x.ok;
         create view decoy.f_w as select v.* from decoy.f_v v where v.u = auth.uid();
         alter view decoy.f_v owner to keeper;
         grant select on decoy.f_v to plain;
         alter view decoy.f_w owner to plain;
         grant select on decoy.f_w to keeper;
         create function f_m(p int) returns boolean language sql stable security definer as
         $$ select exists (select 1 from decoy.f_w w where w.org = p) $$;
         alter function f_m owner to keeper;
         create policy p on t for select using (f_m(org))"),
    trap("a view over the table itself, whose policies its owner is under", "recursion",
        "create view decoy.f_v as select x.org, x.u from public.t x;
         alter view decoy.f_v owner to plain;
         grant select on t to plain;
         grant select on decoy.f_v to authenticated, anon;
         create policy p on t for select using (exists (select from decoy.f_v v where v.org = t.org))"),
    trap("a view over the table itself, of its owner", NATIVE,
        "create view decoy.f_v as select x.org, x.u from public.t x;
         grant select on decoy.f_v to authenticated, anon;
         create policy p on t for select using (
           exists (select from decoy.f_v v where v.org = t.org and v.u = auth.uid()))"),
    trap("a view that groups", "view",
        "create view decoy.f_v as select x.org, count(*) as n from public.m x group by x.org;
         grant select on decoy.f_v to authenticated, anon;
         create policy p on t for select using (exists (select from decoy.f_v v where v.org = t.org and v.n > 1))"),
    trap("a setting that is set for a role is asked", "asked 2",
        "alter role keeper set app.tenant = '1';
         create policy p on t for select using (org = current_setting('app.tenant', true)::int)"),
    trap("a setting that a function makes is asked", "asked 2",
        "create function f_set_tenant() returns text language sql as $$ select set_config('app.tenant', '1', true) $$;
         create policy p on t for select using (f_set_tenant() = '1' and org = current_setting('app.tenant', true)::int)"),
    trap("RETURN QUERY of another type, however alike, is an error", "another type",
        "create function f_q() returns setof varchar language plpgsql stable security definer as
         $$ begin return query select x.s from public.m x where x.u = auth.uid(); end $$;
         create policy p on t for select using (s in (select f_q()))"),
    trap("a column of a table's function that is declared of another type", NATIVE,
        "create function f_q() returns table (org int, s varchar) language sql stable security definer as
         $$ select x.org, x.s from public.m x where x.u = auth.uid() $$;
         create policy p on t for select using (exists (select from f_q() f where f.org = t.org))"),
];
