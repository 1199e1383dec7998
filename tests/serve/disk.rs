//! Disks that take nothing: nothing is lost, nothing is acknowledged that is not stored, operators
//! are told, and it goes on by itself.

use std::fs::{self, File};
use std::io::Write as _;
use std::path::{Path, PathBuf};

use tokio::process::Command;

use crate::client::Client;
use crate::durable::{held, kill};
use crate::harness::{ANN, Daemon, Database, token, until};

/// Says that this machine has no namespaces for tests. Without it a test that needs one fails, as
/// one that was left out would look like one that has passed.
const NAMESPACES: &str = "ROWCAST_TEST_NAMESPACES";

/// A command that has a file system of its own at `place`, mounted with `options`, and runs the
/// daemon; `None` where whoever runs this has said that there is no such thing.
fn with_mount(place: &Path, options: &str) -> Option<Command> {
    if std::env::var(NAMESPACES).is_ok_and(|value| value == "no") {
        println!("NOT RUN: {NAMESPACES}=no");
        return None;
    }
    let works = |flags: &str| {
        let output = std::process::Command::new("unshare")
            .args([flags, "mount", "-t", "tmpfs", "none"])
            .arg(place)
            .output();
        output.is_ok_and(|output| output.status.success())
    };
    let flags = ["-m", "-Urm"].into_iter().find(|flags| works(flags));
    let flags = flags.unwrap_or_else(|| {
        panic!("neither root nor anybody may mount here; {NAMESPACES}=no leaves this test out")
    });
    let mut command = Command::new("unshare");
    command
        .args([flags, "sh", "-c"])
        .arg(format!(
            "mount -t tmpfs -o {options} none \"$0\" && exec \"$@\""
        ))
        .arg(place)
        .arg(env!("CARGO_BIN_EXE_rowcast"));
    Some(command)
}

async fn acknowledged(database: &Database, position: &str) -> bool {
    let sql = format!(
        "select (confirmed_flush_lsn >= '{position}')::text from pg_replication_slots \
         where slot_name = '{}'",
        database.slot
    );
    database.text(&sql).await == "true"
}

async fn position(database: &Database) -> String {
    database
        .text("select pg_current_wal_insert_lsn()::text")
        .await
}

/// Changes reach clients, who need not wait for the disk, and are not acknowledged; `room` is made
/// in the end.
async fn endures(database: &Database, daemon: &Daemon, first: i64, reason: &str, room: impl Fn()) {
    let mut client = Client::following(daemon, &token(ANN), "open").await;
    for id in first..first + 5 {
        database
            .run(&format!(
                "insert into open values ({id}, repeat('x', 100000))"
            ))
            .await;
        assert_eq!(client.change().await, format!("INSERT {id}"));
    }
    until("not ready", async || {
        let (status, body) = daemon.ask("/readyz").await;
        status == 503 && body.contains(reason)
    })
    .await;
    assert_eq!(daemon.metric("rowcast_log_up").await, Some(0.0));
    let log = daemon.log();
    assert!(log.contains("the disk does not take changes"), "{log}");
    let written = position(database).await;
    database.insert_open(first + 5).await;
    assert_eq!(client.change().await, format!("INSERT {}", first + 5));
    assert!(!acknowledged(database, &written).await);
    room();
    until("ready", async || daemon.ask("/readyz").await.0 == 200).await;
    assert_eq!(daemon.metric("rowcast_log_up").await, Some(1.0));
    until("all is acknowledged", async || {
        acknowledged(database, &written).await
    })
    .await;
    database.insert_open(first + 6).await;
    assert_eq!(client.change().await, format!("INSERT {}", first + 6));
}

#[tokio::test]
async fn a_full_disk_stops_the_acknowledgement_and_nothing_else_until_there_is_room() {
    let place = tempfile::tempdir().unwrap();
    let Some(command) = with_mount(place.path(), "size=8m,mode=0700") else {
        return;
    };
    let database = Database::new("rowcast").await;
    let environment = [
        ("DATABASE_URL", database.url.as_str()),
        ("JWT_SECRET", crate::harness::SECRET),
        ("ROWCAST_SLOT", database.slot.as_str()),
        ("ROWCAST_DATA", place.path().to_str().unwrap()),
    ];
    let daemon = Daemon::spawn_by(command, &environment);
    daemon.ready().await;
    // Its own mounts, as it sees them.
    let seen = format!("/proc/{}/root{}", daemon.id(), place.path().display());
    let seen = PathBuf::from(seen);
    let ballast = seen.join("ballast");
    let mut rounds = 1;
    for _ in 0..2 {
        let mut file = File::create(&ballast).unwrap();
        while file.write_all(&[0; 4096]).is_ok() {}
        drop(file);
        endures(&database, &daemon, rounds, "No space left", || {
            fs::remove_file(&ballast).unwrap();
        })
        .await;
        rounds += 7;
    }
    let kept = u64::try_from(rounds - 1).unwrap();
    // Clients need not wait for the file.
    until("stored", async || held(&seen).1 >= kept).await;
    assert_eq!(held(&seen).1, kept, "all of it, once");
    daemon.terminate().await;
}

