//! Every metric by name. Labels come from closed sets only: never a user, a topic or a table.

pub mod mirrors;

pub mod recent;

use std::sync::Arc;
use std::sync::atomic::{AtomicI64, AtomicU64};

use prometheus_client::encoding::EncodeLabelSet;
use prometheus_client::encoding::text::encode;
use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::family::Family;
use prometheus_client::metrics::gauge::Gauge;
use prometheus_client::metrics::histogram::{Histogram, exponential_buckets};
use prometheus_client::registry::{Registry, Unit};

use self::mirrors::{Mirrors, Names};

/// Why a change was not delivered to somebody who asked for it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum HiddenReason {
    /// The policies say no.
    Policy,
    /// A policy raised an error on the row.
    PolicyError,
    /// PostgreSQL could not answer the question.
    AskFailed,
    /// PostgreSQL did not answer the question in time.
    AskTimeout,
    /// The catalog changed and the row lies in between.
    CatalogChanged,
    /// A policy reads an out-of-line value that the stream does not carry.
    UnchangedToast,
    /// The old row of a delete does not carry what the policies read.
    DeleteWithoutIdentity,
    /// The old row of an update does not carry what tells whom it left.
    LeaveWithoutIdentity,
    /// The change could not be decoded.
    Undecodable,
    /// The transaction was larger than the log.
    TooLarge,
}

impl HiddenReason {
    const ALL: [Self; 10] = [
        Self::Policy,
        Self::PolicyError,
        Self::AskFailed,
        Self::AskTimeout,
        Self::CatalogChanged,
        Self::UnchangedToast,
        Self::DeleteWithoutIdentity,
        Self::LeaveWithoutIdentity,
        Self::Undecodable,
        Self::TooLarge,
    ];

    const fn as_str(self) -> &'static str {
        match self {
            Self::Policy => "policy",
            Self::PolicyError => "policy_error",
            Self::AskFailed => "ask_failed",
            Self::AskTimeout => "ask_timeout",
            Self::CatalogChanged => "catalog_changed",
            Self::UnchangedToast => "unchanged_toast",
            Self::DeleteWithoutIdentity => "delete_without_identity",
            Self::LeaveWithoutIdentity => "leave_without_identity",
            Self::Undecodable => "undecodable",
            Self::TooLarge => "too_large",
        }
    }
}

/// Why a client did not get a socket, or a channel because of how many sockets there are.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Refused {
    /// Its token or key is missing or bad.
    Token,
    /// The web page that it belongs to is none of the allowed ones.
    Origin,
    /// It asked for a version of the protocol that is not spoken.
    Version,
    /// All sockets are taken.
    Connections,
    /// All sockets of its address are taken.
    Address,
    /// All sockets of its user are taken.
    User,
    /// The server stops.
    Stopping,
}

impl Refused {
    const fn as_str(self) -> &'static str {
        match self {
            Self::Token => "token",
            Self::Origin => "origin",
            Self::Version => "version",
            Self::Connections => "connections",
            Self::Address => "address",
            Self::User => "user",
            Self::Stopping => "stopping",
        }
    }
}

#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
struct ReasonLabel {
    reason: &'static str,
}

#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
struct OutcomeLabel {
    outcome: &'static str,
}

#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
struct StateLabel {
    state: &'static str,
}

