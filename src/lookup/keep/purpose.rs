//! What mirrors are kept for.

use super::reason::{Cause, Refusal};
use crate::metrics::Metrics;
use crate::metrics::mirrors::Mirrors;

/// What mirrors are kept for. One keeper has those of one purpose.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Purpose {
    /// Policies look into the tables. Those that are in no publication are put into one of their own.
    Lookups,
    /// Subscribers are told of the tables' changes, and the stream carries too little of the rows
    /// before. Nothing is published for that.
    OldRows,
}

impl Purpose {
    /// What is counted of them.
    pub(super) const fn counts(self, metrics: &Metrics) -> &Mirrors {
        match self {
            Self::Lookups => &metrics.lookups,
            Self::OldRows => &metrics.old_rows,
        }
    }

    /// What a line of the log calls them.
    pub(super) const fn as_str(self) -> &'static str {
        match self {
            Self::Lookups => "lookup",
            Self::OldRows => "old rows",
        }
    }

    /// What it means that a table is mirrored.
    pub(super) const fn ready(self) -> &'static str {
        match self {
            Self::Lookups => "the lookup is mirrored",
            Self::OldRows => "the table's old rows are kept",
        }
    }

    /// What it means that a table is not mirrored.
    pub(super) const fn without(self) -> &'static str {
        match self {
            Self::Lookups => "the lookup is not mirrored; policies that read it are asked",
            Self::OldRows => {
                "the table's old rows are not kept; of them is known what its replica identity carries"
            }
        }
    }

    /// What it means that a mirror is given up.
    pub(super) const fn given_up(self) -> &'static str {
        match self {
            Self::Lookups => {
                "a lookup's mirror is given up and made anew; until then policies that read it are asked"
            }
            Self::OldRows => {
                "a table's mirror is given up and made anew; until then of its old rows is known what \
                 the replica identity carries"
            }
        }
    }

    /// More memory would be needed than may be.
    pub(super) fn too_large(self, most: usize) -> Refusal {
        let setting = match self {
            Self::Lookups => "max_lookup_bytes",
            Self::OldRows => "max_old_row_bytes",
        };
        Cause::TooLarge.because(format!(
            "the mirrors together would be larger than {most} bytes ({setting})"
        ))
    }
}
