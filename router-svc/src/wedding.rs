//! What the router must know of a wedding, and how a change of a row teaches it. Pure; the store is elsewhere.
//!
//! Guarantee: a wedding without a time is at noon, one without a zone in its organization's, and a local time that a
//! change of clocks skips or repeats is still one instant (the later offset where it is skipped, the earlier where it
//! comes twice: RFC 5545, 3.3.5).

use std::collections::{BTreeMap, BTreeSet};

use chassis::error::{Error, Result};
use jiff::{
    Timestamp,
    civil::{Date, DateTime, Time},
    tz::TimeZone,
};
use serde::{Deserialize, Serialize};

use crate::{
    event::{Metadata, Operation, check_text},
    facts::{Facts, is_id},
    json::Record,
};

/// Most suppliers that are kept of one wedding.
pub(crate) const SUPPLIER_LIMIT: usize = 200;

/// What is known of a wedding. Ids that aren't known are empty.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Wedding {
    pub(crate) id: String,
    pub(crate) date: Option<Date>,
    /// Local time of the ceremony; none stands for noon.
    pub(crate) time: Option<Time>,
    /// IANA name of the venue's zone; empty stands for the organization's.
    pub(crate) zone: String,
    /// Derived from the three above when they were learnt.
    pub(crate) ceremony_at: Option<Timestamp>,
    pub(crate) venue_id: String,
    pub(crate) couple_id: String,
    /// From `wedding_details.vendor_ids` or `UpsertWedding`.
    pub(crate) listed: BTreeSet<String>,
    /// From `wedding_vendors`.
    pub(crate) joined: BTreeSet<String>,
    /// The columns of `SEEN` as text, as they last came: stands in for an old record that doesn't hold them.
    pub(crate) seen: BTreeMap<String, String>,
}

/// Longest column that is remembered, in bytes; a longer one counts as changed whenever it comes.
const SEEN_LIMIT: usize = 1_024;

/// The columns whose change has consequences.
pub(crate) const SEEN: [&str; 8] = [
    "wedding_date",
    "ceremony_time",
    "setup_time",
    "reception_time",
    "time_zone",
    "venue_id",
    "venue_name",
    "guest_count",
];

/// A ceremony as instants.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Ceremony {
    pub(crate) at: Timestamp,
    /// End of its local day: until then the wedding is under way.
    pub(crate) ends: Timestamp,
}

/// What a change of a row did to what is known.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Learnt {
    /// This is now known.
    Known(Wedding),
    /// The wedding of this id is gone.
    Gone(String),
}

impl Wedding {
    /// What `UpsertWedding` says; empty texts are none.
    ///
    /// # Errors
    /// `Error::Invalid` naming the field that can't be read.
    pub(crate) fn parse(id: &str, date: &str, time: &str, zone: &str, default: &TimeZone) -> Result<Self> {
        check_text("id", id)?;
        if id.is_empty() {
            return Err(Error::invalid("id", "must not be empty"));
        }
        let day = given(date, parse_date).ok_or_else(|| Error::invalid("wedding_date", "must be YYYY-MM-DD"))?;
        let clock =
            given(time, parse_time).ok_or_else(|| Error::invalid("ceremony_time", "must be HH:MM or HH:MM:SS"))?;
        let named = given(zone, parse_zone);
        named.ok_or_else(|| Error::invalid("time_zone", "must be an IANA name: `Europe/London`"))?;
        let mut wedding = Self { id: id.to_owned(), date: day, time: clock, zone: zone.to_owned(), ..Self::default() };
        for (column, text) in [("wedding_date", date), ("ceremony_time", time), ("time_zone", zone)] {
            wedding.see(column, Some(text.to_owned()));
        }
        wedding.settle(default);
        Ok(wedding)
    }

    /// The suppliers of the wedding, each once, in order.
    pub(crate) fn supplier_ids(&self) -> impl Iterator<Item = &str> {
        self.listed.union(&self.joined).map(String::as_str)
    }

    /// Whether an event with this metadata may be about it.
    pub(crate) fn concerns(&self, metadata: &Metadata) -> bool {
        metadata.wedding_id.is_empty() || metadata.wedding_id == self.id
    }

    /// When it is; none without a date.
    pub(crate) fn ceremony(&self, default: &TimeZone) -> Option<Ceremony> {
        ceremony(self.date?, self.time, &self.zone(default))
    }

    fn zone(&self, default: &TimeZone) -> TimeZone {
        parse_zone(&self.zone).unwrap_or_else(|| default.clone())
    }

