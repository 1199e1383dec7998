//! What lies behind a cursor and cannot be handed out is said with its reason, also to those who
//! were away.

use std::time::{Duration, Instant};

use serde_json::json;

use crate::harness::{ANN, DEADLINE, Relay};
use crate::resume::{Client, Heard, settled, since, user, wish};

const OPEN: &str = "create table t (id int primary key, body text);
    create table other (id int primary key);
    grant select on t, other to authenticated, anon";

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_transaction_that_the_log_could_not_hold_is_said_to_who_comes_back_before_it() {
    let mut relay = Relay::with(OPEN, "t, other", |config| config.log_max_changes = 200).await;
    let start = settled(&mut relay).await;
    relay
        .run("insert into t values (1); insert into other values (1)")
        .await;
    relay
        .run("insert into t select i from generate_series(2, 500) i")
        .await;
    relay
        .run("insert into t values (501); insert into other values (2)")
        .await;
    let behind = settled(&mut relay).await;
    let back = vec![since(wish(1, "t", ""), start)];
    let client = Client::join(&relay.core, &user(ANN), back).await;
    assert!(matches!(client.next().await, Heard::Change(_, data) if data["record"]["id"] == 1));
    let (reason, cursor) = client.resync().await;
    assert_eq!(reason, "too_large");
    assert!(
        cursor.offset >= behind.offset,
        "nothing is missing from there on"
    );
    let back = vec![since(wish(1, "other", ""), start)];
    let other = Client::join(&relay.core, &user(ANN), back).await;
    assert_eq!(other.until(2).await, ["INSERT 1", "INSERT 2"]);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn who_is_catching_up_while_the_slot_is_lost_is_told_that() {
    let mut relay = Relay::start(OPEN, "t, other").await;
    let start = settled(&mut relay).await;
    relay
        .run("insert into t select i from generate_series(1, 3000) i")
        .await;
    settled(&mut relay).await;
    let live = relay.watch("anon", &json!({}), "other").await;
    // Room for a thirtieth of it: it is half-way when that happens.
    let back = vec![since(wish(1, "t", ""), start)];
    let client = Client::sized(&relay.core, &user(ANN), back, 100).await;
    let first = client.next().await;
    assert!(matches!(first, Heard::Change(_, data) if data["record"]["id"] == 1));
    let until = Instant::now() + DEADLINE;
    loop {
        // The relay takes it again at once where it is only cut off.
        let dropped = relay
            .sql
            .batch_execute(
                "select pg_terminate_backend(active_pid) from pg_replication_slots
                 where database = current_database() and active;
                 select pg_drop_replication_slot(slot_name) from pg_replication_slots
                 where database = current_database()",
            )
            .await;
        if dropped.is_ok() {
            break;
        }
        assert!(Instant::now() < until, "{dropped:?}");
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
    assert_eq!(live.resync().await, "slot_lost");
    let mut last = 1;
    let (reason, cursor) = loop {
        match client.next().await {
            Heard::Change(_, data) => {
                assert_eq!(data["record"]["id"], last + 1, "in order, up to the end");
                last += 1;
            }
            Heard::Resync(reason, cursor) => break (reason, cursor.unwrap()),
            other => panic!("{other:?}"),
        }
    };
    assert_eq!(reason, "slot_lost");
    assert_ne!(cursor.epoch, start.epoch);
    // Whoever comes later is of another history.
    let back = vec![since(wish(1, "t", ""), start)];
    let late = Client::join(&relay.core, &user(ANN), back).await;
    assert_eq!(late.resync().await.0, "epoch");
}
