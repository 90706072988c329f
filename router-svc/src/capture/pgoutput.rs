//! What PostgreSQL's output plugin `pgoutput` says, protocol version 1: whole committed transactions, in commit order
//! (postgresql.org/docs/current/protocol-logicalrep-message-formats.html). Pure; values are slices of what was read.
//!
//! The server spills a transaction that is large to its own disk, so that here only one message is held at a time.
//! Guarantee: no bytes make it panic, and none make it allocate more than a few times their own number.

use bytes::Bytes;

use super::{
    position::Lsn,
    wire::{Reader, Short},
};

/// Why a message can't be taken.
#[derive(Debug, PartialEq, Eq, thiserror::Error)]
pub(super) enum Malformed {
    #[error("a message ends too early")]
    Short,
    #[error("{0:?} is no message of protocol version 1")]
    Message(char),
    #[error("{0:?} is no kind of a row or a value")]
    Kind(char),
}

impl From<Short> for Malformed {
    fn from(_: Short) -> Self {
        Self::Short
    }
}

/// One message.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Message {
    /// A transaction begins.
    Begin(Begin),
    /// It ends; everything up to `end` is said.
    Commit {
        end: Lsn,
    },
    /// What a table looks like from here on.
    Relation(Relation),
    Insert {
        relation: u32,
        new: Tuple,
    },
    Update {
        relation: u32,
        old: Old,
        new: Tuple,
    },
    Delete {
        relation: u32,
        old: Old,
    },
    Truncate {
        relations: Vec<u32>,
    },
    /// Nothing that concerns us: an origin, a type's name, a logical message.
    Other,
}

/// How a transaction begins.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Begin {
    /// Where its commit stands in the write-ahead log.
    pub(super) commit: Lsn,
    /// Microseconds since 2000-01-01, UTC.
    pub(super) committed_at: i64,
    pub(super) xid: u32,
}

/// A table as the server describes it.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct Relation {
    pub(super) id: u32,
    pub(super) schema: String,
    pub(super) table: String,
    pub(super) columns: Vec<Column>,
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Column {
    pub(super) name: String,
    /// OID of its type.
    pub(super) type_: u32,
    /// Part of the replica identity.
    pub(super) is_key: bool,
}

/// A row's values, in the order of its table's columns.
pub(super) type Tuple = Vec<Cell>;

#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Cell {
    Null,
    /// A large value (TOAST) that the statement left as it was, and that wasn't sent.
    Unchanged,
    Text(Bytes),
}

/// What is said of a row as it was.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Old {
    /// Nothing: its key is as in the new row.
    Same,
    /// The columns of its key; the others are null here, whatever they were.
    Key(Tuple),
    Full(Tuple),
}

impl Message {
    pub(super) fn parse(bytes: Bytes) -> Result<Self, Malformed> {
        let mut reader = Reader(bytes);
        match reader.u8()? {
            b'B' => {
                let (commit, committed_at) = (Lsn(reader.u64()?), reader.i64()?);
                Ok(Self::Begin(Begin { commit, committed_at, xid: reader.u32()? }))
            }
            b'C' => {
                reader.bytes(1 + 8)?;
                Ok(Self::Commit { end: Lsn(reader.u64()?) })
            }
            b'R' => Ok(Self::Relation(relation(&mut reader)?)),
            b'I' => {
                let relation = reader.u32()?;
                expect(&mut reader, b'N')?;
                Ok(Self::Insert { relation, new: tuple(&mut reader)? })
            }
            b'U' => update(&mut reader),
            b'D' => {
                let relation = reader.u32()?;
                let kind = reader.u8()?;
                Ok(Self::Delete { relation, old: old(kind, &mut reader)? })
            }
            b'T' => truncate(&mut reader),
            b'O' | b'Y' | b'M' => Ok(Self::Other),
            other => Err(Malformed::Message(other.into())),
        }
    }

    /// Which table a message is about that was too long to be kept, from its beginning.
    pub(super) fn relation_of_cut(bytes: Bytes) -> Option<u32> {
        let mut reader = Reader(bytes);
        matches!(reader.u8(), Ok(b'I' | b'U' | b'D')).then(|| reader.u32().ok()).flatten()
    }
}

fn expect(reader: &mut Reader, kind: u8) -> Result<(), Malformed> {
    match reader.u8()? {
        found if found == kind => Ok(()),
        other => Err(Malformed::Kind(other.into())),
    }
}

fn update(reader: &mut Reader) -> Result<Message, Malformed> {
    let relation = reader.u32()?;
    let old = match reader.u8()? {
        b'N' => Old::Same,
        kind => {
            let old = old(kind, reader)?;
            expect(reader, b'N')?;
            old
        }
    };
    Ok(Message::Update { relation, old, new: tuple(reader)? })
}

fn old(kind: u8, reader: &mut Reader) -> Result<Old, Malformed> {
    match kind {
        b'K' => Ok(Old::Key(tuple(reader)?)),
        b'O' => Ok(Old::Full(tuple(reader)?)),
        other => Err(Malformed::Kind(other.into())),
    }
}

