//! Policies of every level, and the tables and functions that they look into.

use rand::Rng;
use rand::rngs::StdRng;
use rand::seq::IndexedRandom;

/// Conditions with their level; `{t}` is the table.
const CONDITIONS: [(char, &str); 48] = [
    ('A', "{t}.u = auth.uid()"),
    ('A', "{t}.u = (select auth.uid())"),
    ('A', "{t}.ok"),
    ('A', "{t}.s = auth.jwt() ->> 's'"),
    ('A', "{t}.org = (auth.jwt() ->> 'org')::int"),
    ('A', "{t}.n > 2"),
    ('A', "{t}.s in ('a', 'ab')"),
    ('A', "{t}.s like 'a%'"),
    ('A', "auth.role() = 'authenticated'"),
    ('A', "{t}.u is distinct from auth.uid()"),
    ('A', "coalesce({t}.n, 3) <> 2"),
    (
        'A',
        "case when {t}.n > 2 then {t}.ok else {t}.u = auth.uid() end",
    ),
    (
        'B',
        "exists (select 1 from m where m.org = {t}.org and m.u = auth.uid())",
    ),
    (
        'B',
        "exists (select 1 from m where m.org = {t}.org and m.u = auth.uid() and m.ok)",
    ),
    (
        'B',
        "{t}.org in (select m.org from m where m.u = auth.uid())",
    ),
    (
        'B',
        "{t}.org in (select org from m where u = (select auth.uid()) and s = 'a')",
    ),
    (
        'B',
        "auth.uid() in (select m.u from m where m.org = {t}.org)",
    ),
    (
        'B',
        "not exists (select 1 from m where m.org = {t}.org and m.u = auth.uid() and m.s = 'b')",
    ),
    (
        'B',
        "{t}.org not in (select m.org from m where m.u = auth.uid() and m.org is not null)",
    ),
    (
        'B',
        "(select count(*) from m where m.org = {t}.org and m.u = auth.uid()) > 0",
    ),
    (
        'B',
        "(select count(distinct m.s) from m where m.org = {t}.org) > 1",
    ),
    (
        'B',
        "{t}.org = any (array(select m.org from m where m.u = auth.uid()))",
    ),
    ('B', "{t}.org = (select g.org from g where g.id = {t}.n)"),
    ('B', "(select g.ok from g where g.id = {t}.n)"),
    ('B', "{t}.n > all (select g.id from g where g.ok)"),
    (
        'C',
        "exists (select 1 from m join g on g.org = m.org where g.id = {t}.n and m.u = auth.uid())",
    ),
    (
        'C',
        "exists (select 1 from m, g where g.org = m.org and g.s = {t}.s and m.u = auth.uid())",
    ),
    (
        'C',
        "exists (select 1 from g left join m on m.org = g.org and m.u = auth.uid() where g.org = {t}.org and m.u is null)",
    ),
    (
        'C',
        "{t}.n in (select g.id from g where g.org in (select m.org from m where m.u = auth.uid()))",
    ),
    (
        'C',
        "{t}.org in (select org from m where u = auth.uid() union select org from g where u = auth.uid())",
    ),
    (
        'C',
        "{t}.org in (select org from m where u = auth.uid() except select org from g where not ok)",
    ),
    (
        'C',
        "{t}.org in (select org from m where u = auth.uid() intersect select org from g where ok)",
    ),
    (
        'C',
        "(select bool_or(m.ok) from m where m.org = {t}.org and m.u = auth.uid())",
    ),
    (
        'C',
        "{t}.org = (select m.org from m where m.u = auth.uid() order by m.org desc limit 1)",
    ),
    (
        'C',
        "coalesce((select max(m.org) from m where m.u = auth.uid()), 0) >= {t}.org",
    ),
    ('D', "h_member({t}.org)"),
    ('D', "h_member({t}.org)"),
    ('D', "{t}.org in (select h_orgs())"),
    ('D', "h_role({t}.org) = 'a'"),
    ('D', "(select h_admin())"),
    ('E', "e_member({t}.org)"),
    ('E', "e_member({t}.org) is not false"),
    ('E', "e_owner({t}.u)"),
    ('F', "f_may({t}.org, {t}.u)"),
    ('F', "f_may({t}.org, {t}.u)"),
    ('F', "f_level({t}.org) > 1"),
    ('F', "f_level({t}.org) = {t}.n"),
    ('D', "h_invoker({t}.org)"),
];

