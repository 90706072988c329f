//! The dispatcher's own task: its state, touched by nobody else, and the messages it takes, each handled without waiting.
//! What it does with them stands in its parts, by what is decided there.

mod attempts;
mod offered;
mod records;
mod waiting;

use std::{
    collections::{BTreeSet, HashMap},
    sync::Arc,
};

use jiff::{SignedDuration, Timestamp};
use tokio::{
    sync::{mpsc, oneshot},
    time::{Instant, sleep_until},
};

use self::offered::PAUSE;
use super::{
    Courier, Request, Signal, Slots,
    flight::{Flight, Pendings},
    lane::Lane,
};
use crate::{
    clock::Clock,
    id::OrganizationId,
    lane::{
        recorder::{AttemptRow, Group, Update},
        rows,
        turns::Turns,
    },
    secret::DataKeys,
    store::Store,
    tasks::Tasks,
};

/// Deliveries of offers that may wait for their commit; at the bound no more offers are taken, and the consumer's credits
/// run out.
const PENDING_MAX: usize = 2_048;
/// How long attempts may go on when the process stops.
const DRAIN: SignedDuration = SignedDuration::from_secs(10);
/// Why a delivery of a lane that is no more was cancelled.
const REMOVED: &str = "the destination was removed";

pub(super) struct Actor<C> {
    store: Store,
    keys: DataKeys,
    courier: Arc<C>,
    slots: Slots,
    clock: Clock,
    tasks: Tasks,
    signals: mpsc::Sender<Signal>,
    groups: mpsc::Sender<Group>,
    lanes: HashMap<i64, Lane>,
    numbers: HashMap<Arc<str>, i64>,
    flights: HashMap<i64, Flight>,
    pendings: Pendings,
    /// Who waits for which offer to be durable.
    promises: HashMap<u64, Vec<oneshot::Sender<()>>>,
    /// The offers that are not durable yet, by event.
    uncommitted: HashMap<[u8; 16], u64>,
    /// Who waits for all that has happened so far to be durable.
    barriers: Vec<oneshot::Sender<()>>,
    /// Those whose group is being committed.
    passing: Vec<oneshot::Sender<()>>,
    updates: Vec<Update>,
    attempts: Vec<AttemptRow>,
    releases: Vec<(i64, String)>,
    /// Lanes that are ordered no more.
    unordered: Vec<i64>,
    changed_lanes: BTreeSet<i64>,
    turns: Turns,
    /// When lanes are to be looked at again: the alarms of those that have one.
    timers: BTreeSet<(Timestamp, i64)>,
    /// Fresh deliveries that wait for a slot in memory, and the lanes where there are too many.
    queued: usize,
    crowded: BTreeSet<i64>,
    crowded_since: Option<Instant>,
    running: usize,
    running_of: HashMap<OrganizationId, usize>,
    loads: usize,
    /// Slots kept for what is being loaded, so that fresh deliveries don't take them.
    reserved: usize,
    last_id: i64,
    recording: bool,
    stalled: bool,
    stopping: bool,
}

impl<C: Courier> Actor<C> {
    #[expect(clippy::too_many_arguments, reason = "called once, by Dispatcher::start")]
    pub(super) fn new(
        store: Store,
        keys: DataKeys,
        courier: Arc<C>,
        slots: Slots,
        clock: Clock,
        tasks: Tasks,
        signals: mpsc::Sender<Signal>,
        groups: mpsc::Sender<Group>,
        last_id: i64,
    ) -> Self {
        Self {
            store,
            keys,
            courier,
            slots,
            clock,
            tasks,
            signals,
            groups,
            lanes: HashMap::new(),
            numbers: HashMap::new(),
            flights: HashMap::new(),
            pendings: Pendings::default(),
            promises: HashMap::new(),
            uncommitted: HashMap::new(),
            barriers: Vec::new(),
            passing: Vec::new(),
            updates: Vec::new(),
            attempts: Vec::new(),
            releases: Vec::new(),
            unordered: Vec::new(),
            changed_lanes: BTreeSet::new(),
            turns: Turns::default(),
            timers: BTreeSet::new(),
            queued: 0,
            crowded: BTreeSet::new(),
            crowded_since: None,
            running: 0,
            running_of: HashMap::new(),
            loads: 0,
            reserved: 0,
            last_id,
            recording: false,
            stalled: false,
            stopping: false,
        }
    }

    pub(super) async fn run(mut self, mut requests: mpsc::Receiver<Request>, mut signals: mpsc::Receiver<Signal>) {
        let stopping = self.tasks.stopping();
        let clock = self.clock.clone();
        while !stopping.is_cancelled() {
            let pause_ends = self.crowded_since.map(|since| since + PAUSE).filter(|ends| *ends > Instant::now());
            let taking = !self.stalled && self.pendings.rows() < PENDING_MAX && pause_ends.is_none();
            let (wake, due) = (self.next_wake(), if self.recording { None } else { self.pendings.due() });
            let due = [due, pause_ends].into_iter().flatten().min();
            tokio::select! {
                biased;
                () = stopping.cancelled() => {}
                Some(signal) = signals.recv() => self.hear(signal),
                Some(request) = requests.recv(), if taking => self.answer(request),
                () = clock.sleep_until(wake.unwrap_or(Timestamp::MAX)), if wake.is_some() => {}
                () = sleep_until(due.unwrap_or_else(Instant::now)), if due.is_some() => {}
            }
            self.ring();
            self.serve();
            self.flush();
        }
        drop(requests);
        self.drain(&mut signals).await;
    }

