//! A committed row change, free of where it came from and of who may see it.

pub mod relation;

pub mod row;

use std::sync::Arc;

pub use relation::{Column, ColumnSet, Relation, ReplicaIdentity, Type};
pub use row::{OldRow, Row, RowBuilder, Value};

use crate::pg::{Lsn, Xid};

/// What happened to one row, or to one table.
#[derive(Debug, Clone)]
pub struct Change {
    /// The table as the stream described it at this point.
    pub relation: Arc<Relation>,
    /// What happened.
    pub kind: Kind,
}

/// The kinds of [`Change`].
#[derive(Debug, Clone)]
pub enum Kind {
    /// A row was inserted.
    Insert {
        /// The row.
        new: Row,
    },
    /// A row was updated.
    Update {
        /// What the stream says of the row before; `None` under a key identity whose columns did
        /// not change.
        old: Option<OldRow>,
        /// The row after; out-of-line values that were not touched are [`Value::Unchanged`].
        new: Row,
    },
    /// A row was deleted.
    Delete {
        /// What the stream says of the row before.
        old: OldRow,
    },
    /// The table was emptied.
    Truncate,
    /// No row: the transaction changes what decides who sees what (policies, rights, functions,
    /// columns). Stands once in a transaction, of [`Relation::none`], wherever in it that was.
    Rules,
    /// Rows of this table changed here, but what they are cannot be said. Whoever watches the
    /// table must be told to read it again.
    Lost(Lost),
}

/// Why a change cannot be delivered though it was read.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Lost {
    /// Its bytes do not decode (for example a text that is not UTF-8).
    Undecodable,
    /// Its transaction is larger than the log.
    TooLarge,
}

/// A run of changes of one transaction, in the transaction's own order.
#[derive(Debug, Clone)]
pub struct Batch {
    /// The transaction.
    pub xid: Xid,
    /// Where its commit record begins: transactions are ordered by this.
    pub commit_lsn: Lsn,
    /// Where its commit record ends: what may be acknowledged once all of it is stored. Only the
    /// last batch knows it; before that it is `commit_lsn`, which is safe to acknowledge: the
    /// transaction would come again as a whole.
    pub end_lsn: Lsn,
    /// When it committed, in microseconds since 1970-01-01 00:00 UTC.
    pub committed_at: i64,
    /// The changes.
    pub changes: Vec<Change>,
    /// Whether the transaction ends with this batch.
    pub last: bool,
}

impl Batch {
    /// Whether it says that its transaction changes what decides.
    #[must_use]
    pub fn changes_rules(&self) -> bool {
        let mut changes = self.changes.iter();
        changes.any(|change| matches!(change.kind, Kind::Rules))
    }

    /// About how much memory the changes hold, in bytes.
    #[must_use]
    pub fn size(&self) -> usize {
        size_of::<Self>() + self.changes.iter().map(Change::size).sum::<usize>()
    }
}

impl Change {
    /// What is left of a transaction's changes of a table where it is larger than the log.
    #[must_use]
    pub fn too_large(relation: Arc<Relation>) -> Self {
        let kind = if relation.is_table() {
            Kind::Lost(Lost::TooLarge)
        } else {
            Kind::Rules
        };
        Self { relation, kind }
    }

    /// About how much memory the change holds, in bytes.
    #[must_use]
    pub fn size(&self) -> usize {
        let rows = match &self.kind {
            Kind::Insert { new } => new.size(),
            Kind::Update { old, new } => {
                new.size() + old.as_ref().map_or(0, |old| old.row().size())
            }
            Kind::Delete { old } => old.row().size(),
            Kind::Truncate | Kind::Rules | Kind::Lost(_) => 0,
        };
        size_of::<Self>() + rows
    }
}