    fn see(&mut self, column: &str, text: Option<String>) {
        match text.filter(|text| (1..=SEEN_LIMIT).contains(&text.len())) {
            Some(text) => self.seen.insert(column.to_owned(), text),
            None => self.seen.remove(column),
        };
    }

    fn settle(&mut self, default: &TimeZone) {
        self.ceremony_at = self.ceremony(default).map(|ceremony| ceremony.at);
    }

    /// Reads a row of `wedding_details` over what was known; columns that aren't there stay as they were.
    pub(crate) fn read(row: &Record, known: Option<&Wedding>, default: &TimeZone) -> Self {
        let mut wedding = known.cloned().unwrap_or_default();
        wedding.id = id_in(row, "id").unwrap_or(wedding.id);
        if row.holds("time_zone") {
            wedding.zone = row.text("time_zone").filter(|name| parse_zone(name).is_some()).unwrap_or_default();
        }
        if row.holds("wedding_date") {
            wedding.date = row.text("wedding_date").and_then(|text| parse_date(&text));
        }
        if row.holds("ceremony_time") {
            let zone = wedding.zone(default);
            wedding.time = row.text("ceremony_time").and_then(|text| parse_local_time(&text, &zone));
        }
        for (column, field) in [("venue_id", &mut wedding.venue_id), ("couple_id", &mut wedding.couple_id)] {
            if row.holds(column) {
                *field = id_in(row, column).unwrap_or_default();
            }
        }
        for column in SEEN.into_iter().filter(|column| row.holds(column)) {
            wedding.see(column, row.text(column));
        }
        if row.holds("vendor_ids") {
            wedding.listed = row.list("vendor_ids").into_iter().filter(|id| is_id(id)).take(SUPPLIER_LIMIT).collect();
        }
        wedding.settle(default);
        wedding
    }
}

/// A change that teaches about a wedding. It is applied to what is known when it is stored, so that changes that are
/// under way together don't undo each other.
#[derive(Debug)]
pub(crate) struct Lesson {
    pub(crate) wedding_id: String,
    facts: Facts,
    /// The organization's.
    zone: TimeZone,
}

impl Lesson {
    /// What an event's facts teach; none if they aren't a wedding's row.
    pub(crate) fn of(facts: Facts, zone: TimeZone) -> Option<Self> {
        let wedding_id = match learn(&facts, None, &zone)? {
            Learnt::Known(wedding) => wedding.id,
            Learnt::Gone(id) => id,
        };
        Some(Self { wedding_id, facts, zone })
    }

    /// What is known after it, where this was known before.
    pub(crate) fn apply(&self, known: Option<&Wedding>) -> Option<Learnt> {
        learn(&self.facts, known, &self.zone)
    }
}

/// What a change teaches about the wedding that is `known`; none if it isn't about one.
pub(crate) fn learn(facts: &Facts, known: Option<&Wedding>, default: &TimeZone) -> Option<Learnt> {
    let operation = facts.operation()?;
    match facts.table_name()? {
        "wedding_details" => {
            let id = id_in(facts.row(), "id")?;
            let known = known.filter(|wedding| wedding.id == id);
            Some(match operation {
                Operation::Delete => Learnt::Gone(id),
                Operation::Insert | Operation::Update => Learnt::Known(Wedding::read(facts.row(), known, default)),
            })
        }
        "wedding_vendors" => learn_membership(facts, known, operation),
        _ => None,
    }
}

fn learn_membership(facts: &Facts, known: Option<&Wedding>, operation: Operation) -> Option<Learnt> {
    let id = id_in(facts.row(), "wedding_id")?;
    let known = known.filter(|wedding| wedding.id == id).cloned();
    let mut wedding = known.unwrap_or_else(|| Wedding { id, ..Wedding::default() });
    if let Some(left) = member(&facts.old) {
        wedding.joined.remove(&left);
    }
    let joins = operation != Operation::Delete && wedding.joined.len() < SUPPLIER_LIMIT;
    wedding.joined.extend(joins.then(|| member(&facts.new)).flatten());
    Some(Learnt::Known(wedding))
}

fn member(row: &Record) -> Option<String> {
    id_in(row, "supplier_id").or_else(|| id_in(row, "vendor_id"))
}

/// An id in a row; none where it is no text that a store takes.
fn id_in(row: &Record, column: &str) -> Option<String> {
    row.text(column).filter(|id| is_id(id))
}

