//! How fast an organization may publish. Pure: the time is given.
//!
//! The generic cell rate algorithm (ITU-T I.371): of each organization one time is kept, until when what it published
//! would last if it had come evenly. An event moves that time on by its share; it may run ahead of now by the burst.
//!
//! Guarantee: within any time `t` at most `burst + t * per_second` events of an organization are taken. A clock that
//! steps back neither opens the limit nor shuts it for longer than a burst lasts.

use std::{
    collections::HashMap,
    sync::{Mutex, PoisonError},
    time::Duration,
};

use chassis::{
    error::{Error, Result},
    id::OrganizationId,
};
use jiff::Timestamp;

/// Organizations that are kept in mind: some 10 MB.
const ORGANIZATIONS_MAX: usize = 65_536;
/// Nobody is told to come back sooner: to be refused costs us something too.
const RETRY_MIN: Duration = Duration::from_millis(100);
/// Nanoseconds.
const SECOND: u64 = 1_000_000_000;

/// The limits of all organizations, each its own, all of the same size.
#[derive(Debug)]
pub(crate) struct Limits {
    /// None where there is no limit.
    pace: Option<Pace>,
    /// Until when what an organization published would last.
    lasts: Mutex<HashMap<OrganizationId, i128>>,
}

impl Limits {
    /// `per_second` events and at most `burst` at once, which is at least 1; `per_second` 0 means no limit.
    pub(crate) fn new(per_second: u32, burst: u32) -> Self {
        Self { pace: (per_second > 0).then(|| Pace::new(per_second, burst)), lasts: Mutex::default() }
    }

    /// Counts an event, unless its organization is over its limit.
    ///
    /// # Errors
    /// `Error::Exhausted` with the time until there is room.
    pub(crate) fn admit(&self, organization: &OrganizationId, now: Timestamp) -> Result<()> {
        let Some(pace) = &self.pace else { return Ok(()) };
        let now = now.as_nanosecond();
        let mut lasts = self.lasts.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(until) = lasts.get_mut(organization) {
            return pace.take(until, now).map_err(|wait| pace.refusal(organization, wait));
        }
        make_room(&mut lasts, ORGANIZATIONS_MAX, now);
        lasts.insert(organization.clone(), now + pace.share);
        Ok(())
    }
}

/// At the bound, forgets the half that published least, and whoever is even: they get their burst anew.
fn make_room(lasts: &mut HashMap<OrganizationId, i128>, most: usize, now: i128) {
    if lasts.len() < most {
        return;
    }
    let mut untils: Vec<i128> = lasts.values().copied().collect();
    let middle = untils.len() / 2;
    let median = *untils.select_nth_unstable(middle).1;
    lasts.retain(|_, until| *until > median.max(now));
}

/// In nanoseconds.
#[derive(Clone, Copy, Debug)]
struct Pace {
    /// What one event lasts.
    share: i128,
    /// What a burst lasts.
    burst: i128,
}

impl Pace {
    fn new(per_second: u32, burst: u32) -> Self {
        // Rounded up: rather a little less than what is allowed.
        let share = i128::from(SECOND.div_ceil(u64::from(per_second)));
        Self { share, burst: share * i128::from(burst) }
    }

    /// Counts one event, or says how long until there is room for it.
    fn take(self, until: &mut i128, now: i128) -> Result<(), i128> {
        // Later than a whole burst it is only where the clock stepped back.
        *until = (*until).clamp(now, now + self.burst);
        let over = *until + self.share - (now + self.burst);
        if over > 0 {
            return Err(over);
        }
        *until += self.share;
        Ok(())
    }

