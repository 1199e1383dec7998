//! The log on disk: what was taken outlives the process, and nothing is taken twice.

use std::os::unix::fs::PermissionsExt;
use std::path::Path;

use rowcast::log::disk::inspect;
use rowcast::log::{Epoch, Offset};

use crate::client::Client;
use crate::harness::{ANN, Daemon, Database, token, until};

/// The history and how many changes it holds.
pub(crate) fn held(directory: &Path) -> (Epoch, u64) {
    let found = inspect(directory).unwrap();
    // There is none for a moment where a history begins.
    let last = found.segments.last();
    let end = last.map_or(Offset(0), |last| last.range.end);
    let verified: u64 = found
        .segments
        .iter()
        .map(|segment| segment.verified.clone().unwrap())
        .sum();
    assert_eq!(Offset(verified), end);
    (found.epoch, verified)
}

async fn acknowledged(database: &Database) -> bool {
    let sql = format!(
        "select (confirmed_flush_lsn >= pg_current_wal_insert_lsn())::text \
         from pg_replication_slots where slot_name = '{}'",
        database.slot
    );
    database.text(&sql).await == "true"
}

#[tokio::test]
async fn a_killed_relay_takes_what_it_missed_and_nothing_twice() {
    let database = Database::new("rowcast").await;
    let folder = tempfile::tempdir().unwrap();
    let data = folder.path().join("data");
    let environment = [("ROWCAST_DATA", data.to_str().unwrap())];
    let (mut inserted, mut epoch) = (0, None);
    for _ in 0..4 {
        let daemon = database.daemon(&environment).await;
        for _ in 0..25 {
            inserted += 1;
            database.insert_open(inserted).await;
        }
        // At any moment, before or after the disk has it.
        kill(daemon).await;
        for _ in 0..25 {
            inserted += 1;
            database.insert_open(inserted).await;
        }
    }
    let daemon = database.daemon(&environment).await;
    until("all is taken", async || {
        held(&data).1 >= inserted.unsigned_abs()
    })
    .await;
    let (found, changes) = held(&data);
    assert_eq!(*epoch.get_or_insert(found), found, "the history goes on");
    assert_eq!(changes, inserted.unsigned_abs());
    // Also where nothing is published for a while, the slot moves on.
    database
        .run("insert into quiet (body) select 'x' from generate_series(1, 1000)")
        .await;
    until("the slot moves on", async || acknowledged(&database).await).await;
    drop(daemon);
}

#[tokio::test]
async fn a_slot_that_is_ahead_of_the_log_begins_a_new_history() {
    let database = Database::new("rowcast").await;
    let folder = tempfile::tempdir().unwrap();
    let data = folder.path().join("data");
    let environment = [("ROWCAST_DATA", data.to_str().unwrap())];
    let daemon = database.daemon(&environment).await;
    database.insert_open(1).await;
    until("taken", async || held(&data).1 == 1).await;
    let before = held(&data).0;
    kill(daemon).await;
    // Somebody restored the directory from before, which the slot has moved past.
    database.insert_open(2).await;
    // PostgreSQL notices that its reader is gone once it writes to it.
    let read = format!(
        "select active::text from pg_replication_slots where slot_name = '{}'",
        database.slot
    );
    until("the slot is free", async || {
        database.text(&read).await == "false"
    })
    .await;
    database
        .run(&format!(
            "select pg_replication_slot_advance('{}', pg_current_wal_insert_lsn())",
            database.slot
        ))
        .await;
    let daemon = database.daemon(&environment).await;
    database.insert_open(3).await;
    until("a new history", async || {
        inspect(&data).is_ok_and(|found| {
            let last = found.segments.last();
            found.epoch != before && last.is_some_and(|last| last.range.start < last.range.end)
        })
    })
    .await;
    assert!(
        daemon.log().contains("a new history begins"),
        "{}",
        daemon.log()
    );
}

#[tokio::test]
async fn a_log_is_kept_without_being_asked_for_where_nobody_else_can_read_it() {
    let database = Database::new("rowcast").await;
    let daemon = database.daemon(&[]).await;
    database.insert_open(1).await;
    until("taken", async || held(&daemon.data()).1 == 1).await;
    let mode = |path: &Path| std::fs::metadata(path).unwrap().permissions().mode() & 0o777;
    assert_eq!(mode(&daemon.data()), 0o700);
    for file in std::fs::read_dir(daemon.data()).unwrap() {
        let path = file.unwrap().path();
        assert_eq!(mode(&path) & 0o077, 0, "{}", path.display());
    }
    daemon.terminate().await;

    // systemd names another directory.
    let folder = tempfile::tempdir().unwrap();
    let state = folder.path().join("state");
    let daemon = database
        .daemon(&[("STATE_DIRECTORY", state.to_str().unwrap())])
        .await;
    assert!(inspect(&state).is_ok() && !daemon.data().exists());
    daemon.terminate().await;

    let daemon = database.daemon(&[("ROWCAST_DATA", "memory")]).await;
    assert!(!daemon.data().exists());
    daemon.terminate().await;

    let (code, log) = database
        .spawn(&[("ROWCAST_DATA", "/dev/null/log")])
        .ended()
        .await;
    assert_eq!(code, Some(64), "{log}");
    assert!(log.contains("Set ROWCAST_DATA to a directory"), "{log}");
    assert!(log.contains("or to memory"), "{log}");
}

