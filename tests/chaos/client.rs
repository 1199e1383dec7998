//! A client that does as supabase-js does and as the README advises, and never gives up.

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use futures_util::{SinkExt, StreamExt};
use rand::rngs::StdRng;
use rand::{Rng, SeedableRng};
use serde_json::{Value, json};
use tokio::net::TcpStream;
use tokio::sync::watch;
use tokio::time::Instant;
use tokio_tungstenite::tungstenite::Message;
use tokio_tungstenite::{MaybeTlsStream, WebSocketStream};

use crate::leak::Leaks;
use crate::model::Model;
use crate::schema::{FILTERS, TABLES, connected, token, visible};

type Socket = WebSocketStream<MaybeTlsStream<TcpStream>>;

/// How it sees to it that nothing is missing.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Kind {
    /// It reads the tables whenever it has subscribed.
    Plain,
    /// It says where it was by the cursors that it is told, and reads after a `resync`.
    Told,
    /// The same with all tables on one channel.
    Together,
    /// It says where it was by the cursor of each binding's last change: nothing comes twice.
    Exact,
    /// It has the rows sent before the changes.
    Snapshot,
}

pub(crate) const KINDS: [Kind; 5] = [
    Kind::Plain,
    Kind::Told,
    Kind::Together,
    Kind::Exact,
    Kind::Snapshot,
];

/// What the conductor holds of a client.
pub(crate) struct Client {
    pub(crate) name: String,
    pub(crate) user: usize,
    pub(crate) filter: usize,
    pub(crate) model: Mutex<Model>,
    /// For each channel the newest number of the fence, once it is subscribed.
    fences: Mutex<Vec<Option<i64>>>,
    /// The history that the newest fence is of.
    history: Mutex<String>,
    pub(crate) kind: Kind,
    leaks: Arc<Leaks>,
}

impl Client {
    pub(crate) fn new(
        number: usize,
        kind: Kind,
        (user, filter): (usize, usize),
        leaks: &Arc<Leaks>,
    ) -> Arc<Self> {
        let name = format!(
            "client {number} ({kind:?}, user {user}, {:?})",
            FILTERS[filter].0
        );
        let channels = if kind == Kind::Together {
            1
        } else {
            TABLES.len()
        };
        Arc::new(Self {
            model: Mutex::new(Model::new(name.clone(), user)),
            name,
            user,
            filter,
            fences: Mutex::new(vec![None; channels]),
            history: Mutex::default(),
            kind,
            leaks: Arc::clone(leaks),
        })
    }

    /// Whether all its channels have passed this fence, and its rows are what it was told.
    pub(crate) fn has_passed(&self, fence: i64) -> bool {
        let passed = |heard: &Option<i64>| heard.is_some_and(|heard| heard >= fence);
        self.fences.lock().unwrap().iter().all(passed) && self.model.lock().unwrap().is_settled()
    }

    /// The history of the log that it follows.
    pub(crate) fn history(&self) -> String {
        self.history.lock().unwrap().clone()
    }

    pub(crate) fn state(&self) -> String {
        let fences = self.fences.lock().unwrap();
        let settled = self.model.lock().unwrap().is_settled();
        format!("{}: fences {fences:?}, settled {settled}", self.name)
    }
}

/// A channel as the client knows it.
struct Channel {
    topic: String,
    tables: Vec<usize>,
    since: Option<String>,
    /// Of the bindings, where each has its own.
    own: BTreeMap<usize, String>,
    reference: u64,
    /// Whether the join was answered.
    joined: bool,
    /// When it is to be joined.
    at: Option<Instant>,
    /// Whether the last join said where it was, and so may be told again what lies behind that.
    repeats: bool,
}

struct Run {
    client: Arc<Client>,
    url: watch::Receiver<String>,
    channels: Vec<Channel>,
    reference: u64,
    random: StdRng,
    token: String,
}

/// Runs until it is dropped.
pub(crate) async fn run(
    client: Arc<Client>,
    address: SocketAddr,
    url: watch::Receiver<String>,
    seed: u64,
) {
    let all = 0..TABLES.len();
    let parts: Vec<Vec<usize>> = match client.kind {
        Kind::Together => vec![all.collect()],
        _ => all.map(|table| vec![table]).collect(),
    };
    let channels = parts.into_iter().map(|tables| Channel {
        topic: format!("realtime:{}", TABLES[tables[0]]),
        tables,
        since: None,
        own: BTreeMap::new(),
        reference: 0,
        joined: false,
        at: None,
        repeats: false,
    });
    let mut run = Run {
        channels: channels.collect(),
        url,
        reference: 0,
        random: StdRng::seed_from_u64(seed),
        token: token(client.user),
        client,
    };
    let url = format!(
        "ws://{address}/realtime/v1/websocket?apikey={}&vsn=2.0.0",
        run.token
    );
    loop {
        let connecting = tokio_tungstenite::connect_async(&url);
        let connected = tokio::time::timeout(Duration::from_secs(5), connecting).await;
        if let Ok(Ok((socket, _))) = connected {
            run.client.model.lock().unwrap().counts.sockets += 1;
            run.socket(socket).await;
        }
        for fence in run.client.fences.lock().unwrap().iter_mut() {
            *fence = None;
        }
        let wait = run.random.random_range(20..200);
        tokio::time::sleep(Duration::from_millis(wait)).await;
    }
}

