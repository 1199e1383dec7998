//! What stands in a segment: framed, checksummed records.
//!
//! A frame is the length of its payload (`u32`), the CRC-32 (IEEE) of length and payload (`u32`),
//! and the payload: one byte that says what it is, and its body. All numbers are little-endian.

use std::sync::Arc;

use bytes::Buf;

use crate::change::{
    Batch, Change, Column, Kind, Lost, OldRow, Relation, ReplicaIdentity, Row, RowBuilder, Type,
    Value,
};
use crate::log::Offset;
use crate::pg::{Lsn, Oid, Xid};

/// The version of everything below; a log of another version is refused.
pub(super) const FORMAT: u32 = 3;

/// Length and checksum.
pub(super) const FRAME_HEADER: usize = 8;

const SEGMENT: u8 = 1;
const RELATION: u8 = 2;
const BATCH: u8 = 3;
const INDEX: u8 = 4;
const PASSED: u8 = 5;

/// What marks a cell that is NULL, and one that the stream did not carry, where otherwise the end
/// of its text stands.
const NULL: u32 = u32::MAX;
const UNCHANGED: u32 = u32::MAX - 1;

/// The bytes are not what was written.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Damaged;

impl From<bytes::TryGetError> for Damaged {
    fn from(_: bytes::TryGetError) -> Self {
        Self
    }
}

/// How a segment begins.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct SegmentHeader {
    /// The history that it belongs to.
    pub(super) epoch: u64,
    /// The offset of its first change.
    pub(super) first: Offset,
}

/// One record.
pub(super) enum Record {
    Segment(SegmentHeader),
    /// A description, numbered from 0 within its segment in the order in which they stand.
    Relation(Relation),
    Batch(Offset, Batch),
    /// Everything that commits before has come.
    Passed(Lsn),
    Index(Index),
}

/// What a batch's record says before its changes.
#[derive(Debug, Clone, Copy)]
pub(super) struct Outline {
    /// The offset of its first change.
    pub(super) first: Offset,
    /// The offset after its last change.
    pub(super) end: Offset,
    /// Where the commit record of its transaction ends.
    pub(super) end_lsn: Lsn,
    /// When its transaction committed, in microseconds since 1970-01-01 00:00 UTC.
    pub(super) committed_at: i64,
    /// Whether its transaction ends with it.
    pub(super) last: bool,
}

/// How a segment that is finished ends: what it holds, so that it need not be read to be known.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub(super) struct Index {
    /// The offset after its last change.
    pub(super) end: Offset,
    /// Where the commit record of its last transaction ends, or what was passed since.
    pub(super) appended: Lsn,
    /// Where the commit record of its last transaction ends.
    pub(super) committed: Lsn,
    /// When its last transaction committed, in microseconds since 1970-01-01 00:00 UTC.
    pub(super) committed_at: i64,
    /// Where some of its batches begin: the offset of the first change, and the place in the file.
    pub(super) places: Vec<(Offset, u64)>,
    /// Where the descriptions stand in the file.
    pub(super) relations: Vec<u64>,
}

/// The payload of the first frame in `bytes`; `None` where there is no whole and undamaged frame.
pub(super) fn payload(bytes: &[u8]) -> Option<&[u8]> {
    let length = length(bytes)?;
    let payload = bytes.get(FRAME_HEADER..FRAME_HEADER.checked_add(length)?)?;
    let mut sum = bytes.get(4..FRAME_HEADER)?;
    (checksum(bytes.get(..4)?, payload) == sum.try_get_u32_le().ok()?).then_some(payload)
}

/// How long the payload of the frame that `bytes` begin with says it is; never 0.
pub(super) fn length(bytes: &[u8]) -> Option<usize> {
    let mut bytes = bytes.get(..FRAME_HEADER)?;
    let length = usize::try_from(bytes.try_get_u32_le().ok()?).ok()?;
    (length > 0).then_some(length)
}

fn checksum(length: &[u8], payload: &[u8]) -> u32 {
    let mut hasher = crc32fast::Hasher::new();
    hasher.update(length);
    hasher.update(payload);
    hasher.finalize()
}

fn frame(out: &mut Vec<u8>, kind: u8, body: impl FnOnce(&mut Vec<u8>)) {
    let start = out.len();
    out.extend_from_slice(&[0; FRAME_HEADER]);
    out.push(kind);
    body(out);
    let (header, payload) = out.split_at_mut(start).1.split_at_mut(FRAME_HEADER);
    let length = u32::try_from(payload.len())
        .expect("a batch is one message of the stream (1 GiB) and some MiB at most")
        .to_le_bytes();
    let sum = checksum(&length, payload).to_le_bytes();
    let (first, second) = header.split_at_mut(length.len());
    first.copy_from_slice(&length);
    second.copy_from_slice(&sum);
}

