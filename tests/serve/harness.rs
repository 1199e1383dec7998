//! A shared cluster, databases on it, and daemons.

use std::net::SocketAddr;
use std::path::PathBuf;
use std::process::Stdio;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use rowcast::auth::mint;
use rowcast::pg::throwaway::{Options, Throwaway};
use serde_json::{Value, json};
use tokio::io::{AsyncBufReadExt, AsyncReadExt, AsyncWriteExt, BufReader};
use tokio::net::TcpStream;
use tokio::process::{Child, Command};
use tokio::sync::OnceCell;
use tokio::task::JoinHandle;
use tokio::time::Instant;
use tokio_postgres::NoTls;

/// Nothing in these tests takes longer, however busy the machine.
pub(crate) const DEADLINE: Duration = Duration::from_secs(60);

pub(crate) const SECRET: &str = "a secret of at least thirty-two bytes, for tests";
pub(crate) const ANN: &str = "00000000-0000-4000-8000-00000000000a";
pub(crate) const BEN: &str = "00000000-0000-4000-8000-00000000000b";

/// An open table, one with a policy that the claims alone decide and one whose policy asks.
const SCHEMA: &str = "
create table open (id bigint primary key, body text);
grant select on open to public;
create table note (id bigint primary key, owner uuid, body text);
alter table note enable row level security;
alter table note replica identity full;
create policy mine on note for select to authenticated using (owner = auth.uid());
grant select on note to authenticated;
create table member (team bigint, person uuid);
grant select on member to authenticated;
create table plan (id bigint primary key, team bigint, body text);
alter table plan enable row level security;
create policy ours on plan for select to authenticated
  using (exists (select from member m where m.team = plan.team and m.person = auth.uid()));
grant select on plan to authenticated;
create table quiet (id bigserial primary key, body text);
insert into member values (1, '00000000-0000-4000-8000-00000000000a');
";

static CLUSTER: OnceCell<Throwaway> = OnceCell::const_new();
static LAST: AtomicU64 = AtomicU64::new(0);

/// The cluster of this test process; it ends with the process.
pub(crate) async fn cluster() -> &'static Throwaway {
    CLUSTER
        .get_or_init(async || {
            let options = Options {
                // One for each database of these tests, and they are never dropped.
                settings: vec!["max_replication_slots = 100".to_owned()],
                ..Options::default()
            };
            Throwaway::start(options).await.expect("a cluster")
        })
        .await
}

/// A database with the schema and the publication `publication` of its tables.
pub(crate) struct Database {
    pub(crate) url: String,
    pub(crate) sql: tokio_postgres::Client,
    pub(crate) slot: String,
}

impl Database {
    pub(crate) async fn new(publication: &str) -> Self {
        let url = cluster().await.fresh_database().await.expect("a database");
        Self::at(url, publication).await
    }

    pub(crate) async fn at(url: String, publication: &str) -> Self {
        let sql = connect(&url).await;
        let database = Self {
            url,
            sql,
            // Slots belong to the cluster.
            slot: format!("slot_{}", LAST.fetch_add(1, Ordering::Relaxed)),
        };
        database.run(include_str!("../../sql/auth.sql")).await;
        database.run(SCHEMA).await;
        database
            .run(&format!(
                "create publication {publication} for table open, note, plan"
            ))
            .await;
        database
    }

    pub(crate) async fn run(&self, sql: &str) {
        self.sql.batch_execute(sql).await.unwrap_or_else(|error| {
            let said = error
                .as_db_error()
                .map(tokio_postgres::error::DbError::message);
            panic!("{sql}: {}", said.unwrap_or("disconnected"))
        });
    }

    /// The only value of a query, as text.
    pub(crate) async fn text(&self, sql: &str) -> String {
        self.sql.query_one(sql, &[]).await.expect("a row").get(0)
    }

    pub(crate) async fn insert_open(&self, id: i64) {
        self.run(&format!("insert into open values ({id}, 'b')"))
            .await;
    }

    /// Takes the slot from whoever reads it.
    pub(crate) async fn drop_slot(&self) {
        self.run(&format!(
            "do $$ begin loop \
               perform pg_terminate_backend(active_pid) from pg_replication_slots \
                where slot_name = '{0}'; \
               begin perform pg_drop_replication_slot('{0}'); exit; \
               exception when object_in_use then null; end; \
             end loop; end $$",
            self.slot
        ))
        .await;
    }

