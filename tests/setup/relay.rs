//! The relay under the login that setup makes: with its rights it delivers, and without one of them
//! it does not.

use std::process::Stdio;
use std::time::Duration;

use futures_util::{SinkExt as _, StreamExt as _};
use rowcast::auth::mint;
use serde_json::{Value, json};
use tokio::io::{AsyncBufReadExt as _, BufReader};
use tokio::process::{Child, Command};
use tokio::time::timeout;
use tokio_tungstenite::tungstenite::Message;

use crate::harness::Place;

const DEADLINE: Duration = Duration::from_secs(60);
const SECRET: &str = "a secret of at least thirty-two bytes, for tests";
const ANN: &str = "00000000-0000-4000-8000-00000000000a";

/// A table that the claims decide, one whose policy calls a SQL function, and one whose policy asks.
const TABLES: &str = "
create schema app;
grant usage on schema app to authenticated;
create schema rules;
create function rules.mine(person uuid) returns boolean language sql stable as 'select person = auth.uid()';
create table app.note (id bigint primary key, person uuid not null);
alter table app.note enable row level security;
grant select on app.note to authenticated;
create policy mine on app.note for select to authenticated using (person = auth.uid());
create table app.judged (id bigint primary key, person uuid not null);
alter table app.judged enable row level security;
grant select on app.judged to authenticated;
create policy mine on app.judged for select to authenticated using (rules.mine(person));
create table app.member (team bigint, person uuid);
grant select on app.member to authenticated;
create table app.plan (id bigint primary key, team bigint not null);
alter table app.plan enable row level security;
grant select on app.plan to authenticated;
create policy ours on app.plan for select to authenticated
  using (exists (select from app.member m where m.team = plan.team and m.person = auth.uid()));
insert into app.member values (1, '00000000-0000-4000-8000-00000000000a');
";

struct Relay {
    child: Child,
    address: String,
    _folder: tempfile::TempDir,
}

/// Starts the relay; the exit code and the last line of its log where it does not come up.
async fn relay(place: &Place) -> Result<Relay, (i32, String)> {
    let folder = tempfile::tempdir().unwrap();
    let mut child = Command::new(env!("CARGO_BIN_EXE_rowcast"))
        .arg("serve")
        .env_clear()
        .env("DATABASE_URL", place.url("rowcast"))
        .env("JWT_SECRET", SECRET)
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
    let mut last = String::new();
    while let Some(line) = timeout(DEADLINE, lines.next_line()).await.unwrap().unwrap() {
        let entry: Value = serde_json::from_str(&line).unwrap_or_default();
        if entry["message"] == "ready" {
            let address = entry["public"].as_str().unwrap().to_owned();
            // What it says later must not fill the pipe.
            tokio::spawn(async move { while let Ok(Some(_)) = lines.next_line().await {} });
            return Ok(Relay {
                child,
                address,
                _folder: folder,
            });
        }
        last = line;
    }
    let status = timeout(DEADLINE, child.wait()).await.unwrap().unwrap();
    Err((status.code().unwrap(), last))
}

impl Relay {
    /// Joins for a table of `app` as Ann; what the system message says, and the socket.
    async fn follow(
        &self,
        table: &str,
    ) -> (
        String,
        tokio_tungstenite::WebSocketStream<
            tokio_tungstenite::MaybeTlsStream<tokio::net::TcpStream>,
        >,
    ) {
        let token = mint(
            SECRET,
            &json!({ "role": "authenticated", "sub": ANN, "exp": 4_102_444_800_u64 }),
        )
        .unwrap();
        let url = format!(
            "ws://{}/realtime/v1/websocket?apikey={token}&vsn=2.0.0",
            self.address
        );
        let (mut socket, _) = tokio_tungstenite::connect_async(url).await.unwrap();
        let bindings = json!([{ "event": "*", "schema": "app", "table": table }]);
        let join = json!(["1", "1", format!("realtime:{table}"), "phx_join", { "config": { "postgres_changes": bindings } }]);
        socket.send(Message::text(join.to_string())).await.unwrap();
        loop {
            let frame = next(&mut socket).await;
            if frame[3] == "system" && frame[4]["extension"] == "postgres_changes" {
                return (frame[4]["message"].as_str().unwrap().to_owned(), socket);
            }
        }
    }

