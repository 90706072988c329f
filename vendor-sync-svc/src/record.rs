//! Canonical records: what WedSync and every linked system say about one client, wedding or booking, field by field.
//!
//! Types alone. `merge` decides what stands and is pure, `value` brings values into one form, [`store`] keeps records,
//! [`link`] what a record is called elsewhere, [`conflict`] what lost, [`pin`] whose word counts. Who sends an update and
//! who is told of a change is said in `sync` and `resolve`.

pub(crate) mod conflict;
pub(crate) mod decide;
mod erase;
pub(crate) mod link;
pub(crate) mod merge;
mod natural;
pub(crate) mod pin;
pub(crate) mod store;
#[cfg(test)]
mod tests;
pub(crate) mod value;

use std::collections::BTreeMap;

use chassis::{
    error::{Error, Result},
    id::OrganizationId,
};
use jiff::Timestamp;
use serde::{Deserialize, Serialize};
use serde_json::Value;

#[expect(unused_imports, reason = "the parts that sync take them from here")]
pub(crate) use self::{
    link::{Link, Links, external_hash},
    merge::{Conflict, Merged, Reason, Rules, merge},
    store::{Applied, Records},
};

/// Fields of a record.
pub(crate) const MOST_FIELDS: usize = 128;
/// Names and values of a record, or of an update, as JSON.
pub(crate) const MOST_BYTES: usize = 64 * 1024;
const MOST_ID_BYTES: usize = 256;

/// What a record is of.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub(crate) enum RecordKind {
    /// Somebody who marries.
    Client,
    /// The day itself.
    Wedding,
    /// What a supplier was booked for.
    Booking,
}

impl RecordKind {
    pub(crate) const ALL: [Self; 3] = [Self::Client, Self::Wedding, Self::Booking];

    /// As stores, declarations and events have it.
    pub(crate) fn as_str(self) -> &'static str {
        match self {
            Self::Client => "client",
            Self::Wedding => "wedding",
            Self::Booking => "booking",
        }
    }

    pub(crate) fn parse(text: &str) -> Option<Self> {
        Self::ALL.into_iter().find(|kind| kind.as_str() == text)
    }
}

/// Which record.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub(crate) struct RecordKey {
    pub(crate) organization: OrganizationId,
    pub(crate) kind: RecordKind,
    /// WedSync's own id of the client, wedding or booking.
    pub(crate) id: String,
}

impl RecordKey {
    /// # Errors
    /// `Error::Invalid` for an id that is empty, over 256 bytes or holds control characters.
    pub(crate) fn new(organization: OrganizationId, kind: RecordKind, id: impl Into<String>) -> Result<Self> {
        let id = id.into();
        if !(1..=MOST_ID_BYTES).contains(&id.len()) || id.chars().any(char::is_control) {
            return Err(Error::invalid("record_id", "must be 1 to 256 bytes without control characters"));
        }
        Ok(Self { organization, kind, id })
    }
}

/// Who says something: WedSync itself, a person who decided, or an integration by its id.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(transparent)]
pub(crate) struct Source(pub(crate) String);

impl Source {
    /// WedSync's own data.
    pub(crate) fn wedsync() -> Self {
        Self("wedsync".to_owned())
    }

    /// Somebody decided it by hand.
    pub(crate) fn person() -> Self {
        Self("person".to_owned())
    }

    /// An integration, by its id.
    pub(crate) fn integration(id: impl Into<String>) -> Self {
        Self(id.into())
    }

    pub(crate) fn is_person(&self) -> bool {
        self.0 == "person"
    }

    /// Whether it is a system that is linked, not WedSync or somebody in it.
    pub(crate) fn is_integration(&self) -> bool {
        !self.is_person() && self.0 != "wedsync"
    }

    pub(crate) fn as_str(&self) -> &str {
        &self.0
    }
}

/// What one source says about one field.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Field {
    /// Null: it has none, or no longer.
    pub(crate) value: Value,
    pub(crate) at: Timestamp,
    pub(crate) source: Source,
    /// What its source had there before, where that is known: it replaced this one knowingly, which is no conflict.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(crate) over: Option<Value>,
}

