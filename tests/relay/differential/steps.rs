//! One round: what is done to rows and rules, in what order.

use std::collections::BTreeMap;

use rand::Rng;
use rand::rngs::StdRng;
use rand::seq::IndexedRandom;

use super::grammar::{COLUMNS, Policy, Who, row, value};
use super::round::{Failure, Round, Tally};
use super::setting::{Change, DECISIONS, Grant, ROLES, Setting};
use crate::harness::{ANN, BEN};

const KEYS: std::ops::Range<i32> = 1..14;

/// Plays about `cases` cases on a fresh database, with a share of conditions that are `asked`; with a failure comes everything that was done.
pub(super) async fn play(
    random: &mut StdRng,
    asked: f64,
    cases: u64,
) -> Result<Tally, (Failure, Vec<String>)> {
    let mut names = 0;
    let mut fresh = |random: &mut StdRng| {
        names += 1;
        // Not in the order in which they are made.
        let name = format!("p{}", random.random_range(100..999) * 100 + names);
        Policy::random(random, name, asked)
    };
    let policies = (0..random.random_range(1..5))
        .map(|_| fresh(random))
        .collect();
    let setting = Setting {
        full: random.random_bool(0.75),
        policies,
        enabled: true,
        forced: random.random_bool(0.3),
        grants: ["authenticated", "anon", "service_role"]
            .map(|role| (role, Grant::All))
            .into(),
        decision: random.random_range(0..DECISIONS.len()),
        members: vec![(1, ANN), (2, BEN)],
        extra: false,
    };
    let everybody = ROLES.map(|role| Who::random(random, role)).to_vec();
    let mut round = Round::start(setting, BTreeMap::new(), everybody)
        .await
        .map_err(|failure| (failure, Vec::new()))?;
    while round.tally.cases < cases {
        let done = step(random, &mut round, &mut fresh).await;
        if let Err(failure) = done {
            return Err((failure, round.script));
        }
    }
    match round.fence().await {
        Ok(()) => Ok(round.tally),
        Err(failure) => Err((failure, round.script)),
    }
}

async fn step(
    random: &mut StdRng,
    round: &mut Round,
    fresh: &mut impl FnMut(&mut StdRng) -> Policy,
) -> Result<(), Failure> {
    let setting = Setting::clone(&round.setting);
    match random.random_range(0..100) {
        0..14 => {
            let (sql, setting, look) = rules(random, setting, fresh);
            let look = look || random.random_bool(0.4);
            round.rules(sql, setting, look).await?;
            // Whoever is out from now on, or sees other rows, hears of it with a row.
            let first = changes(random, round);
            round.rows(None, first).await?;
            round.fence().await?;
            let changes = changes(random, round);
            round.rows(None, changes).await?;
            round.fence().await
        }
        14..20 => {
            let (sql, setting) = members(random, setting);
            round.members(sql, setting).await
        }
        20..25 => {
            let first = members(random, setting);
            let changes = changes(random, round);
            round.rows(Some(first), changes).await?;
            round.fence().await
        }
        25..31 => {
            let (sql, setting) = policies(random, setting, fresh);
            let first = changes(random, round);
            round.rows(Some((sql, setting)), first).await?;
            round.fence().await?;
            let changes = changes(random, round);
            round.rows(None, changes).await?;
            round.fence().await
        }
        31..41 => round.fence().await,
        _ => {
            let changes = changes(random, round);
            round.rows(None, changes).await
        }
    }
}

fn changes(random: &mut StdRng, round: &Round) -> Vec<Change> {
    let mut keys: Vec<i32> = KEYS.collect();
    let count = random.random_range(1..5);
    let mut changes = Vec::new();
    for _ in 0..count {
        let id = keys.swap_remove(random.random_range(0..keys.len()));
        changes.push(match round.rows.get(&id) {
            None => Change::Insert {
                id,
                new: row(random),
            },
            Some(old) if random.random_bool(0.3) => Change::Delete { id, old: *old },
            Some(old) => {
                let mut new = *old;
                for _ in 0..random.random_range(1..4) {
                    let column = random.random_range(0..COLUMNS.len());
                    new[column] = value(random, COLUMNS[column].2);
                }
                let free = keys.iter().position(|key| !round.rows.contains_key(key));
                let moved = free.filter(|_| random.random_bool(0.1));
                let to = moved.map_or(id, |at| keys.swap_remove(at));
                Change::Update {
                    id,
                    to,
                    old: *old,
                    new,
                }
            }
        });
    }
    changes
}

