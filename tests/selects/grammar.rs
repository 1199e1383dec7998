//! Random policies that look into other tables, random rows and claims. Values come from small
//! pools, so that they meet.

use rand::Rng;
use rand::rngs::StdRng;
use rand::seq::IndexedRandom;

/// `t` is judged; the others are looked into. `m` may hold a row twice.
pub const SCHEMA: &str = r#"
create role authenticated;
create role other;
create schema auth;
grant usage on schema auth to authenticated, other;
create function auth.uid() returns uuid language sql stable begin atomic
  select (nullif(current_setting('request.jwt.claims', true), '')::jsonb ->> 'sub')::uuid; end;
create function auth.jwt() returns jsonb language sql stable begin atomic
  select nullif(current_setting('request.jwt.claims', true), '')::jsonb; end;
create table t (id int primary key, org int, u uuid, s text, ok boolean);
create table m (org int, u uuid, s text, ok boolean);
create table g (id int primary key, org int, u uuid, s text, ok boolean);
alter table m replica identity full;
alter table t enable row level security;
grant select on t, m, g to authenticated;
-- Views with the rights of a superuser, of somebody with no more than rights, and of who asks.
create role keeper;
grant usage on schema auth to keeper;
grant select on m, g to keeper;
create view v as select x.org, x.u, x.s, x.ok from m x where x.ok is not false;
create view w (id, org, u, s, ok) as
  select a.id, b.org, b.u, coalesce(b.s, a.s), b.ok from g a join v b on b.org = a.org where a.s is not null;
create view h as select g.*, auth.uid() as who from g where g.u is not null;
alter view h owner to keeper;
do $$ begin
  if current_setting('server_version_num')::int < 150000 then
    create view i as select * from m;
  else
    execute 'create view i with (security_invoker) as select * from m';
  end if;
end $$;
grant select on v to keeper;
alter view w owner to keeper;
grant select on v, w, h, i to authenticated;
create publication p for table t;
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
"#;

/// The tables that are looked into, and their columns.
pub const LOOKUPS: [(&str, &[&str]); 2] = [
    ("m", &["org", "u", "s", "ok"]),
    ("g", &["id", "org", "u", "s", "ok"]),
];

const ANN: &str = "00000000-0000-0000-0000-00000000000a";
const BEN: &str = "11111111-1111-1111-1111-111111111111";
const CID: &str = "a0eebc99-9c0b-4ef8-bb6d-6bb9bd380a11";
const INTS: [&str; 4] = ["1", "2", "3", "4"];
const TEXTS: [&str; 4] = ["admin", "member", "1", "2"];

pub const CLAIMS: [&str; 7] = [
    r#"{"sub": "00000000-0000-0000-0000-00000000000a", "org": 1, "s": "admin"}"#,
    r#"{"sub": "00000000-0000-0000-0000-00000000000a", "org": 2, "s": "2"}"#,
    r#"{"sub": "11111111-1111-1111-1111-111111111111", "org": 1, "s": "member"}"#,
    r#"{"sub": "A0EEBC99-9C0B-4EF8-BB6D-6BB9BD380A11", "s": "1"}"#,
    r#"{"org": 3}"#,
    "{}",
    r#"{"sub": "nobody", "org": "x"}"#,
];

