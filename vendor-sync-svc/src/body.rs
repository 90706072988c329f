//! The body of a webhook: what one endpoint is told about one event, as bytes that every attempt repeats. Pure.
//!
//! The field policy is applied first, so that a transformation sees no more than the endpoint may be sent.

use std::collections::BTreeMap;

use base64::{Engine as _, prelude::BASE64_STANDARD};
use bytes::Bytes;
use chassis::id;
use serde::Serialize;
use serde_json::value::RawValue;

use crate::{
    endpoint::Endpoint,
    event::{Event, Payload},
    letter::Letter,
    policy::{Personal, Policy},
};

/// The longest body, in bytes: two records of the router's limit with what stands around them.
const BODY_BYTES: usize = 2 << 20;

/// Writes letters. Cheap to clone.
#[derive(Clone, Debug)]
pub(crate) struct Renderer {
    personal: Personal,
}

impl Renderer {
    /// Keeps the columns of this table back.
    pub(crate) fn new(personal: Personal) -> Self {
        Self { personal }
    }

    /// What `endpoint` is sent about `event`. Where it can't be said (a transformation that fails on this event) the
    /// letter holds the reason, and is a dead letter at its first attempt.
    pub(crate) fn letter(&self, endpoint: &Endpoint, event: &Event) -> Letter {
        envelope(event, self.body(endpoint, event))
    }

    fn body(&self, endpoint: &Endpoint, event: &Event) -> Result<Vec<u8>, String> {
        let settings = &endpoint.settings;
        let policy =
            Policy { personal: &self.personal, granted: &settings.granted_fields, allowed: &settings.allowed_fields };
        let records =
            Records::of(event, &policy).map_err(|error| format!("the event's records can't be read: {error}"))?;
        let Some(mapping) = &endpoint.compiled.transformation else {
            return Ok(standard(event, &records));
        };
        let bytes = |record: &Option<Box<RawValue>>| record.as_ref().map(|raw| raw.get().as_bytes().to_vec());
        let scope = event.scope_over(bytes(&records.old).as_deref(), bytes(&records.new).as_deref());
        let body = mapping.apply(&scope).map_err(|error| format!("the transformation failed: {error}"))?;
        Ok(serde_json::to_vec(&body).expect("JSON prints"))
    }
}

/// What an endpoint is sent about a domain event of our own making, whatever its settings.
pub(crate) fn plain_letter(event: &Event, data: &serde_json::Value) -> Letter {
    let data = serde_json::value::to_raw_value(data).expect("JSON prints");
    envelope(event, Ok(standard(event, &Records { old: None, new: Some(data) })))
}

fn envelope(event: &Event, body: Result<Vec<u8>, String>) -> Letter {
    let (body, failure) = match body {
        Ok(body) if body.len() <= BODY_BYTES => (Bytes::from(body), String::new()),
        Ok(_) => (Bytes::new(), "the body is longer than 2 MiB".to_owned()),
        Err(reason) => (Bytes::new(), reason),
    };
    Letter {
        webhook_id: webhook_id(event.uid),
        event_type: event.type_.clone(),
        timestamp: event.time.to_string(),
        traceparent: event.metadata.traceparent.clone(),
        body,
        failure,
    }
}

/// `webhook-id`: the same for all endpoints and attempts of an event.
pub(crate) fn webhook_id(uid: [u8; 16]) -> String {
    format!("msg_{}", id::uuid_text(uid))
}

/// The records that leave. The content of a domain event stands in `new`.
struct Records {
    old: Option<Box<RawValue>>,
    new: Option<Box<RawValue>>,
}

impl Records {
    fn of(event: &Event, policy: &Policy<'_>) -> Result<Self, serde_json::Error> {
        let apply = |record: &Option<Bytes>| record.as_deref().map(|json| policy.apply(json)).transpose();
        match &event.payload {
            Payload::Change { old, new, .. } => Ok(Self { old: apply(old)?, new: apply(new)? }),
            Payload::Content { content_type, data } if is_json(content_type) => {
                Ok(Self { old: None, new: Some(policy.apply(data)?) })
            }
            Payload::Content { data, .. } => {
                let text = serde_json::value::to_raw_value(&BASE64_STANDARD.encode(data))?;
                Ok(Self { old: None, new: Some(text) })
            }
        }
    }
}

/// `application/json`, which an empty media type means too, and everything that ends in `+json`.
fn is_json(content_type: &str) -> bool {
    let essence = content_type.split(';').next().unwrap_or_default().trim().to_ascii_lowercase();
    essence.is_empty() || essence == "application/json" || essence.ends_with("+json")
}

#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
struct ChangeBody<'a> {
    table: &'a str,
    event_type: &'a str,
    old_record: Option<&'a RawValue>,
    new_record: Option<&'a RawValue>,
    timestamp: String,
    metadata: BTreeMap<&'static str, String>,
}

#[derive(Serialize)]
struct ContentBody<'a> {
    #[serde(rename = "type")]
    type_: &'a str,
    timestamp: String,
    data: Option<&'a RawValue>,
    metadata: BTreeMap<&'static str, String>,
}

fn standard(event: &Event, records: &Records) -> Vec<u8> {
    let (old_record, new_record) = (records.old.as_deref(), records.new.as_deref());
    let (timestamp, metadata) = (event.time.to_string(), metadata(event));
    let printed = match &event.payload {
        Payload::Change { table, operation, .. } => serde_json::to_vec(&ChangeBody {
            table,
            event_type: operation.upper(),
            old_record,
            new_record,
            timestamp,
            metadata,
        }),
        Payload::Content { .. } => {
            serde_json::to_vec(&ContentBody { type_: &event.type_, timestamp, data: new_record, metadata })
        }
    };
    printed.expect("strings and JSON print as JSON")
}

