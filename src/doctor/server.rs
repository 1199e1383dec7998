//! The server, and what it leaves a relay.

use std::collections::HashMap;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use serde::Deserialize;
use serde_json::Value;
use tokio::time::Instant;
use tokio_postgres::Client;

use super::Finding;
use super::plugins::{self, Libraries};
use crate::config::Config;
use crate::pg::quote_identifier;
use crate::pg::refusal::with_causes;
use crate::source;

const LOOK: &str = include_str!("../../sql/doctor_server.sql");

/// How many sessions a relay has at most, but for those that read rows for clients.
const SESSIONS: i64 = 12;

/// How far two clocks may be apart: tokens are good for minutes.
const SKEW: f64 = 5.0;

/// What the server says of itself, as far as this login is told.
#[derive(Debug, Deserialize)]
pub(super) struct Facts {
    pub(super) version: String,
    pub(super) version_num: i32,
    pub(super) database: String,
    pub(super) login: String,
    /// Whom its sessions act as.
    acting: String,
    pub(super) standby: bool,
    replicates: Option<bool>,
    pub(super) temporary: bool,
    settings: HashMap<String, String>,
    pub(super) slots: i64,
    senders: i64,
    pub(super) standbys: i64,
    /// The sessions of standbys that commits wait for, or may.
    synchronous: i64,
    connections: Option<i64>,
    database_limit: Option<i64>,
    login_limit: Option<i64>,
    login_sessions: i64,
    /// Sessions of others of which this login is not told what they do.
    hidden_sessions: i64,
    pub(super) slot: Option<Value>,
    pub(super) others: Vec<Other>,
    clock: f64,
    /// What `output_plugin_libraries` is.
    #[serde(skip)]
    libraries: Libraries,
    /// What the clock here said meanwhile, in seconds since 1970.
    #[serde(skip)]
    here: f64,
    /// How long a question takes at least.
    #[serde(skip)]
    pub(super) round_trip: Duration,
}

/// Another slot that nobody reads.
#[derive(Debug, Deserialize)]
pub(super) struct Other {
    pub(super) name: String,
    pub(super) retained: Option<i64>,
}

fn unix() -> f64 {
    let since = SystemTime::now().duration_since(UNIX_EPOCH);
    since.unwrap_or_default().as_secs_f64()
}

impl Facts {
    pub(super) async fn read(client: &Client, slot: &str) -> Result<Self, String> {
        let words = |error: tokio_postgres::Error| with_causes(&error);
        let statement = client.prepare(LOOK).await.map_err(words)?;
        let (before, began) = (unix(), Instant::now());
        let row = client
            .query_one(&statement, &[&slot])
            .await
            .map_err(words)?;
        let took = began.elapsed();
        let said: Value = row.try_get(0).map_err(words)?;
        let mut facts: Self = serde_json::from_value(said).map_err(|error| error.to_string())?;
        facts.here = before + took.as_secs_f64() / 2.0;
        facts.libraries = Libraries::read(client).await.map_err(words)?;
        let began = Instant::now();
        client.query_one("select 1", &[]).await.map_err(words)?;
        facts.round_trip = began.elapsed();
        Ok(facts)
    }

    fn number(&self, setting: &str) -> Option<i64> {
        self.settings.get(setting)?.parse().ok()
    }

    /// Whether the server says for the login that it may not replicate.
    pub(super) fn lacks_replication(&self) -> bool {
        self.replicates == Some(false)
            || self
                .settings
                .get("wal_level")
                .is_some_and(|l| l == "minimal")
    }

    /// What sets something for the relay's login, whatever is set for the login or the database
    /// alone.
    pub(super) fn set_for_login(&self, name: &str, value: &str) -> String {
        format!(
            "alter role {} in database {} set {name} = {value}",
            quote_identifier(&self.login),
            quote_identifier(&self.database)
        )
    }

    /// Whether somebody reads the slot.
    pub(super) fn is_read(&self) -> bool {
        let active = self.slot.as_ref().and_then(|slot| slot.get("active"));
        active.and_then(Value::as_bool) == Some(true)
    }

    pub(super) fn no_senders_left(&self) -> Finding {
        let most = self.number("max_wal_senders").unwrap_or(0);
        let wanted = most + 10;
        Finding::error(
            "wal_senders_exhausted",
            format!(
                "all {most} WAL senders of the server are taken: the relay cannot read the slot"
            ),
        )
        .sql(format!("alter system set max_wal_senders = {wanted}"))
        .advice("Then restart PostgreSQL, or end replication sessions that nobody needs.")
    }

