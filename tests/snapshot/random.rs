//! Random writers, random subscribers, PostgreSQL as oracle: rows and changes add up.
//!
//! Writers use overlapping transactions with savepoints that are rolled back, prepared transactions
//! and rollbacks, while commits hang for a moment now and then because the synchronous standby is
//! not there. `ROWCAST_SNAPSHOT_TRIALS` says how many subscriptions are tried,
//! `ROWCAST_SNAPSHOT_SEED` repeats a run as far as the machine's timing lets it.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::{Duration, Instant};

use rand::rngs::StdRng;
use rand::seq::IndexedRandom;
use rand::{Rng, SeedableRng};
use rowcast::admin::Readiness;
use rowcast::app::Core;
use rowcast::metrics::Metrics;
use rowcast::pg::throwaway::{Options, Throwaway};
use serde_json::{Value, json};
use tokio_postgres::Client as Sql;

use crate::client::{Asked, Client, principal};
use crate::harness::{ANN, BEN, config, connect};

const WRITERS: u64 = 4;

/// Subscriptions tried at once.
const CROWD: usize = 60;

const SCHEMA: &str = "
    create table fence (id bigint primary key);
    grant select on fence to public;
    create table plain (id bigint primary key, owner uuid, kind int, tag text,
        version int not null default 0, body text);
    create table owned (like plain including all);
    alter table owned enable row level security;
    create policy own on owned using (owner = auth.uid() or kind = 0);
    create table asked (like plain including all);
    alter table asked enable row level security;
    create function may(of uuid) returns boolean language plpgsql stable as
        $$ begin for i in 1..1 loop perform 1; end loop; return of = auth.uid(); end $$;
    create policy own on asked using (may(owner));
    create table parts (id bigint, owner uuid, kind int, tag text,
        version int not null default 0, body text, primary key (id, kind)) partition by list (kind);
    create table parts_0 partition of parts for values in (0, 1);
    create table parts_1 partition of parts for values in (2, 3);
    alter table parts enable row level security;
    create policy own on parts using (owner = auth.uid());
    alter table plain replica identity full;
    alter table owned replica identity full;
    alter table asked replica identity full;
    alter table parts_0 replica identity full;
    alter table parts_1 replica identity full;
    alter table parts replica identity full;
    grant select on plain, owned, asked, parts to authenticated, service_role;
    create publication rowcast for table fence, plain, owned, asked, parts
        with (publish_via_partition_root = true);";

const TABLES: [&str; 4] = ["plain", "owned", "asked", "parts"];

const FILTERS: [&str; 6] = [
    "",
    "",
    "kind=eq.1",
    "kind=in.(0,2)",
    "tag=like.a%",
    "tag=gt.b,kind=neq.3",
];

/// What a filter of [`FILTERS`] says in SQL.
fn condition(filter: &str) -> &'static str {
    match filter {
        "" => "true",
        "kind=eq.1" => "kind = 1",
        "kind=in.(0,2)" => "kind in (0, 2)",
        "tag=like.a%" => "tag like 'a%'",
        "tag=gt.b,kind=neq.3" => "tag > 'b' and kind <> 3",
        other => panic!("{other}"),
    }
}

const ORDERS: [&str; 4] = ["", "id.desc", "tag,kind.desc.nullslast", "version.desc,id"];

/// Writes until it is told to stop, and leaves nothing prepared.
async fn write(url: String, writer: u64, seed: u64, stop: Arc<AtomicBool>, ids: Arc<AtomicU64>) {
    let sql = connect(&url).await;
    let mut random = StdRng::seed_from_u64(seed ^ (writer << 32));
    let mut prepared: Vec<String> = Vec::new();
    let mut transactions = 0_u64;
    while !stop.load(Ordering::Relaxed) {
        transactions += 1;
        let mut script = String::from("begin;");
        let durable = ["on", "local", "off"].choose(&mut random).unwrap();
        script.push_str(&format!("set local synchronous_commit = {durable};"));
        for step in 0..random.random_range(1..5) {
            let savepoint = random.random_bool(0.3);
            if savepoint {
                script.push_str(&format!("savepoint s{step};"));
            }
            for _ in 0..random.random_range(1..4) {
                script.push_str(&operation(&mut random, writer, &ids));
            }
            if savepoint && random.random_bool(0.5) {
                script.push_str(&format!("rollback to savepoint s{step};"));
            } else if savepoint && random.random_bool(0.5) {
                script.push_str(&format!("release savepoint s{step};"));
            }
        }
        if random.random_bool(0.2) {
            script.push_str("select pg_sleep(0.02);");
        }
        match random.random_range(0..10) {
            0 => script.push_str("rollback"),
            1 if prepared.len() < 3 => {
                let name = format!("w{writer}_{transactions}");
                script.push_str(&format!("prepare transaction '{name}'"));
                prepared.push(name);
            }
            _ => script.push_str("commit"),
        }
        sql.batch_execute(&script).await.expect("a transaction");
        if !prepared.is_empty() && random.random_bool(0.3) {
            let name = prepared.swap_remove(random.random_range(0..prepared.len()));
            end_prepared(&sql, &name, random.random_bool(0.8)).await;
        }
    }
    for name in prepared {
        end_prepared(&sql, &name, true).await;
    }
}