/// All metrics of a process. Cheap to share; every field may be used from any task.
#[derive(Debug)]
pub struct Metrics {
    registry: Registry,
    /// Open client sockets.
    pub connections: Gauge,
    /// Bindings in force.
    pub subscriptions: Gauge,
    /// Row changes read from PostgreSQL.
    pub changes_read: Counter,
    /// Changes handed to a client's socket, counted once for each client.
    pub changes_delivered: Counter,
    hidden: Family<ReasonLabel, Counter>,
    /// The last changes that were hidden, while somebody looks.
    pub recent: Arc<recent::Recent>,
    closes: Family<ReasonLabel, Counter>,
    refusals: Family<ReasonLabel, Counter>,
    /// Seconds from a change's commit to its frame being written to the socket; changes of one
    /// transaction that are written together count once.
    pub commit_to_socket: Histogram,
    /// WAL that the slot retains behind the server's position, in bytes.
    pub slot_lag_bytes: Gauge,
    /// Questions (a row under a role and claims) asked of PostgreSQL.
    pub questions: Counter<u64, AtomicU64>,
    /// 1 while changes flow from PostgreSQL, 0 while the source is reconnecting.
    pub source_up: Gauge<i64, AtomicI64>,
    /// Times the source lost its connection or could not get it.
    pub source_retries: Counter,
    /// 1 while the log stores changes, 0 while the disk takes nothing.
    pub log_up: Gauge<i64, AtomicI64>,
    /// Times a new history began: everybody connected had to read again.
    pub histories: Counter,
    /// Times the slot was given up on purpose: it kept too much, or its stream could not go on.
    pub slots_given_up: Counter,
    /// Times the catalog was read anew because it changed.
    pub catalog_reloads: Counter,
    /// Rules of the settings that are not in force.
    pub rules_refused: Gauge,
    /// Compiled policies that a check has found wrong: PostgreSQL is asked about them.
    pub policies_refused: Gauge,
    policy_checks: Family<OutcomeLabel, Counter>,
    /// How long the last look at the catalog took, in seconds.
    pub catalog_look: Gauge<f64, AtomicU64>,
    /// How long is paused between two looks at the catalog, in seconds.
    pub catalog_interval: Gauge<f64, AtomicU64>,
    /// For how many seconds changes have been waiting for a commit that is in the stream and not
    /// visible; 0 where none wait.
    pub catalog_wait: Gauge<f64, AtomicU64>,
    /// Snapshots that channels asked for.
    pub snapshots: Counter,
    /// Snapshots that could not be given.
    pub snapshots_failed: Counter,
    /// Rows read for snapshots.
    pub snapshot_rows: Counter,
    /// The tables that policies look into.
    pub lookups: Mirrors,
    /// The published tables whose old rows the relay keeps itself.
    pub old_rows: Mirrors,
}

impl Default for Metrics {
    fn default() -> Self {
        Self::new()
    }
}

