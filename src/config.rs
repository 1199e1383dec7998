//! Every setting: its name, its default, and what a wrong value is answered with.

use std::collections::BTreeMap;
use std::fmt;
use std::net::SocketAddr;
use std::time::Duration;

pub use crate::router::DeleteWithoutIdentity;

/// A text that must not reach a log.
#[derive(Clone, PartialEq, Eq)]
pub struct Secret(String);

impl Secret {
    /// Hides a text.
    #[must_use]
    pub fn new(text: impl Into<String>) -> Self {
        Self(text.into())
    }

    /// The text. The name is long so that every use stands out.
    #[must_use]
    pub fn expose(&self) -> &str {
        &self.0
    }
}

impl fmt::Debug for Secret {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Secret(…)")
    }
}

/// The settings of `rowcast serve`, checked.
#[derive(Debug, Clone)]
pub struct Config {
    /// `DATABASE_URL`: where PostgreSQL is, as a URL or in libpq's `key=value` form.
    pub database_url: Secret,
    /// `JWT_SECRET`: the key of HS256, HS384 and HS512 tokens.
    pub jwt_secret: Option<Secret>,
    /// `JWKS_URL`: where the public keys of RS256, ES256 and EdDSA tokens are.
    pub jwks_url: Option<String>,
    /// Where clients connect.
    pub listen: SocketAddr,
    /// Where readiness and metrics are.
    pub admin_listen: SocketAddr,
    /// The replication slot.
    pub slot: String,
    /// The publication; `None` for `rowcast`, or `supabase_realtime` where only that exists.
    pub publication: Option<String>,
    /// The role of a token without a role claim.
    pub default_role: String,
    /// The claim that names the role.
    pub role_claim: String,
    /// Opaque API keys (`sb_publishable_…`, `sb_secret_…`) and the role that each stands for.
    pub api_keys: BTreeMap<String, String>,
    /// Refuse published tables without row-level security.
    pub require_rls: bool,
    /// What a delete is answered with whose old row cannot be judged.
    pub delete_without_identity: DeleteWithoutIdentity,
    /// The memory log's bound, in changes.
    pub log_max_changes: usize,
    /// The memory log's bound, in bytes.
    pub log_max_bytes: usize,
    /// Client sockets at once.
    pub max_connections: usize,
    /// Channels of one socket.
    pub max_channels: usize,
    /// Joins a second on one socket.
    pub max_joins_per_second: u32,
    /// The largest frame taken from a client, in bytes.
    pub max_frame_bytes: usize,
    /// Events that may wait for one socket.
    pub outbox_max_events: usize,
    /// Bytes of changes that may wait for one socket.
    pub outbox_max_bytes: usize,
    /// How long a question to PostgreSQL may take before its rows are hidden.
    pub ask_timeout: Duration,
    /// How often the catalog is looked at.
    pub catalog_interval: Duration,
    /// How long sockets may take to close at the end.
    pub drain: Duration,
}
