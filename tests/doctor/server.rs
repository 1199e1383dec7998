//! The server itself, and the slot: clusters of their own where that takes one.

use rowcast::pg::throwaway::Throwaway;

use crate::harness::{Place, cluster, connect, options};

/// A cluster of its own, and a database on it that is set up.
async fn own() -> (Throwaway, Place) {
    let cluster = Throwaway::start(options()).await.expect("a cluster");
    let url = cluster.fresh_database().await.unwrap();
    (cluster, Place::prepared(Place::at(url).await).await)
}

#[tokio::test]
async fn a_server_without_logical_replication_is_found_and_mended() {
    let (mut cluster, mut place) = own().await;
    cluster.configure(&["wal_level = replica"]).unwrap();
    cluster.restart().await.unwrap();
    place.admin = connect(&place.url).await;
    let found = place.doctor(&[]).await;
    found.is(&["slot_missing", "wal_level"]);
    place.mend(&found).await;
    cluster.restart().await.unwrap();
    place.admin = connect(&place.url).await;
    place.start().await;
    place.doctor(&[]).await.is_well();
    place.delivers("note").await;
}

#[tokio::test]
async fn limits_of_the_server_are_found_and_mended() {
    let (mut cluster, mut place) = own().await;
    for (lines, code) in [
        (&["max_slot_wal_keep_size = -1"][..], "slot_wal_unbounded"),
        (&["max_wal_senders = 0"], "wal_senders_exhausted"),
        (&["max_connections = 12"], "connections_few"),
    ] {
        cluster.configure(lines).unwrap();
        cluster.restart().await.unwrap();
        place.admin = connect(&place.url).await;
        let found = place.doctor(&[]).await;
        let mut expected = vec![code, "slot_missing"];
        expected.sort_unstable();
        found.is(&expected);
        let findings = found.report["findings"].as_array().unwrap();
        let told = findings.iter().filter(|finding| finding["code"] == code);
        assert_eq!(told.count(), 1, "once: {findings:#?}");
        place.mend(&found).await;
        cluster.restart().await.unwrap();
        place.admin = connect(&place.url).await;
        place.doctor(&[]).await.is(&["slot_missing"]);
    }
    // All of them are another's.
    cluster.configure(&["max_replication_slots = 1"]).unwrap();
    cluster.restart().await.unwrap();
    place.admin = connect(&place.url).await;
    place
        .run("select pg_create_physical_replication_slot('another')")
        .await;
    let found = place.doctor(&[]).await;
    found.is(&["slot_missing", "slots_exhausted"]);
    place.mend(&found).await;
    cluster.restart().await.unwrap();
    place.admin = connect(&place.url).await;
    place.start().await;
    place.doctor(&[]).await.is_well();
    place.delivers("note").await;
}

#[tokio::test]
async fn a_server_that_is_a_standby_is_found() {
    let (mut cluster, mut place) = own().await;
    cluster.stop_server().await;
    let signal = cluster.directory().join("data/standby.signal");
    std::fs::write(&signal, "").unwrap();
    cluster.start_server().await.unwrap();
    place.admin = connect(&place.url).await;
    let found = place.doctor(&[]).await;
    found.is(&["standby"]);
    place.run("select pg_promote()").await;
    let found = place.doctor(&[]).await;
    found.is(&["slot_missing"]);
    place.start().await;
    place.delivers("note").await;
}

#[tokio::test]
async fn a_slot_of_somebody_else_that_fills_the_disk_is_found_and_mended() {
    let (mut cluster, mut place) = own().await;
    cluster
        .configure(&[
            "max_slot_wal_keep_size = '4GB'",
            "wal_init_zero = off",
            "max_wal_size = '2GB'",
        ])
        .unwrap();
    cluster.restart().await.unwrap();
    place.admin = connect(&place.url).await;
    place
        .run("select pg_create_physical_replication_slot('forgotten', true)")
        .await;
    let kept = "select (pg_current_wal_lsn() - restart_lsn > 1073741824)::text \
                from pg_replication_slots where slot_name = 'forgotten'";
    while place.text(kept).await != "true" {
        place
            .run("select pg_switch_wal(); create table app.filler (id int); drop table app.filler")
            .await;
    }
    place.start().await;
    let found = place.doctor(&[]).await;
    assert_eq!(found.codes(), ["other_slot_inactive"], "{:#}", found.report);
    // Whether anybody comes back for it is for a person to say.
    let statement = found.report["findings"][0]["sql"][0].as_str().unwrap();
    let (words, statement) = statement.split_once(": ").unwrap();
    assert!(words.starts_with("-- if nobody comes back"), "{words}");
    place.run(statement).await;
    place.doctor(&[]).await.is_well();
    place.delivers("note").await;
}

