//! The beginning of a connection: who we are, how values are to be printed, and the password by SCRAM-SHA-256. A server
//! that asks for the password in plain text gets it over TLS or loopback only; MD5 is refused.

use bytes::Bytes;

use super::{
    Address, Connection, Message, Reader, WireError,
    message::server_error,
    scram::{self, Exchange},
};

/// What every connection asks for: the session may replicate, and prints each value in one form, wherever the server is.
const PARAMETERS: [(&str, &str); 10] = [
    ("replication", "database"),
    ("application_name", "wedsync-capture"),
    ("client_encoding", "UTF8"),
    ("DateStyle", "ISO, YMD"),
    ("IntervalStyle", "iso_8601"),
    ("TimeZone", "UTC"),
    ("extra_float_digits", "1"),
    ("bytea_output", "hex"),
    ("statement_timeout", "0"),
    ("idle_in_transaction_session_timeout", "0"),
];

/// Kinds of `Authentication`.
const OK: u32 = 0;
const PLAIN: u32 = 3;
const SASL: u32 = 10;
const SASL_CONTINUE: u32 = 11;
const SASL_FINAL: u32 = 12;

pub(super) async fn login(connection: &mut Connection, address: &Address) -> Result<(), WireError> {
    connection.send_raw(&startup(address)).await?;
    let mut exchange = None;
    loop {
        let Message { tag, body, .. } = connection.message().await?;
        match tag {
            b'R' => {
                if let Some(answer) = authenticate(address, body, &mut exchange)? {
                    connection.send(b'p', &answer).await?;
                }
            }
            b'E' => return Err(server_error(&body)),
            b'Z' => return Ok(()),
            _ => {}
        }
    }
}

fn startup(address: &Address) -> Vec<u8> {
    let own = [("user", address.user.as_str()), ("database", address.database.as_str())];
    let mut body = 196_608_u32.to_be_bytes().to_vec();
    for (name, value) in own.into_iter().chain(PARAMETERS) {
        for text in [name, value] {
            body.extend_from_slice(text.as_bytes());
            body.push(0);
        }
    }
    body.push(0);
    let length = u32::try_from(body.len() + 4).unwrap_or(u32::MAX);
    [&length.to_be_bytes(), body.as_slice()].concat()
}

/// What to answer to a request of the server, if anything.
fn authenticate(address: &Address, body: Bytes, exchange: &mut Option<Exchange>) -> Result<Option<Vec<u8>>, WireError> {
    let mut reader = Reader(body);
    let kind = reader.u32()?;
    let password = address.password.expose();
    match (kind, exchange.as_mut()) {
        // A server that skips its own proof isn't the one that knows the password.
        (OK, None) => Ok(None),
        (OK, Some(exchange)) if exchange.is_proven() => Ok(None),
        (PLAIN, None) if address.is_private => Ok(Some([password.as_bytes(), &[0]].concat())),
        (SASL, None) => {
            let begun = Exchange::begin(&chassis::secret::random::<18>());
            let first = begun.first();
            let length = u32::try_from(first.len()).unwrap_or(u32::MAX);
            *exchange = Some(begun);
            Ok(Some([scram::NAME, &[0], &length.to_be_bytes(), first.as_bytes()].concat()))
        }
        (SASL_CONTINUE, Some(exchange)) => Ok(Some(exchange.answer(password, &reader.0)?.into_bytes())),
        (SASL_FINAL, Some(exchange)) => exchange.check(&reader.0).map(|()| None),
        _ => Err(WireError::Setting("the server asks for a login other than SCRAM-SHA-256".to_owned())),
    }
}
