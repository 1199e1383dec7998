//! Moves frames: HTTP upgrades, WebSockets, and the end of all of them.

mod address;
mod connection;
mod line;
mod origin;
mod reading;
mod serve;
mod stream;
mod upgrade;
mod verifying;
mod wire;

use std::fmt;
use std::net::IpAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use axum::Router as Routes;
use axum::routing::{any, get};
use tokio::sync::Semaphore;
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

pub use address::{InvalidNetwork, Proxies};
pub use origin::{InvalidOrigin, Origin, Origins};
pub use serve::{answer, serve};

use crate::auth::Authenticator;
use crate::metrics::{Metrics, Refused};
use crate::router::{Router, SessionId};
use crate::session::{Limits, Quota, Spread, User};

/// How clients are served.
#[derive(Debug, Clone)]
pub struct Settings {
    /// What one client may hold.
    pub limits: Limits,
    /// Sockets at once.
    pub max_connections: usize,
    /// Sockets of one user at once; 0 for as many as there are.
    pub max_connections_per_user: usize,
    /// Sockets of one address (of IPv6 one network of 2^64) at once; 0 for as many as there are.
    pub max_connections_per_address: usize,
    /// Whose `X-Forwarded-For` is taken for where a client is.
    pub trusted_proxies: Proxies,
    /// The web pages that may talk to the relay.
    pub allowed_origins: Origins,
    /// The largest frame taken from a client, in bytes.
    pub max_frame_bytes: usize,
    /// Events that may wait for one socket.
    pub outbox_max_events: usize,
    /// Bytes of changes that may wait for one socket.
    pub outbox_max_bytes: usize,
    /// How long the head of a request may take, also of one that never comes.
    pub head: Duration,
    /// How often the server pings, so that what lies between does not cut an idle socket.
    pub ping_every: Duration,
    /// After how much silence of the client its socket is closed.
    pub idle_after: Duration,
    /// How long a write may make no progress before the socket is closed.
    pub write_stall: Duration,
    /// Over how long channels that break at the same time do so, at most.
    pub resync_spread: Duration,
    /// How long sockets may take to close at the end.
    pub drain: Duration,
}

impl Default for Settings {
    fn default() -> Self {
        Self {
            limits: Limits::default(),
            max_connections: 10_000,
            max_connections_per_user: 100,
            max_connections_per_address: 0,
            trusted_proxies: Proxies::default(),
            allowed_origins: Origins::Any,
            max_frame_bytes: 1024 * 1024,
            outbox_max_events: 10_000,
            outbox_max_bytes: 16 * 1024 * 1024,
            head: Duration::from_secs(10),
            ping_every: Duration::from_secs(30),
            idle_after: Duration::from_mins(1),
            write_stall: Duration::from_secs(30),
            resync_spread: Duration::from_secs(5),
            drain: Duration::from_secs(10),
        }
    }
}

/// What every connection needs. Cheap to clone.
#[derive(Clone)]
pub struct Front(Arc<Shared>);

struct Shared {
    /// Where the sessions' clock begins.
    started: Instant,
    router: Router,
    auth: Arc<Authenticator>,
    metrics: Arc<Metrics>,
    settings: Settings,
    free: Arc<Semaphore>,
    users: Option<Arc<Quota<User>>>,
    spread: Arc<Spread>,
    addresses: Option<Arc<Quota<IpAddr>>>,
    last_session: AtomicU64,
    /// Sockets take leave of their clients.
    stopping: CancellationToken,
    /// Sockets end at once.
    ending: CancellationToken,
    sockets: TaskTracker,
}

impl fmt::Debug for Front {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Front")
            .field("settings", &self.0.settings)
            .finish_non_exhaustive()
    }
}

impl Front {
    /// Clients are verified by `auth` and served from `router`.
    #[must_use]
    pub fn new(
        router: Router,
        auth: Arc<Authenticator>,
        metrics: Arc<Metrics>,
        settings: Settings,
    ) -> Self {
        let sockets = settings.max_connections.min(Semaphore::MAX_PERMITS);
        let users = settings.max_connections_per_user;
        let addresses = settings.max_connections_per_address;
        Self(Arc::new(Shared {
            started: Instant::now(),
            spread: Arc::new(Spread::new(settings.resync_spread)),
            users: Quota::new(users, Refused::User, Arc::clone(&metrics)),
            addresses: Quota::new(addresses, Refused::Address, Arc::clone(&metrics)),
            router,
            auth,
            metrics,
            settings,
            free: Arc::new(Semaphore::new(sockets)),
            last_session: AtomicU64::new(0),
            stopping: CancellationToken::new(),
            ending: CancellationToken::new(),
            sockets: TaskTracker::new(),
        }))
    }

    fn next_session(&self) -> SessionId {
        SessionId(self.0.last_session.fetch_add(1, Ordering::Relaxed) + 1)
    }
}

/// The paths that clients know; others may be merged into the same listener.
pub fn routes(front: &Front) -> Routes {
    Routes::new()
        .route("/realtime/v1/websocket", any(upgrade::websocket))
        .route("/socket/websocket", any(upgrade::websocket))
        .route("/realtime/v1/api/ping", get(ping))
        .route("/api/ping", get(ping))
        .route("/healthz", get(async || "ok"))
        .layer(axum::middleware::from_fn_with_state(
            front.clone(),
            origin::guard,
        ))
        .with_state(front.clone())
}

async fn ping() -> axum::Json<serde_json::Value> {
    axum::Json(serde_json::json!({ "message": "Success" }))
}
