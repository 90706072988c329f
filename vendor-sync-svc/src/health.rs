//! Whether an integration works: decided from what probes and attempts show, with hysteresis. Pure.
//!
//! It takes three bad signs in a row to call one failing, and two good ones to call it recovered. One that flaps must stay
//! good for longer and longer before it counts as recovered, so that nobody is told more than eight times an
//! hour. [`prober`] looks, [`store`] keeps and tells, [`view`] puts together what is shown, [`behind`] tells of what a
//! vendor doesn't get.

pub(crate) mod behind;
pub(crate) mod prober;
mod store;
#[cfg(test)]
mod stories;
pub(crate) mod view;

use jiff::{SignedDuration, Timestamp};

pub(crate) use self::store::Healths;

/// Signs in a row that change the standing.
const BAD: u32 = 3;
const GOOD: u32 = 2;
const HOUR: SignedDuration = SignedDuration::from_hours(1);
/// Changes within an hour from which on a recovery has to last.
const FREE: usize = 2;
/// How long, for each change more.
const HOLD: SignedDuration = SignedDuration::from_mins(10);
/// More changes than these are never within one hour.
#[cfg(test)]
const MOST_AN_HOUR: usize = 8;
/// As many are remembered.
const REMEMBERED: usize = 8;

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Standing {
    Healthy,
    Failing,
}

/// What is known of one integration.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Health {
    pub(crate) standing: Standing,
    pub(crate) since: Timestamp,
    /// Counted from the first.
    pub(crate) changes: u64,
    /// Times of the last changes, oldest first.
    pub(crate) recent: Vec<Timestamp>,
    /// Signs in a row against the standing, and when the first of them came.
    against: u32,
    against_since: Timestamp,
}

impl Health {
    /// One that nothing is known of is thought well of.
    pub(crate) fn new(now: Timestamp) -> Self {
        Self::of(Standing::Healthy, now, 0, Vec::new())
    }

    fn of(standing: Standing, since: Timestamp, changes: u64, recent: Vec<Timestamp>) -> Self {
        Self { standing, since, changes, recent, against: 0, against_since: since }
    }

    /// A good or bad sign; whether the standing has changed by it.
    pub(crate) fn sign(&mut self, good: bool, now: Timestamp) -> bool {
        if good == (self.standing == Standing::Healthy) {
            self.against = 0;
            return false;
        }
        if self.against == 0 {
            self.against_since = now;
        }
        self.against = self.against.saturating_add(1);
        let enough = match self.standing {
            Standing::Healthy => self.against >= BAD,
            Standing::Failing => self.against >= GOOD && now.duration_since(self.against_since) >= self.hold(now),
        };
        if enough {
            self.change(now);
        }
        enough
    }

    /// How long a recovery has to last now.
    fn hold(&self, now: Timestamp) -> SignedDuration {
        let recent = self.recent.iter().filter(|at| now.duration_since(**at) < HOUR).count();
        HOLD * i32::try_from(recent.saturating_sub(FREE)).unwrap_or(i32::MAX).min(6)
    }

    fn change(&mut self, now: Timestamp) {
        self.standing = match self.standing {
            Standing::Healthy => Standing::Failing,
            Standing::Failing => Standing::Healthy,
        };
        (self.since, self.against) = (now, 0);
        self.changes += 1;
        self.recent.push(now);
        let excess = self.recent.len().saturating_sub(REMEMBERED);
        self.recent.drain(..excess);
    }
}

#[cfg(test)]
mod tests {
    use chassis::testing::noon;
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn three_bad_signs_in_a_row_make_it_failing_and_two_good_ones_recover_it() {
        let mut health = Health::new(noon());
        let mut after =
            |signs: &str| signs.chars().map(|sign| health.sign(sign == '+', noon())).filter(|changed| *changed).count();
        assert_eq!(after("--+--+--"), 0, "never three in a row");
        assert_eq!(after("-"), 1);
        assert_eq!(after("--+-+-"), 0);
        assert_eq!(after("++"), 1);
    }

    #[test]
    fn one_that_flaps_must_stay_good_before_it_is_called_recovered() {
        let mut health = Health::new(noon());
        for _ in 0..3 {
            for good in [false, false, false, true, true] {
                health.sign(good, noon());
            }
        }
        assert_eq!((health.standing, health.changes), (Standing::Failing, 3), "down, up, down, and held");
        let minutes = |minutes| noon() + SignedDuration::from_mins(minutes);
        assert!(!health.sign(true, minutes(9)) && health.sign(true, minutes(10)));
    }

    proptest! {
        /// Whatever signs come, however fast.
        #[test]
        fn changes_alternate_and_are_few_in_any_hour(signs in prop::collection::vec((any::<bool>(), 0_i64..200), 1..3_000)) {
            let (mut health, mut now, mut changes) = (Health::new(noon()), noon(), Vec::new());
            for (good, seconds) in signs {
                now += SignedDuration::from_secs(seconds);
                let before = health.standing;
                let changed = health.sign(good, now);
                prop_assert_eq!(changed, before != health.standing);
                prop_assert!(health.recent.len() <= REMEMBERED);
                if changed {
                    prop_assert_eq!(good, health.standing == Standing::Healthy);
                    changes.push(now);
                }
            }
            for window in changes.windows(MOST_AN_HOUR + 1) {
                prop_assert!(window[MOST_AN_HOUR].duration_since(window[0]) >= HOUR, "{window:?}");
            }
        }
    }
}