/// The instant of a local date and time (noon where there is none), and the end of that day.
pub(crate) fn ceremony(date: Date, time: Option<Time>, zone: &TimeZone) -> Option<Ceremony> {
    let instant = |local: DateTime| zone.to_timestamp(local).ok();
    let at = instant(date.to_datetime(time.unwrap_or(NOON)))?;
    let ends = date.tomorrow().ok().and_then(|next| instant(next.to_datetime(Time::midnight()))).unwrap_or(at);
    Some(Ceremony { at, ends: ends.max(at) })
}

const NOON: Time = Time::constant(12, 0, 0, 0);

/// A date, or the date that a timestamp begins with.
pub(crate) fn parse_date(text: &str) -> Option<Date> {
    text.get(..10)?.parse().ok().filter(|_| text.len() == 10 || matches!(text.as_bytes()[10], b'T' | b' '))
}

/// `HH:MM`, `HH:MM:SS` with or without a fraction; an offset behind it is not read.
pub(crate) fn parse_time(text: &str) -> Option<Time> {
    let clock = text.split(['+', '-', 'Z', 'z']).next()?;
    if clock.len() < 5 || clock.as_bytes()[2] != b':' {
        return None;
    }
    clock.parse().ok()
}

/// A time of day as a column may hold it: a time, a local timestamp, or an instant, which is then read in the zone.
fn parse_local_time(text: &str, zone: &TimeZone) -> Option<Time> {
    if let Some(time) = parse_time(text) {
        return Some(time);
    }
    if let Ok(instant) = text.parse::<Timestamp>() {
        return Some(zone.to_datetime(instant).time());
    }
    text.parse::<DateTime>().ok().map(DateTime::time)
}

/// A zone by its IANA name.
pub(crate) fn parse_zone(name: &str) -> Option<TimeZone> {
    let allowed = |b: u8| b.is_ascii_alphanumeric() || b"_+-/".contains(&b);
    let well_formed = (1..=64).contains(&name.len()) && name.bytes().all(allowed);
    well_formed.then(|| TimeZone::get(name).ok()).flatten()
}

