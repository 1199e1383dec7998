//! Slots that are lost, given up or stuck: whoever is connected is told, and changes flow again
//! without anybody's help.

use rowcast::log::Epoch;
use rowcast::log::disk::inspect;
use rowcast::pg::throwaway::{Options, Throwaway};

use crate::client::Client;
use crate::harness::{ANN, Daemon, Database, cluster, connect, token, until};

fn epoch(daemon: &Daemon) -> Epoch {
    inspect(&daemon.data()).unwrap().epoch
}

/// Waits until a row that is written now reaches a client that comes now.
async fn flows(database: &Database, daemon: &Daemon, id: i64) {
    let mut client = Client::following(daemon, &token(ANN), "open").await;
    database.insert_open(id).await;
    assert_eq!(client.change().await, format!("INSERT {id}"));
}

#[tokio::test]
async fn a_publication_that_is_dropped_and_made_again_costs_one_new_history() {
    let database = Database::new("rowcast").await;
    let daemon = database.daemon(&[]).await;
    flows(&database, &daemon, 1).await;
    let mut client = Client::following(&daemon, &token(ANN), "open").await;
    let before = epoch(&daemon);
    database
        .run(
            "drop publication rowcast; insert into open values (2, 'unpublished'); \
             create publication rowcast for table open, note, plan",
        )
        .await;
    client.resync().await;
    daemon
        .metric_reaches("rowcast_slots_given_up_total", 1.0)
        .await;
    daemon
        .metric_reaches("rowcast_log_histories_total", 1.0)
        .await;
    flows(&database, &daemon, 3).await;
    assert_ne!(epoch(&daemon), before);
    assert_eq!(
        daemon.metric("rowcast_slots_given_up_total").await,
        Some(1.0),
        "once is enough"
    );
    let log = daemon.log();
    assert!(log.contains("again and again at one position"), "{log}");
    daemon.terminate().await;
}

#[tokio::test]
async fn a_slot_that_is_stuck_where_it_was_moved_to_is_made_anew() {
    let database = Database::new("rowcast").await;
    let daemon = database.daemon(&[]).await;
    flows(&database, &daemon, 1).await;
    let holder = connect(&database.url).await;
    database.run("drop publication rowcast").await;
    // What it changes now is looked at when it commits, as of now.
    holder
        .batch_execute("begin; insert into open values (2, 'unpublished')")
        .await
        .unwrap();
    database
        .run(
            "insert into open values (3, 'unpublished'); \
             create publication rowcast for table open, note, plan",
        )
        .await;
    daemon
        .metric_reaches("rowcast_log_histories_total", 1.0)
        .await;
    holder.batch_execute("commit").await.unwrap();
    daemon
        .metric_reaches("rowcast_log_histories_total", 2.0)
        .await;
    flows(&database, &daemon, 4).await;
    let log = daemon.log();
    assert!(log.contains("the slot was moved on"), "{log}");
    assert!(log.contains("the slot was lost and made anew"), "{log}");
    daemon.terminate().await;
}

/// A database on the shared cluster of another encoding than UTF8.
async fn of_encoding(encoding: &str) -> Database {
    let name = format!("of_{}", encoding.to_ascii_lowercase());
    connect(&cluster().await.url("postgres"))
        .await
        .batch_execute(&format!(
            "create database {name} encoding '{encoding}' locale 'C' template template0"
        ))
        .await
        .unwrap();
    Database::at(cluster().await.url(&name), "rowcast").await
}

#[tokio::test]
async fn a_value_that_the_server_cannot_send_does_not_stop_the_stream_for_ever() {
    let database = of_encoding("WIN1252").await;
    let daemon = database.daemon(&[]).await;
    flows(&database, &daemon, 1).await;
    let mut client = Client::following(&daemon, &token(ANN), "open").await;
    database.insert_open(2).await;
    assert_eq!(client.change().await, "INSERT 2", "before it all is sent");
    // A byte that stands for nothing there.
    database
        .run(
            "set client_encoding = 'WIN1252'; \
             insert into open values (3, convert_from('\\x81', 'WIN1252')); \
             reset client_encoding",
        )
        .await;
    assert_eq!(client.resync().await, "slot_lost");
    flows(&database, &daemon, 4).await;
    let log = daemon.log();
    assert!(log.contains("22P05"), "{log}");
    daemon.terminate().await;
}

