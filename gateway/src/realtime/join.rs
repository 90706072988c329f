//! What a client asks for when it joins a channel: the payload of `phx_join`. Pure.
//!
//! Clients differ in what they send, so unknown members are passed over and booleans may be texts. What isn't said has
//! the default that the protocol gives it. A subscription that can't be understood fails alone, and says why.

use serde_json::{Map, Value, json};

use super::{filter::Filter, index::BindingEvent};

/// Of a presence key.
const KEY_BYTES: usize = 256;

/// What a client asks for.
#[derive(Debug)]
pub(crate) struct Join {
    /// Its own broadcasts come back to it.
    pub(crate) own: bool,
    /// Its broadcasts are acknowledged.
    pub(crate) acknowledge: bool,
    /// Under which key it is present; empty: one is made for it.
    pub(crate) presence_key: String,
    /// It is told who is present.
    pub(crate) presence: bool,
    pub(crate) changes: Vec<Wanted>,
    /// Of this channel; none: the socket's.
    pub(crate) token: Option<String>,
    pub(crate) resume: Resume,
}

/// How a client wants to go on from an earlier connection.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Resume {
    /// It doesn't.
    No,
    /// It will: it is told the position of each change beforehand.
    Later,
    /// From after this position.
    From { epoch: String, seq: u64 },
}

/// What subscriptions cost to keep and to ask.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Cost {
    /// Of their texts.
    pub(crate) bytes: usize,
    pub(crate) patterns: usize,
    /// Regular ones.
    pub(crate) expressions: usize,
}

impl Cost {
    pub(crate) fn plus(self, other: Self) -> Self {
        Self {
            bytes: self.bytes + other.bytes,
            patterns: self.patterns + other.patterns,
            expressions: self.expressions + other.expressions,
        }
    }
}

/// One `postgres_changes` subscription.
#[derive(Debug)]
pub(crate) struct Wanted {
    /// What changes name it by: the same for the same parameters, on every join.
    pub(crate) id: u32,
    /// The client's own words, which it compares with the reply's.
    echo: Map<String, Value>,
    pub(crate) parsed: Result<Parsed, String>,
}

/// What it asks for.
#[derive(Debug)]
pub(crate) struct Parsed {
    pub(crate) event: BindingEvent,
    pub(crate) schema: String,
    pub(crate) table: Option<String>,
    pub(crate) filter: Filter,
    /// It is told of a row that an UPDATE takes out of its filter, as of a DELETE.
    pub(crate) leave: bool,
}

impl Join {
    /// Reads the payload; none if it is no object.
    pub(crate) fn parse(payload: &str) -> Option<Self> {
        let payload: Map<String, Value> = serde_json::from_str(payload).ok()?;
        let config = payload.get("config").unwrap_or(&Value::Null);
        let (broadcast, presence) = (&config["broadcast"], &config["presence"]);
        let key = presence["key"].as_str().unwrap_or_default();
        let token = ["access_token", "user_token"].into_iter().find_map(|name| payload.get(name)?.as_str());
        let wanted = config["postgres_changes"].as_array().map_or(&[][..], Vec::as_slice);
        Some(Self {
            own: is_true(&broadcast["self"]),
            acknowledge: is_true(&broadcast["ack"]),
            presence_key: key.chars().take(KEY_BYTES / 4).collect(),
            presence: presence.get("enabled").is_none_or(is_true),
            changes: wanted_all(wanted),
            token: token.filter(|token| !token.is_empty()).map(str::to_owned),
            resume: Resume::parse(payload.get("resume")),
        })
    }

    /// What its subscriptions cost.
    pub(crate) fn cost(&self) -> Cost {
        let parsed = self.changes.iter().filter_map(|wanted| wanted.parsed.as_ref().ok());
        parsed.map(Parsed::cost).fold(Cost::default(), Cost::plus)
    }

    /// What the reply says: the client's own words with our ids.
    pub(crate) fn reply(&self) -> Value {
        let changes: Vec<_> = self.changes.iter().map(Wanted::print).collect();
        json!({ "postgres_changes": changes })
    }
}

