//! From a valid message to the event that it means. Pure.
//!
//! A signed webhook's type and data come from its integration's expressions over `body` and `headers`; what they give is
//! held to the same rules as what the other kinds send. Why an expression failed is logged for the operator: the sender
//! learns no more than that its body could not be read.

use bytes::Bytes;
use chassis::expression::{Expression, ExpressionError, Mapping, Value};
use jiff::Timestamp;
use serde::{Deserialize, Serialize};
use serde_json::value::RawValue;

use super::{
    Answer, Headers,
    dedupe::Key,
    json,
    publish::{Event, Payload},
    validate::{Change, Message, is_dotted_type},
};
use crate::integration::{NAMES, Settings};

/// What a channel event is whose type isn't one of ours.
const CHANNEL_EVENT: &str = "channel.event";
/// Never shown to expressions.
const HIDDEN_HEADERS: [&str; 3] = ["authorization", "cookie", "proxy-authorization"];

/// Makes the event of a message that came at `now`.
///
/// # Errors
/// `Answer::Invalid` for what a vendor's body lacks.
pub(super) fn transform(
    settings: &Settings,
    headers: &Headers,
    message: Message<'_>,
    key: &Key,
    now: Timestamp,
) -> Result<Event, Answer> {
    let id = key.event_id.as_str();
    match message {
        Message::Client { event: type_, client_id, time, data } => {
            let plain = event(id, type_, time, content(data.get()));
            Ok(Event { subject: client_id.clone(), couple_id: client_id, ..plain })
        }
        Message::Channel { channel, event_type, time, payload } => {
            let (type_, data) = channel_event(event_type, payload)?;
            Ok(Event { channels: vec![channel], ..event(id, type_, time, content(&data)) })
        }
        Message::Change(change) => Ok(change_event(&change, id, now)),
        Message::Vendor { body } => {
            let scope = scope(headers, body)?;
            let type_ = event_type(settings, &scope, body)?;
            Ok(event(id, type_, now, content(&data(settings, &scope, body)?)))
        }
    }
}

/// The event of a database change that came at `now`. Its type follows from the change.
pub(super) fn change_event(change: &Change<'_>, id: &str, now: Timestamp) -> Event {
    let bytes =
        |record: Option<&RawValue>| record.map(|raw| Bytes::copy_from_slice(raw.get().as_bytes())).unwrap_or_default();
    let payload = Payload::Change {
        schema: change.schema.clone(),
        table: change.table.clone(),
        operation: change.operation,
        old: bytes(change.old),
        new: bytes(change.new),
    };
    event(id, String::new(), now, payload)
}

fn event(id: &str, type_: String, time: Timestamp, payload: Payload) -> Event {
    Event {
        id: id.to_owned(),
        type_,
        subject: String::new(),
        couple_id: String::new(),
        time,
        channels: Vec::new(),
        traceparent: chassis::trace::current().map(|context| context.to_string()).unwrap_or_default(),
        payload,
    }
}

fn content(json: &str) -> Payload {
    Payload::Content(Bytes::copy_from_slice(json.as_bytes()))
}

/// A type that the router can't hold stays in the content.
fn channel_event(event_type: String, payload: &RawValue) -> Result<(String, String), Answer> {
    #[derive(Serialize)]
    #[serde(rename_all = "camelCase")]
    struct Wrapped<'a> {
        event_type: &'a str,
        payload: &'a RawValue,
    }
    if is_dotted_type(&event_type) {
        return Ok((event_type, payload.get().to_owned()));
    }
    let wrapped = serde_json::to_string(&Wrapped { event_type: &event_type, payload });
    let wrapped = wrapped.map_err(|_| Answer::invalid("payload", "must be JSON"))?;
    Ok((CHANNEL_EVENT.to_owned(), wrapped))
}

fn scope(headers: &Headers, body: &str) -> Result<Value, Answer> {
    let body = Value::from_json(body.as_bytes()).map_err(|_| Answer::invalid("body", "must be JSON"))?;
    let shown = headers.0.iter().filter(|(name, _)| !HIDDEN_HEADERS.contains(&name.as_str()));
    let texts = shown.filter_map(|(name, value)| Some((name.as_str(), Value::text(std::str::from_utf8(value).ok()?))));
    Ok(Value::scope([("body", body), ("headers", Value::map(texts))]))
}

#[derive(Deserialize)]
struct Defaults<'a> {
    #[serde(borrow, rename = "type")]
    type_: Option<&'a RawValue>,
    #[serde(borrow)]
    data: Option<&'a RawValue>,
}

fn event_type(settings: &Settings, scope: &Value, body: &str) -> Result<String, Answer> {
    let invalid = || Answer::invalid("type", "must give a dotted event type");
    let type_ = if settings.event_type.is_empty() {
        let defaults: Defaults<'_> = json::members("body", body)?;
        json::text("type", defaults.type_, 128)?
    } else {
        let expression = Expression::compile(&settings.event_type, NAMES);
        let value = expression.and_then(|expression| expression.eval(scope)).map_err(|error| failed("type", &error))?;
        value.as_str().ok_or_else(invalid)?.to_owned()
    };
    if is_dotted_type(&type_) { Ok(type_) } else { Err(invalid()) }
}

