//! Every setting: its name, its default, and what a wrong value is answered with.
//!
//! One table ([`settings::SETTINGS`]) drives the flags, the environment, `rowcast.toml`, the help
//! and the printed file, so none of them can drift from the others.

pub mod settings;

mod load;

mod print;

mod rules;

mod value;

use std::collections::BTreeMap;
use std::fmt;
use std::net::SocketAddr;
use std::path::PathBuf;
use std::time::Duration;

pub use crate::policy::rule::{Require, Rule};
pub use crate::router::{DeleteWithoutIdentity, Leaves, OldRowTables};
pub use crate::snapshot::Settings as SnapshotSettings;
pub use crate::transport::{Origins, Proxies};
pub use load::{ConfigError, Given, Loaded, load, warnings};
pub use print::{markdown, toml_file};
pub(crate) use value::duration as parse_duration;

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
#[derive(Clone)]
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
    /// The lookups' publication; `None` for one that is named after the slot.
    pub lookup_publication: Option<String>,
    /// The most memory of all mirrors of lookup tables together, in bytes.
    pub max_lookup_bytes: usize,
    /// The tables whose old rows the relay keeps itself.
    pub old_rows: OldRowTables,
    /// The most memory of what is kept of old rows, in bytes.
    pub max_old_row_bytes: usize,
    /// The role of a token without a role claim.
    pub default_role: String,
    /// The claim that names the role.
    pub role_claim: String,
    /// Opaque API keys (`sb_publishable_…`, `sb_secret_…`) and the role that each stands for.
    pub api_keys: BTreeMap<String, String>,
    /// What published tables must have.
    pub require: Require,
    /// Conditions that rows have to pass besides what PostgreSQL's policies say.
    pub rules: Vec<Rule>,
    /// What a delete is answered with whose old row cannot be judged.
    pub delete_without_identity: DeleteWithoutIdentity,
    /// Who is told of rows that leave their view.
    pub leave: Leaves,
    /// The directory of the log; `None` for one in memory.
    pub data: Option<PathBuf>,
    /// How long the log on disk keeps changes.
    pub log_retention: Duration,
    /// The bytes that the log on disk keeps.
    pub log_retention_bytes: u64,
    /// The most WAL that the slot may keep, in bytes; 0 for any amount.
    pub max_retained_wal: u64,
    /// The memory log's bound, in changes.
    pub log_max_changes: usize,
    /// The memory log's bound, in bytes.
    pub log_max_bytes: usize,
    /// A larger change goes out without its large values, in bytes.
    pub max_record_bytes: usize,
    /// Client sockets at once.
    pub max_connections: usize,
    /// Sockets of one user at once; 0 for as many as there are.
    pub max_connections_per_user: usize,
    /// Sockets of one address at once; 0 for as many as there are.
    pub max_connections_per_address: usize,
    /// The proxies whose `X-Forwarded-For` is believed.
    pub trusted_proxies: Proxies,
    /// The web pages that may connect.
    pub allowed_origins: Origins,
    /// Channels of one socket.
    pub max_channels: usize,
    /// Joins a second on one socket.
    pub max_joins_per_second: u32,
    /// Different filters of a socket or user that PostgreSQL is asked about; 0 for as many as there
    /// are.
    pub max_asked_filters: usize,
    /// The largest frame taken from a client, in bytes.
    pub max_frame_bytes: usize,
    /// Events that may wait for one socket.
    pub outbox_max_events: usize,
    /// Bytes of changes that may wait for one socket.
    pub outbox_max_bytes: usize,
    /// How long a question to PostgreSQL may take before its rows are hidden.
    pub ask_timeout: Duration,
    /// Whether compiled policies are held against PostgreSQL.
    pub policy_check: bool,
    /// What snapshots may cost: sessions, rows, bytes and time.
    pub snapshot: SnapshotSettings,
    /// How often the catalog is looked at.
    pub catalog_interval: Duration,
    /// Over how long channels that are told to join again are, at most.
    pub resync_spread: Duration,
    /// How long sockets may take to close at the end.
    pub drain: Duration,
    /// What is logged, in the words of `tracing`'s filters.
    pub log: String,
    /// How a log line looks.
    pub log_format: LogFormat,
}

impl Config {
    /// The lookups' publication.
    #[must_use]
    pub fn lookup_publication(&self) -> String {
        self.lookup_publication.clone().unwrap_or_else(|| {
            // PostgreSQL keeps 63 bytes of a name; a slot's is of ASCII.
            let slot: String = self.slot.chars().take(55).collect();
            format!("{slot}_lookups")
        })
    }