    fn refusal(self, organization: &OrganizationId, wait: i128) -> Error {
        let wait = Duration::from_nanos(u64::try_from(wait).unwrap_or(u64::MAX)).max(RETRY_MIN);
        let millis = wait.as_micros().div_ceil(1_000);
        Error::Exhausted {
            reason: format!("organization {organization} publishes faster than it may: try again in {millis} ms"),
            retry_after: wait,
        }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn organization(number: usize) -> OrganizationId {
        OrganizationId::parse(&format!("org-{number}")).unwrap()
    }

    fn at(nanos: i128) -> Timestamp {
        Timestamp::from_nanosecond(nanos).unwrap()
    }

    const SECOND: i128 = super::SECOND as i128;

    proptest! {
        #[test]
        fn any_time_holds_at_most_its_rate_and_one_burst(
            per_second in 1u32..20_000, burst in 1u32..50, gaps in prop::collection::vec(0i128..2_000_000, 1..300),
        ) {
            let pace = Pace::new(per_second, burst);
            let (mut now, mut until, mut taken) = (0, 0, Vec::new());
            for gap in gaps {
                now += gap;
                if pace.take(&mut until, now).is_ok() {
                    taken.push(now);
                }
            }
            for (first, start) in taken.iter().enumerate() {
                for (last, end) in taken.iter().enumerate().skip(first) {
                    let count = (last - first + 1) as i128;
                    let room = i128::from(burst) * SECOND + (end - start) * i128::from(per_second);
                    prop_assert!(count * SECOND <= room, "{count} from {start} to {end}");
                }
            }
        }

        #[test]
        fn waiting_as_told_is_enough_and_not_longer_than_needed(
            per_second in 1u32..20_000, burst in 1u32..50, gaps in prop::collection::vec(0i128..200_000, 1..100),
        ) {
            let pace = Pace::new(per_second, burst);
            let (mut now, mut until) = (0, 0);
            for gap in gaps {
                now += gap;
                if let Err(wait) = pace.take(&mut until, now) {
                    prop_assert!(pace.take(&mut until, now + wait - 1).is_err());
                    now += wait;
                    prop_assert!(pace.take(&mut until, now).is_ok());
                }
            }
        }

        #[test]
        fn whoever_keeps_to_the_rate_is_never_refused(
            per_second in 1u32..20_000, burst in 1u32..50, more in prop::collection::vec(0i128..2_000_000, 1..100),
        ) {
            let pace = Pace::new(per_second, burst);
            let (mut now, mut until) = (0, 0);
            for more in more {
                prop_assert!(pace.take(&mut until, now).is_ok());
                now += pace.share + more;
            }
        }

        #[test]
        fn a_clock_that_steps_back_neither_opens_the_limit_nor_shuts_it(
            per_second in 1u32..20_000, burst in 1u32..50, step in 0i128..100 * SECOND,
        ) {
            let pace = Pace::new(per_second, burst);
            let (mut now, mut until) = (0, 0);
            while pace.take(&mut until, now).is_ok() {}
            now -= step;
            let wait = pace.take(&mut until, now).expect_err("the step gives no room");
            prop_assert!(wait <= pace.share);
            prop_assert!(pace.take(&mut until, now + wait).is_ok());
        }

        #[test]
        fn what_is_kept_in_mind_is_bounded_and_the_loudest_stay(most in 2usize..40, loud in prop::collection::vec(0i128..1_000, 0..200)) {
            let mut lasts = HashMap::new();
            for (number, until) in loud.into_iter().enumerate() {
                let loudest = lasts.iter().max_by_key(|(_, until)| **until).map(|(id, until): (&OrganizationId, &i128)| (id.clone(), *until));
                make_room(&mut lasts, most, 500);
                prop_assert!(lasts.len() < most);
                if let Some((id, until)) = loudest {
                    let were_alike = lasts.is_empty();
                    prop_assert!(lasts.contains_key(&id) || were_alike || until <= 500);
                }
                lasts.insert(organization(number), until);
            }
        }
    }

    #[test]
    fn each_organization_has_a_limit_of_its_own() {
        let limits = Limits::new(10, 3);
        let (loud, quiet) = (organization(1), organization(2));
        for _ in 0..3 {
            limits.admit(&loud, at(0)).unwrap();
        }
        let Err(Error::Exhausted { retry_after, .. }) = limits.admit(&loud, at(0)) else {
            panic!("the fourth at once")
        };
        assert_eq!(retry_after, Duration::from_millis(100));
        limits.admit(&quiet, at(0)).unwrap();
        limits.admit(&loud, at(100_000_000)).unwrap();
        assert!(limits.admit(&loud, at(100_000_000)).is_err());
    }

    #[test]
    fn zero_is_no_limit() {
        let limits = Limits::new(0, 0);
        for _ in 0..10_000 {
            limits.admit(&organization(1), at(0)).unwrap();
        }
        assert!(limits.lasts.lock().unwrap().is_empty());
    }
}
