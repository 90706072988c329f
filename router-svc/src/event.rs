//! The event as the router knows it, and what an event must be to be accepted. Pure.
//!
//! It follows CloudEvents 1.0 in meaning. Wire types are turned into it by `rpc/wire.rs`; what it says about tables and
//! weddings is read by `facts.rs`. Invariant: an `Event` that passed `check` can be stored, printed and routed.

use std::fmt;

use bytes::Bytes;
use chassis::{
    error::{Error, Result},
    id::OrganizationId,
};
use jiff::Timestamp;
use sha2::{Digest as _, Sha256};

use crate::{channel::ChannelName, event_type::EventType, json};

/// Content, or both records of a change together.
pub(crate) const DATA_LIMIT: usize = 1 << 20;
/// Channels that a publisher may add.
pub(crate) const CHANNEL_LIMIT: usize = 64;
/// Longest chain of causes.
pub(crate) const DEPTH_LIMIT: u32 = 4;
const TEXT_LIMIT: usize = 256;

/// Something that happened.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Event {
    pub(crate) organization: OrganizationId,
    /// Idempotency key within the organization. Empty until append gives it the `uid`.
    pub(crate) id: String,
    /// The router's own UUIDv7. Empty until append.
    pub(crate) uid: String,
    pub(crate) type_: EventType,
    pub(crate) source: String,
    pub(crate) subject: String,
    pub(crate) time: Timestamp,
    /// Empty until `Facts::complete` where the publisher gave none.
    pub(crate) ordering_key: String,
    /// Those that the publisher added; after `Facts::complete` all of them, the derived ones first.
    pub(crate) channels: Vec<ChannelName>,
    pub(crate) payload: Payload,
    pub(crate) metadata: Metadata,
    /// The publisher asked for LOW.
    pub(crate) lowered: bool,
}

/// What it carries. Bytes stay as they were sent.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Payload {
    /// A domain event's content.
    Content { content_type: String, data: Bytes },
    /// What a database statement did to one row.
    Change(Change),
}

/// What a database statement did to one row.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Change {
    pub(crate) schema: String,
    pub(crate) table: String,
    pub(crate) operation: Operation,
    /// A JSON object. None on INSERT; on UPDATE it may be missing or hold the key alone.
    pub(crate) old: Option<Bytes>,
    /// A JSON object. None on DELETE.
    pub(crate) new: Option<Bytes>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(crate) enum Operation {
    Insert,
    Update,
    Delete,
}

impl Operation {
    /// As it stands in an event's type.
    pub(crate) fn as_str(self) -> &'static str {
        match self {
            Self::Insert => "insert",
            Self::Update => "update",
            Self::Delete => "delete",
        }
    }
}

/// What is known around the event. Ids that aren't known are empty.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct Metadata {
    pub(crate) wedding_id: String,
    pub(crate) supplier_id: String,
    pub(crate) couple_id: String,
    /// W3C trace context; one that is malformed is dropped, as that standard asks.
    pub(crate) traceparent: String,
    /// `uid` of the event that led to this one.
    pub(crate) cause: String,
    pub(crate) depth: u32,
    pub(crate) origin: Origin,
}

/// How it came.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub(crate) enum Origin {
    #[default]
    Realtime,
    Replay,
    Test,
    Import,
}

impl Origin {
    /// Empty stands for `realtime`.
    pub(crate) fn parse(text: &str) -> Result<Self> {
        match text {
            "" | "realtime" => Ok(Self::Realtime),
            "replay" => Ok(Self::Replay),
            "test" => Ok(Self::Test),
            "import" => Ok(Self::Import),
            _ => Err(Error::invalid("metadata.origin", "must be `realtime`, `replay`, `test` or `import`")),
        }
    }

    pub(crate) fn as_str(self) -> &'static str {
        match self {
            Self::Realtime => "realtime",
            Self::Replay => "replay",
            Self::Test => "test",
            Self::Import => "import",
        }
    }
}

impl fmt::Display for Origin {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

impl Event {
    /// Holds the event to every limit, and puts what has a default into its one form.
    ///
    /// # Errors
    /// `Error::Invalid` naming the first field at fault.
    pub(crate) fn check(mut self) -> Result<Self> {
        if !self.id.is_empty() {
            check_id("id", &self.id)?;
        }
        check_text("source", &self.source)?;
        check_text("subject", &self.subject)?;
        check_text("ordering_key", &self.ordering_key)?;
        if self.channels.len() > CHANNEL_LIMIT {
            return Err(Error::invalid("channels", format!("must be at most {CHANNEL_LIMIT}")));
        }
        self.payload.check()?;
        self.metadata.check()?;
        self.time = chassis::clock::from_micros(self.time.as_microsecond());
        Ok(self)
    }

