//! PostgreSQL goes away, another has the slot, the daemon is asked to end.

use std::time::Duration;

use rowcast::log::disk::inspect;
use rowcast::pg::throwaway::{Options, Throwaway};
use tokio::time::Instant;

use crate::client::Client;
use crate::harness::{ANN, Daemon, Database, SECRET, connect, get, token, until};

#[tokio::test]
async fn an_outage_loses_nothing_and_repeats_nothing_and_clients_stay() {
    let mut server = Throwaway::start(Options {
        hba: vec!["host all locked 127.0.0.1/32 scram-sha-256".to_owned()],
        ..Options::default()
    })
    .await
    .unwrap();
    let url = server.fresh_database().await.unwrap();
    let mut database = Database::at(url.clone(), "rowcast").await;
    database
        .run("create role locked login superuser password 'right'")
        .await;
    let wrong = url.replace("postgres@", "locked:wrong@");
    let environment = [("DATABASE_URL", wrong.as_str()), ("JWT_SECRET", SECRET)];
    let (code, log) = Daemon::spawn(&environment).ended().await;
    assert_eq!(code, Some(69), "{log}");
    assert!(log.contains("28P01") && !log.contains("wrong@"), "{log}");

    let daemon = database.daemon(&[]).await;
    let mut open = Client::following(&daemon, &token(ANN), "open").await;
    let mut plan = Client::following(&daemon, &token(ANN), "plan").await;
    let mut expected = 0;
    for outage in ["none", "stream", "sessions", "restart", "crash", "none"] {
        match outage {
            "stream" => {
                let end = "select pg_terminate_backend(active_pid) from pg_replication_slots \
                           where slot_name like 'slot_%'";
                database.run(end).await;
            }
            "sessions" => {
                let end = "select pg_terminate_backend(pid) from pg_stat_activity \
                           where pid <> pg_backend_pid() and application_name like 'rowcast%'";
                database.run(end).await;
            }
            "restart" | "crash" => {
                if outage == "restart" {
                    server.stop_server().await;
                } else {
                    server.crash_server().await;
                }
                until("not ready", async || {
                    let (status, body) = daemon.ask("/readyz").await;
                    status == 503 && body.contains("\"source\":\"waiting\"")
                })
                .await;
                assert_eq!(daemon.metric("rowcast_source_up").await, Some(0.0));
                server.start_server().await.unwrap();
                database.sql = connect(&url).await;
            }
            _ => {}
        }
        for _ in 0..5 {
            expected += 1;
            database
                .run(&format!(
                    "begin; insert into open values ({expected}, 'b'); \
                     insert into plan values ({expected}, 1, 'b'); commit"
                ))
                .await;
        }
        for id in expected - 4..=expected {
            let row = format!("INSERT {id}");
            assert_eq!(open.change().await, row, "after {outage}");
            assert_eq!(plan.change().await, row, "after {outage}");
        }
        until("ready", async || daemon.ask("/readyz").await.0 == 200).await;
    }
    open.heartbeat().await;
    plan.heartbeat().await;
    assert!(daemon.metric("rowcast_source_retries_total").await.unwrap() >= 4.0);
    daemon.terminate().await;

    server.configure(&["wal_level = replica"]).unwrap();
    // A server that has a logical slot does not start without logical WAL.
    let drop = format!("select pg_drop_replication_slot('{}')", database.slot);
    database.run(&drop).await;
    server.restart().await.unwrap();
    let mut daemon = database.spawn(&[]);
    let (code, log) = daemon.ended().await;
    assert_eq!(code, Some(69), "{log}");
    assert!(
        log.contains("alter system set wal_level = logical"),
        "{log}"
    );
    server.stop().await;
}

#[tokio::test]
async fn a_second_relay_waits_and_takes_over() {
    let database = Database::new("rowcast").await;
    let first = database.daemon(&[]).await;
    let second = database.spawn(&[]);
    let line = second.logged("changes do not flow").await;
    assert!(
        line["reason"]
            .as_str()
            .unwrap()
            .contains("is active for PID"),
        "{line}"
    );
    let public = second.address("serving operators", "public").await;
    assert_eq!(
        get(public, "/healthz").await,
        (200, "ok".to_owned()),
        "it lives"
    );
    let (status, body) = get(public, "/realtime/v1/websocket").await;
    assert_eq!(status, 503, "clients hear that it is not ready: {body}");
    let (status, body) = second.ask("/readyz").await;
    assert_eq!(status, 503);
    assert!(body.contains("is active for PID"), "{body}");
    assert_eq!(second.metric("rowcast_source_up").await, Some(0.0));
    first.terminate().await;
    let stopped = Instant::now();
    database.insert_open(1).await;
    second.ready().await;
    assert!(
        stopped.elapsed() < Duration::from_secs(8),
        "{:?}",
        stopped.elapsed()
    );
    let mut client = Client::following(&second, &token(ANN), "open").await;
    database.insert_open(2).await;
    // What was written between the two may come or not: nobody was connected.
    let change = client.change().await;
    assert!(change == "INSERT 2", "{change}");
    second.terminate().await;
}

