//! Who must hear of a resolved change: the events that it is told by, and what a vendor whose word lost is told. Pure.

use std::collections::BTreeMap;

use jiff::Timestamp;
use proto::{common::v1::Priority, router::v1 as wire};
use serde_json::{Map, Value, json};
use sha2::{Digest as _, Sha256};

use crate::{
    record::{Applied, Change, Record, RecordKind, Update},
    rpc::wire::print_timestamp,
    sync::{
        bulk,
        letter::{self, Letter},
    },
};

/// What is the same for all events of one change.
#[derive(Clone, Debug)]
pub(crate) struct Told<'a> {
    pub(crate) source: String,
    /// Whose the source is; empty: the organization's own.
    pub(crate) supplier_id: &'a str,
    /// Whose the record is: each is told, whoever said it.
    pub(crate) suppliers: Vec<String>,
    pub(crate) at: Timestamp,
    pub(crate) low: bool,
    pub(crate) import: bool,
}

/// The events of a change, each with the fields that it is about. None where nothing changed.
pub(crate) fn events(applied: &Applied, told: &Told<'_>) -> Vec<wire::Event> {
    let of = |(type_, changes): (&str, Vec<&Change>)| event(applied, told, type_, &changes);
    types(applied).into_iter().map(of).collect()
}

/// Event types with the changes that each says.
fn types(applied: &Applied) -> Vec<(&'static str, Vec<&Change>)> {
    let (all, kind) = (applied.changes.iter().collect::<Vec<_>>(), applied.record.key.kind);
    match (kind, applied.created, applied.deleted) {
        (RecordKind::Client, true, _) => return vec![("client.created", all)],
        (RecordKind::Client, _, true) => return vec![("client.deleted", all)],
        (_, true, _) | (_, _, true) => return vec![("booking.updated", all)],
        _ => {}
    }
    let mut types: Vec<(&'static str, Vec<&Change>)> = Vec::new();
    for change in all {
        let type_ = type_of(kind, &change.field);
        match types.iter_mut().find(|(other, _)| *other == type_) {
            Some((_, changes)) => changes.push(change),
            None => types.push((type_, vec![change])),
        }
    }
    types
}

fn type_of(kind: RecordKind, field: &str) -> &'static str {
    match (kind, field) {
        (RecordKind::Wedding, "wedding_date") => "wedding.date_changed",
        (RecordKind::Wedding, "ceremony_time" | "setup_time" | "reception_time" | "venue_id" | "venue_name") => {
            "timeline.updated"
        }
        (RecordKind::Wedding, "guest_count") => "guest_count.changed",
        (RecordKind::Booking, _) => "booking.updated",
        (_, "dietary_requirements" | "preferences" | "special_requests") => "preference.updated",
        (RecordKind::Wedding | RecordKind::Client, _) => "client.updated",
    }
}

fn event(applied: &Applied, told: &Told<'_>, type_: &str, changes: &[&Change]) -> wire::Event {
    let (record, key) = (&applied.record, &applied.record.key);
    let text =
        |name: &str| record.fields.get(name).and_then(|field| field.value.as_str()).unwrap_or_default().to_owned();
    let (wedding_id, couple_id) = match key.kind {
        RecordKind::Wedding => (key.id.clone(), text("couple_id")),
        RecordKind::Client => (text("wedding_id"), key.id.clone()),
        RecordKind::Booking => (text("wedding_id"), text("couple_id")),
    };
    let data = content(applied, changes).to_string();
    wire::Event {
        id: event_id(record, type_),
        organization_id: key.organization.to_string(),
        r#type: type_.to_owned(),
        source: told.source.clone(),
        subject: key.id.clone(),
        time: Some(print_timestamp(told.at)),
        channels: dashboards(&told.suppliers),
        ordering_key: if wedding_id.is_empty() { key.id.clone() } else { wedding_id.clone() },
        priority: if told.low { Priority::Low.into() } else { Priority::Unspecified.into() },
        payload: Some(wire::event::Payload::Content(wire::Content {
            content_type: "application/json".to_owned(),
            data: data.into(),
        })),
        metadata: Some(wire::Metadata {
            wedding_id,
            couple_id,
            supplier_id: told.supplier_id.to_owned(),
            traceparent: chassis::trace::current().map(|context| context.to_string()).unwrap_or_default(),
            origin: if told.import { "import".to_owned() } else { String::new() },
            ..wire::Metadata::default()
        }),
        ..wire::Event::default()
    }
}

