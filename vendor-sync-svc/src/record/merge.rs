//! What stands when sources disagree. Pure, and the same whatever the order in which updates arrive.
//!
//! Per field the latest word stands, by the source's time; at one time, the source that comes later in [`Rules::order`],
//! then the greater value as canonical JSON. Of every other source its last word is kept. A pinned field takes the words
//! of its source, and of a person, alone.
//!
//! A deletion holds if its source knew all that the others had said. If not (an edit that is newer, or that it hadn't
//! seen), the record stays and somebody is asked.
//!
//! Invariant: any order of the same updates gives the same record and the same [`losing`] values.

use std::collections::BTreeMap;

use chassis::error::Result;
use jiff::{SignedDuration, Timestamp};

use super::{Change, Field, Record, Source, Update};

/// Sources that a field remembers beside the one that stands; the newest.
pub(crate) const MOST_OTHERS: usize = 8;
/// How far ahead of ours a source's clock may be; a time beyond it counts as now.
const AHEAD: SignedDuration = SignedDuration::from_mins(5);

/// By what is decided.
#[derive(Clone, Debug)]
pub(crate) struct Rules {
    pub(crate) now: Timestamp,
    /// Who has the last word at one and the same time: the later in this list. Who isn't in it comes before all of it.
    pub(crate) order: Vec<Source>,
    /// Fields that one source alone decides, for this record.
    pub(crate) pins: BTreeMap<String, Source>,
}

impl Rules {
    /// No pins; WedSync after vendors, a person after all.
    pub(crate) fn at(now: Timestamp) -> Self {
        Self { now, order: vec![Source::wedsync(), Source::person()], pins: BTreeMap::new() }
    }
}

/// Why a value lost, or what is asked.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub(crate) enum Reason {
    /// What stands is of a later time.
    Older,
    /// Of the same time; the order of sources, or the values, decided.
    Tie,
    /// The field is pinned to another source.
    Pinned,
    /// One deleted the record, another edited it. This one asks.
    DeletedAndEdited,
}

impl Reason {
    const ALL: [Self; 4] = [Self::Older, Self::Tie, Self::Pinned, Self::DeletedAndEdited];

    /// As the store has it.
    pub(crate) fn as_str(self) -> &'static str {
        match self {
            Self::Older => "older",
            Self::Tie => "tie",
            Self::Pinned => "pinned",
            Self::DeletedAndEdited => "deleted_and_edited",
        }
    }

    pub(crate) fn parse(text: &str) -> Option<Self> {
        Self::ALL.into_iter().find(|reason| reason.as_str() == text)
    }

    /// Whether nothing but a person ends it.
    pub(crate) fn asks(self) -> bool {
        self == Self::DeletedAndEdited
    }
}

/// A value that doesn't stand though its source holds it, or a deletion that is asked about.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct Conflict {
    /// Empty: the record as a whole.
    pub(crate) field: String,
    /// What stands; none where the pinned source hasn't spoken.
    pub(crate) kept: Option<Field>,
    /// What doesn't. Of a deletion: null, when it was, and whose.
    pub(crate) losing: Field,
    pub(crate) reason: Reason,
}

/// What an update led to.
#[derive(Clone, Debug)]
pub(crate) struct Merged {
    pub(crate) record: Record,
    /// In the order of their names.
    pub(crate) changes: Vec<Change>,
    /// Those that weren't there before.
    pub(crate) conflicts: Vec<Conflict>,
}

/// The record after `update`.
pub(crate) fn merge(_record: &Record, _update: &Update, _rules: &Rules) -> Result<Merged> {
    todo!()
}
