//! From messages to [`Batch`]es: which table a row is of, and where a transaction begins and ends.

use std::collections::HashMap;
use std::sync::Arc;

use super::decode::{ColumnMessage, Message, OldTuple, Undecodable, decode};
use super::reader::Malformed;
use crate::change::{
    Batch, Change, Column, Kind, Lost, OldRow, Relation, ReplicaIdentity, Row, Type,
};
use crate::pg::{Lsn, Oid, Xid};

/// The most changes in one batch.
pub const BATCH_CHANGES: usize = 1_000;

/// About the most bytes in one batch; a single row may be larger.
pub const BATCH_BYTES: usize = 4 << 20;

/// The prefix of the messages by which an event trigger (`sql/ddl.sql`) says that a transaction
/// changes what decides; their content is the slot of the relay that they are meant for.
pub const RULES_PREFIX: &[u8] = b"rowcast.ddl";

/// What the source has to say.
#[derive(Debug, Clone)]
pub enum SourceEvent {
    /// Changes.
    Batch(Batch),
    /// Nothing was committed for us up to here: once everything before is stored, this may be
    /// acknowledged. It moves the slot on while the published tables are quiet.
    Progress(Lsn),
}

/// Follows the stream of one replication session.
#[derive(Debug)]
pub struct Assembler {
    /// A number known to be current; every transaction moves it on.
    reference: Xid,
    relations: HashMap<Oid, Arc<Relation>>,
    /// What the stream calls the types that PostgreSQL does not come with.
    types: HashMap<Oid, Type>,
    /// The table of the last row: a transaction's rows come in runs.
    recent: Option<Arc<Relation>>,
    open: Option<Transaction>,
    /// The replication slot: what is meant for others names theirs.
    slot: String,
}

#[derive(Debug)]
struct Transaction {
    xid: Xid,
    commit_lsn: Lsn,
    committed_at: i64,
    changes: Vec<Change>,
    bytes: usize,
    /// Whether a batch of it has been given out.
    begun: bool,
    /// Whether it has said that it changes what decides: once is enough.
    changes_rules: bool,
}

impl Transaction {
    fn batch(&mut self, end_lsn: Lsn, last: bool) -> Batch {
        self.begun = true;
        self.bytes = 0;
        Batch {
            xid: self.xid,
            commit_lsn: self.commit_lsn,
            end_lsn,
            committed_at: self.committed_at,
            // What has filled one batch is likely to fill the next.
            changes: std::mem::replace(
                &mut self.changes,
                Vec::with_capacity(if last { 0 } else { BATCH_CHANGES }),
            ),
            last,
        }
    }
}

impl Assembler {
    /// An assembler at the start of a stream. `reference` is a transaction number that was
    /// current when the session began, `slot` is what is followed.
    #[must_use]
    pub fn new(reference: Xid, slot: &str) -> Self {
        Self {
            slot: slot.to_owned(),
            reference,
            relations: HashMap::new(),
            types: HashMap::new(),
            recent: None,
            open: None,
        }
    }

    /// Takes the bytes of one message; returns what it completes.
    ///
    /// # Errors
    /// [`Malformed`] where the message cannot stand here. The stream cannot be followed further.
    pub fn take(&mut self, bytes: &[u8]) -> Result<Option<SourceEvent>, Malformed> {
        match decode(bytes)? {
            Message::Insert { relation, new } => {
                let relation = self.relation(relation)?;
                let kind = row(&relation, new).map(|new| Kind::Insert { new });
                self.push(relation, kind)
            }
            Message::Update { relation, old, new } => {
                let relation = self.relation(relation)?;
                let kind = row(&relation, new).and_then(|new| {
                    let old = old.map(|old| old_row(&relation, old)).transpose()?;
                    Ok(Kind::Update { old, new })
                });
                self.push(relation, kind)
            }
            Message::Delete { relation, old } => {
                let relation = self.relation(relation)?;
                let kind = old_row(&relation, old).map(|old| Kind::Delete { old });
                self.push(relation, kind)
            }
            Message::Truncate { relations, .. } => {
                let mut full = None;
                for relation in relations {
                    let relation = self.relation(relation)?;
                    // A batch is cut at most once here: no statement names 1,000 tables, and
                    // where one does the batch is larger instead.
                    if full.is_none() {
                        full = self.push(relation, Ok(Kind::Truncate))?;
                    } else if let Some(open) = &mut self.open {
                        open.changes.push(Change {
                            relation,
                            kind: Kind::Truncate,
                        });
                    }
                }
                Ok(full)
            }
            Message::Begin {
                final_lsn,
                committed_at,
                xid,
            } => self.begin(final_lsn, committed_at, xid),
            Message::Commit { end_lsn, .. } => self.commit(end_lsn),
            Message::Relation {
                oid,
                schema,
                name,
                replica_identity,
                columns,
            } => {
                let mut relation = described(oid, schema, name, replica_identity, &columns);
                relation.types = self.types_of(&relation);
                self.relations.insert(oid, Arc::new(relation));
                self.recent = None;
                Ok(None)
            }
            Message::Type { oid, schema, name } => {
                let (schema, name) = (schema.into(), name.into());
                self.types.insert(oid, Type { oid, schema, name });
                Ok(None)
            }
            Message::Message {
                transactional: true,
                prefix: RULES_PREFIX,
                content,
                ..
            } if content == self.slot.as_bytes() => self.rules(),
            Message::Message { lsn, .. } => Ok(self.quiet(lsn)),
            Message::Origin => Ok(None),
        }
    }

