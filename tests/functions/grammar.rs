//! Tables, claims, and random functions in random policies. Values come from small pools, so that
//! they meet.

use rand::Rng;
use rand::rngs::StdRng;
use rand::seq::IndexedRandom;

/// `t` is judged; the others are looked into. `keeper` owns `m`, `plain` has nothing but rights.
pub const SCHEMA: &str = r#"
create role authenticated; create role anon; create role keeper; create role plain;
create schema auth; create schema decoy;
grant usage on schema auth to public; grant create on schema public to keeper, plain;
create type app_role as enum ('admin', 'member');
create function auth.uid() returns uuid language sql stable as $$
  select coalesce(
    nullif(current_setting('request.jwt.claim.sub', true), ''),
    (nullif(current_setting('request.jwt.claims', true), '')::jsonb ->> 'sub')
  )::uuid $$;
create function auth.role() returns text language sql stable as $$
  select coalesce(
    nullif(current_setting('request.jwt.claim.role', true), ''),
    (nullif(current_setting('request.jwt.claims', true), '')::jsonb ->> 'role')
  )::text $$;
create function auth.jwt() returns jsonb language sql stable as $$
  select coalesce(
    nullif(current_setting('request.jwt.claim', true), ''),
    nullif(current_setting('request.jwt.claims', true), '')
  )::jsonb $$;
create table t (id int primary key, org int, u uuid, s text, ok boolean);
create table m (org int, u uuid, s text, ok boolean);
create table g (id int primary key, org int, u uuid, s text, ok boolean);
create table profiles (id uuid primary key, org int, role app_role, s text);
alter table m owner to keeper;
alter table t enable row level security;
grant select on t to authenticated, anon;
create publication p for table t, m, g, profiles;
create function verdicts(rows int) returns text language plpgsql as $$
declare answer text := ''; found boolean;
begin
  for i in 1..rows loop
    begin
      execute format('select exists (select 1 from public.t where id = %s)', i) into found;
      answer := answer || case when found then 'T' else 'F' end;
    exception when others then
      answer := answer || case sqlstate when '42P17' then 'R' when '42501' then 'P' else 'E' end;
    end;
  end loop;
  return answer;
end $$;
insert into t values
  (1, 1, '00000000-0000-0000-0000-00000000000a', 'admin', true),
  (2, 1, '11111111-1111-1111-1111-111111111111', 'member', false),
  (3, 2, '00000000-0000-0000-0000-00000000000a', '1', true),
  (4, 2, null, 'admin', null),
  (5, 3, '11111111-1111-1111-1111-111111111111', null, true),
  (6, null, 'a0eebc99-9c0b-4ef8-bb6d-6bb9bd380a11', '2', false),
  (7, 4, 'a0eebc99-9c0b-4ef8-bb6d-6bb9bd380a11', 'member', true),
  (8, null, null, null, null);
insert into profiles values
  ('00000000-0000-0000-0000-00000000000a', 1, 'admin', 'admin'),
  ('11111111-1111-1111-1111-111111111111', 2, 'member', '1'),
  ('a0eebc99-9c0b-4ef8-bb6d-6bb9bd380a11', null, null, null);
insert into m values
  (1, '00000000-0000-0000-0000-00000000000a', 'admin', true),
  (2, '00000000-0000-0000-0000-00000000000a', 'member', false),
  (2, '11111111-1111-1111-1111-111111111111', 'admin', true),
  (4, '11111111-1111-1111-1111-111111111111', null, null),
  (null, 'a0eebc99-9c0b-4ef8-bb6d-6bb9bd380a11', 'member', true);
insert into g values
  (1, 1, '00000000-0000-0000-0000-00000000000a', 'admin', true),
  (2, 3, '11111111-1111-1111-1111-111111111111', 'member', false),
  (3, 2, null, '1', true);
"#;

/// The rows that traps are written for.
pub const ROWS: &str = r#"
truncate m, g, profiles;
insert into profiles values
  ('00000000-0000-0000-0000-00000000000a', 1, 'admin', 'admin'),
  ('11111111-1111-1111-1111-111111111111', 2, 'member', '1'),
  ('a0eebc99-9c0b-4ef8-bb6d-6bb9bd380a11', null, null, null);