pub(super) fn write_segment(out: &mut Vec<u8>, header: SegmentHeader) {
    frame(out, SEGMENT, |out| {
        put_u32(out, FORMAT);
        put_u64(out, header.epoch);
        put_u64(out, header.first.0);
    });
}

pub(super) fn write_relation(out: &mut Vec<u8>, relation: &Relation) {
    frame(out, RELATION, |out| {
        put_u32(out, relation.oid.0);
        out.push(match relation.replica_identity {
            ReplicaIdentity::Default => b'd',
            ReplicaIdentity::Nothing => b'n',
            ReplicaIdentity::Full => b'f',
            ReplicaIdentity::Index => b'i',
        });
        put_text(out, &relation.schema);
        put_text(out, &relation.name);
        put_length(out, relation.columns.len());
        for column in &relation.columns {
            put_text(out, &column.name);
            put_u32(out, column.type_oid.0);
            out.extend_from_slice(&column.type_modifier.to_le_bytes());
            out.push(u8::from(column.identity));
        }
        put_length(out, relation.types.len());
        for known in &*relation.types {
            put_u32(out, known.oid.0);
            put_text(out, &known.schema);
            put_text(out, &known.name);
        }
    });
}

/// Writes a batch; `number` gives the number of a description within the segment.
pub(super) fn write_batch(
    out: &mut Vec<u8>,
    first: Offset,
    batch: &Batch,
    mut number: impl FnMut(&Arc<Relation>) -> u32,
) {
    frame(out, BATCH, |out| {
        put_u64(out, first.0);
        put_u64(out, batch.xid.0);
        put_u64(out, batch.commit_lsn.0);
        put_u64(out, batch.end_lsn.0);
        out.extend_from_slice(&batch.committed_at.to_le_bytes());
        out.push(u8::from(batch.last));
        put_length(out, batch.changes.len());
        for change in &batch.changes {
            put_u32(out, number(&change.relation));
            match &change.kind {
                Kind::Insert { new } => {
                    out.push(b'I');
                    put_row(out, new);
                }
                Kind::Update { old: None, new } => {
                    out.push(b'U');
                    put_row(out, new);
                }
                Kind::Update {
                    old: Some(old),
                    new,
                } => {
                    out.push(if is_full(old) { b'O' } else { b'K' });
                    put_row(out, old.row());
                    put_row(out, new);
                }
                Kind::Delete { old } => {
                    out.push(if is_full(old) { b'D' } else { b'd' });
                    put_row(out, old.row());
                }
                Kind::Truncate => out.push(b'T'),
                Kind::Rules => out.push(b'R'),
                Kind::Lost(Lost::Undecodable) => out.push(b'?'),
                Kind::Lost(Lost::TooLarge) => out.push(b'>'),
            }
        }
    });
}

pub(super) fn write_passed(out: &mut Vec<u8>, lsn: Lsn) {
    frame(out, PASSED, |out| put_u64(out, lsn.0));
}

pub(super) fn write_index(out: &mut Vec<u8>, index: &Index) {
    frame(out, INDEX, |out| {
        put_u64(out, index.end.0);
        put_u64(out, index.appended.0);
        put_u64(out, index.committed.0);
        out.extend_from_slice(&index.committed_at.to_le_bytes());
        put_length(out, index.places.len());
        for (offset, place) in &index.places {
            put_u64(out, offset.0);
            put_u64(out, *place);
        }
        put_length(out, index.relations.len());
        for place in &index.relations {
            put_u64(out, *place);
        }
    });
}

/// Reads a payload. Batches need the descriptions that stand before them in their segment; a
/// description read gets the `version` given.
pub(super) fn read(
    payload: &[u8],
    relations: &[Arc<Relation>],
    version: impl FnOnce() -> u64,
) -> Result<Record, Damaged> {
    let mut rest = payload;
    let record = match rest.try_get_u8()? {
        SEGMENT => {
            if rest.try_get_u32_le()? != FORMAT {
                return Err(Damaged);
            }
            Record::Segment(SegmentHeader {
                epoch: rest.try_get_u64_le()?,
                first: Offset(rest.try_get_u64_le()?),
            })
        }
        RELATION => Record::Relation(relation(&mut rest, version)?),
        BATCH => {
            let first = Offset(rest.try_get_u64_le()?);
            Record::Batch(first, batch(&mut rest, relations)?)
        }
        INDEX => Record::Index(index(&mut rest)?),
        PASSED => Record::Passed(Lsn(rest.try_get_u64_le()?)),
        _ => return Err(Damaged),
    };
    if rest.is_empty() {
        Ok(record)
    } else {
        Err(Damaged)
    }
}

