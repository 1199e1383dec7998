//! Random policies, rows, claims and filters. Values come from small pools, so that they meet.

use rand::Rng;
use rand::rngs::StdRng;
use rand::seq::IndexedRandom;
use serde_json::{Value, json};

use crate::harness::{ANN, BEN};

/// The columns of table t behind its key, with their types and the values that they take.
pub(super) const COLUMNS: [(&str, &str, &[&str]); 8] = [
    ("a", "uuid", &[ANN, BEN]),
    ("b", "text", &["", "a", "A", "m", "z", "é", "ok", ANN]),
    ("c", "int", &["-1", "0", "1", "2", "3", "2147483647"]),
    ("d", "bool", &["true", "false"]),
    ("e", "mood", &["sad", "ok", "meh"]),
    (
        "j",
        "jsonb",
        &[
            r#"{"k": "a", "n": 1}"#,
            r#"{"k": "z", "n": 2.5, "o": {"k": "a"}}"#,
            r#"{"n": "x", "k": null}"#,
            r#"["k", "a"]"#,
            "null",
            "{}",
        ],
    ),
    ("n", "numeric", &["0", "1", "1.0", "1.50", "-2", "NaN"]),
    (
        "ts",
        "timestamptz",
        &[
            "2020-01-01 00:00:00+00",
            "2024-02-29 12:00:00.5+02",
            "2120-01-01 00:00:00+00",
            "infinity",
        ],
    ),
];

