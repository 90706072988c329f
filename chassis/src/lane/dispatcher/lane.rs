//! One lane as the dispatcher holds it in memory: whether it may be tried now, and what an attempt's end means for it.

use std::{
    collections::{BTreeSet, HashMap, HashSet},
    sync::Arc,
    time::Duration,
};

use jiff::{SignedDuration, Timestamp};

use super::{Settings, Slots};
use crate::{
    clock::from_micros,
    id::OrganizationId,
    lane::{
        breaker::{self, Breaker},
        delivery::{Attempted, Blame, Delivery, Outcome, State},
        limit::Limit,
        recorder::{End, LaneRow},
        rows::{self, Remembered},
        window::Window,
    },
};

/// Attempts of a limited lane that may be on their way to the record, or under way: a crash keeps no more than these from
/// it, and after one the lane holds back so many. At a quarter, a lane with slow attempts still comes to its limit: a minute
/// holds six attempts of 10 s, one after the other. Eight times what ever runs at once is enough for any lane: one that is
/// allowed more goes on however often the process dies.
fn unrecorded_max(rate_limit: u32) -> u32 {
    (rate_limit / 4).clamp(1, 2_048)
}

/// A lane where no attempt succeeded for so long doesn't flow.
const FLOW: SignedDuration = SignedDuration::from_millis(100);

/// 1 CRITICAL to 4 LOW.
const PRIORITIES: usize = 4;

/// One destination.
#[derive(Debug)]
pub(super) struct Lane {
    pub(super) number: i64,
    pub(super) id: Arc<str>,
    pub(super) organization: OrganizationId,
    pub(super) settings: Settings,
    pub(super) breaker: Breaker,
    limit: Limit,
    window: Window,
    /// Attempts under way: slots held.
    pub(super) running: u32,
    /// Deliveries in memory, their end not yet durable.
    pub(super) known: HashSet<i64>,
    /// Of those, whose attempt hasn't begun.
    claimed: HashSet<i64>,
    /// Ordering keys of the known ones, where the lane is ordered, and whether others of the key may be blocked behind them.
    keys: HashMap<String, bool>,
    /// Fresh deliveries that wait for a slot in memory, most urgent first: (priority, id).
    pub(super) queue: BTreeSet<(i64, i64)>,
    /// When an attempt last succeeded, or the first of several at once began.
    flowed_at: Timestamp,
    /// Deliveries that came to wait and whose rows are not committed yet, by priority.
    unwritten: [u32; PRIORITIES],
    /// The most urgent priority that the last look passed over, since its key was busy.
    pub(super) passed_over: Option<i64>,
    /// The most urgent priority that may be due in the store; none: nothing is due there.
    pub(super) backlog: Option<i64>,
    /// Deliveries came to wait since the last look into the store began.
    pub(super) touched: bool,
    /// The store may hold deliveries that aren't final.
    may_hold: bool,
    /// A look into the store is under way.
    pub(super) loading: bool,
    /// Deliveries whose end became durable since that look began: it may still show them as waiting.
    pub(super) settled_meanwhile: HashSet<i64>,
    /// When the lane is to be looked at again, and the priority that is due then.
    pub(super) alarm: Option<(Timestamp, i64)>,
    /// The destination asked not to be called before.
    not_before: Timestamp,
    failing_since: Option<Timestamp>,
    /// Its destination is gone or failed for too long.
    pub(super) closed: bool,
}

/// Whether a lane may be tried.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Ready {
    Now,
    At(Timestamp),
    /// Not until somebody says so.
    Held,
}

/// What an attempt's end comes to, for its delivery and its lane.
pub(super) struct Settled {
    pub(super) end: End,
    /// What the store must remember of the lane has changed.
    pub(super) lane_changed: bool,
    /// The lane is closed from now on, for this reason.
    pub(super) closing: Option<String>,
}

impl Lane {
    pub(super) fn new(
        number: i64,
        id: Arc<str>,
        organization: OrganizationId,
        settings: Settings,
        slots: Slots,
        remembered: Remembered,
    ) -> Self {
        let mut limit = Limit::new(settings.rate_limit);
        // What may be missing may have been made until this process started.
        let rows::Deaths { number: deaths, before } = remembered.deaths;
        let missing = deaths.saturating_mul(unrecorded_max(settings.rate_limit)).min(settings.rate_limit);
        let mut recent = remembered.recent;
        recent.extend(std::iter::repeat_n(before, missing as usize));
        recent.sort_unstable();
        limit.restore(recent, Timestamp::MIN);
        Self {
            number,
            id,
            organization,
            breaker: Breaker::restore(remembered.breaker_opened_at.map(from_micros), remembered.breaker_openings),
            limit,
            window: Window::new(slots.lane),
            running: 0,
            known: HashSet::new(),
            claimed: HashSet::new(),
            keys: HashMap::new(),
            queue: BTreeSet::new(),
            flowed_at: Timestamp::MIN,
            unwritten: [0; PRIORITIES],
            passed_over: None,
            backlog: remembered.most_urgent,
            touched: false,
            may_hold: remembered.most_urgent.is_some(),
            loading: false,
            settled_meanwhile: HashSet::new(),
            alarm: None,
            not_before: Timestamp::MIN,
            failing_since: remembered.failing_since.map(from_micros),
            closed: false,
            settings,
        }
    }