insert into m values
  (1, '00000000-0000-0000-0000-00000000000a', 'admin', true),
  (2, '00000000-0000-0000-0000-00000000000a', 'member', false),
  (2, '11111111-1111-1111-1111-111111111111', 'admin', true),
  (4, '11111111-1111-1111-1111-111111111111', null, null),
  (null, 'a0eebc99-9c0b-4ef8-bb6d-6bb9bd380a11', 'member', true);
insert into g values
  (1, 1, '00000000-0000-0000-0000-00000000000a', 'admin', true),
  (2, 3, '11111111-1111-1111-1111-111111111111', 'member', false),
  (3, 2, null, '1', true);
"#;

const ANN: &str = "00000000-0000-0000-0000-00000000000a";
const BEN: &str = "11111111-1111-1111-1111-111111111111";
const CID: &str = "a0eebc99-9c0b-4ef8-bb6d-6bb9bd380a11";

pub const CLAIMS: [&str; 7] = [
    r#"{"sub": "00000000-0000-0000-0000-00000000000a", "role": "authenticated", "org": 1, "app_metadata": {"org_id": 1, "role": "admin", "roles": ["admin", "member"]}, "user_role": "admin", "aal": "aal2"}"#,
    r#"{"sub": "11111111-1111-1111-1111-111111111111", "role": "authenticated", "org": 2, "app_metadata": {"org_id": 2, "roles": []}, "user_role": "member", "aal": "aal1"}"#,
    r#"{"sub": "A0EEBC99-9C0B-4EF8-BB6D-6BB9BD380A11", "role": "service_role", "app_metadata": null}"#,
    r#"{"org": 3, "role": "anon"}"#,
    "{}",
    "",
    r#"{"sub": "nobody", "org": "x", "app_metadata": {"org_id": "x"}}"#,
];

/// Whether claims make what reads them raise an error.
pub fn raises(claims: &str) -> bool {
    claims.contains("nobody")
}

fn one<'a>(random: &mut StdRng, of: &[&'a str]) -> &'a str {
    of.choose(random).unwrap()
}

fn value(random: &mut StdRng, column: &str) -> String {
    if random.random_bool(0.15) {
        return "null".to_owned();
    }
    match column {
        "org" => one(random, &["1", "2", "3", "4"]).to_owned(),
        "u" => format!("'{}'", one(random, &[ANN, BEN, CID])),
        "s" => format!("'{}'", one(random, &["admin", "member", "1", "2"])),
        "role" => format!("'{}'", one(random, &["admin", "member"])),
        _ => one(random, &["true", "false"]).to_owned(),
    }
}

/// A row of a table that is looked into, as SQL.
pub fn row(random: &mut StdRng, table: &str, id: usize) -> String {
    let mut values = |columns: &[&str]| {
        let values = columns.iter().map(|column| value(random, column));
        values.collect::<Vec<_>>().join(", ")
    };
    match table {
        "m" => format!(
            "insert into m values ({})",
            values(&["org", "u", "s", "ok"])
        ),
        "g" => format!(
            "insert into g values ({id}, {})",
            values(&["org", "u", "s", "ok"])
        ),
        _ => {
            let own = [ANN, BEN, CID][id % 3];
            let values = values(&["org", "role", "s"]);
            format!("insert into profiles values ('{own}', {values}) on conflict do nothing")
        }
    }
}

/// A function being made: what it is called with, and how its body may name tables.
struct Making {
    /// The name of its argument, and the column of `t` that is passed.
    argument: Option<(&'static str, &'static str)>,
    qualified: bool,
}

impl Making {
    fn table(&self, random: &mut StdRng) -> String {
        let table = one(random, &["m", "m", "g"]);
        if self.qualified {
            format!("public.{table}")
        } else {
            table.to_owned()
        }
    }

