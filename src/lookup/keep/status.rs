//! What is known of each lookup, for metrics and for whoever asks.

use std::sync::Arc;

use super::reason::Refusal;
use crate::pg::Oid;

/// How far a table's mirror is.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum State {
    /// It is to be looked at, or waits for its turn.
    Waiting,
    /// It is being copied.
    Copying,
    /// The copy goes through what the log has had since.
    CatchingUp,
    /// It is true as of the router's place.
    Ready,
    /// It is not mirrored.
    Refused(Refusal),
}

impl State {
    /// Its name in metrics.
    #[must_use]
    pub const fn as_str(&self) -> &'static str {
        match self {
            Self::Waiting => "waiting",
            Self::Copying => "copying",
            Self::CatchingUp => "catching_up",
            Self::Ready => "ready",
            Self::Refused(_) => "refused",
        }
    }

    pub(super) const ALL: [&str; 5] = ["waiting", "copying", "catching_up", "ready", "refused"];
}

/// What is known of a lookup.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Status {
    /// The table.
    pub table: Oid,
    /// Its schema and name as in SQL, once they were looked up.
    pub name: Option<Arc<str>>,
    /// How far its mirror is.
    pub state: State,
    /// Why it was given up last, where it was.
    pub last_fault: Option<Refusal>,
    /// Rows of the mirror that is in force.
    pub rows: usize,
    /// About how much memory it holds, in bytes.
    pub bytes: usize,
}
