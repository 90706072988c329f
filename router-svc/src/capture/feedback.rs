//! The envelope of the replication stream: what the server sends around its plugin's output, and what it is answered
//! (postgresql.org/docs/current/protocol-replication.html). Pure.

use std::time::Duration;

use bytes::Bytes;

use super::{
    position::Lsn,
    wire::{Reader, WireError},
};

/// How often the server hears of us, whatever happens: far below any `wal_sender_timeout` that is in use.
pub(super) const STATUS_EVERY: Duration = Duration::from_secs(1);
/// A server that says nothing for so long, though it was asked to, is gone.
pub(super) const SILENCE_MAX: Duration = Duration::from_secs(30);

/// A message of the stream.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Incoming {
    /// How far the server is.
    pub(super) end: Lsn,
    pub(super) payload: Option<Payload>,
    /// It wants to hear from us now.
    pub(super) asks: bool,
}

#[derive(Debug, PartialEq, Eq)]
pub(super) enum Payload {
    /// A message of the plugin.
    Output(Bytes),
    /// There is nothing for us up to here.
    Idle(Lsn),
}

impl Incoming {
    pub(super) fn parse(body: Bytes) -> Result<Self, WireError> {
        let mut reader = Reader(body);
        match reader.u8()? {
            b'w' => {
                let (start, end, _time) = (Lsn(reader.u64()?), Lsn(reader.u64()?), reader.u64()?);
                Ok(Self { end: end.max(start), payload: Some(Payload::Output(reader.0)), asks: false })
            }
            b'k' => {
                let (end, _time, asks) = (Lsn(reader.u64()?), reader.u64()?, reader.u8()? == 1);
                Ok(Self { end, payload: Some(Payload::Idle(end)), asks })
            }
            _ => Err(WireError::Protocol("it streams what is neither data nor a keepalive")),
        }
    }
}

/// What the server is told: everything up to `place` is durable here. The time is left out; the server only shows it.
pub(super) fn status(place: Lsn, asks: bool) -> Vec<u8> {
    let mut body = vec![b'r'];
    for _written_flushed_applied in 0..3 {
        body.extend_from_slice(&place.0.to_be_bytes());
    }
    body.extend_from_slice(&[0; 8]);
    body.push(u8::from(asks));
    body
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn a_keepalive_may_ask_for_an_answer() {
        let body = [b"k".as_slice(), &7_u64.to_be_bytes(), &[0; 8], &[1]].concat();
        let expected = Incoming { end: Lsn(7), payload: Some(Payload::Idle(Lsn(7))), asks: true };
        assert_eq!(Incoming::parse(body.into()).unwrap(), expected);
        assert_eq!(status(Lsn(7), true).len(), 34);
    }

    proptest! {
        #[test]
        fn no_bytes_make_it_panic(body in proptest::collection::vec(any::<u8>(), 0..60)) {
            let _ = Incoming::parse(body.into());
        }
    }
}
