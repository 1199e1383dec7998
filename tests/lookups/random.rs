//! Random writers with overlapping transactions, while mirrors are made, followed and made anew.
//!
//! `ROWCAST_LOOKUP_ROUNDS` says how many quiet points there are, `ROWCAST_LOOKUP_SEED` repeats a
//! run as far as the machine's timing lets it.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::Duration;

use rand::rngs::StdRng;
use rand::seq::IndexedRandom;
use rand::{Rng, SeedableRng};
use rowcast::lookup::keep::State;
use rowcast::pg::connect::Database;
use tokio::time::Instant;
use tokio_postgres::Client;

use crate::harness::{World, joined};

const WRITERS: u64 = 3;

const SCHEMA: &str = "
    create table members (org int, usr uuid, role text, primary key (org, usr));
    create table big (id int primary key, tag text, price numeric, body text);
    alter table big alter body set storage external;
    create table loose (a int, b text);
    alter table loose replica identity full;
    create table coded (id int not null, code text not null, other text);
    create unique index coded_code on coded (code);
    alter table coded replica identity using index coded_code;
    create table parts (id int, kind int, owner text, primary key (id, kind)) partition by list (kind);
    create table parts_0 partition of parts for values in (0, 1);
    create table parts_1 partition of parts for values in (2, 3);
    create table whole (id int primary key, at timestamp, body text);
    alter table whole replica identity full;
    alter table whole alter body set storage external;
    create table published (id int primary key, n int);
    create publication rowcast for table published with (publish_via_partition_root = true);";

const TABLES: [(&str, &[&str]); 7] = [
    ("members", &["org", "usr", "role"]),
    ("big", &["tag", "price", "body"]),
    ("loose", &["a", "b"]),
    ("coded", &["other"]),
    ("parts", &["id", "owner"]),
    ("whole", &["at", "body"]),
    ("published", &["n"]),
];

fn statement(random: &mut StdRng) -> String {
    let id = random.random_range(0..40);
    let other = random.random_range(0..40);
    let kind = random.random_range(0..4);
    let word = ["a", "b", "", "ö'x"]
        .choose(random)
        .unwrap()
        .replace('\'', "''");
    let usr = format!("00000000-0000-0000-0000-{id:012}");
    let long = format!("repeat('{word}{id}', {})", random.random_range(1..3000));
    match random.random_range(0..100) {
        0..8 => {
            format!("insert into members values ({kind}, '{usr}', '{word}') on conflict do nothing")
        }
        8..12 => format!("update members set role = '{word}' where usr = '{usr}'"),
        12..16 => format!("update members set org = org + 1 where usr = '{usr}' and org = {kind}"),
        16..20 => format!("delete from members where usr = '{usr}' and org <> {kind}"),
        20..30 => format!(
            "insert into big (id, tag, price, body) values ({id}, '{word}', {kind}.{other}0, {long}) \
             on conflict (id) do update set tag = excluded.tag"
        ),
        30..34 => format!("update big set price = {kind}.{other}00 where id = {id}"),
        34..36 => format!("update big set id = id + 40 where id = {id}"),
        36..38 => format!("update big set body = {long} where id = {id}"),
        38..40 => format!("delete from big where id in ({id}, {id} + 40, {other} + 80)"),
        40..47 => format!(
            "insert into loose select {kind}, nullif('{word}', '') from generate_series(1, {})",
            kind + 1
        ),
        47..50 => format!("update loose set a = a + 1 where a = {kind}"),
        50..53 => format!(
            "delete from loose where ctid in (select ctid from loose where a <> {kind} limit 3)"
        ),
        53..58 => format!(
            "insert into coded values ({id}, '{word}{other}', '{word}') on conflict do nothing"
        ),
        58..61 => {
            format!("update coded set code = 'n' || code where id = {id} and length(code) < 12")
        }
        61..64 => format!("update coded set other = '{word}{kind}' where id = {id}"),
        64..66 => format!("delete from coded where id = {id}"),
        66..72 => {
            format!("insert into parts values ({id}, {kind}, '{word}') on conflict do nothing")
        }
        72..75 => format!(
            "update parts set kind = 3 - kind where id = {id} and not exists \
                           (select from parts p where p.id = {id} and p.kind <> parts.kind)"
        ),
        75..77 => {
            format!("update parts set owner = owner || 'x' where id = {id} and length(owner) < 9")
        }
        77..79 => format!("delete from parts where id = {id}"),
        79..84 => format!(
            "insert into whole values ({id}, timestamp '2020-01-01' + interval '{other} minutes', {long}) \
             on conflict (id) do update set at = excluded.at"
        ),
        84..86 => format!("update whole set id = id + 40 where id = {id}"),
        86..88 => format!("delete from whole where id = {id}"),
        88..93 => format!(
            "insert into published values ({id}, {kind}) on conflict (id) do update set n = {other}"
        ),
        93..95 => format!("delete from published where id = {id}"),
        95..97 => "select pg_sleep(0.01)".to_owned(),
        97 => format!(
            "truncate {}",
            ["loose", "members, coded", "big", "published"]
                .choose(random)
                .unwrap()
        ),
        98 => format!(
            "insert into members select g, '{usr}', 'm' from generate_series(100, {}) g on conflict do nothing",
            100 + random.random_range(1..1500)
        ),
        _ => "delete from members where org >= 100".to_owned(),
    }
}

