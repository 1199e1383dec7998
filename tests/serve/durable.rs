//! The log on disk: what was taken outlives the process, and nothing is taken twice.

use std::path::Path;

use rowcast::log::disk::inspect;
use rowcast::log::{Epoch, Offset};

use crate::harness::{Daemon, Database, until};

/// The history and how many changes it holds.
pub(crate) fn held(directory: &Path) -> (Epoch, u64) {
    let found = inspect(directory).unwrap();
    let end = found.segments.last().unwrap().range.end;
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

/// Ends it without a word.
pub(crate) async fn kill(mut daemon: Daemon) {
    daemon.signal("KILL");
    daemon.ended().await;
}