impl Resume {
    fn parse(value: Option<&Value>) -> Self {
        let Some(value) = value else { return Self::No };
        let position = || Some((value.get("epoch")?.as_str()?.to_owned(), value.get("seq")?.as_u64()?));
        match position() {
            Some((epoch, seq)) => Self::From { epoch, seq },
            None if value.is_object() || is_true(value) => Self::Later,
            None => Self::No,
        }
    }
}

impl Wanted {
    fn print(&self) -> Value {
        let mut reply = self.echo.clone();
        reply.insert("id".to_owned(), self.id.into());
        Value::Object(reply)
    }
}

/// Each with an id of its own; those that ask for the same share one.
fn wanted_all(all: &[Value]) -> Vec<Wanted> {
    let mut taken: Vec<(u32, String)> = Vec::new();
    let mut give = |parameters: String| {
        let mut id = hash(&parameters);
        while taken.iter().any(|(other, others)| *other == id && *others != parameters) {
            id += 1;
        }
        taken.push((id, parameters));
        id
    };
    all.iter()
        .map(|value| {
            let echo = value.as_object().cloned().unwrap_or_default();
            let text = |name: &str| echo.get(name).and_then(Value::as_str).unwrap_or_default();
            let parameters = ["event", "schema", "table", "filter"].map(text).join("\u{0}");
            Wanted { id: give(parameters), parsed: Parsed::parse(&echo), echo }
        })
        .collect()
}

impl Parsed {
    fn cost(&self) -> Cost {
        let names = self.schema.len() + self.table.as_ref().map_or(0, String::len);
        let filter = &self.filter;
        Cost { bytes: names + filter.bytes(), patterns: filter.patterns(), expressions: filter.expressions() }
    }

    fn parse(echo: &Map<String, Value>) -> Result<Self, String> {
        const KNOWN: [&str; 4] = ["event", "schema", "table", "filter"];
        let text = |name: &str| match echo.get(name) {
            None | Some(Value::Null) => Ok(""),
            Some(Value::String(text)) => Ok(text.as_str()),
            Some(_) => Err(format!("{name} must be a text")),
        };
        let [event, schema, table, filter] = KNOWN.map(text);
        let (schema, table) = (schema?, Some(table?).filter(|table| !table.is_empty() && *table != "*"));
        if echo.get("select").is_some_and(|select| !select.is_null()) {
            return Err("select is not supported: changes come with all columns that their publisher sent".to_owned());
        }
        Ok(Self {
            event: event_of(event?)?,
            schema: if schema.is_empty() { "public".to_owned() } else { schema.to_owned() },
            table: table.map(str::to_owned),
            filter: Filter::parse(filter?).map_err(|error| error.to_string())?,
            leave: echo.get("leave").is_some_and(is_true),
        })
    }
}

fn event_of(text: &str) -> Result<BindingEvent, String> {
    match text.to_ascii_uppercase().as_str() {
        "*" => Ok(BindingEvent::All),
        "INSERT" => Ok(BindingEvent::Insert),
        "UPDATE" => Ok(BindingEvent::Update),
        "DELETE" => Ok(BindingEvent::Delete),
        _ => Err("event must be *, INSERT, UPDATE or DELETE".to_owned()),
    }
}

fn is_true(value: &Value) -> bool {
    value.as_bool().unwrap_or_else(|| value.as_str() == Some("true"))
}

/// FNV-1a in 27 bits and never 0, which clients take for none.
fn hash(text: &str) -> u32 {
    let hash = text.bytes().fold(0x811c_9dc5_u32, |hash, byte| (hash ^ u32::from(byte)).wrapping_mul(0x0100_0193));
    ((hash ^ (hash >> 27)) & 0x07ff_ffff).max(1)
}

#[cfg(test)]
mod tests {
    use std::collections::HashSet;

    use proptest::prelude::*;

    use super::*;

    fn distinct(changes: &[Wanted]) -> usize {
        changes.iter().map(|wanted| wanted.id).collect::<HashSet<_>>().len()
    }

