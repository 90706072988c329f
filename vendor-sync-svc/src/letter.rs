//! A letter: one rendered webhook as it waits in the store, self-contained, so that every attempt sends the same bytes.

use bytes::Bytes;
use chassis::error::{Error, Result};
use prost::Message as _;

/// What is sent, without what each attempt adds (time, signature).
#[derive(Clone, PartialEq, Eq, prost::Message)]
pub(crate) struct Letter {
    /// `msg_` and the event's uid.
    #[prost(string, tag = "1")]
    pub(crate) webhook_id: String,
    /// The value of `X-WedSync-Event`.
    #[prost(string, tag = "2")]
    pub(crate) event_type: String,
    /// The payload's time, ISO 8601.
    #[prost(string, tag = "3")]
    pub(crate) timestamp: String,
    /// The trace that the event belongs to; empty: none.
    #[prost(string, tag = "4")]
    pub(crate) traceparent: String,
    #[prost(bytes = "bytes", tag = "5")]
    pub(crate) body: Bytes,
    /// Why there is no body to send; empty: there is one.
    #[prost(string, tag = "6")]
    pub(crate) failure: String,
}

impl Letter {
    pub(crate) fn seal(&self) -> Bytes {
        Bytes::from(self.encode_to_vec())
    }

    /// Reads what [`Letter::seal`] gave.
    ///
    /// # Errors
    /// `Error::Internal` for anything else.
    pub(crate) fn open(bytes: Bytes) -> Result<Self> {
        Self::decode(bytes).map_err(|error| Error::internal(anyhow::Error::new(error).context("a stored letter")))
    }
}
