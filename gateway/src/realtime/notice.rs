//! What clients are told of one logged event: as a `postgres_changes` message, as a broadcast on its channels, as a
//! Server-Sent Event. Pure; each JSON text is made once, when the first one needs it.
//!
//! Records stand in it byte for byte as they were published.

use std::{cell::OnceCell, collections::BTreeMap, sync::Arc};

use jiff::Timestamp;
use proto::{
    common::v1::Position,
    router::v1::{Change, Content, Event, Operation, event::Payload},
};
use serde_json::value::RawValue;

use super::{claims::Predicate, frame::quote, index, index::RowChange, row::Row, whose};
use crate::wire;

/// Events that tell a client list of a client, whatever their name in the log.
const CLIENT_EVENTS: [&str; 3] = ["client.created", "client.updated", "client.deleted"];
/// Tables that do.
const CLIENT_TABLES: [&str; 2] = ["client_list_cache", "core_fields"];
const CLIENT_UPDATED: &str = "client-updated";

/// One event, read.
pub(crate) struct Notice<'a> {
    pub(crate) event: &'a Event,
    /// In the log.
    pub(crate) sequence: u64,
    log_id: &'a str,
    rows: Rows,
    with_old: OnceCell<String>,
    without_old: OnceCell<String>,
    left: OnceCell<String>,
    payload: OnceCell<String>,
}

/// What a change was and is, as it is compared; parsed once, however often it is told.
#[derive(Clone, Default)]
pub(crate) struct Rows {
    old: Option<Arc<Row>>,
    new: Option<Arc<Row>>,
    /// Whose a domain event is.
    whose: Option<Arc<Row>>,
}

/// How much of a change one client may see.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(crate) enum View {
    /// Both records.
    Whole,
    /// The new record; the old one is another's.
    New,
    /// The row left what the client listens to: it is told as of a DELETE, with the old record.
    Left,
}

impl Rows {
    fn read(event: &Event) -> Self {
        let Some(change) = change_of(event) else {
            return Self { whose: whose::row(event).map(Arc::new), ..Self::default() };
        };
        let row = |bytes: &bytes::Bytes| (!bytes.is_empty()).then(|| Arc::new(Row::parse(bytes)));
        Self { old: row(&change.old_record), new: row(&change.new_record), whose: None }
    }
}

impl<'a> Notice<'a> {
    pub(crate) fn read(event: &'a Event) -> Self {
        Self::again(event, Rows::read(event))
    }

    /// An event whose rows were read before.
    pub(crate) fn again(event: &'a Event, rows: Rows) -> Self {
        let position = event.position.as_ref();
        Self {
            event,
            sequence: position.map_or(0, |position| position.sequence),
            log_id: position.map_or("", |position| position.log_id.as_str()),
            rows,
            with_old: OnceCell::new(),
            without_old: OnceCell::new(),
            left: OnceCell::new(),
            payload: OnceCell::new(),
        }
    }

    pub(crate) fn rows(&self) -> &Rows {
        &self.rows
    }

