//! The network between two parties, which can be cut, or hang.

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::tcp::{ReadHalf, WriteHalf};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::watch;

/// What is done with bytes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Way {
    Open,
    /// Whoever connects is turned away.
    Closed,
    /// Connections stand, and nothing passes.
    Hanging,
}

#[derive(Debug, Clone, Copy)]
struct State {
    target: Option<SocketAddr>,
    way: Way,
    /// Connections of an older generation end.
    generation: u64,
}

/// A listener that passes on to a target that can change.
pub(crate) struct Proxy {
    address: SocketAddr,
    state: Arc<watch::Sender<State>>,
}

impl Proxy {
    pub(crate) async fn start() -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let state = Arc::new(watch::Sender::new(State {
            target: None,
            way: Way::Open,
            generation: 0,
        }));
        let shared = Arc::clone(&state);
        tokio::spawn(async move {
            loop {
                let Ok((stream, _)) = listener.accept().await else {
                    return;
                };
                tokio::spawn(pass(stream, shared.subscribe()));
            }
        });
        Self { address, state }
    }

    pub(crate) const fn address(&self) -> SocketAddr {
        self.address
    }

    pub(crate) fn leads_to(&self, target: Option<SocketAddr>) {
        self.state.send_modify(|state| state.target = target);
    }

    pub(crate) fn way(&self, way: Way) {
        self.state.send_modify(|state| state.way = way);
    }

    /// Ends all connections as a reset does.
    pub(crate) fn cut(&self) {
        self.state.send_modify(|state| state.generation += 1);
    }
}

async fn pass(mut stream: TcpStream, state: watch::Receiver<State>) {
    let now = *state.borrow();
    let target = now.target.filter(|_| now.way != Way::Closed);
    let other = match target {
        Some(target) => TcpStream::connect(target).await.ok(),
        None => None,
    };
    let Some(mut other) = other else {
        reset_on_drop(&stream);
        return;
    };
    let _set = (stream.set_nodelay(true), other.set_nodelay(true));
    let mut ends = state.clone();
    let cut = {
        let (client_reads, client_writes) = stream.split();
        let (server_reads, server_writes) = other.split();
        tokio::select! {
            _ = ends.wait_for(|state| state.generation != now.generation) => true,
            _ = async {
                tokio::join!(
                    copy(client_reads, server_writes, state.clone()),
                    copy(server_reads, client_writes, state),
                )
            } => false,
        }
    };
    if cut {
        reset_on_drop(&stream);
        reset_on_drop(&other);
    }
}

fn reset_on_drop(stream: &TcpStream) {
    let _set = socket2::SockRef::from(stream).set_linger(Some(Duration::ZERO));
}

async fn copy(mut from: ReadHalf<'_>, mut to: WriteHalf<'_>, mut state: watch::Receiver<State>) {
    let mut bytes = vec![0; 16 << 10];
    while let Ok(count @ 1..) = from.read(&mut bytes).await {
        let passes = state
            .wait_for(|state| state.way != Way::Hanging)
            .await
            .is_ok();
        if !passes || to.write_all(&bytes[..count]).await.is_err() {
            break;
        }
    }
    let _ended = to.shutdown().await;
}