    pub(super) fn findings(&self, config: &Config) -> Vec<Finding> {
        let mut found = Vec::new();
        if self.standby {
            found.push(
                Finding::error(
                    "standby",
                    if self.version_num < 160_000 {
                        "this server is a standby, which has no logical replication before \
                         PostgreSQL 16: the relay needs the primary"
                    } else {
                        "this server is a standby: the relay reads the catalog, and so needs the \
                         primary"
                    },
                )
                .advice(
                    "Point DATABASE_URL at the primary; with several hosts in it, \
                     target_session_attrs=read-write finds it.",
                ),
            );
        }
        if self.number("max_slot_wal_keep_size") == Some(-1) {
            found.push(
                Finding::warning("slot_wal_unbounded", source::UNBOUNDED)
                    .sql("alter system set max_slot_wal_keep_size = '10GB'")
                    .sql("select pg_reload_conf()"),
            );
        }
        if let Libraries::Some(libraries) = &self.libraries {
            found.extend(plugins::finding(libraries));
        }
        let most = self.number("max_replication_slots").unwrap_or(i64::MAX);
        if self.slot.is_none() && self.slots >= most {
            found.push(
                Finding::error(
                    "slots_exhausted",
                    source::SourceError::SlotsExhausted.to_string(),
                )
                .sql(format!(
                    "alter system set max_replication_slots = {}",
                    most.saturating_add(10)
                ))
                .advice("Then restart PostgreSQL; or drop a slot that nobody needs."),
            );
        }
        let senders = self.number("max_wal_senders").unwrap_or(i64::MAX);
        if !self.is_read()
            && self.senders >= senders
            && self.replicates == Some(true)
            && senders == 0
        {
            found.push(self.no_senders_left());
        }
        found.extend(self.acting_as_another());
        found.extend(self.hanging());
        found.extend(self.connections(config));
        found.extend(self.timeouts());
        if !self.temporary {
            found.push(
                Finding::warning(
                    "login_temporary",
                    format!(
                        "the login {} may make no temporary objects in database {}: SQL functions \
                         that policies call cannot be resolved, so those policies are asked of \
                         PostgreSQL, and some rows are hidden",
                        self.login, self.database
                    ),
                )
                .sql(format!(
                    "grant temporary on database {} to {}",
                    quote_identifier(&self.database),
                    quote_identifier(&self.login)
                )),
            );
        }
        let skew = self.clock - self.here;
        if skew.abs() > SKEW + self.round_trip.as_secs_f64() {
            found.push(
                Finding::warning(
                    "clock_skew",
                    format!(
                        "the clock of this machine is {:.0} s {} that of the database: tokens seem \
                         to end, or to begin, at other times than they say",
                        skew.abs(),
                        if skew > 0.0 { "behind" } else { "ahead of" }
                    ),
                )
                .advice("Have both machines keep their time by NTP."),
            );
        }
        found
    }

    /// A role that is set for the login's sessions: what it may does not count then.
    fn acting_as_another(&self) -> Option<Finding> {
        let (login, acting) = (&self.login, &self.acting);
        (login != acting).then(|| {
            Finding::error(
                "login_role",
                format!(
                    "sessions of the login {login} begin as {acting} (set role, for the login, the \
                     database or in DATABASE_URL): the relay has {acting}'s rights, not its own"
                ),
            )
            .sql(self.set_for_login("role", "none"))
            .advice("Where the options in DATABASE_URL set it, take it out there.")
        })
    }

    /// Commits that wait for a standby that is not there: nobody can read them meanwhile, so the relay
    /// does not tell of them.
    fn hanging(&self) -> Option<Finding> {
        let set = |name: &str| self.settings.get(name).map_or("", String::as_str);
        let names = set("synchronous_standby_names").trim();
        let waited_for = !matches!(set("synchronous_commit"), "off" | "local");
        (!self.standby && !names.is_empty() && waited_for && self.synchronous == 0).then(|| {
            Finding::error(
                "synchronous_standby",
                format!(
                    "commits wait for a synchronous standby ({names}), and none is connected: they hang, \
                     and the relay's clients with them"
                ),
            )
            .sql("alter system set synchronous_standby_names = ''")
            .sql("select pg_reload_conf()")
            .advice("Or start the standby; without one, commits are on this server alone.")
        })
    }

