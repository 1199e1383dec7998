//! What the slot keeps, and for how long.

use std::time::Duration;

use rowcast::pg::Lsn;
use rowcast::pg::connect::Database;
use rowcast::pg::refusal::Retry;
use rowcast::source::{Source, SourceEvent};
use tokio::time::Instant;

use crate::fixture::{Fixture, batch, event, failure, seen, shared};

#[tokio::test]
async fn an_idle_publication_moves_the_slot_on() {
    let fixture = Fixture::new("create table a (id int primary key)").await;
    fixture
        .run(
            "drop publication rowcast; create publication rowcast for table a; \
              create table quiet (id int)",
        )
        .await;
    let mut opened = fixture.open().await;
    fixture
        .run("insert into quiet select generate_series(1, 1000)")
        .await;
    let wanted: String = fixture
        .client
        .query_one("select pg_current_wal_insert_lsn()::text", &[])
        .await
        .unwrap()
        .get(0);
    let wanted: Lsn = wanted.parse().unwrap();
    loop {
        match event(&mut opened.source).await {
            SourceEvent::Progress(lsn) => {
                opened.source.acknowledge(lsn);
                if lsn >= wanted {
                    break;
                }
            }
            SourceEvent::Batch(batch) => panic!("{batch:?}"),
        }
    }
    fixture
        .slot_is(&format!("confirmed_flush_lsn >= '{wanted}'"))
        .await;
}

#[tokio::test]
async fn a_broken_connection_is_retried_and_loses_nothing_that_was_not_acknowledged() {
    let fixture = Fixture::new("create table a (id int primary key)").await;
    let mut opened = fixture.open().await;
    fixture.run("insert into a values (1)").await;
    let first = batch(&mut opened.source).await;
    opened.source.acknowledge(first.end_lsn);
    fixture
        .slot_is(&format!("confirmed_flush_lsn >= '{}'", first.end_lsn))
        .await;
    fixture.run("insert into a values (2)").await;
    assert_eq!(seen(&mut opened.source).await, [r#"a +["2"]"#]);
    fixture
        .run(&format!(
            "select pg_terminate_backend(active_pid) from pg_replication_slots \
             where slot_name = '{}'",
            fixture.slot
        ))
        .await;
    let error = failure(&mut opened.source).await;
    assert_eq!(error.retry(), Retry::Soon, "{error}");
    fixture.run("insert into a values (3)").await;
    let mut opened = fixture.open().await;
    assert!(!opened.created);
    assert_eq!(opened.confirmed, first.end_lsn);
    assert_eq!(
        seen(&mut opened.source).await,
        [r#"a +["2"]"#],
        "given out before, not acknowledged"
    );
    assert_eq!(seen(&mut opened.source).await, [r#"a +["3"]"#]);
}

#[tokio::test]
async fn an_acknowledgement_past_what_was_given_out_skips_nothing() {
    let fixture = Fixture::new("create table a (id int primary key)").await;
    let mut opened = fixture.open().await;
    opened.source.acknowledge(Lsn(u64::MAX));
    opened.source.close().await;
    fixture.run("insert into a values (1)").await;
    let mut opened = fixture.open().await;
    assert_eq!(seen(&mut opened.source).await, [r#"a +["1"]"#]);
}

#[tokio::test]
async fn closing_tells_the_last_position_and_frees_the_slot() {
    let fixture = Fixture::new("create table a (id int primary key)").await;
    let mut opened = fixture.open().await;
    fixture.run("insert into a values (1)").await;
    let batch = batch(&mut opened.source).await;
    opened.source.acknowledge(batch.end_lsn);
    opened.source.close().await;
    fixture.slot_is("not active").await;
    fixture
        .slot_is(&format!("confirmed_flush_lsn >= '{}'", batch.end_lsn))
        .await;
}

#[tokio::test]
async fn a_reader_that_stalls_longer_than_the_servers_timeout_keeps_its_connection() {
    let fixture = Fixture::new("create table a (id int primary key, filler text)").await;
    let name: String = fixture
        .client
        .query_one("select quote_ident(current_database())", &[])
        .await
        .unwrap()
        .get(0);
    let url = format!(
        "{}&options=-c%20wal_sender_timeout%3D1s",
        shared().await.as_ref().unwrap().url(&name)
    );
    let database = Database::parse(&url).unwrap();
    let mut opened = Source::open(&database, &fixture.slot, "rowcast")
        .await
        .unwrap();
    fixture
        .run("insert into a select n, repeat('x', 1000) from generate_series(1, 60000) n")
        .await;
    let first = batch(&mut opened.source).await;
    // The server has more to say than fits anywhere; nobody listens for longer than it waits.
    let stalled = Instant::now();
    while stalled.elapsed() < Duration::from_secs(4) {
        fixture.slot_is("active").await;
        // Time itself: the reader must be idle for longer than the server's timeout.
        fixture.run("select pg_sleep(0.2)").await;
    }
    let mut count = first.changes.len();
    while count < 60_000 {
        count += batch(&mut opened.source).await.changes.len();
    }
}
