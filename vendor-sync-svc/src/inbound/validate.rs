//! What a body must be, by kind of integration; every refusal names the field. Pure.
//!
//! What is taken out of a body becomes part of an event's type, subject or channel, and is held to the strictest form of
//! that; content stays as it was sent.

use chassis::id;
use jiff::Timestamp;
use serde::Deserialize;
use serde_json::value::RawValue;

use super::{Answer, json};
use crate::integration::Kind;

const CLIENT_EVENTS: [&str; 4] = ["client.updated", "client.created", "client.deleted", "wedding.date_changed"];
const CHANNEL_BYTES: usize = 256;
const CHANNEL_SEGMENTS: usize = 8;
const TYPE_BYTES: usize = 128;
const IDENTIFIER_BYTES: usize = 63;

/// A body that holds.
#[derive(Debug)]
pub(super) enum Message<'a> {
    /// Something about one client.
    Client { event: String, client_id: String, time: Timestamp, data: &'a RawValue },
    /// Something for one live channel.
    Channel { channel: String, event_type: String, time: Timestamp, payload: &'a RawValue },
    /// What a database statement did to one row.
    Change(Change<'a>),
    /// What a vendor sends; its integration knows how to read it.
    Vendor { body: &'a str },
}

/// INSERT has no old record, DELETE no new one.
#[derive(Debug)]
pub(super) struct Change<'a> {
    pub(super) schema: String,
    pub(super) table: String,
    pub(super) operation: Operation,
    pub(super) old: Option<&'a RawValue>,
    pub(super) new: Option<&'a RawValue>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Operation {
    Insert,
    Update,
    Delete,
}

/// Reads a body of an integration of `kind`.
///
/// # Errors
/// `Answer::Invalid` naming the field.
pub(super) fn validate(kind: Kind, body: &[u8]) -> Result<Message<'_>, Answer> {
    let body = json::check(body)?;
    match kind {
        Kind::ClientSync => client(body),
        Kind::ChannelEvents => channel(body),
        Kind::Supabase => change(body).map(Message::Change),
        Kind::SignedWebhook | Kind::Connector => Ok(Message::Vendor { body }),
    }
}

#[derive(Deserialize)]
struct ClientBody<'a> {
    #[serde(borrow)]
    event: Option<&'a RawValue>,
    #[serde(borrow)]
    data: Option<&'a RawValue>,
    #[serde(borrow)]
    timestamp: Option<&'a RawValue>,
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct ClientData<'a> {
    #[serde(borrow)]
    client_id: Option<&'a RawValue>,
    #[serde(borrow)]
    changes: Option<&'a RawValue>,
}

fn client(body: &str) -> Result<Message<'_>, Answer> {
    let body: ClientBody<'_> = json::members("body", body)?;
    let event = json::text("event", body.event, TYPE_BYTES)?;
    if !CLIENT_EVENTS.contains(&event.as_str()) {
        return Err(Answer::invalid("event", format!("must be one of {}", CLIENT_EVENTS.join(", "))));
    }
    let time = json::timestamp(body.timestamp)?;
    let data = json::object("data", body.data)?;
    let members: ClientData<'_> = json::members("data", data.get())?;
    let client_id = uuid("data.clientId", members.client_id)?;
    if members.changes.is_some_and(|changes| !changes.get().starts_with(['{', '['])) {
        return Err(Answer::invalid("data.changes", "must be an object"));
    }
    Ok(Message::Client { event, client_id, time, data })
}

/// In its usual form of 36 characters; capitals become small.
fn uuid(field: &'static str, member: Option<&RawValue>) -> Result<String, Answer> {
    let text = json::text(field, member, 36)?;
    let bytes = id::parse_uuid(&text).filter(|_| text.len() == 36);
    bytes.map(id::uuid_text).ok_or_else(|| Answer::invalid(field, "must be a UUID"))
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct ChannelBody<'a> {
    #[serde(borrow)]
    channel_name: Option<&'a RawValue>,
    #[serde(borrow)]
    event_type: Option<&'a RawValue>,
    #[serde(borrow)]
    payload: Option<&'a RawValue>,
    #[serde(borrow)]
    timestamp: Option<&'a RawValue>,
}

fn channel(body: &str) -> Result<Message<'_>, Answer> {
    let body: ChannelBody<'_> = json::members("body", body)?;
    let channel = json::text("channelName", body.channel_name, CHANNEL_BYTES)?;
    if !is_channel(&channel) {
        let reason = "must be 1 to 8 segments joined by `:`, without blanks or `*`, at most 256 bytes";
        return Err(Answer::invalid("channelName", reason));
    }
    let event_type = json::text("eventType", body.event_type, TYPE_BYTES)?;
    let payload = json::required("payload", body.payload)?;
    let time = json::timestamp(body.timestamp)?;
    Ok(Message::Channel { channel, event_type, time, payload })
}

