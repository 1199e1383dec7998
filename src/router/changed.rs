//! Which tables changed when, as far as the router has seen.

use std::collections::HashMap;
use std::sync::{Mutex, PoisonError};

use crate::log::{Entry, Offset};
use crate::pg::Oid;

/// The newest change of each table. The router notes them, cohorts ask.
#[derive(Debug)]
pub(super) struct Changed {
    /// Nothing is known of what lies before.
    from: Offset,
    newest: Mutex<HashMap<Oid, Offset>>,
}

impl Changed {
    pub(super) fn since(from: Offset) -> Self {
        Self {
            from,
            newest: Mutex::default(),
        }
    }

    pub(super) fn note(&self, entry: &Entry) {
        let mut newest = self.newest.lock().unwrap_or_else(PoisonError::into_inner);
        let mut last = None;
        for (offset, change) in entry.changes() {
            let oid = change.relation.oid;
            if last != Some(oid) {
                last = Some(oid);
                // Of a run of changes the first will do: they are one transaction's.
                newest.insert(oid, offset);
            }
        }
    }

    /// Whether none of the tables has changed from `offset` on.
    pub(super) fn unchanged_from(&self, offset: Offset, tables: &[Oid]) -> bool {
        let newest = self.newest.lock().unwrap_or_else(PoisonError::into_inner);
        let unchanged = |table| newest.get(table).is_none_or(|changed| *changed < offset);
        tables.is_empty() || offset >= self.from && tables.iter().all(unchanged)
    }
}
