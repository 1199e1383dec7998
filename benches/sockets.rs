//! Which socket a fan-out should write to: axum's, or a write half of one's own that takes shared frames.
//!
//! `cargo bench --bench sockets [-- SOCKETS]` (1,000 without). Each contender is a process of its own that sends
//! the same frames to as many sockets on loopback, in turns; this process reads them, and the CPU time and memory
//! of the other are compared. It ends by itself.

#![allow(
    clippy::cast_precision_loss,
    clippy::print_stdout,
    reason = "figures for people"
)]

use std::future::Future;
use std::io::{self, IoSlice};
use std::net::SocketAddr;
use std::process::Stdio;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use anyhow::{Context, ensure};
use axum::Router;
use axum::extract::ws::{Message, Utf8Bytes, WebSocket, WebSocketUpgrade};
use axum::routing::any;
use bytes::{Buf, Bytes, BytesMut};
use futures_util::SinkExt;
use rowcast::cli::bench::process::{cpu_seconds, rss_bytes};
use tokio::io::{AsyncBufReadExt, AsyncReadExt, AsyncWriteExt, BufReader};
use tokio::net::{TcpListener, TcpStream};
use tokio::process::{Child, Command};
use tokio::sync::mpsc;
use tokio_tungstenite::WebSocketStream;

/// What a frame carries.
const PAYLOAD: usize = 300;
/// A header of four bytes stands before it.
const FRAME: usize = 4 + PAYLOAD;
/// Rounds of each way to send.
const ROUNDS: usize = 5;
/// Messages that are sent one at a time in a round, each when the one before has arrived everywhere.
const SINGLE: usize = 40;
/// Messages of a burst.
const BURST: usize = 100;
/// How long anything may take.
const DEADLINE: Duration = Duration::from_secs(60);

/// How frames come into a socket.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Contender {
    /// axum's socket, whose task writes each message.
    AxumEach,
    /// axum's socket, whose task writes at once what there is.
    AxumAll,
    /// A task that writes shared frames, those that there are in one `writev`.
    OwnTask,
    /// The same without a task: whoever has the message writes.
    OwnDirect,
}

const CONTENDERS: [(Contender, &str, &str); 4] = [
    (
        Contender::AxumEach,
        "axum-each",
        "axum's socket, a write for each message",
    ),
    (
        Contender::AxumAll,
        "axum-all",
        "axum's socket, one write for what there is",
    ),
    (
        Contender::OwnTask,
        "own-task",
        "own write half, by the socket's task",
    ),
    (
        Contender::OwnDirect,
        "own-direct",
        "own write half, by whoever hands out",
    ),
];

#[tokio::main]
async fn main() -> anyhow::Result<()> {
    // cargo says that it is a benchmark.
    let arguments = std::env::args().skip(1).filter(|one| one != "--bench");
    let arguments: Vec<String> = arguments.collect();
    match arguments.iter().map(String::as_str).collect::<Vec<_>>()[..] {
        [] => compare(1000).await,
        ["serve", name] => {
            let contender = CONTENDERS.iter().find(|(_, known, _)| *known == name);
            let (contender, ..) = contender.context("no such contender")?;
            serve(*contender).await
        }
        [sockets] => {
            let sockets = sockets.parse().context("usage: sockets [SOCKETS]")?;
            ensure!(
                (1..=10_000).contains(&sockets),
                "between 1 and 10000 sockets"
            );
            compare(sockets).await
        }
        _ => anyhow::bail!("usage: sockets [SOCKETS]"),
    }
}

/// What one contender took.
#[derive(Debug, Default, Clone, Copy)]
struct Taken {
    /// CPU time of messages that were sent one at a time.
    single: Duration,
    /// … and in bursts.
    burst: Duration,
    /// Bytes of memory for a socket that has received nothing, and behind the last burst.
    idle: u64,
    after: u64,
}

async fn compare(sockets: usize) -> anyhow::Result<()> {
    let mut taken = [Taken::default(); CONTENDERS.len()];
    for ((_, name, _), taken) in CONTENDERS.iter().zip(&mut taken) {
        *taken = tokio::time::timeout(DEADLINE * 3, measure(name, sockets))
            .await
            .with_context(|| format!("{name} took too long"))??;
    }
    let messages = |each: usize| (ROUNDS * each * sockets) as f64;
    println!("{sockets} sockets, frames of {FRAME} bytes; CPU µs a message, KiB a socket");
    println!(
        "{:44} {:>8} {:>8} {:>6} {:>6}",
        "", "single", "bursts", "idle", "after"
    );
    for ((.., says), taken) in CONTENDERS.iter().zip(&taken) {
        println!(
            "{says:44} {:8.2} {:8.2} {:6.1} {:6.1}",
            taken.single.as_secs_f64() * 1e6 / messages(SINGLE),
            taken.burst.as_secs_f64() * 1e6 / messages(BURST),
            taken.idle as f64 / 1024.0,
            taken.after as f64 / 1024.0,
        );
    }
    Ok(())
}