    /// Tells two contents under one id apart: SHA-256 over type, subject, source and data, each with its length.
    pub(crate) fn content_hash(&self) -> [u8; 32] {
        let mut hash = Sha256::new();
        let mut part = |part: &[u8]| {
            hash.update((part.len() as u64).to_be_bytes());
            hash.update(part);
        };
        for text in [self.type_.as_str(), &self.subject, &self.source] {
            part(text.as_bytes());
        }
        match &self.payload {
            Payload::Content { data, .. } => part(data),
            Payload::Change(change) => {
                for text in [&change.schema, &change.table, change.operation.as_str()] {
                    part(text.as_bytes());
                }
                part(change.old.as_deref().unwrap_or_default());
                part(change.new.as_deref().unwrap_or_default());
            }
        }
        hash.finalize().into()
    }

    pub(crate) fn change(&self) -> Option<&Change> {
        match &self.payload {
            Payload::Change(change) => Some(change),
            Payload::Content { .. } => None,
        }
    }
}

impl Payload {
    fn check(&mut self) -> Result<()> {
        match self {
            Self::Content { content_type, data } => check_content(content_type, data),
            Self::Change(change) => change.check(),
        }
    }
}

/// Holds content to its limit and form; no media type means JSON.
pub(crate) fn check_content(content_type: &mut String, data: &[u8]) -> Result<()> {
    if content_type.is_empty() {
        "application/json".clone_into(content_type);
    }
    if !is_media_type(content_type) {
        return Err(Error::invalid("content.content_type", "must be a media type: `application/json`"));
    }
    if data.len() > DATA_LIMIT {
        return Err(too_large("content.data"));
    }
    if is_json(content_type) {
        json::check(data).map_err(|reason| Error::invalid("content.data", reason))?;
    }
    Ok(())
}

impl Change {
    fn data_len(&self) -> usize {
        self.old.as_ref().map_or(0, Bytes::len) + self.new.as_ref().map_or(0, Bytes::len)
    }

