//! Which rows a transaction has written that changes lookups as well.

use std::collections::HashSet;
use std::hash::{BuildHasher, RandomState};

use crate::change::{Kind, Relation, Row, Value};
use crate::pg::{Oid, Xid};
use crate::policy::catalog::Table;
use crate::router::group::Subject;

/// Rows of one transaction that are remembered; past this every old row is taken for one of them.
const MOST: usize = 100_000;

/// The rows that the transaction in hand has written, by their keys. Nobody has seen them as they were
/// before it, so what becomes of them in it is judged by what it left: who may not see such a row when
/// it commits must not learn of it from the update or the delete that follows it.
#[derive(Default)]
pub(super) struct Made {
    xid: Option<Xid>,
    rows: HashSet<u64>,
    /// Whether some are missing there.
    more: bool,
    hashes: RandomState,
}

impl Made {
    /// Whether the row before a change is one of them; notes the row behind it.
    pub(super) fn holds_old(&mut self, xid: Xid, subject: &Subject<'_>, table: &Table) -> bool {
        if self.xid != Some(xid) {
            self.xid = Some(xid);
            self.rows.clear();
            self.more = false;
        }
        let key = |row: &Row| self.key(subject.relation, row, table);
        let (old, new) = match &subject.change.kind {
            Kind::Insert { new } => (None, Some(key(new))),
            Kind::Update { new, .. } => (Some(key(subject.old.unwrap_or(new))), Some(key(new))),
            Kind::Delete { .. } => (Some(key(subject.row)), None),
            Kind::Truncate | Kind::Rules | Kind::Lost(_) => (None, None),
        };
        // Without a key nothing is known of it.
        let held = |key: Option<u64>| self.more || key.is_none_or(|key| self.rows.contains(&key));
        let held = old.is_some_and(held);
        match new {
            Some(Some(key)) if self.rows.len() < MOST => {
                self.rows.insert(key);
            }
            Some(_) => self.more = true,
            None => {}
        }
        held
    }

    fn key(&self, relation: &Relation, row: &Row, table: &Table) -> Option<u64> {
        let columns = table.columns.iter().filter(|column| table.is_key(column));
        let values = columns.map(|column| match row.get(relation.position(&column.name)?) {
            Some(Value::Text(text)) => Some(text),
            Some(Value::Null | Value::Unchanged) | None => None,
        });
        let values: Vec<_> = values.collect::<Option<_>>()?;
        let of: (Oid, Vec<_>) = (relation.oid, values);
        (!of.1.is_empty()).then(|| self.hashes.hash_one(of))
    }
}
