//! Rows as they were before changes: for tables whose rows subscribers are told of.

use std::sync::Arc;
use std::sync::atomic::Ordering;

use super::{Applied, Keeping, State};
use crate::log::{Entry, Offset};
use crate::lookup::{Column, Looked};
use crate::pg::Oid;

/// What of a row was there before a change, as far as it is mirrored.
#[derive(Debug, Clone)]
pub struct Before {
    /// The change.
    pub offset: Offset,
    /// The columns that are mirrored, in the order of the values.
    pub columns: Arc<[Column]>,
    /// The values right before that change, whatever its transaction did to the row until then.
    pub row: Looked,
}

impl Keeping {
    /// Takes the next entry of the log, and returns what its changes found, in the log's order. To be
    /// called for every entry, in the log's order, instead of [`Keeping::entry`], and before the first
    /// of its rows is judged. Where a mirror turns out to be of no use nothing is said of its table,
    /// and it is gone from [`Keeping::mirrored`].
    pub fn pass(&mut self, entry: &Entry) -> Vec<Before> {
        self.promote(|exact| entry.batch.commit_lsn >= exact);
        let mut found = Vec::new();
        let mut changed = false;
        for oid in self.touched(entry) {
            let Some(table) = self.tables.get_mut(&oid) else {
                continue;
            };
            let Some(kept) = &mut table.mirror else {
                continue;
            };
            changed = true;
            let before = found.len();
            if let Err(refusal) = kept.pass(entry, oid, &mut found) {
                found.truncate(before);
                self.give_up(oid, refusal, None);
            }
        }
        self.take_arriving(entry);
        self.place = entry.end();
        if !entry.batch.last {
            // Nothing comes into force amid a transaction.
            self.open.get_or_insert_with(|| Applied {
                before: self.lookups.clone(),
                deltas: Vec::new(),
            });
        } else {
            self.open = None;
            self.published.store(self.place.0, Ordering::Release);
        }
        if changed {
            self.counts().changes.inc_by(found.len() as u64);
            self.bound(&mut Vec::new());
            self.measure();
        }
        // Each table's are in order.
        found.sort_by_key(|before| before.offset);
        found
    }

    /// The tables that are mirrored, with what of them is.
    pub fn mirrored(&self) -> impl Iterator<Item = (Oid, Arc<[Column]>)> {
        self.tables.iter().filter_map(|(oid, table)| {
            let kept = table.mirror.as_ref()?;
            Some((*oid, kept.followed.mirror.shared_columns()))
        })
    }

    /// Whether a table has no mirror yet with all that is wanted, and nothing is known to stand against
    /// one.
    #[must_use]
    pub fn is_coming(&self, table: Oid) -> bool {
        let table = self.tables.get(&table);
        table.is_some_and(|table| {
            let order = table.mirror.as_ref().map(|kept| kept.order);
            order != Some(table.order.number) && !matches!(table.state, State::Refused(_))
        })
    }

    /// What copies on their way found of changes before they came into force, since this was asked
    /// last; in no order.
    pub fn take_found(&mut self) -> Vec<Before> {
        std::mem::take(&mut self.found)
    }
}
