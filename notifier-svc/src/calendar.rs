//! A wedding as an entry of a calendar (RFC 5545; RFC 5546, PUBLISH), attached to the mail that tells of it. Pure.
//!
//! A ceremony's time is written in UTC where its time zone is known, and else as the time on the spot; without a time the
//! entry is of the whole day. The entry's name stays, and its sequence rises, so that a later mail replaces it.

use jiff::{
    SignedDuration, Timestamp,
    civil::{Date, Time},
    tz::TimeZone,
};
use serde_json::{Value, json};

use crate::{
    event::{Event, plain, text},
    notification::digest,
    variable::Variables,
};

/// Sequences count seconds from here: they have 31 bits.
const SINCE: Timestamp = Timestamp::constant(1_704_067_200, 0);
/// The octets of a line, and the characters of a text.
const LINE: usize = 75;
const TEXT: usize = 1_000;
/// What the attached file is.
pub(crate) const TYPE: &str = "text/calendar; method=PUBLISH; charset=utf-8";

/// What an event says of its entry: its name, of this wedding at this integration, and how late it is.
pub(crate) fn entry(event: &Event) -> Value {
    let integration = text(&event.new, &["integration_id"]).unwrap_or_default();
    let wedding = event.wedding.clone().unwrap_or_default();
    let name = digest(&["calendar", event.organization.as_str(), &integration, &wedding]);
    let sequence = event.at.duration_since(SINCE).max(SignedDuration::ZERO).as_secs().min(i32::MAX.into());
    json!({ "uid": format!("{}@wedsync", hex::encode(name)), "sequence": sequence })
}

/// The entry of these variables, by an organizer's address; none where they hold none, or no date.
pub(crate) fn ics(variables: &Variables, organizer: &str, at: Timestamp) -> Option<String> {
    let known = |name: &str| variables.get(name).and_then(plain);
    let (uid, sequence) = (variables.get("calendar")?["uid"].as_str()?, variables["calendar"]["sequence"].as_i64()?);
    let date = known("wedding_date")?.get(..10)?.parse::<Date>().ok()?;
    let time = known("ceremony_time").and_then(|time| time.parse::<Time>().ok());
    let zone = known("time_zone").and_then(|zone| TimeZone::get(&zone).ok());
    let title = known("client_name").map_or_else(|| "Wedding".to_owned(), |client| format!("Wedding of {client}"));
    let mut lines = vec![
        "BEGIN:VCALENDAR".to_owned(),
        "VERSION:2.0".to_owned(),
        "PRODID:-//WedSync//Notifier//EN".to_owned(),
        "METHOD:PUBLISH".to_owned(),
        "BEGIN:VEVENT".to_owned(),
        format!("UID:{}", escape(uid)),
        format!("SEQUENCE:{sequence}"),
        format!("DTSTAMP:{}", utc(at)),
        format!("ORGANIZER:mailto:{}", escape(organizer)),
        format!("DTSTART{}", start(date, time, zone)),
        format!("SUMMARY:{}", escape(&title)),
    ];
    lines.extend(known("venue_name").map(|venue| format!("LOCATION:{}", escape(&venue))));
    lines.extend(known("summary").map(|summary| format!("DESCRIPTION:{}", escape(&summary))));
    lines.extend(["END:VEVENT".to_owned(), "END:VCALENDAR".to_owned()]);
    Some(lines.iter().map(|line| fold(line)).collect())
}

fn start(date: Date, time: Option<Time>, zone: Option<TimeZone>) -> String {
    let Some(time) = time else { return date.strftime(";VALUE=DATE:%Y%m%d").to_string() };
    let local = date.to_datetime(time);
    match zone.and_then(|zone| local.to_zoned(zone).ok()) {
        Some(zoned) => format!(":{}", utc(zoned.timestamp())),
        None => local.strftime(":%Y%m%dT%H%M%S").to_string(),
    }
}

fn utc(at: Timestamp) -> String {
    at.strftime("%Y%m%dT%H%M%SZ").to_string()
}

