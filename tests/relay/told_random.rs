//! Writers and changes of rules at random, at the same time: every row says who may see it under the
//! rules at its commit. Nobody is ever given a row that it may not see, and where an event trigger tells
//! of the changes nothing is kept from anybody who may.
//!
//! `ROWCAST_SEED` repeats what is drawn, `ROWCAST_CHANGES` sets how many changes of rules there are.

#![allow(clippy::print_stderr, reason = "the seed and the numbers are printed")]

use std::collections::{BTreeMap, HashMap};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::{Duration, Instant};

use rand::rngs::StdRng;
use rand::{Rng, SeedableRng};
use rowcast::app::Core;
use rowcast::config::Config;
use rowcast::router::Event;
use serde_json::{Value, json};

use crate::harness::{ANN, BEN, DEADLINE, Relay, Watcher, connect};

const WRITERS: usize = 3;

const SCHEMA: &str = "
    create table era (ann bool, ben bool);
    insert into era values (true, true);
    create table t (id bigint generated always as identity primary key, ann bool, ben bool);
    create function gate() returns bool language sql stable as 'select true';
    alter table t enable row level security;
    create policy who on t for select to authenticated
      using (auth.uid() in ('00000000-0000-4000-8000-00000000000a', '00000000-0000-4000-8000-00000000000b'));
    create policy gate on t as restrictive for select to authenticated using (gate());
    grant select on t to authenticated, service_role";

/// What decides at a moment.
#[derive(Debug, Clone, Copy)]
struct Rules {
    ann: bool,
    ben: bool,
    /// Whether the permissive policy is there.
    who: bool,
    gate: bool,
    /// Whether the restrictive policy is there.
    gated: bool,
    secured: bool,
    extra: bool,
}

impl Rules {
    fn sees(self, listed: bool) -> bool {
        !self.secured || self.who && listed && (self.gate || !self.gated)
    }

    fn using(self) -> String {
        let listed = [(self.ann, ANN), (self.ben, BEN)];
        let listed = listed.iter().filter(|(listed, _)| *listed);
        let listed = listed.map(|(_, user)| format!("auth.uid() = '{user}'"));
        let all: Vec<String> = listed.collect();
        if all.is_empty() {
            "false".to_owned()
        } else {
            all.join(" or ")
        }
    }

    /// One change; what another than the trigger would miss only where `told`.
    fn change(&mut self, random: &mut StdRng, told: bool) -> String {
        match random.random_range(0..if told { 10 } else { 6 }) {
            0..3 if self.who => {
                (self.ann, self.ben) = (random.random(), random.random());
                format!("alter policy who on t using ({})", self.using())
            }
            3 => {
                self.secured = !self.secured;
                let verb = if self.secured { "enable" } else { "disable" };
                format!("alter table t {verb} row level security")
            }
            4 => "create table passing (id int); drop table passing".to_owned(),
            5 => {
                self.extra = !self.extra;
                let verb = if self.extra {
                    "add column extra int"
                } else {
                    "drop column extra"
                };
                format!("alter table t {verb}")
            }
            6 => {
                self.gate = !self.gate;
                format!(
                    "create or replace function gate() returns bool language sql stable as 'select {}'",
                    self.gate
                )
            }
            7 => {
                self.gated = !self.gated;
                if self.gated {
                    "create policy gate on t as restrictive for select to authenticated using (gate())"
                        .to_owned()
                } else {
                    "drop policy gate on t".to_owned()
                }
            }
            8 => {
                self.who = !self.who;
                if self.who {
                    format!(
                        "create policy who on t for select to authenticated using ({})",
                        self.using()
                    )
                } else {
                    "drop policy who on t".to_owned()
                }
            }
            _ => "comment on table t is 'something'".to_owned(),
        }
    }
}

