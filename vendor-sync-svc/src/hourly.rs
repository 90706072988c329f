//! So many in any hour, exactly: the times of the last ones are kept. Pure: the time is given.

use std::{collections::VecDeque, time::Duration};

const WINDOW: Duration = Duration::from_secs(60 * 60);
pub(crate) const WINDOW_MICROS: i64 = 60 * 60 * 1_000_000;

/// Times of what was counted in the last hour, in microseconds, oldest first.
#[derive(Clone, Debug, Default)]
pub(crate) struct Log {
    times: VecDeque<i64>,
}

impl Log {
    /// With these times, in microseconds, oldest first.
    pub(crate) fn of(times: VecDeque<i64>) -> Self {
        Self { times }
    }

    /// Takes the last count back.
    pub(crate) fn give_back(&mut self) {
        self.times.pop_back();
    }

    /// Whether anything was counted after `since`, in microseconds.
    pub(crate) fn holds_since(&self, since: i64) -> bool {
        self.times.back().is_some_and(|last| *last > since)
    }

    /// Counts one at `now`, or says how long until there is room. A clock that stepped back doesn't open the limit.
    pub(crate) fn admit(&mut self, most: usize, now: i64) -> Result<(), Duration> {
        let now = now.max(self.times.back().copied().unwrap_or(i64::MIN));
        while self.times.front().is_some_and(|oldest| *oldest <= now - WINDOW_MICROS) {
            self.times.pop_front();
        }
        if self.times.len() < most {
            self.times.push_back(now);
            return Ok(());
        }
        // Room is there once only `most - 1` of them are left in the window; the limit may have been lowered.
        let leaves = self.times.len().saturating_sub(most);
        let wait = self.times.get(leaves).map_or(WINDOW_MICROS, |at| at + WINDOW_MICROS - now);
        Err(Duration::from_micros(wait.unsigned_abs()).clamp(Duration::from_secs(1), WINDOW))
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    proptest! {
        #[test]
        fn no_hour_ever_holds_more_than_the_limit(most in 1usize..20, steps in proptest::collection::vec(-5i64..2_000, 1..300)) {
            let (mut log, mut now, mut admitted) = (Log::default(), 0_i64, Vec::new());
            for seconds in steps {
                now += seconds * 1_000_000;
                match log.admit(most, now) {
                    Ok(()) => admitted.push(log.times.back().copied().unwrap()),
                    Err(wait) => prop_assert!(wait <= WINDOW),
                }
            }
            for (index, at) in admitted.iter().enumerate() {
                let in_hour = admitted[..=index].iter().filter(|other| **other > at - WINDOW_MICROS).count();
                prop_assert!(in_hour <= most);
            }
        }

        #[test]
        fn who_waits_as_told_is_admitted(most in 1usize..10, gaps in proptest::collection::vec(0i64..900, 1..60)) {
            let (mut log, mut now) = (Log::default(), 0_i64);
            for seconds in gaps {
                now += seconds * 1_000_000;
                if let Err(wait) = log.admit(most, now) {
                    now += i64::try_from(wait.as_micros()).unwrap();
                    prop_assert!(log.admit(most, now).is_ok());
                }
            }
        }
    }
}