    fn atom(&self, random: &mut StdRng) -> String {
        let argument = self.argument.filter(|_| random.random_bool(0.6));
        match argument {
            Some((name, column)) => {
                let by = if random.random_bool(0.1) { "x." } else { "" };
                if by.is_empty() || name.starts_with('p') {
                    format!("x.{column} = {name}")
                } else {
                    format!("x.{column} = x.{name}")
                }
            }
            None => one(
                random,
                &[
                    "x.u = auth.uid()",
                    "x.u = (select auth.uid())",
                    "x.s = 'admin'",
                    "x.s in ('admin', 'member')",
                    "x.ok",
                    "not x.ok",
                    "x.org is not null",
                    "x.org > 1",
                    "x.org = (auth.jwt() ->> 'org')::int",
                ],
            )
            .to_owned(),
        }
    }

    fn condition(&self, random: &mut StdRng) -> String {
        let mut all = vec![self.atom(random)];
        while random.random_bool(0.5) && all.len() < 3 {
            all.push(self.atom(random));
        }
        let join = if random.random_bool(0.85) {
            " and "
        } else {
            " or "
        };
        all.join(join)
    }

    fn truth(&self, random: &mut StdRng) -> String {
        let (table, condition) = (self.table(random), self.condition(random));
        match random.random_range(0..9) {
            0..=3 => format!("exists (select 1 from {table} x where {condition})"),
            4 => format!("not exists (select from {table} x where {condition})"),
            5 => format!("coalesce((select x.ok from {table} x where {condition} limit 1), false)"),
            6 => format!("2 in (select x.org from {table} x where {condition})"),
            7 => format!("(select x.s from {table} x where {condition} limit 1) = 'admin'"),
            _ => format!("auth.uid() = any (array(select x.u from {table} x where {condition}))"),
        }
    }

    /// A body for a boolean function and its language.
    fn body(&self, random: &mut StdRng) -> (String, &'static str) {
        let (table, condition) = (self.table(random), self.condition(random));
        match random.random_range(0..26) {
            0..=2 => (format!("select {}", self.truth(random)), "sql"),
            3 => (format!("select x.ok from {table} x where {condition}"), "sql"),
            4 => {
                let last = one(random, &["", " limit 1"]);
                (format!("select x.s = 'admin' from {table} x where {condition}{last};"), "sql")
            }
            5 | 6 => (format!("begin return {}; end", self.truth(random)), "plpgsql"),
            7 => {
                let strict = one(random, &["", "strict "]);
                let end = one(random, &["return v = 'admin';", "if v = 'admin' then return true; end if;"]);
                (
                    format!(
                        "declare v text; begin select x.s into {strict}v from {table} x where {condition};
                         if not found then return {}; end if; {end} end",
                        one(random, &["false", "null", "true"])
                    ),
                    "plpgsql",
                )
            }
            8 => (
                format!(
                    "declare who uuid := auth.uid(); begin
                       if who is null then return false; end if;
                       return exists (select 1 from {table} x where x.u = who and {condition}); end"
                ),
                "plpgsql",
            ),
            9 => (
                format!(
                    "declare n int := 2; b boolean; begin
                       if {} then n := 1; elsif {} then return null; else null; end if;
                       b := exists (select 1 from {table} x where x.org = n and {condition});
                       return b; end",
                    self.truth(random),
                    one(random, &["auth.uid() is null", "current_user = 'anon'", "current_setting('role', true) = 'anon'"])
                ),
                "plpgsql",
            ),
            10 => (
                format!(
                    "declare r text; begin
                       r := (select x.s from {table} x where {condition} limit 1);
                       if r = 'admin' then return true; elsif r is null then raise exception 'none'; end if;
                       return r in ('member', '1'); end"
                ),
                "plpgsql",
            ),
            11 => (
                format!(
                    "begin {}return {}; exception when others then {}return {}; end",
                    one(random, &["", "raise notice 'by %', auth.uid(); "]),
                    self.truth(random),
                    one(random, &["", "raise warning '%', sqlerrm; "]),
                    one(random, &["false", "null", "true", "auth.uid() is null"])
                ),
                "plpgsql",
            ),
            12 => (
                format!(
                    "declare who uuid; begin
                       begin who := auth.uid(); exception when {} then {}; end;
                       return exists (select 1 from {table} x where x.u is not distinct from who and {condition}); end",
                    one(random, &["others", "others", "invalid_text_representation"]),
                    one(random, &["return true", "return false", "null", "who := null", "raise exception 'x'"]),
                ),
                "plpgsql",
            ),
            13 => (
                format!(
                    "declare v text; begin
                       v := (select x.s from {table} x where {condition} limit 1);
                       case {} when {} then return true; when {} then return {}; {}end case; return null; end",
                    one(random, &["v", "v", "lower(v)"]),
                    one(random, &["'admin'", "'admin', '1'", "auth.jwt() ->> 'user_role'"]),
                    one(random, &["'member'", "null", "'2', 'admin'"]),
                    self.truth(random),
                    one(random, &["", "else return false; ", "else null; "]),
                ),
                "plpgsql",
            ),
            14 => (
                format!(
                    "begin perform {} from {table} x where {condition}; {}return found; end",
                    one(random, &["1", "x.s"]),
                    one(random, &["", "if not found then return null; end if; "]),
                ),
                "plpgsql",
            ),
            15 => (
                format!(
                    "declare n int; begin select count(*) into n from {table} x where {condition}{};
                       {}return n > {}; end",
                    one(random, &["", "", " having count(*) > 1", " having bool_or(x.ok)"]),
                    one(random, &["", "if not found then return true; end if; "]),
                    one(random, &["0", "1", "2"])
                ),
                "plpgsql",
            ),
            16 => (
                format!(
                    "begin begin if {} then return {}; else return {}; end if;
                       exception when others then null; end; return {}; end",
                    self.truth(random),
                    self.truth(random),
                    one(random, &["null", "false"]),
                    one(random, &["true", "false", "null"]),
                ),
                "plpgsql",
            ),
            17 | 18 => (
                format!("select {} and {}", self.truth(random), self.truth(random)),
                "sql",
            ),
            19 | 20 if self.argument.is_some() => (self.of_arrays(random, &table, &condition), "plpgsql"),
            _ => (self.of_rows(random, &table, &condition), "plpgsql"),
        }
    }