/// What one subscriber was given before the fence `last`, in its order; `None` where it was told to
/// read again.
async fn follow(core: Arc<Core>, mut watcher: Watcher, last: Arc<AtomicU64>) -> Heard {
    let mut heard = Heard::default();
    loop {
        match watcher.event().await {
            Event::Change { change, .. } => {
                let data: Value = serde_json::from_slice(&change.data).unwrap();
                if data["table"] == "fence" {
                    if data["record"]["id"].as_u64() >= Some(last.load(Ordering::Relaxed)) {
                        return heard;
                    }
                } else {
                    heard.rows.push(data["record"]["id"].as_u64());
                }
            }
            Event::Resync { reason, .. } => {
                *heard.reasons.entry(reason.as_str()).or_insert(0_usize) += 1;
                heard.rows.push(None);
                watcher.join(&core).await.unwrap();
            }
            _ => {}
        }
    }
}

#[derive(Debug, Default)]
struct Heard {
    rows: Vec<Option<u64>>,
    reasons: BTreeMap<&'static str, usize>,
}

async fn write(url: String, over: Arc<AtomicBool>, seed: u64) -> u64 {
    let sql = connect(&url).await;
    let mut random = StdRng::seed_from_u64(seed);
    let mut written = 0;
    while !over.load(Ordering::Relaxed) {
        let rows = random.random_range(1..4);
        let inserts = "insert into t (ann, ben) select ann, ben from era;".repeat(rows);
        sql.batch_execute(&format!(
            "begin; lock table t in row exclusive mode; {inserts} commit"
        ))
        .await
        .unwrap();
        written += rows as u64;
        let pause = random.random_range(0..8);
        tokio::time::sleep(Duration::from_millis(pause)).await;
    }
    written
}

fn number(name: &str) -> Option<u64> {
    std::env::var(name).ok()?.parse().ok()
}