async fn measure(name: &str, sockets: usize) -> anyhow::Result<Taken> {
    let mut server = Server::start(name).await?;
    let before = server.memory()?;
    let mut clients = Vec::new();
    for _ in 0..sockets {
        clients.push(connect(server.address).await?);
    }
    server.send(1, sockets).await?;
    receive(&mut clients, 1).await?;
    let each = |memory: u64| memory.saturating_sub(before) / sockets as u64;
    let mut taken = Taken {
        idle: each(server.memory()?),
        ..Taken::default()
    };
    for _ in 0..ROUNDS {
        let began = server.cpu()?;
        for _ in 0..SINGLE {
            server.send(1, sockets).await?;
            receive(&mut clients, 1).await?;
        }
        let single = server.cpu()?;
        server.send(BURST, sockets).await?;
        receive(&mut clients, BURST).await?;
        taken.single += single - began;
        taken.burst += server.cpu()? - single;
    }
    taken.after = each(server.memory()?);
    server.process.kill().await?;
    Ok(taken)
}

/// The process of one contender.
struct Server {
    process: Child,
    id: u32,
    address: SocketAddr,
}

impl Server {
    async fn start(name: &str) -> anyhow::Result<Self> {
        let mut process = Command::new(std::env::current_exe()?)
            .args(["serve", name])
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .kill_on_drop(true)
            .spawn()?;
        let id = process.id().context("it has ended")?;
        let said = process.stdout.take().context("it says nothing")?;
        let mut line = String::new();
        BufReader::new(said).read_line(&mut line).await?;
        let address = line.trim().parse().context("it says no address")?;
        Ok(Self {
            process,
            id,
            address,
        })
    }

    /// Has it send to all sockets, once so many are there.
    async fn send(&mut self, messages: usize, sockets: usize) -> anyhow::Result<()> {
        let orders = self.process.stdin.as_mut().context("it takes no orders")?;
        let order = format!("{messages} {sockets}\n");
        Ok(orders.write_all(order.as_bytes()).await?)
    }

    fn cpu(&self) -> anyhow::Result<Duration> {
        Ok(Duration::from_secs_f64(cpu_seconds(self.id)?))
    }

    fn memory(&self) -> anyhow::Result<u64> {
        rss_bytes(self.id)
    }
}

async fn connect(address: SocketAddr) -> anyhow::Result<TcpStream> {
    let mut stream = TcpStream::connect(address).await?;
    let request = format!(
        "GET / HTTP/1.1\r\nHost: {address}\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n\
         Sec-WebSocket-Version: 13\r\nSec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\n\r\n"
    );
    stream.write_all(request.as_bytes()).await?;
    let mut answer = Vec::new();
    while !answer.ends_with(b"\r\n\r\n") {
        answer.push(stream.read_u8().await?);
    }
    ensure!(answer.starts_with(b"HTTP/1.1 101"), "refused");
    Ok(stream)
}

async fn receive(clients: &mut [TcpStream], messages: usize) -> anyhow::Result<()> {
    let mut buffer = vec![0; 64 * 1024];
    let until = Instant::now() + DEADLINE;
    for client in clients {
        let mut left = messages * FRAME;
        while left > 0 {
            let room = buffer.len().min(left);
            let room = buffer.get_mut(..room).context("no room")?;
            let read = within(until, client.read(room)).await??;
            ensure!(read > 0, "a socket was closed");
            left -= read;
        }
    }
    Ok(())
}

async fn within<T>(until: Instant, what: impl Future<Output = T>) -> anyhow::Result<T> {
    let left = until.saturating_duration_since(Instant::now());
    tokio::time::timeout(left, what)
        .await
        .context("frames are missing")
}

/// Whoever a message is handed to. A queue has room for a burst, and the next comes when that was read.
enum Receiver {
    Axum(mpsc::Sender<Utf8Bytes>),
    Task(mpsc::Sender<Bytes>),
    Direct(Arc<Own>),
}

/// A socket with a write half of its own.
struct Own {
    stream: WebSocketStream<TcpStream>,
    waiting: Mutex<Vec<Bytes>>,
}

type Receivers = Arc<Mutex<Vec<Receiver>>>;

