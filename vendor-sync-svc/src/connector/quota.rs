//! How fast a vendor may be asked. Pure: time is a parameter, [`super::call`] waits and keeps.
//!
//! A window holds in any stretch of its length, not from one full minute to the next: begun requests are logged. Where
//! accounts share a quota, room goes to whoever had least of it among those who ask: one who asks alone may have it all,
//! and gives way as soon as another asks. A day's quota can't be given back once it is used, so what others have not used
//! of their shares is lent as the day goes by, and somebody who was never seen has a share too.
//!
//! Guarantees: no window and no day holds more than its quota; whoever keeps asking gets at least its share.

use std::{
    collections::{BTreeMap, VecDeque},
    time::Duration,
};

use jiff::{SignedDuration, Timestamp, civil::Date, tz::TimeZone};

use super::{
    judge::{until_midnight, zone},
    read::Reader,
};

/// How long somebody who was refused is waited for, beyond the window.
const PATIENCE: Duration = Duration::from_secs(2);
/// How long before somebody who may borrow no more of a day's quota asks again, at least.
const BORROW_AGAIN: Duration = Duration::from_secs(60);
const MOST_REQUESTS: u64 = 100_000;
const MOST_REQUESTS_A_DAY: u64 = 10_000_000;

/// One declared quota.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Quota {
    pub(crate) scope: Scope,
    pub(crate) requests: u64,
    pub(crate) period: Period,
}

/// Whose requests count together.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Scope {
    Account,
    /// All accounts of the application.
    Application,
}

/// Over which time.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Period {
    Window(Duration),
    /// From midnight to midnight there.
    Day(TimeZone),
}

impl Quota {
    pub(super) fn read(mut reader: Reader<'_>) -> Option<Self> {
        let scopes = [("account", Scope::Account), ("application", Scope::Application)];
        let scope = reader.choice("scope", &scopes).unwrap_or(Scope::Account);
        let daily = reader.flag("daily");
        if daily == reader.has("window_seconds") {
            reader.fault("window_seconds", "say this or daily = true, one of them");
        }
        if !reader.has("requests") {
            reader.fault("requests", "is missing");
        }
        let requests = reader.number("requests", 1..=if daily { MOST_REQUESTS_A_DAY } else { MOST_REQUESTS });
        let seconds = reader.number("window_seconds", 1..=86_400);
        let zone = zone(&mut reader);
        reader.end();
        let period = if daily { Period::Day(zone) } else { Period::Window(Duration::from_secs(seconds?)) };
        Some(Self { scope, requests: requests?, period })
    }
}

/// The requests of one quota within its window, by account.
#[derive(Debug, Default)]
pub(crate) struct Window {
    /// Begun requests, the oldest first.
    begun: VecDeque<(Timestamp, Box<str>)>,
    accounts: BTreeMap<Box<str>, Standing>,
}

#[derive(Debug, Default)]
struct Standing {
    used: u64,
    /// When it last began one.
    served: Option<Timestamp>,
    /// When it last asked in vain.
    refused: Option<Timestamp>,
}

impl Window {
    /// Lets one request of `account` begin now, or says when to ask again.
    ///
    /// # Errors
    /// How long to wait.
    pub(crate) fn begin(
        &mut self,
        account: &str,
        requests: u64,
        window: Duration,
        now: Timestamp,
    ) -> Result<(), Duration> {
        self.forget(window, now);
        let total = u64::try_from(self.begun.len()).unwrap_or(u64::MAX);
        let room = requests.saturating_sub(total);
        let before_us = self.kept_for_others(account, requests, window, now);
        let standing = self.accounts.entry(account.into()).or_default();
        if before_us >= room {
            standing.refused = Some(now);
            let frees = self.begun.front().filter(|_| room == 0).map(|(begun, _)| passed(now, *begun));
            let turn = window / u32::try_from(requests.max(1)).unwrap_or(u32::MAX);
            return Err(frees.map_or(turn, |passed| window.saturating_sub(passed)).max(Duration::from_millis(1)));
        }
        standing.used += 1;
        standing.served = Some(now);
        self.begun.push_back((now, account.into()));
        Ok(())
    }

    /// The last request of `account` was not sent after all.
    pub(crate) fn take_back(&mut self, account: &str) {
        if let Some(at) = self.begun.iter().rposition(|(_, other)| **other == *account) {
            self.begun.remove(at);
            if let Some(standing) = self.accounts.get_mut(account) {
                standing.used -= 1;
            }
        }
    }

