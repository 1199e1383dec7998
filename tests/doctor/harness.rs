//! A set-up that is well, made as a user makes it, and the commands run on it.

use std::process::{Output, Stdio};
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use futures_util::{SinkExt as _, StreamExt as _};
use rowcast::auth::mint;
use rowcast::pg::throwaway::{Options, Throwaway};
use serde_json::{Value, json};
use tokio::io::{AsyncBufReadExt as _, BufReader};
use tokio::process::{Child, Command};
use tokio::sync::OnceCell;
use tokio::time::{Instant, sleep, timeout};
use tokio_postgres::{Client, NoTls};
use tokio_tungstenite::tungstenite::Message;

pub(crate) const DEADLINE: Duration = Duration::from_secs(60);
pub(crate) const SECRET: &str = "a secret of at least thirty-two bytes, for tests";
pub(crate) const ANN: &str = "00000000-0000-4000-8000-00000000000a";

/// A table that the claims decide, one whose policy calls a SQL function, one whose policy looks into
/// another table, and one with partitions.
const SCHEMA: &str = "
create schema app;
grant usage on schema app to authenticated;
create schema rules;
grant usage on schema rules to authenticated;
create function rules.mine(person uuid) returns boolean language sql stable as 'select person = auth.uid()';
create table app.note (id bigint primary key, person uuid not null, body text);
alter table app.note enable row level security;
grant select on app.note to authenticated;
create policy mine on app.note for select to authenticated using (person = auth.uid());
create table app.judged (id bigint primary key, person uuid not null);
alter table app.judged enable row level security;
grant select on app.judged to authenticated;
create policy mine on app.judged for select to authenticated using (rules.mine(person));
create table app.member (team bigint, person uuid, primary key (team, person));
grant select on app.member to authenticated;
create table app.plan (id bigint primary key, team bigint not null);
alter table app.plan enable row level security;
grant select on app.plan to authenticated;
create policy ours on app.plan for select to authenticated
  using (exists (select from app.member m where m.team = plan.team and m.person = auth.uid()));
insert into app.member values (1, '00000000-0000-4000-8000-00000000000a');
create table app.part (id bigint, place text, person uuid, primary key (id, place)) partition by list (place);
create table app.part_north partition of app.part for values in ('north');
alter table app.part enable row level security;
grant select on app.part to authenticated;
create policy mine on app.part for select to authenticated using (person = auth.uid());
";

/// What is subscribed to, and the values of a row of Ann's.
pub(crate) const TABLES: [&str; 4] = ["note", "judged", "plan", "part"];

pub(crate) fn row_of(table: &str, id: i64) -> String {
    match table {
        "note" => format!("{id}, '{ANN}', 'b'"),
        "judged" => format!("{id}, '{ANN}'"),
        "plan" => format!("{id}, 1"),
        "part" => format!("{id}, 'north', '{ANN}'"),
        other => panic!("{other}"),
    }
}

static CLUSTER: OnceCell<Throwaway> = OnceCell::const_new();
static LAST: AtomicU64 = AtomicU64::new(0);

/// What a server is told that is well.
pub(crate) fn options() -> Options {
    Options {
        settings: vec![
            "max_slot_wal_keep_size = '1GB'".to_owned(),
            "max_replication_slots = 300".to_owned(),
            "max_wal_senders = 30".to_owned(),
            "max_connections = 300".to_owned(),
        ],
        ..Options::default()
    }
}

/// The cluster of this test process; it ends with the process.
pub(crate) async fn cluster() -> &'static Throwaway {
    CLUSTER
        .get_or_init(async || Throwaway::start(options()).await.expect("a cluster"))
        .await
}

/// A database with tables, set up by `rowcast setup`.
pub(crate) struct Place {
    /// A superuser's session.
    pub(crate) admin: Client,
    /// A superuser's address.
    pub(crate) url: String,
    /// The relay's login, its slot's name as well: both belong to the whole cluster.
    pub(crate) relay: String,
    running: Option<Relay>,
}

