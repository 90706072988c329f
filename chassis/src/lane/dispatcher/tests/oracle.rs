//! What the breakers of lanes must do, worked out from the attempts alone: while one is open nothing is attempted, and
//! then one probe at a time.
//!
//! It errs on the side of silence: an opening lasts at least so long, and where attempts that began before it leave open
//! what became of it, it is taken for the shorter one.

use std::{collections::HashMap, sync::Arc, time::Duration};

use jiff::{SignedDuration, Timestamp};

use super::world::{Call, DESTINATION_FAILED};
use crate::lane::Outcome;

/// The breakers of all lanes, by times of a clock that never steps back.
#[derive(Default)]
pub(super) struct Breakers {
    lanes: HashMap<Arc<str>, Breaker>,
    faults: Vec<String>,
}

#[derive(Default)]
struct Breaker {
    /// Deliveries that failed since the last success.
    failed: Vec<u32>,
    open: Option<Opening>,
    /// What the store is known to remember.
    durable: Option<Opening>,
    /// An attempt began after the opening.
    probed: bool,
    /// The one that is under way.
    probe: Option<u32>,
}

#[derive(Clone, Copy, PartialEq)]
struct Opening {
    since: Timestamp,
    /// In a row.
    times: u32,
}

impl Opening {
    fn shortest(self) -> SignedDuration {
        let doubled = Duration::from_secs(10) * 2u32.pow((self.times - 1).min(16));
        SignedDuration::try_from(doubled.min(Duration::from_secs(600)).mul_f64(0.8)).expect("minutes")
    }
}

impl Breakers {
    pub(super) fn begin(&mut self, call: &Call) {
        let breaker = self.lanes.entry(call.lane.clone()).or_default();
        let Some(open) = breaker.open.filter(|open| open.since < call.truly_at) else { return };
        if call.truly_at < open.since + open.shortest() {
            self.faults.push(format!("{call:?} while it is open since {}, for time {}", open.since, open.times));
        }
        if breaker.probe.is_some() {
            self.faults.push(format!("{call:?} beside the probe of {:?}", breaker.probe));
        }
        (breaker.probed, breaker.probe) = (true, Some(call.event));
    }

    pub(super) fn end(&mut self, call: &Call, now: Timestamp) {
        let breaker = self.lanes.entry(call.lane.clone()).or_default();
        match call.outcome {
            Some(Outcome::Delivered) => breaker.close(),
            Some(DESTINATION_FAILED) => breaker.fail(call.event, now),
            // The message's own fault tells nothing of the destination.
            _ => drop(breaker.probe.take_if(|event| *event == call.event)),
        }
    }

    /// A pause of the lane ended.
    pub(super) fn forgive(&mut self, lane: &str) {
        self.lanes.entry(lane.into()).or_default().close();
    }

    /// Everything is durable.
    pub(super) fn settle(&mut self) {
        self.lanes.values_mut().for_each(|breaker| breaker.durable = breaker.open);
    }

    /// The process stopped in order, or died: then what was not durable is not known any more.
    pub(super) fn restart(&mut self, in_order: bool) {
        for breaker in self.lanes.values_mut() {
            let open = breaker.open.filter(|open| in_order || breaker.durable == Some(*open));
            *breaker = Breaker { open, durable: open, ..Breaker::default() };
        }
    }

    pub(super) fn faults(&self) -> &[String] {
        &self.faults
    }
}

impl Breaker {
    fn close(&mut self) {
        *self = Self { durable: self.durable, ..Self::default() };
    }

    fn fail(&mut self, event: u32, now: Timestamp) {
        self.failed.push(event);
        let times = match self.open {
            None if self.failed.len() >= 5 && self.failed.iter().any(|other| *other != event) => 1,
            Some(open) if self.probed => open.times + 1,
            // Not yet; or an attempt from before the opening.
            _ => return,
        };
        (self.open, self.probed, self.probe) = (Some(Opening { since: now, times }), false, None);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn call(event: u32, second: i64, outcome: Outcome) -> Call {
        let at = Timestamp::UNIX_EPOCH + SignedDuration::from_secs(second);
        let lane: Arc<str> = "ada/a".into();
        let (key, content) = (String::new(), bytes::Bytes::new());
        Call { lane, event, key, attempt: 1, content, at, truly_at: at, life: 0, outcome: Some(outcome) }
    }

    fn faults(calls: impl IntoIterator<Item = Call>) -> usize {
        let mut breakers = Breakers::default();
        for call in calls {
            breakers.begin(&call);
            breakers.end(&call, call.truly_at);
        }
        breakers.faults().len()
    }

    #[test]
    fn it_sees_an_attempt_while_a_breaker_is_open_and_none_where_there_is_none() {
        let broken = || (0..5).map(|event| call(event, i64::from(event), DESTINATION_FAILED));
        let then = |second, outcome| broken().chain([call(9, second, outcome)]);
        assert_eq!(faults(then(11, Outcome::Delivered)), 1);
        assert_eq!(faults(then(12, Outcome::Delivered)), 0);
        assert_eq!(faults(then(12, DESTINATION_FAILED).chain([call(9, 27, Outcome::Delivered)])), 1, "twice as long");
        assert_eq!(faults(then(12, DESTINATION_FAILED).chain([call(9, 28, Outcome::Delivered)])), 0);
        assert_eq!(faults((0..9).map(|second| call(1, second, DESTINATION_FAILED))), 0, "one delivery opens none");
    }
}