impl Run {
    /// Until the socket ends.
    async fn socket(&mut self, mut socket: Socket) {
        for channel in &mut self.channels {
            channel.at = Some(Instant::now());
        }
        let mut heartbeat = tokio::time::interval(Duration::from_secs(5));
        // supabase-js does the same: who does not answer is gone.
        let mut unanswered = 0;
        loop {
            let due = self.channels.iter().filter_map(|channel| channel.at).min();
            let joins = async {
                match due {
                    Some(at) => tokio::time::sleep_until(at).await,
                    None => std::future::pending().await,
                }
            };
            tokio::select! {
                frame = socket.next() => {
                    let Some(Ok(frame)) = frame else { return };
                    let Message::Text(text) = frame else { continue };
                    let frame: Value = serde_json::from_str(&text).unwrap();
                    unanswered = 0;
                    self.frame(&frame).await;
                }
                () = joins => {
                    if self.join_due(&mut socket).await.is_err() {
                        return;
                    }
                }
                _ = heartbeat.tick() => {
                    unanswered += 1;
                    let beat = r#"[null,"hb","phoenix","heartbeat",{}]"#;
                    if unanswered > 2 || socket.send(Message::text(beat)).await.is_err() {
                        return;
                    }
                }
            }
        }
    }

    async fn join_due(
        &mut self,
        socket: &mut Socket,
    ) -> Result<(), tokio_tungstenite::tungstenite::Error> {
        let now = Instant::now();
        for index in 0..self.channels.len() {
            if self.channels[index].at.is_none_or(|at| at > now) {
                continue;
            }
            self.reference += 1;
            let frame = self.join_frame(index);
            let channel = &mut self.channels[index];
            channel.at = None;
            channel.joined = false;
            socket.send(Message::text(frame)).await?;
        }
        Ok(())
    }

    fn join_frame(&mut self, index: usize) -> String {
        let kind = self.client.kind;
        let channel = &mut self.channels[index];
        channel.reference = self.reference;
        let mut model = self.client.model.lock().unwrap();
        let (topic, since) = (&channel.topic, (&channel.since, &channel.own));
        model.note(&format!("{topic} joins as {} {since:?}", channel.reference));
        if kind == Kind::Snapshot && channel.since.is_some() {
            model.comes_back(channel.tables[0]);
        }
        let filter = FILTERS[self.client.filter].0;
        let mut bindings: Vec<Value> = channel
            .tables
            .iter()
            .map(|table| {
                let mut binding = json!({
                    "event": "*", "schema": "public", "table": TABLES[*table],
                });
                if !filter.is_empty() {
                    binding["filter"] = filter.into();
                }
                match kind {
                    Kind::Exact => binding["rowcast"] = json!({ "since": channel.own.get(table) }),
                    Kind::Snapshot => {
                        binding["rowcast"] = json!({ "snapshot": { "limit": 10_000 } });
                    }
                    Kind::Plain | Kind::Told | Kind::Together => {}
                }
                binding
            })
            .collect();
        bindings.push(json!({ "event": "INSERT", "schema": "public", "table": "fence" }));
        let mut payload = json!({
            "config": { "postgres_changes": bindings }, "access_token": self.token,
        });
        channel.repeats = false;
        match kind {
            Kind::Plain | Kind::Exact => {}
            Kind::Told | Kind::Together | Kind::Snapshot => {
                channel.repeats = channel.since.is_some();
                payload["rowcast"] = json!({ "cursor": true, "since": channel.since });
            }
        }
        let reference = self.reference.to_string();
        json!([reference, reference, channel.topic, "phx_join", payload]).to_string()
    }

