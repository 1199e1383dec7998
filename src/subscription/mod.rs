//! What a client wants to see.

pub mod filter;

pub mod matcher;

pub mod order;

pub mod start;

use crate::change::Kind;
pub use filter::{Condition, FilterError, Operator};
pub use start::Start;

/// The kinds of change that a binding asks for.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Events {
    /// `*`
    All,
    /// `*`, and TRUNCATE as well
    AllAndTruncate,
    /// `INSERT`
    Insert,
    /// `UPDATE`
    Update,
    /// `DELETE`
    Delete,
}

impl Events {
    /// Reads the event name of a binding as Supabase does: in any case, and anything that is none
    /// of the three is all of them.
    #[must_use]
    pub fn from_name(name: &str) -> Self {
        match name.to_ascii_uppercase().as_str() {
            "INSERT" => Self::Insert,
            "UPDATE" => Self::Update,
            "DELETE" => Self::Delete,
            _ => Self::All,
        }
    }

    /// Whether a change of this kind is asked for.
    #[must_use]
    pub const fn includes(self, kind: &Kind) -> bool {
        matches!(
            (self, kind),
            (
                Self::All | Self::AllAndTruncate,
                Kind::Insert { .. } | Kind::Update { .. } | Kind::Delete { .. }
            ) | (Self::AllAndTruncate, Kind::Truncate)
                | (Self::Insert, Kind::Insert { .. })
                | (Self::Update, Kind::Update { .. })
                | (Self::Delete, Kind::Delete { .. })
        )
    }

    /// Whether deletes are asked for.
    #[must_use]
    pub const fn deletes(self) -> bool {
        matches!(self, Self::All | Self::AllAndTruncate | Self::Delete)
    }
}

/// One binding of a channel as the client worded it; nothing in it has been held against the
/// catalog yet.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Wanted {
    /// What the client knows this binding by: unique in its channel, never 0.
    pub id: u32,
    /// The kinds of change.
    pub events: Events,
    /// The schema; `None` for every schema (`*`).
    pub schema: Option<String>,
    /// The table; `None` for every published table of the schema (`*` or absent).
    pub table: Option<String>,
    /// What must hold of the row, all of it.
    pub filter: Vec<Condition>,
    /// The columns that are wanted besides the primary key's; `None` for all.
    pub select: Option<Vec<String>>,
    /// Whether it is told, by a DELETE with the key, when an update takes a row out of its view.
    pub leave: bool,
    /// Where it begins.
    pub start: Start,
}

impl Wanted {
    /// Whether it means tables that it does not name.
    #[must_use]
    pub const fn is_open(&self) -> bool {
        self.schema.is_none() || self.table.is_none()
    }
}
