//! Events of an iCalendar file (RFC 5545), as its bytes come: what an appointment says of when and where. Pure.
//!
//! It holds one event's few properties at a time; [`super::ics_line`] parts and unfolds the lines. A recurring event is no
//! appointment of its own, and is a refusal with that reason; so is a time zone that nobody knows. `VTIMEZONE` is not
//! read: zones go by their names in the time zone database. An instant in UTC is a wedding's day and hour only where the
//! calendar says its zone (`X-WR-TIMEZONE`), as some write all events so.

use std::collections::BTreeMap;

use jiff::{
    Timestamp,
    civil::{Date, DateTime, Time},
    tz::TimeZone,
};
use serde_json::{Value, json};

use super::{
    columns::Item,
    ics_line::{Line, Lines},
    text::Encoding,
};
use crate::record::RecordKind;

/// One event of the file.
#[derive(Debug, PartialEq)]
pub(crate) struct Found {
    /// Where it begins, counted from 1.
    pub(crate) line: u64,
    pub(crate) event: Result<Appointment, String>,
}

/// What an event says.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct Appointment {
    uid: String,
    start: When,
    /// Day, hour and zone of the start where it is; none where it is an instant and nobody says where.
    there: Option<There>,
    end: Option<When>,
    summary: String,
    location: String,
    cancelled: bool,
    pub(crate) changed_at: Option<Timestamp>,
}

/// A day, an instant, or a time on whatever clock hangs there.
#[derive(Clone, Debug, PartialEq)]
enum When {
    Day(Date),
    Instant { at: Timestamp, zone: TimeZone },
    Floating(DateTime),
}

/// A time as the clock shows it there, with the zone where it is said.
#[derive(Clone, Debug, PartialEq)]
struct There {
    date: Date,
    time: Option<Time>,
    zone: Option<String>,
}

/// Reads events from pieces of a file.
#[derive(Debug)]
pub(crate) struct Events {
    lines: Lines,
    encoding: Encoding,
    /// The calendar's own.
    zone: Option<TimeZone>,
    /// Components that are open below the event.
    depth: usize,
    open: Option<(u64, BTreeMap<&'static str, Line>)>,
}

const PROPERTIES: [&str; 10] =
    ["UID", "DTSTART", "DTEND", "SUMMARY", "LOCATION", "STATUS", "LAST-MODIFIED", "RRULE", "RDATE", "RECURRENCE-ID"];

impl Events {
    /// From `line` on, which must not be inside of an event; `zone`: the calendar's.
    pub(crate) fn new(encoding: Encoding, line: u64, zone: Option<TimeZone>) -> Self {
        Self { lines: Lines::new(line), encoding, zone, depth: 0, open: None }
    }

    /// The line that comes next.
    pub(crate) fn line(&self) -> u64 {
        self.lines.number()
    }

    /// Takes bytes until an event is complete: how many, and the event. An empty `input` says that the file is at its end.
    pub(crate) fn next(&mut self, input: &[u8]) -> (usize, Option<Found>) {
        let mut used = 0;
        loop {
            let (taken, line) = self.lines.next(&input[used..], input.is_empty(), self.encoding);
            used += taken;
            match line {
                Some((number, line)) => {
                    if let Some(found) = self.take(number, line) {
                        return (used, Some(found));
                    }
                }
                None if input.is_empty() => return (used, self.cut_off()),
                None => return (used, None),
            }
        }
    }

    fn take(&mut self, number: u64, line: Line) -> Option<Found> {
        let component = line.value.trim().to_ascii_uppercase();
        match (line.name.as_str(), self.open.is_some()) {
            ("BEGIN", false) if component == "VEVENT" => self.open = Some((number, BTreeMap::new())),
            ("BEGIN", true) => self.depth += 1,
            ("END", true) if self.depth > 0 => self.depth -= 1,
            ("END", true) => {
                let (line, properties) = self.open.take()?;
                return Some(Found { line, event: appointment(&properties, self.zone.as_ref()) });
            }
            (name, true) if self.depth == 0 => {
                let known = PROPERTIES.into_iter().find(|property| *property == name);
                let (_, properties) = self.open.as_mut()?;
                if let Some(property) = known {
                    properties.entry(property).or_insert(line);
                }
            }
            _ => {}
        }
        None
    }

