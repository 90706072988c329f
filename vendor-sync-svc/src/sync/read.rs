//! What an event says about a canonical record: which one, and which fields are how now. Pure.
//!
//! A change of a table says the columns that it changed, by the row's own time where the statement moved that on; what an
//! UPDATE's old record doesn't tell counts as changed. A domain event says the members of its content (or of its `fields`,
//! `changes` or `record`), in whatever spelling. What a linked system said was merged before it was published: its event names
//! the record, and says no more.

use std::collections::BTreeMap;

use jiff::Timestamp;
use serde_json::{Map, Value};

use crate::{
    event::{Event, Operation, Payload},
    record::{MOST_FIELDS, RecordKey, RecordKind, Source, Update, value},
};

/// Tables that are a record each: their name, the kind, and the column that is the record's id.
const TABLES: [(&str, RecordKind, &str); 2] =
    [("wedding_details", RecordKind::Wedding, "id"), ("core_fields", RecordKind::Client, "couple_id")];
/// Columns and members that say which row it is and when, not what it says.
const ASIDE: [&str; 15] = [
    "id",
    "organization_id",
    "created_at",
    "updated_at",
    "timestamp",
    "old",
    "changed",
    "changes",
    "record",
    "fields",
    "deleted",
    "client_id",
    "supplier_id",
    "event",
    "type",
];
/// Other spellings of canonical fields.
const SPELLINGS: [(&str, &str); 4] = [
    ("new_date", "wedding_date"),
    ("date", "wedding_date"),
    ("new_guest_count", "guest_count"),
    ("new_count", "guest_count"),
];
/// Whose members are the fields of a domain event, where they are there.
const INSIDE: [&str; 2] = ["fields", "changes"];

/// What an event says of a record.
#[derive(Clone, Debug)]
pub(crate) struct Said {
    pub(crate) key: RecordKey,
    /// Columns of a row that this didn't change.
    pub(crate) rest: BTreeMap<String, Value>,
    /// None for what was merged before it was published.
    pub(crate) update: Option<Update>,
    /// What changed fields were before, where that is known.
    pub(crate) old: BTreeMap<String, Value>,
    pub(crate) changed: Vec<String>,
    pub(crate) deleted: bool,
    /// A row of a database said it.
    pub(crate) is_row: bool,
}

/// What `event` says of a record, if it is about one.
pub(crate) fn read(event: &Event) -> Option<Said> {
    match &event.payload {
        Payload::Change { table, operation, old, new, .. } => {
            let (_, kind, id) = TABLES.into_iter().find(|(name, ..)| name == table)?;
            row(event, kind, id, *operation, old.as_deref().map(object), new.as_deref().map(object))
        }
        Payload::Content { data, .. } => content(event, &object(data)),
    }
}

/// The integration that an event comes from, if it comes from one.
pub(crate) fn origin(event: &Event) -> Option<&str> {
    event.source.strip_prefix("integration:")
}

fn object(data: &[u8]) -> Map<String, Value> {
    serde_json::from_slice(data).unwrap_or_default()
}

fn row(
    event: &Event,
    kind: RecordKind,
    id: &str,
    operation: Operation,
    old: Option<Map<String, Value>>,
    new: Option<Map<String, Value>>,
) -> Option<Said> {
    let (old, new) = (old.unwrap_or_default(), new.unwrap_or_default());
    let deleted = operation == Operation::Delete;
    let id = text(if deleted { &old } else { &new }, id)?;
    let key = RecordKey::new(event.organization.clone(), kind, id).ok()?;
    let before = fields(&old);
    let (changed, rest): (BTreeMap<_, _>, BTreeMap<_, _>) =
        fields(&new).into_iter().partition(|(name, value)| before.get(name) != Some(value));
    let before = changed.keys().filter_map(|name| Some((name.clone(), before.get(name)?.clone()))).collect();
    let at = row_time(&old, &new).unwrap_or(event.time);
    let names = changed.keys().cloned().collect();
    let update = if deleted {
        Update::deletion(Source::wedsync(), event.time)
    } else {
        Update::new(Source::wedsync(), at, changed)
    };
    Some(Said { key, rest, update: Some(update), old: before, changed: names, deleted, is_row: true })
}

