//! The circuit breaker of one lane. Pure: it is told what happened and when, and says whether the lane may be tried.
//!
//! It opens after 5 consecutive failures of at least 2 distinct deliveries, so that one poisonous message can't close a
//! healthy destination; it lets one probe through when its time is up, and closes on success. Failures that are the
//! message's own fault are not told to it.

use std::time::Duration;

use jiff::{SignedDuration, Timestamp};

const FAILURES_TO_OPEN: u32 = 5;
const FIRST_OPENING: Duration = Duration::from_secs(10);
const LONGEST_OPENING: Duration = Duration::from_secs(600);

/// What the breaker says of its lane.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum State {
    /// Deliveries flow.
    Closed,
    /// Nothing is tried before this time.
    Open(Timestamp),
    /// One probe may go, or is under way.
    HalfOpen,
}

/// The breaker of one lane.
#[derive(Clone, Debug)]
pub struct Breaker {
    state: State,
    failures: u32,
    /// The delivery that failed first in this run of failures, and whether another failed too.
    first_failed: Option<i64>,
    distinct: bool,
    /// Openings in a row without a success between: each lasts twice as long as the one before.
    openings: u32,
    opened_at: Option<Timestamp>,
}

impl Default for Breaker {
    fn default() -> Self {
        Self { state: State::Closed, failures: 0, first_failed: None, distinct: false, openings: 0, opened_at: None }
    }
}

impl Breaker {
    /// As a store remembers it: open since `opened_at`, for the `openings`th time in a row.
    #[must_use]
    pub fn restore(opened_at: Option<Timestamp>, openings: u32) -> Self {
        let state = opened_at.map_or(State::Closed, |at| State::Open(at + opening(openings, 0.5)));
        Self { state, openings, opened_at, ..Self::default() }
    }

    /// Where it stands at `now`; an opening whose time is up turns half open.
    pub fn state(&mut self, now: Timestamp) -> State {
        if let State::Open(until) = self.state
            && until <= now
        {
            self.state = State::HalfOpen;
        }
        self.state
    }

    /// Since when it is not closed, and how many openings there were in a row: what a store must remember.
    #[must_use]
    pub fn memory(&self) -> (Option<Timestamp>, u32) {
        (self.opened_at, self.openings)
    }

    /// A delivery arrived: the destination is well. True when that closed it.
    pub fn succeeded(&mut self) -> bool {
        let closed = self.state != State::Closed;
        *self = Self::default();
        closed
    }

    /// The destination failed `delivery`. True when that opened it. `jitter` in 0..=1 spreads the time until the probe.
    pub fn failed(&mut self, delivery: i64, now: Timestamp, jitter: f64) -> bool {
        self.failures = self.failures.saturating_add(1);
        match self.first_failed {
            None => self.first_failed = Some(delivery),
            Some(first) => self.distinct |= first != delivery,
        }
        let probe_failed = self.state == State::HalfOpen;
        let run_failed = self.state == State::Closed && self.failures >= FAILURES_TO_OPEN && self.distinct;
        if probe_failed || run_failed {
            self.openings = self.openings.saturating_add(1);
            self.opened_at = Some(now);
            self.state = State::Open(now + opening(self.openings, jitter));
        }
        run_failed
    }
}

/// 10 s, 20 s, 40 s ... 10 min, 20 % either way.
fn opening(openings: u32, jitter: f64) -> SignedDuration {
    let doublings = openings.saturating_sub(1).min(16);
    let base = (FIRST_OPENING * 2u32.pow(doublings)).min(LONGEST_OPENING);
    SignedDuration::try_from(base.mul_f64(0.8 + 0.4 * jitter.clamp(0.0, 1.0))).unwrap_or(SignedDuration::MAX)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn after(seconds: i64) -> Timestamp {
        Timestamp::UNIX_EPOCH + SignedDuration::from_secs(seconds)
    }

    #[test]
    fn one_poisonous_message_never_opens_it() {
        let mut breaker = Breaker::default();
        for attempt in 0..100 {
            assert!(!breaker.failed(7, after(attempt), 0.5));
        }
        assert_eq!(breaker.state(after(101)), State::Closed);
    }

    #[test]
    fn five_failures_of_two_deliveries_open_it_and_a_good_probe_closes_it() {
        let mut breaker = Breaker::default();
        let opened: Vec<bool> = [1, 1, 2, 1, 2].iter().map(|id| breaker.failed(*id, after(0), 0.5)).collect();
        assert_eq!(opened, [false, false, false, false, true]);
        assert_eq!(breaker.state(after(9)), State::Open(after(10)));
        assert_eq!(breaker.state(after(10)), State::HalfOpen);
        assert!(breaker.succeeded());
        assert_eq!(breaker.state(after(10)), State::Closed);
    }

    #[test]
    fn a_failed_probe_opens_it_for_twice_as_long() {
        let mut breaker = Breaker::default();
        for id in 0..5 {
            breaker.failed(id, after(0), 0.5);
        }
        assert_eq!(breaker.state(after(10)), State::HalfOpen);
        breaker.failed(9, after(10), 0.5);
        assert_eq!(breaker.state(after(11)), State::Open(after(30)));
    }

    proptest! {
        #[test]
        fn what_a_store_remembers_opens_no_earlier_and_no_more_than_ten_minutes_later(openings in 1u32..40) {
            let mut breaker = Breaker::restore(Some(after(0)), openings);
            prop_assert!(matches!(breaker.state(after(7)), State::Open(_)));
            prop_assert_eq!(breaker.state(after(600)), State::HalfOpen);
        }
    }
}
