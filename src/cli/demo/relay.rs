//! The relay itself, with the page's routes beside its own.

use std::collections::BTreeMap;
use std::future::IntoFuture as _;
use std::io::ErrorKind;
use std::net::{Ipv4Addr, SocketAddr};
use std::time::Duration;

use anyhow::Context as _;
use tokio::net::TcpListener;
use tokio::sync::oneshot;
use tokio_util::sync::CancellationToken;

use super::database::SLOT;
use crate::app::{self, Fault};
use crate::config::{
    Config, DeleteWithoutIdentity, Leaves, LogFormat, Origins, Proxies, Secret, SnapshotSettings,
};

/// How long what is under way may take at the end.
const DRAIN: Duration = Duration::from_secs(2);

/// What differs from one demo to the next.
#[derive(Debug)]
pub(super) struct Settings {
    /// The example's database.
    pub(super) database_url: Secret,
    /// Fresh at each start.
    pub(super) jwt_secret: Secret,
    /// For the page and the relay alike.
    pub(super) listen: SocketAddr,
}

/// Serves until `stop`, and says through `ready` where, once changes flow.
pub(super) async fn serve(
    settings: Settings,
    routes: axum::Router,
    ready: oneshot::Sender<SocketAddr>,
    stop: CancellationToken,
) -> anyhow::Result<()> {
    let listen = settings.listen;
    let say = move |addresses: app::Addresses| {
        // Nobody waits any more where the demo is already ending.
        ready.send(addresses.public).ok();
    };
    let running = app::run(config(settings), routes, say, stop.cancelled_owned());
    let served = Box::pin(running).await;
    served.map_err(|fault| match fault {
        Fault::Listen { address, error, .. }
            if address == listen && error.kind() == ErrorKind::AddrInUse =>
        {
            taken(listen)
        }
        fault => fault.into(),
    })
}

fn taken(listen: SocketAddr) -> anyhow::Error {
    anyhow::anyhow!(
        "{listen} is taken by another program; choose another address with --listen, \
         for example --listen 127.0.0.1:4001"
    )
}

/// Serves the page alone until `stop`; the relay is another process.
pub(super) async fn serve_page(
    listen: SocketAddr,
    routes: axum::Router,
    ready: oneshot::Sender<SocketAddr>,
    stop: CancellationToken,
) -> anyhow::Result<()> {
    let listener = match TcpListener::bind(listen).await {
        Ok(listener) => listener,
        Err(error) if error.kind() == ErrorKind::AddrInUse => return Err(taken(listen)),
        Err(error) => {
            return Err(anyhow::Error::new(error).context(format!("cannot listen at {listen}")));
        }
    };
    let address = listener.local_addr().context("the listener's address")?;
    // Nobody waits any more where the demo is already ending.
    ready.send(address).ok();
    let serving =
        axum::serve(listener, routes).with_graceful_shutdown(stop.clone().cancelled_owned());
    let limit = async {
        stop.cancelled().await;
        tokio::time::sleep(DRAIN).await;
    };
    tokio::select! {
        ended = serving.into_future() => ended.context("the page is not served any more"),
        // Browsers keep connections open that nothing comes over.
        () = limit => Ok(()),
    }
}

fn config(settings: Settings) -> Config {
    Config {
        database_url: settings.database_url,
        jwt_secret: Some(settings.jwt_secret),
        jwks_url: None,
        listen: settings.listen,
        // Nobody operates a demo; a fixed port could only be in the way.
        admin_listen: (Ipv4Addr::LOCALHOST, 0).into(),
        slot: SLOT.to_owned(),
        publication: Some("rowcast".to_owned()),
        default_role: "authenticated".to_owned(),
        role_claim: "role".to_owned(),
        api_keys: BTreeMap::new(),
        require: crate::policy::rule::Require::Rls,
        rules: Vec::new(),
        delete_without_identity: DeleteWithoutIdentity::Suppress,
        leave: Leaves::Asked,
        // The example's database goes with the demo.
        data: None,
        log_retention: Duration::from_secs(3600),
        log_retention_bytes: 1 << 30,
        lookup_publication: None,
        max_lookup_bytes: 256 << 20,
        old_rows: Default::default(),
        max_old_row_bytes: 256 << 20,
        max_retained_wal: 1 << 30,
        log_max_changes: 100_000,
        log_max_bytes: 64 << 20,
        max_record_bytes: 1 << 20,
        max_connections: 1000,
        max_connections_per_user: 0,
        max_connections_per_address: 0,
        trusted_proxies: Proxies::default(),
        allowed_origins: Origins::Any,
        max_channels: 100,
        max_joins_per_second: 100,
        max_asked_filters: 30,
        max_frame_bytes: 1 << 20,
        outbox_max_events: 10_000,
        outbox_max_bytes: 16 << 20,
        ask_timeout: Duration::from_secs(5),
        policy_check: true,
        snapshot: SnapshotSettings::default(),
        catalog_interval: Duration::from_secs(1),
        resync_spread: Duration::from_secs(5),
        drain: DRAIN,
        log: "warn".to_owned(),
        log_format: LogFormat::Auto,
    }
}