    fn cut_off(&mut self) -> Option<Found> {
        let (line, _) = self.open.take()?;
        Some(Found { line, event: Err("has no end: the file is cut off".to_owned()) })
    }
}

/// The zone that a calendar says to be its own before its first component: in what a file begins with.
pub(crate) fn zone_of_calendar(encoding: Encoding, head: &[u8]) -> Option<TimeZone> {
    let (mut lines, mut used) = (Lines::new(1), 0);
    loop {
        let (taken, line) = lines.next(&head[used..], false, encoding);
        used += taken;
        let (_, line) = line?;
        let value = line.value.trim();
        match line.name.as_str() {
            "X-WR-TIMEZONE" => return zone(value).filter(|zone| !is_utc(zone)),
            "BEGIN" if !value.eq_ignore_ascii_case("VCALENDAR") => return None,
            _ => {}
        }
    }
}

fn is_utc(zone: &TimeZone) -> bool {
    zone.iana_name().is_some_and(|name| matches!(name, "UTC" | "Etc/UTC" | "GMT" | "Etc/GMT" | "Zulu" | "Etc/Zulu"))
}

fn appointment(properties: &BTreeMap<&'static str, Line>, calendars: Option<&TimeZone>) -> Result<Appointment, String> {
    if properties.contains_key("RRULE") || properties.contains_key("RDATE") {
        return Err("recurs: only single events are imported".to_owned());
    }
    if properties.contains_key("RECURRENCE-ID") {
        return Err("is an exception of a recurring event: only single events are imported".to_owned());
    }
    let text = |name: &str| properties.get(name).map(Line::text).unwrap_or_default();
    let time = |name: &str| properties.get(name).map(|line| when(line).map_err(|reason| format!("{name}: {reason}")));
    let changed_at = time("LAST-MODIFIED").transpose().ok().flatten().and_then(|when| match when {
        When::Instant { at, .. } => Some(at),
        _ => None,
    });
    let uid = text("UID");
    if uid.is_empty() || uid.chars().count() > 256 {
        return Err("has no UID of at most 256 characters".to_owned());
    }
    let start = time("DTSTART").ok_or("has no DTSTART")??;
    Ok(Appointment {
        uid,
        there: start.there(calendars),
        start,
        end: time("DTEND").transpose()?,
        summary: text("SUMMARY"),
        location: text("LOCATION"),
        cancelled: text("STATUS").eq_ignore_ascii_case("CANCELLED"),
        changed_at,
    })
}

/// A date, or a date and time in UTC, in a zone by its name, or in none.
fn when(line: &Line) -> Result<When, String> {
    let value = line.value.trim();
    let no_date = || format!("{} is no date", value.chars().take(40).collect::<String>());
    if line.parameter("VALUE") == Some("DATE") || value.len() == 8 {
        return Date::strptime("%Y%m%d", value).map(When::Day).map_err(|_| no_date());
    }
    let (digits, utc) = value.strip_suffix('Z').map_or((value, false), |digits| (digits, true));
    let local = DateTime::strptime("%Y%m%dT%H%M%S", digits).map_err(|_| no_date())?;
    let zone = match (utc, line.parameter("TZID")) {
        (true, _) => TimeZone::UTC,
        (false, Some(name)) => zone(name).ok_or_else(|| format!("nobody knows the time zone {name}"))?,
        (false, None) => return Ok(When::Floating(local)),
    };
    let at = zone.to_timestamp(local).map_err(|_| no_date())?;
    Ok(When::Instant { at, zone })
}

/// Some calendars write a path before the zone's name (`/citadel.org/20210210_1/Europe/Berlin`).
fn zone(name: &str) -> Option<TimeZone> {
    let ends = name.match_indices('/').map(|(at, _)| &name[at + 1..]);
    std::iter::once(name).chain(ends).find_map(|name| TimeZone::get(name).ok())
}

impl When {
    /// What a calendar in this zone shows.
    fn there(&self, calendars: Option<&TimeZone>) -> Option<There> {
        let of = |local: DateTime, zone| There { date: local.date(), time: Some(local.time()), zone };
        match self {
            Self::Day(date) => Some(There { date: *date, time: None, zone: None }),
            Self::Floating(local) => Some(of(*local, None)),
            Self::Instant { at, zone } if is_utc(zone) => {
                calendars.map(|zone| of(zone.to_datetime(*at), zone.iana_name().map(str::to_owned)))
            }
            Self::Instant { at, zone } => Some(of(zone.to_datetime(*at), zone.iana_name().map(str::to_owned))),
        }
    }