struct Relay {
    child: Child,
    address: String,
    _folder: tempfile::TempDir,
}

impl Place {
    /// A database without tables, and without a relay.
    pub(crate) async fn empty() -> Self {
        Self::at(cluster().await.fresh_database().await.expect("a database")).await
    }

    pub(crate) async fn at(url: String) -> Self {
        Self {
            admin: connect(&url).await,
            url,
            relay: format!("relay_{}", LAST.fetch_add(1, Ordering::Relaxed)),
            running: None,
        }
    }

    /// Set up, and with a relay that runs.
    pub(crate) async fn good() -> Self {
        let mut place = Self::prepared(Self::empty().await).await;
        place.start().await;
        place
    }

    /// Set up, without a relay.
    pub(crate) async fn prepared(place: Self) -> Self {
        place.run(include_str!("../../sql/auth.sql")).await;
        place.run(SCHEMA).await;
        let mut arguments = vec![
            "setup",
            "--lookups",
            "--role",
            &place.relay,
            "--slot",
            &place.relay,
        ];
        let tables: Vec<String> = TABLES.iter().map(|table| format!("app.{table}")).collect();
        for table in &tables {
            arguments.extend(["--table", table]);
        }
        let output = rowcast(&arguments, &[("DATABASE_URL", &place.url)]).await;
        assert_eq!(output.status.code(), Some(0), "{output:?}");
        place
    }

    /// The relay's address of the database.
    pub(crate) fn relay_url(&self) -> String {
        self.url
            .replacen("postgres@", &format!("{}@", self.relay), 1)
    }

    /// Runs what doctor said to run.
    pub(crate) async fn mend(&self, found: &Found) {
        for statement in found.sql() {
            self.run(&statement).await;
        }
    }

    pub(crate) async fn run(&self, sql: &str) {
        self.admin.batch_execute(sql).await.unwrap_or_else(|error| {
            let said = error
                .as_db_error()
                .map(tokio_postgres::error::DbError::message);
            panic!("{sql}: {}", said.unwrap_or("disconnected"))
        });
    }

    /// The only value of a query, as text.
    pub(crate) async fn text(&self, sql: &str) -> String {
        let row = self.admin.query_one(sql, &[]).await.expect(sql);
        row.get::<_, Option<String>>(0).unwrap_or_default()
    }

    /// Starts the relay.
    pub(crate) async fn start(&mut self) {
        let folder = tempfile::tempdir().unwrap();
        let mut child = Command::new(env!("CARGO_BIN_EXE_rowcast"))
            .arg("serve")
            .env_clear()
            .env("DATABASE_URL", self.relay_url())
            .env("JWT_SECRET", SECRET)
            .env("ROWCAST_SLOT", &self.relay)
            .env("ROWCAST_LISTEN", "127.0.0.1:0")
            .env("ROWCAST_ADMIN_LISTEN", "127.0.0.1:0")
            .current_dir(folder.path())
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(Stdio::piped())
            .kill_on_drop(true)
            .spawn()
            .unwrap();
        let mut lines = BufReader::new(child.stderr.take().unwrap()).lines();
        let mut log = String::new();
        while let Some(line) = timeout(DEADLINE, lines.next_line()).await.unwrap().unwrap() {
            let entry: Value = serde_json::from_str(&line).unwrap_or_default();
            log.push_str(&line);
            log.push('\n');
            if entry["message"] == "ready" {
                let address = entry["public"].as_str().unwrap().to_owned();
                // What it says later must not fill the pipe.
                tokio::spawn(async move { while let Ok(Some(_)) = lines.next_line().await {} });
                self.running = Some(Relay {
                    child,
                    address,
                    _folder: folder,
                });
                return;
            }
        }
        panic!("the relay does not come up:\n{log}");
    }

