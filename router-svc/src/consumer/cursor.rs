//! Where groups stand: cursors that moved and are to be stored with the log's next commit.

use std::{
    collections::HashMap,
    sync::{Mutex, PoisonError},
};

/// A cursor and where it stands: (group, priority, sequence).
pub(crate) type Moved = (i64, i64, u64);

/// Moved cursors: (group, priority) to the sequence up to which all is acknowledged.
#[derive(Debug, Default)]
pub(crate) struct Dirty(Mutex<HashMap<(i64, i64), u64>>);

impl Dirty {
    /// Notes that a group's cursor stands at `sequence`.
    pub(crate) fn note(&self, group: i64, priority: i64, sequence: u64) {
        let mut moved = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let cursor = moved.entry((group, priority)).or_default();
        *cursor = sequence.max(*cursor);
    }

    /// All that moved.
    pub(crate) fn take(&self) -> Vec<Moved> {
        let mut moved = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        moved.drain().map(|((group, priority), sequence)| (group, priority, sequence)).collect()
    }

    /// Notes them again: the commit that was to store them failed.
    pub(crate) fn put_back(&self, cursors: Vec<Moved>) {
        for (group, priority, sequence) in cursors {
            self.note(group, priority, sequence);
        }
    }
}