    fn join(payload: &Value) -> Join {
        Join::parse(&payload.to_string()).expect("an object")
    }

    #[test]
    fn the_newest_clients_payload_is_understood_and_echoed() {
        let changes = json!([
            { "event": "*", "schema": "public", "table": "orders", "filter": "supplier_id=eq.42" },
            { "event": "DELETE", "schema": "public", "table": "orders" },
        ]);
        let config = json!({
            "broadcast": { "self": true, "ack": "true" }, "presence": { "key": "u1", "enabled": true },
            "postgres_changes": changes, "private": false,
        });
        let asked = join(&json!({ "config": config, "access_token": "eyJ", "version": "realtime-js/2.109.0" }));
        assert!(asked.own && asked.acknowledge && asked.presence);
        assert_eq!((&*asked.presence_key, asked.token.as_deref(), &asked.resume), ("u1", Some("eyJ"), &Resume::No));
        let reply = asked.reply();
        for (at, wanted) in changes.as_array().unwrap().iter().enumerate() {
            let mut echoed = reply["postgres_changes"][at].clone();
            assert!(echoed.as_object_mut().unwrap().remove("id").unwrap().as_u64().unwrap() > 0);
            assert_eq!(&echoed, wanted, "members that the client didn't send would be a mismatch");
        }
        assert_eq!(distinct(&asked.changes), 2);
    }

    #[test]
    fn what_is_not_said_has_the_protocols_defaults() {
        let asked = join(&json!({}));
        assert!(!asked.own && !asked.acknowledge && asked.presence && asked.changes.is_empty());
        assert!(!join(&json!({ "config": { "presence": { "enabled": false } } })).presence);
        assert_eq!(asked.reply(), json!({ "postgres_changes": [] }));
        assert!(Join::parse("[]").is_none() && Join::parse("").is_none());
    }

    #[test]
    fn a_position_to_resume_from_is_read() {
        let resume = |value: Value| join(&json!({ "resume": value })).resume;
        assert_eq!(resume(json!({ "epoch": "e1", "seq": 99 })), Resume::From { epoch: "e1".to_owned(), seq: 99 });
        assert_eq!((resume(json!(true)), resume(json!({}))), (Resume::Later, Resume::Later));
        for bad in [json!(null), json!(false), json!("e1:99"), json!(7)] {
            assert_eq!(resume(bad), Resume::No);
        }
    }

    #[test]
    fn a_bad_subscription_fails_alone_and_says_why() {
        let changes = json!([
            { "event": "INSERT", "schema": "public", "table": "a" },
            { "event": "TRUNCATE", "schema": "public" },
            { "event": "*", "schema": "public", "table": "a", "filter": "nonsense" },
            { "event": "*", "schema": "public", "table": 7 },
            { "event": "*", "schema": "public", "table": "a", "select": ["id"] },
            "no object",
        ]);
        let asked = join(&json!({ "config": { "postgres_changes": changes } }));
        let fine: Vec<_> = asked.changes.iter().map(|wanted| wanted.parsed.is_ok()).collect();
        assert_eq!(fine, [true, false, false, false, false, false]);
        assert_eq!(asked.reply()["postgres_changes"].as_array().unwrap().len(), 6);
    }

    proptest! {
        #[test]
        fn ids_are_stable_distinct_and_never_zero(tables in prop::collection::vec("[a-z]{1,3}", 0..30)) {
            let changes: Vec<_> = tables.iter().map(|table| json!({ "event": "*", "table": table })).collect();
            let payload = json!({ "config": { "postgres_changes": changes } });
            let (first, again) = (join(&payload), join(&payload));
            let ids = |join: &Join| join.changes.iter().map(|wanted| wanted.id).collect::<Vec<_>>();
            prop_assert_eq!(ids(&first), ids(&again));
            prop_assert!(ids(&first).iter().all(|id| *id > 0));
            prop_assert_eq!(distinct(&first.changes), tables.iter().collect::<HashSet<_>>().len());
        }

        #[test]
        fn no_text_makes_reading_panic(text in "\\PC{0,200}") {
            Join::parse(&text);
        }
    }
}