    /// A row that only its owner sees.
    pub(crate) async fn insert_note(&self) {
        self.run("insert into note select count(*), null, 'b' from note")
            .await;
    }

    /// A daemon on this database with a slot of its own.
    pub(crate) async fn daemon(&self, more: &[(&str, &str)]) -> Daemon {
        let daemon = self.spawn(more);
        daemon.ready().await;
        daemon
    }

    /// The same, not waited for.
    pub(crate) fn spawn(&self, more: &[(&str, &str)]) -> Daemon {
        let mut environment = vec![
            ("DATABASE_URL", self.url.as_str()),
            ("JWT_SECRET", SECRET),
            ("ROWCAST_SLOT", self.slot.as_str()),
        ];
        environment.extend(more);
        Daemon::spawn(&environment)
    }
}

pub(crate) async fn connect(url: &str) -> tokio_postgres::Client {
    let (client, connection) = tokio_postgres::connect(url, NoTls)
        .await
        .expect("a connection");
    tokio::spawn(async move {
        // The test fails where the connection is used.
        let _ended = connection.await;
    });
    client
}

pub(crate) fn unix_now() -> i64 {
    let now = std::time::SystemTime::now()
        .duration_since(std::time::UNIX_EPOCH)
        .unwrap();
    now.as_secs().try_into().unwrap()
}

pub(crate) fn token(person: &str) -> String {
    token_until(person, unix_now() + 3600)
}

pub(crate) fn token_until(person: &str, exp: i64) -> String {
    let claims = json!({ "role": "authenticated", "sub": person, "exp": exp });
    mint(SECRET, &claims).unwrap()
}

/// Waits for something that must happen.
pub(crate) async fn soon<T>(what: &str, happens: impl Future<Output = T>) -> T {
    tokio::time::timeout(DEADLINE, happens)
        .await
        .unwrap_or_else(|_| panic!("not in time: {what}"))
}

