//! An event as this service sees it: what it says, whose it is, and what conditions and transformations see of it. Pure.
//!
//! Wire types are read in `rpc/wire.rs`; which endpoints want it is said in `matching.rs`.

use bytes::Bytes;
use chassis::{expression::Value, id::OrganizationId};
use jiff::Timestamp;

use crate::json::Object;

const SUPPLIER_CHANNEL: &str = "supplier:dashboard:";

/// Something that happened, as the router's log holds it.
#[derive(Clone, Debug)]
pub(crate) struct Event {
    pub(crate) organization: OrganizationId,
    /// Idempotency key.
    pub(crate) id: String,
    /// The router's own name for it, 16 bytes of a UUID.
    pub(crate) uid: [u8; 16],
    pub(crate) type_: String,
    pub(crate) source: String,
    pub(crate) subject: String,
    pub(crate) time: Timestamp,
    pub(crate) ordering_key: String,
    pub(crate) channels: Vec<String>,
    pub(crate) payload: Payload,
    pub(crate) metadata: Metadata,
    /// Id of the log, and the place in it.
    pub(crate) log_id: String,
    pub(crate) sequence: u64,
    pub(crate) priority: Priority,
}

/// What is known around an event.
#[derive(Clone, Debug, Default)]
pub(crate) struct Metadata {
    pub(crate) wedding_id: String,
    pub(crate) supplier_id: String,
    pub(crate) couple_id: String,
    pub(crate) traceparent: String,
    pub(crate) cause: String,
    /// `realtime`, `replay`, `test` or `import`.
    pub(crate) origin: String,
}

/// What an event says.
#[derive(Clone, Debug)]
pub(crate) enum Payload {
    /// What a statement did to a row.
    Change {
        schema: String,
        table: String,
        operation: Operation,
        /// JSON objects; none on INSERT, or where the source doesn't send it.
        old: Option<Bytes>,
        /// None on DELETE.
        new: Option<Bytes>,
    },
    /// A domain event's content.
    Content { content_type: String, data: Bytes },
}

/// What a database statement did.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Operation {
    Insert,
    Update,
    Delete,
}

impl Operation {
    /// As bodies spell it.
    pub(crate) fn upper(self) -> &'static str {
        match self {
            Self::Insert => "INSERT",
            Self::Update => "UPDATE",
            Self::Delete => "DELETE",
        }
    }

    /// As types and expressions spell it.
    pub(crate) fn lower(self) -> &'static str {
        match self {
            Self::Insert => "insert",
            Self::Update => "update",
            Self::Delete => "delete",
        }
    }
}

/// How soon it must arrive; the numbers are those of the store and of the wire.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
#[repr(i64)]
pub(crate) enum Priority {
    Critical = 1,
    High = 2,
    Normal = 3,
    Low = 4,
}

impl Priority {
    /// From a number; what has none is normal.
    pub(crate) fn from_number(number: i64) -> Self {
        match number {
            1 => Self::Critical,
            2 => Self::High,
            4 => Self::Low,
            _ => Self::Normal,
        }
    }

    pub(crate) fn as_str(self) -> &'static str {
        match self {
            Self::Critical => "CRITICAL",
            Self::High => "HIGH",
            Self::Normal => "NORMAL",
            Self::Low => "LOW",
        }
    }
}

impl Event {
    /// The suppliers whose event it is: the one it names, and those on whose dashboards it shows.
    pub(crate) fn suppliers(&self) -> impl Iterator<Item = &str> {
        let named = Some(self.metadata.supplier_id.as_str()).filter(|id| !id.is_empty());
        named.into_iter().chain(self.channels.iter().filter_map(|channel| channel.strip_prefix(SUPPLIER_CHANNEL)))
    }

    /// Whether it is about the endpoint or integration with this id: such an event is never sent there.
    pub(crate) fn names(&self, id: &str) -> bool {
        (self.type_.starts_with("endpoint.") || self.type_.starts_with("integration.")) && self.subject == id
    }

    /// What expressions see: `new`, `old` and `event`. The content of a domain event is `new`.
    pub(crate) fn scope(&self) -> Value {
        match &self.payload {
            Payload::Change { old, new, .. } => self.scope_over(old.as_deref(), new.as_deref()),
            Payload::Content { data, .. } => self.scope_over(None, Some(data)),
        }
    }