    /// Settings without a value yet; [`load()`] gives every one of them its default or better.
    fn blank() -> Self {
        let nowhere = SocketAddr::from(([127, 0, 0, 1], 0));
        Self {
            database_url: Secret::new(""),
            jwt_secret: None,
            jwks_url: None,
            listen: nowhere,
            admin_listen: nowhere,
            slot: String::new(),
            publication: None,
            lookup_publication: None,
            max_lookup_bytes: 0,
            old_rows: OldRowTables::default(),
            max_old_row_bytes: 0,
            default_role: String::new(),
            role_claim: String::new(),
            api_keys: BTreeMap::new(),
            require: Require::None,
            rules: Vec::new(),
            delete_without_identity: DeleteWithoutIdentity::Suppress,
            leave: Leaves::Asked,
            data: None,
            log_retention: Duration::ZERO,
            log_retention_bytes: 0,
            max_retained_wal: 0,
            log_max_changes: 0,
            log_max_bytes: 0,
            max_record_bytes: 0,
            max_connections: 0,
            max_connections_per_user: 0,
            max_connections_per_address: 0,
            trusted_proxies: Proxies::default(),
            allowed_origins: Origins::Any,
            max_channels: 0,
            max_joins_per_second: 0,
            max_asked_filters: 0,
            max_frame_bytes: 0,
            outbox_max_events: 0,
            outbox_max_bytes: 0,
            ask_timeout: Duration::ZERO,
            policy_check: true,
            snapshot: SnapshotSettings::default(),
            catalog_interval: Duration::ZERO,
            resync_spread: Duration::ZERO,
            drain: Duration::ZERO,
            log: String::new(),
            log_format: LogFormat::Auto,
        }
    }
}

/// By hand because an opaque API key is as good as a password: only their number is shown.
impl fmt::Debug for Config {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Config")
            .field("database_url", &self.database_url)
            .field("jwt_secret", &self.jwt_secret)
            .field("jwks_url", &self.jwks_url)
            .field("listen", &self.listen)
            .field("admin_listen", &self.admin_listen)
            .field("slot", &self.slot)
            .field("publication", &self.publication)
            .field("lookup_publication", &self.lookup_publication)
            .field("max_lookup_bytes", &self.max_lookup_bytes)
            .field("old_rows", &self.old_rows)
            .field("max_old_row_bytes", &self.max_old_row_bytes)
            .field("default_role", &self.default_role)
            .field("role_claim", &self.role_claim)
            .field("api_keys", &self.api_keys.len())
            .field("require", &self.require)
            .field("rules", &self.rules)
            .field("delete_without_identity", &self.delete_without_identity)
            .field("leave", &self.leave)
            .field("data", &self.data)
            .field("log_retention", &self.log_retention)
            .field("log_retention_bytes", &self.log_retention_bytes)
            .field("max_retained_wal", &self.max_retained_wal)
            .field("log_max_changes", &self.log_max_changes)
            .field("log_max_bytes", &self.log_max_bytes)
            .field("max_record_bytes", &self.max_record_bytes)
            .field("max_connections", &self.max_connections)
            .field("max_connections_per_user", &self.max_connections_per_user)
            .field(
                "max_connections_per_address",
                &self.max_connections_per_address,
            )
            .field("trusted_proxies", &self.trusted_proxies)
            .field("allowed_origins", &self.allowed_origins)
            .field("max_channels", &self.max_channels)
            .field("max_joins_per_second", &self.max_joins_per_second)
            .field("max_asked_filters", &self.max_asked_filters)
            .field("max_frame_bytes", &self.max_frame_bytes)
            .field("outbox_max_events", &self.outbox_max_events)
            .field("outbox_max_bytes", &self.outbox_max_bytes)
            .field("ask_timeout", &self.ask_timeout)
            .field("policy_check", &self.policy_check)
            .field("snapshot", &self.snapshot)
            .field("catalog_interval", &self.catalog_interval)
            .field("resync_spread", &self.resync_spread)
            .field("drain", &self.drain)
            .field("log", &self.log)
            .field("log_format", &self.log_format)
            .finish()
    }
}

/// How a log line looks.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum LogFormat {
    /// Text on a terminal, JSON elsewhere.
    Auto,
    /// For people.
    Text,
    /// One JSON object a line.
    Json,
}

#[cfg(test)]
mod tests;
