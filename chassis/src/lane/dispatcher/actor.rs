//! The dispatcher's own task. Its state is touched by nobody else, and each message is handled without waiting.

use std::{
    any::Any,
    collections::{BTreeSet, HashMap},
    panic::AssertUnwindSafe,
    sync::Arc,
    time::Duration,
};

use bytes::Bytes;
use futures_util::FutureExt as _;
use jiff::{SignedDuration, Timestamp};
use tokio::{
    sync::{mpsc, oneshot},
    time::{Instant, sleep_until},
};

use super::{
    Courier, Offer, Request, Signal, Slots,
    flight::{Flight, Pending, Pendings, Phase},
    lane::{Lane, Ready},
};
use crate::{
    clock::Clock,
    error::Result,
    id::OrganizationId,
    lane::{
        delivery::{Attempted, Blame, CRITICAL, Delivery, Outcome, State},
        recorder::{AttemptRow, End, Found, Group, Insert, Update},
        rows::{self, Due},
        turns::Turns,
    },
    secret::DataKeys,
    store::Store,
    tasks::{Tasks, panic_text},
};

/// Deliveries of offers that may wait for their commit; at the bound no more offers are taken, and the consumer's credits
/// run out.
const PENDING_MAX: usize = 2_048;
/// Fresh deliveries that wait in memory for a slot of their lane, and altogether. Beyond these no offers are taken, for so
/// long at most: what isn't taken yet is safe in the router's log. After that further ones wait in the store. An event that
/// was taken is queued for all of its lanes, as far as a queue's worth more: whatever waits in the store sends those that
/// follow there as well.
const QUEUE_MAX: usize = 64;
const QUEUES_MAX: usize = 512;
const PAUSE: Duration = Duration::from_millis(100);
/// Rows in one commit.
const GROUP_ROWS_MAX: usize = 1_000;
/// Looks into the store at once.
const LOADS_MAX: usize = 4;
/// How long attempts may go on when the process stops.
const DRAIN: SignedDuration = SignedDuration::from_secs(10);
/// When a look into the store failed, the next comes after this.
const RELOAD: SignedDuration = SignedDuration::from_secs(1);

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
    releases: Vec<(i64, Option<String>)>,
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

    fn next_wake(&self) -> Option<Timestamp> {
        self.timers.first().map(|(at, _)| *at)
    }

    /// Whether too many fresh deliveries wait in memory; notes since when.
    fn note_crowd(&mut self) {
        let crowded = self.queued > QUEUES_MAX || !self.crowded.is_empty();
        self.crowded_since = crowded.then(|| self.crowded_since.unwrap_or_else(Instant::now));
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
                    self.releases.push((number, None));
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

    fn ring(&mut self) {
        let now = self.clock.now();
        while let Some(timer) = self.timers.first().copied()
            && timer.0 <= now
        {
            self.timers.remove(&timer);
            let number = timer.1;
            if let Some(lane) = self.lanes.get_mut(&number)
                && let Some((_, priority)) = lane.alarm.take()
            {
                lane.hold(priority);
                self.consider(number, now);
            }
        }
    }

    /// Looks at a lane again at `at`, when something of this priority is due, or before.
    fn arm(&mut self, number: i64, at: Timestamp, priority: i64) {
        let Some(lane) = self.lanes.get_mut(&number) else { return };
        if lane.alarm.is_none_or(|(alarm, _)| at < alarm) {
            if let Some((later, _)) = lane.alarm.replace((at, priority)) {
                self.timers.remove(&(later, number));
            }
            self.timers.insert((at, number));
        }
    }

    /// Takes one event's deliveries: tries those that may go at once, and lets the others wait.
    fn take(&mut self, offers: Vec<Offer>, done: oneshot::Sender<()>, now: Timestamp) {
        let Some(event) = offers.first().map(|offer| offer.event) else { return };
        let number = self.pendings.next_number();
        self.promises.insert(number, vec![done]);
        self.uncommitted.entry(event).or_insert(number);
        let mut pending = Pending::new(event, offers.len());
        let most = if self.queued <= QUEUES_MAX { QUEUES_MAX + QUEUE_MAX } else { 0 };
        for offer in offers {
            // A destination that was removed meanwhile gets nothing.
            let Some(lane) = self.numbers.get(&offer.lane_id).copied() else { continue };
            self.last_id += 1;
            let delivery = self.delivery(lane, self.last_id, offer, now);
            let insert = self.place(delivery, (number, pending.inserts.len()), most, now);
            let repeatable = self.lanes[&lane].settings.repeatable;
            pending.open += usize::from(repeatable && insert.tried);
            pending.urgent |= insert.may_be_behind || (insert.tried && !repeatable);
            pending.inserts.push(insert);
        }
        self.pendings.add(number, pending);
    }

    fn delivery(&self, lane: i64, id: i64, offer: Offer, now: Timestamp) -> Delivery {
        let organization = self.lanes[&lane].organization.clone();
        Delivery {
            id,
            lane,
            lane_id: offer.lane_id,
            organization,
            event: offer.event,
            event_id: plain(offer.event_id),
            event_type: plain(offer.event_type),
            ordering_key: plain(offer.ordering_key),
            priority: offer.priority.clamp(1, 4),
            origin: offer.origin,
            attempts: 0,
            reopened_after: 0,
            created_at: now.as_microsecond(),
            content: offer.content,
        }
    }

    /// Decides whether a fresh delivery is tried at once, or queued while fewer than `most` are, and gives its row.
    fn place(&mut self, delivery: Delivery, offer: (u64, usize), most: usize, now: Timestamp) -> Insert {
        let has_slot = self.has_slot(&delivery.organization);
        let lane = self.lanes.get_mut(&delivery.lane).expect("the lane was found by its id");
        let key_is_busy = lane.key_is_busy(&delivery);
        let behind = lane.settings.ordered && (key_is_busy || lane.may_hold());
        let may_go = !self.stopping && !behind && !lane.has_before(delivery.priority) && lane.ready(now) == Ready::Now;
        let go = may_go && has_slot && lane.queue.is_empty() && lane.free(now) > 0;
        let has_room = self.queued < most && lane.queue.len() <= QUEUE_MAX;
        let repeatable = lane.settings.repeatable;
        let soon = may_go && !go && has_room && repeatable && !lane.settings.ordered && lane.flows(now);
        let state = match (go, key_is_busy) {
            (true, _) => State::Sending,
            (false, true) => State::Blocked,
            (false, false) => State::Waiting,
        };
        let end = End {
            state,
            attempts: 0,
            next_at: now.as_microsecond(),
            finished_at: None,
            status_code: None,
            reason: String::new(),
        };
        let delivery = Arc::new(delivery);
        if go {
            self.lift_off(delivery.clone(), repeatable.then_some(offer), now);
        } else if soon {
            self.queue(delivery.clone(), offer);
        } else {
            lane.wait(delivery.priority);
        }
        Insert { delivery, end, may_be_behind: behind, tried: go || soon }
    }

    /// Keeps a fresh delivery in memory until a slot of its lane is free.
    fn queue(&mut self, delivery: Arc<Delivery>, offer: (u64, usize)) {
        let lane = self.lanes.get_mut(&delivery.lane).expect("the lane was found by its id");
        lane.queue.insert((delivery.priority, delivery.id));
        if lane.queue.len() > QUEUE_MAX {
            self.crowded.insert(lane.number);
        }
        self.queued += 1;
        self.note_crowd();
        self.flights.insert(delivery.id, Flight { delivery, phase: Phase::Queued, offer: Some(offer) });
    }

    /// Takes a fresh delivery from its lane's queue: to try it, or to write it as waiting.
    fn unqueue(&mut self, delivery: &Delivery) -> Option<(u64, usize)> {
        let offer = self.flights.remove(&delivery.id).and_then(|flight| flight.offer);
        self.queued -= 1;
        if let Some(lane) = self.lanes.get_mut(&delivery.lane) {
            lane.queue.remove(&(delivery.priority, delivery.id));
        }
        if self.lanes.get(&delivery.lane).is_none_or(|lane| lane.queue.len() <= QUEUE_MAX) {
            self.crowded.remove(&delivery.lane);
        }
        self.note_crowd();
        offer
    }

    /// Tries what is queued in a lane, as far as there are slots.
    fn serve_queue(&mut self, number: i64, now: Timestamp) {
        while let Some(lane) = self.lanes.get_mut(&number)
            && let Some((_, id)) = lane.queue.first().copied()
            && lane.ready(now) == Ready::Now
            && lane.free(now) > 0
            && let Some(delivery) = self.flights.get(&id).map(|flight| flight.delivery.clone())
            && !self.stopping
            && self.has_slot(&delivery.organization)
        {
            let offer = self.unqueue(&delivery);
            if let Some(offer) = offer {
                self.pendings.begin(offer);
            }
            self.lift_off(delivery, offer, now);
        }
    }

    fn has_slot(&self, organization: &OrganizationId) -> bool {
        !self.stalled
            && self.running + self.reserved < self.slots.all
            && self.running_of.get(organization).is_none_or(|running| *running < self.slots.organization)
    }

    /// Takes slots for a delivery. Its attempt begins now, or, where a repeat can't be dropped, once its row is durable.
    fn lift_off(&mut self, delivery: Arc<Delivery>, offer: Option<(u64, usize)>, now: Timestamp) {
        let lane = self.lanes.get_mut(&delivery.lane).expect("only deliveries of open lanes are tried");
        lane.claim(&delivery);
        self.running += 1;
        *self.running_of.entry(delivery.organization.clone()).or_default() += 1;
        let repeatable = lane.settings.repeatable;
        let phase = if repeatable { Phase::Running } else { Phase::Claiming };
        self.flights.insert(delivery.id, Flight { delivery: delivery.clone(), phase, offer });
        if repeatable {
            self.attempt(delivery, now);
        }
    }

    fn attempt(&mut self, delivery: Arc<Delivery>, started_at: Timestamp) {
        let lane = self.lanes.get_mut(&delivery.lane);
        let repeatable = lane.as_ref().is_some_and(|lane| lane.settings.repeatable);
        lane.into_iter().for_each(|lane| lane.begin(&delivery, started_at));
        let (courier, signals) = (self.courier.clone(), self.signals.clone());
        self.tasks.spawn("lane.attempt", async move {
            let id = delivery.id;
            let clock = std::time::Instant::now();
            crate::fail::point("lane.attempt.begin");
            let attempted = AssertUnwindSafe(courier.attempt(delivery)).catch_unwind().await;
            let attempted = attempted.unwrap_or_else(|panic| panicked(id, &*panic, repeatable));
            crate::fail::point("lane.attempt.sent");
            // The dispatcher outlives its attempts save at the end of a drain, which records none of them.
            let _ =
                signals.send(Signal::Ended { delivery: id, started_at, duration: clock.elapsed(), attempted }).await;
        });
    }

    fn ended(&mut self, id: i64, started_at: Timestamp, duration: Duration, attempted: Attempted, now: Timestamp) {
        let Some(flight) = self.flights.get_mut(&id) else { return };
        let delivery = flight.delivery.clone();
        flight.phase = Phase::Settling;
        let offer = flight.offer.take();
        self.free_slots(&delivery);
        metrics::counter!("lane_attempts_total", "outcome" => attempted.class).increment(1);
        let row = AttemptRow {
            delivery: id,
            number: delivery.attempts.saturating_add(1),
            lane: delivery.lane,
            organization: delivery.organization.clone(),
            started_at: started_at.as_microsecond(),
            duration: i64::try_from(duration.as_micros()).unwrap_or(i64::MAX),
            status_code: attempted.status_code.map(i64::from),
            outcome: attempted.class,
            error: plain(attempted.error.clone()),
            response: attempted.response.clone(),
        };
        let end = self.settle(&delivery, &attempted, now);
        match offer {
            Some(place) => self.pendings.settle(place, end, row),
            None => {
                self.updates.push(Update { id, end });
                self.attempts.push(row);
            }
        }
        self.serve_queue(delivery.lane, now);
        self.consider(delivery.lane, now);
    }

    fn free_slots(&mut self, delivery: &Delivery) {
        self.running = self.running.saturating_sub(1);
        if let Some(running) = self.running_of.get_mut(&delivery.organization) {
            *running -= 1;
            if *running == 0 {
                self.running_of.remove(&delivery.organization);
            }
        }
        if let Some(lane) = self.lanes.get_mut(&delivery.lane) {
            lane.running = lane.running.saturating_sub(1);
        }
    }

    /// Draws the conclusions of an attempt for its delivery and its lane.
    fn settle(&mut self, delivery: &Delivery, attempted: &Attempted, now: Timestamp) -> End {
        let Some(lane) = self.lanes.get_mut(&delivery.lane) else {
            return removed(delivery, attempted, now);
        };
        let settled = lane.settle(delivery, attempted, now, jitter());
        if settled.lane_changed {
            self.changed_lanes.insert(delivery.lane);
        }
        if settled.end.state == State::Dead {
            metrics::counter!("lane_dead_total").increment(1);
        }
        if let Some(reason) = settled.closing {
            self.close(delivery.lane, reason);
        }
        settled.end
    }

    /// Turns what waits in a lane into dead letters and tells the service.
    fn close(&mut self, number: i64, reason: String) {
        let Some(lane) = self.lanes.get(&number) else { return };
        let (courier, store, id, now) =
            (self.courier.clone(), self.store.clone(), lane.id.clone(), self.clock.now_micros());
        let (done, durable) = oneshot::channel();
        self.barriers.push(done);
        self.tasks.spawn("lane.close", async move {
            // Without an answer the dispatcher is gone, and what it knew is durable or lost.
            let _ = durable.await;
            if let Err(error) = rows::end_all(&store, number, State::Dead, &reason, now).await {
                tracing::error!(%error, lane.id = %id, "could not end what waits in a closed lane; it is ended at the next closing");
            }
            courier.closed(&id, &reason).await;
        });
    }

    /// Queues a lane for a turn if something may be due in it, or sets the timer for when it may be tried.
    fn consider(&mut self, number: i64, now: Timestamp) {
        let Some(lane) = self.lanes.get_mut(&number) else { return };
        let Some(priority) = lane.backlog else { return };
        if lane.loading || self.stopping {
            return;
        }
        match lane.ready(now) {
            Ready::Now if lane.free(now) > 0 => self.turns.push(&lane.organization, number, priority == CRITICAL),
            // A running attempt of the lane will end and bring it here again.
            Ready::Now | Ready::Held => {}
            Ready::At(at) => self.arm(number, at, priority),
        }
    }

    /// Gives turns to lanes while there are slots: looks into the store for what they can send now.
    fn serve(&mut self) {
        let now = self.clock.now();
        while !self.stalled && !self.stopping && self.loads < LOADS_MAX && self.running + self.reserved < self.slots.all
        {
            let (running_of, most) = (&self.running_of, self.slots.organization);
            let Some(number) =
                self.turns.pop(|organization| running_of.get(organization).is_none_or(|running| *running < most))
            else {
                return;
            };
            let Some(lane) = self.lanes.get_mut(&number) else { continue };
            if lane.ready(now) == Ready::Now && lane.free(now) > 0 {
                self.load(number, now);
            } else {
                self.consider(number, now);
            }
        }
    }

    fn load(&mut self, number: i64, now: Timestamp) {
        let Some(lane) = self.lanes.get_mut(&number) else { return };
        let reserved = (lane.free(now) as usize).min(self.slots.all - self.running - self.reserved);
        (lane.loading, lane.touched, lane.passed_over) = (true, false, None);
        lane.settled_meanwhile.clear();
        self.loads += 1;
        self.reserved += reserved;
        // Deliveries that are in memory may still be waiting in the store.
        let (id, known) = (lane.id.clone(), lane.known.clone());
        let (store, keys, signals) = (self.store.clone(), self.keys.clone(), self.signals.clone());
        self.tasks.spawn("lane.load", async move {
            let due = rows::due(&store, &keys, (number, &id), &known, now.as_microsecond(), reserved).await;
            // As for attempts: only a drain that has ended hears nothing.
            let _ = signals.send(Signal::Loaded { lane: number, reserved, due }).await;
        });
    }

    fn loaded(&mut self, number: i64, due: Result<Due>, now: Timestamp) {
        let Some(lane) = self.lanes.get_mut(&number) else { return };
        lane.loading = false;
        let due = match due {
            Ok(due) => due,
            Err(error) => {
                tracing::warn!(%error, lane.id = %lane.id, "could not look into a lane; trying again in a second");
                let priority = lane.backlog.unwrap_or(1);
                return self.arm(number, now + RELOAD, priority);
            }
        };
        let settled = std::mem::take(&mut lane.settled_meanwhile);
        if let Some((at, priority)) = due.next {
            self.arm(number, crate::clock::from_micros(at), priority);
        }
        let mut left = due.more;
        for delivery in due.deliveries {
            let Some(lane) = self.lanes.get_mut(&number) else { return };
            crate::fail::point("lane.due.loaded");
            let priority = delivery.priority;
            if self.flights.contains_key(&delivery.id) || settled.contains(&delivery.id) {
                continue;
            }
            if lane.key_is_busy(&delivery) {
                lane.passed_over = [lane.passed_over, Some(priority)].into_iter().flatten().min();
            } else if !self.start_waiting(delivery, now) {
                left = [left, Some(priority)].into_iter().flatten().min();
            }
        }
        due.unreadable
            .into_iter()
            .filter(|delivery| !settled.contains(&delivery.id))
            .for_each(|delivery| self.give_up(delivery, now));
        let Some(lane) = self.lanes.get_mut(&number) else { return };
        lane.looked(left, due.next.is_some());
        self.consider(number, now);
    }

    /// Ends a delivery that can't be read, and never could be tried.
    fn give_up(&mut self, delivery: Delivery, now: Timestamp) {
        tracing::error!(delivery.id, lane.id = %delivery.lane_id, "what waits can't be read; it is a dead letter");
        let end = End {
            attempts: delivery.attempts,
            ..End::final_at(
                State::Dead,
                "its content was erased, or can't be read: was a master key or the store replaced?",
                now,
            )
        };
        self.updates.push(Update { id: delivery.id, end });
        self.releases.push((delivery.lane, Some(delivery.ordering_key)));
    }

    /// Tries a delivery that waited in the store, if it still may.
    fn start_waiting(&mut self, delivery: Delivery, now: Timestamp) -> bool {
        let has_slot = self.has_slot(&delivery.organization);
        let Some(lane) = self.lanes.get_mut(&delivery.lane) else { return false };
        if self.stopping || !has_slot || lane.ready(now) != Ready::Now || lane.free(now) == 0 {
            return false;
        }
        if !lane.settings.repeatable {
            let end = End {
                state: State::Sending,
                attempts: delivery.attempts,
                next_at: now.as_microsecond(),
                finished_at: None,
                status_code: None,
                reason: String::new(),
            };
            self.updates.push(Update { id: delivery.id, end });
        }
        self.lift_off(Arc::new(delivery), None, now);
        true
    }

    /// Hands to the recorder what is ready, if it is idle.
    fn flush(&mut self) {
        if self.recording {
            return;
        }
        let now = Instant::now() + if self.stopping { DRAIN.unsigned_abs() } else { Duration::ZERO };
        let nothing = self.updates.is_empty()
            && self.changed_lanes.is_empty()
            && self.releases.is_empty()
            && self.barriers.is_empty();
        if nothing && self.pendings.due().is_none_or(|at| at > now) {
            return;
        }
        self.passing = std::mem::take(&mut self.barriers);
        let mut group = Group {
            updates: std::mem::take(&mut self.updates),
            attempts: std::mem::take(&mut self.attempts),
            releases: std::mem::take(&mut self.releases),
            lanes: std::mem::take(&mut self.changed_lanes)
                .iter()
                .filter_map(|number| Some(self.lanes.get(number)?.row()))
                .collect(),
            ..Group::default()
        };
        for Update { id, end } in &group.updates {
            if let Some(flight) = self.flights.get(id) {
                group.releases.extend(self.release(&flight.delivery, end));
            }
        }
        while group.inserts.len() < GROUP_ROWS_MAX
            && let Some((number, pending)) = self.pendings.pop(now)
        {
            for mut insert in pending.inserts {
                if insert.is_queued() {
                    // No slot came in time.
                    self.unqueue(&insert.delivery);
                    self.lanes.entry(insert.delivery.lane).and_modify(|lane| lane.wait(insert.delivery.priority));
                    insert.tried = false;
                }
                if !insert.tried {
                    self.reconsider(&mut insert);
                } else if let Some(flight) = self.flights.get_mut(&insert.delivery.id) {
                    flight.offer = None;
                }
                group.releases.extend(self.release(&insert.delivery, &insert.end));
                group.inserts.push(insert);
            }
            group.attempts.extend(pending.attempts);
            group.offers.push((number, pending.event));
        }
        if group.is_empty() {
            return self.passed();
        }
        // The recorder is idle, so its channel has room; it is gone only when the runtime ends.
        self.recording = self.groups.try_send(group).is_ok();
    }

    /// Ends a row that came to wait in a lane that was removed or closed since.
    fn reconsider(&self, insert: &mut Insert) {
        let (state, reason) = match self.lanes.get(&insert.delivery.lane) {
            None => (State::Cancelled, REMOVED),
            Some(lane) if lane.closed => (State::Dead, "the destination was closed"),
            Some(_) => return,
        };
        insert.end = End::final_at(state, reason, self.clock.now());
    }

    /// What a delivery's end lets go, in an ordered lane.
    fn release(&self, delivery: &Delivery, end: &End) -> Option<(i64, Option<String>)> {
        let ordered = self.lanes.get(&delivery.lane).is_some_and(|lane| lane.settings.ordered);
        (ordered && end.state.is_final()).then(|| (delivery.lane, Some(delivery.ordering_key.clone())))
    }

    /// Tells those who waited for the group.
    fn passed(&mut self) {
        for done in self.passing.drain(..) {
            // Whoever waited may have gone away.
            let _ = done.send(());
        }
    }

    fn committed(&mut self, group: Group, found: Found, now: Timestamp) {
        (self.recording, self.stalled) = (false, false);
        self.passed();
        for (number, event) in &group.offers {
            if self.uncommitted.get(event) == Some(number) {
                self.uncommitted.remove(event);
            }
            for done in self.promises.remove(number).into_iter().flatten() {
                // Whoever offered may have gone away; the deliveries are durable all the same.
                let _ = done.send(());
            }
        }
        for id in found.repeated {
            self.forget_repeated(id, now);
        }
        for Update { id, end } in &group.updates {
            self.durable(*id, end, now);
        }
        for Insert { delivery, end, tried, .. } in &group.inserts {
            match tried {
                true => self.durable(delivery.id, end, now),
                // A look into the store may have found it already.
                false => self.written(delivery, end, now),
            }
        }
        for number in found.released {
            // The one released may have any priority: the look into the store tells.
            self.lanes.entry(number).and_modify(|lane| lane.hold(1));
            self.consider(number, now);
        }
    }

    /// The row of a delivery that came to wait is durable.
    fn written(&mut self, delivery: &Delivery, end: &End, now: Timestamp) {
        let Some(lane) = self.lanes.get_mut(&delivery.lane) else { return };
        lane.written(delivery.priority);
        match end.state {
            State::Waiting => self.waits(delivery.lane, delivery.priority, end.next_at, now),
            State::Blocked => {
                lane.keep();
                if !lane.key_is_busy(delivery) {
                    // Whom it was behind came to its end before this row was written.
                    self.releases.push((delivery.lane, Some(delivery.ordering_key.clone())));
                }
            }
            _ => {}
        }
    }

    /// The store has this event's delivery under another id: one that hasn't begun never does, and leaves its slot.
    fn forget_repeated(&mut self, id: i64, now: Timestamp) {
        if let Some(flight) = self.flights.get(&id)
            && flight.phase == Phase::Claiming
        {
            let delivery = flight.delivery.clone();
            self.free_slots(&delivery);
            self.forget(&delivery);
            self.consider(delivery.lane, now);
        }
    }

    fn forget(&mut self, delivery: &Delivery) {
        self.flights.remove(&delivery.id);
        if let Some(lane) = self.lanes.get_mut(&delivery.lane) {
            lane.forget(delivery);
        }
    }

    /// A row is durable: a claimed delivery begins its attempt, one that has settled leaves memory.
    fn durable(&mut self, id: i64, end: &End, now: Timestamp) {
        let Some(flight) = self.flights.get_mut(&id) else { return };
        let delivery = flight.delivery.clone();
        match (end.state, flight.phase) {
            (State::Sending, Phase::Claiming) if self.lanes.contains_key(&delivery.lane) => {
                if self.lanes.get_mut(&delivery.lane).is_some_and(|lane| lane.still_lets(now)) {
                    flight.phase = Phase::Running;
                    self.attempt(delivery, now);
                } else {
                    // The commit took long, and its destination failed meanwhile: it waits after all.
                    flight.phase = Phase::Settling;
                    self.free_slots(&delivery);
                    self.updates.push(Update { id, end: End { state: State::Waiting, ..end.clone() } });
                }
            }
            (State::Sending, Phase::Claiming) => {
                self.free_slots(&delivery);
                self.forget(&delivery);
                let end = End { attempts: delivery.attempts, ..End::final_at(State::Cancelled, REMOVED, now) };
                self.updates.push(Update { id, end });
            }
            (State::Sending, _) => {}
            (state, _) => {
                self.forget(&delivery);
                match state {
                    State::Waiting => self.waits(delivery.lane, delivery.priority, end.next_at, now),
                    _ => self.consider(delivery.lane, now),
                }
            }
        }
    }

    /// A delivery waits in the store, durably: its lane is looked at now, or when it is due.
    fn waits(&mut self, number: i64, priority: i64, next_at: i64, now: Timestamp) {
        let Some(lane) = self.lanes.get_mut(&number) else { return };
        let at = crate::clock::from_micros(next_at);
        if at > now {
            lane.keep();
            self.arm(number, at, priority);
        } else {
            lane.hold(priority);
        }
        self.consider(number, now);
    }
}