    /// Takes over new settings, which may pause, resume or reopen it; `most_urgent` waits there. A lane that is resumed
    /// forgives its destination.
    pub(super) fn change(&mut self, settings: Settings, most_urgent: Option<i64>) {
        self.limit.set(settings.rate_limit);
        if (self.settings.paused || self.closed) && !settings.paused {
            self.breaker.succeeded();
            self.failing_since = None;
            self.not_before = Timestamp::MIN;
        }
        self.closed = false;
        self.settings = settings;
        most_urgent.into_iter().for_each(|priority| self.hold(priority));
    }

    /// Notes that a delivery of this priority waits in the store, or may.
    pub(super) fn hold(&mut self, priority: i64) {
        self.backlog = Some(self.backlog.map_or(priority, |most_urgent| most_urgent.min(priority)));
        self.touched = true;
        self.may_hold = true;
    }

    /// Notes that nothing waits here but what `next` and `backlog` say.
    pub(super) fn looked(&mut self, backlog: Option<i64>, next: bool) {
        if !self.touched {
            self.backlog = backlog;
            self.may_hold = backlog.is_some() || next || self.passed_over.is_some();
        }
    }

    /// Notes that something may wait here that isn't due yet.
    pub(super) fn keep(&mut self) {
        (self.touched, self.may_hold) = (true, true);
    }

    /// Notes a delivery that waits, whose row is yet to be committed.
    pub(super) fn wait(&mut self, priority: i64) {
        self.unwritten[place(priority)] += 1;
    }

    /// Notes that the row of such a one is committed.
    pub(super) fn written(&mut self, priority: i64) {
        let count = &mut self.unwritten[place(priority)];
        *count = count.saturating_sub(1);
    }

    /// Whether a fresh delivery of this priority must wait for others.
    pub(super) fn has_before(&self, priority: i64) -> bool {
        self.backlog.is_some_and(|most_urgent| most_urgent <= priority)
            || self.unwritten[..=place(priority)].iter().any(|count| *count > 0)
    }

    /// Whether anything may wait here, now or later.
    pub(super) fn may_hold(&self) -> bool {
        self.may_hold || self.unwritten.iter().any(|count| *count > 0)
    }

    /// Whether an earlier delivery of the same key is in memory, where the lane is ordered.
    pub(super) fn key_is_busy(&self, delivery: &Delivery) -> bool {
        self.settings.ordered && self.keys.contains_key(&delivery.ordering_key)
    }

    /// Notes that others may be blocked behind the delivery of this key that is in memory.
    pub(super) fn block(&mut self, delivery: &Delivery) {
        self.keys.get_mut(&delivery.ordering_key).into_iter().for_each(|blocks| *blocks = true);
    }

    /// Whether others may be blocked behind this delivery.
    pub(super) fn blocks(&self, delivery: &Delivery) -> bool {
        self.settings.ordered && self.keys.get(&delivery.ordering_key).is_none_or(|blocks| *blocks)
    }

    /// A delivery leaves memory.
    pub(super) fn forget(&mut self, delivery: &Delivery) {
        self.known.remove(&delivery.id);
        self.claimed.remove(&delivery.id);
        if self.loading {
            self.settled_meanwhile.insert(delivery.id);
        }
        if self.keys.remove(&delivery.ordering_key).is_some()
            && let Some(priority) = self.passed_over.take()
        {
            self.hold(priority);
        }
    }

    pub(super) fn ready(&mut self, now: Timestamp) -> Ready {
        if self.settings.paused || self.closed {
            return Ready::Held;
        }
        let breaker = match self.breaker.state(now) {
            breaker::State::Open(until) => until,
            _ => now,
        };
        let at = self.limit.next(now, self.claimed.len()).max(breaker).max(self.not_before);
        if at <= now { Ready::Now } else { Ready::At(at) }
    }

    /// Attempts that may begin now, as far as this lane's own slots go.
    pub(super) fn free(&mut self, now: Timestamp) -> u32 {
        let slots = match self.breaker.state(now) {
            breaker::State::HalfOpen => 1u32.saturating_sub(self.running),
            _ => self.window.size().saturating_sub(self.running),
        };
        match self.settings.rate_limit {
            0 => slots,
            limit => {
                slots.min(unrecorded_max(limit).saturating_sub(u32::try_from(self.known.len()).unwrap_or(u32::MAX)))
            }
        }
    }

