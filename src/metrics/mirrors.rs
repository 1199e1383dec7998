//! What is counted of tables that are mirrored in memory.

use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::family::Family;
use prometheus_client::metrics::gauge::Gauge;
use prometheus_client::registry::{Registry, Unit};

use super::{ReasonLabel, StateLabel};

/// The mirrors for one purpose.
#[derive(Debug, Default)]
pub struct Mirrors {
    /// Rows in memory.
    pub rows: Gauge,
    /// About how much memory they hold, in bytes.
    pub bytes: Gauge,
    /// Tables that were copied.
    pub copies: Counter,
    /// Changes that were applied.
    pub changes: Counter,
    tables: Family<StateLabel, Gauge>,
    refusals: Family<ReasonLabel, Counter>,
}

/// What the metrics of a purpose are called, and what the help calls its tables.
pub(super) struct Names {
    pub(super) one: &'static str,
    pub(super) all: &'static str,
    pub(super) tables: &'static str,
}

impl Mirrors {
    pub(super) fn register(registry: &mut Registry, names: &Names) -> Self {
        let Names { one, all, tables } = names;
        let mirrors = Self::default();
        registry.register(
            format!("{one}_rows"),
            format!("Rows of {tables} in memory"),
            mirrors.rows.clone(),
        );
        registry.register_with_unit(
            *one,
            format!("About how much memory the mirrors of {tables} hold"),
            Unit::Bytes,
            mirrors.bytes.clone(),
        );
        registry.register(
            format!("{one}_copies"),
            format!("Times {tables} were copied"),
            mirrors.copies.clone(),
        );
        registry.register(
            format!("{one}_changes"),
            format!("Changes of {tables} that were applied to their mirrors"),
            mirrors.changes.clone(),
        );
        registry.register(
            *all,
            format!("Mirrors of {tables}, by state"),
            mirrors.tables.clone(),
        );
        registry.register(
            format!("{one}_refusals"),
            format!("Times {tables} were not mirrored, or their mirror given up, by reason"),
            mirrors.refusals.clone(),
        );
        mirrors
    }

    /// Says how many tables are in a state.
    pub fn in_state(&self, state: &'static str, tables: i64) {
        self.tables.get_or_create(&StateLabel { state }).set(tables);
    }

    /// Counts a table that is not mirrored, or whose mirror was given up.
    pub fn refused(&self, reason: &'static str) {
        self.refusals.get_or_create(&ReasonLabel { reason }).inc();
    }
}