fn is_channel(text: &str) -> bool {
    let is_segment = |segment: &str| {
        !segment.is_empty() && !segment.chars().any(|c| c.is_control() || c.is_whitespace() || c == '*')
    };
    text.len() <= CHANNEL_BYTES && text.split(':').count() <= CHANNEL_SEGMENTS && text.split(':').all(is_segment)
}

/// Whether the router takes it as an event's type: dotted segments of `[a-z0-9_]`.
pub(super) fn is_dotted_type(text: &str) -> bool {
    let is_segment = |segment: &str| {
        !segment.is_empty() && segment.bytes().all(|b| b.is_ascii_lowercase() || b.is_ascii_digit() || b == b'_')
    };
    text.len() <= TYPE_BYTES && text.contains('.') && text.split('.').all(is_segment)
}

#[derive(Deserialize)]
struct ChangeBody<'a> {
    #[serde(borrow, rename = "type")]
    type_: Option<&'a RawValue>,
    #[serde(borrow)]
    table: Option<&'a RawValue>,
    #[serde(borrow)]
    schema: Option<&'a RawValue>,
    #[serde(borrow)]
    record: Option<&'a RawValue>,
    #[serde(borrow)]
    old_record: Option<&'a RawValue>,
}

/// A Supabase Database Webhook's body.
///
/// # Errors
/// `Answer::Invalid` naming the field.
pub(super) fn change(body: &str) -> Result<Change<'_>, Answer> {
    let body: ChangeBody<'_> = json::members("body", body)?;
    let operation = match json::text("type", body.type_, TYPE_BYTES)?.as_str() {
        "INSERT" => Operation::Insert,
        "UPDATE" => Operation::Update,
        "DELETE" => Operation::Delete,
        _ => return Err(Answer::invalid("type", "must be INSERT, UPDATE or DELETE")),
    };
    let schema = identifier("schema", body.schema)?;
    let table = identifier("table", body.table)?;
    let new = match operation {
        Operation::Delete => none("record", body.record)?,
        Operation::Insert | Operation::Update => Some(json::object("record", body.record)?),
    };
    let old = match operation {
        Operation::Insert => none("old_record", body.old_record)?,
        Operation::Delete => Some(json::object("old_record", body.old_record)?),
        Operation::Update => body.old_record.map(|old| json::object("old_record", Some(old))).transpose()?,
    };
    Ok(Change { schema, table, operation, old, new })
}

fn none<'a>(field: &'static str, member: Option<&'a RawValue>) -> Result<Option<&'a RawValue>, Answer> {
    match member {
        None => Ok(None),
        Some(_) => Err(Answer::invalid(field, "must be null for this type")),
    }
}

