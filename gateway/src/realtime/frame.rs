//! One message of the protocol, whichever serializer wrote it, and the forms in which frames leave. Pure.

use bytes::Bytes;
use serde::Deserialize;
use serde_json::value::RawValue;
use tokio_tungstenite::tungstenite::{
    Message, Utf8Bytes,
    protocol::frame::{
        self as websocket,
        coding::{Data, OpCode},
    },
};

use super::{serializer_v1, serializer_v2};

/// What a client sent.
#[derive(Debug)]
pub(crate) struct Frame {
    /// The reference of the join that the sender believes to be in force.
    pub(crate) join_ref: Option<String>,
    /// What a reply must name.
    pub(crate) reference: Option<String>,
    pub(crate) topic: String,
    pub(crate) body: Body,
}

#[derive(Debug)]
pub(crate) enum Body {
    /// An event of the protocol and its payload.
    Event { event: String, payload: Box<RawValue> },
    /// A broadcast in binary dress.
    Broadcast(Push),
}

/// A broadcast on its way in.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct Push {
    pub(crate) event: String,
    pub(crate) content: Content,
}

/// What a broadcast carries.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Content {
    /// A JSON text.
    Json(Bytes),
    /// Bytes of whatever kind.
    Raw(Bytes),
}

/// How one subscriber is spoken to.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(crate) enum Encoding {
    /// Serializer 1.0.0: JSON objects.
    V1,
    /// Serializer 2.0.0: JSON arrays, and binary broadcasts.
    V2,
    /// Server-Sent Events.
    Sse,
}

impl Encoding {
    /// The serializer that a socket asks for; none means the first one there was.
    pub(crate) fn of_version(vsn: Option<&str>) -> Option<Self> {
        match vsn {
            None => Some(Self::V1),
            Some(vsn) if vsn.starts_with("1.0") => Some(Self::V1),
            Some(vsn) if vsn.starts_with("2.0") => Some(Self::V2),
            Some(_) => None,
        }
    }

    /// Reads a client's message; none for what is none of this protocol.
    pub(crate) fn decode(self, message: &Message) -> Option<Frame> {
        match (self, message) {
            (Self::V1, Message::Text(text)) => serializer_v1::decode(text),
            (Self::V2, Message::Text(text)) => serializer_v2::decode(text),
            (Self::V2, Message::Binary(bytes)) => serializer_v2::decode_binary(bytes),
            _ => None,
        }
    }

    /// Writes one event of the protocol; `payload` is JSON.
    pub(crate) fn encode(
        self,
        join: Option<&str>,
        reference: Option<&str>,
        topic: &str,
        event: &str,
        payload: &str,
    ) -> Wire {
        match self {
            Self::V1 => Wire::Text(serializer_v1::encode(join, reference, topic, event, payload).into()),
            Self::V2 | Self::Sse => Wire::Text(serializer_v2::encode(join, reference, topic, event, payload).into()),
        }
    }
}

/// A frame as it leaves; shared by all to whom it is sent.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Wire {
    Text(Utf8Bytes),
    Binary(Bytes),
}

impl Wire {
    pub(crate) fn len(&self) -> usize {
        match self {
            Self::Text(text) => text.as_str().len(),
            Self::Binary(bytes) => bytes.len(),
        }
    }
}

impl Wire {
    /// Of at most `most` bytes each.
    pub(super) fn fragments(self, most: usize) -> Fragments {
        let rest = match self {
            Self::Text(text) => (Data::Text, Bytes::from(text)),
            Self::Binary(bytes) => (Data::Binary, bytes),
        };
        Fragments { rest: Some(rest), most }
    }
}

/// What of a message isn't sent yet, in fragments (RFC 6455, section 5.4).
pub(super) struct Fragments {
    rest: Option<(Data, Bytes)>,
    most: usize,
}

impl Iterator for Fragments {
    type Item = Message;

    fn next(&mut self) -> Option<Message> {
        let (kind, mut bytes) = self.rest.take()?;
        let part = bytes.split_to(bytes.len().min(self.most));
        let is_last = bytes.is_empty();
        if !is_last {
            self.rest = Some((Data::Continue, bytes));
        }
        Some(Message::Frame(websocket::Frame::message(part, OpCode::Data(kind), is_last)))
    }
}

/// A reference: a text, or the number that some clients write.
#[derive(Debug, Deserialize)]
#[serde(untagged)]
pub(super) enum Reference {
    Text(String),
    Number(u64),
}

impl Reference {
    /// None if it is longer than any counter.
    pub(super) fn text(self) -> Option<String> {
        match self {
            Self::Text(text) => Some(text).filter(|text| text.len() <= 64),
            Self::Number(number) => Some(number.to_string()),
        }
    }
}

/// A text in JSON.
pub(super) fn quote(text: &str) -> String {
    serde_json::to_string(text).expect("a text has a JSON form")
}

/// A text that may be missing.
pub(super) fn quote_some(text: Option<&str>) -> String {
    text.map_or_else(|| "null".to_owned(), quote)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const ALL: [Encoding; 3] = [Encoding::V1, Encoding::V2, Encoding::Sse];

    fn message(wire: Wire) -> Message {
        match wire {
            Wire::Text(text) => Message::Text(text),
            Wire::Binary(bytes) => Message::Binary(bytes),
        }
    }

    #[test]
    fn a_version_chooses_the_serializer() {
        let of = Encoding::of_version;
        assert_eq!(
            (of(None), of(Some("1.0.0")), of(Some("2.0.0"))),
            (Some(Encoding::V1), Some(Encoding::V1), Some(Encoding::V2))
        );
        assert_eq!((of(Some("3.0.0")), of(Some(""))), (None, None));
    }

    proptest! {
        #[test]
        fn fragments_are_the_message_and_the_last_alone_ends_it(text in "\\PC{0,60}", most in 1usize..20) {
            let fragments: Vec<_> = Wire::Text(text.as_str().into()).fragments(most).collect();
            let mut whole = Vec::new();
            for (at, fragment) in fragments.iter().enumerate() {
                let Message::Frame(frame) = fragment else { panic!("no frame") };
                let kind = if at == 0 { Data::Text } else { Data::Continue };
                prop_assert_eq!(frame.header().opcode, OpCode::Data(kind));
                prop_assert_eq!(frame.header().is_final, at + 1 == fragments.len());
                prop_assert!(frame.payload().len() <= most);
                whole.extend_from_slice(frame.payload());
            }
            prop_assert_eq!(whole, text.as_bytes());
        }

        #[test]
        fn no_bytes_make_reading_panic(bytes in prop::collection::vec(any::<u8>(), 0..200), text in "\\PC{0,100}") {
            for encoding in ALL {
                encoding.decode(&Message::Binary(bytes.clone().into()));
                encoding.decode(&Message::Text(text.as_str().into()));
            }
        }

        #[test]
        fn what_is_written_is_read_the_same(join in prop::option::of("[0-9]{1,4}"), reference in prop::option::of("[0-9]{1,4}"), name in "\\PC{1,20}", event in "\\PC{1,20}") {
            for encoding in [Encoding::V1, Encoding::V2] {
                let wire = encoding.encode(join.as_deref(), reference.as_deref(), &name, &event, r#"{"a":[1]}"#);
                let read = encoding.decode(&message(wire)).expect("it was written here");
                prop_assert_eq!((&read.join_ref, &read.reference, &read.topic), (&join, &reference, &name));
                let Body::Event { event: read, payload } = read.body else { panic!("no event") };
                prop_assert_eq!((read, payload.get()), (event.clone(), r#"{"a":[1]}"#));
            }
        }
    }
}
