//! How soon an event must arrive: CRITICAL to LOW, with the rule that said so. Pure.
//!
//! A wedding is *near* from 7 days before its ceremony, and *now* from 24 hours before it (exclusive) until the end of
//! the ceremony's local day. A change of the date itself counts from the nearest of all dates involved: moving
//! tomorrow's wedding to next year is as urgent as moving next year's to tomorrow.
//! Guarantee: what is asked to be LOW is LOW; nearer is never less urgent.

use std::fmt;

use jiff::{SignedDuration, Timestamp, tz::TimeZone};

use crate::{
    event::{Event, Operation, Origin},
    facts::Facts,
    json::Record,
    wedding::{Ceremony, Wedding, ceremony, parse_date, parse_time},
};

const NOW: SignedDuration = SignedDuration::from_hours(24);
const NEAR: SignedDuration = SignedDuration::from_hours(7 * 24);

/// How soon an event must arrive; greater is sooner.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub(crate) enum Priority {
    Low,
    Normal,
    High,
    Critical,
}

impl Priority {
    /// All, most urgent first.
    pub(crate) const ALL: [Self; 4] = [Self::Critical, Self::High, Self::Normal, Self::Low];

    /// Its number on the wire and in stores: 1 for CRITICAL to 4 for LOW.
    pub(crate) fn number(self) -> i32 {
        match self {
            Self::Critical => 1,
            Self::High => 2,
            Self::Normal => 3,
            Self::Low => 4,
        }
    }

    pub(crate) fn from_number(number: i32) -> Option<Self> {
        Self::ALL.into_iter().find(|priority| priority.number() == number)
    }

    pub(crate) fn as_str(self) -> &'static str {
        match self {
            Self::Critical => "critical",
            Self::High => "high",
            Self::Normal => "normal",
            Self::Low => "low",
        }
    }

    pub(crate) fn parse(text: &str) -> Option<Self> {
        Self::ALL.into_iter().find(|priority| priority.as_str() == text)
    }
}

impl fmt::Display for Priority {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

/// How close the wedding is; greater is closer.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord)]
enum Nearness {
    /// Far, past or unknown.
    #[default]
    Far,
    Near,
    Now,
}

/// What the event changes about the wedding, as far as urgency goes.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
struct Changes {
    /// Date, ceremony time, zone or venue.
    ceremony: bool,
    /// Another time of the day: set-up, reception.
    schedule: bool,
    guests: bool,
}

/// All that the rules look at.
#[derive(Clone, Debug)]
struct Circumstances<'a> {
    type_: &'a str,
    lowered: bool,
    origin: Origin,
    changes: Changes,
    /// Says something about the wedding that somebody may have to act on.
    material: bool,
    nearness: Nearness,
}

/// The priority of an event and the rule that gave it. `wedding` is what was known before the event.
pub(crate) fn priority(
    event: &Event,
    facts: &Facts,
    wedding: Option<&Wedding>,
    zone: &TimeZone,
    now: Timestamp,
) -> (Priority, &'static str) {
    let wedding = wedding.filter(|wedding| wedding.concerns(&event.metadata));
    let dates = ceremonies(facts, wedding, zone);
    decide(&Circumstances {
        type_: event.type_.as_str(),
        lowered: event.lowered,
        origin: event.metadata.origin,
        changes: Changes::of(event, facts),
        material: is_material(event, facts),
        nearness: dates.iter().map(|ceremony| nearness(ceremony, now)).max().unwrap_or_default(),
    })
}

fn decide(event: &Circumstances) -> (Priority, &'static str) {
    let Changes { ceremony, schedule, guests } = event.changes;
    if event.lowered {
        (Priority::Low, "its publisher asked for low")
    } else if event.origin == Origin::Import {
        (Priority::Low, "an import")
    } else if is_marketing(event.type_) {
        (Priority::Low, "a marketing trigger")
    } else if event.type_ == "emergency.raised" {
        (Priority::Critical, "an emergency")
    } else if event.nearness == Nearness::Now && (ceremony || schedule || guests) {
        (
            Priority::Critical,
            "a change of date, time, venue or guest count less than 24 hours before the ceremony, or on its day",
        )
    } else if ceremony {
        (Priority::High, "a change of date, ceremony or venue")
    } else if event.type_ == "payment.failed" {
        (Priority::High, "a failed payment")
    } else if event.type_ == "capacity.alert" {
        (Priority::High, "a capacity alert")
    } else if event.nearness >= Nearness::Near && event.material {
        (Priority::High, "within 7 days of the wedding")
    } else {
        (Priority::Normal, "no rule asks for more")
    }
}