/// Functions: what comes before the body, and the bodies that take turns.
pub(crate) const FUNCTIONS: [(&str, &[&str]); 9] = [
    ("h_member(o int) returns bool language sql stable security definer set search_path = public", &[
        "select exists (select 1 from m where org = o and u = auth.uid())",
        "select exists (select 1 from m where org = o and u = auth.uid() and ok)",
        "select o in (select org from m where u = auth.uid() union all select org from g where u = auth.uid())",
    ]),
    ("h_orgs() returns setof int language sql stable security definer set search_path = ''", &[
        "select org from public.m where u = auth.uid()",
        "select m.org from public.m join public.g on g.org = m.org where m.u = auth.uid()",
    ]),
    ("h_role(o int) returns text language sql stable security definer set search_path = public", &[
        "select s from m where org = o and u = auth.uid() order by s limit 1",
        "select min(s) from m where org = o and u = auth.uid()",
    ]),
    ("h_admin() returns bool language sql stable security definer set search_path = public", &[
        "select exists (select 1 from m where u = auth.uid() and s = 'a')",
        "select false",
    ]),
    ("h_invoker(o int) returns bool language sql stable", &[
        "select exists (select 1 from public.m where org = o and u = auth.uid())",
        "select exists (select 1 from public.g where org = o and ok)",
    ]),
    ("e_member(o int) returns bool language plpgsql stable security definer set search_path = public", &[
        "begin return exists (select 1 from m where org = o and u = auth.uid()); end",
        "begin return o in (select org from g where u = auth.uid()); end",
    ]),
    ("e_owner(who uuid) returns bool language plpgsql stable", &[
        "begin return who = auth.uid(); end",
        "begin return who = auth.uid() or auth.jwt() ->> 's' = 'a'; end",
    ]),
    ("f_may(o int, who uuid) returns bool language plpgsql stable security definer set search_path = public", &[
        "begin if who = auth.uid() then return true; end if;
           return exists (select 1 from m where org = o and u = auth.uid() and s = 'a'); end",
        "declare r text; begin
           select s into r from g where id = o;
           if r = 'a' then return true; elsif r is null then return false; end if;
           return exists (select 1 from m where org = o and u = auth.uid()); end",
    ]),
    ("f_level(o int) returns int language plpgsql stable security definer set search_path = public", &[
        "declare n int := 1; begin
           if exists (select 1 from m where org = o and u = auth.uid()) then n := 2; end if; return n; end",
        "declare n int; begin
           select id into n from g where id = o and ok; if not found then return 0; end if; return n; end",
    ]),
];

pub(crate) fn function(at: usize, body: usize) -> String {
    let (head, bodies) = FUNCTIONS[at];
    format!(
        "create or replace function {head} as $f$ {} $f$",
        bodies[body]
    )
}

/// What a role sees of the tables that are looked into.
const INNER: [(&str, &[&str]); 2] = [
    (
        "m",
        &[
            "m.u = auth.uid()",
            "m.ok",
            "true",
            "h_member(m.org)",
            "m.s <> 'b'",
        ],
    ),
    (
        "g",
        &[
            "g.ok",
            "true",
            "h_member(g.org)",
            "exists (select 1 from m where m.org = g.org and m.u = auth.uid())",
            "g.u = auth.uid()",
        ],
    ),
];

pub(crate) fn inner(random: &mut StdRng, table: &str) -> String {
    let (_, all) = INNER.iter().find(|(name, _)| *name == table).unwrap();
    (*all.choose(random).unwrap()).to_owned()
}

/// A policy of a table that is watched.
#[derive(Debug, Clone)]
pub(crate) struct Policy {
    pub(crate) name: String,
    pub(crate) table: &'static str,
    pub(crate) permissive: bool,
    pub(crate) to: &'static str,
    pub(crate) using: String,
    pub(crate) levels: Vec<char>,
}

impl Policy {
    pub(crate) fn random(random: &mut StdRng, table: &'static str, number: usize) -> Self {
        let permissive = random.random_bool(0.8);
        let (mut using, mut levels) = condition(random, table, 2);
        if !permissive && random.random_bool(0.7) {
            using = format!("({using} or {table}.n is distinct from 2)");
        }
        levels.sort_unstable();
        levels.dedup();
        let to = ["public", "authenticated", "authenticated", "anon"];
        Self {
            // Not in the order in which they are made.
            name: format!("p{}", random.random_range(100..999) * 1000 + number),
            table,
            permissive,
            to: to.choose(random).unwrap(),
            using,
            levels,
        }
    }

    pub(crate) fn sql(&self) -> String {
        let kind = if self.permissive {
            "permissive"
        } else {
            "restrictive"
        };
        let Self {
            name,
            table,
            to,
            using,
            ..
        } = self;
        format!("create policy {name} on {table} as {kind} for select to {to} using ({using})")
    }
}

fn condition(random: &mut StdRng, table: &str, depth: u32) -> (String, Vec<char>) {
    if depth == 0 || random.random_bool(0.5) {
        let (level, text) = CONDITIONS.choose(random).unwrap();
        return (text.replace("{t}", table), vec![*level]);
    }
    let (a, mut levels) = condition(random, table, depth - 1);
    let (text, more) = match random.random_range(0..8) {
        0..3 => {
            let (b, more) = condition(random, table, depth - 1);
            (format!("({a} or {b})"), more)
        }
        3..5 => {
            let (b, more) = condition(random, table, depth - 1);
            (format!("({a} and {b})"), more)
        }
        5 => (format!("(not ({a}))"), Vec::new()),
        6 => (format!("coalesce({a}, false)"), Vec::new()),
        _ => (format!("(({a}) is not true)"), Vec::new()),
    };
    levels.extend(more);
    (text, levels)
}