/// The end of an attempt whose lane was removed while it ran.
fn removed(delivery: &Delivery, attempted: &Attempted, now: Timestamp) -> End {
    let (state, reason) = match attempted.outcome {
        Outcome::Delivered => (State::Delivered, ""),
        _ => (State::Cancelled, REMOVED),
    };
    End {
        attempts: delivery.attempts.saturating_add(1),
        status_code: attempted.status_code.map(i64::from),
        ..End::final_at(state, reason, now)
    }
}

/// The end of an attempt that panicked: what it did until then, nobody knows.
fn panicked(id: i64, panic: &(dyn Any + Send), repeatable: bool) -> Attempted {
    tracing::error!(delivery.id = id, reason = panic_text(panic), "an attempt panicked");
    Attempted {
        outcome: if repeatable { Outcome::Retry { after: None, blame: Blame::Message } } else { Outcome::Unknown },
        status_code: None,
        class: "panic",
        error: "the attempt ended in a fault of ours".to_owned(),
        response: Bytes::new(),
    }
}

/// Text that every store takes: PostgreSQL refuses NUL.
fn plain(text: String) -> String {
    if text.contains('\0') { text.replace('\0', "\u{fffd}") } else { text }
}

/// A number in 0..=1 from the operating system; a half where it gives none.
fn jitter() -> f64 {
    getrandom::u32().map_or(0.5, |random| f64::from(random) / f64::from(u32::MAX))
}
