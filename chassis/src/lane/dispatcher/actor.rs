//! The dispatcher's own task. Its state is touched by nobody else, and each message is handled without waiting.

use std::{
    cmp::Reverse,
    collections::{BTreeSet, BinaryHeap, HashMap},
    sync::Arc,
    time::Duration,
};

use jiff::{SignedDuration, Timestamp};
use tokio::sync::{mpsc, oneshot};

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
        delivery::{Attempted, Delivery, State},
        recorder::{AttemptRow, End, Group, Insert, Update},
        rows::{self, Due},
        turns::Turns,
    },
    secret::DataKeys,
    store::Store,
    tasks::Tasks,
};

/// How long a row waits for its first attempt to end, so that both are written at once.
const LINGER: SignedDuration = SignedDuration::from_millis(10);
/// Offers that may wait for their commit; at the bound no more are taken, and the consumer's credits run out.
const PENDING_MAX: usize = 4_096;
/// Rows in one commit.
const GROUP_ROWS_MAX: usize = 1_000;
/// Looks into the store at once.
const LOADS_MAX: usize = 4;
/// How long attempts may go on when the process stops.
const DRAIN: SignedDuration = SignedDuration::from_secs(10);
/// When a look into the store failed, the next comes after this.
const RELOAD: SignedDuration = SignedDuration::from_secs(1);

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
    /// Offers in the group that is being committed.
    answering: HashMap<u64, oneshot::Sender<()>>,
    updates: Vec<Update>,
    attempts: Vec<AttemptRow>,
    releases: Vec<(i64, String)>,
    changed_lanes: BTreeSet<i64>,
    turns: Turns,
    /// When lanes are to be looked at again. An entry that isn't its lane's alarm any more is passed over.
    timers: BinaryHeap<Reverse<(Timestamp, i64)>>,
    running: usize,
    running_of: HashMap<OrganizationId, usize>,
    loads: usize,
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
            answering: HashMap::new(),
            updates: Vec::new(),
            attempts: Vec::new(),
            releases: Vec::new(),
            changed_lanes: BTreeSet::new(),
            turns: Turns::default(),
            timers: BinaryHeap::new(),
            running: 0,
            running_of: HashMap::new(),
            loads: 0,
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
            let taking = !self.stalled && self.pendings.len() < PENDING_MAX;
            let wake = self.next_wake();
            tokio::select! {
                biased;
                () = stopping.cancelled() => {}
                Some(signal) = signals.recv() => self.hear(signal),
                Some(request) = requests.recv(), if taking => self.answer(request),
                () = clock.sleep_until(wake.unwrap_or(Timestamp::MAX)), if wake.is_some() => self.ring(),
            }
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
                tracing::warn!(%error, "could not note the clean stop; limited lanes will wait a minute");
            }
        } else {
            tracing::warn!(deliveries = self.flights.len(), "stopped with attempts under way; they are tried again at the next start");
        }
    }

    fn next_wake(&mut self) -> Option<Timestamp> {
        let timer = self.timers.peek().map(|Reverse((at, _))| *at);
        let deadline = if self.recording { None } else { self.pendings.deadline() };
        [timer, deadline].into_iter().flatten().min()
    }

    fn answer(&mut self, request: Request) {
        let now = self.clock.now();
        match request {
            Request::Open { lane: number, id, organization, settings, remembered } => {
                self.numbers.insert(id.clone(), number);
                match self.lanes.get_mut(&number) {
                    Some(lane) => lane.change(settings),
                    None => {
                        let lane = Lane::new(number, id, organization, settings, self.slots, remembered, now);
                        self.lanes.insert(number, lane);
                    }
                }
                self.consider(number, now);
            }
            Request::Drop { lane } => {
                if let Some(lane) = self.lanes.remove(&lane) {
                    self.numbers.remove(&lane.id);
                }
            }
            Request::Wake { lane } => {
                self.lanes.entry(lane).and_modify(|lane| lane.hold(1));
                self.consider(lane, now);
            }
            Request::Offer { offers, done } => self.take(offers, done, now),
            Request::Breaker { lane_id, answer } => {
                let lane = self.numbers.get(&lane_id).and_then(|number| self.lanes.get_mut(number));
                // The asker may have gone away; then nobody needs the answer.
                let _ = answer.send(lane.map(|lane| lane.breaker.state(now)));
            }
        }
    }

    fn hear(&mut self, signal: Signal) {
        let now = self.clock.now();
        match signal {
            Signal::Ended { delivery, started_at, duration, attempted } => self.ended(delivery, started_at, duration, attempted, now),
            Signal::Loaded { lane, due } => self.loaded(lane, due, now),
            Signal::Committed(group) => self.committed(group, now),
            Signal::Stalled => self.stalled = true,
        }
    }

    fn ring(&mut self) {
        let now = self.clock.now();
        while let Some(Reverse((at, number))) = self.timers.peek().copied()
            && at <= now
        {
            self.timers.pop();
            if let Some(lane) = self.lanes.get_mut(&number)
                && let Some((_, priority)) = lane.alarm.take_if(|(alarm, _)| *alarm == at)
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
            lane.alarm = Some((at, priority));
            self.timers.push(Reverse((at, number)));
        }
    }

    /// Takes one event's deliveries: tries those that may go at once, and lets the others wait.
    fn take(&mut self, offers: Vec<Offer>, done: oneshot::Sender<()>, now: Timestamp) {
        let number = self.pendings.next_number();
        let mut pending = Pending { done, inserts: Vec::with_capacity(offers.len()), attempts: Vec::new(), running: 0, deadline: now + LINGER };
        for offer in offers {
            // A destination that was removed meanwhile gets nothing.
            let Some(lane) = self.numbers.get(&offer.lane_id).copied() else { continue };
            self.last_id += 1;
            let delivery = self.delivery(lane, self.last_id, offer, now);
            let insert = self.place(delivery, (number, pending.inserts.len()), now);
            pending.running += usize::from(C::REPEATABLE && insert.end.state == State::Sending);
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
            event_id: offer.event_id,
            event_type: offer.event_type,
            ordering_key: offer.ordering_key,
            priority: offer.priority,
            origin: offer.origin,
            attempts: 0,
            reopened_after: 0,
            created_at: now.as_microsecond(),
            content: offer.content,
        }
    }

    /// Decides whether a fresh delivery is tried at once, and gives its row.
    fn place(&mut self, delivery: Delivery, offer: (u64, usize), now: Timestamp) -> Insert {
        let has_slot = self.has_slot(&delivery.organization);
        let lane = self.lanes.get_mut(&delivery.lane).expect("the lane was found by its id");
        let first_of_lane = lane.backlog.is_none_or(|most_urgent| delivery.priority < most_urgent);
        let key_is_busy = lane.settings.ordered && lane.keys.contains(&delivery.ordering_key);
        let behind = lane.settings.ordered && (key_is_busy || lane.may_hold);
        let go = !self.stopping && has_slot && first_of_lane && !behind && lane.ready(now) == Ready::Now && lane.free(now) > 0;
        let state = match (go, key_is_busy) {
            (true, _) => State::Sending,
            (false, true) => State::Blocked,
            (false, false) => State::Waiting,
        };
        let end = End { state, attempts: 0, next_at: now.as_microsecond(), finished_at: None, status_code: None, reason: String::new() };
        if go {
            let row = delivery.clone();
            let offer = C::REPEATABLE.then_some(offer);
            self.lift_off(delivery, offer, now);
            return Insert { delivery: row, end, may_be_behind: false };
        }
        lane.hold(delivery.priority);
        Insert { may_be_behind: behind, delivery, end }
    }

    fn has_slot(&self, organization: &OrganizationId) -> bool {
        !self.stalled
            && self.running < self.slots.all
            && self.running_of.get(organization).is_none_or(|running| *running < self.slots.organization)
    }

    /// Takes slots for a delivery. Its attempt begins now, or, where a repeat can't be dropped, once its row is durable.
    fn lift_off(&mut self, delivery: Delivery, offer: Option<(u64, usize)>, now: Timestamp) {
        let lane = self.lanes.get_mut(&delivery.lane).expect("only deliveries of open lanes are tried");
        lane.begin(&delivery, now);
        lane.known += 1;
        self.running += 1;
        *self.running_of.entry(delivery.organization.clone()).or_default() += 1;
        let delivery = Arc::new(delivery);
        let phase = if C::REPEATABLE { Phase::Running } else { Phase::Claiming };
        self.flights.insert(delivery.id, Flight { delivery: delivery.clone(), phase, offer });
        if C::REPEATABLE {
            self.attempt(delivery, now);
        }
    }

    fn attempt(&self, delivery: Arc<Delivery>, started_at: Timestamp) {
        let (courier, signals) = (self.courier.clone(), self.signals.clone());
        self.tasks.spawn("lane.attempt", async move {
            let id = delivery.id;
            let clock = std::time::Instant::now();
            let attempted = courier.attempt(delivery).await;
            // The dispatcher outlives its attempts save at the end of a drain, which records none of them.
            let _ = signals.send(Signal::Ended { delivery: id, started_at, duration: clock.elapsed(), attempted }).await;
        });
    }

    fn ended(&mut self, id: i64, started_at: Timestamp, duration: Duration, attempted: Attempted, now: Timestamp) {
        let Some(flight) = self.flights.get_mut(&id) else { return };
        let delivery = flight.delivery.clone();
        flight.phase = Phase::Settling;
        let offer = flight.offer.take();
        self.running = self.running.saturating_sub(1);
        if let Some(running) = self.running_of.get_mut(&delivery.organization) {
            *running -= 1;
            if *running == 0 {
                self.running_of.remove(&delivery.organization);
            }
        }
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
            error: attempted.error.clone(),
            response: attempted.response.clone(),
        };
        let end = self.settle(&delivery, &attempted, now);
        match offer {
            Some((number, place)) => self.pendings.settle(number, place, end, row),
            None => {
                self.updates.push(Update { id, end });
                self.attempts.push(row);
            }
        }
        self.consider(delivery.lane, now);
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
        match settled.end.state {
            State::Waiting => lane.may_hold = true,
            state => {
                if lane.settings.ordered {
                    self.releases.push((delivery.lane, delivery.ordering_key.clone()));
                }
                if state == State::Dead {
                    metrics::counter!("lane_dead_total").increment(1);
                }
            }
        }
        if let Some(reason) = settled.closing {
            self.close(delivery.lane, reason);
        }
        settled.end
    }

    /// Turns what waits in a lane into dead letters and tells the service.
    fn close(&mut self, number: i64, reason: String) {
        let Some(lane) = self.lanes.get(&number) else { return };
        let (courier, store, id, now) = (self.courier.clone(), self.store.clone(), lane.id.clone(), self.clock.now_micros());
        self.tasks.spawn("lane.close", async move {
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
            Ready::Now if lane.free(now) > 0 => self.turns.push(&lane.organization, number),
            // A running attempt of the lane will end and bring it here again.
            Ready::Now | Ready::Held => {}
            Ready::At(at) => self.arm(number, at, priority),
        }
    }

    /// Gives turns to lanes while there are slots: looks into the store for what they can send now.
    fn serve(&mut self) {
        let now = self.clock.now();
        let mut left = self.turns.len();
        while left > 0 && !self.stalled && !self.stopping && self.loads < LOADS_MAX && self.running < self.slots.all {
            left -= 1;
            let Some(number) = self.turns.pop() else { return };
            let Some(lane) = self.lanes.get_mut(&number) else { continue };
            if lane.ready(now) != Ready::Now || lane.free(now) == 0 {
                self.consider(number, now);
                continue;
            }
            let organization_is_full = self.running_of.get(&lane.organization).is_some_and(|running| *running >= self.slots.organization);
            if organization_is_full {
                let organization = lane.organization.clone();
                self.turns.push(&organization, number);
                continue;
            }
            self.load(number, now);
        }
    }

    fn load(&mut self, number: i64, now: Timestamp) {
        let Some(lane) = self.lanes.get_mut(&number) else { return };
        // Deliveries that are in memory are still waiting in the store: ask for so many more.
        let limit = lane.free(now) + lane.known;
        (lane.loading, lane.touched) = (true, false);
        lane.settled_meanwhile.clear();
        self.loads += 1;
        let (store, keys, id, signals) = (self.store.clone(), self.keys.clone(), lane.id.clone(), self.signals.clone());
        self.tasks.spawn("lane.load", async move {
            let due = rows::due(&store, &keys, number, &id, now.as_microsecond(), limit).await;
            // As for attempts: only a drain that has ended hears nothing.
            let _ = signals.send(Signal::Loaded { lane: number, due }).await;
        });
    }

    fn loaded(&mut self, number: i64, due: Result<Due>, now: Timestamp) {
        self.loads = self.loads.saturating_sub(1);
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
        let (next, mut left) = (due.next, due.more.then_some(4));
        for delivery in due.deliveries {
            let (id, priority) = (delivery.id, delivery.priority);
            if !self.flights.contains_key(&id) && !settled.contains(&id) && !self.start_waiting(delivery, now) {
                left = Some(left.map_or(priority, |most_urgent: i64| most_urgent.min(priority)));
            }
        }
        let Some(lane) = self.lanes.get_mut(&number) else { return };
        if !lane.touched {
            lane.backlog = left;
            lane.may_hold = left.is_some() || next.is_some() || lane.known > 0;
        }
        self.consider(number, now);
    }

    /// Tries a delivery that waited in the store, if it still may.
    fn start_waiting(&mut self, delivery: Delivery, now: Timestamp) -> bool {
        let has_slot = self.has_slot(&delivery.organization);
        let Some(lane) = self.lanes.get_mut(&delivery.lane) else { return false };
        let key_is_busy = lane.settings.ordered && lane.keys.contains(&delivery.ordering_key);
        if self.stopping || !has_slot || key_is_busy || lane.ready(now) != Ready::Now || lane.free(now) == 0 {
            return false;
        }
        if !C::REPEATABLE {
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
        self.lift_off(delivery, None, now);
        true
    }

    /// Hands to the recorder what is ready, if it is idle.
    fn flush(&mut self) {
        if self.recording {
            return;
        }
        let now = if self.stopping { Timestamp::MAX } else { self.clock.now() };
        if !(self.pendings.has_ready() || !self.updates.is_empty() || self.pendings.deadline().is_some_and(|at| at <= now) || !self.changed_lanes.is_empty()) {
            return;
        }
        let mut group = Group {
            updates: std::mem::take(&mut self.updates),
            attempts: std::mem::take(&mut self.attempts),
            releases: std::mem::take(&mut self.releases),
            lanes: std::mem::take(&mut self.changed_lanes).iter().filter_map(|number| Some(self.lanes.get(number)?.row())).collect(),
            ..Group::default()
        };
        while group.inserts.len() < GROUP_ROWS_MAX
            && let Some((number, mut pending)) = self.pendings.pop(now)
        {
            for insert in &pending.inserts {
                if let Some(flight) = self.flights.get_mut(&insert.delivery.id) {
                    flight.offer = None;
                }
            }
            group.inserts.append(&mut pending.inserts);
            group.attempts.append(&mut pending.attempts);
            group.offers.push(number);
            self.answering.insert(number, pending.done);
        }
        if group.is_empty() {
            return;
        }
        // The recorder is idle, so its channel has room; it is gone only when the runtime ends.
        self.recording = self.groups.try_send(group).is_ok();
    }

    fn committed(&mut self, group: Group, now: Timestamp) {
        (self.recording, self.stalled) = (false, false);
        for number in &group.offers {
            if let Some(done) = self.answering.remove(number) {
                // Whoever offered may have gone away; the deliveries are durable all the same.
                let _ = done.send(());
            }
        }
        for Insert { delivery, end, .. } in &group.inserts {
            self.durable(delivery.id, end, now);
            if end.state == State::Waiting {
                self.waits(delivery.lane, delivery.priority, end.next_at, now);
            }
        }
        for Update { id, end } in &group.updates {
            let of = self.flights.get(id).map(|flight| (flight.delivery.lane, flight.delivery.priority));
            self.durable(*id, end, now);
            if let (State::Waiting, Some((lane, priority))) = (end.state, of) {
                self.waits(lane, priority, end.next_at, now);
            }
        }
        for (number, _) in &group.releases {
            // The one released may have any priority: the look into the store tells.
            self.lanes.entry(*number).and_modify(|lane| if lane.may_hold { lane.hold(4) });
            self.consider(*number, now);
        }
    }

    /// A row is durable: a claimed delivery begins its attempt, one that has settled leaves memory.
    fn durable(&mut self, id: i64, end: &End, now: Timestamp) {
        let Some(flight) = self.flights.get_mut(&id) else { return };
        if end.state == State::Sending {
            if flight.phase == Phase::Claiming {
                flight.phase = Phase::Running;
                let delivery = flight.delivery.clone();
                self.attempt(delivery, now);
            }
            return;
        }
        if let Some(flight) = self.flights.remove(&id)
            && let Some(lane) = self.lanes.get_mut(&flight.delivery.lane)
        {
            lane.known = lane.known.saturating_sub(1);
            if lane.loading {
                lane.settled_meanwhile.insert(id);
            }
        }
    }

    /// A delivery waits in the store, durably: its lane is looked at now, or when it is due.
    fn waits(&mut self, number: i64, priority: i64, next_at: i64, now: Timestamp) {
        let at = crate::clock::from_micros(next_at);
        if at > now {
            return self.arm(number, at, priority);
        }
        if let Some(lane) = self.lanes.get_mut(&number) {
            lane.hold(priority);
            self.consider(number, now);
        }
    }
}

/// The end of an attempt whose lane was removed while it ran.
fn removed(delivery: &Delivery, attempted: &Attempted, now: Timestamp) -> End {
    let delivered = attempted.outcome == super::super::Outcome::Delivered;
    End {
        state: if delivered { State::Delivered } else { State::Cancelled },
        attempts: delivery.attempts.saturating_add(1),
        next_at: now.as_microsecond(),
        finished_at: Some(now.as_microsecond()),
        status_code: attempted.status_code.map(i64::from),
        reason: if delivered { String::new() } else { "the destination was removed".to_owned() },
    }
}

/// A number in 0..=1 from the operating system; a half where it gives none.
fn jitter() -> f64 {
    getrandom::u32().map_or(0.5, |random| f64::from(random) / f64::from(u32::MAX))
}
