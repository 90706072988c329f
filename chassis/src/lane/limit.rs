//! The rate limit of one lane: at most so many attempts in *any* 60 seconds. Pure.
//!
//! A log of the last attempts' times holds the limit exactly; a token bucket with a burst lets twice as many through in
//! one window. Memory: 8 bytes for each attempt of the limit.

use std::collections::VecDeque;

use jiff::{SignedDuration, Timestamp};

/// The window that the limit counts in.
pub const WINDOW: SignedDuration = SignedDuration::from_secs(60);
/// The same in microseconds.
pub(super) const WINDOW_MICROS: i64 = 60_000_000;

/// The attempts of the last window, oldest first.
#[derive(Clone, Debug)]
pub struct Limit {
    most: usize,
    recent: VecDeque<i64>,
    /// Nothing before this: after an unclean stop the last attempts are not known.
    not_before: Timestamp,
}

impl Limit {
    /// At most `most` in any 60 s; 0 means no limit.
    #[must_use]
    pub fn new(most: u32) -> Self {
        Self { most: most as usize, recent: VecDeque::new(), not_before: Timestamp::MIN }
    }

    /// Takes over another number, keeping what is known of the last window.
    pub fn set(&mut self, most: u32) {
        self.most = most as usize;
        self.trim();
    }

    /// Takes attempts of an earlier process into account, oldest first; `not_before` when some may be missing.
    pub fn restore(&mut self, attempts: impl IntoIterator<Item = i64>, not_before: Timestamp) {
        if self.most > 0 {
            self.recent.extend(attempts);
            self.trim();
            self.not_before = not_before;
        }
    }

    /// When the next attempt may go: `now` or later. `claims` are attempts that were let through and begin later: each may
    /// begin at any time from now on.
    #[must_use]
    pub fn next(&self, now: Timestamp, claims: usize) -> Timestamp {
        if self.most == 0 {
            return now;
        }
        let free = match (self.recent.len() + claims).checked_sub(self.most) {
            None => now,
            Some(over) => {
                self.recent.get(over).map_or(now, |makes_room| crate::clock::from_micros(*makes_room)) + WINDOW
            }
        };
        free.max(now).max(self.not_before)
    }

    /// Counts an attempt. A clock that stepped back doesn't open the limit: times never decrease.
    pub fn count(&mut self, now: Timestamp) {
        if self.most > 0 {
            let at = now.as_microsecond().max(self.recent.back().copied().unwrap_or(i64::MIN));
            self.recent.push_back(at);
            self.trim();
        }
    }

    fn trim(&mut self) {
        while self.recent.len() > self.most {
            self.recent.pop_front();
        }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn at(millis: i64) -> Timestamp {
        Timestamp::from_millisecond(millis).expect("a time in range")
    }

    proptest! {
        /// Tries at random times; whatever was let through, no window of 60 s holds more than the limit.
        #[test]
        fn any_window_holds_at_most_the_limit(most in 1u32..20, gaps in prop::collection::vec(0i64..9_000, 1..300)) {
            let mut limit = Limit::new(most);
            let (mut now, mut passed) = (0, Vec::new());
            for gap in gaps {
                now += gap;
                if limit.next(at(now), 0) <= at(now) {
                    limit.count(at(now));
                    passed.push(now);
                }
            }
            for start in &passed {
                let inside = passed.iter().filter(|time| (*start..*start + 60_000).contains(*time)).count();
                prop_assert!(inside <= most as usize, "{inside} from {start}");
            }
        }

        /// As above, where an attempt may begin long after it was let through.
        #[test]
        fn any_window_holds_at_most_the_limit_however_late_attempts_begin(
            most in 1u32..20, steps in prop::collection::vec((0i64..9_000, any::<bool>()), 1..300),
        ) {
            let mut limit = Limit::new(most);
            let (mut now, mut claims, mut begun) = (0, 0, Vec::new());
            for (gap, begins) in steps {
                now += gap;
                if begins && claims > 0 {
                    claims -= 1;
                    limit.count(at(now));
                    begun.push(now);
                } else if limit.next(at(now), claims) <= at(now) {
                    claims += 1;
                }
                prop_assert!(claims <= most as usize);
            }
            for (first, over) in begun.iter().zip(begun.iter().skip(most as usize)) {
                prop_assert!(over - first >= 60_000, "{begun:?}");
            }
        }

        /// It never holds back more than it must: whoever waits as told goes through.
        #[test]
        fn waiting_as_told_is_enough(most in 1u32..20, tries in 1usize..100) {
            let mut limit = Limit::new(most);
            let mut now = at(0);
            for _ in 0..tries {
                now = limit.next(now, 0);
                prop_assert_eq!(limit.next(now, 0), now);
                limit.count(now);
            }
        }
    }

    #[test]
    fn after_an_unclean_stop_it_waits_until_told() {
        let mut limit = Limit::new(100);
        limit.restore([], at(60_000));
        assert_eq!(limit.next(at(1_000), 0), at(60_000));
    }
}