#[tokio::test]
async fn a_new_history_needs_no_room_that_the_old_one_takes() {
    let place = tempfile::tempdir().unwrap();
    let Some(command) = with_mount(place.path(), "size=4m,mode=0700") else {
        return;
    };
    let database = Database::new("rowcast").await;
    let environment = [
        ("DATABASE_URL", database.url.as_str()),
        ("JWT_SECRET", crate::harness::SECRET),
        ("ROWCAST_SLOT", database.slot.as_str()),
        ("ROWCAST_DATA", place.path().to_str().unwrap()),
    ];
    let daemon = Daemon::spawn_by(command, &environment);
    let mut client = Client::following(&daemon, &token(ANN), "open").await;
    // The log alone fills it.
    for id in 1..=60 {
        database
            .run(&format!(
                "insert into open values ({id}, repeat('x', 100000))"
            ))
            .await;
        assert_eq!(client.change().await, format!("INSERT {id}"));
    }
    until("full", async || {
        daemon.metric("rowcast_log_up").await == Some(0.0)
    })
    .await;
    database.drop_slot().await;
    assert_eq!(client.resync().await, "slot_lost");
    until("ready", async || daemon.ask("/readyz").await.0 == 200).await;
    let mut client = Client::following(&daemon, &token(ANN), "open").await;
    database.insert_open(61).await;
    assert_eq!(client.change().await, "INSERT 61");
    daemon.terminate().await;
}

#[tokio::test]
async fn a_disk_that_is_read_only_at_the_start_ends_it_with_the_setting_to_change() {
    let place = tempfile::tempdir().unwrap();
    let Some(command) = with_mount(place.path(), "ro") else {
        return;
    };
    let database = Database::new("rowcast").await;
    let environment = [
        ("DATABASE_URL", database.url.as_str()),
        ("JWT_SECRET", crate::harness::SECRET),
        ("ROWCAST_DATA", place.path().to_str().unwrap()),
    ];
    let (code, log) = Daemon::spawn_by(command, &environment).ended().await;
    assert_eq!(code, Some(64), "{log}");
    assert!(log.contains("Read-only file system"), "{log}");
    assert!(log.contains("Set ROWCAST_DATA to a directory"), "{log}");
}

/// A limit of the size of files stands for a disk where nobody may mount; and it is one that a
/// service can have.
#[tokio::test]
async fn a_limit_of_file_sizes_is_endured_and_a_crash_amid_it_loses_nothing() {
    let database = Database::new("rowcast").await;
    let folder = tempfile::tempdir().unwrap();
    let data = folder.path().join("data");
    let environment = [
        ("DATABASE_URL", database.url.as_str()),
        ("JWT_SECRET", crate::harness::SECRET),
        ("ROWCAST_SLOT", database.slot.as_str()),
        ("ROWCAST_DATA", data.to_str().unwrap()),
    ];
    let mut limited = Command::new("sh");
    // Without the trap the limit is a signal that ends the process, not an error.
    limited
        .args([
            "-c",
            "trap '' XFSZ; ulimit -S -f 128; exec \"$@\"",
            "limited",
        ])
        .arg(env!("CARGO_BIN_EXE_rowcast"));
    let daemon = Daemon::spawn_by(limited, &environment);
    daemon.ready().await;
    let id = daemon.id().to_string();
    endures(&database, &daemon, 1, "File too large", || {
        let raised = std::process::Command::new("prlimit")
            .args(["--pid", &id, "--fsize=unlimited:"])
            .status();
        assert!(raised.unwrap().success());
    })
    .await;
    let lowered = std::process::Command::new("prlimit")
        .args(["--pid", &id, "--fsize=65536:"])
        .status();
    assert!(lowered.unwrap().success());
    let mut client = Client::following(&daemon, &token(ANN), "open").await;
    for id in 8..=20 {
        database
            .run(&format!(
                "insert into open values ({id}, repeat('x', 100000))"
            ))
            .await;
        assert_eq!(client.change().await, format!("INSERT {id}"));
    }
    kill(daemon).await;
    let daemon = database
        .daemon(&[("ROWCAST_DATA", data.to_str().unwrap())])
        .await;
    until("all is taken", async || held(&data).1 == 20).await;
    let written = position(&database).await;
    database.insert_open(21).await;
    until("all is acknowledged", async || {
        acknowledged(&database, &written).await
    })
    .await;
    daemon.terminate().await;
}
