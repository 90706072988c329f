//! Imports: everything that a vendor's list, a table or a calendar has, taken in at once and counted.
//!
//! An import is a stored thing, and a task that works at it; killed at any moment, the next start goes on with it. What it
//! takes in is spooled first, so that what is counted for the brake is what is then applied. Types alone: [`store`]
//! keeps them, [`spool`] what they take in, `run` and [`work`] do it, and `read`, [`csv`], [`ics`] and [`columns`] read.

pub(crate) mod columns;
pub(crate) mod csv;
mod hold;
pub(crate) mod ics;
mod ics_line;
#[cfg(test)]
mod kill;
pub(crate) mod read;
mod run;
pub(crate) mod spool;
pub(crate) mod store;
mod tell;
#[cfg(test)]
pub(crate) mod tests;
pub(crate) mod text;
pub(crate) mod work;

use chassis::id::OrganizationId;
use jiff::Timestamp;
use serde::{Deserialize, Serialize};

use self::{columns::Options, text::Encoding};
use crate::record::RecordKind;

/// Refusals, and examples, that are kept of an import.
pub(crate) const KEPT: usize = 100;
/// Records of one page, each of which is one transaction.
pub(crate) const PAGE: usize = 500;

/// A closed set with the names that the store has.
macro_rules! named {
    ($(#[$doc:meta])* $name:ident { $($(#[$variant_doc:meta])* $variant:ident = $text:literal),+ $(,)? }) => {
        $(#[$doc])*
        #[derive(Clone, Copy, Debug, PartialEq, Eq)]
        pub(crate) enum $name { $($(#[$variant_doc])* $variant),+ }

        impl $name {
            pub(crate) fn as_str(self) -> &'static str {
                match self { $(Self::$variant => $text),+ }
            }

            pub(crate) fn parse(text: &str) -> Option<Self> {
                match text { $($text => Some(Self::$variant),)+ _ => None }
            }
        }
    };
}

named! {
    /// What is done.
    Work { Import = "import", Reconcile = "reconcile" }
}
named! {
    /// Where it comes from.
    Origin { Vendor = "vendor", Csv = "csv", Ics = "ics" }
}
named! {
    /// How it stands.
    State {
        Receiving = "receiving",
        Running = "running",
        /// The brake has stopped it: a person is asked.
        Asked = "asked",
        Done = "done",
        Failed = "failed",
        Cancelled = "cancelled",
    }
}
named! {
    /// What is being done. One that failed while it was received, or by what it was, has nothing to go on with.
    Phase { Receiving = "receiving", Listing = "listing", Counting = "counting", Applying = "applying" }
}

impl State {
    pub(crate) fn has_ended(self) -> bool {
        matches!(self, Self::Done | Self::Failed | Self::Cancelled)
    }
}

/// What somebody asks for.
#[derive(Clone, Debug)]
pub(crate) struct Order {
    pub(crate) organization: OrganizationId,
    pub(crate) integration_id: String,
    pub(crate) work: Work,
    pub(crate) origin: Origin,
    /// Of a file's rows.
    pub(crate) kind: RecordKind,
    pub(crate) options: Options,
    pub(crate) dry_run: bool,
}

impl Order {
    /// A comparison with the vendor's list.
    pub(crate) fn reconcile(organization: OrganizationId, integration_id: String, dry_run: bool) -> Self {
        let (work, origin, options) = (Work::Reconcile, Origin::Vendor, Options::default());
        Self { organization, integration_id, work, origin, kind: RecordKind::Client, options, dry_run }
    }
}

/// One import.
#[derive(Clone, Debug)]
pub(crate) struct Import {
    pub(crate) id: String,
    pub(crate) order: Order,
    pub(crate) state: State,
    pub(crate) phase: Phase,
    /// Why it failed or asks.
    pub(crate) reason: String,
    /// To how many changes a person has said yes.
    pub(crate) agreed: Option<u64>,
    pub(crate) encoding: Encoding,
    pub(crate) total: u64,
    pub(crate) next: Next,
    pub(crate) counts: Counts,
    pub(crate) refusals: Vec<Refusal>,
    pub(crate) examples: Vec<Example>,
    pub(crate) created_at: Timestamp,
    pub(crate) updated_at: Timestamp,
    pub(crate) finished_at: Option<Timestamp>,
}

/// Where a phase goes on.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub(crate) struct Next {
    /// Bytes of a file, or items of a list, that are done with.
    pub(crate) position: u64,
    /// Of a file; 0: its begin.
    pub(crate) line: u64,
    /// Where a vendor's list goes on, as its connector says; and of which kind.
    pub(crate) page: String,
    pub(crate) kind: String,
    /// How much may be changed, since it was counted.
    pub(crate) budget: Option<u64>,
    /// Records that the list itself refuses: they are read no second time.
    pub(crate) unlisted: u64,
    /// The last link that was looked at for what has vanished: its kind, its record.
    pub(crate) link: Option<(String, String)>,
    /// The last record that was looked at for what the vendor lacks: its kind, its id.
    pub(crate) mended: Option<(String, String)>,
}

/// What was found and done.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub(crate) struct Counts {
    pub(crate) seen: u64,
    pub(crate) created: u64,
    pub(crate) changed: u64,
    pub(crate) unchanged: u64,
    pub(crate) refused: u64,
    pub(crate) vanished: u64,
    pub(crate) sent: u64,
    /// Linked records when it was counted, and how many of them would change.
    pub(crate) linked: u64,
    pub(crate) planned: u64,
}

/// A record that wasn't taken in.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Refusal {
    /// Line of a file, or number in the list; counted from 1. 0: it was read, but a record can't hold it; or the list as a whole.
    pub(crate) line: u64,
    pub(crate) external_id: String,
    pub(crate) reason: String,
}

/// A record that differed.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Example {
    pub(crate) external_id: String,
    pub(crate) record_id: String,
    pub(crate) difference: String,
    pub(crate) fields: Vec<String>,
}