    fn print(&self) -> String {
        match self {
            Self::Day(date) => date.to_string(),
            Self::Instant { at, .. } => at.to_string(),
            Self::Floating(local) => local.to_string(),
        }
    }
}

impl Appointment {
    /// What it says of a record of this kind.
    ///
    /// # Errors
    /// Why it says nothing of one.
    pub(crate) fn item(&self, kind: RecordKind) -> Result<Item, String> {
        let given: Vec<(&str, Value)> = match kind {
            RecordKind::Client => return Err("a calendar holds weddings or bookings, no clients".to_owned()),
            RecordKind::Wedding if self.cancelled => return Err("is cancelled".to_owned()),
            RecordKind::Wedding => self
                .there
                .as_ref()
                .map(|there| self.wedding(there))
                .ok_or("is in UTC, and its calendar says no time zone")?,
            RecordKind::Booking => self.booking(),
        };
        let filled = given.into_iter().filter(|(_, value)| value.as_str() != Some(""));
        let fields = filled.map(|(name, value)| (name.to_owned(), value)).collect();
        Ok(Item { external_id: self.uid.clone(), fields })
    }

    fn wedding(&self, there: &There) -> Vec<(&'static str, Value)> {
        let mut given = vec![("wedding_date", json!(there.date.to_string())), ("venue_name", json!(self.location))];
        given.extend(there.time.map(|time| ("ceremony_time", json!(time.strftime("%H:%M").to_string()))));
        given.extend(there.zone.as_ref().map(|zone| ("time_zone", json!(zone))));
        given
    }