/// Policies that are tried by themselves: among others what they say may decide nothing.
pub const SINGLES: &[&str] = &[
    "t.org = (select x.org from m x where x.u = auth.uid())",
    "(select x.ok from m x where x.org = t.org)",
    "(select count(*) filter (where x.ok) from m x where x.org = t.org) = 1",
    "(select bool_or(x.ok) filter (where x.s = 'admin') from m x where x.org = t.org)",
    "(select x.ok is null from m x order by x.ok nulls first limit 1)",
    "(select x.org is null from m x order by x.org desc limit 1)",
    "(select x.ok is not null from m x order by x.ok limit 1)",
    "(select bool_or(x.ok) from m x where x.org <> t.org)",
    "(select bool_and(x.ok) from m x where x.org <> t.org)",
    "not (select every(x.ok) from m x where x.ok is not null)",
    "(select min(x.org) from m x where x.org is not null) = t.org",
    "(select max(x.org) from m x where x.u = auth.uid()) = t.org",
    "t.org in (select x.org from m x except select y.org from g y)",
    "t.org in (select x.org from m x where x.ok intersect select y.id from g y)",
    "exists (select 1 from g x join m y on y.org = x.id where x.org = t.org and y.u = auth.uid())",
    "t.org in (select x.org from g x where x.id in (select y.org from m y where y.u = auth.uid()))",
    "exists (with recursive up as (select g.id, g.org from g where g.id = t.org
       union select p.id, p.org from g p join up on p.id = up.org)
       select 1 from up join m y on y.org = up.id where y.u = auth.uid())",
    "cardinality(array(select x.org from m x union select y.org from m y)) > t.org",
    "(select count(distinct x.s) from m x where x.org = t.org) = 1",
    "(select count(distinct x.org) from m x where x.ok is not false) = t.org",
    "(select x.s from g x where x.s is not null order by x.id desc limit 1) = t.s",
    "(select x.s from g x order by x.id limit 1) = t.s",
    "(select x.s from m x order by x.org nulls first limit 1) = t.s",
    "(select x.u from m x order by x.org desc limit 1) = t.u",
    "exists (select 1 from v x where x.org = t.org and x.u = auth.uid())",
    "exists (select 1 from i x where x.org = t.org and x.u = auth.uid())",
    "(select count(distinct x.org) from m x, g y where x.org = t.org) = 1",
];

/// Whether claims make what reads them raise an error.
pub fn raises(claims: &str) -> bool {
    claims.contains("nobody")
}

fn one<'a>(random: &mut StdRng, of: &[&'a str]) -> &'a str {
    of.choose(random).unwrap()
}

/// A value of a column as SQL.
pub fn value(random: &mut StdRng, column: &str) -> String {
    if random.random_bool(0.15) {
        return "null".to_owned();
    }
    match column {
        "org" | "id" => one(random, &INTS).to_owned(),
        "u" => format!("'{}'", one(random, &[ANN, BEN, CID])),
        "s" => format!("'{}'", one(random, &TEXTS)),
        _ => one(random, &["true", "false"]).to_owned(),
    }
}

/// The table of a query around, and what it is called there.
#[derive(Clone, Copy)]
pub struct Around {
    pub table: &'static str,
    pub alias: &'static str,
}

const ALIASES: [&str; 8] = ["x0", "x1", "x2", "x3", "x4", "x5", "x6", "x7"];

/// What a policy may hold.
#[derive(Clone, Copy)]
pub struct Wish {
    /// Whether parts may raise errors.
    pub errors: bool,
    /// The tables that may be looked into.
    pub into: &'static [&'static str],
}

/// A condition on the rows of the innermost of the tables around.
pub fn boolean(random: &mut StdRng, wish: Wish, around: &mut Vec<Around>, depth: u32) -> String {
    if depth == 0 {
        return atom(random, wish, around);
    }
    match random.random_range(0..12) {
        0 | 1 => join(random, wish, around, depth, "and"),
        2 => join(random, wish, around, depth, "or"),
        3 => format!("not ({})", boolean(random, wish, around, depth - 1)),
        4 => {
            let is = one(
                random,
                &["is true", "is not true", "is null", "is not false"],
            );
            format!("({}) {is}", boolean(random, wish, around, depth - 1))
        }
        5 => format!(
            "coalesce({}, {})",
            boolean(random, wish, around, depth - 1),
            one(random, &["true", "false"])
        ),
        6..=10 if !wish.into.is_empty() && around.len() < ALIASES.len() => {
            sub_select(random, wish, around, depth)
        }
        _ => atom(random, wish, around),
    }
}