async fn end_prepared(sql: &Sql, name: &str, commit: bool) {
    let end = if commit { "commit" } else { "rollback" };
    let ended = sql.batch_execute(&format!("{end} prepared '{name}'")).await;
    ended.expect("the end of a prepared transaction");
}

/// One statement on one row of the writer's own, which nobody else waits for.
fn operation(random: &mut StdRng, writer: u64, ids: &AtomicU64) -> String {
    let table = TABLES.choose(random).unwrap();
    let own = format!(
        "select id from {table} where id % {WRITERS} = {writer} and id % 7 = {} \
         order by id limit 1 for update skip locked",
        random.random_range(0..7)
    );
    match random.random_range(0..10) {
        0..4 => {
            let id = ids.fetch_add(1, Ordering::Relaxed) * WRITERS + writer;
            let owner = [ANN, BEN].choose(random).unwrap();
            let kind = random.random_range(0..4);
            let tag = ["a", "ab", "b", "bc", "c"].choose(random).unwrap();
            format!("insert into {table} values ({id}, '{owner}', {kind}, '{tag}');")
        }
        4..8 => format!(
            "update {table} set version = version + 1, body = repeat('x', {}) where id = ({own});",
            random.random_range(0..300)
        ),
        _ => format!("delete from {table} where id = ({own});"),
    }
}

/// Has commits hang for moments.
async fn hang(url: String, seed: u64, stop: Arc<AtomicBool>) {
    let sql = connect(&url).await;
    let mut random = StdRng::seed_from_u64(seed ^ 0xBAD);
    let standby = async |name: &str| {
        let set = format!("alter system set synchronous_standby_names = '{name}'");
        sql.batch_execute(&set).await.expect("a setting");
        let reload = sql.batch_execute("select pg_reload_conf()").await;
        reload.expect("a reload");
    };
    while !stop.load(Ordering::Relaxed) {
        tokio::time::sleep(Duration::from_millis(random.random_range(50..400))).await;
        standby("nobody").await;
        tokio::time::sleep(Duration::from_millis(random.random_range(50..500))).await;
        standby("").await;
    }
}

/// One subscription: what it asked for, as whom.
fn asked(random: &mut StdRng) -> (Asked, &'static str, &'static str) {
    let limited = random.random_bool(0.15);
    let asked = Asked {
        filter: (*FILTERS.choose(random).unwrap()).to_owned(),
        limit: limited.then(|| random.random_range(0..40)),
        order: (*ORDERS.choose(random).unwrap()).to_owned(),
        ..Asked::of(TABLES.choose(random).unwrap())
    };
    let role = if random.random_bool(0.1) {
        "service_role"
    } else {
        "authenticated"
    };
    (asked, role, [ANN, BEN].choose(random).unwrap())
}

/// What the user may select now, by id.
async fn truth(sql: &Sql, asked: &Asked, role: &str, sub: &str) -> BTreeMap<i64, Value> {
    let question = format!(
        "begin; select set_config('request.jwt.claims', '{}', true); set local role {role}",
        json!({ "role": role, "sub": sub })
    );
    sql.batch_execute(&question).await.expect("the user");
    let select = format!(
        "select id, to_jsonb(t)::text from {} as t where {}",
        asked.table,
        condition(&asked.filter)
    );
    let rows = sql.query(&select, &[]).await.expect("the rows");
    sql.batch_execute("rollback").await.expect("the end");
    rows.iter()
        .map(|row| {
            let text: String = row.get(1);
            (row.get(0), serde_json::from_str(&text).expect("JSON"))
        })
        .collect()
}

/// What is wrong with what a client has, if anything.
fn differences(client: &Client, truth: &BTreeMap<i64, Value>) -> Vec<String> {
    let mut wrong = client.wrong.clone();
    for (id, row) in &client.rows {
        match truth.get(id) {
            None => wrong.push(format!("row {id} is no more")),
            Some(now) if now != row => {
                let (has, is) = (&row["version"], &now["version"]);
                wrong.push(format!("row {id} is at version {is}, not {has}"));
            }
            Some(_) => {}
        }
    }
    let missing = truth.keys().filter(|id| !client.rows.contains_key(*id));
    if client.asked.limit.is_none() {
        wrong.extend(missing.map(|id| format!("row {id} is missing")));
    }
    wrong
}