    fn booking(&self) -> Vec<(&'static str, Value)> {
        let mut given = vec![
            ("title", json!(self.summary)),
            ("location", json!(self.location)),
            ("start", json!(self.start.print())),
            ("status", json!(if self.cancelled { "cancelled" } else { "confirmed" })),
        ];
        given.extend(self.end.as_ref().map(|end| ("end", json!(end.print()))));
        given
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read(text: &str) -> Vec<Found> {
        let zone = zone_of_calendar(Encoding::Utf8, text.as_bytes());
        let (mut events, mut rest, mut found) = (Events::new(Encoding::Utf8, 1, zone), text.as_bytes(), Vec::new());
        while !rest.is_empty() {
            let (used, event) = events.next(rest);
            found.extend(event);
            rest = &rest[used..];
        }
        while let (_, Some(event)) = events.next(&[]) {
            found.push(event);
        }
        found
    }

    fn event(lines: &str) -> String {
        format!("BEGIN:VCALENDAR\r\nBEGIN:VEVENT\r\nUID:u1\r\n{lines}\r\nEND:VEVENT\r\nEND:VCALENDAR\r\n")
    }

    fn item(kind: RecordKind, lines: &str) -> Result<Value, String> {
        let mut found = read(&event(lines));
        let event = found.pop().expect("one event").event?;
        event.item(kind).map(|item| json!(item.fields))
    }

    #[test]
    fn a_time_is_read_in_its_zone_over_the_change_of_clocks() {
        let start = |line: &str| item(RecordKind::Booking, line).expect("an event")["start"].clone();
        assert_eq!(start("DTSTART;TZID=Europe/Berlin:20270327T150000"), "2027-03-27T14:00:00Z");
        assert_eq!(start("DTSTART;TZID=Europe/Berlin:20270328T150000"), "2027-03-28T13:00:00Z");
        assert_eq!(
            start("DTSTART;TZID=\"/citadel.org/2021_1/America/New_York\":20270328T150000"),
            "2027-03-28T19:00:00Z"
        );
        assert_eq!(start("DTSTART:20270328T150000Z"), "2027-03-28T15:00:00Z");
        assert_eq!(start("DTSTART:20270328T150000"), "2027-03-28T15:00:00", "on whatever clock hangs there");
        assert_eq!(start("DTSTART;VALUE=DATE:20270328"), "2027-03-28");
    }

    #[test]
    fn a_wedding_is_its_day_hour_zone_and_venue() {
        let lines = "DTSTART;TZID=Europe/London:20270619T140000\r\nLOCATION:Old Barn\\, Bath\r\nSUMMARY:Ann & Lee";
        let expected = json!({"wedding_date": "2027-06-19", "ceremony_time": "14:00", "time_zone": "Europe/London", "venue_name": "Old Barn, Bath"});
        assert_eq!(item(RecordKind::Wedding, lines), Ok(expected));
        assert!(item(RecordKind::Client, lines).is_err());
    }

    #[test]
    fn a_wedding_in_utc_is_where_its_calendar_is_or_refused() {
        let wedding = |zone: &str, start: &str| {
            let text = event(start).replacen("\r\n", &format!("\r\n{zone}"), 1);
            read(&text).pop().expect("one event").event?.item(RecordKind::Wedding).map(|item| json!(item.fields))
        };
        let evening =
            json!({"wedding_date": "2027-06-19", "ceremony_time": "18:00", "time_zone": "America/Los_Angeles"});
        let of_calendar = wedding("X-WR-TIMEZONE:America/Los_Angeles\r\n", "DTSTART:20270620T010000Z");
        assert_eq!(of_calendar, Ok(evening));
        let own = wedding("X-WR-TIMEZONE:America/Los_Angeles\r\n", "DTSTART;TZID=Europe/London:20270620T010000");
        assert_eq!(own.expect("its own zone")["time_zone"], "Europe/London");
        for zone in ["", "X-WR-TIMEZONE:UTC\r\n", "X-WR-TIMEZONE:Middle Earth\r\n"] {
            let refused = wedding(zone, "DTSTART:20270620T010000Z").expect_err("nobody says where");
            assert!(refused.contains("says no time zone"), "{refused}");
        }
        assert!(wedding("", "DTSTART;VALUE=DATE:20270620").is_ok(), "a day is one anywhere");
    }

    #[test]
    fn an_alarms_own_properties_are_not_the_events() {
        let lines = "DTSTART:20270328T150000Z\r\nBEGIN:VALARM\r\nSUMMARY:alarm\r\nEND:VALARM\r\nSUMMARY:Meeting\r\nSTATUS:CANCELLED";
        let expected = json!({"title": "Meeting", "start": "2027-03-28T15:00:00Z", "status": "cancelled"});
        assert_eq!(item(RecordKind::Booking, lines), Ok(expected));
    }

    #[test]
    fn what_is_no_single_event_is_refused_with_its_line_and_reason() {
        for (lines, reason) in [
            ("DTSTART:20270328T150000Z\r\nRRULE:FREQ=DAILY", "recurs"),
            ("DTSTART:20270328T150000Z\r\nRECURRENCE-ID:20270328T150000Z", "is an exception"),
            ("DTSTART;TZID=Middle Earth:20270328T150000", "nobody knows the time zone Middle Earth"),
            ("DTSTART:tomorrow", "tomorrow is no date"),
            ("SUMMARY:x", "has no DTSTART"),
        ] {
            let refused = item(RecordKind::Booking, lines).expect_err(lines);
            assert!(refused.contains(reason), "{refused}");
        }
        let found = read("BEGIN:VCALENDAR\r\nBEGIN:VEVENT\r\nUID:u2\r\n");
        assert_eq!((found[0].line, found[0].event.is_err()), (2, true), "cut off");
    }
}
