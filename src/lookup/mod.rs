//! Tables that policies look into, mirrored in memory: only the columns that are read, indexed by
//! those that are compared.
//!
//! All mirrors together are one value, [`Lookups`]: the state as of one place in the log. It is
//! persistent: a clone costs nothing, and a change of one row copies a few nodes, however many rows
//! there are. So the state before a transaction is there while the one behind it is judged by.

pub mod keep;

mod mirror;

use std::collections::BTreeSet;
use std::fmt;
use std::sync::Arc;

pub use mirror::{Difference, Lacking, Looked, Mirror, State};
use rpds::HashTrieMapSync;

use crate::datum::Type;
use crate::pg::Oid;

/// A column of a mirrored table.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Column {
    /// Its name, which the stream knows.
    pub name: Arc<str>,
    /// Its type as declared.
    pub type_oid: Oid,
    /// How its values are read.
    pub of: Type,
}

/// What policies read of a table.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Wanted {
    /// The table.
    pub table: Oid,
    /// The columns that are read, by name; the key's are kept besides.
    pub columns: Vec<Column>,
    /// Sets of columns whose values together find rows, each in the columns' order.
    pub indexes: BTreeSet<Vec<Arc<str>>>,
}

impl Wanted {
    /// Adds what somebody else reads of the same table.
    pub fn merge(&mut self, other: &Self) {
        for column in &other.columns {
            if !self.columns.contains(column) {
                self.columns.push(column.clone());
            }
        }
        self.columns.sort_by(|a, b| a.name.cmp(&b.name));
        self.indexes.extend(other.indexes.iter().cloned());
    }
}

/// All mirrors as of one place in the log.
#[derive(Clone, Default)]
pub struct Lookups(HashTrieMapSync<u32, Mirror>);

impl Lookups {
    /// A table's mirror; `None` where it is not kept, or not ready: what depends on it is not
    /// decided natively.
    #[must_use]
    pub fn get(&self, table: Oid) -> Option<&Mirror> {
        self.0.get(&table.0)
    }

    /// Puts a table's mirror in the place of the one before.
    pub fn put(&mut self, table: Oid, mirror: Mirror) {
        self.0.insert_mut(table.0, mirror);
    }

    /// Forgets a table.
    pub fn remove(&mut self, table: Oid) {
        self.0.remove_mut(&table.0);
    }

    /// The tables that are mirrored.
    pub fn tables(&self) -> impl Iterator<Item = (Oid, &Mirror)> {
        self.0.iter().map(|(oid, mirror)| (Oid(*oid), mirror))
    }
}

/// Values of rows must not reach a log.
impl fmt::Debug for Lookups {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let sizes = self.tables().map(|(oid, mirror)| (oid, mirror.len()));
        f.debug_map().entries(sizes).finish()
    }
}