    /// Whether what is written to a table reaches Ann, the DELETE included.
    async fn delivers(&self, place: &Place, table: &str, columns: &str) {
        let (said, mut socket) = self.follow(table).await;
        assert_eq!(said, "Subscribed to PostgreSQL", "{table}");
        place
            .run(&format!(
                "insert into app.{table} values ({columns}); delete from app.{table}"
            ))
            .await;
        let mut seen = Vec::new();
        while seen.len() < 2 {
            let frame = next(&mut socket).await;
            if frame[3] == "postgres_changes" {
                seen.push(frame[4]["data"]["type"].as_str().unwrap().to_owned());
            }
        }
        assert_eq!(seen, ["INSERT", "DELETE"], "{table}");
    }

    async fn stop(mut self) {
        let sent = std::process::Command::new("kill")
            .args(["-s", "TERM", &self.child.id().unwrap().to_string()])
            .status();
        assert!(sent.unwrap().success());
        timeout(DEADLINE, self.child.wait()).await.unwrap().unwrap();
    }
}

async fn next<S>(socket: &mut tokio_tungstenite::WebSocketStream<S>) -> Value
where
    S: tokio::io::AsyncRead + tokio::io::AsyncWrite + Unpin,
{
    loop {
        match timeout(DEADLINE, socket.next())
            .await
            .expect("a frame")
            .unwrap()
            .unwrap()
        {
            Message::Text(text) => return serde_json::from_str(&text).unwrap(),
            _ => continue,
        }
    }
}

#[tokio::test]
async fn the_login_that_setup_makes_has_what_the_relay_needs_and_no_more() {
    let place = Place::new("createrole").await;
    place.admin("revoke all on database app from public").await;
    place.setup("postgres", &["--only", "auth"]).await.ok();
    place.run(TABLES).await;
    place
        .setup(
            "postgres",
            &[
                "--table",
                "app.note",
                "--table",
                "app.plan",
                "--table",
                "app.judged",
            ],
        )
        .await
        .ok();

    let running = relay(&place)
        .await
        .unwrap_or_else(|(code, log)| panic!("{code}: {log}"));
    let ann = format!("1, '{ANN}'");
    running.delivers(&place, "note", &ann).await;
    running.delivers(&place, "judged", &ann).await;
    running.delivers(&place, "plan", "1, 1").await;
    // The one that reads is not taken away under its feet.
    let refused = place.setup("postgres", &["--remove"]).await;
    assert_eq!(refused.code, 69, "{}", refused.out);
    assert!(refused.error.contains("stop it first"), "{}", refused.error);
    let printed = place.setup("postgres", &["--remove", "--print"]).await.ok();
    assert!(!printed.contains("drop"), "{printed}");
    running.stop().await;

    // None of the login's rights on rows is its own.
    let own = "select count(*)::text from pg_class c, aclexplode(c.relacl) a where a.grantee = 'rowcast'::regrole";
    assert_eq!(place.text(own).await, "0");

    place
        .admin("revoke connect on database app from rowcast")
        .await;
    let (code, log) = relay(&place).await.err().expect("no connection");
    assert!(
        code == 69 && log.contains("permission denied for database"),
        "{code}: {log}"
    );
    place
        .admin("grant connect on database app to rowcast")
        .await;

    place.admin("alter role rowcast noreplication").await;
    let (code, log) = relay(&place).await.err().expect("no stream");
    assert!(
        code == 69 && log.contains("may not replicate"),
        "{code}: {log}"
    );
    place.admin("alter role rowcast replication").await;

    place.admin("revoke authenticated from rowcast").await;
    let running = relay(&place)
        .await
        .unwrap_or_else(|(code, log)| panic!("{code}: {log}"));
    // Compiled policies need nobody to ask.
    running.delivers(&place, "note", &ann).await;
    let (said, _socket) = running.follow("plan").await;
    assert!(said.contains("grant authenticated to it"), "{said}");
    running.stop().await;

    // With that grant back setup has nothing to do, and every right that is gone it gives again.
    place
        .admin("revoke all on schema rules from rowcast; revoke all on database app from rowcast")
        .await;
    let out = place
        .setup("postgres", &["--only", "role", "--table", "app.judged"])
        .await
        .ok();
    for line in [
        "grant authenticated to rowcast",
        "grant usage on schema rules to rowcast;",
        "grant connect on database app to rowcast;",
        "grant temporary on database app to rowcast;",
    ] {
        assert!(out.contains(line), "{line}\n{out}");
    }
    place
        .run("drop schema app cascade; drop schema rules cascade")
        .await;
    place.setup("postgres", &["--remove"]).await.ok();
    assert_eq!(
        place
            .text("select count(*)::text from pg_replication_slots")
            .await,
        "0"
    );
}