/// When the row says that it changed; nothing where the statement left that as it was.
fn row_time(old: &Map<String, Value>, new: &Map<String, Value>) -> Option<Timestamp> {
    let at = text(new, "updated_at")?;
    (text(old, "updated_at").as_ref() != Some(&at)).then(|| at.parse().ok())?
}

fn content(event: &Event, content: &Map<String, Value>) -> Option<Said> {
    let (kind, id) = subject(event, content)?;
    let key = RecordKey::new(event.organization.clone(), kind, id).ok()?;
    let deleted = event.type_ == "client.deleted" || content.get("deleted") == Some(&Value::Bool(true));
    let old: BTreeMap<String, Value> = content.get("old").and_then(Value::as_object).map(fields).unwrap_or_default();
    let is_merged = origin(event).is_some() && content.contains_key("record");
    if is_merged {
        let changed = content.get("changed").and_then(Value::as_array);
        let names = changed.into_iter().flatten().filter_map(Value::as_str).map(str::to_owned).collect();
        return Some(Said { key, rest: BTreeMap::new(), update: None, old, changed: names, deleted, is_row: false });
    }
    let inside = INSIDE.into_iter().find_map(|name| content.get(name)?.as_object());
    let said = fields(inside.unwrap_or(content));
    let names = said.keys().cloned().collect();
    let source = Source(origin(event).map_or_else(|| "wedsync".to_owned(), str::to_owned));
    let update = if deleted { Update::deletion(source, event.time) } else { Update::new(source, event.time, said) };
    Some(Said { key, rest: BTreeMap::new(), update: Some(update), old, changed: names, deleted, is_row: false })
}

/// Which record a domain event is about.
fn subject(event: &Event, content: &Map<String, Value>) -> Option<(RecordKind, String)> {
    let given = |id: &str| (!id.is_empty()).then(|| id.to_owned());
    if let Some(kind) = content.get("record").and_then(Value::as_str).and_then(RecordKind::parse) {
        return Some((kind, text(content, "id").or_else(|| given(&event.subject))?));
    }
    match event.type_.as_str() {
        "wedding.date_changed" | "timeline.updated" | "guest_count.changed" => {
            Some((RecordKind::Wedding, given(&event.metadata.wedding_id)?))
        }
        "client.created" | "client.updated" | "client.deleted" | "preference.updated" => {
            Some((RecordKind::Client, given(&event.metadata.couple_id).or_else(|| given(&event.subject))?))
        }
        "booking.updated" => {
            let id = text(content, "booking_id").or_else(|| text(content, "id"));
            Some((RecordKind::Booking, id.or_else(|| given(&event.subject))?))
        }
        _ => None,
    }
}

/// Under canonical names, without what says which and when; at most as many as a record has.
fn fields(members: &Map<String, Value>) -> BTreeMap<String, Value> {
    let named = members.iter().map(|(name, said)| {
        let name = canonical(name);
        let said = value::normalize(&name, said);
        (name, said)
    });
    named.filter(|(name, _)| is_field(name)).take(MOST_FIELDS).collect()
}

fn is_field(name: &str) -> bool {
    let allowed = |b: u8| b.is_ascii_lowercase() || b.is_ascii_digit() || b == b'_';
    (1..=64).contains(&name.len()) && name.bytes().all(allowed) && !ASIDE.contains(&name)
}

/// `weddingDate` and `wedding_date` are one.
fn canonical(name: &str) -> String {
    let mut snake = String::with_capacity(name.len() + 4);
    for letter in name.chars() {
        if letter.is_ascii_uppercase() && !snake.is_empty() {
            snake.push('_');
        }
        snake.push(letter.to_ascii_lowercase());
    }
    let other = SPELLINGS.into_iter().find(|(other, _)| *other == snake);
    other.map_or(snake, |(_, canonical)| canonical.to_owned())
}

