//! One subscriber: a socket of its own, joined as a user of its own.

use std::net::SocketAddr;
use std::time::Duration;

use anyhow::{Context, anyhow, bail};
use futures_util::{SinkExt, StreamExt};
use serde_json::json;
use tokio::net::TcpStream;
use tokio::time::timeout;
use tokio_tungstenite::WebSocketStream;
use tokio_tungstenite::tungstenite::Message;
use tokio_tungstenite::tungstenite::protocol::WebSocketConfig;
use tokio_util::sync::CancellationToken;

use super::books::Books;
use super::database::NAME;
use super::frame::{self, Frame};
use super::plan::{Filter, Plan};
use super::verifier::Verifier;

/// Whom a subscriber talks to.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum System {
    /// The relay, in Supabase's protocol.
    Rowcast,
    /// The bare relay.
    Baseline,
}

/// Between two heartbeats, as Supabase's client does it.
const HEARTBEAT: Duration = Duration::from_secs(25);

/// No join takes this long unless something is wrong.
const JOIN_PATIENCE: Duration = Duration::from_secs(30);

/// A connected subscriber.
#[derive(Debug)]
pub struct Subscriber {
    socket: WebSocketStream<TcpStream>,
    system: System,
}

impl Subscriber {
    /// Connects; to the relay with this token and this filter.
    ///
    /// # Errors
    /// Where the connection or the join fails.
    pub async fn connect(
        system: System,
        address: SocketAddr,
        token: &str,
        bucket: Option<u64>,
    ) -> anyhow::Result<Self> {
        timeout(JOIN_PATIENCE, Self::open(system, address, token, bucket))
            .await
            .context("A subscriber's join was not answered")?
    }

    async fn open(
        system: System,
        address: SocketAddr,
        token: &str,
        bucket: Option<u64>,
    ) -> anyhow::Result<Self> {
        let stream = TcpStream::connect(address).await?;
        stream.set_nodelay(true)?;
        let path = match system {
            System::Rowcast => format!("realtime/v1/websocket?apikey={token}&vsn=2.0.0"),
            System::Baseline => String::new(),
        };
        // Thousands of these live in one process; the defaults would be a gigabyte.
        let config = WebSocketConfig::default()
            .read_buffer_size(4 * 1024)
            .write_buffer_size(0)
            .max_write_buffer_size(64 * 1024);
        let (socket, _) = tokio_tungstenite::client_async_with_config(
            format!("ws://{address}/{path}"),
            stream,
            Some(config),
        )
        .await
        // The error's own text may quote the request, and with it the token.
        .map_err(|error| anyhow!("The WebSocket handshake failed: {}", kind(&error)))?;
        let mut subscriber = Self { socket, system };
        if system == System::Rowcast {
            subscriber.join(token, bucket).await?;
        }
        Ok(subscriber)
    }

    async fn join(&mut self, token: &str, bucket: Option<u64>) -> anyhow::Result<()> {
        let mut binding = json!({"event": "INSERT", "schema": NAME, "table": "rows"});
        if let (Some(bucket), Some(binding)) = (bucket, binding.as_object_mut()) {
            binding.insert("filter".into(), filter(bucket).into());
        }
        let join = json!(["1", "1", "realtime:bench", "phx_join", {
            "config": {
                "broadcast": {"ack": false, "self": false},
                "presence": {"key": "", "enabled": false},
                "postgres_changes": [binding],
                "private": false
            },
            "access_token": token
        }]);
        self.socket.send(Message::text(join.to_string())).await?;
        let mut joined = false;
        loop {
            let Some(message) = self.socket.next().await else {
                bail!("The relay closed a socket that was about to join.");
            };
            let Message::Text(text) = message? else {
                continue;
            };
            match frame::read(&text).context("The relay sent a frame of an unknown form")? {
                Frame::Joined { error: None } => joined = true,
                Frame::Subscribed { error: None } if joined => return Ok(()),
                Frame::Joined { error: Some(error) } | Frame::Subscribed { error: Some(error) } => {
                    bail!("A join was refused: {error}");
                }
                _ => {}
            }
        }
    }

    /// Takes what comes until told to stop, and returns the books.
    pub async fn receive(
        mut self,
        mut verifier: Verifier,
        books: &Books,
        stop: CancellationToken,
    ) -> Verifier {
        let mut heartbeat = tokio::time::interval(HEARTBEAT);
        heartbeat.reset();
        let broken = loop {
            let message = tokio::select! {
                () = stop.cancelled() => break None,
                _ = heartbeat.tick(), if self.system == System::Rowcast => {
                    let beat = r#"[null,"2","phoenix","heartbeat",{}]"#;
                    match self.socket.send(Message::text(beat)).await {
                        Ok(()) => continue,
                        Err(error) => break Some(error.to_string()),
                    }
                }
                message = self.socket.next() => message,
            };
            let text = match message {
                Some(Ok(Message::Text(text))) => text,
                Some(Ok(Message::Close(reason))) => {
                    break Some(reason.map_or("closed".to_owned(), |reason| reason.to_string()));
                }
                Some(Ok(_)) => continue,
                Some(Err(error)) => break Some(error.to_string()),
                None => break Some("closed".to_owned()),
            };
            let frame = match self.system {
                System::Rowcast => frame::read(&text),
                System::Baseline => frame::read_bare(&text),
            };
            match frame {
                Ok(Frame::Row { id, sent }) => books.take(&mut verifier, id, sent),
                Ok(_) => {}
                Err(error) => break Some(format!("a frame of an unknown form: {error}")),
            }
        };
        if let Some(why) = broken {
            books.note(why);
        }
        verifier
    }
}

/// The value of the filter's column that a subscriber asks for.
#[must_use]
pub fn bucket(plan: &Plan, subscriber: u64) -> Option<u64> {
    (plan.filter == Filter::Eq).then(|| Plan::wanted_bucket(subscriber))
}

/// The filter that asks for a bucket.
#[must_use]
pub fn filter(bucket: u64) -> String {
    format!("bucket=eq.{bucket}")
}

fn kind(error: &tokio_tungstenite::tungstenite::Error) -> String {
    use tokio_tungstenite::tungstenite::Error;
    match error {
        Error::Http(response) => format!("HTTP status {}", response.status()),
        Error::Io(error) => error.to_string(),
        Error::Protocol(error) => error.to_string(),
        _ => "no WebSocket server".to_owned(),
    }
}
