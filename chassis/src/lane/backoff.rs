//! When to try again: the schedule of delays, its jitter, and what a receiver's `Retry-After` may change. Pure.

use std::time::Duration;

/// The longest that a `Retry-After` is obeyed.
pub const RETRY_AFTER_MAX: Duration = Duration::from_secs(24 * 3600);

/// Delays between attempts; when they are used up, the delivery is dead.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Schedule(Vec<Duration>);

impl Default for Schedule {
    /// 1, 2, 4, 8, 30 s, 2, 10, 30 min, 1, 2, 4 h, then every 8 h until 72 h have passed.
    fn default() -> Self {
        let mut delays: Vec<Duration> =
            [1, 2, 4, 8, 30, 120, 600, 1_800, 3_600, 7_200, 14_400].map(Duration::from_secs).into();
        let tail = Duration::from_secs(8 * 3600);
        let window = Duration::from_secs(72 * 3600);
        while delays.iter().sum::<Duration>() + tail <= window {
            delays.push(tail);
        }
        Self(delays)
    }
}

impl Schedule {
    /// These delays; none means one attempt and no more.
    #[must_use]
    pub fn new(delays: Vec<Duration>) -> Self {
        Self(delays)
    }

    /// How long to wait after attempt number `attempts` (1 for the first) failed; `None` when the schedule is exhausted.
    ///
    /// `jitter` in 0..=1 spreads the delay by 20 % either way, so that a thousand deliveries that failed together
    /// don't come back together. A `Retry-After` lengthens the delay, up to 24 h, and never shortens it.
    #[must_use]
    pub fn delay(&self, attempts: u32, jitter: f64, retry_after: Option<Duration>) -> Option<Duration> {
        let index = usize::try_from(attempts).unwrap_or(usize::MAX).saturating_sub(1);
        let base = self.0.get(index)?.mul_f64(0.8 + 0.4 * jitter.clamp(0.0, 1.0));
        Some(base.max(retry_after.unwrap_or_default().min(RETRY_AFTER_MAX)))
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn the_standard_schedule_ends_within_72_hours() {
        let Schedule(delays) = Schedule::default();
        let total: Duration = delays.iter().sum();
        assert_eq!(delays[..5], [1, 2, 4, 8, 30].map(Duration::from_secs));
        assert!(total <= Duration::from_secs(72 * 3600) && total > Duration::from_secs(64 * 3600), "{total:?}");
    }

    proptest! {
        #[test]
        fn a_delay_stays_within_a_fifth_of_its_place_in_the_schedule(attempts in 1u32..30, jitter in 0.0..=1.0f64) {
            let schedule = Schedule::default();
            let base = schedule.0.get(attempts as usize - 1);
            match (base, schedule.delay(attempts, jitter, None)) {
                (None, None) => {}
                (Some(base), Some(delay)) => {
                    prop_assert!(delay >= base.mul_f64(0.799) && delay <= base.mul_f64(1.201));
                }
                (base, delay) => prop_assert!(false, "{base:?} gave {delay:?}"),
            }
        }

        #[test]
        fn retry_after_only_lengthens_and_at_most_to_a_day(seconds in 0u64..10_000_000) {
            let schedule = Schedule::default();
            let asked = Duration::from_secs(seconds);
            let delay = schedule.delay(1, 0.5, Some(asked)).expect("the first retry exists");
            prop_assert_eq!(delay, asked.min(RETRY_AFTER_MAX).max(Duration::from_secs(1)));
        }
    }
}
