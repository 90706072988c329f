//! How a domain event and the table change that says the same recognise each other. Pure.
//!
//! A collapse key is one or more tokens with blanks between: `<route>:<what it is about>:<what it says>`, the latter two
//! hashed. A consumer keeps, per destination, the last token of each `<route>:<about>` with the kind of event (change or
//! domain event) that it acted on; an event is redundant if each of its tokens stands there from the *other* kind, and
//! the pair is then done with. So two changes that say the same (a date moved back and forth) are never taken for one.
//! An empty key never collapses: what can't be recognised is better done twice than lost.
//!
//! A table change carries the whole row. Columns that changed beside a route's facts get a token of their own for
//! systems, so that a domain event seen earlier never hides them.

use serde::Deserialize;
use sha2::{Digest as _, Sha256};

use crate::{
    event::{Event, Metadata, Operation},
    facts::Facts,
    json::Record,
    wedding::{parse_date, parse_time},
};

/// How a route's table change and domain event recognise each other.
#[derive(Clone, Debug, Default, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub(crate) struct Collapse {
    /// What names the thing, each with its other spellings; `@wedding` and `@couple` stand in the metadata.
    about: Vec<Vec<String>>,
    /// What says what is new, likewise.
    facts: Vec<Vec<String>>,
    /// Columns that change along and say nothing more.
    beside: Vec<String>,
    /// All that changed is the fact.
    whole: bool,
}

impl Collapse {
    /// The token of an event, or none if it doesn't say enough to be recognised.
    pub(crate) fn token(&self, route: &str, event: &Event, facts: &Facts) -> Option<String> {
        let about: Vec<String> =
            self.about.iter().map(|names| name(names, &event.metadata, facts)).collect::<Option<_>>()?;
        let says = if self.whole { whole(facts, &self.beside) } else { self.said(facts) };
        if says.is_empty() && (self.whole || !self.facts.is_empty()) {
            return None;
        }
        Some(format!("{route}:{}:{}", digest(&about), digest(&says)))
    }

    fn said(&self, facts: &Facts) -> Vec<String> {
        let value = |names: &Vec<String>| {
            let canonical = names.first()?;
            let value = match facts.operation() {
                Some(_) if !facts.changed(canonical) => return None,
                Some(_) => plain(facts.row(), canonical),
                None => spelt(&facts.new, names)?,
            };
            Some(format!("{canonical}={value}"))
        };
        self.facts.iter().filter_map(value).collect()
    }

    /// Whether a column is accounted for by this route.
    fn covers(&self, column: &str) -> bool {
        self.whole
            || self.beside.iter().any(|name| name == column)
            || self.facts.iter().any(|names| names.first().is_some_and(|name| name == column))
    }
}

/// A token for what an update changed beside the facts of the routes that matched; none if it is nothing.
pub(crate) fn rest(facts: &Facts, matched: &[&Collapse]) -> Option<String> {
    if facts.operation() != Some(Operation::Update) {
        return None;
    }
    let uncovered = |column: &&str| *column != "updated_at" && !matched.iter().any(|collapse| collapse.covers(column));
    let says = |column: &str| format!("{column}={}", plain(&facts.new, column));
    let beside: Vec<String> = facts.changed_columns().filter(uncovered).map(says).collect();
    let about = [facts.table_name().unwrap_or_default().to_owned(), facts.row_key().unwrap_or_default()];
    (!beside.is_empty()).then(|| format!("rest:{}:{}", digest(&about), digest(&beside)))
}

fn name(names: &[String], metadata: &Metadata, facts: &Facts) -> Option<String> {
    let known = |id: &String| Some(id.clone()).filter(|id| !id.is_empty());
    match names.first()?.as_str() {
        "@wedding" => known(&metadata.wedding_id),
        "@couple" => known(&metadata.couple_id),
        column if facts.operation().is_some() => facts.row().text(column),
        _ => names.iter().find_map(|name| facts.new.text(name)),
    }
}

/// The first spelling that a domain event uses, in its content or in its `changes`.
fn spelt(content: &Record, names: &[String]) -> Option<String> {
    let changes = content.object("changes").unwrap_or_default();
    let found = |record: &Record| names.iter().find(|name| record.holds(name)).map(|name| changed_to(record, name));
    found(&changes).or_else(|| found(content))
}

/// Everything that changed: columns of a change, members of `changes` of a domain event.
fn whole(facts: &Facts, beside: &[String]) -> Vec<String> {
    let said = |column: &&str| !beside.iter().any(|name| name == column);
    if facts.operation().is_some() {
        return facts
            .changed_columns()
            .filter(said)
            .map(|column| format!("{column}={}", plain(facts.row(), column)))
            .collect();
    }
    let changes = facts.new.object("changes").unwrap_or_default();
    changes.names().filter(said).map(|name| format!("{name}={}", changed_to(&changes, name))).collect()
}

/// The value of a member, which may say `{old, new}`.
fn changed_to(record: &Record, name: &str) -> String {
    match record.object(name).filter(|pair| pair.holds("new")) {
        Some(pair) => plain(&pair, "new"),
        None => plain(record, name),
    }
}