    /// None for a domain event.
    pub(crate) fn change(&self) -> Option<RowChange<'_>> {
        let change = change_of(self.event)?;
        Some(RowChange {
            schema: &change.schema,
            table: &change.table,
            operation: operation(change.operation())?,
            old: self.rows.old.as_deref(),
            new: self.rows.new.as_deref(),
        })
    }

    /// Whether those whom `predicate` describes may see what it is about: the row that a change leaves or took away, or
    /// whomever a domain event names. One that names nobody is about all.
    pub(crate) fn is_for(&self, predicate: &Predicate) -> bool {
        let Some(change) = change_of(self.event) else {
            return self.rows.whose.as_deref().is_none_or(|whose| predicate.allows("", whose));
        };
        let row = if change.operation() == Operation::Delete { &self.rows.old } else { &self.rows.new };
        row.as_deref().map_or(*predicate == Predicate::All, |row| predicate.allows(&change.table, row))
    }

    /// The row that was there before.
    pub(crate) fn old_row(&self) -> Option<(&str, &Row)> {
        change_of(self.event).zip(self.rows.old.as_deref()).map(|(change, row)| (change.table.as_str(), row))
    }

    /// The payload of `postgres_changes`.
    pub(crate) fn changes(&self, ids: &[u32], view: View) -> String {
        let data = match view {
            View::Whole => self.with_old.get_or_init(|| self.data(view)),
            View::New => self.without_old.get_or_init(|| self.data(view)),
            View::Left => self.left.get_or_init(|| self.data(view)),
        };
        let ids: Vec<String> = ids.iter().map(u32::to_string).collect();
        format!(r#"{{"ids":[{}],"data":{data}}}"#, ids.join(","))
    }

    /// What a client reads of the change: `columns` stays empty, so that it takes the values as they are.
    fn data(&self, view: View) -> String {
        let Some(change) = change_of(self.event) else { return "{}".to_owned() };
        let (old, new) = (json(&change.old_record), json(&change.new_record));
        let (kind, records) = match (view, change.operation()) {
            (View::Left, _) | (_, Operation::Delete) => ("DELETE", format!(r#""old_record":{old}"#)),
            (_, Operation::Update) if view == View::Whole => {
                ("UPDATE", format!(r#""record":{new},"old_record":{old}"#))
            }
            (_, Operation::Update) => ("UPDATE", format!(r#""record":{new},"old_record":{{}}"#)),
            _ => ("INSERT", format!(r#""record":{new}"#)),
        };
        let (schema, table, time) = (quote(&change.schema), quote(&change.table), self.time());
        format!(
            r#"{{"schema":{schema},"table":{table},"commit_timestamp":"{time}","type":"{kind}","columns":[],{records},"errors":null}}"#
        )
    }

    /// What a broadcast of it is called.
    pub(crate) fn name(&self) -> &str {
        let type_ = self.event.r#type.as_str();
        if self.is_client_update() {
            return CLIENT_UPDATED;
        }
        match (change_of(self.event), type_.strip_prefix("broadcast.")) {
            (Some(change), _) if change.table == "supplier_kpis" => "kpi_update",
            // A durable broadcast has the name that its sender gave it as its subject.
            (None, Some(name)) => Some(self.event.subject.as_str()).filter(|name| !name.is_empty()).unwrap_or(name),
            _ => type_,
        }
    }

    /// What a broadcast of it carries: JSON, or bytes that aren't.
    pub(crate) fn payload(&self) -> Result<&str, &Content> {
        if let Some(Payload::Content(content)) = &self.event.payload
            && !is_json(&content.content_type)
        {
            return Err(content);
        }
        Ok(self.payload.get_or_init(|| self.print()))
    }

    fn print(&self) -> String {
        if self.is_client_update() {
            return self.client_update();
        }
        match &self.event.payload {
            Some(Payload::Content(content)) => json(&content.data).to_owned(),
            Some(Payload::Change(change)) => self.printed_change(change),
            None => "{}".to_owned(),
        }
    }

    fn printed_change(&self, change: &Change) -> String {
        let record = |bytes: &bytes::Bytes| if bytes.is_empty() { "null".to_owned() } else { json(bytes).to_owned() };
        let kind = match change.operation() {
            Operation::Delete => "DELETE",
            Operation::Update => "UPDATE",
            _ => "INSERT",
        };
        format!(
            r#"{{"type":"{kind}","schema":{},"table":{},"record":{},"commit_timestamp":"{}"}}"#,
            quote(&change.schema),
            quote(&change.table),
            record(if kind == "DELETE" { &change.old_record } else { &change.new_record }),
            self.time(),
        )
    }

    fn is_client_update(&self) -> bool {
        match change_of(self.event) {
            Some(change) => CLIENT_TABLES.contains(&change.table.as_str()),
            None => CLIENT_EVENTS.contains(&self.event.r#type.as_str()),
        }
    }

    /// `{clientId, changes, timestamp}`: of a row what changed in it, of an event what it says.
    fn client_update(&self) -> String {
        let (id, changes) = match &self.event.payload {
            Some(Payload::Change(change)) => {
                let (old, new) = (members(&change.old_record), members(&change.new_record));
                let row = if new.is_empty() { &old } else { &new };
                let id = ["client_id", "couple_id", "id"].into_iter().find_map(|name| row.get(name));
                let changed =
                    new.iter().filter(|(name, value)| old.get(*name).map(|old| old.get()) != Some(value.get()));
                (id.map_or_else(|| "null".to_owned(), |id| id.get().to_owned()), object(changed))
            }
            Some(Payload::Content(content)) => {
                let members = members(&content.data);
                let id = ["clientId", "client_id"].into_iter().find_map(|name| members.get(name));
                let couple = self.event.metadata.as_ref().map_or("", |metadata| &metadata.couple_id);
                let changes = members.get("changes").map_or_else(|| json(&content.data), |changes| changes.get());
                (id.map_or_else(|| quote(couple), |id| id.get().to_owned()), changes.to_owned())
            }
            None => ("null".to_owned(), "{}".to_owned()),
        };
        format!(r#"{{"clientId":{id},"changes":{changes},"timestamp":"{}"}}"#, self.time())
    }

    /// Where it stands, as a broadcast's `meta`.
    pub(crate) fn meta(&self) -> String {
        let Self { event, log_id, sequence, .. } = self;
        format!(r#"{{"id":{},"epoch":{},"seq":{sequence}}}"#, quote(&event.uid), quote(log_id))
    }

    /// Where one stands who has everything but this and what comes later.
    pub(crate) fn before(&self) -> Position {
        Position { log_id: self.log_id.to_owned(), sequence: self.sequence.saturating_sub(1) }
    }

    /// Where it stands, as an event stream's id.
    pub(crate) fn stream_id(&self) -> String {
        format!("{}:{}", self.log_id, self.sequence)
    }

    fn time(&self) -> Timestamp {
        wire::time(self.event.time).unwrap_or(Timestamp::UNIX_EPOCH)
    }
}

fn change_of(event: &Event) -> Option<&Change> {
    match &event.payload {
        Some(Payload::Change(change)) => Some(change),
        _ => None,
    }
}

fn operation(operation: Operation) -> Option<index::Operation> {
    match operation {
        Operation::Insert => Some(index::Operation::Insert),
        Operation::Update => Some(index::Operation::Update),
        Operation::Delete => Some(index::Operation::Delete),
        Operation::Unspecified => None,
    }
}

/// Whether content of this type goes into JSON as it is.
pub(crate) fn is_json(content_type: &str) -> bool {
    let essence = content_type.split(';').next().unwrap_or_default().trim();
    essence.is_empty() || essence.eq_ignore_ascii_case("application/json") || essence.ends_with("+json")
}

/// The router has checked that it is JSON; what isn't would break the frame, and is left out.
pub(crate) fn json(bytes: &[u8]) -> &str {
    std::str::from_utf8(bytes).map(str::trim).ok().filter(|text| !text.is_empty()).unwrap_or("{}")
}

fn members(bytes: &[u8]) -> BTreeMap<String, &RawValue> {
    serde_json::from_slice(bytes).unwrap_or_default()
}

fn object<'a>(members: impl Iterator<Item = (&'a String, &'a &'a RawValue)>) -> String {
    let members: Vec<_> = members.map(|(name, value)| format!("{}:{}", quote(name), value.get())).collect();
    format!("{{{}}}", members.join(","))
}

#[cfg(test)]
pub(crate) mod tests {
    use proto::router::v1::Metadata;
    use serde_json::{Value, json};

    use super::*;

    pub(crate) fn change(table: &str, operation: Operation, old: &str, new: &str) -> Event {
        let change = Change {
            schema: "public".to_owned(),
            table: table.to_owned(),
            operation: operation.into(),
            old_record: old.as_bytes().to_vec().into(),
            new_record: new.as_bytes().to_vec().into(),
        };
        Event {
            r#type: format!("{table}.change"),
            uid: "0198".to_owned(),
            position: Some(Position { log_id: "log".to_owned(), sequence: 7 }),
            time: Some(prost_types::Timestamp { seconds: 1_767_323_045, nanos: 678_000_000 }),
            payload: Some(Payload::Change(change)),
            ..Event::default()
        }
    }

    pub(crate) fn content(type_: &str, data: &str) -> Event {
        let content = Content { content_type: "application/json".to_owned(), data: data.as_bytes().to_vec().into() };
        Event {
            r#type: type_.to_owned(),
            payload: Some(Payload::Content(content)),
            ..change("t", Operation::Insert, "", "")
        }
    }

    fn parsed(text: &str) -> Value {
        serde_json::from_str(text).expect("JSON")
    }

    #[test]
    fn a_change_is_told_in_the_protocols_form_with_the_records_as_published() {
        let event = change("orders", Operation::Update, r#"{"total":12.50}"#, r#"{"total": 9007199254740993}"#);
        let notice = Notice::read(&event);
        let told = notice.changes(&[1000, 1001], View::Whole);
        assert!(told.contains(r#""record":{"total": 9007199254740993}"#), "exact: {told}");
        assert_eq!(parsed(&told)["ids"], json!([1000, 1001]));
        let data = &parsed(&told)["data"];
        assert_eq!((&data["type"], &data["commit_timestamp"]), (&json!("UPDATE"), &json!("2026-01-02T03:04:05.678Z")));
        assert_eq!((&data["old_record"]["total"], &data["errors"]), (&json!(12.5), &Value::Null));
        assert_eq!(parsed(&notice.changes(&[1], View::New))["data"]["old_record"], json!({}), "another's old row");
        let left = &parsed(&notice.changes(&[1], View::Left))["data"];
        assert_eq!((&left["type"], left.get("record")), (&json!("DELETE"), None), "the new row is another's");
        let meta = parsed(&notice.meta());
        assert_eq!((&meta["epoch"], &meta["seq"], notice.stream_id()), (&json!("log"), &json!(7), "log:7".to_owned()));
    }

    #[test]
    fn events_on_a_channel_have_the_names_that_its_clients_know() {
        let name = |event: Event| Notice::read(&event).name().to_owned();
        assert_eq!(name(change("supplier_kpis", Operation::Update, "{}", "{}")), "kpi_update");
        assert_eq!(name(change("client_list_cache", Operation::Insert, "", "{}")), "client-updated");
        assert_eq!(name(content("client.updated", "{}")), "client-updated");
        assert_eq!(name(content("wedding.date_changed", "{}")), "wedding.date_changed");
        assert_eq!(name(content("broadcast.cursor", "{}")), "cursor");
        assert_eq!(name(Event { subject: "Cursor!".to_owned(), ..content("broadcast.cursor_", "{}") }), "Cursor!");
    }

    #[test]
    fn a_client_update_says_who_what_and_when() {
        let told = |event: Event| parsed(Notice::read(&event).payload().expect("JSON"));
        let row = change(
            "client_list_cache",
            Operation::Update,
            r#"{"client_id":"c1","stage":"a","n":1}"#,
            r#"{"client_id":"c1","stage":"b","n":1}"#,
        );
        let expected =
            json!({ "clientId": "c1", "changes": { "stage": "b" }, "timestamp": "2026-01-02T03:04:05.678Z" });
        assert_eq!(told(row), expected);
        let event = content("client.updated", r#"{"client_id":"c1","changes":{"stage":"b"}}"#);
        assert_eq!(told(event), expected);
        let metadata = Some(Metadata { couple_id: "c1".to_owned(), ..Metadata::default() });
        let event = Event { metadata, ..content("client.updated", r#"{"stage":"b"}"#) };
        assert_eq!(told(event), expected);
    }

    #[test]
    fn what_is_no_json_is_given_as_bytes() {
        let mut event = content("a.b", "");
        event.payload =
            Some(Payload::Content(Content { content_type: "image/png".to_owned(), data: vec![1, 2].into() }));
        assert_eq!(Notice::read(&event).payload().expect_err("bytes").data[..], [1, 2]);
    }
}