/// Reads what a batch's payload says before its changes; `None` of any other payload. A checksum
/// holds for all of it, so the rest need not be looked at.
pub(super) fn outline(payload: &[u8]) -> Option<Outline> {
    let (kind, mut rest) = payload.split_first()?;
    if *kind != BATCH {
        return None;
    }
    let rest = &mut rest;
    let first = Offset(rest.try_get_u64_le().ok()?);
    let head = head(rest).ok()?;
    Some(Outline {
        first,
        end: Offset(first.0.checked_add(head.changes as u64)?),
        end_lsn: head.end_lsn,
        committed_at: head.committed_at,
        last: head.last,
    })
}

/// How a batch begins.
struct Head {
    xid: Xid,
    commit_lsn: Lsn,
    end_lsn: Lsn,
    committed_at: i64,
    last: bool,
    changes: usize,
}

fn head(rest: &mut &[u8]) -> Result<Head, Damaged> {
    Ok(Head {
        xid: Xid(rest.try_get_u64_le()?),
        commit_lsn: Lsn(rest.try_get_u64_le()?),
        end_lsn: Lsn(rest.try_get_u64_le()?),
        committed_at: rest.try_get_i64_le()?,
        last: rest.try_get_u8()? != 0,
        changes: count(rest, 5)?,
    })
}

fn relation(rest: &mut &[u8], version: impl FnOnce() -> u64) -> Result<Relation, Damaged> {
    let oid = Oid(rest.try_get_u32_le()?);
    let replica_identity = match rest.try_get_u8()? {
        b'd' => ReplicaIdentity::Default,
        b'n' => ReplicaIdentity::Nothing,
        b'f' => ReplicaIdentity::Full,
        b'i' => ReplicaIdentity::Index,
        _ => return Err(Damaged),
    };
    let (schema, name) = (text(rest)?.into(), text(rest)?.into());
    let columns = count(rest, 13)?;
    let columns = (0..columns)
        .map(|_| {
            Ok(Column {
                name: text(rest)?.into(),
                type_oid: Oid(rest.try_get_u32_le()?),
                type_modifier: rest.try_get_i32_le()?,
                identity: rest.try_get_u8()? != 0,
            })
        })
        .collect::<Result<_, Damaged>>()?;
    let types = count(rest, 12)?;
    let types = (0..types)
        .map(|_| {
            Ok(Type {
                oid: Oid(rest.try_get_u32_le()?),
                schema: text(rest)?.into(),
                name: text(rest)?.into(),
            })
        })
        .collect::<Result<_, Damaged>>()?;
    if oid.0 == 0 {
        // One of no table is the same wherever it stands.
        return Ok(Relation {
            oid,
            schema,
            name,
            replica_identity,
            columns,
            types,
            version: 0,
        });
    }
    Ok(Relation {
        oid,
        schema,
        name,
        replica_identity,
        columns,
        types,
        version: version(),
    })
}

fn batch(rest: &mut &[u8], relations: &[Arc<Relation>]) -> Result<Batch, Damaged> {
    let head = head(rest)?;
    let changes = (0..head.changes)
        .map(|_| {
            let number = usize::try_from(rest.try_get_u32_le()?).map_err(|_| Damaged)?;
            let relation = Arc::clone(relations.get(number).ok_or(Damaged)?);
            let kind = match rest.try_get_u8()? {
                b'I' => Kind::Insert { new: row(rest)? },
                b'U' => Kind::Update {
                    old: None,
                    new: row(rest)?,
                },
                b'O' => Kind::Update {
                    old: Some(OldRow::Full(row(rest)?)),
                    new: row(rest)?,
                },
                b'K' => Kind::Update {
                    old: Some(OldRow::Key(row(rest)?)),
                    new: row(rest)?,
                },
                b'D' => Kind::Delete {
                    old: OldRow::Full(row(rest)?),
                },
                b'd' => Kind::Delete {
                    old: OldRow::Key(row(rest)?),
                },
                b'T' => Kind::Truncate,
                b'R' => Kind::Rules,
                b'?' => Kind::Lost(Lost::Undecodable),
                b'>' => Kind::Lost(Lost::TooLarge),
                _ => return Err(Damaged),
            };
            Ok(Change { relation, kind })
        })
        .collect::<Result<_, Damaged>>()?;
    Ok(Batch {
        xid: head.xid,
        commit_lsn: head.commit_lsn,
        end_lsn: head.end_lsn,
        committed_at: head.committed_at,
        changes,
        last: head.last,
    })
}