    /// Room that is kept for others who asked in vain lately and had less, or as much and longer ago: one request for who
    /// still waits, and from who has had its share already what each lacks of its own.
    fn kept_for_others(&self, account: &str, requests: u64, window: Duration, now: Timestamp) -> u64 {
        let own = self.accounts.get(account).map_or((0, None), |standing| (standing.used, standing.served));
        let contends = |standing: &&Standing| standing.refused.is_some_and(|at| passed(now, at) <= window + PATIENCE);
        let others = self.accounts.iter().filter(|(name, _)| ***name != *account).map(|(_, standing)| standing);
        let others: Vec<&Standing> = others.filter(contends).collect();
        let contenders = u64::try_from(others.len()).unwrap_or(u64::MAX).saturating_add(1);
        // What doesn't divide is theirs: they had less.
        let (share, theirs) = ((requests / contenders).max(1), requests.div_ceil(contenders));
        let before_us = others.into_iter().filter(|other| (other.used, other.served) < own);
        let kept = |other: &Standing| {
            let waits = u64::from(other.refused > other.served);
            if own.0 < share { waits } else { theirs.saturating_sub(other.used).max(waits) }
        };
        before_us.map(kept).sum()
    }

    /// Takes out what is older than the window, and who neither used nor asked for anything lately.
    fn forget(&mut self, window: Duration, now: Timestamp) {
        while let Some((begun, account)) = self.begun.front() {
            if passed(now, *begun) < window {
                break;
            }
            if let Some(standing) = self.accounts.get_mut(account) {
                standing.used -= 1;
            }
            self.begun.pop_front();
        }
        self.accounts.retain(|_, standing| {
            let waits = standing.refused.is_some_and(|refused| passed(now, refused) <= window + PATIENCE);
            // Who was served lately is remembered, so that it isn't taken for somebody who waits as long.
            let lately = standing.served.is_some_and(|served| passed(now, served) <= 2 * window + PATIENCE);
            lately || waits
        });
    }

    /// Whether nobody has anything in it.
    pub(crate) fn is_idle(&self, window: Duration, now: Timestamp) -> bool {
        let recent = self.begun.back().is_some_and(|(begun, _)| passed(now, *begun) < window);
        let waiting = self.accounts.values().filter_map(|standing| standing.refused);
        !recent && waiting.into_iter().all(|refused| passed(now, refused) > window + PATIENCE)
    }
}

/// What was used of a day's quota, by account.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Day {
    pub(crate) date: Date,
    pub(crate) used: BTreeMap<Box<str>, u64>,
}

impl Day {
    /// The day that it is in `zone`, with nothing used.
    pub(crate) fn of(now: Timestamp, zone: &TimeZone) -> Self {
        Self { date: now.to_zoned(zone.clone()).date(), used: BTreeMap::new() }
    }

    /// Lets one request of `account` begin now, or says when to ask again.
    ///
    /// # Errors
    /// How long to wait: until midnight where nothing is left.
    pub(crate) fn begin(
        &mut self,
        account: &str,
        quota: u64,
        shared: bool,
        now: Timestamp,
        zone: &TimeZone,
    ) -> Result<(), Duration> {
        let today = Self::of(now, zone);
        if today.date != self.date {
            *self = today;
        }
        let midnight = until_midnight(now, zone);
        if self.used.values().sum::<u64>() >= quota {
            return Err(midnight);
        }
        let mine = self.used.get(account).copied().unwrap_or(0);
        if shared && mine >= self.entitled(account, quota, midnight) {
            return Err(midnight.min(BORROW_AGAIN));
        }
        *self.used.entry(account.into()).or_default() += 1;
        Ok(())
    }

    /// The last request of `account` was not sent after all.
    pub(crate) fn take_back(&mut self, account: &str) {
        if let Some(used) = self.used.get_mut(account) {
            *used = used.saturating_sub(1);
        }
    }

    /// What `account` may have used by now: its share, and of what others left as much as the day is old.
    fn entitled(&self, account: &str, quota: u64, midnight: Duration) -> u64 {
        let others = self.used.iter().filter(|(name, _)| ***name != *account).map(|(_, used)| *used);
        let others: Vec<u64> = others.collect();
        // We, the others, and somebody who was never seen.
        let share = (quota / (u64::try_from(others.len()).unwrap_or(u64::MAX).saturating_add(2))).max(1);
        let left: u64 = others.iter().map(|used| share.saturating_sub(*used)).sum::<u64>() + share;
        let borrowed: u64 = others.iter().map(|used| used.saturating_sub(share)).sum();
        let day = 24 * 60 * 60;
        let old = day - midnight.as_secs().min(day);
        share + (left * old / day).saturating_sub(borrowed)
    }
}

fn passed(now: Timestamp, then: Timestamp) -> Duration {
    Duration::try_from(now.duration_since(then).max(SignedDuration::ZERO)).unwrap_or(Duration::ZERO)
}

#[cfg(test)]
mod tests {
    use chassis::testing::noon;
    use proptest::prelude::*;

    use super::*;

    const WINDOW: Duration = Duration::from_secs(1);

    fn later(milliseconds: i64) -> Timestamp {
        noon() + SignedDuration::from_millis(milliseconds)
    }

