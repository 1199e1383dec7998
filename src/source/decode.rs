//! The messages of `pgoutput`, version 1, after PostgreSQL's chapter "Logical Replication Message
//! Formats".
//!
//! Nothing here trusts a length: what the bytes announce is compared with what is there before
//! anything is allocated.

use super::reader::{Malformed, Reader};
use crate::change::{ReplicaIdentity, Row, RowBuilder, Value};
use crate::pg::{Lsn, Oid};

/// PostgreSQL counts from 2000-01-01; this is that day in microseconds since 1970-01-01.
pub(super) const POSTGRESQL_EPOCH: i64 = 946_684_800_000_000;

/// Bit 0 of a column's flags: it belongs to the replica identity.
const IDENTITY_FLAG: u8 = 1;

/// A row's bytes hold a text that is not UTF-8, or a value in a form that was not asked for. Only
/// this row is affected.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Undecodable;

/// A row, or word that it cannot be read.
pub type Tuple = Result<Row, Undecodable>;

/// What an UPDATE or DELETE says of the row before.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum OldTuple {
    /// The replica identity's columns (`K`).
    Key(Tuple),
    /// The whole row (`O`).
    Full(Tuple),
}

/// A column of a [`Message::Relation`].
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct ColumnMessage<'a> {
    /// Whether it belongs to the replica identity.
    pub identity: bool,
    /// Its name.
    pub name: &'a str,
    /// Its type.
    pub type_oid: Oid,
    /// The type's modifier, -1 where there is none.
    pub type_modifier: i32,
}

/// One message of the stream.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Message<'a> {
    /// A transaction's changes follow.
    Begin {
        /// Where its commit record begins.
        final_lsn: Lsn,
        /// Microseconds since 1970-01-01 00:00 UTC.
        committed_at: i64,
        /// The lower 32 bits of its number.
        xid: u32,
    },
    /// The transaction's changes are complete.
    Commit {
        /// Where its commit record begins.
        commit_lsn: Lsn,
        /// Where its commit record ends.
        end_lsn: Lsn,
        /// Microseconds since 1970-01-01 00:00 UTC.
        committed_at: i64,
    },
    /// The transaction came from another server.
    Origin,
    /// A table, before its first row and after every change to it.
    Relation {
        /// The table.
        oid: Oid,
        /// Its schema; `pg_catalog` is sent as nothing and read as itself.
        schema: &'a str,
        /// Its name.
        name: &'a str,
        /// What old rows carry.
        replica_identity: ReplicaIdentity,
        /// Its columns.
        columns: Vec<ColumnMessage<'a>>,
    },
    /// A type that is not built in, before the first table that has a column of it.
    Type {
        /// The type.
        oid: Oid,
        /// Its schema (of a domain, that of the type that it is over).
        schema: &'a str,
        /// Its name (of a domain, that of the type that it is over).
        name: &'a str,
    },
    /// A new row.
    Insert {
        /// The table.
        relation: Oid,
        /// The row.
        new: Tuple,
    },
    /// A changed row.
    Update {
        /// The table.
        relation: Oid,
        /// The row before, where the replica identity changed or is the whole row.
        old: Option<OldTuple>,
        /// The row after.
        new: Tuple,
    },
    /// A row that is gone.
    Delete {
        /// The table.
        relation: Oid,
        /// The row before.
        old: OldTuple,
    },
    /// Tables that were emptied.
    Truncate {
        /// The tables.
        relations: Vec<Oid>,
        /// Whether `CASCADE` was said.
        cascade: bool,
        /// Whether `RESTART IDENTITY` was said.
        restart_identity: bool,
    },
    /// What `pg_logical_emit_message` was given.
    Message {
        /// Whether it belongs to a transaction.
        transactional: bool,
        /// Where it stands.
        lsn: Lsn,
        /// Its prefix.
        prefix: &'a [u8],
        /// Its content.
        content: &'a [u8],
    },
}

