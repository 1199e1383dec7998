//! The listener, from the first client to the last.

use std::io;
use std::net::IpAddr;
use std::sync::Arc;
use std::time::Duration;

use axum::Router as Routes;
use axum::extract::Request;
use hyper::body::Incoming;
use hyper_util::rt::{TokioIo, TokioTimer};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::Semaphore;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;
use tower::ServiceExt;

use super::Front;
use super::address::Peer;
use super::stream::ClientStream;

/// Connections that are still HTTP; sockets are counted elsewhere.
const MAX_HTTP: usize = 4096;
/// The largest head: a long token fits several times.
const HEAD_BYTES: usize = 64 * 1024;

/// Serves `routes` (those of [`super::routes`] and any others) on `listener` until `shutdown`,
/// then lets the sockets of `front` take leave and ends the rest after [`super::Settings::drain`].
/// To drop the future cuts nothing but the acceptance of clients; to stop in order, cancel
/// `shutdown`.
///
/// # Errors
/// The listener's, where it cannot be used at all.
pub async fn serve(
    listener: TcpListener,
    routes: Routes,
    front: Front,
    shutdown: CancellationToken,
) -> io::Result<()> {
    tracing::info!(address = %listener.local_addr()?, "serving clients");
    let http = answer(listener, routes, front.0.settings.head, &shutdown).await;
    front.0.stopping.cancel();
    front.0.sockets.close();
    let drained = tokio::time::timeout(front.0.settings.drain, async {
        http.wait().await;
        front.0.sockets.wait().await;
    })
    .await;
    if drained.is_err() {
        tracing::warn!(
            sockets = front.0.sockets.len(),
            "ending clients that did not leave in time"
        );
    }
    front.0.ending.cancel();
    // What is left needs a last turn of the runtime only.
    let _ended = tokio::time::timeout(Duration::from_secs(1), front.0.sockets.wait()).await;
    Ok(())
}

/// Answers HTTP on `listener` until `shutdown`; returns the connections that are open then. Nobody
/// may take longer than `head` to say what is wanted, and [`MAX_HTTP`] may try at once.
pub async fn answer(
    listener: TcpListener,
    routes: Routes,
    head: Duration,
    shutdown: &CancellationToken,
) -> TaskTracker {
    let http = TaskTracker::new();
    let slots = Arc::new(Semaphore::new(MAX_HTTP));
    loop {
        let accepted = tokio::select! {
            accepted = accept(&listener, &slots) => accepted,
            () = shutdown.cancelled() => break,
        };
        match accepted {
            Ok((stream, peer, slot)) => {
                let connection = connection(stream, peer, head, routes.clone(), shutdown.clone());
                http.spawn(async move {
                    connection.await;
                    drop(slot);
                });
            }
            Err(error) if is_the_clients(&error) => {}
            Err(error) => {
                // Out of descriptors, most likely: trying again at once would only burn time.
                tracing::warn!(%error, "cannot accept a client");
                tokio::time::sleep(Duration::from_millis(100)).await;
            }
        }
    }
    http.close();
    http
}

async fn accept(
    listener: &TcpListener,
    slots: &Arc<Semaphore>,
) -> io::Result<(TcpStream, IpAddr, tokio::sync::OwnedSemaphorePermit)> {
    let slot = Arc::clone(slots)
        .acquire_owned()
        .await
        .map_err(io::Error::other)?;
    let (stream, peer) = listener.accept().await?;
    // A change is written once and should leave at once.
    stream.set_nodelay(true)?;
    Ok((stream, peer.ip(), slot))
}

/// Whether only the client that was being accepted is concerned.
fn is_the_clients(error: &io::Error) -> bool {
    use io::ErrorKind::{ConnectionAborted, ConnectionRefused, ConnectionReset, InvalidInput};
    matches!(
        error.kind(),
        ConnectionAborted | ConnectionRefused | ConnectionReset | InvalidInput
    )
}

/// One HTTP connection, until it ends or becomes a socket.
async fn connection(
    stream: TcpStream,
    peer: IpAddr,
    head: Duration,
    routes: Routes,
    shutdown: CancellationToken,
) {
    let stream = ClientStream::new(stream);
    let service = hyper::service::service_fn(move |mut request: Request<Incoming>| {
        request.extensions_mut().insert(Peer(peer));
        routes.clone().oneshot(request)
    });
    let mut http = std::pin::pin!(
        hyper::server::conn::http1::Builder::new()
            .timer(TokioTimer::new())
            .header_read_timeout(head)
            .max_buf_size(HEAD_BYTES)
            .serve_connection(TokioIo::new(stream), service)
            .with_upgrades()
    );
    let ended = tokio::select! {
        ended = http.as_mut() => ended,
        () = shutdown.cancelled() => {
            http.as_mut().graceful_shutdown();
            http.await
        }
    };
    if let Err(error) = ended {
        tracing::debug!(%error, "an HTTP connection broke off");
    }
}
