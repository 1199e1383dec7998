//! What an idle client with one channel costs, in a process of its own so that nothing else is
//! counted.

#![allow(
    clippy::unwrap_used,
    clippy::panic,
    reason = "a test ends where something is not as it should be"
)]

use std::io::{Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::sync::Arc;
use std::time::Duration;

use rowcast::auth::{Authenticator, Settings as Keys};
use rowcast::metrics::Metrics;
use rowcast::router::{Command, Event, Router};
use rowcast::transport::{Front, Settings, routes, serve};
use tokio_util::sync::CancellationToken;

const CLIENTS: usize = 400;
/// In bytes; the aim is 12 KiB in a release build.
const LIMIT: usize = 16 * 1024;

/// Memory of this process that is in use, in bytes.
fn resident() -> usize {
    let status = std::fs::read_to_string("/proc/self/status").unwrap();
    let line = status.lines().find(|line| line.starts_with("VmRSS:"));
    let kib: usize = line
        .and_then(|line| line.split_whitespace().nth(1))
        .unwrap()
        .parse()
        .unwrap();
    kib * 1024
}

/// A client without any memory of its own: a blocking stream and a joined channel.
fn client(address: SocketAddr) -> TcpStream {
    let mut stream = TcpStream::connect(address).unwrap();
    stream
        .set_read_timeout(Some(Duration::from_secs(20)))
        .unwrap();
    stream
        .write_all(
            b"GET /realtime/v1/websocket?apikey=sb_key&vsn=2.0.0 HTTP/1.1\r\nHost: x\r\nConnection: Upgrade\r\nUpgrade: websocket\r\nSec-WebSocket-Version: 13\r\nSec-WebSocket-Key: AAAAAAAAAAAAAAAAAAAAAA==\r\n\r\n",
        )
        .unwrap();
    until(&mut stream, "\r\n\r\n");
    let join = br#"["1","1","realtime:room","phx_join",{"config":{"postgres_changes":[{"event":"*","schema":"public","table":"todos"}]}}]"#;
    // A masked text frame, the mask being all zero.
    let length = u8::try_from(join.len()).unwrap();
    assert!(length < 126);
    stream
        .write_all(&[&[0x81, 0x80 | length, 0, 0, 0, 0][..], join].concat())
        .unwrap();
    until(&mut stream, "Subscribed to PostgreSQL");
    stream
}

fn until(stream: &mut TcpStream, text: &str) {
    let (mut all, mut buffer) = (String::new(), [0; 1024]);
    while !all.contains(text) {
        let read = stream.read(&mut buffer).unwrap();
        assert_ne!(read, 0, "closed after {all}");
        all.push_str(&String::from_utf8_lossy(buffer.get(..read).unwrap()));
    }
}

#[test]
fn an_idle_joined_socket_stays_below_its_share_of_memory() {
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .worker_threads(1)
        .enable_all()
        .build()
        .unwrap();
    let address = runtime.block_on(async {
        let (router, mut commands) = Router::channel(64);
        tokio::spawn(async move {
            while let Some(command) = commands.recv().await {
                if let Command::Join(join) = command {
                    join.outbox.push(Event::Joined {
                        channel: join.channel,
                        refusals: Vec::new(),
                        notices: Vec::new(),
                        holder: None,
                    });
                }
            }
        });
        let auth = Authenticator::new(Keys {
            api_keys: [("sb_key".to_owned(), "anon".to_owned())].into(),
            ..Keys::default()
        })
        .unwrap();
        let metrics = Arc::new(Metrics::new());
        let front = Front::new(router, Arc::new(auth), metrics, Settings::default());
        let listener = tokio::net::TcpListener::bind(("127.0.0.1", 0))
            .await
            .unwrap();
        let address = listener.local_addr().unwrap();
        tokio::spawn(serve(
            listener,
            routes(&front),
            front,
            CancellationToken::new(),
        ));
        address
    });

    // What is allocated once, and what the allocator keeps.
    let mut clients: Vec<_> = (0..50).map(|_| client(address)).collect();
    let before = resident();
    clients.extend((0..CLIENTS).map(|_| client(address)));
    let each = resident().saturating_sub(before) / CLIENTS;
    println!("{each} bytes per client");
    assert!(each <= LIMIT, "{each} bytes per client");
}
