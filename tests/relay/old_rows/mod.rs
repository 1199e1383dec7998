//! Random updates and deletes under every replica identity, with policies, filters and partitions:
//! who is told of a row that leaves, and what anybody is shown of an old row, is what a `select`
//! under each user showed before and after each commit.
//!
//! `ROWCAST_SEED` repeats a run, `ROWCAST_OLD_ROWS` sets its size in tables. Nothing that shows too
//! much is let pass. Too little is where a notice of the join names columns that old rows do not
//! carry, or where an update carries a large value that it did not touch neither in its new row nor
//! in its old one (`undecided`).

#![allow(clippy::print_stderr, reason = "the seed and the numbers are printed")]

mod world;

use std::collections::{BTreeMap, BTreeSet, HashMap};

use rand::rngs::StdRng;
use rand::{Rng, SeedableRng};
use rowcast::router::{Leaves, Resync};
use rowcast::subscription::{Events, Start, Wanted, filter};
use serde_json::{Map, Value, json};
use tokio_postgres::Client;

use crate::generated::PUBLISH_GENERATED;
use crate::harness::{Relay, Seen, Watcher, connect};
use world::{Change, Row, Shape, USERS, Who, World};

/// Transactions on one table.
const TRANSACTIONS: u64 = 40;

/// After as many the watchers are read.
const ROUND: u64 = 10;

/// What a `select` of a watcher shows: rows, and those that pass its filter as well.
#[derive(Debug, Clone, Default)]
struct Sight {
    visible: BTreeSet<i32>,
    matched: BTreeSet<i32>,
}

/// What one change means to one watcher.
#[derive(Debug)]
struct Expected {
    kind: &'static str,
    /// The key of the row, in the order of the table's.
    key: Vec<i32>,
    must: bool,
    /// The old row, where it may be shown, and the new one.
    old: Option<Map<String, Value>>,
    new: Option<Map<String, Value>>,
}

#[derive(Debug, Default)]
struct Tally {
    cases: u64,
    told: u64,
    leaves: u64,
    unjudged: u64,
    undecided: u64,
}

struct Watching {
    who: Who,
    watcher: Watcher,
    expected: HashMap<u64, Vec<Expected>>,
    sight: Sight,
}