fn index(rest: &mut &[u8]) -> Result<Index, Damaged> {
    let end = Offset(rest.try_get_u64_le()?);
    let appended = Lsn(rest.try_get_u64_le()?);
    let committed = Lsn(rest.try_get_u64_le()?);
    let committed_at = rest.try_get_i64_le()?;
    let places = count(rest, 16)?;
    let places = (0..places)
        .map(|_| Ok((Offset(rest.try_get_u64_le()?), rest.try_get_u64_le()?)))
        .collect::<Result<_, Damaged>>()?;
    let relations = count(rest, 8)?;
    let relations = (0..relations)
        .map(|_| Ok(rest.try_get_u64_le()?))
        .collect::<Result<_, Damaged>>()?;
    Ok(Index {
        end,
        appended,
        committed,
        committed_at,
        places,
        relations,
    })
}

const fn is_full(old: &OldRow) -> bool {
    matches!(old, OldRow::Full(_))
}

/// The end of each value's text, then the texts.
fn put_row(out: &mut Vec<u8>, row: &Row) {
    put_length(out, row.len());
    let mut end = 0;
    for value in row.values() {
        put_u32(
            out,
            match value {
                Value::Null => NULL,
                Value::Unchanged => UNCHANGED,
                Value::Text(text) => {
                    end += u32::try_from(text.len()).expect("a row is under 4 GiB");
                    end
                }
            },
        );
    }
    for value in row.values() {
        if let Value::Text(text) = value {
            out.extend_from_slice(text.as_bytes());
        }
    }
}

fn row(rest: &mut &[u8]) -> Result<Row, Damaged> {
    let cells = count(rest, 4)?;
    let (mut ends, texts) = rest.split_at_checked(cells * 4).ok_or(Damaged)?;
    let bytes = |end: u32| usize::try_from(end).map_err(|_| Damaged);
    let mut all = ends;
    let mut total = 0;
    while let Ok(end) = all.try_get_u32_le() {
        if end != NULL && end != UNCHANGED {
            total = bytes(end)?;
        }
    }
    let (texts, behind) = texts.split_at_checked(total).ok_or(Damaged)?;
    let texts = std::str::from_utf8(texts).map_err(|_| Damaged)?;
    *rest = behind;
    let mut row = RowBuilder::with_capacity(cells, texts.len());
    let mut begin = 0;
    while let Ok(end) = ends.try_get_u32_le() {
        row.push(match end {
            NULL => Value::Null,
            UNCHANGED => Value::Unchanged,
            end => {
                let end = bytes(end)?;
                let text = texts.get(begin..end).ok_or(Damaged)?;
                begin = end;
                Value::Text(text)
            }
        });
    }
    Ok(row.finish())
}

/// A number of things of which each takes at least `least` bytes: never more than there can be.
fn count(rest: &mut &[u8], least: usize) -> Result<usize, Damaged> {
    let count = usize::try_from(rest.try_get_u32_le()?).map_err(|_| Damaged)?;
    if count > rest.len() / least {
        return Err(Damaged);
    }
    Ok(count)
}

fn text<'a>(rest: &mut &'a [u8]) -> Result<&'a str, Damaged> {
    let length = usize::try_from(rest.try_get_u32_le()?).map_err(|_| Damaged)?;
    let (text, behind) = rest.split_at_checked(length).ok_or(Damaged)?;
    *rest = behind;
    std::str::from_utf8(text).map_err(|_| Damaged)
}

fn put_u32(out: &mut Vec<u8>, number: u32) {
    out.extend_from_slice(&number.to_le_bytes());
}

fn put_u64(out: &mut Vec<u8>, number: u64) {
    out.extend_from_slice(&number.to_le_bytes());
}

fn put_length(out: &mut Vec<u8>, length: usize) {
    put_u32(
        out,
        u32::try_from(length).expect("nothing of a batch is counted in billions"),
    );
}

fn put_text(out: &mut Vec<u8>, text: &str) {
    put_length(out, text.len());
    out.extend_from_slice(text.as_bytes());
}
