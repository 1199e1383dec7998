//! A table as the replication stream describes it.

use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, LazyLock};

use crate::pg::Oid;

/// The next version to be given.
static VERSION: AtomicU64 = AtomicU64::new(1);

/// What stands where a change is of no table.
static NONE: LazyLock<Arc<Relation>> = LazyLock::new(|| {
    Arc::new(Relation {
        oid: Oid(0),
        schema: "".into(),
        name: "".into(),
        replica_identity: ReplicaIdentity::Nothing,
        columns: Vec::new(),
        types: Arc::default(),
        version: 0,
    })
});

/// One version of a table, as a Relation message of the stream gave it. Versions are told apart by
/// their `version`; a new one does not mean that anything changed, only that PostgreSQL had reason
/// to say it again (and so every version is checked against the catalog before its rows go out).
#[derive(Debug)]
pub struct Relation {
    /// The table.
    pub oid: Oid,
    /// Its schema.
    pub schema: Arc<str>,
    /// Its name.
    pub name: Arc<str>,
    /// What old rows carry.
    pub replica_identity: ReplicaIdentity,
    /// Its columns as they stand in the stream: dropped ones, those outside a column list and
    /// (before PostgreSQL 18) generated ones are not among them.
    pub columns: Vec<Column>,
    /// Those of its columns' types that PostgreSQL does not come with, as the stream named them.
    pub types: Arc<[Type]>,
    /// Counts the descriptions that this process has read; unique, 0 for that
    /// of no table.
    pub version: u64,
}

impl Relation {
    /// The description of no table.
    #[must_use]
    pub fn none() -> Arc<Self> {
        Arc::clone(&NONE)
    }

    /// Whether it describes a table.
    #[must_use]
    pub const fn is_table(&self) -> bool {
        self.oid.0 != 0
    }

    /// The first of `count` versions that no other relation of this process has, in order.
    #[must_use]
    pub fn reserve_versions(count: u64) -> u64 {
        VERSION.fetch_add(count, Ordering::Relaxed)
    }

    /// Descriptions with a version below this have been read by now.
    #[must_use]
    pub fn versions() -> u64 {
        VERSION.load(Ordering::Relaxed)
    }

    /// Whether another version says the same.
    #[must_use]
    pub fn describes_as(&self, other: &Self) -> bool {
        self.oid == other.oid
            && self.schema == other.schema
            && self.name == other.name
            && self.replica_identity == other.replica_identity
            && self.columns == other.columns
            && self.types == other.types
    }

    /// The place of a column in this version's rows.
    #[must_use]
    pub fn position(&self, column: &str) -> Option<usize> {
        self.columns
            .iter()
            .position(|candidate| &*candidate.name == column)
    }
}

/// A column of a [`Relation`].
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Column {
    /// Its name.
    pub name: Arc<str>,
    /// Its type.
    pub type_oid: Oid,
    /// The type's modifier, -1 where there is none.
    pub type_modifier: i32,
    /// Whether it belongs to the replica identity. Under [`ReplicaIdentity::Full`] every column
    /// does.
    pub identity: bool,
}

/// A type as a Type message of the stream gave it. Values stay text, so nothing that is sent depends
/// on it; it tells what a column was when the type has another name by now, or none.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Type {
    /// The type.
    pub oid: Oid,
    /// Its schema; of a domain, that of the type that it is over.
    pub schema: Arc<str>,
    /// Its name; of a domain, that of the type that it is over.
    pub name: Arc<str>,
}

/// What an old row carries (`pg_class.relreplident`).
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum ReplicaIdentity {
    /// The primary key, where there is one.
    Default,
    /// Nothing.
    Nothing,
    /// Every column.
    Full,
    /// The columns of an index.
    Index,
}

/// A set of a relation's columns, by place. Equal sets share one encoding of a change.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct ColumnSet(Arc<[bool]>);

impl ColumnSet {
    /// The columns of `relation` for which `holds` says yes.
    pub fn of(relation: &Relation, mut holds: impl FnMut(&Column) -> bool) -> Self {
        Self(relation.columns.iter().map(&mut holds).collect())
    }

    /// Whether the column at `position` is in the set.
    #[must_use]
    pub fn contains(&self, position: usize) -> bool {
        self.0.get(position).copied().unwrap_or(false)
    }

    /// Whether no column is in the set.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        !self.0.contains(&true)
    }
}