async fn transaction(client: &Client, random: &mut StdRng) {
    if client.batch_execute("begin").await.is_err() {
        return;
    }
    let mut broken = false;
    for _ in 0..random.random_range(1..8) {
        let sql = statement(random);
        let inner = random.random_bool(0.3);
        let text = if inner {
            format!("savepoint s; {sql}")
        } else {
            sql
        };
        broken |= client.batch_execute(&text).await.is_err();
        if inner {
            let end = if broken || random.random_bool(0.4) {
                "rollback to s"
            } else {
                "release s"
            };
            broken = client.batch_execute(end).await.is_err();
        }
        if broken {
            break;
        }
    }
    let end = if broken || random.random_bool(0.1) {
        "rollback"
    } else {
        "commit"
    };
    // A lost transaction is as good as one that was rolled back.
    let _ended = client.batch_execute(end).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_mirror_holds_what_a_select_sees_whatever_is_written_while_it_is_made() {
    let number = |name: &str| std::env::var(name).ok().and_then(|text| text.parse().ok());
    let seed: u64 = number("ROWCAST_LOOKUP_SEED").unwrap_or_else(rand::random);
    let rounds: u64 = number("ROWCAST_LOOKUP_ROUNDS").unwrap_or(6);
    println!("ROWCAST_LOOKUP_SEED={seed}");
    let mut random = StdRng::seed_from_u64(seed);
    let world = World::new(SCHEMA, None).await;
    let mut wanted = Vec::new();
    for (table, columns) in TABLES {
        wanted.push(world.wanted(table, columns).await);
    }
    // Writers pause where `phase` is odd.
    let phase = Arc::new(AtomicU64::new(0));
    let paused = Arc::new(AtomicU64::new(0));
    let stop = Arc::new(AtomicBool::new(false));
    let mut writers = Vec::new();
    for writer in 0..WRITERS {
        let client = Database::parse(&world.url)
            .unwrap()
            .connect("writer")
            .await
            .unwrap();
        client
            .batch_execute("set deadlock_timeout = '20ms'; set statement_timeout = '5s'")
            .await
            .unwrap();
        let mut random = StdRng::seed_from_u64(seed ^ (writer + 1));
        let (phase, paused, stop) = (Arc::clone(&phase), Arc::clone(&paused), Arc::clone(&stop));
        writers.push(tokio::spawn(async move {
            while !stop.load(Ordering::Relaxed) {
                if phase.load(Ordering::Relaxed) % 2 == 1 {
                    paused.fetch_add(1, Ordering::Relaxed);
                    while phase.load(Ordering::Relaxed) % 2 == 1 && !stop.load(Ordering::Relaxed) {
                        tokio::time::sleep(Duration::from_millis(2)).await;
                    }
                    continue;
                }
                transaction(&client, &mut random).await;
                // As much as an unoptimised build can follow.
                tokio::time::sleep(Duration::from_millis(5)).await;
            }
        }));
    }
    let mut follower = world.follow(World::settings(None));
    let mut applied = 0;
    for round in 0..rounds {
        follower.keeping.want(&wanted);
        let end = Instant::now() + Duration::from_millis(random.random_range(300..1500));
        while Instant::now() < end {
            match follower.step().await {
                Some(done) => applied += done.deltas.len(),
                None => {
                    let next = follower.keeping.next();
                    let _event = tokio::time::timeout(Duration::from_millis(5), next).await;
                }
            }
            if random.random_bool(0.002) {
                let next = follower.next;
                follower.keeping.lost(next);
            }
            if random.random_bool(0.002) {
                // Forgotten, and wanted again before the next round.
                let some = random.random_range(0..wanted.len());
                follower.keeping.want(&wanted[some..]);
                follower.keeping.want(&wanted);
            }
        }
        if round == 1 {
            world
                .run("alter table big add column more text default 'm'")
                .await;
        }
        if round == 2 {
            // Another column is dropped, one that nobody wants: places in the stream change.
            world.run("alter table big drop column more").await;
        }
        // All are ready while the writers go on, and at a place where nobody writes they are right.
        follower.all_ready().await;
        phase.fetch_add(1, Ordering::Relaxed);
        let deadline = Instant::now() + crate::harness::DEADLINE;
        while paused.load(Ordering::Relaxed) < WRITERS {
            assert!(Instant::now() < deadline, "the writers do not pause");
            if follower.step().await.is_none() {
                tokio::time::sleep(Duration::from_millis(1)).await;
            }
        }
        follower.passes(world.now().await).await;
        follower.all_ready().await;
        for ((table, _), wanted) in TABLES.iter().zip(&wanted) {
            follower.check(&world, table, wanted.table).await;
        }
        paused.store(0, Ordering::Relaxed);
        phase.fetch_add(1, Ordering::Relaxed);
    }
    stop.store(true, Ordering::Relaxed);
    for writer in writers {
        joined(writer).await;
    }
    assert!(applied > 0, "nothing was ever applied");
    let states: Vec<_> = follower
        .keeping
        .status()
        .iter()
        .map(|one| one.last_fault.clone())
        .collect();
    println!("{applied} deltas; faults: {states:?}");
    assert!(
        follower
            .keeping
            .status()
            .iter()
            .all(|one| one.state == State::Ready)
    );
}
