//! What the notifier reads of an event: whose it is, what it is about, and its records.
//!
//! Pure. Records are read leniently: what isn't there or has another type than expected counts as missing.

use chassis::id::OrganizationId;
use jiff::Timestamp;
use serde_json::{Map, Value};

/// A JSON object.
pub(crate) type Record = Map<String, Value>;

/// An event of the log.
#[derive(Debug, Clone)]
pub(crate) struct Event {
    pub(crate) organization: OrganizationId,
    /// Idempotency key.
    pub(crate) id: String,
    /// The router's own name for it.
    pub(crate) uid: String,
    /// Dotted.
    pub(crate) name: String,
    /// None where it isn't about one; likewise the next two.
    pub(crate) wedding: Option<String>,
    pub(crate) supplier: Option<String>,
    pub(crate) couple: Option<String>,
    pub(crate) position: Position,
    /// When it happened.
    pub(crate) at: Timestamp,
    /// None for a domain event.
    pub(crate) change: Option<Change>,
    /// The new record; a domain event's content.
    pub(crate) new: Record,
    /// The old record; empty for a domain event.
    pub(crate) old: Record,
}

/// Where an event stands in a log.
#[derive(Debug, Clone, Default)]
pub(crate) struct Position {
    pub(crate) log_id: String,
    pub(crate) sequence: i64,
}

/// What happened to a row.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Change {
    pub(crate) table: String,
    pub(crate) operation: Operation,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Operation {
    Insert,
    Update,
    Delete,
}

impl Event {
    /// The record that stands for the row or the thing: the new one, or what a DELETE took away.
    pub(crate) fn row(&self) -> &Record {
        if self.new.is_empty() { &self.old } else { &self.new }
    }

    /// The columns that an update changed, in alphabetical order; none where the old record wasn't sent.
    pub(crate) fn changed(&self) -> Vec<&str> {
        if self.old.is_empty() || self.new.is_empty() {
            return Vec::new();
        }
        let changed = |name: &&String| self.old.get(*name).is_none_or(|old| *old != self.new[*name]);
        let mut names: Vec<&str> = self.new.keys().filter(changed).map(String::as_str).collect();
        names.sort_unstable();
        names
    }
}

/// The first of `names` that holds a text, a number or a yes or no, as text.
pub(crate) fn text(record: &Record, names: &[&str]) -> Option<String> {
    names.iter().find_map(|name| record.get(*name).and_then(plain))
}

/// A text that isn't empty, a number, or a yes or no; as text. A text with a NUL is none: PostgreSQL takes it in no column.
pub(crate) fn plain(value: &Value) -> Option<String> {
    match value {
        Value::String(text) => Some(text.clone()).filter(|text| !text.is_empty() && !text.contains('\0')),
        Value::Number(number) => Some(number.to_string()),
        Value::Bool(yes) => Some(if *yes { "yes" } else { "no" }.to_owned()),
        Value::Null | Value::Array(_) | Value::Object(_) => None,
    }
}

/// A list of texts, given as a JSON list or as a text that holds one (which is how some columns are stored).
pub(crate) fn list(value: &Value) -> Vec<String> {
    match value {
        Value::Array(items) => items.iter().filter_map(plain).collect(),
        Value::String(text) => match serde_json::from_str(text) {
            Ok(Value::Array(items)) => items.iter().filter_map(plain).collect(),
            // PostgreSQL's own form: {a,b}
            _ => text
                .strip_prefix('{')
                .and_then(|rest| rest.strip_suffix('}'))
                .map(|inner| {
                    inner
                        .split(',')
                        .map(|item| item.trim_matches('"').to_owned())
                        .filter(|item| !item.is_empty())
                        .collect()
                })
                .unwrap_or_default(),
        },
        _ => Vec::new(),
    }
}

/// An object, given as such or as a text that holds one.
pub(crate) fn object(value: &Value) -> Option<Record> {
    match value {
        Value::Object(object) => Some(object.clone()),
        Value::String(text) => serde_json::from_str(text).ok(),
        _ => None,
    }
}

#[cfg(test)]
pub(crate) mod tests {
    use serde_json::json;

    use super::*;

    /// A domain event of the organization `o`.
    pub(crate) fn content(name: &str, data: Value) -> Event {
        let Value::Object(new) = data else { panic!("an object") };
        let known = |names: &[&str]| text(&new, names);
        Event {
            organization: OrganizationId::parse("o").unwrap(),
            id: "e1".to_owned(),
            uid: "u1".to_owned(),
            name: name.to_owned(),
            wedding: known(&["wedding_id"]),
            supplier: known(&["supplier_id"]),
            couple: known(&["couple_id"]),
            position: Position { log_id: "l".to_owned(), sequence: 1 },
            at: Timestamp::UNIX_EPOCH,
            change: None,
            new,
            old: Record::new(),
        }
    }

    /// A change of a row; `Value::Null` for a record that isn't there.
    pub(crate) fn change(table: &str, operation: Operation, old: Value, new: Value) -> Event {
        let record = |value: Value| if let Value::Object(record) = value { record } else { Record::new() };
        let name = format!("{table}.{}", format!("{operation:?}").to_lowercase());
        let mut event = content(&name, json!({}));
        (event.old, event.new) = (record(old), record(new));
        event.change = Some(Change { table: table.to_owned(), operation });
        event
    }

    #[test]
    fn lists_are_read_in_every_form_that_columns_have() {
        for value in [json!(["a", "b"]), json!(r#"["a","b"]"#), json!(r#"{a,"b"}"#)] {
            assert_eq!(list(&value), ["a", "b"], "{value}");
        }
        for value in [json!(null), json!("a,b"), json!("{}"), json!({"a": 1}), json!(3)] {
            assert!(list(&value).is_empty(), "{value}");
        }
    }

    #[test]
    fn a_text_that_no_store_takes_counts_as_missing() {
        let record = json!({"time_zone": "Europe/Berlin\0", "locale": "\0", "name": "Ada\nLovelace"});
        let of = |name| text(record.as_object().unwrap(), &[name]);
        assert_eq!((of("time_zone"), of("locale"), of("name").as_deref()), (None, None, Some("Ada\nLovelace")));
    }

    #[test]
    fn without_the_old_record_nothing_is_said_to_have_changed() {
        let update =
            |old| change("core_fields", Operation::Update, old, json!({"b": 1, "a": 2, "c": 3})).changed().len();
        assert_eq!(update(json!({"a": 1, "b": 1, "c": 3})), 1);
        assert_eq!(update(Value::Null), 0);
    }
}
