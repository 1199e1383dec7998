//! The only wiring: what the daemon is made of, what runs, and in which order it stops.
//!
//! Shutdown: the source first, so that nothing new comes; then the sockets take leave, while the
//! router still serves them; then the rest.

mod core;
mod feed;
mod lag;
mod lobby;

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use futures_util::FutureExt as _;
use tokio::net::TcpListener;
use tokio_util::sync::CancellationToken;
use tracing::{info, warn};

pub use core::Core;
use lobby::Lobby;

use crate::admin::{self, Readiness};
use crate::auth::Authenticator;
use crate::config::{self, Config};
use crate::doctor::{self, Patient};
use crate::metrics::Metrics;
use crate::subscription::Events;
use crate::{auth, session, transport};

/// Why the daemon ended although nobody asked it to.
#[derive(Debug, thiserror::Error)]
pub enum Fault {
    /// A setting cannot work.
    #[error("{0}")]
    Config(String),
    /// An address cannot be listened on.
    #[error("cannot listen on {address} ({key}): {error}")]
    Listen {
        /// The address.
        address: SocketAddr,
        /// The setting that holds it.
        key: &'static str,
        /// Why.
        error: std::io::Error,
    },
    /// PostgreSQL is not as it has to be, and waiting does not help.
    #[error("{0}")]
    Database(String),
    /// A task that runs for as long as the process does has ended.
    #[error("the {0} task ended by itself")]
    Ended(&'static str),
}

/// Where a running daemon is reached.
#[derive(Debug, Clone, Copy)]
pub struct Addresses {
    /// Clients.
    pub public: SocketAddr,
    /// Operators.
    pub admin: SocketAddr,
}

/// Runs the relay until `shutdown` completes or something that cannot heal happens. `extra` is
/// served beside the clients' own paths; `ready` is called once changes flow.
///
/// # Errors
/// [`Fault`].
pub async fn run(
    config: Config,
    extra: axum::Router,
    ready: impl FnOnce(Addresses) + Send,
    shutdown: impl Future<Output = ()> + Send,
) -> Result<(), Fault> {
    // Binds first: a port that is taken is known before anything else.
    let (public, waiting) = twice(config.listen, "ROWCAST_LISTEN").await?;
    let operators = bind(config.admin_listen, "ROWCAST_ADMIN_LISTEN").await?;
    let address = |listener: &TcpListener, fallback| listener.local_addr().unwrap_or(fallback);
    let addresses = Addresses {
        public: address(&public, config.listen),
        admin: address(&operators, config.admin_listen),
    };
    // Clients are served once changes flow and told to come back until then, operators at once: they
    // want to know what is waited for.
    info!(address = %addresses.admin, public = %addresses.public, "serving operators");
    let lobby = Lobby::open(waiting);
    let metrics = Arc::new(Metrics::new());
    let readiness = Readiness::default();
    let inspector = admin::Inspector::new(findings(&config));
    let desk = admin::routes(readiness.clone(), Arc::clone(&metrics), inspector.clone());
    let (stop_sockets, stop_rest) = (CancellationToken::new(), CancellationToken::new());
    let rest = stop_rest.clone();
    let mut operating = tokio::spawn(async move {
        axum::serve(operators, desk)
            .with_graceful_shutdown(rest.cancelled_owned())
            .await
    });
    let authenticator = Arc::new(authenticator(&config)?);
    let keys = Arc::clone(&authenticator);
    let keeping = tokio::spawn(async move { keys.keep_keys().await });

    tokio::pin!(shutdown);
    let core = tokio::select! {
        core = Core::start(&config, Arc::clone(&metrics), readiness) => core,
        () = &mut shutdown => return Ok(()),
    };
    let mut core = core?;
    inspector.follow(core.router.clone());
    lobby.close().await;
    let front = transport::Front::new(
        core.router.clone(),
        authenticator,
        metrics,
        front_settings(&config),
    );
    let routes = transport::routes(&front).merge(extra);
    let sockets = stop_sockets.clone();
    let mut serving = tokio::spawn(transport::serve(public, routes, front, sockets));
    ready(addresses);

    let outcome = tokio::select! {
        () = &mut shutdown => Ok(()),
        fault = core.broken() => Err(fault),
        _ = &mut serving => Err(Fault::Ended("listener")),
        _ = &mut operating => Err(Fault::Ended("admin")),
    };
    if let Err(fault) = &outcome {
        tracing::error!(%fault, "shutting down");
    }
    info!("shutting down");
    core.stop_source().await;
    stop_sockets.cancel();
    let limit = config.drain + Duration::from_secs(2);
    if !serving.is_finished() && tokio::time::timeout(limit, &mut serving).await.is_err() {
        warn!("the listener did not end in time");
        serving.abort();
    }
    core.stop().await;
    keeping.abort();
    stop_rest.cancel();
    info!("stopped");
    outcome
}

/// What the doctor finds under these settings.
fn findings(config: &Config) -> admin::Findings {
    let patient = Arc::new(Patient {
        warnings: config::warnings(config),
        config: config.clone(),
        token: None,
        tables: Vec::new(),
        filters: Vec::new(),
        events: Events::All,
        filtered: Vec::new(),
    });
    Arc::new(move |router| {
        let patient = Arc::clone(&patient);
        let examining = async move {
            let mut patient = Patient::clone(&patient);
            if let Some(router) = router {
                // Without it the rest is still worth knowing.
                patient.filtered = router.filtered().await.unwrap_or_default();
            }
            let report = doctor::examine(&patient).await;
            serde_json::to_value(report).unwrap_or_default()
        };
        examining.boxed()
    })
}

/// Two listeners on one socket: one for the time before there is something to serve.
async fn twice(
    address: SocketAddr,
    key: &'static str,
) -> Result<(TcpListener, TcpListener), Fault> {
    let listener = bind(address, key).await?;
    let split = || {
        let one = listener.into_std()?;
        let other = one.try_clone()?;
        Ok((TcpListener::from_std(one)?, TcpListener::from_std(other)?))
    };
    split().map_err(|error| Fault::Listen {
        address,
        key,
        error,
    })
}

async fn bind(address: SocketAddr, key: &'static str) -> Result<TcpListener, Fault> {
    TcpListener::bind(address)
        .await
        .map_err(|error| Fault::Listen {
            address,
            key,
            error,
        })
}

fn authenticator(config: &Config) -> Result<Authenticator, Fault> {
    Authenticator::new(auth::Settings {
        jwt_secret: config
            .jwt_secret
            .as_ref()
            .map(|secret| secret.expose().to_owned()),
        jwks_url: config.jwks_url.clone(),
        default_role: config.default_role.clone(),
        role_claim: config.role_claim.clone(),
        api_keys: config.api_keys.clone(),
        ..auth::Settings::default()
    })
    .map_err(|error| Fault::Config(error.to_string()))
}

fn front_settings(config: &Config) -> transport::Settings {
    transport::Settings {
        limits: session::Limits {
            channels: config.max_channels,
            joins_per_second: config.max_joins_per_second,
            ..session::Limits::default()
        },
        max_connections: config.max_connections,
        max_connections_per_user: config.max_connections_per_user,
        max_connections_per_address: config.max_connections_per_address,
        trusted_proxies: config.trusted_proxies.clone(),
        allowed_origins: config.allowed_origins.clone(),
        max_frame_bytes: config.max_frame_bytes,
        outbox_max_events: config.outbox_max_events,
        outbox_max_bytes: config.outbox_max_bytes,
        resync_spread: config.resync_spread,
        drain: config.drain,
        ..transport::Settings::default()
    }
}

/// An error with what caused it, in one line.
fn chain(error: &dyn std::error::Error) -> String {
    let mut text = error.to_string();
    let mut source = error.source();
    while let Some(cause) = source {
        let cause_text = cause.to_string();
        if !text.contains(&cause_text) {
            text = format!("{text}: {cause_text}");
        }
        source = cause.source();
    }
    text
}