fn members(random: &mut StdRng, mut setting: Setting) -> (String, Setting) {
    if setting.members.len() > 4 || random.random_bool(0.4) && !setting.members.is_empty() {
        let at = random.random_range(0..setting.members.len());
        let gone = setting.members[at];
        setting.members.retain(|member| *member != gone);
        let (org, uid) = gone;
        let sql = format!("delete from m where org = {org} and uid = '{uid}'");
        return (sql, setting);
    }
    let org = random.random_range(0..4);
    let uid = *[ANN, BEN].choose(random).unwrap();
    setting.members.push((org, uid));
    (format!("insert into m values ({org}, '{uid}')"), setting)
}

fn policies(
    random: &mut StdRng,
    mut setting: Setting,
    fresh: &mut impl FnMut(&mut StdRng) -> Policy,
) -> (String, Setting) {
    let mut new = fresh(random);
    if setting.policies.is_empty() || setting.policies.len() < 5 && random.random_bool(0.3) {
        let sql = new.sql();
        setting.policies.push(new);
        return (sql, setting);
    }
    let at = random.random_range(0..setting.policies.len());
    if random.random_bool(0.3) {
        let gone = setting.policies.remove(at);
        return (format!("drop policy {} on t", gone.name), setting);
    }
    let policy = &mut setting.policies[at];
    // One that is written anew and says the same may have said something else in between: rows of then are
    // in doubt, where the catalog was read behind other transactions.
    while new.using.sql() == policy.using.sql() {
        new = fresh(random);
    }
    policy.using = new.using;
    let sql = format!(
        "alter policy {} on t using ({})",
        policy.name,
        policy.using.sql()
    );
    (sql, setting)
}

/// A change of the rules, and whether the catalog is to be read before the next row.
fn rules(
    random: &mut StdRng,
    mut setting: Setting,
    fresh: &mut impl FnMut(&mut StdRng) -> Policy,
) -> (String, Setting, bool) {
    let sql = match random.random_range(0..10) {
        _ if !setting.enabled => {
            setting.enabled = true;
            "alter table t enable row level security".to_owned()
        }
        0 => {
            setting.enabled = false;
            "alter table t disable row level security".to_owned()
        }
        1 => {
            setting.forced = !setting.forced;
            let no = if setting.forced { "" } else { "no " };
            format!("alter table t {no}force row level security")
        }
        2..4 => {
            let roles = ["authenticated", "anon", "service_role"];
            let role = *roles.choose(random).unwrap();
            let grants = [
                Grant::All,
                Grant::Columns("id, b, d"),
                Grant::Columns("id, a, c, e"),
                Grant::None,
            ];
            let grant = match setting.grants[role] {
                Grant::None => Grant::All,
                _ => *grants.choose(random).unwrap(),
            };
            let same = setting.grants.insert(role, grant) == Some(grant);
            // What is written and says the same may have said something else in between: rows are in
            // doubt until the catalog is read.
            return (grant.sql(role), setting, same);
        }
        4 => {
            setting.decision = random.random_range(0..DECISIONS.len());
            return (setting.decision_sql(), setting, true);
        }
        5 => {
            setting.extra = !setting.extra;
            if setting.extra {
                "alter table t add column x int default 7".to_owned()
            } else {
                "alter table t drop column x".to_owned()
            }
        }
        _ => {
            let (sql, setting) = policies(random, setting, fresh);
            return (sql, setting, false);
        }
    };
    (sql, setting, false)
}