    /// The position of a keepalive: progress, unless it comes amid a transaction.
    #[must_use]
    pub fn quiet(&self, lsn: Lsn) -> Option<SourceEvent> {
        self.open.is_none().then_some(SourceEvent::Progress(lsn))
    }

    fn begin(
        &mut self,
        commit_lsn: Lsn,
        committed_at: i64,
        xid: u32,
    ) -> Result<Option<SourceEvent>, Malformed> {
        if self.open.is_some() {
            return Err(Malformed);
        }
        let xid = self.reference.widen(xid);
        self.reference = self.reference.max(xid);
        self.open = Some(Transaction {
            xid,
            commit_lsn,
            committed_at,
            changes: Vec::new(),
            bytes: 0,
            begun: false,
            changes_rules: false,
        });
        Ok(None)
    }

    fn commit(&mut self, end_lsn: Lsn) -> Result<Option<SourceEvent>, Malformed> {
        let mut open = self.open.take().ok_or(Malformed)?;
        Ok(Some(if open.changes.is_empty() && !open.begun {
            // PostgreSQL 14 sends transactions that touched no published table.
            SourceEvent::Progress(end_lsn)
        } else {
            SourceEvent::Batch(open.batch(end_lsn, true))
        }))
    }

    /// Adds a change. A full batch goes out before it, not after: only what follows tells whether
    /// a batch is the last.
    fn push(
        &mut self,
        relation: Arc<Relation>,
        kind: Result<Kind, Undecodable>,
    ) -> Result<Option<SourceEvent>, Malformed> {
        let open = self.open.as_mut().ok_or(Malformed)?;
        let full = (open.changes.len() >= BATCH_CHANGES || open.bytes >= BATCH_BYTES)
            .then(|| SourceEvent::Batch(open.batch(open.commit_lsn, false)));
        let change = Change {
            relation,
            kind: kind.unwrap_or(Kind::Lost(Lost::Undecodable)),
        };
        open.bytes += change.size();
        open.changes.push(change);
        Ok(full)
    }

    /// Notes that the transaction changes what decides.
    fn rules(&mut self) -> Result<Option<SourceEvent>, Malformed> {
        let open = self.open.as_mut().ok_or(Malformed)?;
        if std::mem::replace(&mut open.changes_rules, true) {
            return Ok(None);
        }
        self.push(Relation::none(), Ok(Kind::Rules))
    }

    fn types_of(&self, relation: &Relation) -> Arc<[Type]> {
        let mut oids: Vec<Oid> = relation
            .columns
            .iter()
            .map(|column| column.type_oid)
            .collect();
        oids.sort_unstable();
        oids.dedup();
        oids.iter()
            .filter_map(|oid| self.types.get(oid).cloned())
            .collect()
    }

    fn relation(&mut self, oid: Oid) -> Result<Arc<Relation>, Malformed> {
        if let Some(recent) = &self.recent
            && recent.oid == oid
        {
            return Ok(Arc::clone(recent));
        }
        let relation = self.relations.get(&oid).ok_or(Malformed)?;
        self.recent = Some(Arc::clone(relation));
        Ok(Arc::clone(relation))
    }
}

/// A row must have the columns of its table: a reader goes by position.
fn row(relation: &Relation, tuple: Result<Row, Undecodable>) -> Result<Row, Undecodable> {
    tuple.and_then(|row| {
        if row.len() == relation.columns.len() {
            Ok(row)
        } else {
            Err(Undecodable)
        }
    })
}

fn old_row(relation: &Relation, old: OldTuple) -> Result<OldRow, Undecodable> {
    match old {
        OldTuple::Key(tuple) => row(relation, tuple).map(OldRow::Key),
        OldTuple::Full(tuple) => row(relation, tuple).map(OldRow::Full),
    }
}