#[tokio::test]
async fn a_slot_that_nobody_reads_is_found() {
    let mut place = Place::good().await;
    place.stop().await;
    place.doctor(&[]).await.is(&["slot_unread"]);
    place.start().await;
    place.doctor(&[]).await.is_well();
    place.delivers("note").await;
}

#[tokio::test]
async fn a_slot_of_another_database_is_found_and_mended() {
    let mut place = Place::prepared(Place::empty().await).await;
    let other = Place::at(cluster().await.fresh_database().await.unwrap()).await;
    other
        .run(&format!(
            "select pg_create_logical_replication_slot('{}', 'pgoutput')",
            place.relay
        ))
        .await;
    let found = place.doctor(&[]).await;
    found.is(&["slot_other_database"]);
    for statement in found.sql() {
        other.run(&statement).await;
    }
    place.doctor(&[]).await.is(&["slot_missing"]);
    place.start().await;
    place.doctor(&[]).await.is_well();
    place.delivers("note").await;
}

#[tokio::test]
async fn a_slot_that_keeps_more_than_the_relay_lets_it_is_found() {
    let mut place = Place::good().await;
    place.stop().await;
    for _ in 0..2 {
        place
            .run("create table app.filler (id int); drop table app.filler; select pg_switch_wal()")
            .await;
    }
    let less = &[("ROWCAST_MAX_RETAINED_WAL", "16MiB")];
    let found = place.doctor_with(&[], less).await;
    found.is(&["slot_lag", "slot_unread"]);
    place.start().await;
    place.delivers("note").await;
}

#[tokio::test]
async fn a_slot_of_another_plugin_is_found_and_mended() {
    let mut place = Place::prepared(Place::empty().await).await;
    let make = format!(
        "select pg_create_logical_replication_slot('{}', 'test_decoding')",
        place.relay
    );
    if place.admin.batch_execute(&make).await.is_err() {
        // The server came without it.
        return;
    }
    let found = place.doctor(&[]).await;
    found.is(&["slot_plugin"]);
    place.mend(&found).await;
    place.start().await;
    place.doctor(&[]).await.is_well();
    place.delivers("note").await;
}

#[tokio::test]
async fn a_database_with_too_few_sessions_is_found_and_mended() {
    let mut place = Place::prepared(Place::empty().await).await;
    place
        .run("do $$ begin execute format('alter database %I connection limit 6', current_database()); end $$")
        .await;
    let found = place.doctor(&[]).await;
    found.is(&["database_connection_limit", "slot_missing"]);
    place.mend(&found).await;
    place.start().await;
    place.doctor(&[]).await.is_well();
}

#[tokio::test]
async fn a_server_without_a_session_left_is_found() {
    let (mut cluster, mut place) = own().await;
    cluster.configure(&["max_connections = 10"]).unwrap();
    cluster.restart().await.unwrap();
    place.admin = connect(&place.url).await;
    // Some are left for superusers only.
    let mut taken = Vec::new();
    while taken.len() < 6 {
        taken.push(connect(&place.url).await);
    }
    let found = place.doctor(&[]).await;
    found.is(&["connections_exhausted"]);
    assert_eq!(found.report["findings"].as_array().unwrap().len(), 1);
    assert!(taken.iter().all(|client| !client.is_closed()));
}

/// The server gives a slot up that keeps too much.
#[tokio::test]
async fn a_slot_that_the_server_gave_up_is_found_and_mended() {
    let (mut cluster, mut place) = own().await;
    cluster
        .configure(&[
            "max_slot_wal_keep_size = '1MB'",
            "max_wal_size = '64MB'",
            "min_wal_size = '32MB'",
        ])
        .unwrap();
    cluster.restart().await.unwrap();
    place.admin = connect(&place.url).await;
    place.start().await;
    place.stop().await;
    for _ in 0..8 {
        place
            .run("select pg_switch_wal(); create table app.filler (id int); drop table app.filler")
            .await;
    }
    place.run("checkpoint").await;
    let found = place.doctor(&[]).await;
    found.is(&["slot_lost"]);
    place.mend(&found).await;
    place.start().await;
    place.doctor(&[]).await.is_well();
    place.delivers("note").await;
}

#[tokio::test]
async fn that_a_login_may_not_see_how_long_others_transactions_are_open_is_said() {
    let place = Place::prepared(Place::empty().await).await;
    let said = async || {
        let found = place.doctor(&[]).await;
        found.is(&["slot_missing"]);
        let unseen = found.report["unseen"].as_array().unwrap().clone();
        let about = |one: &serde_json::Value| one.as_str().unwrap().contains("have been open");
        unseen.iter().any(about)
    };
    assert!(said().await, "the administrator's session is hidden");
    place
        .run(&format!("grant pg_read_all_stats to {}", place.relay))
        .await;
    assert!(!said().await);
}