    /// Whether a relay gets its sessions.
    fn connections(&self, config: &Config) -> Vec<Finding> {
        let mut found = Vec::new();
        let wanted = SESSIONS + i64::try_from(config.snapshot.sessions).unwrap_or(0);
        // A relay that runs has most of its own.
        let wanted = if self.is_read() { 4 } else { wanted };
        let (most, taken) = (self.number("max_connections"), self.connections);
        if let (Some(most), Some(taken)) = (most, taken) {
            let kept = self.number("superuser_reserved_connections").unwrap_or(0)
                + self.number("reserved_connections").unwrap_or(0);
            let free = (most - kept - taken).max(0);
            if free < wanted {
                found.push(
                    Finding::warning(
                        "connections_few",
                        format!(
                            "{free} of the server's {most} connections are free, and the relay needs \
                             up to {wanted} more: what it cannot ask it hides"
                        ),
                    )
                    .sql(format!(
                        "alter system set max_connections = {}",
                        most + wanted + 10
                    ))
                    .advice("Then restart PostgreSQL; or end sessions that nobody needs."),
                );
            }
        }
        let login = quote_identifier(&self.login);
        if let Some(limit) = self.login_limit.filter(|limit| *limit >= 0)
            && limit - self.login_sessions < wanted
        {
            found.push(
                Finding::warning(
                    "login_connection_limit",
                    format!(
                        "the login {} may have {limit} sessions, and the relay needs up to {wanted} \
                         more than it has: what it cannot ask it hides",
                        self.login
                    ),
                )
                .sql(format!("alter role {login} connection limit -1")),
            );
        }
        if let Some(limit) = self.database_limit.filter(|limit| *limit >= 0)
            && limit < wanted
        {
            found.push(
                Finding::warning(
                    "database_connection_limit",
                    format!(
                        "database {} allows {limit} sessions, and the relay needs up to {wanted}",
                        self.database
                    ),
                )
                .sql(format!(
                    "alter database {} connection limit -1",
                    quote_identifier(&self.database)
                )),
            );
        }
        found
    }

    /// Settings of the login that end its sessions.
    fn timeouts(&self) -> Vec<Finding> {
        let mut found = Vec::new();
        for (name, least, what) in [
            (
                "statement_timeout",
                10_000,
                "making the slot, and copying tables that policies read, is broken off",
            ),
            (
                "idle_session_timeout",
                i64::MAX,
                "the relay's sessions are ended while nothing is to be asked, and rows wait or are \
                 hidden until they are there again",
            ),
            (
                "transaction_timeout",
                60_000,
                "copying tables that policies read is broken off",
            ),
        ] {
            let Some(limit) = self
                .number(name)
                .filter(|limit| *limit > 0 && *limit < least)
            else {
                continue;
            };
            found.push(
                Finding::warning(
                    "login_timeout",
                    format!("{name} is {limit} ms for the login {}: {what}", self.login),
                )
                .sql(self.set_for_login(name, "0")),
            );
        }
        found
    }

    /// What this login is not told.
    pub(super) fn unseen(&self) -> Vec<String> {
        let mut unseen = Vec::new();
        let reader = self.slot.as_ref().and_then(|slot| slot.get("reader_login"));
        if self.is_read() && reader.is_none_or(Value::is_null) {
            unseen.push(format!(
                "who reads the slot: {} may not see others' sessions (grant pg_read_all_stats to {})",
                self.login,
                quote_identifier(&self.login)
            ));
        }
        if self.slot.is_none() && self.hidden_sessions > 0 {
            unseen.push(format!(
                "what a relay would wait for when it makes its slot: {} may not see how long the \
                 transactions of {} other sessions have been open (grant pg_read_all_stats to {})",
                self.login,
                self.hidden_sessions,
                quote_identifier(&self.login)
            ));
        }
        if matches!(self.libraries, Libraries::Hidden) {
            unseen.push(format!(
                "whether output_plugin_libraries names pgoutput: {} may not see it (grant \
                 pg_read_all_settings to {})",
                self.login,
                quote_identifier(&self.login)
            ));
        }
        unseen
    }
}