/// That a source no longer has the record.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Deletion {
    pub(crate) at: Timestamp,
    pub(crate) source: Source,
    /// Up to when it knew what the others had said.
    pub(crate) seen: Timestamp,
}

/// What is known of one client, wedding or booking.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct Record {
    pub(crate) key: RecordKey,
    /// What stands.
    pub(crate) fields: BTreeMap<String, Field>,
    /// What else was said, the last word of each other source; the newest [`merge::MOST_OTHERS`] of a field.
    pub(crate) others: BTreeMap<String, Vec<Field>>,
    /// The newest deletion, whether it holds or is asked about.
    pub(crate) deletion: Option<Deletion>,
    /// When a person last said that it stays: no deletion up to then counts.
    pub(crate) kept: Option<Timestamp>,
    /// Since when and by whom it is deleted: a deletion that nothing speaks against.
    pub(crate) deleted: Option<(Timestamp, Source)>,
    /// Raised by every write; 0: not stored yet.
    pub(crate) version: u64,
}

impl Record {
    /// One that nothing is known of.
    pub(crate) fn new(key: RecordKey) -> Self {
        Self {
            key,
            fields: BTreeMap::new(),
            others: BTreeMap::new(),
            deletion: None,
            kept: None,
            deleted: None,
            version: 0,
        }
    }

    /// The values that stand, without those that are none.
    pub(crate) fn values(&self) -> BTreeMap<String, Value> {
        let there = self.fields.iter().filter(|(_, field)| !field.value.is_null());
        there.map(|(name, field)| (name.clone(), field.value.clone())).collect()
    }

    /// What a source last said of a field, whether it stands or not.
    pub(crate) fn last_word(&self, source: &Source, name: &str) -> Option<&Value> {
        let others = self.others.get(name).into_iter().flatten();
        let mut said = self.fields.get(name).into_iter().chain(others);
        said.find(|field| field.source == *source).map(|field| &field.value)
    }

    /// The same of every field that it spoke of.
    pub(crate) fn last_words(&self, source: &Source) -> BTreeMap<String, Value> {
        let names = self.fields.keys().chain(self.others.keys());
        names.filter_map(|name| Some((name.clone(), self.last_word(source, name)?.clone()))).collect()
    }
}

/// What a source says now.
#[derive(Clone, Debug)]
pub(crate) struct Update {
    pub(crate) source: Source,
    /// By the source's own clock.
    pub(crate) at: Timestamp,
    /// Null clears a field; what isn't named isn't spoken of.
    pub(crate) fields: BTreeMap<String, Value>,
    /// Where the source gives a time per field.
    pub(crate) times: BTreeMap<String, Timestamp>,
    pub(crate) deleted: bool,
    /// For a deletion: up to when it knew what others had said (the link's `synced_at`); none: all up to `at`.
    pub(crate) seen: Option<Timestamp>,
    /// What it was last known to have (the link's `synced`; of a row that changed, what it was before): what is still so is
    /// no change of its, and what it replaced is no conflict.
    pub(crate) base: BTreeMap<String, Value>,
    /// A person says that the record stays: no deletion up to `at` counts.
    pub(crate) kept: bool,
}

impl Update {
    /// Fields as `source` has them since `at`.
    pub(crate) fn new(source: Source, at: Timestamp, fields: BTreeMap<String, Value>) -> Self {
        let (times, base) = (BTreeMap::new(), BTreeMap::new());
        Self { source, at, fields, times, deleted: false, seen: None, base, kept: false }
    }

    /// That `source` no longer has the record.
    pub(crate) fn deletion(source: Source, at: Timestamp) -> Self {
        Self { deleted: true, ..Self::new(source, at, BTreeMap::new()) }
    }
}

/// A field that stands differently now.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub(crate) struct Change {
    pub(crate) field: String,
    /// Null: it had none.
    pub(crate) old: Value,
    pub(crate) new: Value,
}