fn metadata(event: &Event) -> BTreeMap<&'static str, String> {
    let known = &event.metadata;
    let (schema, content_type) = match &event.payload {
        Payload::Change { schema, .. } => (schema.clone(), String::new()),
        Payload::Content { content_type, .. } if is_json(content_type) => Default::default(),
        // `data` is base64 then.
        Payload::Content { content_type, .. } => (String::new(), content_type.clone()),
    };
    let members = [
        ("eventId", event.id.clone()),
        ("eventUid", id::uuid_text(event.uid)),
        ("organizationId", event.organization.to_string()),
        ("priority", event.priority.as_str().to_owned()),
        ("source", event.source.clone()),
        ("subject", event.subject.clone()),
        ("schema", schema),
        ("dataContentType", content_type),
        ("weddingId", known.wedding_id.clone()),
        ("supplierId", known.supplier_id.clone()),
        ("coupleId", known.couple_id.clone()),
        ("cause", known.cause.clone()),
        ("traceparent", known.traceparent.clone()),
    ];
    members.into_iter().filter(|(_, text)| !text.is_empty()).collect()
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;
    use crate::{
        endpoint::tests::{endpoint, settings},
        event::tests::{change, content},
    };

    fn rendered(change_settings: impl FnOnce(&mut crate::endpoint::Settings), event: &Event) -> Letter {
        let mut settings = settings();
        change_settings(&mut settings);
        Renderer::new(Personal::built_in()).letter(&endpoint("a", settings), event)
    }

    fn parsed(letter: &Letter) -> serde_json::Value {
        assert_eq!(letter.failure, "");
        serde_json::from_slice(&letter.body).expect("a JSON body")
    }

    #[test]
    fn a_change_shows_both_records_and_an_insert_has_no_old_one() {
        let body =
            parsed(&rendered(|_| {}, &change(r#"{"id":"w1","guest_count":1}"#, r#"{"id":"w1","guest_count":2}"#)));
        assert_eq!(body["table"], "wedding_details");
        assert_eq!(body["eventType"], "UPDATE");
        assert_eq!(body["oldRecord"], json!({"id": "w1", "guest_count": 1}));
        assert_eq!(body["newRecord"], json!({"id": "w1", "guest_count": 2}));
        assert_eq!(body["timestamp"], "2026-05-01T12:00:00Z");
        assert_eq!(body["metadata"]["weddingId"], "w1");
        let insert = parsed(&rendered(|_| {}, &change("", "{}")));
        assert_eq!((&insert["oldRecord"], &insert["eventType"]), (&json!(null), &json!("INSERT")));
        let delete = parsed(&rendered(|_| {}, &change("{}", "")));
        assert_eq!((&delete["newRecord"], &delete["eventType"]), (&json!(null), &json!("DELETE")));
    }

    #[test]
    fn personal_columns_are_in_neither_record() {
        let row = r#"{"id":"w1","bride_name":"Ana","email":"ana@example.com"}"#;
        let letter = rendered(|_| {}, &change(row, row));
        let text = std::str::from_utf8(&letter.body).expect("text");
        assert!(!text.contains("Ana") && !text.contains("ana@"), "{text}");
        let granted =
            rendered(|settings| settings.granted_fields = ["bride_name".to_owned()].into(), &change(row, row));
        let body = parsed(&granted);
        assert_eq!(body["oldRecord"], json!({"id": "w1", "bride_name": "Ana"}));
        assert_eq!(body["newRecord"], body["oldRecord"]);
    }

    #[test]
    fn numbers_arrive_as_they_were_sent() {
        let letter = rendered(|_| {}, &change("", r#"{"total":1234567890123456789012.10}"#));
        assert!(std::str::from_utf8(&letter.body).expect("text").contains(r#""total":1234567890123456789012.10"#));
    }

    #[test]
    fn a_domain_event_shows_its_data_and_other_bytes_come_as_base64() {
        let body = parsed(&rendered(|_| {}, &content("payment.received", r#"{"amount":10.00,"email":"x"}"#)));
        assert_eq!(body["type"], "payment.received");
        assert_eq!(body["data"], json!({"amount": 10.00}));
        let mut image = content("photo.added", "abc");
        image.payload = Payload::Content { content_type: "image/png".to_owned(), data: Bytes::from_static(b"abc") };
        let body = parsed(&rendered(|_| {}, &image));
        assert_eq!((&body["data"], &body["metadata"]["dataContentType"]), (&json!("YWJj"), &json!("image/png")));
    }

    #[test]
    fn a_transformation_replaces_the_body_and_sees_no_more_than_the_policy_lets_out() {
        let source = r#"{"guests": "new.guest_count", "who": "new.email", "kind": "event.type"}"#;
        let event = change("", r#"{"guest_count":5,"email":"ana@example.com"}"#);
        let body = parsed(&rendered(|settings| settings.transformation = source.to_owned(), &event));
        assert_eq!(body, json!({"guests": 5, "who": null, "kind": "wedding_details.insert"}));
    }

    #[test]
    fn a_transformation_that_fails_says_why_and_gives_no_body() {
        let letter = rendered(
            |settings| settings.transformation = r#"{"a": "new.guest_count + 1"}"#.to_owned(),
            &change("", "{}"),
        );
        assert!(letter.failure.contains("transformation") && letter.body.is_empty(), "{}", letter.failure);
    }
}
