//! What waits for a vendor: one event as an integration is to learn it, self-contained, so that every attempt says the
//! same whatever has happened since.
//!
//! The dispatcher seals it. How it is said in the vendor's words is the connector's, at the attempt.

use std::collections::BTreeMap;

use bytes::Bytes;
use chassis::{
    error::{Error, Result},
    id::{self, OrganizationId},
    lane::Offer,
};
use prost::Message as _;
use serde_json::Value;
use sha2::{Digest as _, Sha256};

use crate::record::{RecordKey, RecordKind};

/// One event for one integration.
#[derive(Clone, PartialEq, Eq, prost::Message)]
pub(crate) struct Letter {
    #[prost(string, tag = "1")]
    pub(crate) event_id: String,
    /// The router's own name for it, as a UUID.
    #[prost(string, tag = "2")]
    pub(crate) event_uid: String,
    #[prost(string, tag = "3")]
    pub(crate) event_type: String,
    /// RFC 3339.
    #[prost(string, tag = "4")]
    pub(crate) time: String,
    #[prost(string, tag = "5")]
    pub(crate) source: String,
    #[prost(string, tag = "6")]
    pub(crate) wedding_id: String,
    #[prost(string, tag = "7")]
    pub(crate) couple_id: String,
    #[prost(string, tag = "8")]
    pub(crate) supplier_id: String,
    #[prost(string, tag = "9")]
    pub(crate) traceparent: String,
    /// Kind and id of the record that it changed; empty: it changed none.
    #[prost(string, tag = "10")]
    pub(crate) kind: String,
    #[prost(string, tag = "11")]
    pub(crate) record_id: String,
    /// The record's fields after it, as a JSON object.
    #[prost(string, tag = "12")]
    pub(crate) fields: String,
    /// Those that it changed, with what they were before, as a JSON object.
    #[prost(string, tag = "13")]
    pub(crate) old: String,
    /// Names of the fields that it changed.
    #[prost(string, repeated, tag = "14")]
    pub(crate) changed: Vec<String>,
    #[prost(bool, tag = "15")]
    pub(crate) deleted: bool,
    /// What the event itself says, as JSON: for event operations.
    #[prost(string, tag = "16")]
    pub(crate) content: String,
    /// Nobody is in a hurry for it.
    #[prost(bool, tag = "17")]
    pub(crate) low: bool,
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

    /// What must stay in order: the wedding, else the record, else the event itself.
    pub(crate) fn ordering_key(&self) -> &str {
        let keys = [&self.wedding_id, &self.record_id, &self.event_id];
        keys.into_iter().find(|key| !key.is_empty()).map_or("", String::as_str)
    }

    /// As a lane takes it. What isn't an event of the log gets its name from its id.
    pub(crate) fn offer(&self, lane_id: &str, priority: i64, origin: &str) -> Offer {
        let event = id::parse_uuid(&self.event_uid).unwrap_or_else(|| {
            let hash = Sha256::digest([lane_id, self.event_id.as_str()].join("\0"));
            std::array::from_fn(|index| hash[index])
        });
        Offer {
            lane_id: lane_id.into(),
            event,
            event_id: self.event_id.clone(),
            event_type: self.event_type.clone(),
            ordering_key: self.ordering_key().to_owned(),
            priority,
            origin: origin.to_owned(),
            content: self.seal(),
        }
    }

    /// The record that it is about, if there is one.
    pub(crate) fn key(&self, organization: &OrganizationId) -> Option<RecordKey> {
        let kind = RecordKind::parse(&self.kind)?;
        RecordKey::new(organization.clone(), kind, self.record_id.as_str()).ok()
    }

    pub(crate) fn fields(&self) -> BTreeMap<String, Value> {
        parsed(&self.fields)
    }

    pub(crate) fn old(&self) -> BTreeMap<String, Value> {
        parsed(&self.old)
    }
}

fn parsed(text: &str) -> BTreeMap<String, Value> {
    serde_json::from_str(text).unwrap_or_default()
}

/// As [`Letter::fields`] reads them.
pub(crate) fn print(fields: &BTreeMap<String, Value>) -> String {
    serde_json::to_string(fields).expect("JSON values are JSON")
}