fn is_marketing(type_: &str) -> bool {
    ["marketing.", "campaign."].iter().any(|family| type_.starts_with(family))
}

fn nearness(ceremony: &Ceremony, now: Timestamp) -> Nearness {
    let left = ceremony.at.duration_since(now);
    if now >= ceremony.ends {
        Nearness::Far
    } else if left < NOW {
        Nearness::Now
    } else if left <= NEAR {
        Nearness::Near
    } else {
        Nearness::Far
    }
}

/// Every ceremony that the event has to do with: as known, as it was and as it will be.
fn ceremonies(facts: &Facts, known: Option<&Wedding>, zone: &TimeZone) -> Vec<Ceremony> {
    let mut all: Vec<Ceremony> = known.and_then(|wedding| wedding.ceremony(zone)).into_iter().collect();
    if facts.table_name() == Some("wedding_details") {
        for record in [&facts.old, &facts.new] {
            all.extend(Wedding::read(record, known, zone).ceremony(zone));
        }
    } else if facts.operation().is_none() {
        all.extend(announced(&facts.new, known, zone));
    }
    all
}

/// The dates that a domain event names, each with the times it names or that are known.
fn announced(content: &Record, known: Option<&Wedding>, zone: &TimeZone) -> Vec<Ceremony> {
    let changes = content.object("changes").unwrap_or_default();
    let texts = |names: &[&str]| -> Vec<String> {
        names.iter().flat_map(|name| [content.text(name), changes.text(name)]).flatten().collect()
    };
    let mut dates: Vec<_> =
        texts(&["old_date", "new_date", "wedding_date", "date"]).iter().filter_map(|text| parse_date(text)).collect();
    dates.extend(known.and_then(|wedding| wedding.date));
    let mut times: Vec<_> =
        texts(&["old_time", "new_time", "ceremony_time"]).iter().map(|text| parse_time(text)).collect();
    times.push(known.and_then(|wedding| wedding.time));
    let zone = known.and_then(|wedding| crate::wedding::parse_zone(&wedding.zone)).unwrap_or_else(|| zone.clone());
    let days = dates.iter().flat_map(|date| times.iter().map(move |time| (*date, *time)));
    days.filter_map(|(date, time)| ceremony(date, time, &zone)).collect()
}

impl Changes {
    fn of(event: &Event, facts: &Facts) -> Self {
        match facts.operation() {
            Some(Operation::Update | Operation::Delete) if facts.table_name() == Some("wedding_details") => {
                Self::among(|column| facts.changed(column))
            }
            Some(_) => Self::default(),
            None => Self::announced(event.type_.as_str(), &facts.new),
        }
    }

    fn among(changed: impl Fn(&str) -> bool) -> Self {
        let any = |columns: &[&str]| columns.iter().any(|column| changed(column));
        Self {
            ceremony: any(&["wedding_date", "ceremony_time", "time_zone", "venue_id", "venue_name"]),
            schedule: any(&["setup_time", "reception_time"]),
            guests: any(&["guest_count"]),
        }
    }

    /// A domain event says by its type what changed, or lists it in `changes`.
    fn announced(type_: &str, content: &Record) -> Self {
        let changes = content.object("changes").unwrap_or_default();
        let listed = content.list("changes");
        let named = |column: &str| changes.holds(column) || listed.iter().any(|name| name == column);
        let mut found = Self::among(named);
        found.ceremony |=
            type_ == "wedding.date_changed" || (type_ == "timeline.updated" && !is_schedule_only(content));
        found.schedule |= type_ == "timeline.updated";
        found.guests |= type_ == "guest_count.changed";
        found
    }
}

/// A timeline that names set-up or reception and neither ceremony nor venue leaves the ceremony where it is.
fn is_schedule_only(content: &Record) -> bool {
    let holds = |names: &[&str]| names.iter().any(|name| content.holds(name));
    holds(&["setup_time", "reception_time"])
        && !holds(&["ceremony_time", "venue_id", "venue_name", "wedding_date", "changes"])
}