fn tuple(reader: &mut Reader) -> Result<Tuple, Malformed> {
    let count = reader.u16()?;
    // Each value has a byte at least: a count alone buys no memory.
    let mut cells = Vec::with_capacity(usize::from(count).min(reader.0.len()));
    for _ in 0..count {
        cells.push(match reader.u8()? {
            b'n' => Cell::Null,
            b'u' => Cell::Unchanged,
            b't' => {
                let length = reader.u32()?;
                Cell::Text(reader.bytes(length as usize)?)
            }
            other => return Err(Malformed::Kind(other.into())),
        });
    }
    Ok(cells)
}

fn relation(reader: &mut Reader) -> Result<Relation, Malformed> {
    let (id, schema, table) = (reader.u32()?, reader.text()?, reader.text()?);
    let _identity = reader.u8()?;
    let count = reader.u16()?;
    let mut columns = Vec::new();
    for _ in 0..count {
        let is_key = reader.u8()? & 1 == 1;
        let (name, type_) = (reader.text()?, reader.u32()?);
        let _modifier = reader.u32()?;
        columns.push(Column { name, type_, is_key });
    }
    // The system's own schema is sent as nothing.
    let schema = if schema.is_empty() { "pg_catalog".to_owned() } else { schema };
    Ok(Relation { id, schema, table, columns })
}

fn truncate(reader: &mut Reader) -> Result<Message, Malformed> {
    let (count, _options) = (reader.u32()?, reader.u8()?);
    let mut relations = Vec::new();
    for _ in 0..count {
        relations.push(reader.u32()?);
    }
    Ok(Message::Truncate { relations })
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn parse(parts: &[&[u8]]) -> Result<Message, Malformed> {
        Message::parse(Bytes::from(parts.concat()))
    }

    #[test]
    fn an_update_may_have_a_whole_old_row_a_key_or_nothing() {
        let (relation, row): (&[u8], &[u8]) = (&[0, 0, 0, 7], b"\0\x03n\x75t\0\0\0\x02ab");
        let tuple = vec![Cell::Null, Cell::Unchanged, Cell::Text("ab".into())];
        for (before, old) in [
            (vec![], Old::Same),
            ([b"K", row].concat(), Old::Key(tuple.clone())),
            ([b"O", row].concat(), Old::Full(tuple.clone())),
        ] {
            let parsed = parse(&[b"U", relation, &before, b"N", row]).unwrap();
            assert_eq!(parsed, Message::Update { relation: 7, old, new: tuple.clone() });
        }
        assert_eq!(parse(&[b"D", relation, b"N", row]), Err(Malformed::Kind('N')), "a deleted row has no new one");
    }

    #[test]
    fn a_relation_says_which_columns_are_the_key() {
        let relation = parse(&[
            b"R",
            &[0, 0, 0, 7],
            b"public\0t\0d",
            &[0, 2],
            b"\x01id\0\0\0\0\x14\xff\xff\xff\xff",
            b"\0v\0\0\0\0\x19\xff\xff\xff\xff",
        ])
        .unwrap();
        let column = |name: &str, type_, is_key| Column { name: name.to_owned(), type_, is_key };
        let columns = vec![column("id", 20, true), column("v", 25, false)];
        assert_eq!(
            relation,
            Message::Relation(Relation { id: 7, schema: "public".to_owned(), table: "t".to_owned(), columns })
        );
    }

    #[test]
    fn a_count_buys_no_memory() {
        assert_eq!(parse(&[b"T", &[0xff; 4], &[0]]), Err(Malformed::Short));
        assert_eq!(parse(&[b"I", &[0, 0, 0, 1], b"N", &[0xff; 2]]), Err(Malformed::Short));
        assert_eq!(parse(&[b"I", &[0, 0, 0, 1], b"N", &[0, 1], b"t", &[0xff; 4]]), Err(Malformed::Short));
    }

    proptest! {
        #[test]
        fn no_bytes_make_it_panic(kind in proptest::sample::select(b"BCRIUDTOYMSx".to_vec()), body in proptest::collection::vec(any::<u8>(), 0..120)) {
            let _ = parse(&[&[kind], &body]);
            let _ = Message::relation_of_cut(Bytes::from([&[kind], body.as_slice()].concat()));
        }

        #[test]
        fn a_row_reads_as_it_was_written(values in proptest::collection::vec(proptest::option::of(".{0,20}"), 0..12), cut in any::<prop::sample::Index>()) {
            let mut bytes = [b"I".as_slice(), &[0, 0, 0, 9], b"N"].concat();
            bytes.extend(u16::try_from(values.len()).unwrap().to_be_bytes());
            for value in &values {
                match value {
                    None => bytes.push(b'n'),
                    Some(text) => {
                        bytes.push(b't');
                        bytes.extend(u32::try_from(text.len()).unwrap().to_be_bytes());
                        bytes.extend(text.as_bytes());
                    }
                }
            }
            let shorter = bytes[..cut.index(bytes.len())].to_vec();
            prop_assert_eq!(Message::parse(shorter.into()), Err(Malformed::Short));
            let cell = |value: Option<String>| value.map_or(Cell::Null, |text| Cell::Text(text.into()));
            let new: Tuple = values.into_iter().map(cell).collect();
            prop_assert_eq!(Message::parse(bytes.into()), Ok(Message::Insert { relation: 9, new }));
        }
    }
}
