//! A subscriber with a real WebSocket.

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use futures_util::{SinkExt, StreamExt};
use rowcast::auth::{self, Authenticator};
use rowcast::router::Resync;
use rowcast::transport::{self, Front, Settings};
use serde_json::{Value, json};
use tokio::net::{TcpListener, TcpStream};
use tokio_tungstenite::tungstenite::Message;
use tokio_tungstenite::{MaybeTlsStream, WebSocketStream};
use tokio_util::sync::CancellationToken;

use crate::harness::{DEADLINE, Relay, Seen};
use crate::subscribers::{FILTERS, Who, Wish};

const SECRET: &str = "a secret of at least thirty-two bytes, for tests";
const TOPIC: &str = "realtime:all";

/// Puts a front before a relay.
pub(crate) async fn serve(relay: &Relay) -> (SocketAddr, CancellationToken) {
    let keys = auth::Settings {
        jwt_secret: Some(SECRET.to_owned()),
        ..auth::Settings::default()
    };
    let front = Front::new(
        relay.core.router.clone(),
        Arc::new(Authenticator::new(keys).unwrap()),
        Arc::clone(&relay.core.metrics),
        // Each is read where its turn comes, and its client says nothing meanwhile.
        Settings {
            idle_after: Duration::from_hours(1),
            ..Settings::default()
        },
    );
    let listener = TcpListener::bind(("127.0.0.1", 0)).await.unwrap();
    let address = listener.local_addr().unwrap();
    let stop = CancellationToken::new();
    let routes = transport::routes(&front);
    tokio::spawn(transport::serve(listener, routes, front, stop.clone()));
    (address, stop)
}

pub(crate) struct Socket {
    stream: WebSocketStream<MaybeTlsStream<TcpStream>>,
}

impl Socket {
    pub(crate) async fn join(address: SocketAddr, who: &Who, wish: &Wish) -> Result<Self, String> {
        let now = SystemTime::now()
            .duration_since(UNIX_EPOCH)
            .unwrap()
            .as_secs();
        let mut claims = who.claims.clone();
        claims["exp"] = (now + 3600).into();
        let token = auth::mint(SECRET, &claims).unwrap();
        let url = format!("ws://{address}/realtime/v1/websocket?apikey={token}&vsn=2.0.0");
        let connected = tokio_tungstenite::connect_async(&url).await;
        let (stream, _) = connected.map_err(|error| error.to_string())?;
        let mut socket = Self { stream };
        let mut binding = json!({"event": wish.event, "schema": "public", "table": wish.table});
        if !FILTERS[wish.filter].text.is_empty() {
            binding["filter"] = FILTERS[wish.filter].text.into();
        }
        if wish.leave {
            binding["rowcast"] = json!({"leave": true});
        }
        let fence = json!({"event": "INSERT", "schema": "public", "table": "fence"});
        let payload = json!({
            "config": {"postgres_changes": [binding, fence]}, "access_token": token,
        });
        let join = json!(["1", "1", TOPIC, "phx_join", payload]).to_string();
        socket.stream.send(Message::text(join)).await.unwrap();
        loop {
            let frame = socket.frame().await;
            let payload = &frame[4];
            match frame[3].as_str().unwrap() {
                "phx_reply" if payload["status"] == "ok" => {}
                "system" if payload["extension"] == "postgres_changes" => {
                    if payload["status"] == "ok" {
                        return Ok(socket);
                    }
                    return Err(payload["message"].to_string());
                }
                "system" | "presence_state" => {}
                _ => return Err(frame.to_string()),
            }
        }
    }

    async fn frame(&mut self) -> Value {
        let next = async {
            loop {
                let message = self
                    .stream
                    .next()
                    .await
                    .expect("a socket")
                    .expect("a frame");
                if let Message::Text(text) = message {
                    return serde_json::from_str(&text).unwrap();
                }
            }
        };
        tokio::time::timeout(DEADLINE, next)
            .await
            .expect("a frame in time")
    }

    pub(crate) async fn until(&mut self, fence: u64) -> Vec<Seen> {
        let mut seen = Vec::new();
        loop {
            let frame = self.frame().await;
            let payload = &frame[4];
            match frame[3].as_str().unwrap() {
                "postgres_changes" => {
                    let data = &payload["data"];
                    if data["table"] != "fence" {
                        seen.push(Seen::Change(data.clone()));
                    } else if data["record"]["id"] == fence {
                        return seen;
                    }
                }
                "system" => {
                    if let Some(reason) = resync(payload) {
                        seen.push(Seen::Resync(reason));
                        return seen;
                    }
                }
                _ => {}
            }
        }
    }

    pub(crate) async fn resync(&mut self) -> String {
        loop {
            let frame = self.frame().await;
            if let Some(reason) = resync(&frame[4]).filter(|_| frame[3] == "system") {
                return reason.as_str().to_owned();
            }
        }
    }
}

fn resync(payload: &Value) -> Option<Resync> {
    const ALL: [Resync; 9] = [
        Resync::Undecided,
        Resync::Undecodable,
        Resync::TooLarge,
        Resync::Truncated,
        Resync::SchemaChanged,
        Resync::SlotLost,
        Resync::Trimmed,
        Resync::Epoch,
        Resync::AccessChanged,
    ];
    let told = payload["extension"] == "rowcast" && payload["status"] == "resync";
    let reason = payload["reason"].as_str().filter(|_| told)?;
    ALL.into_iter().find(|one| one.as_str() == reason)
}
