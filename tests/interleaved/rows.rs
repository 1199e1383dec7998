//! Rows and their changes. Values come from small pools, so that they meet.

use std::collections::BTreeMap;

use rand::Rng;
use rand::rngs::StdRng;
use rand::seq::IndexedRandom;

use crate::harness::{ANN, BEN};

pub(crate) const CAT: &str = "00000000-0000-4000-8000-00000000000c";
pub(crate) const USERS: [&str; 3] = [ANN, BEN, CAT];
pub(crate) const TEXTS: [&str; 4] = ["a", "ab", "b", "é"];

/// A row of `t` or `p`. Its number `seq` is that of the change that made it so.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Row {
    pub(crate) id: i32,
    pub(crate) org: Option<i32>,
    pub(crate) u: Option<&'static str>,
    pub(crate) s: Option<&'static str>,
    pub(crate) ok: Option<bool>,
    pub(crate) n: Option<i32>,
    pub(crate) seq: u64,
}

/// `Some` mostly, and always where NULL is not taken.
fn mostly<T>(random: &mut StdRng, always: bool, value: impl FnOnce(&mut StdRng) -> T) -> Option<T> {
    let value = value(random);
    (always || random.random_bool(0.88)).then_some(value)
}

impl Row {
    pub(crate) fn random(random: &mut StdRng, id: i32, seq: u64, always: bool) -> Self {
        Self {
            id,
            org: mostly(random, always, |random| random.random_range(0..4)),
            u: mostly(random, always, |random| *USERS.choose(random).unwrap()),
            s: mostly(random, false, |random| *TEXTS.choose(random).unwrap()),
            ok: mostly(random, false, |random| random.random()),
            n: mostly(random, false, |random| random.random_range(1..5)),
            seq,
        }
    }

    /// The same row with something else in it.
    fn changed(&self, random: &mut StdRng, next: i32, seq: u64, always: bool) -> Self {
        let other = Self::random(random, next, seq, always);
        let mut new = Self {
            seq,
            ..self.clone()
        };
        for _ in 0..random.random_range(1..3) {
            match random.random_range(0..12) {
                0..3 => new.org = other.org,
                3..5 => new.u = other.u,
                5..7 => new.s = other.s,
                7..9 => new.ok = other.ok,
                9 | 10 => new.n = other.n,
                _ => new.id = next,
            }
        }
        new
    }

    fn literals(&self) -> [(&'static str, String); 7] {
        fn text<T: std::fmt::Display>(value: Option<T>) -> String {
            value.map_or_else(|| "null".to_owned(), |value| format!("'{value}'"))
        }
        [
            ("id", self.id.to_string()),
            ("org", text(self.org)),
            ("u", text(self.u)),
            ("s", text(self.s)),
            ("ok", text(self.ok)),
            ("n", text(self.n)),
            ("seq", self.seq.to_string()),
        ]
    }

    pub(crate) fn insert(&self, table: &str) -> String {
        let (names, values): (Vec<_>, Vec<_>) = self.literals().into_iter().unzip();
        format!(
            "insert into {table} ({}) values ({})",
            names.join(", "),
            values.join(", ")
        )
    }

    /// The partition of `p` that it lies in.
    pub(crate) const fn leaf(&self) -> &'static str {
        match self.org {
            Some(0 | 1) => "p_a",
            _ => "p_b",
        }
    }
}

/// What is in the tables `t` and `p`.
pub(crate) type Held = BTreeMap<(&'static str, i32), Row>;

/// A change of one row.
#[derive(Debug, Clone)]
pub(crate) struct Change {
    pub(crate) table: &'static str,
    pub(crate) old: Option<Row>,
    pub(crate) new: Option<Row>,
}

impl Change {
    /// One that `held` permits, of a row whose key is `parity` modulo 2 where that matters, and is
    /// carried out on it.
    pub(crate) fn random(
        random: &mut StdRng,
        held: &mut Held,
        (next, seq): (&mut i32, &mut u64),
        (parity, always): (Option<i32>, bool),
    ) -> Self {
        let table = if random.random_bool(0.55) { "t" } else { "p" };
        let always = always || table == "p";
        *seq += 1;
        *next += 1;
        while parity.is_some_and(|parity| *next % 2 != parity) {
            *next += 1;
        }
        let own = |id: i32| parity.is_none_or(|parity| id % 2 == parity);
        let rows: Vec<&Row> = held
            .iter()
            .filter(|((of, id), _)| *of == table && own(*id))
            .map(|(_, row)| row)
            .collect();
        let (old, new) = match (rows.choose(random), random.random_range(0..10)) {
            (None, _) => (None, Some(Row::random(random, *next, *seq, always))),
            (Some(_), 0..3) if rows.len() < 16 => {
                (None, Some(Row::random(random, *next, *seq, always)))
            }
            (Some(old), 3 | 4) => (Some((*old).clone()), None),
            (Some(old), _) => {
                let new = old.changed(random, *next, *seq, always);
                (Some((*old).clone()), Some(new))
            }
        };
        if let Some(old) = &old {
            held.remove(&(table, old.id));
        }
        if let Some(new) = &new {
            held.insert((table, new.id), new.clone());
        }
        Self { table, old, new }
    }

    pub(crate) fn sql(&self) -> String {
        let table = self.table;
        match (&self.old, &self.new) {
            (None, Some(new)) => new.insert(table),
            (Some(old), None) => format!("delete from {table} where id = {}", old.id),
            (Some(old), Some(new)) => {
                let set: Vec<String> = old
                    .literals()
                    .into_iter()
                    .zip(new.literals())
                    .filter(|(old, new)| old != new)
                    .map(|(_, (name, value))| format!("{name} = {value}"))
                    .collect();
                format!(
                    "update {table} set {} where id = {}",
                    set.join(", "),
                    old.id
                )
            }
            (None, None) => unreachable!("a change of nothing"),
        }
    }
}

/// A change of a table that is looked into. One writer's rows are another's not.
pub(crate) fn membership(random: &mut StdRng) -> String {
    let user = *USERS.choose(random).unwrap();
    let org = random.random_range(0..4);
    let (text, ok) = (TEXTS.choose(random).unwrap(), random.random_bool(0.6));
    let id = random.random_range(0..5);
    match random.random_range(0..20) {
        0..5 => format!("insert into m values ({org}, '{user}', '{text}', {ok})"),
        5..9 => format!("delete from m where org = {org} and u = '{user}'"),
        9 | 10 => format!("update m set org = {org} where u = '{user}' and s = '{text}'"),
        11 => format!("update m set ok = not ok where org = {org}"),
        12 => format!("update m set u = '{user}' where org = {org} and s = '{text}'"),
        13 => format!("delete from g where id = {id}"),
        14 | 15 => format!(
            "insert into g values ({id}, {org}, '{user}', '{text}', {ok}) on conflict (id) do update \
             set org = excluded.org, u = excluded.u, ok = excluded.ok"
        ),
        16 => format!("update g set s = '{text}' where org = {org}"),
        17 => format!("update g set ok = not ok where id = {id}"),
        18 => format!("update m set s = '{text}' where u = '{user}'"),
        _ if random.random_bool(0.15) => "truncate m".to_owned(),
        _ => format!("update g set u = '{user}' where id = {id}"),
    }
}