fn number(name: &str) -> Option<u64> {
    let text = std::env::var(name).ok()?;
    Some(text.parse().unwrap_or_else(|_| panic!("{name}: {text}")))
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn who_hears_of_an_old_row_is_who_a_select_showed_it() {
    let seed = number("ROWCAST_SEED").unwrap_or_else(|| rand::rng().random());
    let tables = number("ROWCAST_OLD_ROWS").unwrap_or(6);
    let began = std::time::Instant::now();
    let mut sum = Tally::default();
    for table in 0..tables {
        // Each table can be repeated by itself.
        let seed = seed.wrapping_add(table);
        eprintln!("ROWCAST_SEED={seed} ROWCAST_OLD_ROWS=1");
        let mut random = StdRng::seed_from_u64(seed);
        let tally = play(&mut random).await;
        sum.cases += tally.cases;
        sum.told += tally.told;
        sum.leaves += tally.leaves;
        sum.unjudged += tally.unjudged;
        sum.undecided += tally.undecided;
    }
    eprintln!("{sum:?} in {:?}", began.elapsed());
    eprintln!("old rows: {} cases, 0 shown too much", sum.cases);
    assert!(sum.told > sum.leaves, "{sum:?}");
    if tables >= 20 {
        assert!(sum.leaves > 40 && sum.unjudged > 0, "{sum:?}");
    }
}

/// Tables after which a fault is taken to be unnoticed.
#[cfg(feature = "mutants")]
const TRIED: u64 = 60;

#[cfg(feature = "mutants")]
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn every_mutant_of_leaves_is_noticed() {
    let only = std::env::var("ROWCAST_MUTANT").ok();
    let mut survivors = Vec::new();
    for &mutant in rowcast::mutant::LeaveMutant::ALL {
        let name = format!("{mutant:?}");
        if only.as_ref().is_some_and(|only| *only != name) {
            continue;
        }
        mutant.switch_on();
        let mut noticed = None;
        for seed in 0..TRIED {
            let table = tokio::spawn(async move { play(&mut StdRng::seed_from_u64(seed)).await });
            if table.await.is_err() {
                noticed = Some(seed);
                break;
            }
        }
        eprintln!("{name}: noticed with table {noticed:?}");
        if noticed.is_none() {
            survivors.push(name);
        }
    }
    rowcast::mutant::LeaveMutant::switch_off();
    assert!(survivors.is_empty(), "not noticed: {survivors:?}");
}

/// One table with its watchers.
async fn play(random: &mut StdRng) -> Tally {
    let world = World::random(random);
    // Altered later, it would cost what is kept by then.
    let published = format!("{}; {PUBLISH_GENERATED}", world.published());
    let mut relay = Relay::with(&world.sql(), &published, |config| {
        if world.all {
            config.leave = Leaves::All;
        }
        config.old_rows = world.old_rows().0.parse().expect("tables");
    })
    .await;
    relay.keeps_old_rows(world.old_rows().1).await;
    // Whoever joins again may do so before the relay has come to the transactions of a round.
    let pace = relay.watch("anon", &json!({}), "fence").await;
    let mut eyes = HashMap::new();
    let mut watching = Vec::new();
    for user in USERS {
        for table in world.tables() {
            for _ in 0..3 / world.tables().len() + 1 {
                let who = Who::random(random, user, table);
                let watcher = watch(&relay, &world, &who).await;
                if !eyes.contains_key(user) {
                    eyes.insert(user, eye(&relay.url, &who).await);
                }
                watching.push(Watching {
                    who,
                    watcher,
                    expected: HashMap::new(),
                    sight: Sight::default(),
                });
            }
        }
    }
    let (mut tally, mut rows, mut next) = (Tally::default(), Vec::<Row>::new(), 1);
    let mut fences = Vec::new();
    for transaction in 1..=TRANSACTIONS {
        let changes = changes(random, &mut rows, &mut next, world.large);
        let old = contents(&relay.sql).await;
        let fence = relay.next_fence();
        let mut sql: Vec<String> = changes.iter().map(|one| one.sql(fence)).collect();
        sql.push(format!("insert into fence values ({fence})"));
        // As one transaction.
        relay.run(&sql.join("; ")).await;
        let new = contents(&relay.sql).await;
        for one in &mut watching {
            let after = sight(&eyes[one.who.user], &world, &one.who).await;
            let before = std::mem::replace(&mut one.sight, after.clone());
            let expected: Vec<Expected> = changes
                .iter()
                .flat_map(|change| {
                    expect(&world, &one.who, change, (&before, &after), (&old, &new))
                })
                .collect();
            tally.cases += changes.len() as u64;
            one.expected.insert(fence, expected);
        }
        fences.push(fence);
        if transaction % ROUND == 0 {
            pace.until(fence).await;
            for one in &mut watching {
                check(&relay, &world, one, &fences, &mut tally).await;
            }
            fences.clear();
        }
    }
    tally
}

/// The changes of a transaction: a row takes part once.
fn changes(random: &mut StdRng, rows: &mut Vec<Row>, next: &mut i32, large: bool) -> Vec<Change> {
    let mut rest = rows.clone();
    let mut changes = Vec::new();
    for _ in 0..random.random_range(1..4) {
        let change = Change::random(random, &rest, *next, large);
        *next += 1;
        if let Some(before) = change.before() {
            rest.retain(|row| row.id != before.id);
            rows.retain(|row| row.id != before.id);
        }
        rows.extend(change.after().cloned());
        changes.push(change);
    }
    changes
}

async fn watch(relay: &Relay, world: &World, who: &Who) -> Watcher {
    let columns = |names: &[&str]| names.iter().map(|&name| name.to_owned()).collect();
    let wanted = Wanted {
        id: 1,
        events: Events::from_name(who.event),
        schema: Some("public".to_owned()),
        table: Some(who.table.to_owned()),
        filter: filter::parse(who.filter.0).expect("a filter"),
        select: who.select.map(columns),
        leave: who.leave,
        start: Start::default(),
    };
    let watcher = relay
        .watch_wanted("authenticated", &who.claims(), wanted)
        .await
        .unwrap_or_else(|refusal| panic!("{who:?}: {refusal}"));
    let told = watcher.notices.iter();
    let told = told.filter(|notice| notice.contains("that leave your view are not told"));
    let silent = hears_leaves(world, who) && !judges(world, who);
    assert_eq!(
        told.count(),
        usize::from(silent),
        "{world:?} {who:?}: {:?}",
        watcher.notices
    );
    watcher
}

fn hears_leaves(world: &World, who: &Who) -> bool {
    who.event != "UPDATE" && (who.leave || world.all)
}

/// Whether old rows carry all that decides whether they were seen.
fn judges(world: &World, who: &Who) -> bool {
    // What a policy reads that is computed PostgreSQL computes anew, of what it is computed from.
    let read = world.reads(who.table).into_iter();
    let mut needed: Vec<&str> = read
        .map(|name| if name == "gen" { "n" } else { name })
        .collect();
    needed.extend(who.filter.2);
    world.carries(who.table, &needed)
}

/// A session that sees what the user sees.
async fn eye(url: &str, who: &Who) -> Client {
    let sql = connect(url).await;
    let claims = who.claims();
    sql.batch_execute(&format!(
        "set role authenticated; select set_config('request.jwt.claims', '{claims}', false)"
    ))
    .await
    .expect("a user");
    sql
}

/// What a `select` shows. A partition's rows have to pass by its root as well.
async fn sight(eye: &Client, world: &World, who: &Who) -> Sight {
    let (table, filter) = (who.table, who.filter.1);
    let root = match world.shape {
        Shape::Plain | Shape::ViaRoot => "true",
        Shape::ByLeaf => "id in (select id from t)",
    };
    let query = format!("select id, coalesce({filter}, false) from {table} where {root}");
    let mut sight = Sight::default();
    for row in eye.query(&query, &[]).await.expect("a sight") {
        sight.visible.insert(row.get(0));
        if row.get(1) {
            sight.matched.insert(row.get(0));
        }
    }
    sight
}

type Contents = BTreeMap<i32, Map<String, Value>>;

async fn contents(sql: &Client) -> Contents {
    let rows = sql.query("select id, to_jsonb(t)::text from t", &[]).await;
    let object = |text: &str| serde_json::from_str(text).expect("an object");
    rows.expect("the rows")
        .iter()
        .map(|row| (row.get(0), object(row.get(1))))
        .collect()
}

/// What a change means to a watcher: what has to arrive, what may, in order.
fn expect(
    world: &World,
    who: &Who,
    change: &Change,
    (before, after): (&Sight, &Sight),
    (old, new): (&Contents, &Contents),
) -> Vec<Expected> {
    let old_row = change
        .before()
        .filter(|row| world.table_of(row.grp) == who.table);
    let new_row = change
        .after()
        .filter(|row| world.table_of(row.grp) == who.table);
    let matched =
        |sight: &Sight, row: Option<&Row>| row.is_some_and(|row| sight.matched.contains(&row.id));
    let (was, is) = (matched(before, old_row), matched(after, new_row));
    let key = |row: &Row| match world.shape {
        Shape::Plain => vec![row.id],
        Shape::ViaRoot | Shape::ByLeaf => vec![row.id, row.grp],
    };
    let wants = |kind: &str| who.event == "*" || who.event == kind;
    let visible_old = old_row
        .filter(|row| before.visible.contains(&row.id))
        .and_then(|row| old.get(&row.id).cloned());
    let event = |kind: &'static str, row: &Row, must: bool| Expected {
        kind,
        key: key(row),
        must,
        old: visible_old.clone(),
        new: new
            .get(&row.id)
            .cloned()
            .filter(|_| matches!(kind, "INSERT" | "UPDATE")),
    };
    // PostgreSQL makes two changes of an update that moves a row to another partition.
    let moves = world.shape != Shape::Plain
        && matches!((change.before(), change.after()), (Some(old), Some(new))
            if World::leaf(old.grp) != World::leaf(new.grp));
    let mut expected = Vec::new();
    match (old_row, new_row) {
        (Some(old), Some(_)) if !moves => {
            let new = change.after().expect("an update");
            if is && wants("UPDATE") {
                expected.push(event("UPDATE", new, true));
            } else if was && !is && hears_leaves(world, who) {
                expected.push(event("LEAVE", old, judges(world, who)));
            }
        }
        (old, new) => {
            if let Some(old) = old
                && was
                && wants("DELETE")
            {
                expected.push(event("DELETE", old, judges(world, who)));
            }
            if let Some(new) = new
                && is
                && wants("INSERT")
            {
                expected.push(event("INSERT", new, true));
            }
        }
    }
    expected
}