    /// Lets what is under way end, records all of it, and notes whether nothing was left open.
    async fn drain(&mut self, signals: &mut mpsc::Receiver<Signal>) {
        self.stopping = true;
        let clock = self.clock.clone();
        let deadline = clock.now() + DRAIN;
        self.flush();
        while self.running > 0 || self.recording {
            tokio::select! {
                Some(signal) = signals.recv() => self.hear(signal),
                () = clock.sleep_until(deadline) => break,
            }
            self.flush();
        }
        if self.flights.is_empty() {
            if let Err(error) = rows::stopped_cleanly(&self.store).await {
                tracing::warn!(%error, "could not note the clean stop; limited lanes will hold back for a minute");
            }
        } else {
            tracing::warn!(
                deliveries = self.flights.len(),
                "stopped with attempts under way; they are tried again at the next start"
            );
        }
    }

    fn answer(&mut self, request: Request) {
        let now = self.clock.now();
        match request {
            Request::Open { lane: number, id, organization, settings, remembered } => {
                self.numbers.insert(id.clone(), number);
                let lane = self.lanes.get(&number);
                let holds = remembered.most_urgent.is_some();
                let may_hold_blocked = lane.map_or(holds, |lane| lane.settings.ordered);
                if may_hold_blocked && !settings.ordered {
                    self.unordered.push(number);
                }
                match self.lanes.get_mut(&number) {
                    Some(lane) => lane.change(settings, remembered.most_urgent),
                    None => {
                        let lane = Lane::new(number, id, organization, settings, self.slots, remembered);
                        self.lanes.insert(number, lane);
                    }
                }
                self.consider(number, now);
            }
            Request::Record { done } => {
                self.pendings.hurry();
                self.barriers.push(done);
            }
            Request::Drop { lane, done } => {
                if let Some(lane) = self.lanes.remove(&lane) {
                    self.numbers.remove(&lane.id);
                    if let Some((at, _)) = lane.alarm {
                        self.timers.remove(&(at, lane.number));
                    }
                }
                self.barriers.push(done);
            }
            Request::Wake { lane } => {
                self.lanes.entry(lane).and_modify(|lane| lane.hold(1));
                self.consider(lane, now);
            }
            Request::Offer { offers, redelivered, done } => {
                match offers.first().and_then(|offer| self.uncommitted.get(&offer.event)) {
                    // Its rows are on their way into the store.
                    Some(number) if redelivered => self.promises.entry(*number).or_default().push(done),
                    _ => self.take(offers, done, now),
                }
            }
            Request::Join { event, done, answer } => {
                let offer = self.uncommitted.get(&event).copied();
                if let Some(number) = offer {
                    self.promises.entry(number).or_default().push(done);
                }
                // The asker may have gone away; then nobody needs the answer.
                let _ = answer.send(offer.is_some());
            }
            Request::Breaker { lane_id, answer } => {
                let lane = self.numbers.get(&lane_id).and_then(|number| self.lanes.get_mut(number));
                // The asker may have gone away; then nobody needs the answer.
                let _ = answer.send(lane.map(|lane| lane.breaker.state(now)));
            }
            #[cfg(test)]
            Request::Look { answer } => {
                assert!(self.timers.len() <= self.lanes.len(), "a lane has one alarm");
                // Turns that are left had no slot.
                let idle = !self.recording
                    && self.loads == 0
                    && self.updates.is_empty()
                    && self.releases.is_empty()
                    && self.unordered.is_empty()
                    && self.barriers.is_empty()
                    && self.changed_lanes.is_empty()
                    && self.pendings.rows() == 0
                    && self.next_wake().is_none_or(|at| at > now);
                let _ = answer.send((idle, self.running));
            }
        }
    }

    fn hear(&mut self, signal: Signal) {
        let now = self.clock.now();
        match signal {
            Signal::Ended { delivery, started_at, duration, attempted } => {
                self.ended(delivery, started_at, duration, attempted, now)
            }
            Signal::Loaded { lane, reserved, due } => {
                self.loads = self.loads.saturating_sub(1);
                self.reserved = self.reserved.saturating_sub(reserved);
                self.loaded(lane, due, now);
            }
            Signal::Committed(group, found) => self.committed(group, found, now),
            Signal::Stalled => self.stalled = true,
        }
    }
}

/// Text that every store takes: PostgreSQL refuses NUL.
fn plain(text: String) -> String {
    if text.contains('\0') { text.replace('\0', "\u{fffd}") } else { text }
}
