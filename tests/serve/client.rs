//! A client that speaks Supabase's protocol, version 2.

use futures_util::{SinkExt, StreamExt};
use serde_json::{Value, json};
use tokio::net::TcpStream;
use tokio_tungstenite::tungstenite::protocol::CloseFrame;
use tokio_tungstenite::tungstenite::{Error, Message};
use tokio_tungstenite::{MaybeTlsStream, WebSocketStream};

use crate::harness::{Daemon, soon};

pub(crate) struct Client {
    pub(crate) socket: WebSocketStream<MaybeTlsStream<TcpStream>>,
}

async fn url(daemon: &Daemon, token: &str) -> String {
    let address = daemon.public().await;
    format!("ws://{address}/realtime/v1/websocket?apikey={token}&vsn=2.0.0")
}

pub(crate) fn join_frame(topic: &str, bindings: &Value, token: Option<&str>) -> String {
    let mut payload = json!({ "config": { "postgres_changes": bindings } });
    if let Some(token) = token {
        payload["access_token"] = token.into();
    }
    json!(["1", "1", topic, "phx_join", payload]).to_string()
}

impl Client {
    pub(crate) async fn connect(daemon: &Daemon, token: &str) -> Self {
        let url = url(daemon, token).await;
        let connected = soon("a socket", tokio_tungstenite::connect_async(url)).await;
        Self {
            socket: connected.expect("a socket").0,
        }
    }

    /// The status and the body of a refused upgrade.
    pub(crate) async fn refused(daemon: &Daemon, token: &str) -> (u16, String) {
        let url = url(daemon, token).await;
        match soon("an answer", tokio_tungstenite::connect_async(url)).await {
            Err(Error::Http(response)) => {
                let body = response.body().clone().unwrap_or_default();
                (response.status().as_u16(), String::from_utf8(body).unwrap())
            }
            other => panic!("not refused: {other:?}"),
        }
    }

    /// A client that follows one table.
    pub(crate) async fn following(daemon: &Daemon, token: &str, table: &str) -> Self {
        let mut client = Self::connect(daemon, token).await;
        client.follow(table).await;
        client
    }

    /// Joins `realtime:TABLE` for every change of a table.
    pub(crate) async fn follow(&mut self, table: &str) {
        let bindings = json!([{ "event": "*", "schema": "public", "table": table }]);
        let system = self.join(&format!("realtime:{table}"), &bindings).await;
        assert_eq!(system["message"], "Subscribed to PostgreSQL", "{system}");
    }

    /// Joins, and returns the system message that says whether it is in force.
    pub(crate) async fn join(&mut self, topic: &str, bindings: &Value) -> Value {
        self.send(join_frame(topic, bindings, None)).await;
        let reply = self.next_but_warnings().await;
        assert_eq!(reply[3], "phx_reply", "{reply}");
        assert_eq!(reply[4]["status"], "ok", "{reply}");
        let system = self.next().await;
        assert_eq!(system[3], "system", "{system}");
        system[4].clone()
    }

    /// Reads up to a resync and returns its reason.
    pub(crate) async fn resync(&mut self) -> String {
        loop {
            let frame = self.next().await;
            if frame[4]["status"] == "resync" {
                return frame[4]["reason"].as_str().unwrap().to_owned();
            }
            assert_ne!(frame[3], "phx_error", "no reason: {frame}");
        }
    }

    pub(crate) async fn refresh(&mut self, topic: &str, token: &str) {
        let frame = json!(["1", "2", topic, "access_token", { "access_token": token }]);
        self.send(frame.to_string()).await;
    }

    pub(crate) async fn send(&mut self, frame: impl Into<String>) {
        let frame = Message::text(frame.into());
        soon("a write", self.socket.send(frame)).await.unwrap();
    }

    /// The next frame that is no warning.
    async fn next_but_warnings(&mut self) -> Value {
        loop {
            let frame = self.next().await;
            if frame[4]["status"] != "warning" {
                return frame;
            }
        }
    }

    /// The next frame.
    pub(crate) async fn next(&mut self) -> Value {
        soon("a frame", async {
            loop {
                match self.socket.next().await.unwrap().unwrap() {
                    Message::Text(text) => return serde_json::from_str(&text).unwrap(),
                    Message::Ping(_) => {}
                    other => panic!("no text: {other:?}"),
                }
            }
        })
        .await
    }

    /// The next frame, which is a change (or a warning before it): `INSERT 1`, its kind and the id of its row.
    pub(crate) async fn change(&mut self) -> String {
        let frame = self.next_but_warnings().await;
        assert_eq!(frame[3], "postgres_changes", "{frame}");
        let data = &frame[4]["data"];
        let row = if data["type"] == "DELETE" {
            &data["old_record"]
        } else {
            &data["record"]
        };
        format!("{} {}", data["type"].as_str().unwrap(), row["id"])
    }

    /// Expects an answer to a heartbeat, and nothing before it.
    pub(crate) async fn heartbeat(&mut self) {
        self.send(r#"[null,"hb","phoenix","heartbeat",{}]"#).await;
        let frame = self.next_but_warnings().await;
        assert_eq!((&frame[1], &frame[2]), (&json!("hb"), &json!("phoenix")));
    }

    /// How the server closed, and the texts that came before.
    pub(crate) async fn closed(&mut self) -> (Option<CloseFrame>, Vec<Value>) {
        let mut texts = Vec::new();
        let frame = soon("a close", async {
            loop {
                match self.socket.next().await {
                    Some(Ok(Message::Close(frame))) => return frame,
                    Some(Ok(Message::Text(text))) => {
                        texts.push(serde_json::from_str(&text).unwrap());
                    }
                    Some(Ok(_)) => {}
                    Some(Err(_)) | None => return None,
                }
            }
        })
        .await;
        (frame, texts)
    }

    pub(crate) async fn close_code(&mut self) -> Option<u16> {
        self.closed().await.0.map(|frame| frame.code.into())
    }
}