/// Holds what arrived against what was expected; whoever is told to read again joins again.
async fn check(
    relay: &Relay,
    world: &World,
    one: &mut Watching,
    fences: &[u64],
    tally: &mut Tally,
) {
    // Where a large value that was not touched may decide: what is missing is told by a resync.
    let mut reads = world.reads(one.who.table);
    reads.extend(one.who.filter.2);
    let may_be_undecided =
        world.large && reads.contains(&"note") && !world.carries(one.who.table, &["note"]);
    let (mut owed, mut told_to_read_again) = (false, false);
    for fence in fences {
        let mut seen = one.watcher.until(*fence).await;
        let told_to_read = matches!(seen.last(), Some(Seen::Resync(_)));
        let resync = if told_to_read { seen.pop() } else { None };
        let context = || format!("{world:?}\n{:?}\nseen {seen:?}", one.who);
        let expected = one.expected.get(fence).expect("expected");
        let mut arrived = seen.iter().map(Seen::change).peekable();
        for wanted in expected {
            let is_it = |data: &&Value| fits(world, wanted, data);
            if let Some(data) = arrived.next_if(is_it) {
                if let Some(fault) = unfit(world, &one.who, wanted, data) {
                    panic!("{fault} in {data} for {wanted:?}\n{}", context());
                }
                tally.told += 1;
                tally.leaves += u64::from(wanted.kind == "LEAVE");
            } else if resync.is_some() {
                // What is undecided may be told behind what came after it.
            } else if wanted.must && may_be_undecided {
                // It may come some changes later.
                owed = true;
            } else if wanted.must {
                panic!("missing: {wanted:?}\n{}", context());
            } else {
                tally.unjudged += 1;
            }
        }
        if let Some(data) = arrived.next() {
            panic!(
                "nothing explains {data}\nexpected {expected:?}\n{}",
                context()
            );
        }
        if let Some(resync) = resync {
            let undecided = resync == Seen::Resync(Resync::Undecided);
            assert!(undecided && may_be_undecided, "{resync:?}\n{}", context());
            told_to_read_again = true;
            break;
        }
    }
    if owed && !told_to_read_again {
        assert_eq!(one.watcher.resync().await, "undecided");
        told_to_read_again = true;
    }
    if told_to_read_again {
        tally.undecided += 1;
        one.watcher.join(&relay.core).await.expect("a join");
    }
    one.expected.clear();
}

