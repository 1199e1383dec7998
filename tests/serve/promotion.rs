//! The primary dies and a standby takes its place, with all that was sent, or without the last of
//! it.

use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::Path;
use std::process::Command;

use rowcast::log::Epoch;
use rowcast::log::disk::inspect;
use rowcast::pg::throwaway::{Options, Throwaway};

use crate::client::Client;
use crate::harness::{ANN, Database, connect, token, until};

/// A primary and its standby, which has the slot too.
pub(crate) struct Pair {
    pub(crate) primary: Throwaway,
    standby: Throwaway,
    pub(crate) database: Database,
    /// Both of them, whichever can be written to.
    url: String,
    /// To the standby.
    reader: tokio_postgres::Client,
    /// Whether the standby follows the slot by itself.
    synchronises: bool,
    _folder: tempfile::TempDir,
}

impl Pair {
    pub(crate) async fn start() -> Self {
        let folder = tempfile::tempdir().unwrap();
        // The server runs as another user where this runs as root.
        fs::set_permissions(folder.path(), fs::Permissions::from_mode(0o755)).unwrap();
        let (first, second) = (folder.path().join("first"), folder.path().join("second"));
        let hba = vec!["host replication all 127.0.0.1/32 trust".to_owned()];
        let mut primary = Throwaway::start(Options {
            directory: Some(first.clone()),
            settings: vec!["wal_keep_size = '1GB'".to_owned()],
            hba: hba.clone(),
            ..Options::default()
        })
        .await
        .unwrap();
        let mut database = Database::at(primary.fresh_database().await.unwrap(), "rowcast").await;
        let version = database
            .text("select current_setting('server_version_num')")
            .await;
        let synchronises = version.parse::<u32>().unwrap() >= 170_000;
        let failover = if synchronises {
            ", failover => true"
        } else {
            ""
        };
        database
            .run(&format!(
                "select pg_create_logical_replication_slot('{}', 'pgoutput'{failover}); \
                 select pg_create_physical_replication_slot('standby')",
                database.slot
            ))
            .await;
        primary.stop_server().await;
        let copied = Command::new("cp")
            .arg("-a")
            .args([&first, &second])
            .status();
        assert!(copied.unwrap().success());
        let data = second.join("data");
        fs::write(data.join("standby.signal"), "").unwrap();
        forget(&data, "standby");
        if synchronises {
            forget(&data, &database.slot);
        }
        primary.start_server().await.unwrap();
        database.sql = connect(&database.url).await;
        let name = database.text("select current_database()::text").await;
        let mut settings = vec![
            format!(
                "primary_conninfo = 'host=127.0.0.1 port={} user=postgres dbname={name}'",
                primary.port()
            ),
            "primary_slot_name = 'standby'".to_owned(),
            "hot_standby_feedback = on".to_owned(),
        ];
        if synchronises {
            settings.push("sync_replication_slots = on".to_owned());
        }
        let standby = Throwaway::start(Options {
            directory: Some(second),
            settings,
            hba,
            ..Options::default()
        })
        .await
        .unwrap();
        let url = format!(
            "postgres://postgres@127.0.0.1:{},127.0.0.1:{}/{name}\
             ?sslmode=disable&target_session_attrs=read-write",
            primary.port(),
            standby.port()
        );
        let reader = connect(&standby.url(&name)).await;
        Self {
            primary,
            standby,
            database,
            url,
            reader,
            synchronises,
            _folder: folder,
        }
    }

    pub(crate) async fn ask_standby(&self, sql: &str) -> String {
        self.reader.query_one(sql, &[]).await.unwrap().get(0)
    }

    /// Waits until the standby has all that is written, and the slot where it keeps that too.
    async fn catch_up(&self) {
        let written = self
            .database
            .text("select pg_current_wal_lsn()::text")
            .await;
        until("the standby has it", async || {
            let has = format!("select (pg_last_wal_replay_lsn() >= '{written}')::text");
            self.ask_standby(&has).await == "true"
        })
        .await;
        if self.synchronises {
            let synced = format!(
                "select exists (select from pg_replication_slots \
                 where slot_name = '{}' and synced and not temporary)::text",
                self.database.slot
            );
            until("the standby has the slot", async || {
                self.database.insert_note().await;
                self.ask_standby(&synced).await == "true"
            })
            .await;
        }
    }

    /// Has the standby receive nothing more.
    async fn lag(&self) {
        self.standby.configure(&["primary_conninfo = ''"]).unwrap();
        self.ask_standby("select pg_reload_conf()::text").await;
        until("the standby receives nothing", async || {
            let receivers = "select count(*)::text from pg_stat_wal_receiver";
            self.ask_standby(receivers).await == "0"
        })
        .await;
    }

    async fn promote(&mut self) {
        self.primary.crash_server().await;
        assert_eq!(self.ask_standby("select pg_promote()::text").await, "true");
        let name = self.ask_standby("select current_database()::text").await;
        self.database.sql = connect(&self.standby.url(&name)).await;
    }
}

/// Slots are not part of what a standby has.
fn forget(data: &Path, slot: &str) {
    fs::remove_dir_all(data.join("pg_replslot").join(slot)).unwrap();
}