    /// A body with a variable that holds values of rows, which sub-selects over other rows compare with.
    fn of_arrays(&self, random: &mut StdRng, table: &str, condition: &str) -> String {
        let column = one(random, &["org", "org", "s", "u"]);
        let of = match column {
            "org" => "int",
            "s" => "text",
            _ => "uuid",
        };
        // Mostly what a user is in, whichever row it is asked about.
        let condition = if random.random_bool(0.6) {
            "x.u = auth.uid()"
        } else {
            condition
        };
        let rows = format!("from {table} x where {condition}");
        let made = match random.random_range(0..4) {
            0 => format!("select array_agg(x.{column}) into vs {rows}"),
            1 => format!("select coalesce(array_agg(x.{column}), '{{}}') into vs {rows}"),
            2 => format!("vs := array(select x.{column} {rows})"),
            _ => format!("vs := (select array_agg(x.{column}) {rows})"),
        };
        let among = one(
            random,
            &[
                "c = any (vs)",
                "c = any (vs)",
                "c = any (vs)",
                "not (c = any (vs))",
                "c <> all (vs)",
                "c in (select unnest(vs))",
                "vs @> array[c]",
                "c = any (vs || vs)",
            ],
        );
        let among = |of: &str| {
            among
                .replace("c ", &format!("{of}.{column} "))
                .replace("[c]", &format!("[{of}.{column}]"))
        };
        let other = one(random, &["public.g", "public.m"]);
        let with = if random.random_bool(0.9) {
            self.condition(random).replace("x.", "y.")
        } else {
            "true".to_owned()
        };
        let said = match random.random_range(0..4) {
            0 => format!(
                "return exists (select 1 from {other} y where {with} and {})",
                among("y")
            ),
            1 => format!(
                "select exists (select 1 from {other} y join public.m z on z.org = y.org where {with} and {}) into b; return b",
                among("z")
            ),
            2 => format!(
                "return exists (select 1 from {other} y where {with} and exists (select 1 from public.m z where z.s = y.s and {}))",
                among("z")
            ),
            _ => format!(
                "return (select bool_or({}) from {other} y where {with})",
                among("y")
            ),
        };
        format!("declare vs {of}[]; b boolean; begin {made}; {said}; end")
    }

