//! PostgreSQL, with a disk that keeps what was committed, and standbys that take over.

use std::fs;
use std::net::SocketAddr;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::Arc;

use rowcast::pg::throwaway::{Options, Throwaway};
use tokio::sync::watch;
use tokio_postgres::Client;

use crate::harness::{connect, until};
use crate::proxy::Proxy;
use crate::schema;

const DATABASE: &str = "chaos";

pub(crate) struct Database {
    pub(crate) server: Throwaway,
    folder: tempfile::TempDir,
    /// How many servers there have been.
    servers: u32,
    /// Where it can be read and written, past the network that is cut.
    pub(crate) url: watch::Sender<String>,
    proxy: Arc<Proxy>,
}

fn options(directory: PathBuf) -> Options {
    Options {
        directory: Some(directory),
        fsync: true,
        settings: [
            "max_prepared_transactions = 20",
            "max_wal_size = 96MB",
            // Deadlocks among writers are soon noticed.
            "deadlock_timeout = 100ms",
        ]
        .map(str::to_owned)
        .to_vec(),
        hba: vec!["host replication all 127.0.0.1/32 trust".to_owned()],
    }
}

impl Database {
    pub(crate) async fn start(proxy: Arc<Proxy>) -> Self {
        let folder = tempfile::tempdir().unwrap();
        // The server runs as another user where this runs as root.
        fs::set_permissions(folder.path(), fs::Permissions::from_mode(0o755)).unwrap();
        let server = Throwaway::start(options(folder.path().join("server-1")))
            .await
            .unwrap();
        connect(&server.url("postgres"))
            .await
            .batch_execute(&format!("create database {DATABASE}"))
            .await
            .unwrap();
        schema::make(&server.url(DATABASE)).await;
        let url = watch::Sender::new(server.url(DATABASE));
        let database = Self {
            server,
            folder,
            servers: 1,
            url,
            proxy,
        };
        database.announce();
        database
    }

    /// The address for the relay, through the network that is cut.
    pub(crate) fn through_proxy(&self) -> String {
        let address = self.proxy.address();
        format!("postgres://postgres@{address}/{DATABASE}?sslmode=disable")
    }

    fn announce(&self) {
        let address = SocketAddr::from(([127, 0, 0, 1], self.server.port()));
        self.proxy.leads_to(Some(address));
        self.url.send_replace(self.server.url(DATABASE));
    }

    pub(crate) async fn sql(&self) -> Client {
        connect(&self.server.url(DATABASE)).await
    }

    pub(crate) async fn run(&self, sql: &str) {
        let done = self.sql().await.batch_execute(sql).await;
        done.unwrap_or_else(|error| panic!("{sql}: {error:?}"));
    }

    /// As the kernel kills: without a word to anybody.
    pub(crate) async fn kill(&mut self) {
        let status = self.server.directory().join("data/postmaster.pid");
        let status = fs::read_to_string(status).unwrap();
        let postmaster: u32 = status.lines().next().unwrap().trim().parse().unwrap();
        let children = children_of(postmaster);
        let killed = Command::new("kill")
            .args(["-s", "KILL", &postmaster.to_string()])
            .status();
        assert!(killed.unwrap().success());
        self.server.crash_server().await;
        // They notice, unless they are in the middle of something; the next server must not meet them.
        for (child, _) in &children {
            let _gone = Command::new("kill")
                .args(["-s", "KILL", &child.to_string()])
                .stderr(std::process::Stdio::null())
                .status();
        }
        until("the server's processes have ended", async || {
            children.iter().all(|(child, started)| {
                // One that nobody has waited for holds nothing any more, and its number may be
                // another's by now.
                process(*child).is_none_or(|now| now.state == "Z" || now.started != *started)
            })
        })
        .await;
    }

    pub(crate) async fn start_again(&mut self) {
        self.server.start_server().await.unwrap();
        self.announce();
    }

    /// A standby of the server, which is stopped for as long as that takes.
    pub(crate) async fn standby(&mut self) -> Throwaway {
        let slot = "select pg_create_physical_replication_slot('standby') \
            where not exists (select from pg_replication_slots where slot_name = 'standby')";
        self.run(slot).await;
        self.server.stop_server().await;
        self.servers += 1;
        let second = self.folder.path().join(format!("server-{}", self.servers));
        let copied = Command::new("cp")
            .arg("-a")
            .args([self.server.directory(), &second])
            .status();
        assert!(copied.unwrap().success());
        let data = second.join("data");
        fs::write(data.join("standby.signal"), "").unwrap();
        forget(&data, "standby");
        if self.server_version(&data) >= 17 {
            // Standbys get it from the primary, or not at all.
            forget(&data, "chaos");
        }
        self.start_again().await;
        let mut options = options(second);
        options.settings.extend([
            format!(
                "primary_conninfo = 'host=127.0.0.1 port={} user=postgres dbname={DATABASE}'",
                self.server.port()
            ),
            "primary_slot_name = 'standby'".to_owned(),
            "hot_standby_feedback = on".to_owned(),
        ]);
        if self.server_version(&data) >= 17 {
            options
                .settings
                .push("sync_replication_slots = on".to_owned());
        }
        Throwaway::start(options).await.unwrap()
    }

