use proptest::prelude::*;

use super::*;

/// Builds messages byte by byte, as the chapter lists their fields.
struct Bytes(Vec<u8>);

impl Bytes {
    fn tag(tag: u8) -> Self {
        Self(vec![tag])
    }
    fn raw(mut self, bytes: &[u8]) -> Self {
        self.0.extend_from_slice(bytes);
        self
    }
    fn u32(self, value: u32) -> Self {
        self.raw(&value.to_be_bytes())
    }
    fn u64(self, value: u64) -> Self {
        self.raw(&value.to_be_bytes())
    }
    fn text(self, text: &str) -> Self {
        self.raw(text.as_bytes()).raw(&[0])
    }
    fn tuple(self, values: &[(u8, &[u8])]) -> Self {
        let count = u16::try_from(values.len()).unwrap();
        let mut this = self.raw(&count.to_be_bytes());
        for (kind, bytes) in values {
            this = this.raw(&[*kind]);
            if matches!(kind, b't' | b'b') {
                let length = u32::try_from(bytes.len()).unwrap();
                this = this.u32(length).raw(bytes);
            }
        }
        this
    }
}

const ROW: &[(u8, &[u8])] = &[
    (b't', b"1"),
    (b'n', b""),
    (b'u', b""),
    (b't', "ö".as_bytes()),
];

fn row() -> Row {
    [
        Value::Text("1"),
        Value::Null,
        Value::Unchanged,
        Value::Text("ö"),
    ]
    .into_iter()
    .collect()
}

fn samples() -> Vec<(Vec<u8>, Message<'static>)> {
    vec![
        (
            Bytes::tag(b'B').u64(0x10).u64(1).u32(7).0,
            Message::Begin {
                final_lsn: Lsn(0x10),
                committed_at: POSTGRESQL_EPOCH + 1,
                xid: 7,
            },
        ),
        (
            Bytes::tag(b'C').raw(&[0]).u64(0x10).u64(0x20).u64(2).0,
            Message::Commit {
                commit_lsn: Lsn(0x10),
                end_lsn: Lsn(0x20),
                committed_at: POSTGRESQL_EPOCH + 2,
            },
        ),
        (Bytes::tag(b'O').u64(1).text("node").0, Message::Origin),
        (
            Bytes::tag(b'Y').u32(9).text("s").text("t").0,
            Message::Type {
                oid: Oid(9),
                schema: "s",
                name: "t",
            },
        ),
        (
            Bytes::tag(b'R')
                .u32(9)
                .text("")
                .text("t")
                .raw(b"f\0\x01\x01")
                .text("id")
                .u32(23)
                .u32(u32::MAX)
                .0,
            Message::Relation {
                oid: Oid(9),
                schema: "pg_catalog",
                name: "t",
                replica_identity: ReplicaIdentity::Full,
                columns: vec![ColumnMessage {
                    identity: true,
                    name: "id",
                    type_oid: Oid(23),
                    type_modifier: -1,
                }],
            },
        ),
        (
            Bytes::tag(b'I').u32(9).raw(b"N").tuple(ROW).0,
            Message::Insert {
                relation: Oid(9),
                new: Ok(row()),
            },
        ),
        (
            Bytes::tag(b'U').u32(9).raw(b"N").tuple(ROW).0,
            Message::Update {
                relation: Oid(9),
                old: None,
                new: Ok(row()),
            },
        ),
        (
            Bytes::tag(b'U')
                .u32(9)
                .raw(b"K")
                .tuple(ROW)
                .raw(b"N")
                .tuple(ROW)
                .0,
            Message::Update {
                relation: Oid(9),
                old: Some(OldTuple::Key(Ok(row()))),
                new: Ok(row()),
            },
        ),
        (
            Bytes::tag(b'D').u32(9).raw(b"O").tuple(ROW).0,
            Message::Delete {
                relation: Oid(9),
                old: OldTuple::Full(Ok(row())),
            },
        ),
        (
            Bytes::tag(b'T').u32(2).raw(&[3]).u32(9).u32(10).0,
            Message::Truncate {
                relations: vec![Oid(9), Oid(10)],
                cascade: true,
                restart_identity: true,
            },
        ),
        (
            Bytes::tag(b'M')
                .raw(&[1])
                .u64(0x30)
                .text("p")
                .u32(2)
                .raw(&[0xFF, 0])
                .0,
            Message::Message {
                transactional: true,
                lsn: Lsn(0x30),
                prefix: b"p",
                content: &[0xFF, 0],
            },
        ),
    ]
}

#[test]
fn every_message_has_the_fields_of_the_chapter() {
    for (bytes, message) in samples() {
        assert_eq!(decode(&bytes), Ok(message));
    }
}

#[test]
fn a_message_cut_short_anywhere_is_malformed() {
    for (bytes, _) in samples() {
        for length in 0..bytes.len() {
            assert_eq!(decode(&bytes[..length]), Err(Malformed), "{length}");
        }
    }
}

#[test]
fn an_invalid_text_spoils_its_row_only() {
    let bad: &[(u8, &[u8])] = &[(b't', &[0xC3]), (b't', &[0xB6])];
    let bytes = Bytes::tag(b'U')
        .u32(9)
        .raw(b"O")
        .tuple(bad)
        .raw(b"N")
        .tuple(ROW)
        .0;
    assert_eq!(
        decode(&bytes),
        Ok(Message::Update {
            relation: Oid(9),
            old: Some(OldTuple::Full(Err(Undecodable))),
            new: Ok(row()),
        }),
        "halves of a character in two columns are not a character"
    );
    let bytes = Bytes::tag(b'I')
        .u32(9)
        .raw(b"N")
        .tuple(&[(b'b', &[0, 1])])
        .0;
    assert_eq!(
        decode(&bytes),
        Ok(Message::Insert {
            relation: Oid(9),
            new: Err(Undecodable)
        })
    );
}

#[test]
fn announced_sizes_allocate_nothing() {
    for bytes in [
        Bytes::tag(b'T').u32(u32::MAX).raw(&[0]).0,
        Bytes::tag(b'I').u32(1).raw(b"N\xFF\xFFt").u32(u32::MAX).0,
        Bytes::tag(b'R')
            .u32(1)
            .text("s")
            .text("t")
            .raw(b"d\xFF\xFF")
            .0,
        Bytes::tag(b'M').raw(&[0]).u64(1).text("p").u32(u32::MAX).0,
    ] {
        assert_eq!(decode(&bytes), Err(Malformed));
    }
}

proptest! {
    #[test]
    fn no_bytes_panic(
        tag in proptest::sample::select(b"BCORYIUDTM".to_vec()),
        rest in proptest::collection::vec(any::<u8>(), 0..200),
    ) {
        let mut bytes = vec![tag];
        bytes.extend(rest);
        drop(decode(&bytes));
    }

    #[test]
    fn no_damaged_message_panics(
        which in 0..11_usize,
        at in any::<proptest::sample::Index>(),
        byte in any::<u8>(),
    ) {
        let (mut bytes, _) = samples().swap_remove(which);
        let at = at.index(bytes.len());
        bytes[at] = byte;
        drop(decode(&bytes));
    }
}
