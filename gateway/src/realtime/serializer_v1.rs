//! Serializer 1.0.0: a message is a JSON object. Binary frames don't exist; clients fail on them. Pure.

use serde::Deserialize;
use serde_json::value::RawValue;

use super::frame::{Body, Frame, Reference, quote, quote_some};

#[derive(Deserialize)]
struct Message<'a> {
    topic: String,
    event: String,
    #[serde(borrow, default)]
    payload: Option<&'a RawValue>,
    #[serde(default, rename = "ref")]
    reference: Option<Reference>,
    #[serde(default)]
    join_ref: Option<Reference>,
}

/// None for anything else.
pub(super) fn decode(text: &str) -> Option<Frame> {
    let message: Message<'_> = serde_json::from_str(text).ok()?;
    let payload = message.payload.map_or_else(empty, ToOwned::to_owned);
    Some(Frame {
        join_ref: message.join_ref.and_then(Reference::text),
        reference: message.reference.and_then(Reference::text),
        topic: message.topic,
        body: Body::Event { event: message.event, payload },
    })
}

pub(super) fn empty() -> Box<RawValue> {
    RawValue::from_string("{}".to_owned()).expect("it is JSON")
}

/// `payload` is JSON.
pub(super) fn encode(join: Option<&str>, reference: Option<&str>, topic: &str, event: &str, payload: &str) -> String {
    let (topic, event, reference) = (quote(topic), quote(event), quote_some(reference));
    let join = join.map_or_else(String::new, |join| format!(r#","join_ref":{}"#, quote(join)));
    format!(r#"{{"ref":{reference},"topic":{topic},"event":{event},"payload":{payload}{join}}}"#)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn frames_of_the_older_client_are_read() {
        let frame =
            decode(r#"{"topic":"realtime:r","event":"phx_leave","payload":{},"ref":"33","join_ref":null}"#).unwrap();
        assert_eq!((frame.join_ref, frame.reference.as_deref()), (None, Some("33")));
        let frame = decode(r#"{"topic":"phoenix","event":"heartbeat","payload":{},"ref":11}"#).unwrap();
        assert_eq!((&*frame.topic, frame.reference.as_deref()), ("phoenix", Some("11")));
        for bad in ["", "[]", "{}", r#"{"topic":1,"event":"e"}"#, r#"["1","1","t","e",{}]"#] {
            assert!(decode(bad).is_none(), "{bad}");
        }
    }

    #[test]
    fn a_reply_names_its_join_and_a_push_names_none() {
        assert_eq!(
            encode(Some("6"), Some("7"), "realtime:r", "phx_reply", r#"{"status":"ok","response":{}}"#),
            r#"{"ref":"7","topic":"realtime:r","event":"phx_reply","payload":{"status":"ok","response":{}},"join_ref":"6"}"#
        );
        assert_eq!(encode(None, None, "t", "e", "{}"), r#"{"ref":null,"topic":"t","event":"e","payload":{}}"#);
    }
}
