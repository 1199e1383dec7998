//! Which tables changed when, and which were emptied, as far as the router has seen.

use std::collections::HashMap;
use std::sync::{Mutex, PoisonError};

use crate::change::Kind;
use crate::log::{Entry, Offset};
use crate::pg::{Lsn, Oid, Xid};

/// The newest change of each table. The router notes them, cohorts ask.
#[derive(Debug)]
pub(super) struct Changed {
    /// Nothing is known of what lies before.
    from: Offset,
    /// With where its transaction ends, if that is known.
    newest: Mutex<HashMap<Oid, (Offset, Option<Offset>)>>,
    /// The transaction that truncated a table last, and where it committed.
    emptied: Mutex<HashMap<Oid, (Xid, Lsn)>>,
}

impl Changed {
    pub(super) fn since(from: Offset) -> Self {
        Self {
            from,
            newest: Mutex::default(),
            emptied: Mutex::default(),
        }
    }

    pub(super) fn note(&self, entry: &Entry) {
        let mut newest = self.newest.lock().unwrap_or_else(PoisonError::into_inner);
        let mut last = None;
        for (offset, change) in entry.changes() {
            let oid = change.relation.oid;
            if matches!(change.kind, Kind::Truncate) {
                let mut emptied = self.emptied.lock().unwrap_or_else(PoisonError::into_inner);
                emptied.insert(oid, (entry.batch.xid, entry.batch.commit_lsn));
            }
            if last != Some(oid) {
                last = Some(oid);
                // Of a run of changes the first will do: they are one transaction's.
                let end = entry.batch.last.then(|| entry.end());
                newest.insert(oid, (offset, end));
            }
        }
    }

    /// The transaction that truncated a table last as far as the stream says, and where it
    /// committed.
    pub(super) fn emptied(&self, table: Oid) -> Option<(Xid, Lsn)> {
        let emptied = self.emptied.lock().unwrap_or_else(PoisonError::into_inner);
        emptied.get(&table).copied()
    }

    /// From where on a table is known not to have changed up to `place`, which is where the router is,
    /// if the log has its changes at all.
    pub(super) fn unchanged_since(&self, table: Oid, place: Offset) -> Offset {
        let newest = self.newest.lock().unwrap_or_else(PoisonError::into_inner);
        match newest.get(&table) {
            Some((_, end)) => end.unwrap_or(place),
            None => self.from,
        }
    }

    /// Whether none of the tables has changed from `offset` on.
    pub(super) fn unchanged_from(&self, offset: Offset, tables: &[Oid]) -> bool {
        let newest = self.newest.lock().unwrap_or_else(PoisonError::into_inner);
        let unchanged = |table| {
            newest
                .get(table)
                .is_none_or(|(changed, _)| *changed < offset)
        };
        tables.is_empty() || offset >= self.from && tables.iter().all(unchanged)
    }
}