/// From SIGTERM until the second serves clients, while the first still says goodbye to its own.
#[tokio::test]
async fn a_second_relay_takes_over_log_and_slot_at_once_and_misses_nothing() {
    let database = Database::new("rowcast").await;
    let folder = tempfile::tempdir().unwrap();
    let data = folder.path().join("data");
    let environment = [
        ("ROWCAST_DATA", data.to_str().unwrap()),
        ("ROWCAST_DRAIN", "20s"),
    ];
    let mut running = database.daemon(&environment).await;
    let epoch = inspect(&data).unwrap().epoch;
    let mut fastest = Duration::MAX;
    for round in 1..=5 {
        let next = database.spawn(&environment);
        next.logged("waiting for the log's directory").await;
        let mut client = Client::following(&running, &token(ANN), "open").await;
        database.insert_open(2 * round).await;
        assert_eq!(client.change().await, format!("INSERT {}", 2 * round));
        running.signal("TERM");
        let asked = Instant::now();
        database.insert_open(2 * round + 1).await;
        next.ready().await;
        let taken = asked.elapsed();
        println!("taken over after {taken:?}");
        fastest = fastest.min(taken);
        let (code, log) = running.ended().await;
        assert_eq!(code, Some(0), "{log}");
        running = next;
    }
    until("all is taken, once", async || {
        let found = inspect(&data).unwrap();
        assert_eq!(found.epoch, epoch, "the history goes on");
        let end = found.segments.last().unwrap().range.end.0;
        assert!(end <= 10, "{end}");
        end == 10
    })
    .await;
    running.terminate().await;
    // A second, on a machine that has time for it: what a start takes tells whether this one has.
    let begun = Instant::now();
    let again = database.daemon(&environment).await;
    let start = begun.elapsed();
    assert!(
        fastest < Duration::from_secs(1).max(2 * start),
        "taken over after {fastest:?}, started in {start:?}"
    );
    again.terminate().await;
}

#[tokio::test]
async fn the_slot_moves_on_while_only_other_tables_are_written() {
    let database = Database::new("rowcast").await;
    let daemon = database.daemon(&[]).await;
    for _ in 0..2 {
        database
            .run("insert into quiet (body) select repeat('x', 100) from generate_series(1, 1000)")
            .await;
        let written = database
            .text("select pg_current_wal_insert_lsn()::text")
            .await;
        let passed = format!(
            "select (confirmed_flush_lsn >= '{written}')::text from pg_replication_slots \
             where slot_name = '{}'",
            database.slot
        );
        until("the slot moves", async || {
            database.text(&passed).await == "true"
        })
        .await;
    }
    daemon.terminate().await;
}

#[tokio::test]
async fn asked_to_end_it_says_goodbye_and_frees_the_slot_in_time() {
    let database = Database::new("rowcast").await;
    let mut last = 0;
    for signal in ["TERM", "INT"] {
        let mut daemon = database.daemon(&[("ROWCAST_DRAIN", "2s")]).await;
        let mut client = Client::following(&daemon, &token(ANN), "open").await;
        // This one is not read from again.
        let _deaf = Client::following(&daemon, &token(ANN), "open").await;
        // More than the kernel holds, in parts that an outbox does.
        for _ in 0..3 {
            let first = last + 1;
            last += 3000;
            database
                .run(&format!(
                    "insert into open \
                     select n, repeat('x', 1000) from generate_series({first}, {last}) n"
                ))
                .await;
            for n in first..=last {
                assert_eq!(client.change().await, format!("INSERT {n}"));
            }
        }
        daemon.signal(signal);
        let asked = Instant::now();
        let (frame, texts) = client.closed().await;
        let code = frame.map(|frame| u16::from(frame.code));
        assert_eq!(code, Some(1012), "{signal}");
        assert_eq!(texts.len(), 1, "{texts:?}");
        assert_eq!(texts[0][4]["message"], "Server requested disconnect");
        let (code, log) = daemon.ended().await;
        assert_eq!(code, Some(0), "{log}");
        assert!(
            asked.elapsed() < Duration::from_secs(6),
            "{:?}",
            asked.elapsed()
        );
        let active = format!(
            "select active::text from pg_replication_slots where slot_name = '{}'",
            database.slot
        );
        assert_eq!(database.text(&active).await, "false");
    }
}
