//! The leak watcher: beside every fault it looks at each frame as it comes, and the first row that
//! somebody may never see ends the run.
//!
//! Its rule holds whatever breaks, and needs no database to ask: a row says in its own columns who may
//! ever see it. Two more clients stand for those who may see next to nothing: one who is nobody's, and
//! one whose memberships were all taken away while it was listening.

use std::net::SocketAddr;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use futures_util::{SinkExt, StreamExt};
use serde_json::{Value, json};
use tokio::sync::watch;
use tokio_tungstenite::tungstenite::Message;

use crate::schema::{TABLES, TEAMS, USERS, may_be_shown, person, token};

/// Whoever is nobody's, and whoever was thrown out of every team. Neither is among [`USERS`].
pub(crate) const STRANGER: usize = USERS;
pub(crate) const REVOKED: usize = USERS + 1;

/// What everybody reports to.
#[derive(Debug)]
pub(crate) struct Leaks {
    /// The first one, in words without values.
    found: watch::Sender<Option<String>>,
    /// What is being broken.
    fault: Mutex<String>,
    /// The fence behind which nobody who was thrown out may see anything any more.
    revoked_behind: Mutex<Option<i64>>,
    frames: std::sync::atomic::AtomicU64,
}

impl Leaks {
    pub(crate) fn new() -> Arc<Self> {
        Arc::new(Self {
            found: watch::Sender::new(None),
            fault: Mutex::new("before the first fault".to_owned()),
            revoked_behind: Mutex::default(),
            frames: std::sync::atomic::AtomicU64::new(0),
        })
    }

    pub(crate) fn now(&self, fault: String) {
        *self.fault.lock().unwrap() = fault;
    }

    pub(crate) fn revoked_behind(&self, fence: i64) {
        *self.revoked_behind.lock().unwrap() = Some(fence);
    }

    /// How many frames have been looked at.
    pub(crate) fn frames(&self) -> u64 {
        self.frames.load(std::sync::atomic::Ordering::Relaxed)
    }

    /// Ends with the first leak.
    pub(crate) async fn found(&self) -> String {
        let mut found = self.found.subscribe();
        let found = found.wait_for(Option::is_some).await.unwrap();
        found.clone().expect("a leak")
    }

    /// Looks at everything in a frame that is a row; `written` where a row is shown because it was
    /// written just so.
    pub(crate) fn look(&self, whose: &str, user: usize, frame: &Value) {
        self.frames
            .fetch_add(1, std::sync::atomic::Ordering::Relaxed);
        let payload = &frame[4];
        if frame[3] == "postgres_changes" {
            let data = &payload["data"];
            for part in ["record", "old_record"] {
                let written = part == "record";
                self.row(
                    whose,
                    user,
                    (&data["table"], &data["type"], part),
                    &data[part],
                    written,
                );
            }
        } else if payload["extension"] == "rowcast" && payload["status"] == "snapshot" {
            let table = &frame[2];
            let table = json!(
                table
                    .as_str()
                    .unwrap_or_default()
                    .trim_start_matches("realtime:")
            );
            for row in payload["rows"].as_array().into_iter().flatten() {
                self.row(
                    whose,
                    user,
                    (&table, &json!("SNAPSHOT"), "rows"),
                    row,
                    false,
                );
            }
        }
    }

    fn row(
        &self,
        whose: &str,
        user: usize,
        (table, kind, part): (&Value, &Value, &str),
        row: &Value,
        written: bool,
    ) {
        let Some(columns) = row.as_object().filter(|row| !row.is_empty()) else {
            return;
        };
        let Some(place) = TABLES.iter().position(|name| table == name) else {
            return;
        };
        // Those who own nothing and are in no team must not hear of a key either.
        let nothing = user >= USERS && matches!(TABLES[place], "task" | "plan");
        let told = columns.contains_key("owner");
        if !nothing && (!told || may_be_shown(user, place, row, written)) {
            return;
        }
        let columns: Vec<&String> = columns.keys().collect();
        let fault = self.fault.lock().unwrap().clone();
        let leak = format!(
            "LEAKED during {fault}: to {whose}, {part} of {kind} of {table}, with columns {columns:?}"
        );
        self.found.send_if_modified(|found| {
            let first = found.is_none();
            found.get_or_insert(leak);
            first
        });
    }
}