/// Where the changes are `told`, and each waits until the one before has been handed out or not.
async fn play(told: bool, paced: bool) {
    let seed = number("ROWCAST_SEED").unwrap_or_else(|| rand::rng().random());
    let changes = number("ROWCAST_CHANGES").unwrap_or(60);
    eprintln!("ROWCAST_SEED={seed} ROWCAST_CHANGES={changes}");
    let mut random = StdRng::seed_from_u64(seed);
    let adjust = |config: &mut Config| config.catalog_interval = Duration::from_millis(100);
    let relay = if told {
        Relay::told(SCHEMA, "t", adjust).await
    } else {
        Relay::with(SCHEMA, "t", adjust).await
    };
    let ann = relay.watch_as(ANN, "t").await;
    let ben = relay.watch_as(BEN, "t").await;
    let all = relay.watch("service_role", &json!({}), "t").await;
    let pace = relay.watch("anon", &json!({}), "fence").await;
    let Relay { core, url, .. } = relay;
    let core = Arc::new(core);
    let over = Arc::new(AtomicBool::new(false));
    let writers: Vec<_> = (0..WRITERS as u64)
        .map(|writer| tokio::spawn(write(url.clone(), Arc::clone(&over), seed ^ writer)))
        .collect();
    let last = Arc::new(AtomicU64::new(u64::MAX));
    let following: Vec<_> = [ann, ben, all]
        .map(|watcher| {
            let (core, last) = (Arc::clone(&core), Arc::clone(&last));
            tokio::spawn(follow(core, watcher, last))
        })
        .into();
    let sql = connect(&url).await;
    let mut fence = 0;
    let mut rules = Rules {
        ann: true,
        ben: true,
        who: true,
        gate: true,
        gated: true,
        secured: true,
        extra: false,
    };
    let mut own = 0;
    for _ in 0..changes {
        let ddl = rules.change(&mut random, told);
        let (ann, ben) = (rules.sees(rules.ann), rules.sees(rules.ben));
        let row = format!("insert into t (ann, ben) values ({ann}, {ben});");
        // The description does not say on which side of a change of columns such a row lies.
        let columns = ddl.contains("column");
        let before = if told && !columns && random.random() {
            row.as_str()
        } else {
            ""
        };
        let behind = if random.random() { row.as_str() } else { "" };
        own += u64::from(!before.is_empty()) + u64::from(!behind.is_empty());
        let ddl = if random.random_bool(0.3) {
            format!("savepoint one; {ddl}; release one")
        } else {
            ddl
        };
        sql.batch_execute(&format!(
            "begin; lock table t in access exclusive mode; {before} {ddl};
             update era set ann = {ann}, ben = {ben}; {behind} commit"
        ))
        .await
        .unwrap_or_else(|error| panic!("{ddl}: {error:?}"));
        if paced {
            fence += 1;
            sql.batch_execute(&format!("insert into fence values ({fence})"))
                .await
                .unwrap();
            passed(&pace, fence).await;
        } else {
            // Several at once, and now and then long enough to be noticed.
            let pause = if random.random_bool(0.3) { 500 } else { 20 };
            tokio::time::sleep(Duration::from_millis(random.random_range(0..pause))).await;
        }
    }
    over.store(true, Ordering::Relaxed);
    let mut written = own;
    for writer in writers {
        written += writer.await.unwrap();
    }
    last.store(fence + 1, Ordering::Relaxed);
    // Whoever is about to join again may miss one of them.
    let deadline = Instant::now() + DEADLINE;
    for fence in fence + 1.. {
        if following.iter().all(tokio::task::JoinHandle::is_finished) {
            break;
        }
        assert!(Instant::now() < deadline, "the end never came");
        sql.batch_execute(&format!("insert into fence values ({fence})"))
            .await
            .unwrap();
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    let mut heard = Vec::new();
    for one in following {
        heard.push(one.await.unwrap());
    }
    check(&sql, written, &heard, (told, paced)).await;
}

async fn passed(pace: &Watcher, fence: u64) {
    loop {
        if let Event::Change { change, .. } = pace.event().await {
            let data: Value = serde_json::from_slice(&change.data).unwrap();
            if data["record"]["id"] == fence {
                return;
            }
        }
    }
}

async fn check(
    sql: &tokio_postgres::Client,
    written: u64,
    heard: &[Heard],
    (told, paced): (bool, bool),
) {
    let rows = sql.query("select id, ann, ben from t", &[]).await.unwrap();
    let tags: HashMap<u64, [bool; 2]> = rows
        .iter()
        .map(|row| {
            let id: i64 = row.get(0);
            (id.unsigned_abs(), [row.get(1), row.get(2)])
        })
        .collect();
    assert_eq!(tags.len() as u64, written);
    let [.., everything] = heard else {
        panic!("three of them")
    };
    let places: HashMap<u64, usize> = everything
        .rows
        .iter()
        .enumerate()
        .filter_map(|(at, id)| Some(((*id)?, at)))
        .collect();
    if told && paced {
        assert!(everything.reasons.is_empty(), "{:?}", everything.reasons);
        assert_eq!(places.len() as u64, written, "whoever sees all");
    }
    let mut shown = 0;
    for (who, one) in heard.iter().take(2).enumerate() {
        let mut last: Option<usize> = None;
        for id in &one.rows {
            let Some(id) = id else {
                last = None;
                continue;
            };
            assert!(tags[id][who], "row {id} was never to be seen by {who}");
            shown += 1;
            let Some(place) = places.get(id) else {
                continue;
            };
            if told
                && paced
                && let Some(last) = last
            {
                let between = &everything.rows[last + 1..*place];
                let kept = between.iter().flatten().find(|id| tags[id][who]);
                assert_eq!(kept, None, "kept from {who}");
            }
            last = Some(*place);
        }
        if told && paced {
            let undecided = one.reasons.get("undecided");
            assert_eq!(undecided, None, "{:?}", one.reasons);
        }
        eprintln!("{who}: {} rows, {:?}", one.rows.len(), one.reasons);
    }
    let hidden = tags.values().flatten().filter(|seen| !**seen).count();
    assert!(shown > 10 && hidden > 10, "{shown} shown, {hidden} hidden");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn rows_among_told_changes_of_rules_are_shown_to_just_those_who_may_see_them() {
    Box::pin(play(true, true)).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn rows_among_told_changes_that_follow_each_other_fast_are_shown_to_nobody_else() {
    Box::pin(play(true, false)).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn rows_among_changes_of_rules_that_nothing_tells_of_are_shown_to_nobody_else() {
    Box::pin(play(false, false)).await;
}
