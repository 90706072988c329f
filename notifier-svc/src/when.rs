//! Local times as instants: quiet hours, digests, wedding days. Pure; the time is a parameter.
//!
//! A local time that a change of clocks skips stands for the instant as much later, and one that comes twice for the
//! first that is still ahead (RFC 5545, 3.3.5).

use jiff::{
    SignedDuration, Timestamp,
    civil::{Date, Time},
    tz::TimeZone,
};
use serde::{Deserialize, Serialize};

/// Until when a wedding goes on, in the morning after its day.
const MORNING_AFTER: Time = Time::constant(6, 0, 0, 0);

/// Hours of the day in which nobody wants to be disturbed; they may go past midnight. From a time until the same time
/// there are none.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Quiet {
    pub(crate) from: Time,
    pub(crate) until: Time,
}

impl Quiet {
    /// When the quiet hours that `now` lies in end; none outside of them.
    pub(crate) fn ends(self, now: Timestamp, zone: &TimeZone) -> Option<Timestamp> {
        let time = now.to_zoned(zone.clone()).time();
        let inside = if self.from <= self.until {
            (self.from..self.until).contains(&time)
        } else {
            time >= self.from || time < self.until
        };
        inside.then(|| next(self.until, now, zone))
    }
}

/// The next instant at which clocks show `time`, later than `now`.
pub(crate) fn next(time: Time, now: Timestamp, zone: &TimeZone) -> Timestamp {
    let today = now.to_zoned(zone.clone()).date();
    let instants = |date: Date| {
        let shown = zone.to_ambiguous_zoned(date.to_datetime(time));
        [shown.clone().compatible(), shown.later()]
    };
    // A zone may skip a whole day, as Samoa did.
    let days = (0..4).filter_map(|days| today.checked_add(SignedDuration::from_hours(24 * days)).ok());
    let ahead = days.flat_map(instants).flatten().map(|shown| shown.timestamp()).filter(|at| *at > now);
    ahead.min().unwrap_or(Timestamp::MAX)
}

/// The next full hour on the clocks of `zone`.
pub(crate) fn next_hour(now: Timestamp, zone: &TimeZone) -> Timestamp {
    let minute = next_minute_zero(now, zone);
    if minute > now { minute } else { now + SignedDuration::from_hours(1) }
}

fn next_minute_zero(now: Timestamp, zone: &TimeZone) -> Timestamp {
    let shown = now.to_zoned(zone.clone());
    let into = i64::from(shown.minute()) * 60 + i64::from(shown.second());
    let whole = Timestamp::from_second(now.as_second()).unwrap_or(now);
    whole.checked_add(SignedDuration::from_secs(3_600 - into)).unwrap_or(Timestamp::MAX)
}

/// Whether it is a wedding's day: from its midnight until six in the morning after, on the venue's clocks.
pub(crate) fn is_wedding_day(date: Date, now: Timestamp, zone: &TimeZone) -> bool {
    let shown = now.to_zoned(zone.clone());
    let after = date.tomorrow().is_ok_and(|after| after == shown.date()) && shown.time() < MORNING_AFTER;
    shown.date() == date || after
}

#[cfg(test)]
mod tests {
    use jiff::civil::time;
    use proptest::prelude::*;

    use super::*;

    fn at(text: &str) -> Timestamp {
        text.parse().unwrap()
    }

    fn zone(name: &str) -> TimeZone {
        TimeZone::get(name).unwrap()
    }

    #[test]
    fn quiet_hours_end_in_the_persons_zone_past_midnight_and_over_changes_of_clocks() {
        let berlin = zone("Europe/Berlin");
        let quiet = Quiet { from: time(22, 0, 0, 0), until: time(7, 0, 0, 0) };
        assert_eq!(quiet.ends(at("2026-05-01T20:30:00Z"), &berlin), Some(at("2026-05-02T05:00:00Z")));
        assert_eq!(quiet.ends(at("2026-05-01T03:00:00Z"), &berlin), Some(at("2026-05-01T05:00:00Z")));
        assert_eq!(quiet.ends(at("2026-05-01T12:00:00Z"), &berlin), None);
        // The night that has 23 hours, and that of 25.
        assert_eq!(quiet.ends(at("2026-03-28T22:00:00Z"), &berlin), Some(at("2026-03-29T05:00:00Z")));
        assert_eq!(quiet.ends(at("2026-10-24T21:00:00Z"), &berlin), Some(at("2026-10-25T06:00:00Z")));
        // 02:30 is skipped in March: as much later. It comes twice in October: the first that is ahead.
        let early = Quiet { from: time(22, 0, 0, 0), until: time(2, 30, 0, 0) };
        assert_eq!(early.ends(at("2026-03-29T00:30:00Z"), &berlin), Some(at("2026-03-29T01:30:00Z")));
        assert_eq!(early.ends(at("2026-10-25T00:10:00Z"), &berlin), Some(at("2026-10-25T00:30:00Z")));
        assert_eq!(early.ends(at("2026-10-25T01:10:00Z"), &berlin), Some(at("2026-10-25T01:30:00Z")));
    }

    #[test]
    fn a_full_hour_is_one_on_the_persons_own_clock() {
        assert_eq!(next_hour(at("2026-05-01T12:10:05Z"), &TimeZone::UTC), at("2026-05-01T13:00:00Z"));
        assert_eq!(next_hour(at("2026-05-01T12:00:00Z"), &TimeZone::UTC), at("2026-05-01T13:00:00Z"));
        assert_eq!(next_hour(at("2026-05-01T12:10:00Z"), &zone("Asia/Kolkata")), at("2026-05-01T12:30:00Z"));
    }

    #[test]
    fn a_wedding_day_is_the_venues_and_ends_by_itself() {
        let (zone, date) = (zone("Pacific/Auckland"), jiff::civil::date(2026, 6, 20));
        let is = |now| is_wedding_day(date, at(now), &zone);
        assert!(!is("2026-06-19T11:59:59Z") && is("2026-06-19T12:00:00Z"));
        assert!(is("2026-06-20T17:59:59Z") && !is("2026-06-20T18:00:00Z"));
    }

    proptest! {
        #[test]
        fn what_is_put_off_comes_within_a_day_and_is_not_quiet_then(
            seconds in 1_770_000_000..1_830_000_000i64,
            from in 0..24i8, until in 0..24i8, minute in 0..60i8,
            name in proptest::sample::select(vec!["Europe/Berlin", "America/New_York", "Asia/Kolkata", "Pacific/Apia", "Australia/Lord_Howe"]),
        ) {
            let (now, zone) = (Timestamp::from_second(seconds).unwrap(), zone(name));
            let quiet = Quiet { from: time(from, 0, 0, 0), until: time(until, minute, 0, 0) };
            if let Some(end) = quiet.ends(now, &zone) {
                prop_assert!(end > now && end <= now + SignedDuration::from_hours(25));
                prop_assert!(from != until || minute != 0);
                // But for nights in which the hour of the end comes twice or is skipped.
                let shown = end.to_zoned(zone.clone());
                prop_assert!(quiet.ends(end, &zone).is_none() || shown.time() != quiet.until);
            }
            let hour = next_hour(now, &zone);
            prop_assert!(hour > now && hour <= now + SignedDuration::from_hours(1));
        }
    }
}