#[tokio::test]
async fn bytes_that_are_no_text_cost_their_table_a_resync_and_nobody_else_anything() {
    let database = of_encoding("SQL_ASCII").await;
    let daemon = database.daemon(&[]).await;
    flows(&database, &daemon, 1).await;
    let before = epoch(&daemon);
    let mut open = Client::following(&daemon, &token(ANN), "open").await;
    let mut note = Client::following(&daemon, &token(ANN), "note").await;
    database
        .run(&format!(
            "insert into open values (2, convert_from('\\xff', 'SQL_ASCII')); \
             insert into note values (1, '{ANN}', 'b')"
        ))
        .await;
    assert_eq!(open.resync().await, "undecodable");
    assert_eq!(note.change().await, "INSERT 1");
    flows(&database, &daemon, 3).await;
    assert_eq!(epoch(&daemon), before);
    daemon.terminate().await;
}

#[tokio::test]
async fn a_slot_that_somebody_drops_is_made_anew_and_everybody_is_told() {
    let database = Database::new("rowcast").await;
    let daemon = database.daemon(&[]).await;
    let mut client = Client::following(&daemon, &token(ANN), "open").await;
    database.drop_slot().await;
    assert_eq!(client.resync().await, "slot_lost");
    flows(&database, &daemon, 1).await;
    daemon.terminate().await;
}

#[tokio::test]
async fn a_slot_that_the_server_gave_up_while_nobody_read_it_is_made_anew_at_the_start() {
    let server = Throwaway::start(Options {
        settings: vec!["max_slot_wal_keep_size = 1MB".to_owned()],
        ..Options::default()
    })
    .await
    .unwrap();
    let url = server.fresh_database().await.unwrap();
    let database = Database::at(url, "rowcast").await;
    let folder = tempfile::tempdir().unwrap();
    let data = folder.path().join("data");
    let environment = [("ROWCAST_DATA", data.to_str().unwrap())];
    let daemon = database.daemon(&environment).await;
    flows(&database, &daemon, 1).await;
    daemon.terminate().await;
    let before = inspect(&data).unwrap().epoch;
    let lost = format!(
        "select (wal_status = 'lost')::text from pg_replication_slots where slot_name = '{}'",
        database.slot
    );
    until("the slot is lost", async || {
        database
            .run("insert into quiet (body) select repeat('x', 100) from generate_series(1, 9999)")
            .await;
        database.run("select pg_switch_wal(); checkpoint").await;
        database.text(&lost).await == "true"
    })
    .await;
    let daemon = database.daemon(&environment).await;
    flows(&database, &daemon, 2).await;
    let log = daemon.log();
    assert!(log.contains("has given the replication slot up"), "{log}");
    assert_ne!(inspect(&data).unwrap().epoch, before);
    daemon.terminate().await;
    server.stop().await;
}