    /// A body with a variable that holds a row.
    fn of_rows(&self, random: &mut StdRng, table: &str, condition: &str) -> String {
        let strict = one(random, &["", "", "", "strict "]);
        let limit = one(random, &["", "", " limit 1", " order by x.org limit 1"]);
        let tested = one(
            random,
            &[
                "not found",
                "r is null",
                "r.u is null",
                "r.org is not null",
                "r is not null",
                "r.s = 'member'",
                "not (r.ok)",
                "r.s is distinct from 'admin'",
            ],
        );
        let given = one(random, &["false", "null", "true", "r.ok"]);
        let last = one(
            random,
            &[
                "r.s = 'admin'",
                "r.ok",
                "r.org > 1",
                "r is not null",
                "coalesce(r.ok, r.s = '1')",
                "r.u = auth.uid() and r.ok",
                "exists (select 1 from public.g y where y.org = r.org)",
            ],
        );
        match random.random_range(0..6) {
            0 | 1 => {
                let of = one(random, &["record", "m%rowtype", "m", "public.m%rowtype"]);
                let of = if self.qualified && of.starts_with('m') {
                    format!("public.{of}")
                } else {
                    of.to_owned()
                };
                let what = if of == "record" { "*" } else { "x.org, x.u, x.s, x.ok" };
                format!(
                    "declare r {of}; begin select {what} into {strict}r from {table} x where {condition}{limit};
                     if {tested} then return {given}; end if; return {last}; end"
                )
            }
            2 => {
                let first = one(random, &["if x_on", "if auth.uid() is not null"]);
                let first = first.replace("x_on", &self.truth(random));
                format!(
                    "declare r {}; begin
                       {first} then select x.* into r from public.m x where {condition}{limit}; end if;
                       if {tested} then return {given}; end if; return {last}; end",
                    one(random, &["record", "public.m"]),
                )
            }
            3 => format!(
                "declare r record; begin
                   select x.s as kind, x.org + 1 as next, x.ok into r from {table} x where {condition}{limit};
                   return {}; end",
                one(random, &["r.next > 2", "r.kind = 'admin' or r.ok", "r is null", "found and r.ok"]),
            ),
            4 => format!(
                "declare r public.profiles%rowtype; begin
                   select * into r from public.profiles where id = auth.uid();
                   if not found then return {}; end if;
                   return r.role = 'admin' or exists (select 1 from {table} x where x.org = r.org and {condition}); end",
                one(random, &["false", "r.s is null", "r is null"]),
            ),
            _ => format!(
                "declare a int := 7; b public.m.s%type; c boolean := true; begin
                   select {} into a, b, c from {table} x where {condition}{limit};
                   return {}; end",
                one(random, &["x.org", "x.org, x.s", "x.org, x.s, x.ok, x.u", "x.org, x.s, x.ok, x.s::int"]),
                one(random, &["c", "a > 1", "b = 'admin'", "c is null", "a is not null"]),
            ),
        }
    }
}

