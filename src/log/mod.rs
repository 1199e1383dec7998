//! The log: every change gets an offset here and is kept for a bounded while.
//!
//! Readers follow the log and never touch the source. They see whole transactions only. The source
//! is acknowledged up to what the log has stored, so a crash anywhere loses nothing: what was not
//! stored is sent again, what was stored is skipped on its way in.

pub mod cursor;

pub mod disk;

pub(crate) mod horizon;

pub mod memory;

pub mod sealed;

use std::fmt;
use std::ops::Range;
use std::sync::Arc;

use futures_util::future::BoxFuture;
use serde::{Deserialize, Serialize};
use tokio::sync::watch;

pub use cursor::{Cursor, Epoch, HeldCursor, Holder, Offset};

use crate::change::{Batch, Change};
use crate::pg::Lsn;

/// A run of changes of one transaction with their offsets. A reader that has been given one entry
/// of a transaction can read the others: they are all there.
#[derive(Debug)]
pub struct Entry {
    /// The offset of the first change; the others follow without a gap.
    pub first: Offset,
    /// The changes.
    pub batch: Batch,
}

impl Entry {
    /// The changes with their offsets.
    pub fn changes(&self) -> impl Iterator<Item = (Offset, &Change)> {
        (self.first.0..).map(Offset).zip(&self.batch.changes)
    }

    /// The offset after the last change.
    #[must_use]
    pub fn end(&self) -> Offset {
        Offset(self.first.0 + self.batch.changes.len() as u64)
    }
}

/// Where the changes of a log come from. Another one means another history.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Origin {
    /// Identifies the cluster.
    pub system_identifier: u64,
    /// Counts the times that a standby of the cluster was promoted.
    pub timeline: u32,
    /// The replication slot.
    pub slot: String,
    /// The publication.
    pub publication: String,
}

/// Why the log cannot do what was asked.
#[derive(Debug, thiserror::Error)]
pub enum LogError {
    /// The offset lies before what is kept: the reader has a gap and must read the tables again.
    #[error("the log begins at offset {oldest}, older changes are trimmed")]
    Trimmed {
        /// The oldest offset that can be read.
        oldest: Offset,
    },
    /// The offset lies before changes that never came: the source lost its place.
    #[error("changes before offset {next} are lost")]
    Lost {
        /// Where the log goes on.
        next: Offset,
    },
    /// The offset lies past the end: it belongs to another log.
    #[error("the log ends at offset {next}")]
    Ahead {
        /// The next offset to be given.
        next: Offset,
    },
    /// It has ended.
    #[error("the log has ended")]
    Stopped,
}

/// What the path of a change needs of a log. Implementations keep whole transactions, in order,
/// and are shared by one writer and many readers.
pub trait Log: Send + Sync + fmt::Debug {
    /// Names this history: a cursor of another epoch means nothing here.
    fn epoch(&self) -> Epoch;

    /// Takes the next batch. A transaction becomes readable as a whole, with its last batch.
    ///
    /// # Errors
    /// Where the log cannot take it; the caller must not go on to the next batch.
    fn append(&self, batch: Batch) -> BoxFuture<'_, Result<(), LogError>>;

    /// Forgets a transaction whose last batch has not come: the source begins it anew after a
    /// reconnect.
    fn abandon(&self);

    /// Notes that no transaction is to be taken that commits before `lsn` and has not been. A log that
    /// outlives the process stores it now and then, or `at_once` where somebody waits for that.
    fn pass(&self, lsn: Lsn, at_once: bool);

    /// The end of the last transaction taken, or what was passed since; older ones that come again
    /// are skipped.
    fn appended(&self) -> Lsn;

    /// The end of the last transaction taken, never past [`Log::appended`].
    fn committed(&self) -> Lsn;

    /// Follows what outlives this process as well as this log can: the source may be acknowledged
    /// up to here. Never ahead of [`Log::appended`].
    fn stored(&self) -> watch::Receiver<Lsn>;

    /// Where the changes come from; `None` before the first [`Log::begin`].
    fn origin(&self) -> Option<Origin>;

    /// Begins a history of the changes that come from `origin` and commit at `from` or later. What
    /// was kept before is dropped: its readers get [`LogError::Lost`].
    fn begin(&self, origin: Origin, from: Lsn) -> BoxFuture<'_, ()>;

    /// The same history goes on with the changes that come from `origin` and commit at `from` or
    /// later: a standby was promoted that has everything up to there. No transaction that was
    /// taken may end behind `from`.
    fn follow(&self, origin: Origin, from: Lsn) -> BoxFuture<'_, ()>;

    /// Stores what was taken and takes nothing more, so that another process may; what is there can
    /// still be read.
    fn close(&self) -> BoxFuture<'_, ()>;

    /// Follows what keeps the log from storing changes, while something does.
    fn trouble(&self) -> watch::Receiver<Option<String>>;

    /// Whether it was opened with all that had been taken before: whoever used it last has closed
    /// it.
    fn was_closed(&self) -> bool;

    /// The offsets that can be read: the oldest kept, and the next to be given.
    fn range(&self) -> Range<Offset>;

    /// Up to `limit` entries from the one that holds `from` on; none where `from` is the end.
    ///
    /// # Errors
    /// [`LogError::Trimmed`] and [`LogError::Ahead`].
    fn read(&self, from: Offset, limit: usize) -> BoxFuture<'_, Result<Vec<Arc<Entry>>, LogError>>;

    /// Follows the next offset to be given.
    fn tail(&self) -> watch::Receiver<Offset>;
}