    fn server_version(&self, data: &Path) -> u32 {
        let version = fs::read_to_string(data.join("PG_VERSION")).unwrap();
        version.trim().parse().unwrap()
    }

    /// The server is killed, and the standby takes its place.
    pub(crate) async fn promote(&mut self, standby: Throwaway) {
        self.kill().await;
        let sql = connect(&standby.url(DATABASE)).await;
        sql.batch_execute("select pg_promote()").await.unwrap();
        // Of those whose commit did not arrive here nobody knows any more, and they hold locks.
        let prepared = "select gid from pg_prepared_xacts";
        for row in sql.query(prepared, &[]).await.unwrap() {
            let name: String = row.get(0);
            sql.batch_execute(&format!("rollback prepared '{name}'"))
                .await
                .unwrap();
        }
        let gone = std::mem::replace(&mut self.server, standby);
        let directory = gone.directory().to_owned();
        drop(gone);
        fs::remove_dir_all(directory).unwrap();
        self.announce();
    }
}

/// Waits until a standby has all that its primary has written.
pub(crate) async fn catch_up(primary: &Client, standby: &Throwaway) {
    let written: String = primary
        .query_one("select pg_current_wal_lsn()::text", &[])
        .await
        .unwrap()
        .get(0);
    let sql = connect(&standby.url(DATABASE)).await;
    let has = format!("select pg_last_wal_replay_lsn() >= '{written}'");
    until("the standby has it", async || {
        sql.query_one(&has, &[]).await.unwrap().get(0)
    })
    .await;
}

/// Has a standby receive nothing more.
pub(crate) async fn lag(standby: &Throwaway) {
    standby.configure(&["primary_conninfo = ''"]).unwrap();
    let sql = connect(&standby.url(DATABASE)).await;
    sql.batch_execute("select pg_reload_conf()").await.unwrap();
    let receives = "select exists (select from pg_stat_wal_receiver)";
    until("the standby receives nothing", async || {
        !sql.query_one(receives, &[])
            .await
            .unwrap()
            .get::<_, bool>(0)
    })
    .await;
}

/// Waits until the relay has changes that a standby does not have. It may have been away since the
/// server was stopped: what only clients have read by themselves nobody could tell them of.
pub(crate) async fn get_ahead(primary: &Client, standby: &Throwaway) {
    let has = "select pg_last_wal_receive_lsn()::text";
    let sql = connect(&standby.url(DATABASE)).await;
    let has: String = sql.query_one(has, &[]).await.unwrap().get(0);
    let ahead = format!(
        "select exists (select from pg_replication_slots
           where slot_name = 'chaos' and active and confirmed_flush_lsn > '{has}')"
    );
    until("the relay is ahead of the standby", async || {
        primary.query_one(&ahead, &[]).await.unwrap().get(0)
    })
    .await;
}

/// Slots are not part of what a standby has.
fn forget(data: &Path, slot: &str) {
    let _missing = fs::remove_dir_all(data.join("pg_replslot").join(slot));
}

struct Process {
    state: String,
    parent: u32,
    /// In ticks since the machine was.
    started: u64,
}

fn process(number: u32) -> Option<Process> {
    let status = fs::read_to_string(format!("/proc/{number}/stat")).ok()?;
    // Behind the name in parentheses.
    let mut fields = status.rsplit(") ").next()?.split(' ');
    Some(Process {
        state: fields.next()?.to_owned(),
        parent: fields.next()?.parse().ok()?,
        started: fields.nth(17)?.parse().ok()?,
    })
}

/// With when each began.
fn children_of(parent: u32) -> Vec<(u32, u64)> {
    let processes = fs::read_dir("/proc").unwrap();
    let numbers = processes.filter_map(|entry| entry.ok()?.file_name().to_str()?.parse().ok());
    let known = numbers.filter_map(|number| Some((number, process(number)?)));
    let children = known.filter(|(_, process)| process.parent == parent);
    children
        .map(|(number, process)| (number, process.started))
        .collect()
}
