//! Writers in overlapping transactions, with savepoints and prepared transactions, who go on
//! whatever happens to the database.

use std::sync::Arc;
use std::sync::atomic::{AtomicI64, AtomicU64, Ordering};
use std::time::Duration;

use rand::rngs::StdRng;
use rand::seq::IndexedRandom;
use rand::{Rng, SeedableRng};
use tokio::sync::watch;
use tokio_postgres::Client;

use crate::schema::{TABLES, TEAMS, USERS, connected, person};

/// Rows in a table, about.
const ROWS: i64 = 150;

/// Shared by all writers.
pub(crate) struct Traffic {
    pub(crate) url: watch::Receiver<String>,
    pub(crate) paused: watch::Sender<bool>,
    /// Writers that have nothing open.
    idle: watch::Sender<usize>,
    /// The newest id.
    ids: AtomicI64,
    pub(crate) committed: AtomicU64,
}

impl Traffic {
    pub(crate) fn new(url: watch::Receiver<String>) -> Arc<Self> {
        Arc::new(Self {
            url,
            paused: watch::Sender::new(true),
            idle: watch::Sender::new(0),
            ids: AtomicI64::new(0),
            committed: AtomicU64::new(0),
        })
    }

    /// Waits until none of the writers has anything open.
    pub(crate) async fn pause(&self, writers: usize) {
        self.paused.send_replace(true);
        let mut idle = self.idle.subscribe();
        idle.wait_for(|idle| *idle == writers).await.unwrap();
    }

    pub(crate) fn go_on(&self) {
        self.paused.send_replace(false);
    }
}

pub(crate) async fn write(traffic: Arc<Traffic>, writer: u64, seed: u64) {
    let mut random = StdRng::seed_from_u64(seed ^ (writer << 40));
    let mut paused = traffic.paused.subscribe();
    let mut sql = connected(&traffic.url).await;
    let mut count = 0_u64;
    loop {
        if *paused.borrow() {
            traffic.idle.send_modify(|idle| *idle += 1);
            let ended = paused.wait_for(|paused| !paused).await.is_err();
            if ended {
                return;
            }
            traffic.idle.send_modify(|idle| *idle -= 1);
        }
        count += 1;
        let name = format!("writer_{writer}_{count}");
        if transaction(&traffic, &sql, &mut random, &name)
            .await
            .is_err()
        {
            // A deadlock, or the database went. What was prepared stays there, and holds its locks
            // until somebody ends it.
            let unfinished = format!("rollback prepared '{name}'");
            while sql.is_closed() || sql.batch_execute("rollback").await.is_err() {
                sql = connected(&traffic.url).await;
            }
            let _was_not_prepared = sql.batch_execute(&unfinished).await;
        }
        tokio::time::sleep(Duration::from_millis(random.random_range(0..12))).await;
    }
}

async fn transaction(
    traffic: &Traffic,
    sql: &Client,
    random: &mut StdRng,
    name: &str,
) -> Result<(), tokio_postgres::Error> {
    sql.batch_execute("begin").await?;
    for step in 0..random.random_range(1..5) {
        let savepoint = random.random_bool(0.25);
        if savepoint {
            sql.batch_execute(&format!("savepoint s{step}")).await?;
        }
        for _ in 0..random.random_range(1..4) {
            sql.batch_execute(&operation(traffic, random)).await?;
        }
        if savepoint && random.random_bool(0.5) {
            sql.batch_execute(&format!("rollback to savepoint s{step}"))
                .await?;
        }
        if random.random_bool(0.15) {
            tokio::time::sleep(Duration::from_millis(random.random_range(1..30))).await;
        }
    }
    match random.random_range(0..12) {
        0 => sql.batch_execute("rollback").await,
        1 => {
            sql.batch_execute(&format!("prepare transaction '{name}'"))
                .await?;
            tokio::time::sleep(Duration::from_millis(random.random_range(0..20))).await;
            sql.batch_execute(&format!("commit prepared '{name}'"))
                .await?;
            traffic.committed.fetch_add(1, Ordering::Relaxed);
            Ok(())
        }
        _ => {
            sql.batch_execute("commit").await?;
            traffic.committed.fetch_add(1, Ordering::Relaxed);
            Ok(())
        }
    }
}

/// A statement that changes up to a few rows.
fn operation(traffic: &Traffic, random: &mut StdRng) -> String {
    let table = *TABLES.choose(random).unwrap();
    let newest = traffic.ids.load(Ordering::Relaxed);
    // Of the rows of all tables, the newer half of a table's.
    let id = random.random_range((newest - 4 * ROWS).max(0)..=newest);
    // Which of its two policies holds is what the statement's snapshot shows, which is taken once
    // the table is locked.
    let strict = "(select strict from era)";
    match random.random_range(0..10) {
        0..4 => {
            let id = traffic.ids.fetch_add(1, Ordering::Relaxed) + 1;
            let owner = person(random.random_range(0..USERS));
            let (team, shared) = (random.random_range(0..TEAMS), random.random_bool(0.4));
            let body = body(random);
            format!(
                "insert into {table} values ({id}, '{owner}', {team}, {shared}, {strict}, 1, {body})"
            )
        }
        4..8 => {
            let body = if random.random_bool(0.5) {
                "body".to_owned()
            } else {
                body(random)
            };
            format!(
                "update {table} set version = version + 1, strict = {strict}, body = {body} \
                 where id >= {id} and id < {id} + 8"
            )
        }
        8 => format!("delete from {table} where id >= {id} and id < {id} + 2"),
        _ => format!("delete from {table} where id < {newest} - 4 * {ROWS}"),
    }
}

/// Mostly small; sometimes so large that it is stored out of line, and too random to compress.
fn body(random: &mut StdRng) -> String {
    if random.random_ratio(1, 25) {
        "(select string_agg(md5(random()::text), '') from generate_series(1, 200))".to_owned()
    } else {
        format!("'{:x}'", random.random::<u64>())
    }
}
