//! A channel that goes on as somebody else: what a session asks of the router once it has verified
//! a new token.

use std::collections::BTreeSet;
use std::time::Duration;

use rand::rngs::StdRng;
use rand::{Rng as _, SeedableRng as _};
use rowcast::router::Event;
use rowcast::subscription::Events;
use serde_json::{Value, json};

use crate::harness::{ANN, BEN, DEADLINE, Relay, Watcher};

/// Rows of organisations, whose members are asked of PostgreSQL. Whoever holds the advisory lock 1
/// keeps every question from being answered.
const ASKED: &str = "create table members (org int, user_id uuid);
     create function mine(o int) returns bool language plpgsql volatile security definer as
       'begin perform pg_advisory_xact_lock_shared(1);
          return exists (select from public.members m where m.org = o and m.user_id = auth.uid());
        end';
     create table t (id int primary key, org int); alter table t replica identity full;
     alter table t enable row level security;
     create policy p on t to authenticated using (mine(org));
     grant select on t to authenticated";

async fn patient(tables: &str) -> Relay {
    let relay = Relay::with(ASKED, tables, |config| {
        config.ask_timeout = Duration::from_secs(120);
    })
    .await;
    relay
        .run(&format!(
            "insert into members values (1, '{ANN}'), (2, '{BEN}'), (3, '{ANN}'), (3, '{BEN}')"
        ))
        .await;
    relay
}

/// Waits until a question is in flight and stands before the lock.
async fn until_asked(relay: &Relay) {
    let standing = "select exists (select from pg_locks l join pg_database d on d.oid = l.database
        where d.datname = current_database() and l.locktype = 'advisory' and not l.granted)";
    let asked = async {
        while !relay
            .sql
            .query_one(standing, &[])
            .await
            .unwrap()
            .get::<_, bool>(0)
        {}
    };
    tokio::time::timeout(DEADLINE, asked)
        .await
        .expect("a question in flight");
}

/// The next of what comes: `INSERT 1`, `fence 1`, `resync …`, or `joined` with the reasons of what
/// was refused.
async fn next(watcher: &Watcher) -> String {
    match watcher.event().await {
        Event::Change { change, .. } => {
            let data: Value = serde_json::from_slice(&change.data).unwrap();
            let kind = if data["table"] == "fence" {
                "fence"
            } else {
                data["type"].as_str().unwrap()
            };
            format!("{kind} {}", data["record"]["id"])
        }
        Event::Resync { reason, .. } => format!("resync {}", reason.as_str()),
        Event::Joined { refusals, .. } => {
            let reasons = refusals.into_iter().map(|refusal| refusal.reason);
            let words: Vec<String> = std::iter::once("joined".to_owned())
                .chain(reasons)
                .collect();
            words.join(" ")
        }
        other @ (Event::Snapshot { .. } | Event::SnapshotFailed { .. }) => {
            panic!("nobody asked for a snapshot: {other:?}")
        }
        Event::CaughtUp { .. } => panic!("there was nothing to catch up with"),
        Event::Introduced { .. } => unreachable!("no event of a client's"),
        Event::Unavailable { .. } => panic!("the database was there all the time"),
    }
}