/// An update that changes nothing, a note that something was said, or what nobody acts on is not material.
fn is_material(event: &Event, facts: &Facts) -> bool {
    let silent = ["communication", "contact", "endpoint", "integration", "interaction"];
    let touched = || facts.changed_columns().any(|column| column != "updated_at");
    !facts.is_live_only()
        && !silent.contains(&event.type_.family())
        && (facts.operation() != Some(Operation::Update) || touched())
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::{
        event::tests::{change, content},
        facts::tests::completed,
    };

    const LONDON: &str = "Europe/London";

    fn wedding(date: &str, time: &str) -> Wedding {
        Wedding::parse("w1", date, time, LONDON, &TimeZone::UTC).unwrap()
    }

    fn at(event: Event, known: Option<&Wedding>, now: &str) -> Priority {
        let (event, facts) = completed(event, known);
        priority(&event, &facts, known, &TimeZone::UTC, now.parse().unwrap()).0
    }

    fn update(old: &str, new: &str) -> Event {
        let row = |rest: &str| {
            format!(r#"{{"id":"w1","time_zone":"{LONDON}","wedding_date":"2026-06-20","ceremony_time":"15:00"{rest}}}"#)
        };
        change("wedding_details", Operation::Update, &row(old), &row(new))
    }

    /// 24 hours before 15:00 in London is 14:00 UTC the day before; its day ends at 23:00 UTC.
    #[test]
    fn a_change_is_critical_from_24_hours_before_until_the_day_ends() {
        let guests = || update(r#","guest_count":80"#, r#","guest_count":90"#);
        for (now, expected) in [
            ("2026-06-01T00:00:00Z", Priority::Normal),
            ("2026-06-13T13:59:59Z", Priority::Normal),
            ("2026-06-13T14:00:00Z", Priority::High),
            ("2026-06-19T14:00:00Z", Priority::High),
            ("2026-06-19T14:00:01Z", Priority::Critical),
            ("2026-06-20T22:59:59Z", Priority::Critical),
            ("2026-06-20T23:00:00Z", Priority::Normal),
        ] {
            assert_eq!(at(guests(), None, now), expected, "{now}");
        }
    }

    #[test]
    fn date_ceremony_and_venue_are_high_however_far_and_the_rest_of_the_day_is_not() {
        let far = "2025-01-01T00:00:00Z";
        assert_eq!(at(update("", r#","ceremony_time":"16:00""#), None, far), Priority::High);
        assert_eq!(at(update(r#","venue_id":"a""#, r#","venue_id":"b""#), None, far), Priority::High);
        assert_eq!(at(update(r#","setup_time":"09:00""#, r#","setup_time":"10:00""#), None, far), Priority::Normal);
        assert_eq!(at(content("wedding.date_changed", "{}"), None, far), Priority::High);
        assert_eq!(at(content("timeline.updated", r#"{"setup_time":"10:00"}"#), None, far), Priority::Normal);
        assert_eq!(
            at(content("client.updated", r#"{"changes":{"wedding_date":"2026-01-01"}}"#), None, far),
            Priority::High
        );
    }

    #[test]
    fn moving_a_wedding_counts_from_the_nearer_of_both_dates() {
        let now = "2026-06-19T20:00:00Z";
        let away = update("", r#","wedding_date":"2027-06-20""#);
        let here = change(
            "wedding_details",
            Operation::Update,
            r#"{"id":"w1","wedding_date":"2027-06-20"}"#,
            r#"{"id":"w1","wedding_date":"2026-06-20"}"#,
        );
        assert_eq!(at(away, None, now), Priority::Critical);
        assert_eq!(at(here, None, now), Priority::Critical);
        let told =
            content("wedding.date_changed", r#"{"wedding_id":"w1","old_date":"2026-06-20","new_date":"2027-06-20"}"#);
        assert_eq!(at(told, None, now), Priority::Critical);
        let known = wedding("2026-06-20", "15:00");
        let key_only = change(
            "wedding_details",
            Operation::Update,
            r#"{"id":"w1"}"#,
            r#"{"id":"w1","wedding_date":"2027-06-20"}"#,
        );
        assert_eq!(at(key_only, Some(&known), now), Priority::Critical);
    }

    #[test]
    fn a_cancelled_wedding_is_a_change_of_its_date() {
        let gone = || change("wedding_details", Operation::Delete, r#"{"id":"w1","wedding_date":"2026-06-20"}"#, "");
        assert_eq!(at(gone(), None, "2026-06-20T08:00:00Z"), Priority::Critical);
        assert_eq!(at(gone(), None, "2025-06-20T08:00:00Z"), Priority::High);
    }

    #[test]
    fn within_seven_days_what_is_material_is_high() {
        let (known, near) = (wedding("2026-06-20", "15:00"), "2026-06-16T00:00:00Z");
        assert_eq!(at(content("payment.received", r#"{"wedding_id":"w1"}"#), Some(&known), near), Priority::High);
        assert_eq!(at(content("communication.logged", r#"{"wedding_id":"w1"}"#), Some(&known), near), Priority::Normal);
        assert_eq!(at(update(r#","updated_at":1"#, r#","updated_at":2"#), Some(&known), near), Priority::Normal);
        assert_eq!(at(content("payment.received", "{}"), None, near), Priority::Normal);
    }

    #[test]
    fn emergencies_failed_payments_and_capacity_alerts_have_their_own_rules() {
        let far = "2025-01-01T00:00:00Z";
        assert_eq!(at(content("emergency.raised", "{}"), None, far), Priority::Critical);
        assert_eq!(at(content("payment.failed", "{}"), None, far), Priority::High);
        assert_eq!(at(content("capacity.alert", "{}"), None, far), Priority::High);
        assert_eq!(at(content("campaign.triggered", "{}"), None, far), Priority::Low);
    }

    fn circumstances() -> impl Strategy<Value = Circumstances<'static>> {
        let types = vec![
            "emergency.raised",
            "payment.failed",
            "capacity.alert",
            "client.updated",
            "marketing.sent",
            "a.update",
        ];
        let origins = vec![Origin::Realtime, Origin::Replay, Origin::Test, Origin::Import];
        let nearness = vec![Nearness::Far, Nearness::Near, Nearness::Now];
        let bits = any::<(bool, bool, bool, bool, bool)>();
        let drawn = (prop::sample::select(types), prop::sample::select(origins), prop::sample::select(nearness), bits);
        drawn.prop_map(|(type_, origin, nearness, (lowered, ceremony, schedule, guests, material))| {
            let changes = Changes { ceremony, schedule, guests };
            Circumstances { type_, lowered, origin, changes, material, nearness }
        })
    }

    proptest! {
        #[test]
        fn what_is_asked_to_be_low_is_low_however_near(mut event in circumstances(), import in any::<bool>()) {
            if import { event.origin = Origin::Import } else { event.lowered = true }
            prop_assert_eq!(decide(&event).0, Priority::Low);
        }

        #[test]
        fn nearer_is_never_less_urgent(event in circumstances()) {
            let with = |nearness| decide(&Circumstances { nearness, ..event.clone() }).0;
            prop_assert!(with(Nearness::Far) <= with(Nearness::Near) && with(Nearness::Near) <= with(Nearness::Now));
        }

        #[test]
        fn a_publisher_can_only_lower(event in circumstances()) {
            let with = |lowered| decide(&Circumstances { lowered, ..event.clone() }).0;
            prop_assert!(with(true) <= with(false));
        }

        #[test]
        fn critical_is_an_emergency_or_a_change_that_is_now(event in circumstances()) {
            let Changes { ceremony, schedule, guests } = event.changes;
            let earned = event.type_ == "emergency.raised" || (event.nearness == Nearness::Now && (ceremony || schedule || guests));
            prop_assert!(decide(&event).0 != Priority::Critical || earned);
        }

        #[test]
        fn time_only_brings_a_wedding_nearer_until_it_is_over(early in 0i64..2_000_000, later in 0i64..2_000_000) {
            let ceremony = wedding("2026-06-20", "15:00").ceremony(&TimeZone::UTC).unwrap();
            let before = |seconds: i64| ceremony.ends - SignedDuration::from_secs(1 + seconds);
            let (far, close) = (early.max(later), early.min(later));
            prop_assert!(nearness(&ceremony, before(far)) <= nearness(&ceremony, before(close)));
        }
    }
}