/// What policies mostly look like: a row is seen by the members of what it belongs to.
pub fn membership(random: &mut StdRng, wish: Wish, around: &mut Vec<Around>) -> String {
    let table = *wish.into.choose(random).unwrap();
    let before = around.len();
    around.push(Around { table, alias: "x0" });
    let besides = match random.random_range(0..3) {
        0 => String::new(),
        1 => format!(" and x0.s = '{}'", one(random, &TEXTS)),
        _ => format!(" and {}", boolean(random, wish, around, 1)),
    };
    around.truncate(before);
    let other = *wish.into.choose(random).unwrap();
    let by = one(random, &["org", "org", "s"]);
    let policy = match random.random_range(0..32) {
        // Where NULL comes in an order, and how often a row is there.
        16 | 19 | 20 => format!(
            "(select x0.s from {table} x0 where x0.ok is not false{besides}
             order by x0.org {} limit 1) = t.s",
            one(random, &["nulls first", "desc nulls last", "desc"])
        ),
        17 | 18 => format!(
            "(select count(*) from {table} x0 where x0.org = t.org{besides}) = {}",
            random.random_range(1..3)
        ),
        21 => format!(
            "t.org = any ((select array_agg(x0.org) from {table} x0
             where x0.u = auth.uid(){besides})::int[])"
        ),
        22 => format!(
            "coalesce((select array_agg(x0.org) filter (where x0.ok) from {table} x0
             where x0.u = auth.uid(){besides}), '{{}}') @> array[t.org]"
        ),
        23 => format!(
            "array(select x0.org from {table} x0 where x0.u = auth.uid(){besides})
             && array[t.org, t.id]"
        ),
        24 => format!(
            "not (t.org = any (coalesce((select array_agg(distinct x0.org) from {table} x0
             where x0.u = auth.uid(){besides}), array[t.id])))"
        ),
        // Up and down a tree, which may have cycles.
        25 => format!(
            "exists (with recursive up as (select g.id, g.org from g where g.id = t.org
             union select p.id, p.org from g p join up on p.id = up.org)
             select 1 from up join {table} x0 on x0.org = up.id where x0.u = auth.uid(){besides})"
        ),
        26 => format!(
            "t.org in (with recursive down as (select x0.org from {table} x0
             where x0.u = auth.uid(){besides}
             union select p.id from g p, down where p.org = down.org and p.ok is not false)
             select org from down)"
        ),
        27 => format!(
            "(with recursive up (id, n) as (select x0.org, 1 from {table} x0
             where x0.u = auth.uid(){besides}
             union all select p.org, up.n + 1 from up join g p on p.id = up.id where up.n < 3)
             select count(*) from up where up.id = t.org) > {}",
            random.random_range(0..3)
        ),
        // Elements of what is in the rows.
        28 => format!(
            "t.org in (select unnest(array[x0.org, length(x0.s) - 4]) from {table} x0
             where x0.u = auth.uid(){besides})"
        ),
        29 => format!(
            "exists (select 1 from {table} x0, unnest(array[x0.org, 3]) as y(org)
             where y.org = t.org and x0.u = auth.uid(){besides})"
        ),
        30 => format!(
            "exists (select 1 from {table} x0 {}join lateral
             (select x9.s, x9.u from {other} x9 where x9.{by} = x0.{by}) y on y.s = x0.s
             where (y.u is null or y.s = t.s) and x0.u = auth.uid(){besides})",
            one(random, &["", "left "])
        ),
        31 => format!(
            "t.{} = any (array(select x0.org from {table} x0 where x0.u = auth.uid(){besides}
             union {}select x9.org from {other} x9 where x9.u = auth.uid() and x9.ok))",
            one(random, &["org", "id"]),
            one(random, &["", "all "])
        ),
        // Of several rows it raises an error.
        14 if wish.errors => format!("t.org = (select distinct x0.org from {table} x0 where x0.u = auth.uid(){besides})"),
        15 => format!(
            "(select count(distinct x0.org) from {table} x0 where x0.u = auth.uid(){besides}) = 1"
        ),
        12 => format!(
            "(select count(*) from {table} x0 where x0.org = t.org and x0.u = auth.uid(){besides}) > 0"
        ),
        13 => format!(
            "t.org = (select x0.org from {table} x0 where x0.u = auth.uid(){besides}
             order by x0.org desc limit 1)"
        ),
        0 => format!(
            "exists (select 1 from {table} x0 where x0.org = t.org and x0.u = auth.uid(){besides})"
        ),
        1 => format!("t.org in (select x0.org from {table} x0 where x0.u = auth.uid(){besides})"),
        2 => format!("auth.uid() in (select x0.u from {table} x0 where x0.org = t.org{besides})"),
        3 => format!(
            "(select x0.s from {table} x0 where x0.u = (select auth.uid()){besides} limit 1) = t.s"
        ),
        4 => format!(
            "(select x0.u from {table} x0 where x0.org = t.id{besides} limit 1) = auth.uid()"
        ),
        5 | 6 => format!(
            "exists (select 1 from {table} x0 join {other} x9 using ({by})
             where x0.org = t.org and x9.u = auth.uid(){besides})"
        ),
        7 => format!(
            "t.org in (select x9.org from {other} x9 where x9.u = auth.uid()
             and x9.{by} in (select x0.{by} from {table} x0 where x0.ok{besides}))"
        ),
        8 => format!(
            "exists (select 1 from {table} x0 where x0.org = t.org{besides}
             and x0.{by} = (select x9.{by} from {other} x9 where x9.u = auth.uid() limit 1))"
        ),
        9 => format!(
            "coalesce((select true from {table} x0 left join {other} x9 on x9.{by} = x0.{by}
             where x0.org = t.org and x9.u = auth.uid(){besides} limit 1), false)"
        ),
        10 => format!(
            "case when exists (select 1 from {table} x0, {other} x9 where x9.{by} = x0.{by}
             and x0.u = auth.uid() and x9.org = t.org{besides}) then true else false end"
        ),
        _ => format!(
            "exists (select 1 from {table} x0 left join {other} x9
             on x9.{by} = x0.{by} and x9.u = auth.uid() where x0.org = t.org{besides} and x9.u is null)"
        ),
    };
    match random.random_range(0..5) {
        0 => format!("({policy} or t.u = auth.uid())"),
        1 => format!("({policy} and t.ok)"),
        _ => policy,
    }
}