/// A text as a value holds it.
fn escape(text: &str) -> String {
    let mut escaped = String::with_capacity(text.len());
    for c in text.chars().take(TEXT) {
        match c {
            '\\' | ';' | ',' => escaped.extend(['\\', c]),
            '\n' => escaped.push_str("\\n"),
            c if c.is_control() => {}
            c => escaped.push(c),
        }
    }
    escaped
}

/// A line with its end, continued on others where it is longer than it may be; no character is split.
fn fold(line: &str) -> String {
    let (mut folded, mut used) = (String::with_capacity(line.len() + 8), 0);
    for c in line.chars() {
        if used + c.len_utf8() > LINE {
            folded.push_str("\r\n ");
            used = 1;
        }
        folded.push(c);
        used += c.len_utf8();
    }
    folded + "\r\n"
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::event::tests::content;

    fn of(mut data: Value) -> Option<String> {
        data["calendar"] = json!({"uid": "u@wedsync", "sequence": 7});
        ics(data.as_object().unwrap(), "us@example.org", Timestamp::UNIX_EPOCH)
    }

    #[test]
    fn a_time_is_right_in_its_zone_on_the_spot_without_one_and_the_whole_day_without_a_time() {
        let start = |data: Value| {
            let ics = of(data).unwrap();
            ics.lines().find(|line| line.starts_with("DTSTART")).unwrap().to_owned()
        };
        let day = "2026-06-20";
        let berlin = json!({"wedding_date": day, "ceremony_time": "15:00", "time_zone": "Europe/Berlin"});
        assert_eq!(start(berlin), "DTSTART:20260620T130000Z");
        let winter = json!({"wedding_date": "2026-12-20", "ceremony_time": "15:00:00", "time_zone": "Europe/Berlin"});
        assert_eq!(start(winter), "DTSTART:20261220T140000Z");
        for zone in [json!(null), json!("Mars/Olympus")] {
            let local = json!({"wedding_date": day, "ceremony_time": "15:00", "time_zone": zone});
            assert_eq!(start(local), "DTSTART:20260620T150000");
        }
        assert_eq!(start(json!({"wedding_date": day, "ceremony_time": null})), "DTSTART;VALUE=DATE:20260620");
        assert_eq!(of(json!({"wedding_date": "soon"})), None);
    }

    #[test]
    fn an_entry_keeps_its_name_and_its_sequence_rises() {
        let event = |integration: &str, second: i64| {
            let mut event = content("integration.behind", json!({"integration_id": integration, "wedding_id": "w1"}));
            event.at = Timestamp::from_second(second).unwrap();
            entry(&event)
        };
        let (first, later, other) = (event("i1", 1_800_000_000), event("i1", 1_800_000_001), event("i2", 0));
        assert_eq!(first["uid"], later["uid"]);
        assert!(first["sequence"].as_i64() < later["sequence"].as_i64());
        assert_ne!(first["uid"], other["uid"]);
        assert_eq!(other["sequence"], 0);
    }

    proptest! {
        #[test]
        fn no_text_adds_a_line_and_no_line_is_too_long(text in any::<String>()) {
            let ics = of(json!({"wedding_date": "2026-06-20", "client_name": text, "venue_name": text, "summary": text})).unwrap();
            prop_assert!(ics.ends_with("END:VCALENDAR\r\n"));
            prop_assert!(ics.split("\r\n").all(|line| line.len() <= LINE));
            let whole = ics.replace("\r\n ", "");
            prop_assert!(whole.split("\r\n").all(|line| !line.contains(['\r', '\n'])));
            let kept = ["BEGIN:", "VERSION:", "PRODID:", "METHOD:", "UID:", "SEQUENCE:", "DTSTAMP:", "ORGANIZER:", "DTSTART", "SUMMARY:", "LOCATION:", "DESCRIPTION:", "END:"];
            prop_assert!(whole.trim_end().split("\r\n").all(|line| kept.iter().any(|name| line.starts_with(name))), "{}", whole);
            prop_assert_eq!(whole.matches("BEGIN:VEVENT").count(), 1 + text.matches("BEGIN:VEVENT").count() * 3);
        }
    }
}