#[tokio::test]
async fn a_standby_that_has_everything_goes_on_where_the_primary_ended() {
    let mut pair = Pair::start().await;
    let daemon = pair.database.daemon(&[("DATABASE_URL", &pair.url)]).await;
    let mut client = Client::following(&daemon, &token(ANN), "open").await;
    for id in 1..=3 {
        pair.database.insert_open(id).await;
        assert_eq!(client.change().await, format!("INSERT {id}"));
    }
    pair.catch_up().await;
    // Clients need not wait for the disk.
    until("written", async || history(&daemon.data()).2 >= 3).await;
    let before = history(&daemon.data());
    assert_eq!(before.1, 1);
    pair.promote().await;
    pair.database.insert_open(4).await;
    assert_eq!(client.change().await, "INSERT 4", "without a resync");
    assert_eq!(
        history(&daemon.data()).0,
        before.0,
        "the same history goes on"
    );
    let log = daemon.log();
    assert!(
        log.contains("that has everything: the log goes on"),
        "{log}"
    );
    // And so it does over a restart.
    let data = tempfile::tempdir().unwrap();
    let data = data.path().join("moved");
    let held = daemon.data();
    daemon.signal("TERM");
    until("stopped", async || daemon.log().contains("\"stopped\"")).await;
    fs::rename(held, &data).unwrap();
    pair.database.insert_open(5).await;
    let environment = [
        ("DATABASE_URL", pair.url.as_str()),
        ("ROWCAST_DATA", data.to_str().unwrap()),
    ];
    let again = pair.database.daemon(&environment).await;
    until("what was missed is taken", async || {
        history(&data) == (before.0, 2, before.2 + 2)
    })
    .await;
    again.terminate().await;
}

/// Epoch, timeline and the next offset.
fn history(data: &Path) -> (Epoch, u32, u64) {
    let found = inspect(data).unwrap();
    let end = found.segments.last().unwrap().range.end;
    (found.epoch, found.origin.unwrap().timeline, end.0)
}

#[tokio::test]
async fn a_standby_without_the_last_changes_begins_a_new_history_and_everybody_is_told() {
    let mut pair = Pair::start().await;
    let daemon = pair.database.daemon(&[("DATABASE_URL", &pair.url)]).await;
    let mut client = Client::following(&daemon, &token(ANN), "open").await;
    pair.database.insert_open(1).await;
    assert_eq!(client.change().await, "INSERT 1");
    pair.catch_up().await;
    pair.lag().await;
    pair.database.insert_open(2).await;
    assert_eq!(
        client.change().await,
        "INSERT 2",
        "of which nobody knows soon"
    );
    let before = inspect(&daemon.data()).unwrap().epoch;
    pair.promote().await;
    assert_eq!(client.resync().await, "slot_lost");
    // Clients need not wait for the disk.
    until("another history", async || {
        inspect(&daemon.data()).unwrap().epoch != before
    })
    .await;
    let mut client = Client::following(&daemon, &token(ANN), "open").await;
    pair.database.insert_open(3).await;
    // The slot was copied, and stands where it stood then: that is in what the client reads.
    assert_eq!(client.change().await, "INSERT 3");
    let log = daemon.log();
    assert!(log.contains("that has not had all changes"), "{log}");
    daemon.terminate().await;
}

#[tokio::test]
async fn a_standby_without_what_nobody_follows_goes_on_and_skips_nothing() {
    let mut pair = Pair::start().await;
    let daemon = pair.database.daemon(&[("DATABASE_URL", &pair.url)]).await;
    let mut client = Client::following(&daemon, &token(ANN), "open").await;
    pair.database.insert_open(1).await;
    assert_eq!(client.change().await, "INSERT 1");
    pair.catch_up().await;
    pair.lag().await;
    // The relay passes this by, far beyond where the new timeline begins.
    pair.database
        .run("insert into quiet (body) select repeat('x', 900) from generate_series(1, 5000)")
        .await;
    let written = pair
        .database
        .text("select pg_current_wal_lsn()::text")
        .await;
    until("passed", async || {
        let sql = format!(
            "select (confirmed_flush_lsn >= '{written}')::text from pg_replication_slots \
             where slot_name = '{}'",
            pair.database.slot
        );
        pair.database.text(&sql).await == "true"
    })
    .await;
    let before = inspect(&daemon.data()).unwrap().epoch;
    pair.promote().await;
    for id in 2..=4 {
        pair.database.insert_open(id).await;
        assert_eq!(client.change().await, format!("INSERT {id}"));
    }
    assert_eq!(inspect(&daemon.data()).unwrap().epoch, before);
    daemon.terminate().await;
}

#[tokio::test]
async fn a_promotion_while_the_relay_is_down_goes_on_only_where_it_had_ended_in_order() {
    for in_order in [true, false] {
        let mut pair = Pair::start().await;
        let folder = tempfile::tempdir().unwrap();
        let data = folder.path().join("data");
        let environment = [
            ("DATABASE_URL", pair.url.clone()),
            ("ROWCAST_DATA", data.to_str().unwrap().to_owned()),
        ];
        let environment = environment
            .each_ref()
            .map(|(name, value)| (*name, value.as_str()));
        let daemon = pair.database.daemon(&environment).await;
        let mut client = Client::following(&daemon, &token(ANN), "open").await;
        pair.database.insert_open(1).await;
        assert_eq!(client.change().await, "INSERT 1");
        pair.catch_up().await;
        until("written", async || history(&data).2 >= 1).await;
        let before = history(&data);
        if in_order {
            daemon.terminate().await;
        } else {
            // What it had given out last, it may not have stored.
            crate::durable::kill(daemon).await;
        }
        pair.promote().await;
        let daemon = pair.database.daemon(&environment).await;
        until("on the new timeline", async || {
            // Where a history begins there is no segment for a moment.
            let found = inspect(&data).unwrap();
            let origin = found.origin.filter(|_| !found.segments.is_empty());
            origin.is_some_and(|origin| origin.timeline == 2)
        })
        .await;
        assert_eq!(history(&data).0 == before.0, in_order);
        daemon.terminate().await;
    }
}
