//! The order of a source whose events must not overtake each other, also where one of them can't be stored now.

use std::sync::{
    Arc,
    atomic::{AtomicBool, Ordering},
};

/// Events that are in the log in their source's order or not at all: once one isn't taken, no later one is. Cheap to clone.
#[derive(Clone, Debug, Default)]
pub(crate) struct Order(Arc<AtomicBool>);

impl Order {
    /// One wasn't taken: from here on none is.
    pub(crate) fn break_off(&self) {
        self.0.store(true, Ordering::Release);
    }

    pub(super) fn is_broken(&self) -> bool {
        self.0.load(Ordering::Acquire)
    }
}