    async fn frame(&mut self, frame: &Value) {
        let client = &self.client;
        client.leaks.look(&client.name, client.user, frame);
        let of = frame[0]
            .as_str()
            .and_then(|reference| reference.parse().ok());
        let found = self.channels.iter().position(|channel| {
            frame[2] == channel.topic.as_str()
                && channel.at.is_none()
                && of.map_or(channel.joined, |of: u64| of == channel.reference)
        });
        {
            let mut heard = frame.clone();
            // The rest would be too long to read.
            heard[4]["data"]["columns"].take();
            let old = if found.is_none() { "of before: " } else { "" };
            self.client
                .model
                .lock()
                .unwrap()
                .note(&format!("{old}{heard}"));
        }
        // What comes for an older join is nobody's.
        let Some(index) = found else { return };
        let payload = &frame[4];
        match frame[3].as_str().unwrap() {
            "phx_reply" if payload["status"] == "ok" => self.channels[index].joined = true,
            "phx_reply" | "phx_error" => self.broken(index),
            "phx_close" => {
                let closed = format!("{}: closed for good: {frame}", self.client.name);
                self.client.model.lock().unwrap().wrong.push(closed);
            }
            "system" => self.system(index, payload).await,
            "postgres_changes" => self.change(index, payload),
            other => panic!("{other}: {frame}"),
        }
    }

    /// The channel is to be joined again.
    fn broken(&mut self, index: usize) {
        let wait = self.random.random_range(20..150);
        self.channels[index].at = Some(Instant::now() + Duration::from_millis(wait));
        self.channels[index].joined = false;
        self.client.fences.lock().unwrap()[index] = None;
    }

    async fn system(&mut self, index: usize, payload: &Value) {
        let text = |name: &str| payload[name].as_str().unwrap_or_default().to_owned();
        let cursor = payload["cursor"].as_str().map(str::to_owned);
        let kind = self.client.kind;
        match (text("extension").as_str(), text("status").as_str()) {
            ("postgres_changes", "ok") => {
                // Without a cursor it was told of nothing that happened before.
                let anew = self.channels[index].since.is_none() && kind != Kind::Exact;
                let without = self.channels[index].own.is_empty() && kind == Kind::Exact;
                if kind == Kind::Plain || kind != Kind::Snapshot && (anew || without) {
                    self.reload(index).await;
                }
            }
            ("rowcast", "resync") => {
                let reason = text("reason");
                self.client.model.lock().unwrap().told(reason);
                match kind {
                    Kind::Plain => {}
                    Kind::Told | Kind::Together | Kind::Exact => {
                        let channel = &mut self.channels[index];
                        if let Some(cursor) = &cursor {
                            let mut model = self.client.model.lock().unwrap();
                            for table in &channel.tables {
                                model.goes_on(*table, cursor);
                            }
                        }
                        channel.since.clone_from(&cursor);
                        channel.own = cursor
                            .iter()
                            .flat_map(|cursor| {
                                channel.tables.iter().map(|table| (*table, cursor.clone()))
                            })
                            .collect();
                        self.reload(index).await;
                    }
                    Kind::Snapshot => self.channels[index].since = None,
                }
            }
            ("rowcast", "cursor") => {
                if matches!(kind, Kind::Told | Kind::Together | Kind::Snapshot) {
                    self.channels[index].since = cursor;
                }
            }
            ("rowcast", "snapshot") => self.page(index, payload),
            // What cannot be subscribed is told again once it can.
            _ => {}
        }
    }

    fn page(&mut self, index: usize, payload: &Value) {
        let channel = &mut self.channels[index];
        let table = channel.tables[0];
        let mut model = self.client.model.lock().unwrap();
        if payload["page"] == 0 {
            channel.since = None;
            channel.repeats = false;
            model.begins(table);
        }
        assert_eq!(payload["more"], false, "{payload}");
        assert_eq!(payload["errors"], Value::Null, "{payload}");
        let rows = payload["rows"].as_array().unwrap().clone();
        model.page(table, rows, payload["last"] == true);
    }

    fn change(&mut self, index: usize, payload: &Value) {
        let data = &payload["data"];
        let name = data["table"].as_str().unwrap();
        if name == "fence" {
            let number = data["record"]["id"].as_i64();
            let history = data["cursor"].as_str().unwrap()[..16].to_owned();
            *self.client.history.lock().unwrap() = history;
            self.client.fences.lock().unwrap()[index] = number;
            return;
        }
        let table = TABLES.iter().position(|table| *table == name).unwrap();
        let channel = &mut self.channels[index];
        let mut model = self.client.model.lock().unwrap();
        model.change(table, data, channel.repeats);
        if self.client.kind == Kind::Exact {
            channel
                .own
                .insert(table, data["cursor"].as_str().unwrap().to_owned());
        }
    }

    /// Reads the tables of a channel; what comes meanwhile is looked at afterwards.
    async fn reload(&mut self, index: usize) {
        let mut waiting = self.channels[index].tables.clone();
        let (user, filter) = (self.client.user, self.client.filter);
        while let Some(table) = waiting.last().copied() {
            let mut sql = connected(&self.url).await;
            let reads = visible(&mut sql, (user, table, filter));
            let read = tokio::time::timeout(Duration::from_secs(10), reads).await;
            if let Ok(Ok(rows)) = read {
                self.client.model.lock().unwrap().has_read(table, rows);
                waiting.pop();
            }
        }
    }
}