/// Some(None) for an empty text, None for one that can't be read.
fn given<T>(text: &str, parse: impl Fn(&str) -> Option<T>) -> Option<Option<T>> {
    if text.is_empty() { Some(None) } else { parse(text).map(Some) }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::{event::tests::change, table::Tables};

    fn known(date: &str, time: &str, zone: &str) -> Wedding {
        Wedding::parse("w1", date, time, zone, &TimeZone::UTC).unwrap()
    }

    fn at(date: &str, time: &str, zone: &str) -> String {
        known(date, time, zone).ceremony_at.unwrap().to_string()
    }

    fn learnt(table: &str, operation: Operation, old: &str, new: &str, known: Option<&Wedding>) -> Option<Learnt> {
        learn(&Facts::read(&change(table, operation, old, new), &Tables::built_in()), known, &TimeZone::UTC)
    }

    fn suppliers(learnt: Option<Learnt>) -> Vec<String> {
        let Some(Learnt::Known(wedding)) = learnt else { panic!("nothing learnt") };
        wedding.supplier_ids().map(str::to_owned).collect()
    }

    #[test]
    fn a_ceremony_is_an_instant_of_its_own_zone() {
        assert_eq!(at("2026-06-20", "15:00", "Europe/London"), "2026-06-20T14:00:00Z");
        assert_eq!(at("2026-01-20", "15:00:30", "Europe/London"), "2026-01-20T15:00:30Z");
        assert_eq!(at("2026-06-20", "15:00", "America/New_York"), "2026-06-20T19:00:00Z");
        assert_eq!(at("2026-06-20", "", ""), "2026-06-20T12:00:00Z");
    }

    #[test]
    fn a_time_that_the_clocks_skip_or_repeat_is_still_one_instant() {
        assert_eq!(at("2026-03-29", "01:30", "Europe/London"), "2026-03-29T01:30:00Z");
        assert_eq!(at("2026-10-25", "01:30", "Europe/London"), "2026-10-25T00:30:00Z");
    }

    #[test]
    fn a_day_of_25_hours_ends_after_25_hours() {
        let ceremony = known("2026-10-25", "00:00", "Europe/London").ceremony(&TimeZone::UTC).unwrap();
        assert_eq!(ceremony.ends.duration_since(ceremony.at).as_hours(), 25);
    }

    #[test]
    fn what_can_not_be_read_names_its_field() {
        let field = |date: &str, time: &str, zone: &str| match Wedding::parse("w", date, time, zone, &TimeZone::UTC) {
            Err(Error::Invalid { field, .. }) => field.into_owned(),
            other => panic!("{other:?}"),
        };
        assert_eq!(field("2026-02-30", "", ""), "wedding_date");
        assert_eq!(field("2026-02-20", "25:00", ""), "ceremony_time");
        assert_eq!(field("2026-02-20", "", "Mars/Olympus"), "time_zone");
        assert_eq!(field("2026-02-20", "", "../../etc/passwd"), "time_zone");
    }

    #[test]
    fn times_come_in_every_form_that_a_column_has() {
        let london = parse_zone("Europe/London").unwrap();
        for text in ["15:00", "15:00:00", "15:00:00.000", "15:00:00+01", "2026-06-20T15:00:00", "2026-06-20T14:00:00Z"]
        {
            assert_eq!(parse_local_time(text, &london), Some(Time::constant(15, 0, 0, 0)), "{text}");
        }
        assert_eq!(parse_local_time("3 pm", &london), None);
        assert_eq!(parse_date("2026-06-20T00:00:00+00:00"), parse_date("2026-06-20"));
    }

    #[test]
    fn an_unreadable_zone_in_a_row_falls_back_and_an_absent_column_keeps_what_was_known() {
        let before = known("2026-06-20", "15:00", "Europe/London");
        let row = |text: &str| Record::parse(text.as_bytes()).unwrap();
        let kept = Wedding::read(&row(r#"{"id":"w1","wedding_date":"2026-06-21"}"#), Some(&before), &TimeZone::UTC);
        assert_eq!(kept.ceremony_at.unwrap().to_string(), "2026-06-21T14:00:00Z");
        let lost = Wedding::read(&row(r#"{"id":"w1","time_zone":"nowhere"}"#), Some(&before), &TimeZone::UTC);
        assert_eq!(lost.ceremony_at.unwrap().to_string(), "2026-06-20T15:00:00Z");
    }

    #[test]
    fn suppliers_come_from_both_tables_and_leave_by_the_table_they_came_from() {
        let row = r#"{"id":"w1","vendor_ids":["a","b"]}"#;
        let Some(Learnt::Known(wedding)) = learnt("wedding_details", Operation::Insert, "", row, None) else {
            panic!()
        };
        let joined = r#"{"wedding_id":"w1","vendor_id":"v","supplier_id":"c"}"#;
        let Some(Learnt::Known(wedding)) = learnt("wedding_vendors", Operation::Insert, "", joined, Some(&wedding))
        else {
            panic!()
        };
        assert_eq!(wedding.supplier_ids().collect::<Vec<_>>(), ["a", "b", "c"]);
        let fewer = r#"{"id":"w1","vendor_ids":["b"]}"#;
        assert_eq!(suppliers(learnt("wedding_details", Operation::Update, "", fewer, Some(&wedding))), ["b", "c"]);
        assert_eq!(suppliers(learnt("wedding_vendors", Operation::Delete, joined, "", Some(&wedding))), ["a", "b"]);
    }

    #[test]
    fn a_deleted_wedding_is_gone_and_other_tables_teach_nothing() {
        let gone = learnt("wedding_details", Operation::Delete, r#"{"id":"w1"}"#, "", None);
        assert_eq!(gone, Some(Learnt::Gone("w1".to_owned())));
        assert_eq!(learnt("suppliers", Operation::Insert, "", r#"{"id":"s"}"#, None), None);
    }

    proptest! {
        #[test]
        fn a_ceremony_ends_within_its_day(day in 0i32..20_000, minute in 0i32..1440, zone in prop::sample::select(vec!["UTC", "Europe/London", "Pacific/Apia", "America/Sao_Paulo", "Asia/Kathmandu"])) {
            let date = jiff::civil::date(1990, 1, 1).saturating_add(jiff::Span::new().days(day));
            let time = Time::midnight().wrapping_add(jiff::Span::new().minutes(minute));
            let ceremony = ceremony(date, Some(time), &parse_zone(zone).unwrap()).unwrap();
            let left = ceremony.ends.duration_since(ceremony.at);
            prop_assert!(!left.is_negative() && left.as_hours() <= 48, "{left}");
        }

        #[test]
        fn reading_never_panics(date in "\\PC{0,24}", time in "\\PC{0,24}", zone in "\\PC{0,12}") {
            let _ = (parse_date(&date), parse_local_time(&time, &TimeZone::UTC), parse_zone(&zone));
        }
    }
}