    /// Whether the breaker lets a claim begin that it let through before.
    pub(super) fn still_lets(&mut self, now: Timestamp) -> bool {
        match self.breaker.state(now) {
            breaker::State::Closed => true,
            breaker::State::Open(_) => false,
            breaker::State::HalfOpen => self.running <= 1,
        }
    }

    /// Takes a slot for an attempt that begins now or later, of a delivery that others may be blocked behind.
    pub(super) fn claim(&mut self, delivery: &Delivery, blocks: bool) {
        self.running += 1;
        self.known.insert(delivery.id);
        self.claimed.insert(delivery.id);
        if self.settings.ordered {
            self.keys.insert(delivery.ordering_key.clone(), blocks);
        }
    }

    /// Whether its slots come free soon enough for a fresh delivery to wait for one in memory.
    pub(super) fn flows(&self, now: Timestamp) -> bool {
        now.duration_since(self.flowed_at) < FLOW
    }

    /// Counts an attempt that begins.
    pub(super) fn begin(&mut self, delivery: &Delivery, now: Timestamp) {
        if self.running <= 1 {
            self.flowed_at = now;
        }
        self.claimed.remove(&delivery.id);
        self.limit.count(now);
    }

    /// Draws the conclusions of an attempt that ended. `jitter` in 0..=1.
    pub(super) fn settle(
        &mut self,
        delivery: &Delivery,
        attempted: &Attempted,
        now: Timestamp,
        jitter: f64,
    ) -> Settled {
        let attempts = delivery.attempts.saturating_add(1);
        let before = self.memory();
        let mut closing = None;
        let (state, next_at, reason) = match attempted.outcome {
            Outcome::Delivered => {
                self.succeeded();
                self.flowed_at = now;
                (State::Delivered, now, attempted.error.clone())
            }
            Outcome::Retry { after, blame } => {
                if blame == Blame::Destination {
                    closing = self.failed(delivery, now, after, jitter);
                }
                let tries = attempts.saturating_sub(delivery.reopened_after);
                match self.settings.schedule.delay(tries, jitter, after) {
                    Some(_) if self.closed || closing.is_some() => (State::Dead, now, attempted.error.clone()),
                    Some(delay) => {
                        crate::fail::point("lane.retry.scheduled");
                        (State::Waiting, now + signed(delay), attempted.error.clone())
                    }
                    None => (State::Dead, now, format!("the retry schedule is exhausted: {}", attempted.error)),
                }
            }
            Outcome::Permanent => (State::Dead, now, attempted.error.clone()),
            Outcome::Gone => {
                closing = Some("the destination answered that it is gone".to_owned());
                (State::Dead, now, attempted.error.clone())
            }
            Outcome::Unknown => (State::Unknown, now, attempted.error.clone()),
        };
        let closing = closing.filter(|_| !self.closed);
        self.closed |= closing.is_some();
        let end = End {
            state,
            attempts,
            next_at: next_at.as_microsecond(),
            finished_at: state.is_final().then_some(now.as_microsecond()),
            status_code: attempted.status_code.map(i64::from),
            reason,
        };
        Settled { end, lane_changed: before != self.memory(), closing }
    }

    fn succeeded(&mut self) {
        self.failing_since = None;
        // Its own slot was freed before.
        if self.breaker.succeeded() { self.window.restart() } else { self.window.grow(self.running + 1) }
    }

    /// Gives the reason for closing, when the destination has failed for too long.
    fn failed(&mut self, delivery: &Delivery, now: Timestamp, after: Option<Duration>, jitter: f64) -> Option<String> {
        self.breaker.failed(delivery.id, now, jitter);
        self.window.shrink();
        if let Some(after) = after {
            self.not_before = self.not_before.max(now + signed(after.min(crate::lane::backoff::RETRY_AFTER_MAX)));
        }
        let since = *self.failing_since.get_or_insert(now);
        (now.duration_since(since) >= signed(self.settings.disable_after))
            .then(|| format!("the destination has failed since {since}"))
    }

    fn memory(&self) -> (Option<Timestamp>, u32, Option<Timestamp>) {
        let (opened_at, openings) = self.breaker.memory();
        (opened_at, openings, self.failing_since)
    }

    /// What the store remembers of it.
    pub(super) fn row(&self) -> LaneRow {
        let (opened_at, openings, failing_since) = self.memory();
        LaneRow {
            number: self.number,
            breaker_opened_at: opened_at.map(Timestamp::as_microsecond),
            breaker_openings: i64::from(openings),
            failing_since: failing_since.map(Timestamp::as_microsecond),
        }
    }
}

fn place(priority: i64) -> usize {
    usize::try_from(priority - 1).unwrap_or(0).min(PRIORITIES - 1)
}

fn signed(duration: Duration) -> SignedDuration {
    SignedDuration::try_from(duration).unwrap_or(SignedDuration::MAX)
}