#[tokio::test]
async fn a_slot_that_keeps_too_much_is_given_up_before_the_database_has_no_space() {
    let server = Throwaway::start(Options::default()).await.unwrap();
    let url = server.fresh_database().await.unwrap();
    let database = Database::at(url.clone(), "rowcast").await;
    let daemon = database
        .daemon(&[("ROWCAST_MAX_RETAINED_WAL", "16MiB")])
        .await;
    let mut client = Client::following(&daemon, &token(ANN), "open").await;
    // For as long as this goes on the slot may not move, whatever the relay acknowledges.
    let holder = connect(&url).await;
    holder
        .batch_execute("begin; insert into quiet (body) values ('x')")
        .await
        .unwrap();
    // The second time it is one that is still being made, as that waits for the transaction too.
    for round in ["the slot", "the next one"] {
        let begun = database.text("select pg_current_wal_lsn()::text").await;
        for _ in 0..8 {
            database
                .run(
                    "insert into quiet (body) \
                     select repeat('x', 900) from generate_series(1, 6000)",
                )
                .await;
        }
        let gone = format!(
            "select (not exists (select from pg_replication_slots where slot_name = '{}' \
             and restart_lsn <= '{begun}'))::text",
            database.slot
        );
        until(&format!("{round} is given up"), async || {
            database.text(&gone).await == "true"
        })
        .await;
        // The next is there before more is written.
        let next = format!(
            "select exists (select from pg_replication_slots where slot_name = '{}')::text",
            database.slot
        );
        until("another one", async || database.text(&next).await == "true").await;
    }
    let (status, body) = daemon.ask("/readyz").await;
    assert_eq!(status, 503, "{body}");
    assert!(daemon.log().contains("more WAL than max_retained_wal"));
    holder.batch_execute("commit").await.unwrap();
    assert_eq!(client.resync().await, "slot_lost");
    flows(&database, &daemon, 1).await;
    assert_eq!(
        daemon.metric("rowcast_slots_given_up_total").await,
        Some(2.0)
    );
    daemon.terminate().await;
    server.stop().await;
}

#[tokio::test]
async fn the_slot_moves_on_while_only_another_database_is_written() {
    let server = Throwaway::start(Options::default()).await.unwrap();
    let database = Database::at(server.fresh_database().await.unwrap(), "rowcast").await;
    let daemon = database.daemon(&[]).await;
    let other = connect(&server.fresh_database().await.unwrap()).await;
    other
        .batch_execute("create table busy (body text)")
        .await
        .unwrap();
    let begun = database.text("select pg_current_wal_lsn()::text").await;
    for _ in 0..10 {
        other
            .batch_execute(
                "insert into busy select repeat('x', 1000) from generate_series(1, 10000)",
            )
            .await
            .unwrap();
    }
    let written = database
        .text("select pg_current_wal_insert_lsn()::text")
        .await;
    let bytes = database
        .text(&format!(
            "select pg_wal_lsn_diff('{written}', '{begun}')::int8::text"
        ))
        .await;
    assert!(bytes.parse::<u64>().unwrap() > 100_000_000, "{bytes}");
    until("the slot moves", async || {
        let passed = format!(
            "select (confirmed_flush_lsn >= '{written}')::text from pg_replication_slots \
             where slot_name = '{}'",
            database.slot
        );
        database.text(&passed).await == "true"
    })
    .await;
    daemon.terminate().await;
    server.stop().await;
}

#[tokio::test]
async fn a_slot_on_17_and_later_is_one_that_standbys_keep_also_where_it_was_not() {
    let database = Database::new("rowcast").await;
    let major = database
        .text("select current_setting('server_version_num')")
        .await;
    if major.parse::<u32>().unwrap() < 170_000 {
        println!("not tested: standbys keep slots from PostgreSQL 17 on");
        return;
    }
    let failover = format!(
        "select failover::text from pg_replication_slots where slot_name = '{}'",
        database.slot
    );
    let create = format!(
        "select pg_create_logical_replication_slot('{}', 'pgoutput')",
        database.slot
    );
    database.run(&create).await;
    assert_eq!(database.text(&failover).await, "false");
    let daemon = database.daemon(&[]).await;
    assert_eq!(database.text(&failover).await, "true");
    daemon.terminate().await;
    database
        .run(&format!(
            "select pg_drop_replication_slot('{}')",
            database.slot
        ))
        .await;
    let daemon = database.daemon(&[]).await;
    assert_eq!(database.text(&failover).await, "true");
    flows(&database, &daemon, 1).await;
    daemon.terminate().await;
}
