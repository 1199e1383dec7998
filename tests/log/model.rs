//! Transactions to fill a log with, and what is read back of them.

use std::sync::{Arc, OnceLock};

use rowcast::change::{
    Batch, Change, Column, Kind, OldRow, Relation, ReplicaIdentity, Row, Type, Value,
};
use rowcast::log::disk::DiskLog;
use rowcast::log::{Entry, Log};
use rowcast::pg::{Lsn, Oid, Xid};

/// Changes of one batch.
const BATCH: usize = 1_000;

/// A transaction that inserts rows into two tables by turns.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Transaction {
    commit: u64,
    rows: usize,
}

impl Transaction {
    pub(crate) fn new(commit: u64, rows: usize) -> Self {
        Self { commit, rows }
    }

    pub(crate) fn end_lsn(self) -> Lsn {
        Lsn(self.commit * 16 + 5)
    }

    pub(crate) fn batches(self) -> Vec<Batch> {
        let changes: Vec<Change> = (0..self.rows)
            .map(|row| Change {
                relation: Arc::clone(&relations()[row % 2]),
                kind: kind(&format!("{}/{row}", self.commit), row),
            })
            .collect();
        let count = changes.chunks(BATCH).len();
        changes
            .chunks(BATCH)
            .enumerate()
            .map(|(at, changes)| Batch {
                xid: Xid(self.commit),
                commit_lsn: Lsn(self.commit * 16),
                end_lsn: if at + 1 == count {
                    self.end_lsn()
                } else {
                    Lsn(self.commit * 16)
                },
                committed_at: i64::try_from(self.commit).unwrap(),
                changes: changes.to_vec(),
                last: at + 1 == count,
            })
            .collect()
    }
}

/// Every kind of row change, with every kind of value.
fn kind(name: &str, row: usize) -> Kind {
    let new = Row::from_iter([
        Value::Text(name),
        Value::Null,
        Value::Text(""),
        Value::Unchanged,
        Value::Text("größer\u{0}"),
    ]);
    match row % 5 {
        0 => Kind::Insert { new },
        1 => Kind::Update { old: None, new },
        2 => Kind::Update {
            old: Some(OldRow::Full(new.clone())),
            new,
        },
        3 => Kind::Update {
            old: Some(OldRow::Key(new.clone())),
            new,
        },
        _ => Kind::Delete {
            old: OldRow::Key(new),
        },
    }
}

fn relations() -> &'static [Arc<Relation>; 2] {
    static RELATIONS: OnceLock<[Arc<Relation>; 2]> = OnceLock::new();
    RELATIONS.get_or_init(|| {
        ["a", "b"].map(|name| {
            let column = |name: &str, identity| Column {
                name: name.into(),
                type_oid: Oid(25),
                type_modifier: -1,
                identity,
            };
            Arc::new(Relation {
                oid: Oid(u32::from(name.as_bytes()[0])),
                schema: "public".into(),
                name: name.into(),
                replica_identity: ReplicaIdentity::Index,
                columns: ["id", "v", "w", "x", "y"]
                    .map(|column_name| column(column_name, column_name == "id"))
                    .into(),
                types: Arc::from([Type {
                    oid: Oid(16_400),
                    schema: "public".into(),
                    name: "mood".into(),
                }]),
                version: Relation::reserve_versions(1),
            })
        })
    })
}

pub(crate) async fn append(log: &DiskLog, transaction: Transaction) {
    for batch in transaction.batches() {
        log.append(batch).await.unwrap();
    }
}

/// What [`all`] returns for these transactions (commit, rows), the offsets left out of account
/// where a history did not begin at 0.
pub(crate) fn rows(transactions: impl IntoIterator<Item = (u64, usize)>) -> Vec<(u64, String)> {
    (0..)
        .zip(
            transactions
                .into_iter()
                .flat_map(|(commit, rows)| (0..rows).map(move |row| format!("{commit}/{row}"))),
        )
        .collect()
}

/// Reads everything: each row's place (counted from the beginning of the log) and its name; every
/// other part of it is compared with what was written.
pub(crate) async fn all(log: &DiskLog) -> Vec<(u64, String)> {
    let range = log.range();
    let (mut from, mut found) = (range.start, Vec::new());
    while from < range.end {
        let entries = log.read(from, 7).await.unwrap();
        assert!(!entries.is_empty(), "nothing at {from} of {range:?}");
        for entry in entries {
            assert_eq!(entry.first, from);
            for (offset, change) in entry.changes() {
                found.push((offset.0 - range.start.0, described(&entry, change)));
            }
            from = entry.end();
        }
    }
    assert!(log.read(range.end, 7).await.unwrap().is_empty());
    found
}

/// A change's name; what is not as it was written fails.
pub(crate) fn described(entry: &Entry, change: &Change) -> String {
    let new = match &change.kind {
        Kind::Insert { new } | Kind::Update { new, .. } => new,
        Kind::Delete { old } => old.row(),
        Kind::Truncate | Kind::Rules => panic!("there was neither"),
        Kind::Lost(_) => {
            return format!("lost {}.{}", change.relation.schema, change.relation.name);
        }
    };
    let Some(Value::Text(name)) = new.get(0) else {
        panic!("a row without a name");
    };
    let (commit, row) = name.split_once('/').unwrap();
    let row: usize = row.parse().unwrap();
    assert_eq!(entry.batch.xid.to_string(), commit);
    assert_eq!(
        format!("{:?}", change.kind),
        format!("{:?}", kind(name, row))
    );
    assert!(new.values().eq(row_of(&kind(name, row)).values()));
    let relation = &relations()[row % 2];
    assert_eq!(change.relation.columns, relation.columns);
    assert_eq!(
        (
            change.relation.oid,
            &change.relation.name,
            change.relation.replica_identity
        ),
        (relation.oid, &relation.name, relation.replica_identity)
    );
    name.to_owned()
}

fn row_of(kind: &Kind) -> &Row {
    match kind {
        Kind::Insert { new } | Kind::Update { new, .. } => new,
        Kind::Delete { old } => old.row(),
        Kind::Truncate | Kind::Rules | Kind::Lost(_) => panic!("no row"),
    }
}

/// Says where two lists begin to differ, rather than all of both.
pub(crate) fn same(found: &[(u64, String)], wanted: &[(u64, String)]) {
    let differ = found
        .iter()
        .zip(wanted)
        .position(|(found, wanted)| found != wanted);
    if let Some(at) = differ {
        panic!("at {at}: {:?} instead of {:?}", found[at], wanted[at]);
    }
    assert_eq!(found.len(), wanted.len());
}
