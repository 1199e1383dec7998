//! What is in force, for operators: names and sizes, never a row, a claim or a filter.

use serde::Serialize;

use crate::pg::Oid;

/// All of it.
#[derive(Debug, Clone, Default, Serialize)]
pub struct Picture {
    /// Open client sessions that have joined something.
    pub sessions: usize,
    /// Their channels.
    pub channels: usize,
    /// The tables with subscribers, the busiest first; of very many the first ones.
    pub tables: Vec<Table>,
    /// How many there are.
    pub watched: usize,
    /// The published tables without subscribers.
    pub unwatched: usize,
    /// Changes that are in the log and not handed out yet.
    pub behind: u64,
    /// The tables that policies look into.
    pub lookups: Vec<Lookup>,
    /// The tables whose old rows the relay keeps itself.
    pub old_rows: Vec<Lookup>,
}

/// A table with subscribers.
#[derive(Debug, Clone, Serialize)]
pub struct Table {
    /// Its schema.
    pub schema: String,
    /// Its name.
    pub name: String,
    /// Whether row-level security is on.
    pub row_security: bool,
    /// The changes that were judged since it has subscribers.
    pub changes: u64,
    /// Who watches it, by role.
    pub groups: Vec<Group>,
}

/// Everybody who watches a table under one role.
#[derive(Debug, Clone, Serialize)]
pub struct Group {
    /// The role.
    pub role: String,
    /// Channels with a binding on the table.
    pub subscribers: usize,
    /// Users whom no policy can tell apart count once: what has to be judged at most.
    pub audience: usize,
    /// How it is decided who sees a row: `everything`, `compiled`, `asked` or `nothing`.
    pub decided: &'static str,
}

/// A column that subscribers who take deletes filter by.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Filtered {
    /// The table.
    pub table: Oid,
    /// The column.
    pub column: String,
    /// Channels with such a filter.
    pub subscribers: usize,
}

/// A table that is mirrored in memory, or is to be.
#[derive(Debug, Clone, Serialize)]
pub struct Lookup {
    /// As in SQL, once it is known.
    pub name: Option<String>,
    /// How far its mirror is.
    pub state: &'static str,
    /// Why it is not mirrored.
    pub refused: Option<String>,
    /// Rows in memory.
    pub rows: usize,
    /// About how many bytes they take.
    pub bytes: usize,
}