fn is_leave(data: &Value) -> bool {
    data["rowcast"] == json!({"leave": true})
}

/// Whether an event is that of an expectation: its kind, and its row.
fn fits(world: &World, wanted: &Expected, data: &Value) -> bool {
    let row = match wanted.kind {
        "INSERT" | "UPDATE" => &data["record"],
        _ => &data["old_record"],
    };
    let kind = match data["type"].as_str() {
        Some("DELETE") if is_leave(data) => "LEAVE",
        kind => kind.unwrap_or_default(),
    };
    let key = world.key().iter().zip(&wanted.key);
    kind == wanted.kind && key.into_iter().all(|(name, value)| row[*name] == *value)
}

/// What an event shows that it may not, or does not show though it could.
fn unfit(world: &World, who: &Who, wanted: &Expected, data: &Value) -> Option<String> {
    let none = Map::new();
    let object = |name: &str| data[name].as_object().unwrap_or(&none);
    let (record, old_record) = (object("record"), object("old_record"));
    let is_key = |name: &str| world.key().contains(&name);
    let chosen =
        |name: &str| is_key(name) || who.select.is_none_or(|columns| columns.contains(&name));
    if let Some(new) = &wanted.new {
        for (name, value) in new.iter().filter(|(name, _)| chosen(name)) {
            match record.get(name) {
                Some(shown) if shown == value => {}
                // Not carried.
                None if name == "note" && world.large => {}
                shown => return Some(format!("{name} is {shown:?} and not {value}")),
            }
        }
    }
    for (name, value) in old_record {
        let known = wanted.new.as_ref().and_then(|new| new.get(name));
        let allowed = chosen(name)
            && match &wanted.old {
                Some(old) => old.get(name) == Some(value),
                // Of a row that was hidden only the key that the new one has.
                None => is_key(name) && known == Some(value),
            };
        if !allowed {
            return Some(format!("old_record shows {name}"));
        }
    }
    if wanted.kind == "LEAVE" {
        let marked = data["errors"][0].as_str();
        if old_record.keys().any(|name| !is_key(name)) || !record.is_empty() {
            return Some("a leave shows more than the key".to_owned());
        }
        if marked != Some("Rowcast: the row left this view, it was not deleted") {
            return Some("a leave is not marked".to_owned());
        }
    } else if data["errors"] != json!(null) && !world.large || is_leave(data) {
        return Some("an error".to_owned());
    }
    None
}