impl Metrics {
    /// A fresh set, all zero.
    #[must_use]
    pub fn new() -> Self {
        let mut registry = Registry::with_prefix("rowcast");
        let connections = Gauge::default();
        let subscriptions = Gauge::default();
        let changes_read = Counter::default();
        let changes_delivered = Counter::default();
        let hidden = Family::<ReasonLabel, Counter>::default();
        let closes = Family::<ReasonLabel, Counter>::default();
        let refusals = Family::<ReasonLabel, Counter>::default();
        // 50 microseconds to 27 seconds, each bucket twice the one before.
        let commit_to_socket = Histogram::new(exponential_buckets(50e-6, 2.0, 20));
        let slot_lag_bytes = Gauge::default();
        let questions = Counter::default();
        let source_up = Gauge::default();
        let source_retries = Counter::default();
        let log_up = Gauge::default();
        let histories = Counter::default();
        let slots_given_up = Counter::default();
        let catalog_reloads = Counter::default();
        let rules_refused = Gauge::default();
        let policies_refused = Gauge::default();
        let policy_checks = Family::<OutcomeLabel, Counter>::default();
        let catalog_look = Gauge::default();
        let catalog_interval = Gauge::default();
        let catalog_wait = Gauge::default();
        let snapshots = Counter::default();
        let snapshots_failed = Counter::default();
        let snapshot_rows = Counter::default();

        registry.register("connections", "Open client sockets", connections.clone());
        registry.register("subscriptions", "Bindings in force", subscriptions.clone());
        registry.register(
            "changes_read",
            "Row changes read from PostgreSQL",
            changes_read.clone(),
        );
        registry.register(
            "changes_delivered",
            "Changes handed to a client's socket, once for each client",
            changes_delivered.clone(),
        );
        registry.register(
            "changes_hidden",
            "Changes not delivered to a client that asked for them, by reason",
            hidden.clone(),
        );
        registry.register("closes", "Client sockets closed, by reason", closes.clone());
        registry.register(
            "refusals",
            "Clients that got no socket, or no channel for want of places, by reason",
            refusals.clone(),
        );
        registry.register_with_unit(
            "commit_to_socket",
            "From a change's commit to its frame being written to the socket; what is written together of a transaction counts once",
            Unit::Seconds,
            commit_to_socket.clone(),
        );
        registry.register_with_unit(
            "slot_lag",
            "WAL that the slot retains behind the server's position",
            Unit::Bytes,
            slot_lag_bytes.clone(),
        );
        registry.register(
            "questions",
            "Questions (a row under a role and claims) asked of PostgreSQL",
            questions.clone(),
        );
        registry.register(
            "source_up",
            "1 while changes flow from PostgreSQL, 0 while the source reconnects",
            source_up.clone(),
        );
        registry.register(
            "source_retries",
            "Times the source lost its connection or could not get it",
            source_retries.clone(),
        );
        log_up.set(1);
        registry.register(
            "log_up",
            "1 while the log stores changes, 0 while the disk takes nothing",
            log_up.clone(),
        );
        registry.register(
            "log_histories",
            "Times a new history began and everybody had to read again",
            histories.clone(),
        );
        registry.register(
            "slots_given_up",
            "Times the slot was given up on purpose",
            slots_given_up.clone(),
        );
        registry.register(
            "catalog_reloads",
            "Times the catalog was read anew because it changed",
            catalog_reloads.clone(),
        );
        registry.register(
            "rules_refused",
            "Rules of the settings that are not in force, which hides their tables",
            rules_refused.clone(),
        );
        registry.register(
            "policies_refused",
            "Compiled policies that a check has found wrong, which PostgreSQL is asked about",
            policies_refused.clone(),
        );
        registry.register(
            "policy_checks",
            "Compiled policies held against PostgreSQL, by outcome",
            policy_checks.clone(),
        );
        registry.register_with_unit(
            "catalog_look",
            "How long the last look at the catalog took",
            Unit::Seconds,
            catalog_look.clone(),
        );
        registry.register_with_unit(
            "catalog_interval",
            "How long is paused between two looks at the catalog",
            Unit::Seconds,
            catalog_interval.clone(),
        );
        registry.register_with_unit(
            "catalog_wait",
            "For how long changes have been waiting for a commit that is not visible",
            Unit::Seconds,
            catalog_wait.clone(),
        );
        registry.register(
            "snapshots",
            "Snapshots that channels asked for",
            snapshots.clone(),
        );
        registry.register(
            "snapshots_failed",
            "Snapshots that could not be given",
            snapshots_failed.clone(),
        );
        registry.register(
            "snapshot_rows",
            "Rows read for snapshots",
            snapshot_rows.clone(),
        );
        let lookups = Mirrors::register(
            &mut registry,
            &Names {
                one: "lookup",
                all: "lookups",
                tables: "lookup tables",
            },
        );
        let old_rows = Mirrors::register(
            &mut registry,
            &Names {
                one: "old_row_mirror",
                all: "old_row_mirrors",
                tables: "published tables whose old rows the relay keeps itself",
            },
        );
        Self {
            registry,
            connections,
            subscriptions,
            changes_read,
            changes_delivered,
            hidden,
            recent: Arc::default(),
            closes,
            refusals,
            commit_to_socket,
            slot_lag_bytes,
            questions,
            source_up,
            source_retries,
            log_up,
            histories,
            slots_given_up,
            catalog_reloads,
            rules_refused,
            policies_refused,
            policy_checks,
            catalog_look,
            catalog_interval,
            catalog_wait,
            snapshots,
            snapshots_failed,
            snapshot_rows,
            lookups,
            old_rows,
        }
    }

