//! The end of the log in memory: one contiguous range of sequences, bounded in bytes, so that whoever is caught up
//! doesn't ask the store. A reader takes from it only if the event it needs next lies inside.

use std::{
    collections::VecDeque,
    sync::{Arc, PoisonError, RwLock},
};

use super::Entry;

/// Bytes that the tail holds.
const BYTES_MAX: usize = 4 << 20;

#[derive(Debug)]
pub(super) struct Tail(RwLock<Range>);

#[derive(Debug)]
struct Range {
    entries: VecDeque<Arc<Entry>>,
    /// Sequence of the first entry, or of the next to come where there is none.
    first: u64,
    bytes: usize,
}

impl Tail {
    /// Empty, to be continued after `head`.
    pub(super) fn after(head: u64) -> Self {
        Self(RwLock::new(Range { entries: VecDeque::new(), first: head + 1, bytes: 0 }))
    }

    /// Adds committed entries. Any that don't continue the range start it anew: it never has a gap.
    pub(super) fn extend(&self, entries: impl IntoIterator<Item = Arc<Entry>>) {
        let mut range = self.0.write().unwrap_or_else(PoisonError::into_inner);
        for entry in entries {
            if entry.sequence != range.first + range.entries.len() as u64 {
                range.clear(entry.sequence);
            }
            range.bytes += entry.bytes;
            range.entries.push_back(entry);
        }
        while range.bytes > BYTES_MAX {
            let Some(oldest) = range.entries.pop_front() else { break };
            range.bytes -= oldest.bytes;
            range.first += 1;
        }
    }

    /// Forgets everything: what comes next is read from the store.
    pub(super) fn reset(&self, head: u64) {
        self.0.write().unwrap_or_else(PoisonError::into_inner).clear(head + 1);
    }

    /// Up to `limit` entries after `since` and up to `head` that are `wanted`, and how far that reaches, if the next one is
    /// here; `None` sends the reader to the store.
    pub(super) fn find(
        &self,
        since: u64,
        head: u64,
        limit: usize,
        wanted: impl Fn(&Entry) -> bool,
    ) -> Option<(Vec<Arc<Entry>>, u64)> {
        let range = self.0.read().unwrap_or_else(PoisonError::into_inner);
        let skip = usize::try_from((since + 1).checked_sub(range.first)?).ok()?;
        range.entries.get(skip)?;
        let within = range.entries.iter().skip(skip).take_while(|entry| entry.sequence <= head);
        let found: Vec<_> = within.filter(|entry| wanted(entry)).take(limit).cloned().collect();
        let until = match found.last() {
            Some(last) if found.len() == limit => last.sequence,
            _ => head.min(range.first + range.entries.len() as u64 - 1),
        };
        Some((found, until))
    }

    /// Up to `limit` entries after `since`, if the next one is here; `None` sends the reader to the store.
    pub(super) fn read(&self, since: u64, limit: usize) -> Option<Vec<Arc<Entry>>> {
        let range = self.0.read().unwrap_or_else(PoisonError::into_inner);
        let skip = usize::try_from((since + 1).checked_sub(range.first)?).ok()?;
        (skip <= range.entries.len()).then(|| range.entries.iter().skip(skip).take(limit).cloned().collect())
    }
}

impl Range {
    fn clear(&mut self, first: u64) {
        self.entries.clear();
        (self.first, self.bytes) = (first, 0);
    }
}

#[cfg(test)]
mod tests {
    use chassis::id::OrganizationId;
    use proptest::prelude::*;

    use super::*;

    fn entry(sequence: u64, bytes: usize) -> Arc<Entry> {
        Arc::new(Entry {
            sequence,
            organization: OrganizationId::parse("o").expect("an id"),
            priority: 3,
            type_: "a.b".into(),
            ordering_key: "k".into(),
            logged: Box::default(),
            bytes,
        })
    }

    proptest! {
        /// Whatever is appended, forgotten or skipped: what it gives continues `since` without a gap.
        #[test]
        fn a_reader_never_meets_a_gap(steps in prop::collection::vec((0u8..10, 1usize..(4 << 20)), 1..60), since in 0u64..80) {
            let tail = Tail::after(0);
            let mut head = 0;
            for (step, bytes) in steps {
                match step {
                    0 => tail.reset(head),
                    1 => { head += 2; tail.extend([entry(head, bytes)]); }
                    _ => { head += 1; tail.extend([entry(head, bytes)]); }
                }
            }
            if let Some(read) = tail.read(since, 10) {
                let expected: Vec<u64> = (since + 1..).take(read.len()).collect();
                prop_assert_eq!(read.iter().map(|entry| entry.sequence).collect::<Vec<_>>(), expected);
                prop_assert!(!read.is_empty() || since >= head);
            }
            if let Some((found, until)) = tail.find(since, head, 3, |entry| entry.sequence % 2 == 0) {
                let expected: Vec<u64> = (since + 1..=until).filter(|sequence| sequence % 2 == 0).collect();
                prop_assert_eq!(found.iter().map(|entry| entry.sequence).collect::<Vec<_>>(), expected);
                prop_assert!(since < until && until <= head && (found.len() == 3 || until == head));
            }
        }
    }
}
