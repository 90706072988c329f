//! What is in the dispatcher's hands: deliveries in memory, and offers whose rows are not committed yet.

use std::{collections::VecDeque, sync::Arc};

use jiff::Timestamp;

use crate::lane::{
    delivery::Delivery,
    recorder::{AttemptRow, End, Insert},
};

/// A delivery in memory, from the decision to try it until its end is durable.
#[derive(Debug)]
pub(super) struct Flight {
    pub(super) delivery: Arc<Delivery>,
    pub(super) phase: Phase,
    /// Where its row waits to be committed, while it does: the offer, and the row's place in it.
    pub(super) offer: Option<(u64, usize)>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Phase {
    /// Its `sending` row is being committed; the attempt begins then.
    Claiming,
    /// The attempt is under way.
    Running,
    /// The attempt has ended; its record is being committed.
    Settling,
}

/// One event's deliveries, not committed yet.
#[derive(Debug)]
pub(super) struct Pending {
    pub(super) event: [u8; 16],
    pub(super) inserts: Vec<Insert>,
    pub(super) attempts: Vec<AttemptRow>,
    /// Attempts under way whose end is worth waiting for, so that all is written at once.
    pub(super) running: usize,
    /// When it is committed as it is.
    pub(super) deadline: Timestamp,
}

impl Pending {
    /// Writes an attempt's end into the row that is still to be committed.
    pub(super) fn settle(&mut self, place: usize, end: End, attempt: AttemptRow) {
        if let Some(insert) = self.inserts.get_mut(place) {
            insert.end = end;
        }
        self.attempts.push(attempt);
        self.running = self.running.saturating_sub(1);
    }
}

/// Pending offers by number, oldest first, with those that are ready to be committed in front.
#[derive(Debug, Default)]
pub(super) struct Pendings {
    offers: std::collections::HashMap<u64, Pending>,
    ready: VecDeque<u64>,
    by_age: VecDeque<u64>,
    next: u64,
}

impl Pendings {
    pub(super) fn next_number(&mut self) -> u64 {
        self.next += 1;
        self.next
    }

    pub(super) fn add(&mut self, number: u64, pending: Pending) {
        match pending.running {
            0 => self.ready.push_back(number),
            _ => self.by_age.push_back(number),
        }
        self.offers.insert(number, pending);
    }

    /// Makes everything ready as it is, in its order: what comes next must not be durable before it.
    pub(super) fn hurry(&mut self) {
        self.ready.append(&mut self.by_age);
    }

    /// Writes an attempt's end into its offer, which is ready once none of its attempts runs.
    pub(super) fn settle(&mut self, number: u64, place: usize, end: End, attempt: AttemptRow) {
        if let Some(pending) = self.offers.get_mut(&number) {
            pending.settle(place, end, attempt);
            if pending.running == 0 {
                self.ready.push_back(number);
            }
        }
    }

    /// The next one to commit: ready, or waited for long enough.
    pub(super) fn pop(&mut self, now: Timestamp) -> Option<(u64, Pending)> {
        while let Some(number) = self.ready.pop_front() {
            if let Some(pending) = self.offers.remove(&number) {
                return Some((number, pending));
            }
        }
        (self.deadline()? <= now)
            .then(|| self.by_age.pop_front())
            .flatten()
            .and_then(|number| Some((number, self.offers.remove(&number)?)))
    }

    /// When the oldest that still waits for its attempts is committed as it is.
    pub(super) fn deadline(&mut self) -> Option<Timestamp> {
        while let Some(number) = self.by_age.front() {
            if let Some(pending) = self.offers.get(number) {
                return Some(pending.deadline);
            }
            self.by_age.pop_front();
        }
        None
    }

    pub(super) fn has_ready(&self) -> bool {
        !self.ready.is_empty()
    }

    pub(super) fn len(&self) -> usize {
        self.offers.len()
    }
}