    /// Counts compiled policies that were held against PostgreSQL, or could not be.
    pub fn policy_checked(&self, outcome: &'static str, policies: u64) {
        let label = OutcomeLabel { outcome };
        self.policy_checks.get_or_create(&label).inc_by(policies);
    }

    /// Counts changes hidden from clients that asked for them.
    pub fn hidden(&self, reason: HiddenReason, clients: u64) {
        if clients > 0 {
            self.hidden
                .get_or_create(&ReasonLabel {
                    reason: reason.as_str(),
                })
                .inc_by(clients);
        }
    }

    /// How many changes were hidden so far, by reason, without reasons that never were one.
    #[must_use]
    pub fn hidden_so_far(&self) -> Vec<(&'static str, u64)> {
        let counted = |reason: HiddenReason| {
            let reason = reason.as_str();
            Some((reason, self.hidden.get(&ReasonLabel { reason })?.get()))
        };
        HiddenReason::ALL.into_iter().filter_map(counted).collect()
    }

    /// Counts a closed client socket. `reason` is one of the session's close reasons.
    pub fn closed(&self, reason: &'static str) {
        self.closes.get_or_create(&ReasonLabel { reason }).inc();
    }

    /// Counts a client that was refused.
    pub fn refused(&self, reason: Refused) {
        let reason = reason.as_str();
        self.refusals.get_or_create(&ReasonLabel { reason }).inc();
    }

    /// The text that Prometheus reads (OpenMetrics 1.0).
    #[must_use]
    pub fn encode(&self) -> String {
        let mut text = String::new();
        // Writing to a String does not fail.
        let _written = encode(&mut text, &self.registry);
        text
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_promised_metric_is_in_the_text() {
        let metrics = Metrics::new();
        metrics.hidden(HiddenReason::PolicyError, 2);
        metrics.closed("slow");
        metrics.refused(Refused::Origin);
        metrics.policy_checked("agrees", 3);
        metrics.lookups.in_state("ready", 2);
        metrics.lookups.refused("privilege");
        metrics.old_rows.in_state("copying", 1);
        metrics.old_rows.refused("too_large");
        let text = metrics.encode();
        for expected in [
            "rowcast_connections 0",
            "rowcast_subscriptions 0",
            "rowcast_changes_read_total 0",
            "rowcast_changes_delivered_total 0",
            "rowcast_changes_hidden_total{reason=\"policy_error\"} 2",
            "rowcast_closes_total{reason=\"slow\"} 1",
            "rowcast_refusals_total{reason=\"origin\"} 1",
            "rowcast_commit_to_socket_seconds_bucket",
            "rowcast_slot_lag_bytes 0",
            "rowcast_questions_total 0",
            "rowcast_source_up 0",
            "rowcast_rules_refused 0",
            "rowcast_policies_refused 0",
            "rowcast_policy_checks_total{outcome=\"agrees\"} 3",
            "rowcast_catalog_look_seconds 0",
            "rowcast_catalog_interval_seconds 0",
            "rowcast_catalog_wait_seconds 0",
            "rowcast_snapshots_total 0",
            "rowcast_snapshots_failed_total 0",
            "rowcast_snapshot_rows_total 0",
            "rowcast_lookup_rows 0",
            "rowcast_lookup_bytes 0",
            "rowcast_lookup_copies_total 0",
            "rowcast_lookup_changes_total 0",
            "rowcast_lookups{state=\"ready\"} 2",
            "rowcast_lookup_refusals_total{reason=\"privilege\"} 1",
            "rowcast_old_row_mirror_rows 0",
            "rowcast_old_row_mirror_bytes 0",
            "rowcast_old_row_mirror_copies_total 0",
            "rowcast_old_row_mirror_changes_total 0",
            "rowcast_old_row_mirrors{state=\"copying\"} 1",
            "rowcast_old_row_mirror_refusals_total{reason=\"too_large\"} 1",
        ] {
            assert!(text.contains(expected), "{expected} is missing in\n{text}");
        }
    }
}