fn text(members: &Map<String, Value>, name: &str) -> Option<String> {
    match members.get(name)? {
        Value::String(text) if !text.is_empty() => Some(text.clone()),
        Value::Number(number) => Some(number.to_string()),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use chassis::testing::noon;
    use proptest::prelude::*;
    use serde_json::json;

    use super::*;
    use crate::event::tests::{change, content as domain};

    fn update(event: &Event) -> Update {
        read(event).expect("about a record").update.expect("news")
    }

    #[test]
    fn a_row_says_the_columns_that_it_changed_by_its_own_time() {
        let event = change(
            r#"{"id":"w1","guest_count":80,"venue_name":"Barn","updated_at":"2026-05-01T10:00:00Z"}"#,
            r#"{"id":"w1","guest_count":90,"venue_name":"Barn","updated_at":"2026-05-01 11:00:00+00"}"#,
        );
        let said = read(&event).expect("a wedding");
        assert_eq!(
            (said.key.kind, said.key.id.as_str(), said.changed.as_slice()),
            (RecordKind::Wedding, "w1", ["guest_count".to_owned()].as_slice())
        );
        assert_eq!(said.old["guest_count"], json!(80));
        let update = said.update.expect("news");
        assert_eq!((update.fields.len(), &update.fields["guest_count"]), (1, &json!(90)));
        assert_eq!(update.at, "2026-05-01T11:00:00Z".parse().expect("a time"));
    }

    #[test]
    fn a_row_whose_time_stood_still_counts_from_the_event() {
        let row = |guests: u32| format!(r#"{{"id":"w1","guest_count":{guests},"updated_at":"2020-01-01T00:00:00Z"}}"#);
        assert_eq!(update(&change(&row(80), &row(90))).at, noon());
    }

    #[test]
    fn without_an_old_record_every_column_counts_as_changed() {
        let event = change("{}", r#"{"id":"w1","guest_count":90,"venue_name":"Barn"}"#);
        assert_eq!(update(&event).fields.len(), 2);
    }

    #[test]
    fn a_deleted_row_is_a_deletion() {
        let said = read(&change(r#"{"id":"w1","guest_count":90}"#, "")).expect("a wedding");
        assert!(said.deleted && said.update.expect("news").deleted);
    }

    #[test]
    fn a_domain_event_is_read_in_its_own_spelling() {
        let event = domain("wedding.date_changed", r#"{"newDate":"2026-07-01","weddingId":"w1"}"#);
        assert_eq!(update(&event).fields["wedding_date"], json!("2026-07-01"));
        let mut event = domain("client.updated", r#"{"clientId":"c1","changes":{"firstName":"Ann"}}"#);
        event.metadata.couple_id = "c1".to_owned();
        assert_eq!(update(&event).fields, BTreeMap::from([("first_name".to_owned(), json!("Ann"))]));
    }

    #[test]
    fn what_a_linked_system_said_is_not_merged_again() {
        let mut event = domain(
            "guest_count.changed",
            r#"{"record":"wedding","id":"w1","guest_count":90,"changed":["guest_count"],"old":{"guest_count":80}}"#,
        );
        event.source = "integration:i1".to_owned();
        let said = read(&event).expect("a wedding");
        assert!(said.update.is_none());
        assert_eq!((said.changed, said.old["guest_count"].clone()), (vec!["guest_count".to_owned()], json!(80)));
        event.source = "somebody".to_owned();
        assert!(read(&event).expect("a wedding").update.is_some(), "anybody can write such members");
    }

    #[test]
    fn what_is_about_no_record_says_nothing_of_one() {
        for type_ in ["emergency.raised", "payment.received", "integration.failing"] {
            assert!(read(&domain(type_, r#"{"id":"x"}"#)).is_none(), "{type_}");
        }
    }

    proptest! {
        #[test]
        fn names_are_fields_or_left_out(name in "\\PC{0,80}") {
            let members = Map::from_iter([(name, json!(1))]);
            prop_assert!(fields(&members).keys().all(|name| is_field(name)));
        }
    }
}