/// Policies and functions as SQL, and the search path of the role that asks where it is its own.
pub fn case(random: &mut StdRng) -> (Vec<String>, Option<&'static str>) {
    let mut sql = Vec::new();
    // What those who look see of the tables themselves.
    if random.random_bool(0.4) {
        sql.push("alter table m enable row level security".to_owned());
        if random.random_bool(0.5) {
            sql.push("alter table m force row level security".to_owned());
        }
        for (name, who) in [
            ("a", "authenticated, anon"),
            ("k", "keeper"),
            ("q", "plain"),
        ] {
            if random.random_bool(0.7) {
                let using = one(
                    random,
                    &["ok", "u = auth.uid()", "org > 1 or s = 'admin'", "true"],
                );
                sql.push(format!(
                    "create policy {name} on m for select to {who} using ({using})"
                ));
            }
        }
    }
    let mut calls = Vec::new();
    for at in 0..random.random_range(1..=2) {
        let argument = match random.random_range(0..8) {
            0..=2 => Some(("p_org", "org")),
            3 => Some(("p_u", "u")),
            4 => Some(("p_s", "s")),
            5 => Some(("org", "org")),
            _ => None,
        };
        let pinned = one(
            random,
            &[" set search_path = ''", " set search_path = public", "", ""],
        );
        let making = Making {
            argument,
            qualified: pinned.ends_with("''") || random.random_bool(0.3),
        };
        let (body, language) = making.body(random);
        let (strict, definer) = (random.random_bool(0.2), random.random_bool(0.7));
        let parameter = argument.map_or(String::new(), |(name, column)| {
            let of = match column {
                "org" => "int",
                "u" => "uuid",
                _ => "text",
            };
            let default = match column {
                "u" => " default auth.uid()",
                "org" => " default 2",
                _ => " default auth.role()",
            };
            let default = if random.random_bool(0.3) { default } else { "" };
            format!("{name} {of}{default}")
        });
        let left_out = parameter.contains(" default ") && random.random_bool(0.7);
        let named = random.random_bool(0.2);
        let quoted = if language == "sql" && random.random_bool(0.25) {
            format!("begin atomic {}; end", body.trim_end_matches(';'))
        } else {
            format!("as $f${body}$f$")
        };
        sql.push(format!(
            "create function f_{at}({parameter}) returns boolean language {language} {}{}{}{pinned} {quoted}",
            one(random, &["stable", "volatile"]),
            if strict { " strict" } else { "" },
            if definer { " security definer" } else { "" },
        ));
        let of = parameter.split(' ').nth(1).unwrap_or_default();
        let owner = one(random, &["postgres", "postgres", "keeper", "plain"]);
        sql.push(format!("alter function f_{at}({of}) owner to {owner}"));
        let argument = match argument {
            Some((name, column)) if named && !left_out => format!("{name} => {column}"),
            Some((_, column)) if !left_out => column.to_owned(),
            _ => String::new(),
        };
        calls.push(format!("f_{at}({argument})"));
    }
    if random.random_bool(0.3) {
        let limit = one(random, &["", " and x.org = p_org"]);
        let (parameter, argument) = if limit.is_empty() {
            ("", "")
        } else {
            ("p_org int", "org")
        };
        let strict = one(random, &["", " strict"]);
        let body = one(
            random,
            &[
                "sql as $$ select",
                "plpgsql as $$ begin return query select",
                "plpgsql as $$ declare v text; begin
                   select x.s into v from public.profiles x where x.id = auth.uid();
                   if v = 'admin' then return query select x.org from public.g x; return;
                   elsif not found then return query select x.org from public.g x where x.ok; end if;
                   return query select",
                "plpgsql as $$ begin return query select x.org from public.g x where x.u = auth.uid() and x.ok;
                   if not found then return query select x.org from public.g x where x.s = 'admin'; return; end if;
                   return query select",
                "sql as $$ select x.org from public.g x where x.u = auth.uid() union all select",
            ],
        );
        let end = if body.starts_with("sql") { "" } else { "; end" };
        sql.push(format!(
            "create function f_set({parameter}) returns setof int stable security definer{strict} language
             {body} x.org from public.m x where x.u = auth.uid(){limit}{end} $$"
        ));
        calls.push(match random.random_range(0..5) {
            0 => format!("org in (select f_set({argument}))"),
            4 => format!("org in (select * from f_set({argument}))"),
            1 => format!("org = any (array(select f_set({argument})))"),
            2 => format!("exists (select f_set({argument}))"),
            _ => format!("org not in (select f_set({argument}))"),
        });
    }
    for (at, call) in calls.iter().enumerate() {
        let text = match random.random_range(0..9) {
            0..=2 => call.clone(),
            3 => format!("not {call}"),
            4 => format!("coalesce({call}, true)"),
            5 => format!("{call} is not false"),
            6 => format!("ok and {call}"),
            7 => format!("s = 'admin' or {call}"),
            _ => format!("(select {call})"),
        };
        let kind = if at > 0 && random.random_bool(0.3) {
            "restrictive"
        } else {
            "permissive"
        };
        sql.push(format!(
            "create policy p{at} on t as {kind} for select using ({text})"
        ));
    }
    let path = random.random_bool(0.1).then_some("decoy, public");
    (sql, path)
}