fn join(random: &mut StdRng, wish: Wish, around: &mut Vec<Around>, depth: u32, by: &str) -> String {
    let a = boolean(random, wish, around, depth - 1);
    let b = boolean(random, wish, around, depth - 1);
    format!("({a} {by} {b})")
}

/// FROM: one table, or several joined; the tables are put around, the first one innermost.
fn from(random: &mut StdRng, wish: Wish, around: &mut Vec<Around>) -> String {
    let one = |random: &mut StdRng, at: usize| Around {
        table: wish.into.choose(random).unwrap(),
        alias: ALIASES[at - 1],
    };
    let first = one(random, around.len());
    if random.random_bool(0.55) || around.len() + 2 > ALIASES.len() {
        around.push(first);
        return format!("from {} {}", first.table, first.alias);
    }
    let second = one(random, around.len() + 1);
    let names = [first, second].map(|one| format!("{} {}", one.table, one.alias));
    let [a, b] = names;
    let outside = around.len();
    around.push(second);
    around.push(first);
    let on = |random: &mut StdRng, around: &[Around]| {
        let kind = *["int", "int", "uuid", "text"].choose(random).unwrap();
        let [left, right] = [first, second].map(|one| column(random, kind, one));
        match random.random_range(0..5) {
            0 => format!("{left} = {right} and {}", atom(random, wish, around)),
            1 => format!("{right} = {left} and {}", link(random, around)),
            2 => atom(random, wish, around),
            _ => format!("{left} = {right}"),
        }
    };
    match random.random_range(0..10) {
        0 | 1 => format!("from {a} join {b} on {}", on(random, around)),
        2 => format!("from {a} left join {b} on {}", on(random, around)),
        3 => format!("from {b} left join {a} on {}", on(random, around)),
        4 => format!("from {b} right join {a} on {}", on(random, around)),
        5 => {
            let by = self::one(random, &["org", "u", "org, u", "s"]);
            let kind = self::one(random, &["", "left ", "right "]);
            format!("from {a} {kind}join {b} using ({by})")
        }
        6 => {
            // What is joined is itself a join.
            let third = one(random, around.len());
            if around.len() >= ALIASES.len() {
                return format!("from {a}, {b}");
            }
            let c = format!("{} {}", third.table, third.alias);
            let [left, right] = [second, third].map(|one| column(random, "int", one));
            let kind = self::one(random, &["join", "left join"]);
            let on = on(random, around);
            around.insert(outside, third);
            format!("from {a} left join ({b} {kind} {c} on {left} = {right}) on {on}")
        }
        7 => {
            let kind = self::one(random, &["", "left "]);
            let inner = atom(
                random,
                Wish {
                    errors: false,
                    ..wish
                },
                &[Around {
                    alias: "y",
                    ..second
                }],
            );
            let (table, alias) = (second.table, second.alias);
            let on = on(random, around);
            format!("from {a} {kind}join (select y.* from {table} y where {inner}) {alias} on {on}")
        }
        _ => format!("from {a}, {b}"),
    }
}

