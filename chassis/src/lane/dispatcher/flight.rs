//! What is in the dispatcher's hands: deliveries in memory, and offers whose rows are not committed yet.

use std::{
    collections::{HashMap, VecDeque},
    sync::Arc,
    time::Duration,
};

use tokio::time::Instant;

use crate::lane::{
    delivery::{Delivery, State},
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
    /// It is fresh and waits for a slot, which is about to come.
    Queued,
    /// Its `sending` row is being committed; the attempt begins then.
    Claiming,
    /// The attempt is under way.
    Running,
    /// The attempt has ended; its record is being committed.
    Settling,
}

/// How long a row waits for others, so that they are committed together: it holds up no delivery, just the
/// acknowledgement of its event. A crash within it repeats the attempt.
const GATHER: Duration = Duration::from_millis(if cfg!(test) { 2 } else { 20 });
/// So many rows wait no longer.
const GATHER_MAX: usize = 128;
/// How long a row waits for its first attempt to end, so that both are written at once.
const LINGER: Duration = Duration::from_millis(10);
/// As long where a delivery waits for a slot first: then it is written as waiting.
const HOLD: Duration = if cfg!(test) { LINGER } else { Duration::from_millis(500) };

/// One event's deliveries, not committed yet.
#[derive(Debug)]
pub(super) struct Pending {
    pub(super) event: [u8; 16],
    pub(super) inserts: Vec<Insert>,
    pub(super) attempts: Vec<AttemptRow>,
    /// Attempts under way, or about to be, whose end is worth waiting for, so that all is written at once.
    pub(super) open: usize,
    /// Something waits for its commit.
    pub(super) urgent: bool,
    offered_at: Instant,
}

impl Pending {
    pub(super) fn new(event: [u8; 16], offers: usize) -> Self {
        let inserts = Vec::with_capacity(offers);
        Self { event, inserts, attempts: Vec::new(), open: 0, urgent: false, offered_at: Instant::now() }
    }

    fn has_queued(&self) -> bool {
        self.inserts.iter().any(Insert::is_queued)
    }
}

/// Pending offers by number, oldest first, with those that are ready to be committed in front.
#[derive(Debug, Default)]
pub(super) struct Pendings {
    offers: HashMap<u64, Pending>,
    /// What `rows` says.
    rows: usize,
    ready: VecDeque<u64>,
    /// When those that are ready are committed.
    ready_at: Option<Instant>,
    /// Those that wait for attempts to end, and those that wait for slots first.
    lingering: VecDeque<u64>,
    held: VecDeque<u64>,
    next: u64,
}

impl Pendings {
    pub(super) fn next_number(&mut self) -> u64 {
        self.next += 1;
        self.next
    }

    pub(super) fn add(&mut self, number: u64, pending: Pending) {
        let (open, urgent) = (pending.open, pending.urgent);
        match pending.has_queued() {
            true => self.held.push_back(number),
            false => self.lingering.push_back(number),
        }
        self.rows += pending.inserts.len().max(1);
        self.offers.insert(number, pending);
        if urgent {
            self.hurry();
        } else if open == 0 {
            // Nothing more will be known of it soon.
            self.make_ready(number);
            self.ready_at = Some(Instant::now());
        }
    }

    /// The time of the commit is said once, or earlier: said later each time, it would never come.
    fn make_ready(&mut self, number: u64) {
        self.ready.push_back(number);
        let wait = if self.ready.len() < GATHER_MAX { GATHER } else { Duration::ZERO };
        let at = Instant::now() + wait;
        self.ready_at = Some(self.ready_at.map_or(at, |ready_at| ready_at.min(at)));
    }

    /// Makes everything ready as it is, in its order: what comes next must not be durable before it.
    pub(super) fn hurry(&mut self) {
        let mut waiting: Vec<u64> = self.lingering.drain(..).chain(self.held.drain(..)).collect();
        waiting.sort_unstable();
        self.ready.extend(waiting);
        self.ready_at = Some(Instant::now());
    }

    /// An attempt of a delivery that waited for its slot begins.
    pub(super) fn begin(&mut self, (number, place): (u64, usize)) {
        if let Some(insert) = self.offers.get_mut(&number).and_then(|pending| pending.inserts.get_mut(place)) {
            insert.end.state = State::Sending;
        }
    }

    /// Writes an attempt's end into its offer, which is ready once none of its attempts runs.
    pub(super) fn settle(&mut self, (number, place): (u64, usize), end: End, attempt: AttemptRow) {
        let Some(pending) = self.offers.get_mut(&number) else { return };
        if let Some(insert) = pending.inserts.get_mut(place) {
            insert.end = end;
        }
        pending.attempts.push(attempt);
        pending.open = pending.open.saturating_sub(1);
        if pending.open == 0 {
            self.make_ready(number);
        }
    }

    /// The next one to commit: ready, or waited for long enough.
    pub(super) fn pop(&mut self, now: Instant) -> Option<(u64, Pending)> {
        loop {
            let number = match self.ready.pop_front() {
                Some(number) => number,
                None => self.overdue(now)?,
            };
            if let Some(pending) = self.offers.remove(&number) {
                self.rows -= pending.inserts.len().max(1);
                return Some((number, pending));
            }
        }
    }

    /// When there is something to commit.
    pub(super) fn due(&mut self) -> Option<Instant> {
        if self.ready.is_empty() {
            self.ready_at = None;
        }
        let Self { offers, lingering, held, .. } = self;
        [self.ready_at, oldest(offers, lingering, LINGER), oldest(offers, held, HOLD)].into_iter().flatten().min()
    }

    /// One that has waited for long enough.
    fn overdue(&mut self, now: Instant) -> Option<u64> {
        let Self { offers, lingering, held, .. } = self;
        for (numbers, most) in [(lingering, LINGER), (held, HOLD)] {
            if oldest(offers, numbers, most).is_some_and(|at| at <= now) {
                return numbers.pop_front();
            }
        }
        None
    }

    /// Deliveries that wait for their commit; an offer without any counts as one.
    pub(super) fn rows(&self) -> usize {
        self.rows
    }
}

/// When the first of these has waited for `most`.
fn oldest(offers: &HashMap<u64, Pending>, numbers: &mut VecDeque<u64>, most: Duration) -> Option<Instant> {
    while let Some(number) = numbers.front() {
        if let Some(pending) = offers.get(number) {
            return Some(pending.offered_at + most);
        }
        numbers.pop_front();
    }
    None
}