/// What comes before the row `last` of the fence.
async fn told(watcher: &Watcher, last: u64) -> Vec<String> {
    let mut told = Vec::new();
    loop {
        let word = next(watcher).await;
        if word == format!("fence {last}") {
            return told;
        }
        told.push(word);
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn rows_asked_for_the_old_user_come_before_the_refresh_and_never_behind_it() {
    let mut relay = patient("t").await;
    let mut watcher = relay.watch_as(ANN, "t").await;
    relay.run("select pg_advisory_lock(1)").await;
    relay
        .run("insert into t values (1, 1), (2, 2), (3, 3)")
        .await;
    until_asked(&relay).await;
    watcher
        .refresh(&relay.core, "authenticated", &json!({"sub": BEN}))
        .await;
    // Commands are taken in turn: once this one has joined, the refresh is in force.
    let other = relay.watch_as(BEN, "t").await;
    relay
        .run("insert into t values (4, 1), (5, 2), (6, 3)")
        .await;
    let fence = relay.fence().await;
    relay.run("select pg_advisory_unlock(1)").await;
    assert_eq!(
        told(&watcher, fence).await,
        ["INSERT 1", "INSERT 3", "joined", "INSERT 5", "INSERT 6"]
    );
    assert_eq!(told(&other, fence).await, ["INSERT 5", "INSERT 6"]);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_refresh_to_who_may_not_read_the_table_or_the_filters_column_ends_what_came() {
    let mut relay = Relay::start(
        "create table t (id int primary key, n int, body text);
         grant select on t to authenticated; grant select (id, body) on t to anon;
         create table u (id int primary key, n int); grant select on u to authenticated",
        "t, u",
    )
    .await;
    for (table, reason) in [
        ("t", "invalid column for filter n"),
        ("u", "permission denied for table u"),
    ] {
        let mut watcher = relay
            .watch_filtered("authenticated", &json!({}), table, Events::All, "n=gt.0")
            .await
            .unwrap();
        let insert = |id| format!("insert into {table} values ({id}, {id})");
        relay.run(&insert(1)).await;
        let fence = relay.fence().await;
        assert_eq!(told(&watcher, fence).await, ["INSERT 1"], "{table}");
        watcher.refresh(&relay.core, "anon", &json!({})).await;
        let refused = next(&watcher).await;
        assert!(
            refused.starts_with("joined ") && refused.contains(reason),
            "{refused}"
        );
        relay.run(&insert(2)).await;
        let fence = relay.fence().await;
        assert_eq!(told(&watcher, fence).await, [""; 0], "{table}");
        watcher
            .refresh(&relay.core, "authenticated", &json!({}))
            .await;
        assert_eq!(next(&watcher).await, "joined");
        relay.run(&insert(3)).await;
        let fence = relay.fence().await;
        assert_eq!(told(&watcher, fence).await, ["INSERT 3"], "{table}");
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_refresh_to_a_role_that_does_not_exist_ends_the_old_roles_right_for_good() {
    let mut relay = Relay::start(
        "create table t (id int primary key); grant select on t to authenticated",
        "t",
    )
    .await;
    // A channel that names no table is looked at again with each new catalog.
    let mut watcher = relay.watch("authenticated", &json!({}), "*").await;
    watcher
        .refresh(&relay.core, "nobody_at_all", &json!({}))
        .await;
    let refused = next(&watcher).await;
    assert!(refused.contains("does not exist"), "{refused}");
    let other = relay.watch("authenticated", &json!({}), "*").await;
    relay
        .run(
            "create table later (id int primary key); grant select on later to authenticated;
             alter publication rowcast add table later",
        )
        .await;
    // Who may see the new table is told that it is there, so the catalog has been read.
    assert_eq!(next(&other).await, "joined");
    relay
        .run("insert into t values (1); insert into later values (2)")
        .await;
    let fence = relay.fence().await;
    assert_eq!(told(&other, fence).await, ["INSERT 1", "INSERT 2"]);
    let mut late = Vec::new();
    let taken = watcher.outbox.take(&mut late, 1).unwrap();
    assert_eq!(taken, 0, "what the old role may see: {late:?}");
    watcher
        .refresh(&relay.core, "authenticated", &json!({}))
        .await;
    assert_eq!(next(&watcher).await, "joined");
    relay.run("insert into t values (3)").await;
    let fence = relay.fence().await;
    assert_eq!(told(&watcher, fence).await, ["INSERT 3"]);
}

/// Whether what came in each part between refreshes is what its user sees of a run of rows, and
/// those runs lie one behind the other without a gap.
fn is_exact(rows: &[i32], parts: &[(BTreeSet<i32>, Vec<i32>)]) -> bool {
    let mut begins: BTreeSet<usize> = BTreeSet::from([0]);
    for (orgs, came) in parts {
        let mut ends = BTreeSet::new();
        for &begin in &begins {
            let mut seen = Vec::new();
            for end in begin..=rows.len() {
                if end > begin && orgs.contains(&rows[end - 1]) {
                    seen.push(i32::try_from(end).unwrap());
                }
                if seen == *came {
                    ends.insert(end);
                }
            }
        }
        begins = ends;
    }
    begins.contains(&rows.len())
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn rows_and_refreshes_at_random_leave_no_gap_and_no_row_of_the_one_before() {
    let seed = std::env::var("ROWCAST_SEED").map_or_else(
        |_| rand::random::<u32>().into(),
        |text| text.parse().expect("a number"),
    );
    eprintln!("ROWCAST_SEED={seed}");
    let mut rng = StdRng::seed_from_u64(seed);
    let mut relay = patient("t").await;
    let users = [
        ("authenticated", ANN, BTreeSet::from([1, 3])),
        ("authenticated", BEN, BTreeSet::from([2, 3])),
        ("anon", ANN, BTreeSet::new()),
    ];
    let mut watcher = relay.watch_as(ANN, "t").await;
    let mut parts = vec![(users[0].2.clone(), Vec::new())];
    let (mut rows, mut words) = (Vec::new(), Vec::new());
    for _ in 0..40 {
        let batch: Vec<String> = (0..rng.random_range(1..6))
            .map(|_| {
                rows.push(rng.random_range(1..5));
                format!("({}, {})", rows.len(), rows[rows.len() - 1])
            })
            .collect();
        relay
            .run(&format!("insert into t values {}", batch.join(", ")))
            .await;
        if rng.random_bool(0.5) {
            let (role, user, orgs) = &users[rng.random_range(0..users.len())];
            watcher
                .refresh(&relay.core, role, &json!({"sub": user}))
                .await;
            parts.push((orgs.clone(), Vec::new()));
            // A refusal takes a look at the catalog; a newer refresh would take its place.
            let mut refused = *role != "anon";
            while !refused {
                let word = next(&watcher).await;
                refused = word.starts_with("joined ");
                words.push(word);
            }
        }
    }
    let fence = relay.fence().await;
    words.extend(told(&watcher, fence).await);
    let mut part = 0;
    for word in words {
        if word.starts_with("joined") {
            part += 1;
        } else {
            let id = word.strip_prefix("INSERT ").expect("a row");
            parts[part].1.push(id.parse().unwrap());
        }
    }
    assert_eq!(part, parts.len() - 1, "each refresh is answered");
    assert!(is_exact(&rows, &parts), "{rows:?}: {parts:?}");
}