/// A row without its key: a value or NULL for each of [`COLUMNS`].
pub(super) type Row = [Option<&'static str>; COLUMNS.len()];

pub(super) fn row(random: &mut StdRng) -> Row {
    COLUMNS.map(|(_, _, pool)| value(random, pool))
}

/// A value of one of [`COLUMNS`].
pub(super) fn value(random: &mut StdRng, pool: &[&'static str]) -> Option<&'static str> {
    (!random.random_bool(0.15)).then(|| *pool.choose(random).unwrap())
}

pub(super) fn literal(value: Option<&str>) -> String {
    value.map_or("null".to_owned(), quoted)
}

pub(super) fn quoted(text: &str) -> String {
    format!("'{}'", text.replace('\'', "''"))
}

/// A condition: SQL in which each `$` stands for one of `parts`.
#[derive(Debug, Clone, PartialEq)]
pub(super) struct Condition {
    sql: &'static str,
    parts: Vec<Condition>,
}

/// Compiled, or meant to be.
const NATIVE: [&str; 48] = [
    "true",
    "false",
    "d",
    "a = auth.uid()",
    "a = auth.uid()",
    "a = (select auth.uid())",
    "(select auth.uid()) = a",
    "auth.uid() is not null",
    "a is distinct from auth.uid()",
    "a is null",
    "a::text = auth.jwt() ->> 'sub'",
    "b = auth.jwt() ->> 'name'",
    "b = (auth.jwt() -> 'app_metadata' ->> 'team')",
    "auth.jwt() -> 'app_metadata' ->> 'team' = 'a'",
    "(auth.jwt() ->> 'org')::int = c",
    "coalesce((auth.jwt() ->> 'org')::int, 3) >= c",
    "auth.role() = 'authenticated'",
    "auth.jwt() ? 'org'",
    "c = 2",
    "c > 0",
    "c <= 1",
    "c is null",
    "c in (1, 2, 3)",
    "c not in (0, 1)",
    "c = id",
    // Plain, it follows from the key by which a row is selected, and the planner leaves it out, with
    // the error that stands beside it.
    "(id > 4) is true",
    "coalesce(d, false)",
    "d is not true",
    "e = 'ok'",
    "e < 'meh'",
    "e in ('sad', 'meh')",
    "e::text = b",
    "e = (auth.jwt() ->> 'mood')::mood",
    "j ->> 'k' = 'a'",
    "j ->> 'k' = b",
    "j -> 'o' ->> 'k' is not null",
    "(j ->> 'n')::numeric > 1",
    "j ? 'k'",
    "b::uuid = auth.uid()",
    "b like 'a%'",
    "lower(b) = 'a'",
    "b in ('a', 'm', 'ok')",
    "b is not distinct from auth.jwt() ->> 'name'",
    "n >= 1.5",
    "n is distinct from 1",
    "ts > '2021-01-01 00:00:00+00'",
    "mine(a)",
    "case when c > 1 then a = auth.uid() else d end",
];

/// Asked of PostgreSQL.
const ASKED: [&str; 12] = [
    "c in (select org from m where uid = auth.uid())",
    "c in (select org from m)",
    "exists (select 1 from m where m.org = t.c)",
    "exists (select 1 from m where m.uid = t.a and m.org > 1)",
    "not exists (select 1 from m where m.org = t.c and m.uid = auth.uid())",
    "(select count(*) from m) > 1",
    "decides(a, c)",
    "decides(a, c) is not false",
    "b < 'm'",
    "b ~ '^[a-m]'",
    "ts < now()",
    "length(b) > 1",
];

const COMPOUND: [&str; 8] = [
    "($ and $)",
    "($ or $)",
    "($ and $)",
    "($ or $)",
    "(not $)",
    "coalesce($, $)",
    "(case when $ then $ else $ end)",
    "(($) is not true)",
];

impl Condition {
    pub(super) fn random(random: &mut StdRng, depth: u32, asked: f64) -> Self {
        if depth == 0 || random.random_bool(0.35) {
            let pool: &[&'static str] = if random.random_bool(asked) {
                &ASKED
            } else {
                &NATIVE
            };
            return Self {
                sql: pool.choose(random).unwrap(),
                parts: Vec::new(),
            };
        }
        let sql = *COMPOUND.choose(random).unwrap();
        let parts = sql
            .matches('$')
            .map(|_| Self::random(random, depth - 1, asked))
            .collect();
        Self { sql, parts }
    }

    pub(super) fn sql(&self) -> String {
        let mut sql = String::new();
        let mut parts = self.parts.iter();
        for (at, text) in self.sql.split('$').enumerate() {
            if at > 0 {
                sql.push_str(&parts.next().unwrap().sql());
            }
            sql.push_str(text);
        }
        sql
    }

    pub(super) fn is_asked(&self) -> bool {
        ASKED.contains(&self.sql) || self.parts.iter().any(Self::is_asked)
    }

    /// Everything that is this with one part put in the place of what it is a part of.
    pub(super) fn smaller(&self) -> Vec<Self> {
        let mut smaller = self.parts.clone();
        for (at, part) in self.parts.iter().enumerate() {
            for part in part.smaller() {
                let mut parts = self.parts.clone();
                parts[at] = part;
                let sql = self.sql;
                smaller.push(Self { sql, parts });
            }
        }
        smaller
    }
}

/// A policy of table t.
#[derive(Debug, Clone, PartialEq)]
pub(super) struct Policy {
    pub(super) name: String,
    pub(super) permissive: bool,
    pub(super) command: &'static str,
    pub(super) to: &'static str,
    pub(super) using: Condition,
}

impl Policy {
    pub(super) fn random(random: &mut StdRng, name: String, asked: f64) -> Self {
        let permissive = random.random_bool(0.75);
        let mut using = Condition::random(random, 3, asked);
        if !permissive {
            // Two thirds of them let most rows through.
            let often = ["c is distinct from 2", "(id <> 5) is true"]
                .choose(random)
                .unwrap();
            if random.random_bool(0.66) {
                let parts = vec![
                    using,
                    Condition {
                        sql: often,
                        parts: Vec::new(),
                    },
                ];
                using = Condition {
                    sql: "($ or $)",
                    parts,
                };
            }
        }
        let to = ["public", "authenticated", "authenticated", "anon"];
        Self {
            name,
            permissive,
            command: ["all", "select", "select"].choose(random).unwrap(),
            to: to.choose(random).unwrap(),
            using,
        }
    }

    pub(super) fn sql(&self) -> String {
        format!(
            "create policy {} on t as {} for {} to {} using ({})",
            self.name,
            if self.permissive {
                "permissive"
            } else {
                "restrictive"
            },
            self.command,
            self.to,
            self.using.sql()
        )
    }
}

/// Who watches, and with what filter: as the client words it, and as SQL.
#[derive(Debug, Clone, PartialEq)]
pub(super) struct Who {
    pub(super) role: &'static str,
    pub(super) claims: Value,
    pub(super) filter: Option<(&'static str, &'static str)>,
}

impl Who {
    pub(super) fn random(random: &mut StdRng, role: &'static str) -> Self {
        let claims = [
            json!({"sub": ANN, "org": 1, "name": "a", "mood": "ok", "role": "authenticated",
                   "app_metadata": {"team": "a"}}),
            json!({"sub": BEN, "org": "2", "name": "z", "app_metadata": {"team": "m"}}),
            json!({"sub": ANN, "org": 2, "name": "é"}),
            json!({"sub": BEN, "mood": "sad", "name": ""}),
            json!({}),
            json!({"sub": null, "name": null, "app_metadata": null}),
            json!({"sub": "nobody", "org": 3, "name": "A"}),
            json!({"sub": format!("{{{}}}", BEN.to_uppercase()), "org": "x", "mood": "none"}),
        ];
        let filters = [
            ("c=eq.1", "c = 1"),
            ("c=neq.2", "c <> 2"),
            ("c=lt.3", "c < 3"),
            ("c=gte.1", "c >= 1"),
            ("c=in.(0,1,2)", "c in (0, 1, 2)"),
            ("b=eq.a", "b = 'a'"),
            ("b=neq.m", "b <> 'm'"),
            ("b=in.(a,\"é\",z)", "b in ('a', 'é', 'z')"),
            ("d=eq.true", "d = true"),
            ("d=neq.true", "d <> true"),
            ("e=eq.ok", "e = 'ok'"),
            ("e=gte.ok", "e >= 'ok'"),
            ("e=in.(sad,meh)", "e in ('sad', 'meh')"),
            ("c=gte.1,d=eq.true", "c >= 1 and d = true"),
            ("id=lt.7", "id < 7"),
        ];
        Self {
            role,
            claims: claims.choose(random).unwrap().clone(),
            filter: random
                .random_bool(0.3)
                .then(|| *filters.choose(random).unwrap()),
        }
    }
}