fn sub_select(random: &mut StdRng, wish: Wish, around: &mut Vec<Around>, depth: u32) -> String {
    let outside = around.len();
    let kind = one(random, &["int", "int", "uuid", "text"]);
    let left = known(random, kind, around);
    let from = from(random, wish, around);
    let column = own(random, kind, around);
    let condition = match random.random_range(0..6) {
        0 => boolean(random, wish, around, depth - 1),
        // What policies look like.
        1 | 2 => format!(
            "{} and {}",
            link(random, around),
            boolean(random, wish, around, depth - 1)
        ),
        3 => format!("{} and {}", link(random, around), link(random, around)),
        4 => link(random, around),
        _ => format!(
            "{} or {}",
            link(random, around),
            boolean(random, wish, around, depth - 1)
        ),
    };
    let truth = own(random, "boolean", around);
    let least = boolean(
        random,
        Wish {
            errors: false,
            into: &[],
        },
        around,
        0,
    );
    let condition = if from.contains("using (org") && random.random_bool(0.5) {
        format!(
            "{condition} and org = {}",
            known(random, "int", &around[..outside])
        )
    } else {
        condition
    };
    around.truncate(outside);
    let distinct = one(random, &["", "", "", "distinct "]);
    let count = random.random_range(0..3);
    match random.random_range(0..31) {
        21 | 28..=30 => {
            let filter = one(random, &["", "", "filter (where LEAST)"]).replace("LEAST", &least);
            let what = one(
                random,
                &["*", "COLUMN", "distinct COLUMN", "distinct COLUMN"],
            );
            let what = what.replace("COLUMN", &column);
            let op = one(random, &["=", ">", ">=", "<"]);
            format!("(select count({what}) {filter} {from} where {condition}) {op} {count}")
        }
        22 => {
            let function = one(random, &["bool_or", "bool_and", "every"]);
            format!("(select {function}({truth}) {from} where {condition})")
        }
        23 if kind == "int" => {
            let function = one(random, &["max", "min"]);
            let otherwise = known(random, kind, around);
            format!(
                "(select coalesce({function}({column}), {otherwise}) {from} where {condition}) = {left}"
            )
        }
        24 => format!(
            "exists (select count(*) {from} where {condition} having count(*) > {count} or bool_or({truth}))"
        ),
        // Now and then the order leaves open which is the first.
        23 | 25 => {
            let direction = one(random, &["", "desc", "nulls first", "desc nulls last"]);
            let then = if random.random_bool(0.7) {
                &column
            } else {
                &truth
            };
            format!(
                "(select {column} {from} where {condition} order by {then} {direction} limit 1) = {left}"
            )
        }
        0..=4 => {
            let what = one(random, &["1", "*", "x0.org", ""]);
            let what = if what == "x0.org" {
                column.as_str()
            } else {
                what
            };
            let limit = one(random, &["", "", "limit 1"]);
            format!("exists (select {what} {from} where {condition} {limit})")
        }
        5..=7 => format!("{left} in (select {distinct}{column} {from} where {condition})"),
        8 | 9 => format!("{left} not in (select {column} {from} where {condition})"),
        10 => format!("{left} <> all (select {column} {from} where {condition})"),
        11 => format!("{left} = any (array(select {column} {from} where {condition}))"),
        12 | 26 | 27 => {
            // Without it several rows raise an error.
            let limits = if wish.errors {
                &["", "limit 1"][..]
            } else {
                &["limit 1"]
            };
            let limit = one(random, limits);
            format!("(select {distinct}{column} {from} where {condition} {limit}) = {left}")
        }
        13 => format!("(select {truth} {from} where {condition} limit 1)"),
        14 if wish.errors => format!("(select {column} {from} where {condition}) = {left}"),
        14 => format!("(select {truth} {from} where {condition} limit 1) is not true"),
        15 => {
            let not = one(random, &["", "not "]);
            let other = known(random, "boolean", around);
            format!("({left}, {other}) {not}in (select {column}, {truth} {from} where {condition})")
        }
        16..=18 => {
            // Another sub-select of the same column.
            let by = one(random, &["union", "union all", "intersect", "except"]);
            let table = *wish.into.choose(random).unwrap();
            let other = Around { table, alias: "z" };
            let more = self::column(random, kind, other);
            let test = atom(random, wish, &[other]);
            let both = format!(
                "select {column} {from} where {condition} {by} select {more} from {table} z where {test}"
            );
            match random.random_range(0..3) {
                0 => format!("exists ({both})"),
                1 => format!("{left} in ({both})"),
                _ => format!("{left} not in ({both})"),
            }
        }
        19 => format!(
            "exists (with w as (select {column} as c, {truth} as d {from} where {condition})
             select 1 from w where w.c = {left})"
        ),
        _ => format!("(select exists (select {from} where {condition}))"),
    }
}

