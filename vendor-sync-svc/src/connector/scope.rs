//! What expressions see: names, and how they are filled. Pure.
//!
//! A request sees no field that its allow-list doesn't name, whatever its caller hands over.

use std::collections::{BTreeMap, BTreeSet};

use bytes::Bytes;
use chassis::expression::Value;
use http::{HeaderMap, StatusCode};
use serde_json::{Map, Value as Json};

/// In requests.
pub(super) const REQUEST: &[&str] =
    &["changed", "current", "event", "given", "link", "old", "out", "page", "record", "settings", "since"];
/// In what decides whether a request is made at all.
pub(super) const RULE: &[&str] = &["changed", "event", "given", "old", "record", "settings"];
/// In a record's mapping out.
pub(super) const OUT: &[&str] = &["changed", "event", "link", "old", "record", "settings"];
/// In what an answer means.
pub(super) const ANSWER: &[&str] = &["body", "headers", "is_json", "lines", "status", "text"];
/// In what a resource means.
pub(super) const ITEM: &[&str] = &["item", "settings"];
/// In a webhook.
pub(super) const WEBHOOK: &[&str] = &["body", "headers", "item", "method", "query", "settings"];

const EVENT: &[&str] =
    &["id", "delivery_id", "type", "time", "source", "origin", "wedding_id", "couple_id", "supplier_id"];
const LINES: usize = 64;
const TEXT_BYTES: usize = 16 * 1024;

/// Everything that a request may look at: `given` by the caller under these names, fields held to `allowed`.
pub(super) fn of_request(
    given: &Json,
    settings: &BTreeMap<String, String>,
    allowed: &BTreeSet<String>,
    out: Json,
) -> Value {
    let member = |name: &str| given.get(name).cloned().unwrap_or(Json::Null);
    let object = |name: &str| given.get(name).filter(|value| value.is_object()).cloned().unwrap_or_else(empty);
    let (out, current) = (if out.is_null() { empty() } else { out }, object("current"));
    Value::scope([
        ("changed", Value::of(&changed(given, allowed))),
        ("current", Value::of(&current)),
        ("event", Value::of(&only(given.get("event"), |name| EVENT.contains(&name)))),
        ("given", Value::of(&object("given"))),
        ("link", Value::of(&object("link"))),
        ("old", Value::of(&fields(given.get("old"), allowed))),
        ("out", Value::of(&out)),
        ("page", Value::of(&object("page"))),
        ("record", Value::of(&fields(given.get("record"), allowed))),
        ("settings", of_settings(settings)),
        ("since", Value::of(&member("since"))),
    ])
}

/// An account's settings.
pub(super) fn of_settings(settings: &BTreeMap<String, String>) -> Value {
    Value::map(settings.iter().map(|(name, value)| (name.as_str(), Value::text(value))))
}

/// One resource of the vendor's.
pub(super) fn of_item(item: &Json, settings: &BTreeMap<String, String>) -> Value {
    Value::scope([("item", Value::of(item)), ("settings", of_settings(settings))])
}

/// An answer. `body` is none where it is no JSON.
pub(super) fn of_answer(status: StatusCode, headers: &HeaderMap, bytes: &Bytes, body: Option<&Json>) -> Value {
    let text = String::from_utf8_lossy(&bytes[..bytes.len().min(TEXT_BYTES)]);
    let lines: Vec<Json> =
        text.split(['\r', '\n']).filter(|line| !line.is_empty()).take(LINES).map(Json::from).collect();
    let headers = headers.iter().filter_map(|(name, value)| Some((name.as_str(), Value::text(value.to_str().ok()?))));
    Value::scope([
        ("body", Value::of(body.unwrap_or(&Json::Null))),
        ("headers", Value::map(headers)),
        ("is_json", Value::of(&Json::Bool(body.is_some()))),
        ("lines", Value::of(&Json::Array(lines))),
        ("status", Value::of(&status.as_u16().into())),
        ("text", Value::text(&text)),
    ])
}

/// `id` and what is allowed.
fn fields(record: Option<&Json>, allowed: &BTreeSet<String>) -> Json {
    only(record, |name| name == "id" || allowed.contains(name))
}

fn changed(given: &Json, allowed: &BTreeSet<String>) -> Json {
    let names = given.get("changed").and_then(Json::as_array);
    let shown = names.into_iter().flatten().filter(|name| name.as_str().is_some_and(|name| allowed.contains(name)));
    Json::Array(shown.cloned().collect())
}

fn only(object: Option<&Json>, shown: impl Fn(&str) -> bool) -> Json {
    let members = object.and_then(Json::as_object).into_iter().flatten().filter(|(name, _)| shown(name));
    Json::Object(members.map(|(name, value)| (name.clone(), value.clone())).collect())
}

fn empty() -> Json {
    Json::Object(Map::new())
}