fn data(settings: &Settings, scope: &Value, body: &str) -> Result<String, Answer> {
    if settings.transformation.is_empty() {
        // A body that is no object has no `data`, and stands for itself.
        let data = serde_json::from_str::<Defaults<'_>>(body).ok().and_then(|defaults| defaults.data);
        return Ok(data.map_or_else(|| body.to_owned(), |data| data.get().to_owned()));
    }
    let mapping = Mapping::compile(&settings.transformation, NAMES);
    let value = mapping.and_then(|mapping| mapping.apply(scope)).map_err(|error| failed("body", &error))?;
    let text = value.to_string();
    if text.len() <= json::BODY_LIMIT { Ok(text) } else { Err(Answer::invalid("body", "gives more than 1 MiB")) }
}

fn failed(field: &'static str, error: &ExpressionError) -> Answer {
    tracing::warn!(%error, "an integration's expression failed");
    Answer::invalid(field, "could not be read as this integration is configured to")
}

#[cfg(test)]
mod tests {
    use chassis::testing::noon;

    use super::*;
    use crate::inbound::{tests::key, validate::validate};
    use crate::integration::{Kind, tests::settings};

    fn of(settings: &Settings, headers: &Headers, body: &str) -> Result<Event, Answer> {
        transform(settings, headers, validate(settings.kind, body.as_bytes())?, &key(), noon())
    }

    fn text(event: &Event) -> &str {
        let Payload::Content(data) = &event.payload else { panic!("not content") };
        std::str::from_utf8(data).unwrap()
    }

    #[test]
    fn a_client_is_subject_and_couple_and_its_data_is_passed_on_as_sent() {
        let body = r#"{"event":"wedding.date_changed","data":{"clientId":"3f2504e0-4f89-41d3-9a0c-0305e82c3301","changes":{"price":10.00}},"timestamp":"2026-05-01T11:59:00Z"}"#;
        let event = of(&settings(Kind::ClientSync), &Headers::default(), body).expect("an event");
        assert_eq!(event.type_, "wedding.date_changed");
        assert_eq!(
            (event.subject.as_str(), event.couple_id.as_str()),
            ("3f2504e0-4f89-41d3-9a0c-0305e82c3301", event.subject.as_str())
        );
        assert_eq!(event.time, "2026-05-01T11:59:00Z".parse().unwrap());
        assert_eq!(text(&event), r#"{"clientId":"3f2504e0-4f89-41d3-9a0c-0305e82c3301","changes":{"price":10.00}}"#);
    }

    #[test]
    fn a_channel_event_keeps_a_type_that_the_router_knows_and_wraps_another() {
        let body = |event_type: &str| {
            format!(
                r#"{{"channelName":"couple:7","eventType":"{event_type}","payload":[1.0],"timestamp":"2026-05-01T12:00:00Z"}}"#
            )
        };
        let known =
            of(&settings(Kind::ChannelEvents), &Headers::default(), &body("payment.received")).expect("an event");
        assert_eq!((known.type_.as_str(), text(&known)), ("payment.received", "[1.0]"));
        assert_eq!(known.channels, ["couple:7"]);
        let other = of(&settings(Kind::ChannelEvents), &Headers::default(), &body("INSERT")).expect("an event");
        assert_eq!(
            (other.type_.as_str(), text(&other)),
            ("channel.event", r#"{"eventType":"INSERT","payload":[1.0]}"#)
        );
    }

    #[test]
    fn a_vendors_body_is_read_by_default_or_by_expression() {
        let plain = settings(Kind::SignedWebhook);
        let event =
            of(&plain, &Headers::default(), r#"{"type":"booking.updated","data":{"n":1.10}}"#).expect("an event");
        assert_eq!((event.type_.as_str(), text(&event)), ("booking.updated", r#"{"n":1.10}"#));
        let whole = r#"{"type":"booking.updated","n":1}"#;
        assert_eq!(text(&of(&plain, &Headers::default(), whole).expect("an event")), whole);
        let own = Settings {
            event_type: "'booking.updated' if headers['x-topic'] == 'jobs' else 'booking.' + 1".to_owned(),
            transformation: r#"{"id": "body.job.id", "kind": "headers['x-topic']"}"#.to_owned(),
            ..plain
        };
        let headers = Headers(vec![("x-topic".to_owned(), Bytes::from_static(b"jobs"))]);
        let event = of(&own, &headers, r#"{"job":{"id":7}}"#).expect("an event");
        assert_eq!((event.type_.as_str(), text(&event)), ("booking.updated", r#"{"id":7,"kind":"jobs"}"#));
        assert!(matches!(of(&own, &Headers::default(), "{}"), Err(Answer::Invalid { .. })), "an expression that fails");
    }

    #[test]
    fn a_vendors_body_without_a_usable_type_is_told_so() {
        for body in [r#"{"data":{}}"#, r#"{"type":"Booking Updated"}"#, r#"{"type":7}"#] {
            let answer = of(&settings(Kind::SignedWebhook), &Headers::default(), body);
            assert!(matches!(answer, Err(Answer::Invalid { ref field, .. }) if field == "type"), "{body}");
        }
    }

    #[test]
    fn credentials_are_hidden_from_expressions() {
        let own = Settings { event_type: "headers.authorization".to_owned(), ..settings(Kind::SignedWebhook) };
        let headers = Headers(vec![("authorization".to_owned(), Bytes::from_static(b"booking.updated"))]);
        assert!(of(&own, &headers, "{}").is_err());
    }
}
