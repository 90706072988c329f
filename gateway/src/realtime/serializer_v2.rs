//! Serializer 2.0.0: a message is a JSON array of five, `[join_ref, ref, topic, event, payload]`; broadcasts may be
//! binary. Of the binary kinds clients send one (3) and understand one (4). Pure.
//!
//! A binary frame begins with its kind and a byte per length, so names in it have at most 255 bytes.

use bytes::{BufMut as _, Bytes, BytesMut};
use serde_json::value::RawValue;

use super::frame::{Body, Content, Frame, Push, Reference, quote, quote_some};

/// Of a client: a broadcast.
const PUSH: u8 = 3;
/// Of ours: a broadcast.
const BROADCAST: u8 = 4;
/// What a broadcast's bytes are.
const RAW: u8 = 0;
const JSON: u8 = 1;

type Message<'a> = (Option<Reference>, Option<Reference>, String, String, &'a RawValue);

/// None for anything else.
pub(super) fn decode(text: &str) -> Option<Frame> {
    let (join_ref, reference, topic, event, payload): Message<'_> = serde_json::from_str(text).ok()?;
    Some(Frame {
        join_ref: join_ref.and_then(Reference::text),
        reference: reference.and_then(Reference::text),
        topic,
        body: Body::Event { event, payload: payload.to_owned() },
    })
}

/// Reads a binary broadcast; none for other kinds, and for lengths that don't fit. Clients before 2.110.4 write a byte
/// for each UTF-16 unit of a name, so what isn't UTF-8 is read leniently.
pub(super) fn decode_binary(bytes: &Bytes) -> Option<Frame> {
    let (&[PUSH, join, reference, topic, event, meta, encoding], mut rest) = bytes.split_first_chunk::<7>()? else {
        return None;
    };
    let mut next = |length: u8| {
        let (part, after) = rest.split_at_checked(length.into())?;
        rest = after;
        Some(lenient(part))
    };
    let (join, reference, topic, event, _meta) =
        (next(join)?, next(reference)?, next(topic)?, next(event)?, next(meta)?);
    let data = bytes.slice_ref(rest);
    let content = match encoding {
        JSON => Content::Json(data),
        RAW => Content::Raw(data),
        _ => return None,
    };
    let some = |text: String| Some(text).filter(|text| !text.is_empty());
    let body = Body::Broadcast(Push { event, content });
    Some(Frame { join_ref: some(join), reference: some(reference), topic, body })
}

fn lenient(bytes: &[u8]) -> String {
    match std::str::from_utf8(bytes) {
        Ok(text) => text.to_owned(),
        Err(_) => bytes.iter().copied().map(char::from).collect(),
    }
}

/// `payload` is JSON.
pub(super) fn encode(join: Option<&str>, reference: Option<&str>, topic: &str, event: &str, payload: &str) -> String {
    format!("[{},{},{},{},{payload}]", quote_some(join), quote_some(reference), quote(topic), quote(event))
}

/// A broadcast of raw bytes; none if a name is too long for it.
pub(super) fn encode_binary(topic: &str, event: &str, meta: &str, data: &[u8]) -> Option<Bytes> {
    let length = |text: &str| u8::try_from(text.len()).ok();
    let head = [BROADCAST, length(topic)?, length(event)?, length(meta)?, RAW];
    let mut frame = BytesMut::with_capacity(head.len() + topic.len() + event.len() + meta.len() + data.len());
    for part in [&head, topic.as_bytes(), event.as_bytes(), meta.as_bytes(), data] {
        frame.put_slice(part);
    }
    Some(frame.freeze())
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn push(head: [u8; 7], rest: &[u8]) -> Option<Frame> {
        decode_binary(&[&head[..], rest].concat().into())
    }

    #[test]
    fn a_binary_push_is_read_with_either_encoding() {
        let frame = push([3, 1, 1, 10, 6, 0, 1], b"67realtime:rcursor{\"x\":10}").expect("well-formed");
        assert_eq!(
            (frame.join_ref.as_deref(), frame.reference.as_deref(), &*frame.topic),
            (Some("6"), Some("7"), "realtime:r")
        );
        let Body::Broadcast(Push { event, content }) = frame.body else { panic!("no broadcast") };
        assert_eq!((&*event, content), ("cursor", Content::Json(Bytes::from_static(b"{\"x\":10}"))));
        let frame = push([3, 0, 0, 1, 1, 2, 0], b"te{}\x01\x02").expect("well-formed");
        assert_eq!((frame.join_ref, frame.reference), (None, None));
        let Body::Broadcast(Push { content, .. }) = frame.body else { panic!("no broadcast") };
        assert_eq!(content, Content::Raw(Bytes::from_static(b"\x01\x02")));
    }

    #[test]
    fn names_in_utf_16_bytes_are_read_leniently() {
        let frame = push([3, 0, 0, 1, 1, 0, 1], b"\xe9e{}").expect("well-formed");
        assert_eq!(frame.topic, "é");
    }

    #[test]
    fn other_kinds_and_lengths_that_do_not_fit_are_refused() {
        assert!(push([0, 0, 0, 0, 0, 0, 0], b"").is_none() && push([4, 0, 0, 0, 0, 0, 1], b"{}").is_none());
        assert!(push([3, 0, 0, 9, 0, 0, 1], b"short").is_none() && push([3, 0, 0, 0, 0, 0, 2], b"").is_none());
        assert!(decode_binary(&Bytes::from_static(&[3, 1])).is_none());
    }

    #[test]
    fn a_text_frame_is_an_array_of_five() {
        let frame = decode(r#"[null,"12","phoenix","heartbeat",{}]"#).expect("well-formed");
        assert_eq!((frame.join_ref, frame.reference.as_deref(), &*frame.topic), (None, Some("12"), "phoenix"));
        assert_eq!(encode(Some("6"), None, "t", "e\"", "{}"), r#"["6",null,"t","e\"",{}]"#);
        for bad in ["", "[]", "{}", r#"["1","1","t","e"]"#, r#"["1","1",3,"e",{}]"#] {
            assert!(decode(bad).is_none(), "{bad}");
        }
    }

    proptest! {
        #[test]
        fn what_is_sent_says_its_own_lengths(topic in "[a-z:]{0,20}", event in "\\PC{0,20}", data in prop::collection::vec(any::<u8>(), 0..50)) {
            let frame = encode_binary(&topic, &event, "{}", &data).expect("short names");
            prop_assert_eq!(&frame[..5], &[4, topic.len() as u8, event.len() as u8, 2, 0]);
            prop_assert_eq!(&frame[5..], &[topic.as_bytes(), event.as_bytes(), b"{}", &data].concat());
        }

        #[test]
        fn a_name_over_255_bytes_has_no_binary_form(topic in "[a-z]{256,300}") {
            prop_assert_eq!(encode_binary(&topic, "e", "m", b""), None);
        }
    }
}