fn described(
    oid: Oid,
    schema: &str,
    name: &str,
    replica_identity: ReplicaIdentity,
    columns: &[ColumnMessage<'_>],
) -> Relation {
    Relation {
        oid,
        schema: schema.into(),
        name: name.into(),
        replica_identity,
        columns: columns
            .iter()
            .map(|column| Column {
                name: column.name.into(),
                type_oid: column.type_oid,
                type_modifier: column.type_modifier,
                identity: column.identity,
            })
            .collect(),
        types: Arc::default(),
        version: Relation::reserve_versions(1),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn begin(xid: u32) -> Vec<u8> {
        [
            &b"B"[..],
            &0x100_u64.to_be_bytes(),
            &0_u64.to_be_bytes(),
            &xid.to_be_bytes(),
        ]
        .concat()
    }

    fn commit() -> Vec<u8> {
        [
            &b"C\0"[..],
            &0x100_u64.to_be_bytes(),
            &0x130_u64.to_be_bytes(),
            &0_u64.to_be_bytes(),
        ]
        .concat()
    }

    fn table() -> Vec<u8> {
        b"R\0\0\0\x09s\0t\0d\0\x01\x01id\0\0\0\0\x19\xFF\xFF\xFF\xFF".to_vec()
    }

    fn insert(text: &[u8]) -> Vec<u8> {
        let length = u32::try_from(text.len()).unwrap().to_be_bytes();
        [b"I\0\0\0\x09N\0\x01t", &length[..], text].concat()
    }

    fn run(assembler: &mut Assembler, messages: &[Vec<u8>]) -> Vec<SourceEvent> {
        messages
            .iter()
            .filter_map(|message| assembler.take(message).unwrap())
            .collect()
    }

    fn batches(events: Vec<SourceEvent>) -> Vec<Batch> {
        events
            .into_iter()
            .map(|event| match event {
                SourceEvent::Batch(batch) => batch,
                SourceEvent::Progress(lsn) => panic!("progress to {lsn}"),
            })
            .collect()
    }

    #[test]
    fn only_a_transactions_final_batch_is_the_last_even_at_the_limit() {
        for (rows, sizes) in [
            (1, vec![1]),
            (1_000, vec![1_000]),
            (1_001, vec![1_000, 1]),
            (2_000, vec![1_000, 1_000]),
        ] {
            let mut messages = vec![begin(7), table()];
            messages.extend(std::iter::repeat_n(insert(b"x"), rows));
            messages.push(commit());
            let batches = batches(run(&mut Assembler::new(Xid(1 << 32 | 5), "s"), &messages));
            let found: Vec<_> = batches.iter().map(|batch| batch.changes.len()).collect();
            assert_eq!(found, sizes);
            for (at, batch) in batches.iter().enumerate() {
                let last = at + 1 == batches.len();
                assert_eq!(batch.last, last);
                assert_eq!(batch.xid, Xid(1 << 32 | 7));
                assert_eq!(batch.end_lsn, Lsn(if last { 0x130 } else { 0x100 }));
            }
        }
    }

    #[test]
    fn a_batch_of_large_rows_is_cut_by_its_bytes() {
        let large = insert(&vec![b'x'; BATCH_BYTES / 2]);
        let messages = [
            begin(7),
            table(),
            large.clone(),
            large.clone(),
            large,
            commit(),
        ];
        let batches = batches(run(&mut Assembler::new(Xid(5), "s"), &messages));
        let found: Vec<_> = batches.iter().map(|batch| batch.changes.len()).collect();
        assert_eq!(found, [2, 1]);
    }

    #[test]
    fn an_empty_transaction_is_progress() {
        let events = run(&mut Assembler::new(Xid(5), "s"), &[begin(7), commit()]);
        assert!(matches!(events[..], [SourceEvent::Progress(Lsn(0x130))]));
    }

    #[test]
    fn a_keepalive_amid_a_transaction_is_no_progress() {
        let mut assembler = Assembler::new(Xid(5), "s");
        assert!(assembler.quiet(Lsn(1)).is_some());
        run(&mut assembler, &[begin(7)]);
        assert!(assembler.quiet(Lsn(2)).is_none());
    }

    #[test]
    fn an_undecodable_row_is_lost_and_the_stream_goes_on() {
        let messages = [
            begin(7),
            table(),
            insert(&[0xFF]),
            // Two columns where the table has one.
            b"I\0\0\0\x09N\0\x02nn".to_vec(),
            insert(b"x"),
            commit(),
        ];
        let batches = batches(run(&mut Assembler::new(Xid(5), "s"), &messages));
        assert!(matches!(
            batches[0].changes[..],
            [
                Change {
                    kind: Kind::Lost(Lost::Undecodable),
                    ..
                },
                Change {
                    kind: Kind::Lost(Lost::Undecodable),
                    ..
                },
                Change {
                    kind: Kind::Insert { .. },
                    ..
                },
            ]
        ));
    }

    #[test]
    fn every_relation_message_makes_a_new_version_for_the_rows_after_it() {
        let messages = [
            begin(7),
            table(),
            insert(b"x"),
            table(),
            insert(b"x"),
            commit(),
        ];
        let batches = batches(run(&mut Assembler::new(Xid(5), "s"), &messages));
        let versions: Vec<_> = batches[0]
            .changes
            .iter()
            .map(|change| change.relation.version)
            .collect();
        assert!(versions[0] < versions[1]);
    }

    #[test]
    fn messages_out_of_place_are_refused() {
        let mut assembler = Assembler::new(Xid(5), "s");
        assert!(assembler.take(&commit()).is_err());
        assert!(assembler.take(&insert(b"x")).is_err(), "an unknown table");
        assembler.take(&table()).unwrap();
        assert!(assembler.take(&insert(b"x")).is_err(), "no transaction");
        assembler.take(&begin(7)).unwrap();
        assert!(assembler.take(&begin(8)).is_err());
    }
}
