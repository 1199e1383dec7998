//! The relay itself, with the page's routes beside its own.

use std::io::ErrorKind;
use std::net::SocketAddr;

use anyhow::Context as _;
use tokio::net::TcpListener;
use tokio::sync::oneshot;
use tokio_util::sync::CancellationToken;

use crate::config::Secret;

/// What differs from the relay's defaults.
#[derive(Debug)]
pub(super) struct Settings {
    /// The example's database.
    pub(super) database_url: Secret,
    /// Fresh at each start.
    pub(super) jwt_secret: Secret,
    /// For the page and the relay alike.
    pub(super) listen: SocketAddr,
}

/// Serves until `stop`, and says through `ready` where, once clients can connect.
pub(super) async fn serve(
    settings: Settings,
    routes: axum::Router,
    ready: oneshot::Sender<SocketAddr>,
    stop: CancellationToken,
) -> anyhow::Result<()> {
    let listener =
        TcpListener::bind(settings.listen)
            .await
            .map_err(|error| match error.kind() {
                ErrorKind::AddrInUse => anyhow::anyhow!(
                    "{} is taken by another program; choose another address with --listen, \
                 for example --listen 127.0.0.1:4001",
                    settings.listen
                ),
                _ => anyhow::Error::new(error)
                    .context(format!("cannot listen on {}", settings.listen)),
            })?;
    let address = listener.local_addr().context("cannot read the address")?;
    if ready.send(address).is_err() {
        return Ok(());
    }
    axum::serve(listener, routes)
        .with_graceful_shutdown(stop.cancelled_owned())
        .await
        .context("the demo's listener")
}