/// An equality between the innermost row and what is known outside.
fn link(random: &mut StdRng, around: &[Around]) -> String {
    let kind = one(random, &["int", "uuid", "uuid", "text"]);
    let own = own(random, kind, around);
    let known = known(random, kind, &around[..around.len() - 1]);
    if random.random_bool(0.5) {
        format!("{own} = {known}")
    } else {
        format!("{known} = {own}")
    }
}

fn atom(random: &mut StdRng, wish: Wish, around: &[Around]) -> String {
    let kind = one(random, &["int", "uuid", "text", "boolean"]);
    let own = own(random, kind, around);
    match random.random_range(0..8) {
        0 => format!("{own} is null"),
        1 if kind == "boolean" => own,
        2 if kind == "int" => format!("{own} > {}", known(random, kind, around)),
        3 if wish.errors => {
            let text = self::own(random, "text", around);
            format!("{text}::int = {}", known(random, "int", around))
        }
        4 => format!("{own} is distinct from {}", known(random, kind, around)),
        5 => format!("{own} <> {}", known(random, kind, around)),
        _ => format!("{own} = {}", known(random, kind, around)),
    }
}

/// A column of the innermost row.
fn own(random: &mut StdRng, kind: &str, around: &[Around]) -> String {
    let innermost = around.last().unwrap();
    column(random, kind, *innermost)
}

fn column(random: &mut StdRng, kind: &str, of: Around) -> String {
    let name = match kind {
        "int" if !["m", "v", "i"].contains(&of.table) => one(random, &["id", "org"]),
        "int" => "org",
        "uuid" => "u",
        "text" => "s",
        _ => "ok",
    };
    format!("{}.{name}", of.alias)
}

/// A column of some row around, a claim or a constant.
fn known(random: &mut StdRng, kind: &str, around: &[Around]) -> String {
    match random.random_range(0..5) {
        0 | 1 if !around.is_empty() => {
            let of = *around.choose(random).unwrap();
            column(random, kind, of)
        }
        0..=2 => match kind {
            "int" => "(auth.jwt() ->> 'org')::int".to_owned(),
            "uuid" => one(random, &["auth.uid()", "(select auth.uid())"]).to_owned(),
            "text" => "(auth.jwt() ->> 's')".to_owned(),
            _ => "true".to_owned(),
        },
        _ => match kind {
            "int" => one(random, &INTS).to_owned(),
            "uuid" => format!("'{}'::uuid", one(random, &[ANN, BEN])),
            "text" => format!("'{}'", one(random, &TEXTS)),
            _ => one(random, &["true", "false"]).to_owned(),
        },
    }
}