/// Those whose memberships are there at first, and none afterwards, as SQL.
pub(crate) fn memberships(revoked: bool) -> String {
    let who = person(REVOKED);
    if revoked {
        return format!("delete from member where person = '{who}'");
    }
    let all = (0..TEAMS).map(|team| format!("({team}, '{who}')"));
    let all: Vec<String> = all.collect();
    format!("insert into member values {}", all.join(", "))
}

/// Listens as one of the two, through the network that faults cut, until it is dropped.
pub(crate) async fn listen(leaks: Arc<Leaks>, user: usize, address: SocketAddr) {
    let token = token(user);
    let whose = if user == STRANGER {
        "a stranger"
    } else {
        "somebody thrown out"
    };
    let url = format!("ws://{address}/realtime/v1/websocket?apikey={token}&vsn=2.0.0");
    let (mut since, mut armed, mut reference) = (None, user == STRANGER, 0_u64);
    loop {
        let connecting = tokio_tungstenite::connect_async(&url);
        let connected = tokio::time::timeout(Duration::from_secs(5), connecting).await;
        let Ok(Ok((mut socket, _))) = connected else {
            tokio::time::sleep(Duration::from_millis(100)).await;
            continue;
        };
        let mut heartbeat = tokio::time::interval(Duration::from_secs(5));
        let mut join = true;
        loop {
            if std::mem::take(&mut join) {
                reference += 1;
                let frame = joining(&token, reference, since.as_ref());
                if socket.send(Message::text(frame)).await.is_err() {
                    break;
                }
            }
            let frame = tokio::select! {
                frame = socket.next() => frame,
                _ = heartbeat.tick() => {
                    let beat = r#"[null,"hb","phoenix","heartbeat",{}]"#;
                    if socket.send(Message::text(beat)).await.is_err() {
                        break;
                    }
                    continue;
                }
            };
            let Some(Ok(frame)) = frame else { break };
            let Message::Text(text) = frame else { continue };
            let frame: Value = serde_json::from_str(&text).unwrap();
            if armed {
                leaks.look(whose, user, &frame);
            }
            let payload = &frame[4];
            match frame[3].as_str().unwrap_or_default() {
                "postgres_changes" if payload["data"]["table"] == "fence" => {
                    let behind = *leaks.revoked_behind.lock().unwrap();
                    let number = payload["data"]["record"]["id"].as_i64();
                    armed |= behind.is_some() && number >= behind;
                }
                "system" if payload["status"] == "resync" || payload["status"] == "cursor" => {
                    since = payload["cursor"].as_str().map(str::to_owned);
                }
                "phx_error" | "phx_close" => join = true,
                "phx_reply" if payload["status"] == "error" => {
                    since = None;
                    tokio::time::sleep(Duration::from_millis(100)).await;
                    join = true;
                }
                _ => {}
            }
        }
        tokio::time::sleep(Duration::from_millis(100)).await;
    }
}

fn joining(token: &str, reference: u64, since: Option<&String>) -> String {
    let tables = TABLES.iter().map(|table| {
        json!({"event": "*", "schema": "public", "table": table, "rowcast": {"leave": true}})
    });
    let mut bindings: Vec<Value> = tables.collect();
    bindings.push(json!({"event": "INSERT", "schema": "public", "table": "fence"}));
    let payload = json!({
        "config": {"postgres_changes": bindings}, "access_token": token,
        "rowcast": {"cursor": true, "since": since},
    });
    let reference = reference.to_string();
    json!([
        reference,
        reference,
        "realtime:watched",
        "phx_join",
        payload
    ])
    .to_string()
}