    /// The same with these records in place of its own. What is no JSON object is an empty one.
    pub(crate) fn scope_over(&self, old: Option<&[u8]>, new: Option<&[u8]>) -> Value {
        let record = |bytes: Option<&[u8]>| {
            bytes
                .and_then(|bytes| serde_json::from_slice::<Object<'_>>(bytes).ok())
                .map_or_else(Value::empty, |object| object.value())
        };
        Value::scope([("new", record(new)), ("old", record(old)), ("event", self.about())])
    }

    fn about(&self) -> Value {
        let (schema, table, operation) = match &self.payload {
            Payload::Change { schema, table, operation, .. } => (schema.as_str(), table.as_str(), operation.lower()),
            Payload::Content { .. } => Default::default(),
        };
        let texts = [
            ("id", &*self.id),
            ("type", &self.type_),
            ("source", &self.source),
            ("subject", &self.subject),
            ("time", &self.time.to_string()),
            ("ordering_key", &self.ordering_key),
            ("priority", self.priority.as_str()),
            ("origin", &self.metadata.origin),
            ("schema", schema),
            ("table", table),
            ("operation", operation),
            ("wedding_id", &self.metadata.wedding_id),
            ("supplier_id", &self.metadata.supplier_id),
            ("couple_id", &self.metadata.couple_id),
        ];
        let given = texts.into_iter().filter(|(_, text)| !text.is_empty());
        Value::map(given.map(|(name, text)| (name, Value::text(text))))
    }
}

#[cfg(test)]
pub(crate) mod tests {
    use chassis::testing::noon;

    use super::*;

    /// An update of a wedding, of no supplier.
    pub(crate) fn change(old: &str, new: &str) -> Event {
        let bytes = |text: &str| (!text.is_empty()).then(|| Bytes::copy_from_slice(text.as_bytes()));
        let operation = match (old, new) {
            ("", _) => Operation::Insert,
            (_, "") => Operation::Delete,
            _ => Operation::Update,
        };
        let payload = Payload::Change {
            schema: "public".to_owned(),
            table: "wedding_details".to_owned(),
            operation,
            old: bytes(old),
            new: bytes(new),
        };
        event(&format!("wedding_details.{}", operation.lower()), payload)
    }

    /// A domain event, of no supplier.
    pub(crate) fn content(type_: &str, data: &str) -> Event {
        event(type_, Payload::Content { content_type: String::new(), data: Bytes::copy_from_slice(data.as_bytes()) })
    }

    fn event(type_: &str, payload: Payload) -> Event {
        Event {
            organization: OrganizationId::parse("acme").expect("well-formed"),
            id: "e1".to_owned(),
            uid: [7; 16],
            type_: type_.to_owned(),
            source: "test".to_owned(),
            subject: "w1".to_owned(),
            time: noon(),
            ordering_key: "w1".to_owned(),
            channels: vec!["wedding:w1".to_owned()],
            payload,
            metadata: Metadata { wedding_id: "w1".to_owned(), origin: "realtime".to_owned(), ..Metadata::default() },
            log_id: "log".to_owned(),
            sequence: 10,
            priority: Priority::Normal,
        }
    }

    #[test]
    fn an_event_belongs_to_the_supplier_it_names_and_to_those_whose_dashboards_it_shows_on() {
        let mut event = change("{}", "{}");
        assert_eq!(event.suppliers().count(), 0);
        event.metadata.supplier_id = "s1".to_owned();
        event.channels.push("supplier:dashboard:s2".to_owned());
        assert_eq!(event.suppliers().collect::<Vec<_>>(), ["s1", "s2"]);
    }

    #[test]
    fn only_events_about_endpoints_and_integrations_name_one() {
        let mut event = content("endpoint.disabled", "{}");
        assert!(event.names("w1") && !event.names("w2"));
        event.type_ = "integration.failing".to_owned();
        assert!(event.names("w1"));
        event.type_ = "wedding.date_changed".to_owned();
        assert!(!event.names("w1"));
    }
}