#[tokio::test]
async fn rows_of_a_type_that_is_renamed_or_gone_can_be_read_and_say_what_they_were() {
    let database = Database::new("rowcast").await;
    database
        .run(
            "create type mood as enum ('glad', 'sad'); create domain plain as text; \
             create table felt (id bigint primary key, now mood, was mood[], why plain); \
             grant select on felt to public; alter publication rowcast add table felt",
        )
        .await;
    let folder = tempfile::tempdir().unwrap();
    let data = folder.path().join("data");
    let environment = [("ROWCAST_DATA", data.to_str().unwrap())];
    let daemon = database.daemon(&environment).await;
    let mut client = Client::following(&daemon, &token(ANN), "felt").await;
    database
        .run("insert into felt values (1, 'glad', '{sad}', 'x')")
        .await;
    assert_eq!(client.change().await, "INSERT 1");
    until("acknowledged", async || acknowledged(&database).await).await;
    assert_eq!(held(&data).1, 1);
    // The stream tells of a renaming with the next session's first description, not before.
    database.run("alter type mood rename to temper").await;
    kill(daemon).await;
    database
        .run(
            "insert into felt values (2, 'sad', '{glad}', 'y'); \
             alter table felt drop column now, drop column was; drop type temper",
        )
        .await;
    let daemon = database.daemon(&environment).await;
    let mut client = Client::following(&daemon, &token(ANN), "felt").await;
    database.run("insert into felt values (3, 'z')").await;
    assert_eq!(client.change().await, "INSERT 3");
    until("taken", async || held(&data).1 == 3).await;
    daemon.terminate().await;
    let output = std::process::Command::new(env!("CARGO_BIN_EXE_rowcast"))
        .args(["log", "--json"])
        .env_clear()
        .envs(environment)
        .output()
        .unwrap();
    assert!(output.status.success(), "{output:?}");
    let found: serde_json::Value = serde_json::from_slice(&output.stdout).unwrap();
    let types = |table: &serde_json::Value| {
        let columns = table["columns"].as_array().unwrap().iter();
        let texts = columns.map(|column| column["type"].as_str().unwrap().to_owned());
        texts.collect::<Vec<_>>().join(" ")
    };
    let segments = found["segments"].as_array().unwrap().iter();
    let tables = segments.flat_map(|segment| segment["tables"].as_array().unwrap());
    let tables: Vec<String> = tables.map(types).collect();
    assert_eq!(
        tables,
        [
            // A domain is called what it is over, by the stream.
            "int8 public.mood public._mood pg_catalog.text",
            "int8 public.temper public._temper pg_catalog.text",
            "int8 pg_catalog.text",
        ]
    );
}

#[tokio::test]
async fn a_transaction_larger_than_memory_passes_and_one_larger_than_the_log_is_said() {
    let database = Database::new("rowcast").await;
    let daemon = database
        .daemon(&[
            ("ROWCAST_LOG_MAX_BYTES", "1MiB"),
            ("ROWCAST_LOG_RETENTION_BYTES", "512MiB"),
        ])
        .await;
    let mut client = Client::following(&daemon, &token(ANN), "note").await;
    let insert = |first: u32, rows: u32| {
        format!(
            "begin; insert into open select n, repeat('x', 10000) \
               from generate_series({first}, {}) n; \
             insert into note values ({first}, '{ANN}', 'b'); commit",
            first + rows - 1
        )
    };
    database.run(&insert(1, 30_000)).await;
    assert_eq!(client.change().await, "INSERT 1", "behind 300 MB of others");
    let peak = daemon.peak_memory();
    assert!(peak < 250 << 20, "{} MiB", peak >> 20);
    assert_eq!(held(&daemon.data()).1, 30_001);
    daemon.terminate().await;

    let daemon = database
        .daemon(&[("ROWCAST_LOG_RETENTION_BYTES", "16MiB")])
        .await;
    let mut note = Client::following(&daemon, &token(ANN), "note").await;
    let mut plan = Client::following(&daemon, &token(ANN), "plan").await;
    database.run(&insert(40_001, 5_000)).await;
    database.run("insert into plan values (1, 1, 'b')").await;
    assert_eq!(note.resync().await, "too_large");
    assert_eq!(plan.change().await, "INSERT 1", "nobody else is concerned");
    let mut note = Client::following(&daemon, &token(ANN), "note").await;
    database
        .run(&format!("insert into note values (2, '{ANN}', 'b')"))
        .await;
    assert_eq!(note.change().await, "INSERT 2");
    daemon.terminate().await;
}

/// Ends it without a word.
pub(crate) async fn kill(mut daemon: Daemon) {
    daemon.signal("KILL");
    daemon.ended().await;
}
