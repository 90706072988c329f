//! An event as it goes into the log, and as it is read back.

use std::sync::Arc;

use bytes::Bytes;
use chassis::id::OrganizationId;
use proto::router::v1::LoggedEvent;

use super::Appended;
use crate::wedding::Lesson;

/// An event that is ready to be appended.
#[derive(Debug)]
pub(crate) struct Draft {
    pub(crate) organization: OrganizationId,
    pub(crate) id: String,
    pub(crate) uid: [u8; 16],
    pub(crate) type_: String,
    pub(crate) ordering_key: String,
    pub(crate) priority: i64,
    pub(crate) content_hash: [u8; 32],
    /// Without its position, which the append gives.
    pub(crate) logged: Box<LoggedEvent>,
    /// `logged`, encoded and sealed.
    pub(crate) body: Bytes,
    /// What the event teaches about a wedding, stored in the same commit.
    pub(crate) lesson: Option<Lesson>,
}

impl Draft {
    /// What became of it, once it is the log's `sequence`.
    pub(super) fn appended(&self, sequence: u64) -> Appended {
        Appended { sequence, uid: self.uid, duplicate: false }
    }

    /// Bytes that it holds while it waits.
    pub(super) fn weight(&self) -> u32 {
        u32::try_from(self.body.len() * 2 + 512).unwrap_or(u32::MAX)
    }
}

/// What a stored body is sealed with beside its organization's key.
pub(crate) fn aad(uid: &[u8; 16]) -> Vec<u8> {
    [b"events|body|".as_slice(), uid].concat()
}

/// A stored event, shared by everyone who reads it.
#[derive(Debug)]
pub(crate) struct Entry {
    pub(crate) sequence: u64,
    pub(crate) organization: OrganizationId,
    pub(crate) priority: i64,
    pub(crate) type_: Arc<str>,
    pub(crate) ordering_key: Arc<str>,
    /// With its position.
    pub(crate) logged: Box<LoggedEvent>,
    /// Size on the wire, about.
    pub(crate) bytes: usize,
}