/// Decodes one message. Bytes after its end are ignored: a later version may add fields.
///
/// # Errors
/// [`Malformed`] where the message does not have its form; the stream cannot be followed further.
pub fn decode(bytes: &[u8]) -> Result<Message<'_>, Malformed> {
    let mut from = Reader(bytes);
    Ok(match from.u8()? {
        b'I' => {
            let relation = Oid(from.u32()?);
            expect(&mut from, b'N')?;
            let new = tuple(&mut from)?;
            Message::Insert { relation, new }
        }
        b'U' => {
            let relation = Oid(from.u32()?);
            let mut tag = from.u8()?;
            let old = if tag == b'N' {
                None
            } else {
                let old = old_tuple(tag, &mut from)?;
                tag = from.u8()?;
                Some(old)
            };
            if tag != b'N' {
                return Err(Malformed);
            }
            let new = tuple(&mut from)?;
            Message::Update { relation, old, new }
        }
        b'D' => {
            let relation = Oid(from.u32()?);
            let tag = from.u8()?;
            let old = old_tuple(tag, &mut from)?;
            Message::Delete { relation, old }
        }
        b'B' => Message::Begin {
            final_lsn: Lsn(from.u64()?),
            committed_at: timestamp(&mut from)?,
            xid: from.u32()?,
        },
        b'C' => {
            let _unused_flags = from.u8()?;
            Message::Commit {
                commit_lsn: Lsn(from.u64()?),
                end_lsn: Lsn(from.u64()?),
                committed_at: timestamp(&mut from)?,
            }
        }
        b'R' => relation(&mut from)?,
        b'T' => {
            let count = from.u32()? as usize;
            let options = from.u8()?;
            if count > from.0.len() / size_of::<u32>() {
                return Err(Malformed);
            }
            let relations = (0..count)
                .map(|_| from.u32().map(Oid))
                .collect::<Result<_, _>>()?;
            Message::Truncate {
                relations,
                cascade: options & 1 != 0,
                restart_identity: options & 2 != 0,
            }
        }
        b'M' => {
            let transactional = from.u8()? & 1 != 0;
            let lsn = Lsn(from.u64()?);
            // Anybody may give one, in any encoding.
            let prefix = from.terminated()?;
            let length = from.u32()? as usize;
            let content = from.bytes(length)?;
            Message::Message {
                transactional,
                lsn,
                prefix,
                content,
            }
        }
        b'O' => {
            from.u64()?;
            from.text()?;
            Message::Origin
        }
        b'Y' => Message::Type {
            oid: Oid(from.u32()?),
            schema: schema(from.text()?),
            name: from.text()?,
        },
        _ => return Err(Malformed),
    })
}

fn expect(from: &mut Reader<'_>, tag: u8) -> Result<(), Malformed> {
    if from.u8()? == tag {
        Ok(())
    } else {
        Err(Malformed)
    }
}

/// A schema's name; `pg_catalog` is sent as nothing.
fn schema(text: &str) -> &str {
    if text.is_empty() { "pg_catalog" } else { text }
}

fn timestamp(from: &mut Reader<'_>) -> Result<i64, Malformed> {
    Ok(from.i64()?.saturating_add(POSTGRESQL_EPOCH))
}

fn relation<'a>(from: &mut Reader<'a>) -> Result<Message<'a>, Malformed> {
    let oid = Oid(from.u32()?);
    let schema = schema(from.text()?);
    let name = from.text()?;
    let replica_identity = match from.u8()? {
        b'd' => ReplicaIdentity::Default,
        b'n' => ReplicaIdentity::Nothing,
        b'f' => ReplicaIdentity::Full,
        b'i' => ReplicaIdentity::Index,
        _ => return Err(Malformed),
    };
    // A column takes at least its flags, the end of its name, its type and its modifier.
    const SMALLEST: usize = 10;
    let count = usize::from(from.u16()?);
    if count > from.0.len() / SMALLEST {
        return Err(Malformed);
    }
    let columns = (0..count)
        .map(|_| {
            Ok(ColumnMessage {
                identity: from.u8()? & IDENTITY_FLAG != 0,
                name: from.text()?,
                type_oid: Oid(from.u32()?),
                type_modifier: from.i32()?,
            })
        })
        .collect::<Result<_, _>>()?;
    Ok(Message::Relation {
        oid,
        schema,
        name,
        replica_identity,
        columns,
    })
}

fn old_tuple(tag: u8, from: &mut Reader<'_>) -> Result<OldTuple, Malformed> {
    match tag {
        b'K' => tuple(from).map(OldTuple::Key),
        b'O' => tuple(from).map(OldTuple::Full),
        _ => Err(Malformed),
    }
}

/// Reads a row ("TupleData"). It is gone over twice: the first time finds its end and how much
/// text it holds, so that the second fills memory of exactly that size.
fn tuple(from: &mut Reader<'_>) -> Result<Tuple, Malformed> {
    let count = usize::from(from.u16()?);
    let mut ahead = *from;
    let mut size = 0;
    for _ in 0..count {
        match ahead.u8()? {
            b'n' | b'u' => {}
            b't' | b'b' => {
                let length = ahead.u32()? as usize;
                ahead.bytes(length)?;
                size += length;
            }
            _ => return Err(Malformed),
        }
    }
    let row = fill(from, count, size)?;
    *from = ahead;
    Ok(row)
}

fn fill(from: &mut Reader<'_>, count: usize, size: usize) -> Result<Tuple, Malformed> {
    let mut row = RowBuilder::with_capacity(count, size);
    for _ in 0..count {
        row.push(match from.u8()? {
            b'n' => Value::Null,
            b'u' => Value::Unchanged,
            b't' => {
                let length = from.u32()? as usize;
                match str::from_utf8(from.bytes(length)?) {
                    Ok(text) => Value::Text(text),
                    Err(_) => return Ok(Err(Undecodable)),
                }
            }
            // Binary values come only where `binary` was asked for, which it is not.
            _ => return Ok(Err(Undecodable)),
        });
    }
    Ok(Ok(row.finish()))
}

#[cfg(test)]
mod tests;
