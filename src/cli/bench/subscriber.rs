//! One subscriber: a socket of its own, joined as a user of its own.

use std::fmt::{self, Display, Formatter};
use std::net::SocketAddr;
use std::time::Duration;

use anyhow::{Context, anyhow, bail};
use futures_util::{SinkExt, StreamExt};
use serde_json::json;
use tokio::net::{TcpSocket, TcpStream};
use tokio::time::{Interval, timeout};
use tokio_tungstenite::WebSocketStream;
use tokio_tungstenite::tungstenite::Message;
use tokio_tungstenite::tungstenite::protocol::WebSocketConfig;
use tokio_util::sync::CancellationToken;

use super::books::Books;
use super::database::NAME;
use super::frame::{self, Frame};
use super::plan::{Filter, Plan, user_id};
use super::recent;
use super::verifier::Verifier;
use crate::log::Cursor;

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

/// What a subscriber asks for beside all the rows that it may see.
#[derive(Debug, Clone, Copy, Default)]
pub struct Wish {
    /// Only these rows.
    pub filter: Option<Condition>,
    /// What it missed behind this place.
    pub since: Option<Cursor>,
    /// To be told how far it has got.
    pub cursor: bool,
    /// The most that the kernel may keep for it, in bytes; as the kernel likes where there is none.
    pub receive_buffer: Option<u32>,
}

/// A connected subscriber.
#[derive(Debug)]
pub struct Subscriber {
    socket: WebSocketStream<TcpStream>,
    system: System,
    heartbeat: Interval,
}

impl Subscriber {
    /// Connects; to the relay with this token and this wish.
    ///
    /// # Errors
    /// Where the connection or the join fails.
    pub async fn connect(
        system: System,
        address: SocketAddr,
        token: &str,
        wish: &Wish,
    ) -> anyhow::Result<Self> {
        let connected = async {
            let mut subscriber = Self::open(system, address, token, wish).await?;
            if system == System::Rowcast {
                subscriber.join(token, wish).await?;
            }
            Ok(subscriber)
        };
        timeout(JOIN_PATIENCE, connected)
            .await
            .context("A subscriber's join was not answered")?
    }

    /// Connects without joining.
    ///
    /// # Errors
    /// Where the connection fails.
    pub async fn open(
        system: System,
        address: SocketAddr,
        token: &str,
        wish: &Wish,
    ) -> anyhow::Result<Self> {
        let socket = match address {
            SocketAddr::V4(_) => TcpSocket::new_v4()?,
            SocketAddr::V6(_) => TcpSocket::new_v6()?,
        };
        if let Some(bytes) = wish.receive_buffer {
            socket.set_recv_buffer_size(bytes)?;
        }
        let stream = socket.connect(address).await?;
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
        let mut heartbeat = tokio::time::interval(HEARTBEAT);
        heartbeat.reset();
        Ok(Self {
            socket,
            system,
            heartbeat,
        })
    }

    /// Joins the relay's channel.
    ///
    /// # Errors
    /// Where that is refused.
    pub async fn join(&mut self, token: &str, wish: &Wish) -> anyhow::Result<()> {
        let mut binding = json!({"event": "INSERT", "schema": NAME, "table": "rows"});
        if let (Some(filter), Some(binding)) = (wish.filter, binding.as_object_mut()) {
            binding.insert("filter".into(), filter.to_string().into());
        }
        let mut payload = json!({
            "config": {
                "broadcast": {"ack": false, "self": false},
                "presence": {"key": "", "enabled": false},
                "postgres_changes": [binding],
                "private": false
            },
            "access_token": token
        });
        if let Some(payload) = payload.as_object_mut()
            && (wish.cursor || wish.since.is_some())
        {
            let since = wish.since.map(|since| since.to_string());
            let rowcast = json!({"since": since, "cursor": wish.cursor});
            payload.insert("rowcast".into(), rowcast);
        }
        let join = json!(["1", "1", "realtime:bench", "phx_join", payload]);
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

    /// Takes leave, as a browser does that goes somewhere else.
    pub async fn close(mut self) {
        // Where the relay has closed already there is nobody to tell.
        let _told = self.socket.close(None).await;
        while let Some(Ok(_)) = self.socket.next().await {}
    }

    /// The next frame, or why there is none. What the relay has to hear now and then is sent
    /// meanwhile.
    ///
    /// # Errors
    /// Where the socket was closed, or a frame is of an unknown form; with a sentence's part.
    pub async fn next(&mut self) -> Result<Frame, String> {
        loop {
            let message = tokio::select! {
                _ = self.heartbeat.tick(), if self.system == System::Rowcast => {
                    let beat = r#"[null,"2","phoenix","heartbeat",{}]"#;
                    let sent = self.socket.send(Message::text(beat)).await;
                    sent.map_err(|error| error.to_string())?;
                    continue;
                }
                message = self.socket.next() => message,
            };
            let text = match message {
                Some(Ok(Message::Text(text))) => text,
                Some(Ok(Message::Close(reason))) => {
                    return Err(reason.map_or("closed".to_owned(), |reason| reason.to_string()));
                }
                Some(Ok(_)) => continue,
                Some(Err(error)) => return Err(error.to_string()),
                None => return Err("closed".to_owned()),
            };
            let frame = match self.system {
                System::Rowcast => recent::read(self.system, &text, frame::read),
                System::Baseline => recent::read(self.system, &text, frame::read_bare),
            };
            return frame.map_err(|error| format!("a frame of an unknown form: {error}"));
        }
    }

    /// Takes what comes until told to stop, and returns the books.
    pub async fn receive(
        mut self,
        mut verifier: Verifier,
        books: &Books,
        stop: CancellationToken,
    ) -> Verifier {
        loop {
            let frame = tokio::select! {
                () = stop.cancelled() => return verifier,
                frame = self.next() => frame,
            };
            match frame {
                Ok(Frame::Row { id, sent, .. }) => books.take(&mut verifier, id, sent),
                Ok(_) => {}
                Err(why) => {
                    books.note(why);
                    return verifier;
                }
            }
        }
    }
}

/// What a subscriber asks for.
#[derive(Debug, Clone, Copy)]
pub enum Condition {
    /// Rows with this value in the column that filters read.
    Bucket(u64),
    /// Rows of this user.
    Owner(u64),
}

impl Condition {
    /// The filter of a subscriber; `None` where it asks for all rows.
    #[must_use]
    pub const fn of(plan: &Plan, subscriber: u64) -> Option<Self> {
        match plan.filter {
            Filter::None => None,
            Filter::Eq => Some(Self::Bucket(Plan::wanted_bucket(subscriber))),
            Filter::Own => Some(Self::Owner(subscriber)),
        }
    }
}

impl Display for Condition {
    fn fmt(&self, f: &mut Formatter<'_>) -> fmt::Result {
        match self {
            Self::Bucket(bucket) => write!(f, "bucket=eq.{bucket}"),
            Self::Owner(user) => write!(f, "user_id=eq.{}", user_id(*user)),
        }
    }
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
