//! A connection to a PostgreSQL server as capture needs it: one simple query at a time, and the replication stream.
//!
//! The protocol is PostgreSQL's own, version 3 (postgresql.org/docs/current/protocol.html). Values come as text, whose form
//! is pinned when the connection begins, so that the same row always reads the same. Whatever the server sends is taken
//! as bytes that may be wrong: a message is cut short at a bound, and nothing here panics on one.

mod address;
mod login;
mod message;
mod scram;
mod tls;

use std::time::Duration;

use bytes::{Buf as _, Bytes, BytesMut};
use tokio::{
    io::{AsyncReadExt as _, AsyncWriteExt as _},
    time::timeout,
};

pub(super) use self::{
    address::Address,
    message::{Column, Reader, Short},
};
use self::{message::server_error, tls::Stream};

/// How long connecting, and the answer to a query, may take; a row of a long answer may take as long again.
const PATIENCE: Duration = Duration::from_secs(30);
/// The longest message that is kept whole: an event may have 1 MiB, and text in JSON may be six times as long.
pub(super) const MESSAGE_MAX: usize = 16 << 20;
/// What is kept of a longer one: enough to say which row it was.
const KEPT: usize = 64 << 10;

/// Why a connection can't go on.
#[derive(Debug, thiserror::Error)]
pub(super) enum WireError {
    #[error("the connection broke: {0}")]
    Io(#[from] std::io::Error),
    #[error("the server refused: {message} ({code})")]
    Server { code: String, message: String },
    #[error("the server doesn't answer within {} s", PATIENCE.as_secs())]
    Slow,
    #[error("the server said what can't be understood: {0}")]
    Protocol(&'static str),
    #[error("{0}")]
    Setting(String),
}

impl WireError {
    /// The SQLSTATE, where the server gave one.
    pub(super) fn code(&self) -> &str {
        match self {
            Self::Server { code, .. } => code,
            _ => "",
        }
    }
}

impl From<Short> for WireError {
    fn from(_: Short) -> Self {
        Self::Protocol("a message is shorter than it says")
    }
}

/// A message from the server.
#[derive(Debug)]
pub(super) struct Message {
    pub(super) tag: u8,
    pub(super) body: Bytes,
    /// It was longer than is kept: `body` is its beginning.
    pub(super) is_cut: bool,
}

/// A row of an answer: each column's text.
pub(super) type Row = Vec<Option<Bytes>>;

/// One connection. What was read half is kept when a read is given up, so that reads may stand in a `select!`.
pub(super) struct Connection {
    stream: Stream,
    input: BytesMut,
    /// Of a message that is too long: its beginning, and how much is still to be thrown away.
    cut: Option<(Message, usize)>,
}

impl Connection {
    /// Connects, with TLS where the address asks for it, and logs in.
    pub(super) async fn open(address: &Address) -> Result<Self, WireError> {
        let opening = async {
            let stream = Stream::open(address).await?;
            let mut connection = Self { stream, input: BytesMut::with_capacity(16 << 10), cut: None };
            login::login(&mut connection, address).await?;
            Ok(connection)
        };
        timeout(PATIENCE, opening).await.map_err(|_| WireError::Slow)?
    }

    /// Runs one statement and gives all rows of its answer, which must be few.
    pub(super) async fn query(&mut self, statement: &str) -> Result<Vec<Row>, WireError> {
        self.ask(statement).await?;
        let mut rows = Vec::new();
        while let Some(answer) = self.answer().await? {
            if let Answer::Row(row) = answer {
                rows.push(row);
            }
        }
        Ok(rows)
    }

    /// Runs one statement whose answer is then read by [`Self::answer`], to its end.
    pub(super) async fn ask(&mut self, statement: &str) -> Result<(), WireError> {
        let mut body = statement.as_bytes().to_vec();
        body.push(0);
        self.send(b'Q', &body).await
    }

    /// The next part of an answer; none at its end.
    pub(super) async fn answer(&mut self) -> Result<Option<Answer>, WireError> {
        let mut refusal = None;
        loop {
            let message = timeout(PATIENCE, self.message()).await.map_err(|_| WireError::Slow)??;
            match message.tag {
                b'T' => return Ok(Some(Answer::Columns(message::columns(message.body)?))),
                b'D' if message.is_cut => return Ok(Some(Answer::Cut)),
                b'D' => return Ok(Some(Answer::Row(message::row(message.body)?))),
                b'E' => refusal = Some(server_error(&message.body)),
                b'Z' => return refusal.map_or(Ok(None), Err),
                b'G' | b'H' | b'W' => return Err(WireError::Protocol("it began to copy where a query was asked")),
                _ => {}
            }
        }
    }

    /// Asks for the replication stream; from here on there is [`Self::copied`] and [`Self::copy`] alone.
    pub(super) async fn start_copy(&mut self, statement: &str) -> Result<(), WireError> {
        self.ask(statement).await?;
        loop {
            let message = timeout(PATIENCE, self.message()).await.map_err(|_| WireError::Slow)??;
            match message.tag {
                b'W' => return Ok(()),
                b'E' => return Err(server_error(&message.body)),
                b'Z' => return Err(WireError::Protocol("it doesn't begin to stream")),
                _ => {}
            }
        }
    }

    /// The next message of the stream.
    pub(super) async fn copied(&mut self) -> Result<Message, WireError> {
        loop {
            let message = self.message().await?;
            match message.tag {
                b'd' => return Ok(message),
                b'E' => return Err(server_error(&message.body)),
                b'c' | b'C' | b'Z' => return Err(WireError::Protocol("it ended the stream")),
                _ => {}
            }
        }
    }

    /// Sends a message of the stream.
    pub(super) async fn copy(&mut self, body: &[u8]) -> Result<(), WireError> {
        self.send(b'd', body).await
    }

    /// Says goodbye; a server that is gone needs none.
    pub(super) async fn close(mut self) {
        let _ = timeout(Duration::from_secs(1), async {
            let _ = self.send(b'X', &[]).await;
            let _ = self.stream.shutdown().await;
        })
        .await;
    }

    async fn send(&mut self, tag: u8, body: &[u8]) -> Result<(), WireError> {
        let length = u32::try_from(body.len() + 4).map_err(|_| WireError::Protocol("a message to it is too long"))?;
        let mut message = Vec::with_capacity(body.len() + 5);
        message.push(tag);
        message.extend_from_slice(&length.to_be_bytes());
        message.extend_from_slice(body);
        self.send_raw(&message).await
    }

    async fn send_raw(&mut self, bytes: &[u8]) -> Result<(), WireError> {
        let sending = async {
            self.stream.write_all(bytes).await?;
            self.stream.flush().await
        };
        Ok(timeout(PATIENCE, sending).await.map_err(|_| WireError::Slow)??)
    }

    async fn message(&mut self) -> Result<Message, WireError> {
        loop {
            if let Some(message) = self.take()? {
                return Ok(message);
            }
            if self.stream.read_buf(&mut self.input).await? == 0 {
                return Err(std::io::Error::from(std::io::ErrorKind::UnexpectedEof).into());
            }
        }
    }

    /// A message out of what was read, if it is there whole.
    fn take(&mut self) -> Result<Option<Message>, WireError> {
        if let Some((message, rest)) = self.cut.take() {
            let gone = rest.min(self.input.len());
            self.input.advance(gone);
            if gone == rest {
                return Ok(Some(message));
            }
            self.cut = Some((message, rest - gone));
            return Ok(None);
        }
        let Some((&tag, [a, b, c, d, ..])) = self.input.split_first() else { return Ok(None) };
        let length = u32::from_be_bytes([*a, *b, *c, *d]) as usize;
        let length = length.checked_sub(4).ok_or(WireError::Protocol("a message has no length"))?;
        if length <= MESSAGE_MAX {
            if self.input.len() < length + 5 {
                self.input.reserve(length + 5 - self.input.len());
                return Ok(None);
            }
            self.input.advance(5);
            return Ok(Some(Message { tag, body: self.input.split_to(length).freeze(), is_cut: false }));
        }
        if self.input.len() >= KEPT + 5 {
            self.input.advance(5);
            let body = Bytes::copy_from_slice(&self.input.split_to(KEPT));
            self.cut = Some((Message { tag, body, is_cut: true }, length - KEPT));
            return self.take();
        }
        Ok(None)
    }
}

/// A part of the answer to a query.
#[derive(Debug)]
pub(super) enum Answer {
    /// What its columns are; comes first.
    Columns(Vec<Column>),
    Row(Row),
    /// A row that is too long to be kept.
    Cut,
}
