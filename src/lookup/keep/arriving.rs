//! A copy on its way to the place where the state is.

use std::collections::HashMap;
use std::fmt;
use std::sync::Arc;
use std::time::Duration;

use futures_util::FutureExt;
use futures_util::future::{BoxFuture, pending};

use super::kept::Kept;
use super::reason::{Cause, Refusal};
use super::{Before, Table};
use crate::log::{Entry, Log, LogError, Offset};
use crate::pg::snapshot::Snapshot;
use crate::pg::{Lsn, Oid};

/// How often it is looked whether the stream has passed a copy's snapshot. Nothing rings then.
pub(super) const LOOK_AGAIN: Duration = Duration::from_millis(20);

/// Entries read at once.
const ENTRIES: usize = 64;

/// Rows before changes that a copy notes on its way; of more than these the last ones count.
const FOUND: usize = 1 << 16;

/// A copy, and where it stands in the log.
pub(super) struct Arriving {
    pub(super) kept: Kept,
    /// It has everything before.
    pub(super) next: Offset,
    /// Where it began.
    began: Offset,
    /// What it had when it was copied.
    pub(super) snapshot: Option<Arc<Snapshot>>,
    /// Where the server stood when it was copied: before that it may show what lies ahead.
    pub(super) exact_from: Lsn,
    /// What the changes found that were applied on the way, where that is asked for.
    pub(super) found: Vec<Before>,
    notes: bool,
    reading: Option<BoxFuture<'static, Result<Vec<Arc<Entry>>, LogError>>>,
}

impl Arriving {
    pub(super) fn new(
        kept: Kept,
        next: Offset,
        snapshot: Option<Arc<Snapshot>>,
        exact_from: Lsn,
    ) -> Self {
        Self {
            kept,
            next,
            began: next,
            snapshot,
            exact_from,
            found: Vec::new(),
            notes: false,
            reading: None,
        }
    }

    /// Notes from now on what changes find.
    pub(super) const fn noting(mut self) -> Self {
        self.notes = true;
        self
    }

    /// The log has every change of the table from here on; `None` where a mirror of before goes on,
    /// which knows better.
    pub(super) fn complete_from(&self) -> Option<Offset> {
        self.snapshot.as_ref().map(|_| self.began)
    }

    /// Whether it has everything before `place`, and nothing behind that the snapshot does not show.
    pub(super) fn is_at(&self, place: Offset) -> bool {
        self.next == place
    }

    /// Applies what an entry does to the table, where it goes on from here. An entry that lies ahead
    /// is left for later.
    pub(super) fn take(&mut self, entry: &Entry, oid: Oid) -> Result<(), Refusal> {
        if entry.first > self.next || entry.end() <= self.next {
            return Ok(());
        }
        let shown = self.snapshot.as_ref();
        if !shown.is_some_and(|snapshot| snapshot.shows(entry.batch.xid)) {
            for (offset, change) in entry.changes() {
                if offset >= self.next && change.relation.oid == oid {
                    self.kept.pass_one(offset, change, &mut self.found)?;
                }
            }
        }
        if !self.notes {
            self.found.clear();
        } else if self.found.len() > 2 * FOUND {
            self.found.drain(..self.found.len() - FOUND);
        }
        self.next = entry.end();
        Ok(())
    }

    /// Applies what is read of the log, up to `place`.
    pub(super) fn take_all(
        &mut self,
        entries: &[Arc<Entry>],
        oid: Oid,
        place: Offset,
    ) -> Result<(), Refusal> {
        for entry in entries {
            if entry.end() > place {
                break;
            }
            self.take(entry, oid)?;
        }
        Ok(())
    }
}

/// Why a copy cannot go on through the log.
pub(super) fn unreadable(error: &LogError) -> Refusal {
    Cause::Lost.because(format!("the copy cannot catch up: {error}"))
}

/// Reads on for one of the copies that lie behind `place`, and applies that; returns why it cannot.
/// Cancel safe: what is being read goes on next time.
pub(super) async fn read_on(
    log: &Arc<dyn Log>,
    tables: &mut HashMap<Oid, Table>,
    place: Offset,
) -> Option<(Oid, Refusal)> {
    let behind = tables.iter_mut().find_map(|(oid, table)| {
        let arriving = table.arriving.as_mut()?;
        (arriving.next < place).then_some((*oid, arriving))
    });
    let Some((oid, arriving)) = behind else {
        return pending().await;
    };
    let from = arriving.next;
    let reading = arriving.reading.get_or_insert_with(|| {
        let log = Arc::clone(log);
        async move { log.read(from, ENTRIES).await }.boxed()
    });
    let read = reading.await;
    arriving.reading = None;
    let taken = match read {
        Ok(entries) => arriving.take_all(&entries, oid, place),
        Err(error) => Err(unreadable(&error)),
    };
    taken.err().map(|refusal| (oid, refusal))
}

impl fmt::Debug for Arriving {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Arriving")
            .field("next", &self.next)
            .field("exact_from", &self.exact_from)
            .finish_non_exhaustive()
    }
}
