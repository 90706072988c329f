//! Frames by group: all who are spoken to alike get one encoding, shared by reference. Pure.

use std::{collections::HashMap, sync::Arc};

use bytes::Bytes;

use super::{
    frame::{Encoding, Wire, quote},
    notice::{Notice, View},
    serializer_v2,
    topic::Topic,
};

/// What a frame says.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub(crate) enum What {
    /// The change, to these subscriptions.
    Changes(Vec<u32>, View),
    /// A broadcast on the channel.
    Broadcast,
    /// Where the change after it is in the log.
    Position,
}

/// The frames of one event.
pub(crate) struct Frames<'a> {
    notice: &'a Notice<'a>,
    made: HashMap<(Encoding, Arc<str>, What), Option<Wire>>,
}

impl<'a> Frames<'a> {
    pub(crate) fn new(notice: &'a Notice<'a>) -> Self {
        Self { notice, made: HashMap::new() }
    }

    /// None where this encoding can't say it.
    pub(crate) fn get(&mut self, encoding: Encoding, topic: &Topic, what: What) -> Option<Wire> {
        let notice = self.notice;
        let key = (encoding, topic.text().clone(), what);
        if let Some(made) = self.made.get(&key) {
            return made.clone();
        }
        let made = match &key.2 {
            What::Changes(ids, view) => Some(changes(notice, encoding, topic, ids, *view)),
            What::Broadcast => {
                let content = notice.payload().map_err(|content| &content.data);
                let told =
                    Told { name: notice.name(), content, meta: Some(notice.meta()), id: Some(notice.stream_id()) };
                told.frame(encoding, topic)
            }
            What::Position => (encoding != Encoding::Sse).then(|| {
                let meta = notice.meta();
                let payload = format!(
                    r#"{{"extension":"resume","status":"ok","message":"position","channel":{},"next":{meta}}}"#,
                    quote(topic.name()),
                );
                encoding.encode(None, None, topic.text(), "system", &payload)
            }),
        };
        self.made.insert(key, made.clone());
        made
    }
}

fn changes(notice: &Notice<'_>, encoding: Encoding, topic: &Topic, ids: &[u32], view: View) -> Wire {
    let payload = notice.changes(ids, view);
    match encoding {
        Encoding::Sse => event_stream("postgres_changes", &payload, Some(&notice.stream_id())),
        _ => encoding.encode(None, None, topic.text(), "postgres_changes", &payload),
    }
}

/// A broadcast as it is told.
pub(crate) struct Told<'a> {
    pub(crate) name: &'a str,
    /// JSON, or bytes that aren't.
    pub(crate) content: Result<&'a str, &'a Bytes>,
    pub(crate) meta: Option<String>,
    /// Of an event stream.
    pub(crate) id: Option<String>,
}

impl Told<'_> {
    /// Bytes reach only those who read serializer 2.0.0: others have no form for them.
    pub(crate) fn frame(&self, encoding: Encoding, topic: &Topic) -> Option<Wire> {
        let json = match (self.content, encoding) {
            (Ok(json), _) => json,
            (Err(data), Encoding::V2) => {
                let meta = self.meta.as_deref().unwrap_or("");
                return serializer_v2::encode_binary(topic.text(), self.name, meta, data).map(Wire::Binary);
            }
            (Err(_), _) => return None,
        };
        if encoding == Encoding::Sse {
            return Some(event_stream(self.name, json, self.id.as_deref()));
        }
        let meta = self.meta.as_ref().map_or_else(String::new, |meta| format!(r#","meta":{meta}"#));
        let payload = format!(r#"{{"type":"broadcast","event":{},"payload":{json}{meta}}}"#, quote(self.name));
        Some(encoding.encode(None, None, topic.text(), "broadcast", &payload))
    }
}

/// One event of an event stream. JSON holds line breaks between its parts only, where a blank does as well.
pub(crate) fn event_stream(name: &str, json: &str, id: Option<&str>) -> Wire {
    let id = id.map_or_else(String::new, |id| format!("id: {id}\n"));
    let name: String = name.chars().map(|c| if c.is_control() { ' ' } else { c }).collect();
    let json: String = json.chars().map(|c| if matches!(c, '\n' | '\r') { ' ' } else { c }).collect();
    Wire::Text(format!("{id}event: {name}\ndata: {json}\n\n").into())
}

#[cfg(test)]
mod tests {
    use proto::router::v1::Operation;

    use super::*;
    use crate::realtime::notice::tests::{change, content};

    fn text(wire: Option<Wire>) -> String {
        let Some(Wire::Text(text)) = wire else { panic!("no text") };
        text.as_str().to_owned()
    }

    #[test]
    fn those_who_are_spoken_to_alike_share_one_encoding() {
        let event = change("orders", Operation::Insert, "", r#"{"id":1}"#);
        let (notice, topic) = (Notice::read(&event), Topic::of_name("room").expect("a name"));
        let mut frames = Frames::new(&notice);
        let mut get = |ids: &[u32]| frames.get(Encoding::V2, &topic, What::Changes(ids.to_vec(), View::Whole));
        let (first, again, other) = (get(&[1]), get(&[1]), get(&[2]));
        let (Some(Wire::Text(first)), Some(Wire::Text(again))) = (first, again) else { panic!("no text") };
        assert_eq!(first.as_str().as_ptr(), again.as_str().as_ptr());
        assert_ne!(first.as_str(), text(other));
    }

    #[test]
    fn an_event_stream_has_one_line_per_field() {
        let event = content("a.b", "{\r\n \"x\": 1 }");
        let (notice, topic) = (Notice::read(&event), Topic::of_name("room").expect("a name"));
        let told = text(Frames::new(&notice).get(Encoding::Sse, &topic, What::Broadcast));
        assert_eq!(told, "id: log:7\nevent: a.b\ndata: {   \"x\": 1 }\n\n");
    }

    #[test]
    fn bytes_reach_those_who_have_a_form_for_them() {
        let (data, topic) = (Bytes::from_static(&[1, 2]), Topic::of_name("r").expect("a name"));
        let told = Told { name: "e", content: Err(&data), meta: None, id: None };
        assert_eq!((told.frame(Encoding::V1, &topic), told.frame(Encoding::Sse, &topic)), (None, None));
        let Some(Wire::Binary(frame)) = told.frame(Encoding::V2, &topic) else { panic!("no frame") };
        assert_eq!(frame[..], *b"\x04\x0a\x01\x00\x00realtime:re\x01\x02");
    }
}
