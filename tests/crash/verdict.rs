//! What one kind of fault came to, on one store: a line of a report.

use serde::Serialize;

use super::{Outcome, World, name};
use crate::harness::Engine;

/// Whether every promise held, and the numbers.
#[derive(Debug, Serialize)]
pub(crate) struct Verdict {
    pub(crate) fault: String,
    pub(crate) store: &'static str,
    pub(crate) ok: bool,
    /// How often it was brought about.
    pub(crate) tried: u32,
    /// The longest time from a fault's end until the next delivery.
    pub(crate) recovery_ms: u64,
    #[serde(flatten)]
    pub(crate) outcome: Outcome,
    /// Promises of this fault alone that were broken.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub(crate) broken: Vec<String>,
    /// What was seen, for people.
    #[serde(skip_serializing_if = "String::is_empty")]
    pub(crate) note: String,
}

impl Verdict {
    /// Nothing was tried yet.
    pub(crate) fn on(engine: &Engine, fault: &str) -> Self {
        Self {
            fault: fault.to_owned(),
            store: name(engine),
            ok: false,
            tried: 0,
            recovery_ms: 0,
            outcome: Outcome::default(),
            broken: Vec::new(),
            note: String::new(),
        }
    }

    /// One more fault has passed, and this is how long it took until something was delivered.
    pub(crate) fn recovered(&mut self, ms: u64) {
        self.tried += 1;
        self.recovery_ms = self.recovery_ms.max(ms);
    }

    /// Something that was promised is not so.
    pub(crate) fn broke(&mut self, what: impl Into<String>) {
        self.broken.push(what.into());
    }

    /// Lets everything arrive and draws the conclusion.
    pub(crate) async fn settle(mut self, mut world: World) -> Self {
        self.outcome = world.settle().await;
        self.ok = self.outcome.is_good() && self.broken.is_empty();
        if !self.ok {
            eprintln!("{}:\n{}", self.fault, world.system.log_end());
        }
        self
    }
}
