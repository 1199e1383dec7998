//! The barest relay: every inserted row to every socket, no policies, no filters, no protocol. What
//! it takes, no relay can save.

use std::net::SocketAddr;
use std::process::ExitCode;

use anyhow::Context;
use clap::Args;
use futures_util::SinkExt;
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::broadcast;
use tokio_tungstenite::tungstenite::{Message, Utf8Bytes};

use crate::change::{Kind, Value};
use crate::cli::{EXIT_UNAVAILABLE, fail};
use crate::pg::connect::Database;
use crate::source::{Source, SourceEvent};

/// Arguments of `rowcast bench-baseline`; `DATABASE_URL` comes from the environment.
#[derive(Args)]
pub struct Arguments {
    /// Where clients connect
    #[arg(long)]
    listen: SocketAddr,
    /// The replication slot
    #[arg(long)]
    slot: String,
    /// The publication
    #[arg(long)]
    publication: String,
}

/// Frames that may wait for the slowest socket before it is closed.
const CAPACITY: usize = 65_536;

/// Runs the bare relay until it is ended.
pub async fn run(arguments: Arguments) -> ExitCode {
    match relay(&arguments).await {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => fail(EXIT_UNAVAILABLE, format_args!("{error:#}")),
    }
}

async fn relay(arguments: &Arguments) -> anyhow::Result<()> {
    let url = std::env::var("DATABASE_URL").context("DATABASE_URL is not set")?;
    let database = Database::parse(&url)?;
    let opened = Source::open(&database, &arguments.slot, &arguments.publication).await?;
    let mut source = opened.source;
    let sockets = Sockets::listen(arguments.listen).await?;
    loop {
        let end = match source.next().await? {
            SourceEvent::Progress(end) => end,
            SourceEvent::Batch(batch) => {
                for change in &batch.changes {
                    if let Kind::Insert { new } = &change.kind {
                        let names = change.relation.columns.iter().map(|column| &*column.name);
                        let texts = new.values().map(|value| match value {
                            Value::Text(text) => Some(text),
                            Value::Null | Value::Unchanged => None,
                        });
                        sockets.send(frame(names.zip(texts)));
                    }
                }
                batch.end_lsn
            }
        };
        source.acknowledge(end);
    }
}

/// The sockets of the bare relay.
#[derive(Debug)]
pub struct Sockets {
    frames: broadcast::Sender<Utf8Bytes>,
    address: SocketAddr,
}

impl Sockets {
    /// Listens. To be called once rows flow: that it listens is how `bench` knows.
    ///
    /// # Errors
    /// Where the address is taken.
    pub async fn listen(address: SocketAddr) -> anyhow::Result<Self> {
        let listener = TcpListener::bind(address)
            .await
            .context("The bare relay cannot listen")?;
        let address = listener.local_addr()?;
        let (frames, _) = broadcast::channel(CAPACITY);
        let accepted = frames.clone();
        tokio::spawn(async move {
            while let Ok((stream, _)) = listener.accept().await {
                // Subscribed before the handshake, so a client that has shaken hands misses
                // nothing.
                tokio::spawn(serve(stream, accepted.subscribe()));
            }
        });
        Ok(Self { frames, address })
    }

    /// Where it listens.
    #[must_use]
    pub const fn address(&self) -> SocketAddr {
        self.address
    }

    /// Sends a row, as the text of a JSON object `{"record":{…}}`, to every socket.
    pub fn send(&self, frame: String) {
        // The failure means that there is no socket.
        let _sent = self.frames.send(frame.into());
    }
}

/// A row's frame: every column as a JSON text, but `id`, which is a number.
#[must_use]
pub fn frame<'a>(columns: impl Iterator<Item = (&'a str, Option<&'a str>)>) -> String {
    let mut record = String::from("{\"record\":{");
    for (number, (name, value)) in columns.enumerate() {
        if number > 0 {
            record.push(',');
        }
        record.push_str(&serde_json::Value::from(name).to_string());
        record.push(':');
        match value {
            None => record.push_str("null"),
            Some(value) if name == "id" => record.push_str(value),
            Some(value) => record.push_str(&serde_json::Value::from(value).to_string()),
        }
    }
    record.push_str("}}");
    record
}

async fn serve(stream: TcpStream, mut frames: broadcast::Receiver<Utf8Bytes>) {
    // Whatever goes wrong ends this socket; whoever counts its messages notices.
    let _nodelay = stream.set_nodelay(true);
    let Ok(mut socket) = tokio_tungstenite::accept_async(stream).await else {
        return;
    };
    while let Ok(frame) = frames.recv().await {
        if socket.send(Message::Text(frame)).await.is_err() {
            return;
        }
    }
}
