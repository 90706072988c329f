//! Messages of the server, read field by field. Pure; no bytes make it panic, read past an end or ask for much memory.

use bytes::{Buf as _, Bytes};

use super::WireError;

/// A message ends before what it promises.
#[derive(Debug, PartialEq, Eq)]
pub(in super::super) struct Short;

/// Takes fields off the front of a message.
#[derive(Clone, Debug)]
pub(in super::super) struct Reader(pub(in super::super) Bytes);

impl Reader {
    pub(in super::super) fn u8(&mut self) -> Result<u8, Short> {
        self.0.try_get_u8().map_err(|_| Short)
    }

    pub(in super::super) fn u16(&mut self) -> Result<u16, Short> {
        self.0.try_get_u16().map_err(|_| Short)
    }

    pub(in super::super) fn u32(&mut self) -> Result<u32, Short> {
        self.0.try_get_u32().map_err(|_| Short)
    }

    pub(in super::super) fn u64(&mut self) -> Result<u64, Short> {
        self.0.try_get_u64().map_err(|_| Short)
    }

    pub(in super::super) fn i64(&mut self) -> Result<i64, Short> {
        self.0.try_get_i64().map_err(|_| Short)
    }

    pub(in super::super) fn bytes(&mut self, count: usize) -> Result<Bytes, Short> {
        if count <= self.0.len() { Ok(self.0.split_to(count)) } else { Err(Short) }
    }

    /// A text that ends with NUL; what isn't UTF-8 in it is replaced.
    pub(in super::super) fn text(&mut self) -> Result<String, Short> {
        let end = self.0.iter().position(|byte| *byte == 0).ok_or(Short)?;
        let text = self.0.split_to(end);
        self.0.advance(1);
        Ok(String::from_utf8_lossy(&text).into_owned())
    }
}

/// A column of an answer.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(in super::super) struct Column {
    pub(in super::super) name: String,
    /// OID of its type.
    pub(in super::super) type_: u32,
}

/// `RowDescription`.
pub(super) fn columns(body: Bytes) -> Result<Vec<Column>, Short> {
    let mut reader = Reader(body);
    let count = reader.u16()?;
    let mut columns = Vec::new();
    for _ in 0..count {
        let name = reader.text()?;
        reader.bytes(6)?;
        let type_ = reader.u32()?;
        reader.bytes(8)?;
        columns.push(Column { name, type_ });
    }
    Ok(columns)
}

/// `DataRow`; a length of -1 is null.
pub(super) fn row(body: Bytes) -> Result<super::Row, Short> {
    let mut reader = Reader(body);
    let count = reader.u16()?;
    let mut row = Vec::new();
    for _ in 0..count {
        row.push(match reader.u32()? {
            u32::MAX => None,
            length => Some(reader.bytes(length as usize)?),
        });
    }
    Ok(row)
}

/// `ErrorResponse`: fields, each with its letter.
pub(super) fn server_error(body: &Bytes) -> WireError {
    let mut reader = Reader(body.clone());
    let (mut code, mut message) = (String::new(), String::new());
    while let Ok(field @ 1..) = reader.u8() {
        let Ok(text) = reader.text() else { break };
        match field {
            b'C' => code = text,
            b'M' => message = text,
            _ => {}
        }
    }
    WireError::Server { code, message: message.chars().filter(|c| !c.is_control()).take(500).collect() }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn a_row_has_texts_and_nulls() {
        let body = Bytes::from_static(b"\0\x03\0\0\0\x02ab\xff\xff\xff\xff\0\0\0\0");
        assert_eq!(row(body), Ok(vec![Some("ab".into()), None, Some(Bytes::new())]));
    }

    #[test]
    fn a_refusal_has_its_code() {
        let WireError::Server { code, message } = server_error(&Bytes::from_static(b"SERROR\0C42704\0Mno\nslot\0\0"))
        else {
            panic!("another kind")
        };
        assert_eq!((code.as_str(), message.as_str()), ("42704", "noslot"));
    }

    proptest! {
        #[test]
        fn no_bytes_make_it_panic(body in proptest::collection::vec(any::<u8>(), 0..80)) {
            let body = Bytes::from(body);
            let _ = (columns(body.clone()), row(body.clone()), server_error(&body));
        }
    }
}