/// A value in one spelling: dates without the time they are stored with, times to the second, null as nothing.
fn plain(record: &Record, name: &str) -> String {
    let Some(text) = record.text(name) else { return record.raw(name).unwrap_or_default().to_owned() };
    let is_day = text.len() == 10 || ["T00:00", " 00:00"].iter().any(|midnight| text.get(10..16) == Some(midnight));
    let is_clock = text.bytes().all(|b| b.is_ascii_digit() || b == b':');
    let date = || parse_date(&text).filter(|_| is_day).map(|date| date.to_string());
    let time = || parse_time(&text).filter(|_| is_clock).map(|time| time.to_string());
    date().or_else(time).unwrap_or(text)
}

/// 96 bits of a SHA-256 over the parts, each with its length.
fn digest(parts: &[String]) -> String {
    let mut hash = Sha256::new();
    for part in parts {
        hash.update((part.len() as u64).to_be_bytes());
        hash.update(part);
    }
    hex::encode(&hash.finalize()[..12])
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::{
        event::tests::{change, content},
        facts::tests::completed,
        route::BuiltIn,
    };

    fn token(route: &str, event: Event) -> Option<String> {
        let (event, facts) = completed(event, None);
        let route = BuiltIn::load().unwrap().routes.iter().find(|built| built.id == route).unwrap().clone();
        route.collapse.as_ref().unwrap().token(&route.id, &event, &facts)
    }

    fn moved(old: &str, new: &str) -> Event {
        let row = |rest: &str| format!(r#"{{"id":"w1",{rest}}}"#);
        change("wedding_details", Operation::Update, &row(old), &row(new))
    }

    #[test]
    fn a_change_and_the_domain_event_that_says_the_same_share_a_token() {
        let date = token(
            "wedding_date_change",
            moved(r#""wedding_date":"2026-01-01""#, r#""wedding_date":"2026-01-02T00:00:00Z""#),
        );
        assert!(date.is_some());
        assert_eq!(
            date,
            token(
                "wedding_date_change",
                content("wedding.date_changed", r#"{"wedding_id":"w1","new_date":"2026-01-02"}"#)
            )
        );
        let time = token("timeline_changed", moved(r#""ceremony_time":"15:00:00""#, r#""ceremony_time":"16:00:00""#));
        assert_eq!(
            time,
            token("timeline_changed", content("timeline.updated", r#"{"wedding_id":"w1","ceremony_time":"16:00"}"#))
        );
        let guests = token("guest_count_changed", moved(r#""guest_count":80"#, r#""guest_count":90"#));
        assert_eq!(
            guests,
            token("guest_count_changed", content("guest_count.changed", r#"{"wedding_id":"w1","guest_count":90}"#))
        );
        let profile = change(
            "core_fields",
            Operation::Update,
            r#"{"couple_id":"c","diet":"a"}"#,
            r#"{"couple_id":"c","diet":"b","updated_at":1}"#,
        );
        let told = content("client.updated", r#"{"clientId":"c","changes":{"diet":{"old":"a","new":"b"}}}"#);
        assert_eq!(token("client_profile_updated", profile).unwrap(), token("client_profile_updated", told).unwrap());
        let form = change("form_responses", Operation::Insert, "", r#"{"id":"r1","form_id":"f"}"#);
        let told = content("form.response_received", r#"{"response_id":"r1"}"#);
        assert_eq!(token("form_response_received", form).unwrap(), token("form_response_received", told).unwrap());
    }

    #[test]
    fn what_does_not_say_enough_has_no_token() {
        assert_eq!(token("wedding_date_change", content("wedding.date_changed", r#"{"wedding_id":"w1"}"#)), None);
        assert_eq!(token("wedding_date_change", content("wedding.date_changed", r#"{"new_date":"2026-01-02"}"#)), None);
        assert_eq!(token("client_profile_updated", content("client.updated", r#"{"clientId":"c"}"#)), None);
    }

    #[test]
    fn times_of_one_day_are_told_apart_however_they_are_stored() {
        let to =
            |time: &str| token("timeline_changed", moved(r#""setup_time":"x""#, &format!(r#""setup_time":"{time}""#)));
        assert_ne!(to("2026-01-01T09:00:00"), to("2026-01-01T10:00:00"));
        assert_ne!(to("09:00:00+01"), to("09:00:00+02"));
    }

    #[test]
    fn columns_that_changed_beside_the_facts_are_not_hidden() {
        let collapse = BuiltIn::load()
            .unwrap()
            .routes
            .iter()
            .find(|route| route.id == "guest_count_changed")
            .unwrap()
            .collapse
            .clone()
            .unwrap();
        let of = |event| rest(&completed(event, None).1, &[&collapse]);
        assert_eq!(of(moved(r#""guest_count":1"#, r#""guest_count":2,"updated_at":5"#)), None);
        assert!(of(moved(r#""guest_count":1"#, r#""guest_count":2,"special_requests":"no nuts""#)).is_some());
    }

    proptest! {
        #[test]
        fn different_dates_never_share_a_token(one in 1u8..29, two in 1u8..29) {
            let on = |day: u8| token("wedding_date_change", content("wedding.date_changed", &format!(r#"{{"wedding_id":"w","new_date":"2026-05-{day:02}"}}"#)));
            prop_assert_eq!(on(one) == on(two), one == two);
        }
    }
}