    fn check(&self) -> Result<()> {
        check_identifier("change.schema", &self.schema)?;
        check_identifier("change.table", &self.table)?;
        if self.data_len() > DATA_LIMIT {
            return Err(too_large("change"));
        }
        check_record("change.old_record", self.old.as_deref())?;
        check_record("change.new_record", self.new.as_deref())?;
        match (self.operation, &self.old, &self.new) {
            (Operation::Insert, Some(_), _) => Err(Error::invalid("change.old_record", "must be empty on INSERT")),
            (Operation::Delete, _, Some(_)) => Err(Error::invalid("change.new_record", "must be empty on DELETE")),
            (Operation::Delete, None, _) => Err(Error::invalid("change.old_record", "must be there on DELETE")),
            (Operation::Insert | Operation::Update, _, None) => {
                Err(Error::invalid("change.new_record", "must be there on INSERT and UPDATE"))
            }
            _ => Ok(()),
        }
    }
}

fn check_record(field: &'static str, record: Option<&[u8]>) -> Result<()> {
    let Some(record) = record else { return Ok(()) };
    json::Record::parse(record).map(drop).map_err(|reason| Error::invalid(field, reason))
}

impl Metadata {
    fn check(&mut self) -> Result<()> {
        check_text("metadata.wedding_id", &self.wedding_id)?;
        check_text("metadata.supplier_id", &self.supplier_id)?;
        check_text("metadata.couple_id", &self.couple_id)?;
        if !is_traceparent(&self.traceparent) {
            self.traceparent.clear();
        }
        if !self.cause.is_empty() {
            check_id("metadata.cause", &self.cause)?;
            self.depth = self.depth.max(1);
        }
        if self.depth > DEPTH_LIMIT {
            let reason = format!("is a chain of more than {DEPTH_LIMIT} causes; break the loop that publishes it");
            return Err(Error::invalid("metadata.depth", reason));
        }
        Ok(())
    }
}

fn too_large(field: &'static str) -> Error {
    Error::invalid(field, format!("must be at most {DATA_LIMIT} bytes"))
}

fn check_id(field: &'static str, id: &str) -> Result<()> {
    let allowed = |b: u8| b.is_ascii_alphanumeric() || b"_:.-".contains(&b);
    if (1..=128).contains(&id.len()) && id.bytes().all(allowed) {
        Ok(())
    } else {
        Err(Error::invalid(field, "must match [A-Za-z0-9_:.-]{1,128}"))
    }
}

/// At most 256 characters, none of them a control character: PostgreSQL can't store NUL, and logs stay one line.
pub(crate) fn check_text(field: &'static str, text: &str) -> Result<()> {
    if text.chars().count() <= TEXT_LIMIT && !text.chars().any(char::is_control) {
        Ok(())
    } else {
        Err(Error::invalid(field, format!("must be at most {TEXT_LIMIT} characters, without control characters")))
    }
}

/// PostgreSQL's identifiers are at most 63 bytes; of those that need quoting only `-`, `$` and capitals are taken.
fn check_identifier(field: &'static str, name: &str) -> Result<()> {
    let allowed = |b: u8| b.is_ascii_alphanumeric() || b"_$-".contains(&b);
    if (1..=63).contains(&name.len()) && name.bytes().all(allowed) {
        Ok(())
    } else {
        Err(Error::invalid(field, "must match [A-Za-z0-9_$-]{1,63}"))
    }
}

fn is_media_type(text: &str) -> bool {
    let printable = text.len() <= 128 && text.bytes().all(|b| (b' '..=b'~').contains(&b));
    let essence = text.split(';').next().unwrap_or_default().trim_end();
    let is_token = |token: &str| {
        !token.is_empty() && token.bytes().all(|b| b.is_ascii_alphanumeric() || b"!#$&^_.+-".contains(&b))
    };
    printable && essence.split_once('/').is_some_and(|(main, sub)| is_token(main) && is_token(sub))
}

/// `application/json`, and everything whose structure is JSON by RFC 6839.
pub(crate) fn is_json(content_type: &str) -> bool {
    let essence = content_type.split(';').next().unwrap_or_default().trim().to_ascii_lowercase();
    essence == "application/json" || essence == "text/json" || essence.ends_with("+json")
}

/// `00-<32 hex>-<16 hex>-<2 hex>`; later versions may append to it.
fn is_traceparent(text: &str) -> bool {
    let lengths = [2, 32, 16, 2];
    let is_hex = |part: &str| part.bytes().all(|b| b.is_ascii_digit() || (b'a'..=b'f').contains(&b));
    let parts: Vec<&str> = text.split('-').collect();
    text.len() == 55
        && parts.len() == 4
        && parts.iter().zip(lengths).all(|(part, len)| part.len() == len && is_hex(part))
}

#[cfg(test)]
pub(crate) mod tests {
    use proptest::prelude::*;

    use super::*;

    /// A domain event with this content.
    pub(crate) fn content(type_: &str, data: &str) -> Event {
        let data = Bytes::copy_from_slice(data.as_bytes());
        event(type_, Payload::Content { content_type: "application/json".to_owned(), data })
    }

    /// A change of the schema `public`; an empty record is none.
    pub(crate) fn change(table: &str, operation: Operation, old: &str, new: &str) -> Event {
        let record = |text: &str| (!text.is_empty()).then(|| Bytes::copy_from_slice(text.as_bytes()));
        let (old, new) = (record(old), record(new));
        let change = Change { schema: "public".to_owned(), table: table.to_owned(), operation, old, new };
        event(EventType::of_change(table, operation.as_str()).as_str(), Payload::Change(change))
    }

    fn event(type_: &str, payload: Payload) -> Event {
        Event {
            organization: OrganizationId::parse("org").unwrap(),
            id: "e1".to_owned(),
            uid: String::new(),
            type_: EventType::parse(type_).unwrap(),
            source: "test".to_owned(),
            subject: String::new(),
            time: Timestamp::UNIX_EPOCH,
            ordering_key: String::new(),
            channels: Vec::new(),
            payload,
            metadata: Metadata::default(),
            lowered: false,
        }
    }

    fn field_at_fault(event: Event) -> String {
        match event.check() {
            Err(Error::Invalid { field, .. }) => field.into_owned(),
            other => panic!("accepted, or refused in another way: {other:?}"),
        }
    }

    fn with(change: impl FnOnce(&mut Event)) -> Event {
        let mut event = content("wedding.date_changed", "{}");
        change(&mut event);
        event
    }