    pub(crate) async fn stop(&mut self) {
        let mut relay = self.running.take().expect("it runs");
        signal(&relay.child, "TERM");
        timeout(DEADLINE, relay.child.wait())
            .await
            .unwrap()
            .unwrap();
    }

    /// Where the relay is.
    pub(crate) fn address(&self) -> &str {
        &self.running.as_ref().expect("it runs").address
    }

    /// The environment of a command under the relay's settings.
    pub(crate) fn environment(&self) -> Vec<(String, String)> {
        vec![
            ("DATABASE_URL".to_owned(), self.relay_url()),
            ("JWT_SECRET".to_owned(), SECRET.to_owned()),
            ("ROWCAST_SLOT".to_owned(), self.relay.clone()),
        ]
    }

    /// What the doctor finds.
    pub(crate) async fn doctor(&self, arguments: &[&str]) -> Found {
        self.doctor_with(arguments, &[]).await
    }

    /// The same, with more in its environment, or with something else.
    pub(crate) async fn doctor_with(&self, arguments: &[&str], more: &[(&str, &str)]) -> Found {
        let own = self.environment();
        let mut environment: Vec<(&str, &str)> = own
            .iter()
            .map(|(name, value)| (name.as_str(), value.as_str()))
            .filter(|(name, _)| !more.iter().any(|(other, _)| other == name))
            .collect();
        environment.extend(more);
        doctor(arguments, &environment).await
    }

    /// Whether what is written to a table reaches Ann through the relay, the DELETE included.
    pub(crate) async fn delivers(&self, table: &str) {
        self.delivers_to(table, "").await;
    }

    /// The same, where Ann filters.
    pub(crate) async fn delivers_to(&self, table: &str, filter: &str) {
        let token =
            token(&json!({ "role": "authenticated", "sub": ANN, "exp": 4_102_444_800_u64 }));
        let url = format!(
            "ws://{}/realtime/v1/websocket?apikey={token}&vsn=2.0.0",
            self.address()
        );
        let deadline = Instant::now() + DEADLINE;
        // The relay comes to know of what was mended within a moment, and may end channels for it.
        'again: loop {
            assert!(Instant::now() < deadline, "nothing of app.{table} arrives");
            sleep(Duration::from_millis(100)).await;
            let Ok((mut socket, _)) = tokio_tungstenite::connect_async(&url).await else {
                continue;
            };
            let mut binding = json!({ "event": "*", "schema": "app", "table": table });
            if !filter.is_empty() {
                binding["filter"] = filter.into();
            }
            let payload = json!({ "config": { "postgres_changes": [binding] } });
            let join = json!(["1", "1", "realtime:all", "phx_join", payload]);
            socket.send(Message::text(join.to_string())).await.unwrap();
            let mut seen: Vec<String> = Vec::new();
            let (mut joined, patience) = (false, Instant::now() + Duration::from_secs(15));
            while seen.len() < 2 {
                let Ok(Some(Ok(message))) = tokio::time::timeout_at(patience, socket.next()).await
                else {
                    continue 'again;
                };
                let Message::Text(text) = message else {
                    continue;
                };
                let frame: Value = serde_json::from_str(&text).unwrap();
                let payload = &frame[4];
                match frame[3].as_str().unwrap() {
                    "system" if payload["extension"] == "postgres_changes" => {
                        if payload["status"] != "ok" {
                            continue 'again;
                        }
                        if !std::mem::replace(&mut joined, true) {
                            let row = row_of(table, 1);
                            self.run(&format!(
                                "delete from app.{table}; insert into app.{table} values ({row})"
                            ))
                            .await;
                            self.run(&format!("delete from app.{table} where id = 1"))
                                .await;
                        }
                    }
                    "postgres_changes" => {
                        seen.push(payload["data"]["type"].as_str().unwrap().to_owned());
                    }
                    "phx_error" | "phx_close" => continue 'again,
                    _ => {}
                }
            }
            if seen == ["INSERT", "DELETE"] {
                return;
            }
        }
    }
}