    #[test]
    fn one_who_asks_alone_has_it_all_and_gives_way_when_another_asks() {
        let mut window = Window::default();
        for _ in 0..4 {
            assert_eq!(window.begin("loud", 4, WINDOW, noon()), Ok(()));
        }
        assert_eq!(window.begin("quiet", 4, WINDOW, later(10)), Err(Duration::from_millis(990)));
        assert!(window.begin("loud", 4, WINDOW, later(20)).is_err());
        // The window is free again: the loud one asks first, and last.
        assert_eq!(window.begin("loud", 4, WINDOW, later(1_000)), Ok(()), "there is room for both");
        assert_eq!(window.begin("loud", 4, WINDOW, later(1_000)), Ok(()));
        assert!(window.begin("loud", 4, WINDOW, later(1_000)).is_err(), "the other half is the quiet one's");
        for _ in 0..2 {
            assert_eq!(window.begin("quiet", 4, WINDOW, later(1_001)), Ok(()));
        }
    }

    #[test]
    fn who_goes_away_is_not_waited_for() {
        let mut window = Window::default();
        assert_eq!(window.begin("a", 1, WINDOW, noon()), Ok(()));
        assert!(window.begin("b", 1, WINDOW, later(1)).is_err());
        assert!(window.begin("a", 1, WINDOW, later(1_001)).is_err(), "b waits and had less");
        assert_eq!(window.begin("a", 1, WINDOW, later(3_100)), Ok(()));
        assert!(window.is_idle(WINDOW, later(60_000)));
    }

    #[test]
    fn a_day_begins_at_its_own_midnight_and_what_is_used_up_waits_for_it() {
        let zone = TimeZone::get("America/New_York").expect("a zone");
        let mut day = Day::of(noon(), &zone);
        assert_eq!(day.begin("a", 1, false, noon(), &zone), Ok(()));
        let wait = day.begin("a", 1, false, noon(), &zone).expect_err("used up");
        assert_eq!(wait, until_midnight(noon(), &zone));
        let tomorrow = noon() + SignedDuration::try_from(wait).expect("less than a day");
        assert_eq!(day.begin("a", 1, false, tomorrow, &zone), Ok(()));
    }

    #[test]
    fn somebody_who_comes_late_finds_something_left_of_the_day() {
        let mut day = Day::of(noon(), &TimeZone::UTC);
        while day.begin("loud", 10_000, true, noon(), &TimeZone::UTC).is_ok() {}
        assert_eq!(day.used["loud"], 7_500, "its half, and at noon half of what is left");
        let late = (0..10_000).take_while(|_| day.begin("late", 10_000, true, noon(), &TimeZone::UTC).is_ok()).count();
        assert!(late >= 2_400, "{late}");
    }

    proptest! {
        /// Whoever keeps asking gets its share of every window, and no window holds more than the quota.
        #[test]
        fn no_tenant_takes_more_than_its_share_while_others_ask(
            requests in 2_u64..12,
            tenants in 2_u64..6,
            order in proptest::collection::vec(0_u64..1_000, 400..800),
        ) {
            let mut window = Window::default();
            let (mut begun, mut served) = (Vec::new(), BTreeMap::<u64, u64>::new());
            for (step, pick) in order.iter().enumerate() {
                let now = later(i64::try_from(step).expect("few") * 20);
                // Tenant 0 asks ten times as often as the others, who ask in any order, but each of them always.
                let asks = (0..10).map(|_| 0).chain((1..tenants).map(|tenant| 1 + (tenant + pick) % (tenants - 1)));
                for tenant in asks {
                    if window.begin(&tenant.to_string(), requests, WINDOW, now).is_ok() {
                        begun.push(now);
                        *served.entry(tenant).or_default() += 1;
                    }
                }
            }
            for (index, first) in begun.iter().enumerate() {
                let within = begun[index..].iter().filter(|at| passed(**at, *first) < WINDOW).count();
                prop_assert!(within <= usize::try_from(requests).expect("few"));
            }
            let windows = u64::try_from(order.len()).expect("few") / 50;
            let share = requests * windows / tenants;
            let loud = served.get(&0).copied().unwrap_or(0);
            // The first window is its alone, and what doesn't divide may be its.
            prop_assert!(loud <= share + requests + windows, "{loud} of {share}: {served:?}");
        }

        #[test]
        fn a_day_never_holds_more_than_its_quota(quota in 1_u64..50, asks in proptest::collection::vec((0_u8..4, 0_i64..86_400), 0..300)) {
            let mut asks = asks;
            asks.sort_by_key(|(_, at)| *at);
            let start = "2026-05-01T00:00:00Z".parse::<Timestamp>().expect("a time");
            let mut day = Day::of(start, &TimeZone::UTC);
            for (tenant, at) in asks {
                let _refused = day.begin(&tenant.to_string(), quota, true, start + SignedDuration::from_secs(at), &TimeZone::UTC);
            }
            prop_assert!(day.used.values().sum::<u64>() <= quota);
        }
    }
}