fn number(name: &str) -> Option<u64> {
    std::env::var(name).ok()?.parse().ok()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn rows_and_changes_add_up_to_what_the_user_may_select() {
    let trials = number("ROWCAST_SNAPSHOT_TRIALS").unwrap_or(240);
    let seed = number("ROWCAST_SNAPSHOT_SEED").unwrap_or_else(rand::random);
    eprintln!("ROWCAST_SNAPSHOT_SEED={seed} ROWCAST_SNAPSHOT_TRIALS={trials}");
    let settings = [
        "max_prepared_transactions = 50",
        "max_connections = 100",
        // Prepared transactions and hanging ones keep the snapshots' xmin back.
        "log_min_messages = error",
    ];
    let cluster = Throwaway::start(Options {
        settings: settings.map(str::to_owned).to_vec(),
        ..Options::default()
    });
    let cluster = cluster.await.expect("a cluster");
    let url = cluster.fresh_database().await.expect("a database");
    let sql = connect(&url).await;
    sql.batch_execute(include_str!("../../sql/auth.sql"))
        .await
        .expect("auth.sql");
    sql.batch_execute(SCHEMA).await.expect("the schema");
    let mut random = StdRng::seed_from_u64(seed);
    let mut config = config(&url);
    config.snapshot.default_rows = 10_000_000;
    config.snapshot.max_rows = 10_000_000;
    config.snapshot.timeout = Duration::from_secs(60);
    let core = Core::start(&config, Arc::new(Metrics::new()), Readiness::default());
    let core = core.await.expect("a relay");
    let ids = Arc::new(AtomicU64::new(1));
    let (mut tried, mut fence, mut changed, mut again) = (0, 0, 0, BTreeMap::new());
    let began = Instant::now();
    while tried < trials {
        let stop = Arc::new(AtomicBool::new(false));
        let mut writers = Vec::new();
        for writer in 0..WRITERS {
            let task = write(
                url.clone(),
                writer,
                random.random(),
                Arc::clone(&stop),
                Arc::clone(&ids),
            );
            writers.push(tokio::spawn(task));
        }
        let hanging = tokio::spawn(hang(url.clone(), random.random(), Arc::clone(&stop)));
        fence += 1;
        let mut crowd = Vec::new();
        for _ in 0..CROWD {
            let (asked, role, sub) = asked(&mut random);
            let wait = Duration::from_millis(random.random_range(0..1500));
            let who = principal(role, &json!({ "role": role, "sub": sub }));
            let mut client = Client::new(&core.router, who, asked);
            crowd.push(tokio::spawn(async move {
                tokio::time::sleep(wait).await;
                client.join().await;
                client.follow(fence).await;
                (client, role, sub)
            }));
        }
        tokio::time::sleep(Duration::from_millis(2000)).await;
        stop.store(true, Ordering::Relaxed);
        hanging.await.expect("no standby is waited for");
        for writer in writers {
            writer.await.expect("a writer");
        }
        // Whoever came late joins now; the fence is behind all that was written.
        let write = format!("insert into fence values ({fence})");
        sql.batch_execute(&write).await.expect("a fence");
        let reminder = tokio::spawn(remind(url.clone(), fence));
        for client in crowd {
            let (client, role, sub) = client.await.expect("a client");
            let truth = truth(&sql, &client.asked, role, sub).await;
            let wrong = differences(&client, &truth);
            assert!(
                wrong.is_empty(),
                "seed {seed}, trial {tried}: {:?} as {role} {sub} (again: {:?}):\n{}\n{}",
                client.asked,
                client.again,
                wrong.join("\n"),
                hidden(&core)
            );
            changed += client.rows.len();
            for reason in client.again {
                *again.entry(reason).or_insert(0) += 1;
            }
            tried += 1;
            client_gone(&core, &client.outbox).await;
        }
        reminder.abort();
        // Tables stay small enough to be compared.
        for table in TABLES {
            let delete = format!("delete from {table} where id % 3 <> 0");
            sql.batch_execute(&delete).await.expect("fewer rows");
        }
    }
    eprintln!(
        "{tried} subscriptions, {changed} rows compared, {} written, begun anew: {again:?}, {:?}",
        ids.load(Ordering::Relaxed),
        began.elapsed()
    );
    assert!(changed > 0, "there was something to compare");
    core.stop().await;
    cluster.stop().await;
}

/// Writes the fence again and again: whoever joins after it was written waits for it as well.
async fn remind(url: String, fence: u64) {
    let sql = connect(&url).await;
    loop {
        tokio::time::sleep(Duration::from_millis(200)).await;
        let rewritten =
            format!("delete from fence where id = {fence}; insert into fence values ({fence})");
        sql.batch_execute(&rewritten).await.expect("a fence");
    }
}

/// What the relay says that it has hidden, and why.
fn hidden(core: &Core) -> String {
    let metrics = core.metrics.encode();
    let lines = metrics.lines().filter(|line| line.contains("hidden_total"));
    lines.collect::<Vec<_>>().join("\n")
}

async fn client_gone(core: &Core, outbox: &rowcast::router::Outbox) {
    outbox.close();
    let gone = core.router.disconnect(outbox.session()).await;
    gone.expect("a router");
}
