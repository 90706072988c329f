//! Identifiers: UUIDv7 for what we name, and the organization that everything belongs to.

use std::{fmt, sync::Arc};

use jiff::Timestamp;
use uuid::{Builder, Uuid};

use crate::{error::Error, secret::random};

/// A new UUIDv7 for `now`, as lower-case text: 36 characters that sort by creation time.
#[must_use]
pub fn uuid(now: Timestamp) -> String {
    let millis = u64::try_from(now.as_millisecond()).unwrap_or(0);
    Builder::from_unix_timestamp_millis(millis, &random()).into_uuid().to_string()
}

/// The tenant: every event, row, stream and secret belongs to exactly one. Cheap to clone.
#[derive(Clone, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct OrganizationId(Arc<str>);

impl OrganizationId {
    /// Takes `[A-Za-z0-9_-]{1,64}`.
    ///
    /// # Errors
    /// `Error::Invalid` for anything else.
    pub fn parse(text: &str) -> Result<Self, Error> {
        let well_formed =
            (1..=64).contains(&text.len()) && text.bytes().all(|b| b.is_ascii_alphanumeric() || b == b'_' || b == b'-');
        if well_formed {
            Ok(Self(text.into()))
        } else {
            Err(Error::invalid("organization_id", "must match [A-Za-z0-9_-]{1,64}"))
        }
    }

    /// As text.
    #[must_use]
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl fmt::Display for OrganizationId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl fmt::Debug for OrganizationId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

/// The 16 bytes of a UUID in its usual text form; `None` for anything else.
#[must_use]
pub fn parse_uuid(text: &str) -> Option<[u8; 16]> {
    Uuid::try_parse(text).ok().map(Uuid::into_bytes)
}

/// A UUID's usual text form.
#[must_use]
pub fn uuid_text(bytes: [u8; 16]) -> String {
    Uuid::from_bytes(bytes).to_string()
}
