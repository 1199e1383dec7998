//! Where in the log the changes begin that a binding wants.

use std::sync::Arc;

use super::order::Wish;
use crate::log::{Cursor, Holder};
use crate::pg::Lsn;
use crate::pg::snapshot::Snapshot;

/// Where a binding begins. By default with its join.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Start {
    /// What comes behind this place is wanted, though it lies before the join.
    pub since: Option<Cursor>,
    /// Whom that cursor was given to, where it says so.
    pub holder: Option<Holder>,
    /// The holder has read the tables since, under the rules that hold at this place of the
    /// write-ahead log.
    pub read_at: Option<Lsn>,
    /// What this snapshot shows is not wanted: its holder has it.
    pub unseen_by: Option<Arc<Snapshot>>,
    /// The rows that are wanted before the changes, where these do not begin at `since`.
    pub snapshot: Option<Wish>,
}

impl Start {
    /// The place of the newest rules that its holder has been told or has read under, where that is
    /// known.
    #[must_use]
    pub fn knows_rules(&self) -> Option<Lsn> {
        let told = self.holder.and_then(|holder| holder.rules);
        told.max(self.read_at)
    }

    /// Whether it lies before the join, or with a snapshot.
    #[must_use]
    pub const fn is_earlier(&self) -> bool {
        self.since.is_some() || self.snapshot.is_some()
    }
}