/// Suppliers who are told by their channels: few enough for an event.
const MOST_CHANNELS: usize = 60;

/// The channels of suppliers whose ids can be part of a channel's name.
fn dashboards(suppliers: &[String]) -> Vec<String> {
    let is_segment = |id: &&String| !id.contains(|c: char| c.is_control() || c.is_whitespace() || c == ':' || c == '*');
    let named = suppliers.iter().filter(is_segment).take(MOST_CHANNELS);
    named.map(|id| format!("supplier:dashboard:{id}")).collect()
}

/// The record's fields now, which it is, and what changed.
fn content(applied: &Applied, changes: &[&Change]) -> Value {
    let (record, key) = (&applied.record, &applied.record.key);
    let old: Map<String, Value> = changes.iter().map(|change| (change.field.clone(), change.old.clone())).collect();
    let changed: Vec<&str> = changes.iter().map(|change| change.field.as_str()).collect();
    let mut content: Map<String, Value> = record.values().into_iter().collect();
    content.insert("id".to_owned(), json!(key.id));
    content.insert("record".to_owned(), json!(key.kind.as_str()));
    content.insert("changed".to_owned(), json!(changed));
    content.insert("old".to_owned(), Value::Object(old));
    // As routes and people's messages read what a domain event changed: it is told once, though its row follows.
    let changes = changes.iter().map(|it| (it.field.clone(), json!({ "old": it.old, "new": it.new })));
    content.insert("changes".to_owned(), Value::Object(changes.collect()));
    content.insert("deleted".to_owned(), json!(record.deleted.is_some()));
    Value::Object(content)
}

/// The same for the same change, however often it is made.
fn event_id(record: &Record, type_: &str) -> String {
    let key = &record.key;
    let said = [key.kind.as_str(), &key.id, &record.version.to_string(), type_].join("\0");
    format!("resolved:{}", hex::encode(&Sha256::digest(said)[..16]))
}

/// Whether something of `update` doesn't stand.
pub(crate) fn has_lost(record: &Record, update: &Update) -> bool {
    record.deleted.is_none() && !standing(record, update).is_empty()
}

/// What stands instead of what `update` said.
pub(crate) fn standing(record: &Record, update: &Update) -> BTreeMap<String, Value> {
    let known = |name: &str| record.fields.get(name).map_or(Value::Null, |field| field.value.clone());
    let lost = update.fields.keys().filter(|name| {
        record
            .fields
            .get(*name)
            .is_some_and(|field| field.source != update.source && field.value != update.fields[*name])
    });
    lost.map(|name| (name.clone(), known(name))).collect()
}

/// What a vendor whose word lost is told.
pub(crate) fn correction(applied: &Applied, update: &Update, now: Timestamp) -> Letter {
    let (record, key) = (&applied.record, &applied.record.key);
    let changed: Vec<String> = standing(record, update).into_keys().collect();
    let said: BTreeMap<String, Value> =
        changed.iter().map(|name| (name.clone(), update.fields[name].clone())).collect();
    let said = letter::print(&said);
    let hash = Sha256::digest([key.id.as_str(), &record.version.to_string(), &said].join("\0"));
    Letter {
        event_id: format!("correction:{}", hex::encode(&hash[..16])),
        event_type: format!("{}.corrected", key.kind.as_str()),
        time: now.to_string(),
        source: "wedsync".to_owned(),
        wedding_id: bulk::wedding(record),
        kind: key.kind.as_str().to_owned(),
        record_id: key.id.clone(),
        fields: letter::print(&record.values()),
        old: said,
        changed,
        ..Letter::default()
    }
}