/// Looks again and again until `holds`.
pub(crate) async fn until(what: &str, mut holds: impl AsyncFnMut() -> bool) {
    let deadline = Instant::now() + DEADLINE;
    while !holds().await {
        assert!(Instant::now() < deadline, "not in time: {what}");
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
}

/// A running `rowcast serve`; it is killed where the test leaves it running.
pub(crate) struct Daemon {
    child: Child,
    log: Arc<Mutex<String>>,
    /// Ends with the log.
    reader: Option<JoinHandle<()>>,
    folder: tempfile::TempDir,
}

impl Daemon {
    /// Starts it with this environment and nothing else, on ports that are free.
    pub(crate) fn spawn(environment: &[(&str, &str)]) -> Self {
        let binary = env!("CARGO_BIN_EXE_rowcast");
        Self::spawn_by(Command::new(binary), environment)
    }

    /// The same, with a command that comes to run it.
    pub(crate) fn spawn_by(mut command: Command, environment: &[(&str, &str)]) -> Self {
        let folder = tempfile::tempdir().unwrap();
        let mut child = command
            .arg("serve")
            .env_clear()
            .env("ROWCAST_LISTEN", "127.0.0.1:0")
            .env("ROWCAST_ADMIN_LISTEN", "127.0.0.1:0")
            .envs(environment.iter().copied())
            .current_dir(folder.path())
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(Stdio::piped())
            .kill_on_drop(true)
            .spawn()
            .unwrap();
        let log = Arc::new(Mutex::new(String::new()));
        let mut lines = BufReader::new(child.stderr.take().unwrap()).lines();
        let written = Arc::clone(&log);
        let reader = tokio::spawn(async move {
            while let Ok(Some(line)) = lines.next_line().await {
                let mut log = written.lock().unwrap();
                log.push_str(&line);
                log.push('\n');
            }
        });
        Self {
            child,
            log,
            reader: Some(reader),
            folder,
        }
    }

    /// Where it keeps its log by default.
    pub(crate) fn data(&self) -> PathBuf {
        self.folder.path().join("rowcast-data")
    }

    pub(crate) fn log(&self) -> String {
        self.log.lock().unwrap().clone()
    }

    /// The first log line with this message.
    pub(crate) async fn logged(&self, message: &str) -> Value {
        let deadline = Instant::now() + DEADLINE;
        loop {
            let log = self.log();
            let found = log.lines().find_map(|line| {
                let line: Value = serde_json::from_str(line).ok()?;
                (line["message"] == message).then_some(line)
            });
            if let Some(line) = found {
                return line;
            }
            assert!(Instant::now() < deadline, "no {message:?} in\n{log}");
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
    }

    pub(crate) async fn address(&self, message: &str, field: &str) -> SocketAddr {
        let line = self.logged(message).await;
        line[field].as_str().unwrap().parse().unwrap()
    }

    /// Waits until clients are served.
    pub(crate) async fn ready(&self) {
        self.logged("ready").await;
    }

    /// Where clients are served, once they are.
    #[allow(dead_code, reason = "for those who start it again and again")]
    pub(crate) fn serving(&self) -> Option<SocketAddr> {
        self.log().lines().find_map(|line| {
            let line: Value = serde_json::from_str(line).ok()?;
            let address = line["public"]
                .as_str()
                .filter(|_| line["message"] == "ready")?;
            Some(address.parse().unwrap())
        })
    }

    pub(crate) async fn public(&self) -> SocketAddr {
        self.address("ready", "public").await
    }

    pub(crate) async fn admin(&self) -> SocketAddr {
        self.address("serving operators", "address").await
    }

    /// Status and body of a path of the admin listener.
    pub(crate) async fn ask(&self, path: &str) -> (u16, String) {
        get(self.admin().await, path).await
    }

    /// The value of the first sample whose name and labels begin so.
    pub(crate) async fn metric(&self, name: &str) -> Option<f64> {
        let (_, text) = self.ask("/metrics").await;
        let line = text.lines().find(|line| {
            line.strip_prefix(name)
                .is_some_and(|rest| rest.starts_with([' ', '{']))
        })?;
        line.rsplit(' ').next()?.parse().ok()
    }

    pub(crate) async fn metric_reaches(&self, name: &str, least: f64) {
        until(&format!("{name} {least}"), async || {
            self.metric(name).await.is_some_and(|value| value >= least)
        })
        .await;
    }

    /// The most memory that it ever had, in bytes.
    pub(crate) fn peak_memory(&self) -> u64 {
        let status = std::fs::read_to_string(format!("/proc/{}/status", self.id())).unwrap();
        let line = status
            .lines()
            .find(|line| line.starts_with("VmHWM"))
            .unwrap();
        let kib: u64 = line.split_whitespace().nth(1).unwrap().parse().unwrap();
        kib * 1024
    }

    /// Whether it has not ended.
    #[allow(dead_code, reason = "for those who start it again and again")]
    pub(crate) fn runs(&mut self) -> bool {
        matches!(self.child.try_wait(), Ok(None))
    }

    pub(crate) fn id(&self) -> u32 {
        self.child.id().expect("it runs")
    }

    pub(crate) fn signal(&self, name: &str) {
        let sent = std::process::Command::new("kill")
            .args(["-s", name, &self.id().to_string()])
            .status();
        assert!(sent.unwrap().success());
    }

    /// Waits for its end; its exit code and all that it said.
    pub(crate) async fn ended(&mut self) -> (Option<i32>, String) {
        let status = soon("the daemon's end", self.child.wait()).await.unwrap();
        if let Some(reader) = self.reader.take() {
            soon("its last words", reader).await.unwrap();
        }
        (status.code(), self.log())
    }

    pub(crate) async fn terminate(mut self) {
        self.signal("TERM");
        let (code, log) = self.ended().await;
        assert_eq!(code, Some(0), "{log}");
    }
}

/// What it said helps to see why a test failed.
impl Drop for Daemon {
    fn drop(&mut self) {
        if std::thread::panicking() {
            let log = self.log();
            let from = log.len().saturating_sub(8_000);
            println!("{}", log.get(from..).unwrap_or(&log));
        }
    }
}

/// Status and body.
pub(crate) async fn get(address: SocketAddr, path: &str) -> (u16, String) {
    soon(path, async {
        let mut stream = TcpStream::connect(address).await.unwrap();
        let request = format!("GET {path} HTTP/1.1\r\nhost: test\r\nconnection: close\r\n\r\n");
        stream.write_all(request.as_bytes()).await.unwrap();
        let mut answer = String::new();
        stream.read_to_string(&mut answer).await.unwrap();
        let (head, body) = answer.split_once("\r\n\r\n").unwrap();
        let status = head.split(' ').nth(1).unwrap().parse().unwrap();
        (status, body.to_owned())
    })
    .await
}