    #[test]
    fn each_fault_names_its_field() {
        let data = |data: &str| content("a.b", data);
        let cases: Vec<(&str, Event)> = vec![
            ("id", with(|e| e.id = "a b".to_owned())),
            ("id", with(|e| e.id = "x".repeat(129))),
            ("source", with(|e| e.source = "a\0b".to_owned())),
            ("subject", with(|e| e.subject = "s".repeat(257))),
            ("ordering_key", with(|e| e.ordering_key = "a\nb".to_owned())),
            ("channels", with(|e| e.channels = vec![ChannelName::parse("a").unwrap(); 65])),
            ("metadata.depth", with(|e| e.metadata.depth = 5)),
            ("metadata.cause", with(|e| e.metadata.cause = "not an id".to_owned())),
            ("metadata.wedding_id", with(|e| e.metadata.wedding_id = "\u{7}".to_owned())),
            ("content.data", data("")),
            ("content.data", data("{")),
            ("content.data", data("{} {}")),
            ("content.data", data(&"[".repeat(100_000))),
            ("content.data", data(&format!("\"{}\"", "x".repeat(DATA_LIMIT)))),
            ("change.new_record", change("t", Operation::Insert, "", "")),
            ("change.old_record", change("t", Operation::Insert, "{}", "{}")),
            ("change.new_record", change("t", Operation::Delete, "{}", "{}")),
            ("change.old_record", change("t", Operation::Delete, "", "")),
            ("change.new_record", change("t", Operation::Update, "{}", "[1]")),
            ("change.old_record", change("t", Operation::Update, "null", "{}")),
            ("change.table", change("a b", Operation::Insert, "", "{}")),
        ];
        for (field, event) in cases {
            let shown = format!("{:.200?}", event);
            assert_eq!(field_at_fault(event), field, "{shown}");
        }
    }

    #[test]
    fn both_records_together_are_held_to_the_limit() {
        let record = |len: usize| format!("{{\"a\":\"{}\"}}", "x".repeat(len));
        let half = DATA_LIMIT / 2;
        assert!(change("t", Operation::Update, &record(half - 8), &record(half - 8)).check().is_ok());
        assert_eq!(field_at_fault(change("t", Operation::Update, &record(half - 7), &record(half - 8))), "change");
    }

    #[test]
    fn a_depth_of_four_is_the_last_that_is_taken_and_a_cause_counts_as_one() {
        assert_eq!(with(|e| e.metadata.depth = 4).check().unwrap().metadata.depth, 4);
        assert_eq!(with(|e| e.metadata.cause = "c".to_owned()).check().unwrap().metadata.depth, 1);
    }

    #[test]
    fn content_that_is_not_json_is_taken_as_it_is() {
        let event = with(|e| {
            let data = Bytes::from_static(b"\xff\x00");
            e.payload = Payload::Content { content_type: "application/octet-stream".to_owned(), data };
        });
        assert!(event.check().is_ok());
    }

    #[test]
    fn structured_suffixes_and_parameters_are_json() {
        for json in ["application/json", "Application/JSON; charset=utf-8", "application/cloudevents+json"] {
            assert!(is_json(json) && is_media_type(json), "{json}");
        }
        assert!(!is_json("text/plain") && !is_media_type("json") && !is_media_type("a/b\n"));
    }

    #[test]
    fn a_malformed_traceparent_is_dropped() {
        let good = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01";
        assert_eq!(with(|e| e.metadata.traceparent = good.to_owned()).check().unwrap().metadata.traceparent, good);
        assert_eq!(with(|e| e.metadata.traceparent = "00-zz".to_owned()).check().unwrap().metadata.traceparent, "");
    }

    proptest! {
        #[test]
        fn the_hash_tells_every_field_apart_wherever_the_border_between_them_lies(text in "[a-z]{2,12}", cut in 1usize..11) {
            let cut = cut.min(text.len() - 1);
            let split = |subject: &str, source: &str| with(|e| {
                e.subject = subject.to_owned();
                e.source = source.to_owned();
            }).content_hash();
            prop_assert_ne!(split(&text, ""), split(&text[..cut], &text[cut..]));
            prop_assert_ne!(split("", &text), split(&text[..cut], &text[cut..]));
        }

        #[test]
        fn checking_twice_changes_nothing(subject in "\\PC{0,40}", data in "[0-9]{1,9}", depth in 0u32..6, micros in 0i64..4_000_000_000_000_000) {
            let event = with(|e| {
                e.subject = subject;
                e.payload = Payload::Content { content_type: String::new(), data: data.into() };
                e.metadata.depth = depth;
                e.time = chassis::clock::from_micros(micros);
            });
            if let Ok(once) = event.check() {
                prop_assert_eq!(once.clone().check().unwrap(), once);
            }
        }
    }
}
