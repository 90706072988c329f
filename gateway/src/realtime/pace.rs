//! How fast somebody may do something: GCRA, one number each. Pure: the time is given.

use std::sync::atomic::{AtomicI64, Ordering};

use jiff::Timestamp;

use crate::limit;

/// One who is paced.
#[derive(Debug, Default)]
pub(crate) struct Pace {
    /// Until when what was done would last at the steady rate, in microseconds.
    spent: AtomicI64,
}

/// A rate, and how much may be done at once.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Rate {
    interval: i64,
    ahead: i64,
}

impl Rate {
    /// `count` within `seconds`, and as many at once.
    pub(crate) fn new(count: u32, seconds: u32) -> Self {
        let (count, seconds) = (i64::from(count.max(1)), i64::from(seconds));
        let interval = (seconds * 1_000_000 / count).max(1);
        Self { interval, ahead: interval * count }
    }
}

impl Pace {
    /// Whether one more is allowed; it is counted then.
    pub(crate) fn take(&self, rate: Rate, now: Timestamp) -> bool {
        let now = now.as_microsecond();
        let next = |spent: i64| limit::step(spent, now, rate.interval, rate.ahead).ok();
        self.spent.fetch_update(Ordering::Relaxed, Ordering::Relaxed, next).is_ok()
    }
}

#[cfg(test)]
mod tests {
    use jiff::SignedDuration;

    use super::*;

    #[test]
    fn a_burst_passes_and_then_the_rate_holds() {
        let (pace, rate, now) = (Pace::default(), Rate::new(5, 30), Timestamp::UNIX_EPOCH);
        assert_eq!((0..10).filter(|_| pace.take(rate, now)).count(), 5);
        let later = now + SignedDuration::from_secs(6);
        assert_eq!((pace.take(rate, later), pace.take(rate, later)), (true, false));
    }
}