async fn serve(contender: Contender) -> anyhow::Result<()> {
    let listener = TcpListener::bind(("127.0.0.1", 0)).await?;
    let receivers = Receivers::default();
    println!("{}", listener.local_addr()?);
    tokio::spawn(accept(contender, listener, Arc::clone(&receivers)));
    let (order, mut orders) = mpsc::channel(1);
    std::thread::spawn(move || {
        let lines = io::stdin().lines().map_while(Result::ok);
        // Behind the last one this process ends.
        lines
            .map(|line| order.blocking_send(line))
            .all(|sent| sent.is_ok())
    });
    let text = Utf8Bytes::from("x".repeat(PAYLOAD));
    let mut frame = BytesMut::from(&[0x81, 126][..]);
    frame.extend_from_slice(&u16::try_from(PAYLOAD)?.to_be_bytes());
    frame.extend_from_slice(text.as_bytes());
    let frame = frame.freeze();
    while let Some(order) = orders.recv().await {
        let (messages, sockets) = order.split_once(' ').context("no order")?;
        let (messages, sockets): (usize, usize) = (messages.parse()?, sockets.parse()?);
        let there = || receivers.lock().unwrap_or_else(PoisonError::into_inner);
        // A client may have its answer before its socket is in the list.
        while there().len() < sockets {
            tokio::time::sleep(Duration::from_millis(1)).await;
        }
        let receivers = there();
        for receiver in receivers.iter() {
            for _ in 0..messages {
                match receiver {
                    Receiver::Axum(queue) => queue.try_send(text.clone())?,
                    Receiver::Task(queue) => queue.try_send(frame.clone())?,
                    Receiver::Direct(own) => own.push(frame.clone()),
                }
            }
            if let Receiver::Direct(own) = receiver
                && !own.flush()?
            {
                let own = Arc::clone(own);
                tokio::spawn(async move {
                    while let Ok(()) = own.stream.get_ref().writable().await {
                        if own.flush().is_ok_and(|all| all) {
                            break;
                        }
                    }
                });
            }
        }
    }
    Ok(())
}

async fn accept(
    contender: Contender,
    listener: TcpListener,
    receivers: Receivers,
) -> anyhow::Result<()> {
    let add = move |receiver| {
        let mut receivers = receivers.lock().unwrap_or_else(PoisonError::into_inner);
        receivers.push(receiver);
    };
    let all = match contender {
        Contender::AxumEach => false,
        Contender::AxumAll => true,
        Contender::OwnTask | Contender::OwnDirect => loop {
            let (stream, _) = listener.accept().await?;
            stream.set_nodelay(true)?;
            let stream = tokio_tungstenite::accept_async(stream).await?;
            let waiting = Mutex::default();
            let own = Arc::new(Own { stream, waiting });
            if contender == Contender::OwnDirect {
                add(Receiver::Direct(own));
                continue;
            }
            let (queue, frames) = mpsc::channel(BURST);
            add(Receiver::Task(queue));
            tokio::spawn(own.carry(frames));
        },
    };
    let upgrade = any(async move |upgrade: WebSocketUpgrade| {
        // As small as they may be: the defaults take 128 KiB for each socket.
        let upgrade = upgrade.read_buffer_size(1024).write_buffer_size(4096);
        upgrade.on_upgrade(async move |socket| {
            let (queue, messages) = mpsc::channel(BURST);
            add(Receiver::Axum(queue));
            let _closed = carry(socket, messages, all).await;
        })
    });
    Ok(axum::serve(listener, Router::new().route("/", upgrade)).await?)
}

async fn carry(
    mut socket: WebSocket,
    mut messages: mpsc::Receiver<Utf8Bytes>,
    all: bool,
) -> Result<(), axum::Error> {
    while let Some(message) = messages.recv().await {
        socket.feed(Message::Text(message)).await?;
        while all && let Ok(message) = messages.try_recv() {
            socket.feed(Message::Text(message)).await?;
        }
        socket.flush().await?;
    }
    Ok(())
}

impl Own {
    fn push(&self, frame: Bytes) {
        self.lock().push(frame);
    }

    async fn carry(self: Arc<Self>, mut frames: mpsc::Receiver<Bytes>) -> io::Result<()> {
        while let Some(frame) = frames.recv().await {
            self.push(frame);
            while let Ok(frame) = frames.try_recv() {
                self.push(frame);
            }
            while !self.flush()? {
                self.stream.get_ref().writable().await?;
            }
        }
        Ok(())
    }

    /// Writes what the kernel takes, and says whether that is all.
    fn flush(&self) -> io::Result<bool> {
        let mut waiting = self.lock();
        while !waiting.is_empty() {
            let slices: Vec<IoSlice<'_>> = waiting.iter().map(|one| IoSlice::new(one)).collect();
            let mut written = match self.stream.get_ref().try_write_vectored(&slices) {
                Ok(written) => written,
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => return Ok(false),
                Err(error) => return Err(error),
            };
            waiting.retain_mut(|frame| {
                let gone = written.min(frame.len());
                written -= gone;
                frame.advance(gone);
                !frame.is_empty()
            });
        }
        Ok(true)
    }

    fn lock(&self) -> std::sync::MutexGuard<'_, Vec<Bytes>> {
        self.waiting.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