/// What a run of the doctor said.
#[derive(Debug)]
pub(crate) struct Found {
    pub(crate) code: i32,
    pub(crate) report: Value,
}

impl Found {
    /// The codes of all findings, each once, in order; what is asked of PostgreSQL is no fault.
    pub(crate) fn codes(&self) -> Vec<&str> {
        let findings = self.report["findings"].as_array().expect("findings");
        let mut codes: Vec<&str> = findings
            .iter()
            .map(|finding| finding["code"].as_str().unwrap())
            .filter(|code| *code != "policy_asked")
            .collect();
        codes.sort_unstable();
        codes.dedup();
        codes
    }

    #[track_caller]
    pub(crate) fn is_well(&self) {
        assert_eq!(self.codes(), Vec::<&str>::new(), "{:#}", self.report);
        assert_eq!(self.code, 0, "{:#}", self.report);
    }

    #[track_caller]
    pub(crate) fn is(&self, codes: &[&str]) {
        assert_eq!(self.codes(), codes, "{:#}", self.report);
        let errors = self.report["errors"].as_u64().unwrap();
        let warnings = self.report["warnings"].as_u64().unwrap();
        let expected = if errors > 0 {
            2
        } else {
            i32::from(warnings > 0)
        };
        assert_eq!(self.code, expected, "{:#}", self.report);
    }

    /// What the first finding of a code says.
    pub(crate) fn text(&self, code: &str) -> &str {
        let findings = self.report["findings"].as_array().unwrap();
        let found = findings.iter().find(|finding| finding["code"] == code);
        found.unwrap()["text"].as_str().unwrap()
    }

    /// All statements that mend.
    pub(crate) fn sql(&self) -> Vec<String> {
        let findings = self.report["findings"].as_array().expect("findings");
        let mut all: Vec<String> = Vec::new();
        for statement in findings
            .iter()
            .flat_map(|finding| finding["sql"].as_array().unwrap())
        {
            let statement = statement.as_str().unwrap().to_owned();
            assert!(
                !statement.contains('\u{2026}') || statement.starts_with("--"),
                "{statement}"
            );
            if !statement.starts_with("--") && !all.contains(&statement) {
                all.push(statement);
            }
        }
        all
    }
}

/// Runs `rowcast doctor --json` with this environment and nothing else.
pub(crate) async fn doctor(arguments: &[&str], environment: &[(&str, &str)]) -> Found {
    let mut all = vec!["doctor", "--json"];
    all.extend(arguments);
    let output = rowcast(&all, environment).await;
    let out = String::from_utf8(output.stdout).unwrap();
    let error = String::from_utf8_lossy(&output.stderr);
    let report = serde_json::from_str(&out).unwrap_or_else(|_| panic!("{out}\n{error}"));
    Found {
        code: output.status.code().unwrap(),
        report,
    }
}

/// Runs the command with this environment and nothing else.
pub(crate) async fn rowcast(arguments: &[&str], environment: &[(&str, &str)]) -> Output {
    let output = Command::new(env!("CARGO_BIN_EXE_rowcast"))
        .args(arguments)
        .env_clear()
        .envs(environment.iter().copied())
        .current_dir(std::env::temp_dir())
        .stdin(Stdio::null())
        .kill_on_drop(true)
        .output();
    timeout(DEADLINE, output).await.expect("it ends").unwrap()
}

pub(crate) fn token(claims: &Value) -> String {
    mint(SECRET, claims).unwrap()
}

pub(crate) fn signal(child: &Child, name: &str) {
    let sent = std::process::Command::new("kill")
        .args(["-s", name, &child.id().unwrap().to_string()])
        .status();
    assert!(sent.unwrap().success());
}

pub(crate) async fn connect(url: &str) -> Client {
    let (client, connection) = tokio_postgres::connect(url, NoTls)
        .await
        .expect("a connection");
    tokio::spawn(async move {
        // The test fails where the connection is used.
        let _ended = connection.await;
    });
    client
}