fn identifier(field: &'static str, member: Option<&RawValue>) -> Result<String, Answer> {
    let name = json::text(field, member, IDENTIFIER_BYTES)?;
    let allowed = |b: u8| b.is_ascii_alphanumeric() || b"_$-".contains(&b);
    if name.bytes().all(allowed) { Ok(name) } else { Err(Answer::invalid(field, "must match [A-Za-z0-9_$-]{1,63}")) }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const CLIENT: &str = r#"{"event":"client.updated","data":{"clientId":"3F2504E0-4F89-41D3-9A0C-0305E82C3301","changes":{"n":1.50}},"timestamp":"2026-05-01T14:00:00+02:00"}"#;
    const CHANNEL: &str = r#"{"channelName":"form:response:7","eventType":"form.response_received","payload":{"a":1},"timestamp":"2026-05-01T12:00:00Z"}"#;
    const INSERT: &str =
        r#"{"type":"INSERT","table":"wedding_details","schema":"public","record":{"id":1},"old_record":null}"#;
    const UPDATE: &str = r#"{"type":"UPDATE","table":"t","schema":"s","record":{"id":1},"old_record":{"id":1}}"#;
    const DELETE: &str = r#"{"type":"DELETE","table":"t","schema":"s","record":null,"old_record":{"id":1}}"#;

    fn field_at_fault(kind: Kind, body: &str) -> String {
        match validate(kind, body.as_bytes()) {
            Err(Answer::Invalid { field, .. }) => field.into_owned(),
            other => panic!("accepted, or refused in another way: {body} {other:?}"),
        }
    }

    #[test]
    fn the_documented_bodies_are_taken() {
        let Ok(Message::Client { event, client_id, time, data }) = validate(Kind::ClientSync, CLIENT.as_bytes()) else {
            panic!("client")
        };
        assert_eq!((event.as_str(), client_id.as_str()), ("client.updated", "3f2504e0-4f89-41d3-9a0c-0305e82c3301"));
        assert_eq!(time, "2026-05-01T12:00:00Z".parse().unwrap());
        assert!(data.get().contains("1.50"), "numbers keep their digits");
        assert!(matches!(validate(Kind::ChannelEvents, CHANNEL.as_bytes()), Ok(Message::Channel { .. })));
        for body in [
            INSERT,
            UPDATE,
            DELETE,
            r#"{"type":"UPDATE","table":"t","schema":"s","record":{"id":1},"old_record":null}"#,
        ] {
            assert!(matches!(validate(Kind::Supabase, body.as_bytes()), Ok(Message::Change(_))), "{body}");
        }
    }

    #[test]
    fn each_fault_of_a_client_sync_names_its_field() {
        let cases = [
            ("client.updated", "client.exploded", "event"),
            ("\"client.updated\"", "7", "event"),
            ("\"event\":\"client.updated\",", "", "event"),
            ("3F2504E0-4F89-41D3-9A0C-0305E82C3301", "client-7", "data.clientId"),
            ("3F2504E0-4F89-41D3-9A0C-0305E82C3301", "3F2504E04F8941D39A0C0305E82C3301", "data.clientId"),
            ("{\"n\":1.50}", "\"all\"", "data.changes"),
            ("2026-05-01T14:00:00+02:00", "1 May", "timestamp"),
            ("2026-05-01T14:00:00+02:00", "2026-05-01T14:00:00", "timestamp"),
            ("{\"event\"", "{\"event\":\"client.created\",\"event\"", "body"),
            ("{\"clientId\"", "{\"clientId\":\"x\",\"clientId\"", "data"),
            ("}}", "}} extra", "body"),
        ];
        for (from, to, field) in cases {
            let body = CLIENT.replacen(from, to, 1);
            assert_ne!(body, CLIENT);
            assert_eq!(field_at_fault(Kind::ClientSync, &body), field, "{body}");
        }
        assert_eq!(field_at_fault(Kind::ClientSync, "[1]"), "body");
        assert_eq!(
            field_at_fault(
                Kind::ClientSync,
                r#"{"event":"client.updated","data":7,"timestamp":"2026-05-01T12:00:00Z"}"#
            ),
            "data"
        );
    }

    #[test]
    fn each_fault_of_a_channel_event_names_its_field() {
        let cases = [
            ("form:response:7", "form:*:7", "channelName"),
            ("form:response:7", "form::7", "channelName"),
            ("form:response:7", "form:res ponse", "channelName"),
            ("form:response:7", "a:b:c:d:e:f:g:h:i", "channelName"),
            ("form:response:7", "form\\u0007", "channelName"),
            ("\"form.response_received\"", "null", "eventType"),
            ("{\"a\":1}", "null", "payload"),
            ("2026-05-01T12:00:00Z", "", "timestamp"),
        ];
        for (from, to, field) in cases {
            assert_eq!(field_at_fault(Kind::ChannelEvents, &CHANNEL.replacen(from, to, 1)), field, "{to}");
        }
    }

    #[test]
    fn each_fault_of_a_database_webhook_names_its_field() {
        let cases = [
            (INSERT, "INSERT", "TRUNCATE", "type"),
            (INSERT, "wedding_details", "t; drop table x", "table"),
            (INSERT, "\"schema\":\"public\",", "", "schema"),
            (INSERT, "{\"id\":1}", "null", "record"),
            (INSERT, "\"old_record\":null", "\"old_record\":{}", "old_record"),
            (UPDATE, "\"record\":{\"id\":1}", "\"record\":[1]", "record"),
            (UPDATE, "\"old_record\":{\"id\":1}", "\"old_record\":7", "old_record"),
            (DELETE, "\"record\":null", "\"record\":{}", "record"),
            (DELETE, "\"old_record\":{\"id\":1}", "\"old_record\":null", "old_record"),
        ];
        for (body, from, to, field) in cases {
            assert_eq!(field_at_fault(Kind::Supabase, &body.replacen(from, to, 1)), field, "{to}");
        }
    }

    #[test]
    fn types_are_dotted_and_in_lower_case() {
        assert!(is_dotted_type("form.response_received"));
        for text in ["update", "Form.Response", "a..b", ".a", "a.b-c", &format!("a.{}", "b".repeat(127))] {
            assert!(!is_dotted_type(text), "{text}");
        }
    }

    proptest! {
        #[test]
        fn no_body_whatever_makes_a_channel_or_a_client_id_that_could_be_misread(name in "\\PC{0,40}", id in "[0-9a-fA-F{}:urnid-]{30,46}") {
            let body = CHANNEL.replace("\"form:response:7\"", &serde_json::to_string(&name).unwrap());
            if let Ok(Message::Channel { channel, .. }) = validate(Kind::ChannelEvents, body.as_bytes()) {
                prop_assert!(!channel.contains(['*', ' ', '\n', '\0']) && !channel.is_empty());
            }
            let body = CLIENT.replace("3F2504E0-4F89-41D3-9A0C-0305E82C3301", &id);
            if let Ok(Message::Client { client_id, .. }) = validate(Kind::ClientSync, body.as_bytes()) {
                prop_assert!(client_id.len() == 36 && client_id == id.to_lowercase());
            }
        }
    }
}
