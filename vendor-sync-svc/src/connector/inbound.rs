//! A vendor's webhooks as its connector declares them: verified, shaken hands with, and read as what they mean. Pure.

use std::{
    borrow::Cow,
    collections::{BTreeMap, BTreeSet},
};

use chassis::expression::{Expression, Mapping, Value};
use jiff::Timestamp;
use serde_json::Value as Json;
use url::form_urlencoded;

use super::{
    encode, judge,
    read::Reader,
    scope::{WEBHOOK, of_settings},
    spec::{fields, record_kind, time},
    text::printed,
    verify::{Known, Proved, Unverified, Verification},
};
use crate::record::RecordKind;

const MOST_RULES: usize = 32;
const MOST_VERIFICATIONS: usize = 8;
const MOST_ITEMS: usize = 500;
const ECHO_BYTES: usize = 4 * 1024;
/// Never shown to expressions.
const HIDDEN_HEADERS: [&str; 3] = ["authorization", "cookie", "proxy-authorization"];

/// A webhook as it came.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Webhook<'a> {
    pub(crate) method: &'a str,
    /// As the vendor called it, with its query: what some of them sign.
    pub(crate) url: &'a str,
    /// What follows the `?`, as it came.
    pub(crate) query: &'a str,
    /// Names in lower case, in order, repeats kept.
    pub(crate) headers: &'a [(String, bytes::Bytes)],
    pub(crate) body: &'a [u8],
    pub(crate) integration_id: &'a str,
}

impl Webhook<'_> {
    pub(super) fn has(&self, name: &str) -> bool {
        self.headers.iter().any(|(other, _)| other == name)
    }

    /// The one text under this name; a header that stands twice says nothing.
    pub(super) fn header(&self, name: &str) -> Option<&str> {
        let mut values =
            self.headers.iter().filter(|(other, _)| other.eq_ignore_ascii_case(name)).map(|(_, value)| value);
        let (Some(value), None) = (values.next(), values.next()) else { return None };
        std::str::from_utf8(value).ok()
    }

    /// The one value of this parameter.
    pub(super) fn query(&self, name: &str) -> Option<Cow<'_, str>> {
        let mut values = form_urlencoded::parse(self.query.as_bytes()).filter(|(other, _)| other == name);
        let (Some((_, value)), None) = (values.next(), values.next()) else { return None };
        Some(value)
    }
}

/// What a connector says about webhooks.
#[derive(Debug)]
pub(crate) struct Inbound {
    encoding: Encoding,
    spool: bool,
    items: Option<Expression>,
    verify: Vec<Verification>,
    handshakes: Vec<Handshake>,
    events: Vec<Rule>,
}

#[derive(Clone, Copy, Debug)]
enum Encoding {
    Json,
    Form,
    NestedForm,
}

#[derive(Debug)]
struct Handshake {
    method: String,
    when: Option<Expression>,
    status: u16,
    echo: Option<Expression>,
    verified: bool,
}

/// What a handshake is answered with, as plain text.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Echo {
    pub(crate) status: u16,
    pub(crate) body: String,
}

#[derive(Debug)]
struct Rule {
    when: Option<Expression>,
    event_type: String,
    record: Option<RecordKind>,
    external_id: Option<Expression>,
    external_version: Option<Expression>,
    at: Option<Expression>,
    deleted: Option<Expression>,
    fields: Option<Mapping>,
    /// For a record: its allow-list; else all that the mapping gives.
    allowed: Option<BTreeSet<String>>,
    /// What is none is told as none. Else it isn't told: webhooks often hold a part of a record.
    keeps_nulls: bool,
    read_first: bool,
}

/// One thing that a webhook says.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct InboundItem {
    pub(crate) event_type: String,
    /// None: it is about no record.
    pub(crate) kind: Option<RecordKind>,
    pub(crate) external_id: String,
    pub(crate) external_version: String,
    /// None: the vendor doesn't say.
    pub(crate) at: Option<Timestamp>,
    /// Canonical fields of a record; for what is none, the event's content.
    pub(crate) fields: BTreeMap<String, Json>,
    pub(crate) deleted: bool,
    /// A hint: the record is read by its id before anything is believed.
    pub(crate) read_first: bool,
}

impl Inbound {
    pub(super) fn read(mut reader: Reader<'_>) -> Self {
        let encodings = [("json", Encoding::Json), ("form", Encoding::Form), ("nested_form", Encoding::NestedForm)];
        let verify: Vec<_> =
            reader.tables("verify", MOST_VERIFICATIONS).into_iter().filter_map(Verification::read).collect();
        if verify.iter().all(Verification::is_optional) {
            reader.fault("verify", "must hold at least one verification that isn't optional");
        }
        let encoding = reader.choice("encoding", &encodings).unwrap_or(Encoding::Json);
        if matches!(encoding, Encoding::Json) && verify.iter().any(Verification::signs_form) {
            reader.fault("encoding", "must be form or nested_form where sorted_form is signed");
        }
        let inbound = Self {
            encoding,
            spool: reader.flag("spool"),
            items: reader.expression("items", WEBHOOK),
            verify,
            handshakes: reader.tables("handshakes", MOST_RULES).into_iter().map(Handshake::read).collect(),
            events: reader.tables("events", MOST_RULES).into_iter().map(Rule::read).collect(),
        };
        reader.end();
        inbound
    }

    /// Gives each rule the allow-list of its record.
    pub(super) fn allow(&mut self, of: impl Fn(RecordKind) -> BTreeSet<String>) {
        self.events.iter_mut().for_each(|rule| rule.allowed = rule.record.map(&of));
    }

    /// Records that its rules are about.
    pub(super) fn records(&self) -> impl Iterator<Item = RecordKind> {
        self.events.iter().filter_map(|rule| rule.record)
    }

    /// Records that are read before anything is believed.
    pub(super) fn read_first(&self) -> impl Iterator<Item = RecordKind> {
        self.events.iter().filter(|rule| rule.read_first).filter_map(|rule| rule.record)
    }

    /// Whether its sender never tries again, so that a request is kept before anything can refuse it.
    pub(crate) fn is_spooled(&self) -> bool {
        self.spool
    }

    /// Whether the vendor may have made a secret of its own to sign with.
    pub(crate) fn is_signed_by_vendor(&self) -> bool {
        self.verify.iter().any(Verification::is_by_vendor)
    }

    /// Believes a request, or doesn't.
    ///
    /// # Errors
    /// [`Unverified`], which says nothing to the sender.
    pub(crate) fn verify<'a>(
        &self,
        webhook: &Webhook<'_>,
        known: impl Into<Known<'a>>,
        now: Timestamp,
    ) -> Result<Proved, Unverified> {
        let known = known.into();
        let body = self.body(webhook).unwrap_or(Json::Null);
        let mut proved = Proved::Sender;
        for verification in &self.verify {
            match verification.verify(webhook, known, &body, now)? {
                Proved::Sender => {}
                more if proved == Proved::Sender => proved = more,
                Proved::Id(id) => proved = Proved::Id(id),
                Proved::Body => {}
            }
        }
        Ok(proved)
    }

    /// How a handshake is answered; none for what is none. A vendor tries an address out before it signs anything.
    ///
    /// # Errors
    /// [`Unverified`] where it must be verified and isn't.
    pub(crate) fn handshake<'a>(
        &self,
        webhook: &Webhook<'_>,
        known: impl Into<Known<'a>>,
        settings: &BTreeMap<String, String>,
        now: Timestamp,
    ) -> Result<Option<Echo>, Unverified> {
        let body = self.body(webhook).unwrap_or(Json::Null);
        let scope = scope(webhook, &body, &Json::Null, settings);
        let is_meant = |handshake: &&Handshake| {
            let holds = |when: &Expression| when.holds(&scope).unwrap_or(false);
            handshake.method == webhook.method && handshake.when.as_ref().is_none_or(holds)
        };
        let Some(handshake) = self.handshakes.iter().find(is_meant) else { return Ok(None) };
        if handshake.verified {
            self.verify(webhook, Known { signing: None, ..known.into() }, now)?;
        }
        let echo = handshake.echo.as_ref().and_then(|echo| echo.eval(&scope).ok());
        let body = echo.and_then(|echo| printed(&echo).ok().flatten()).unwrap_or_default();
        let status = handshake.status;
        Ok(if body.len() > ECHO_BYTES { None } else { Some(Echo { status, body }) })
    }

    /// What a verified webhook says. What no rule holds for is ignored.
    ///
    /// # Errors
    /// What can't be read, with its place.
    pub(crate) fn events(
        &self,
        webhook: &Webhook<'_>,
        settings: &BTreeMap<String, String>,
    ) -> Result<Vec<InboundItem>, String> {
        let body = self.body(webhook)?;
        let items = match &self.items {
            None => vec![body.clone()],
            Some(items) => match items.eval(&scope(webhook, &body, &Json::Null, settings)) {
                Ok(Json::Array(items)) if items.len() <= MOST_ITEMS => items,
                Ok(Json::Null) => Vec::new(),
                Ok(_) => return Err(format!("inbound.items: must give a list of at most {MOST_ITEMS}")),
                Err(error) => return Err(format!("inbound.items: {error}")),
            },
        };
        let read = |item: Json| self.item(&scope(webhook, &body, &item, settings)).transpose();
        items.into_iter().filter_map(read).collect()
    }

    fn item(&self, scope: &Value) -> Result<Option<InboundItem>, String> {
        for (index, rule) in self.events.iter().enumerate() {
            let at = |reason: String| format!("inbound.events[{index}].{reason}");
            let holds = rule.when.as_ref().map(|when| when.holds(scope)).transpose();
            if holds.map_err(|error| at(format!("when: {error}")))?.unwrap_or(true) {
                return rule.item(scope).map(Some).map_err(at);
            }
        }
        Ok(None)
    }

    fn body(&self, webhook: &Webhook<'_>) -> Result<Json, String> {
        match self.encoding {
            Encoding::Json => serde_json::from_slice(webhook.body).map_err(|_| "the body is no JSON".to_owned()),
            Encoding::Form => encode::read_form(webhook.body).map_err(|reason| format!("the body {reason}")),
            Encoding::NestedForm => {
                encode::read_nested_form(webhook.body).map_err(|reason| format!("the body {reason}"))
            }
        }
    }
}

impl Handshake {
    fn read(mut reader: Reader<'_>) -> Self {
        let methods = [("GET", "GET"), ("POST", "POST")];
        let method = reader.choice("method", &methods).unwrap_or("GET").to_owned();
        if method == "POST" && !reader.has("when") {
            reader.fault("when", "is missing: every POST would be a handshake");
        }
        let status = reader.number("status", 200..=299).unwrap_or(200);
        let handshake = Self {
            method,
            when: reader.expression("when", WEBHOOK),
            status: u16::try_from(status).expect("at most 299"),
            echo: reader.expression("echo", WEBHOOK),
            verified: reader.flag("verified"),
        };
        reader.end();
        handshake
    }
}

impl Rule {
    fn read(mut reader: Reader<'_>) -> Self {
        let event_type = reader.required("type");
        if !event_type.is_empty() && !is_type(&event_type) {
            reader.fault("type", "must be a dotted event type like booking.updated");
        }
        let rule = Self {
            when: reader.expression("when", WEBHOOK),
            event_type,
            record: record_kind(&mut reader),
            external_id: reader.expression("external_id", WEBHOOK),
            external_version: reader.expression("external_version", WEBHOOK),
            at: reader.expression("at", WEBHOOK),
            deleted: reader.expression("deleted", WEBHOOK),
            fields: reader.mapping("fields", WEBHOOK),
            allowed: None,
            keeps_nulls: reader.choice("nulls", &[("drop", false), ("keep", true)]).unwrap_or(false),
            read_first: reader.flag("read_first"),
        };
        if rule.record.is_some() && rule.external_id.is_none() {
            reader.fault("external_id", "is missing: a record must be known again");
        }
        if rule.read_first && rule.record.is_none() {
            reader.fault("read_first", "needs a record that can be read");
        }
        reader.end();
        rule
    }

    fn item(&self, scope: &Value) -> Result<InboundItem, String> {
        let text = |name: &str, expression: &Option<Expression>| match expression {
            Some(expression) => judge::id(expression, scope).map_err(|reason| format!("{name}: {reason}")),
            None => Ok(String::new()),
        };
        let external_id = text("external_id", &self.external_id)?;
        if self.record.is_some() && external_id.is_empty() {
            return Err("external_id: is empty".to_owned());
        }
        let deleted = self.deleted.as_ref().map(|expression| expression.holds(scope)).transpose();
        Ok(InboundItem {
            event_type: self.event_type.clone(),
            kind: self.record,
            external_id,
            external_version: text("external_version", &self.external_version)?,
            at: self.at.as_ref().map(|expression| time(expression, scope)).transpose()?.flatten(),
            deleted: deleted.map_err(|error| format!("deleted: {error}"))?.unwrap_or(false),
            fields: self.mapped(scope)?,
            read_first: self.read_first,
        })
    }

    fn mapped(&self, scope: &Value) -> Result<BTreeMap<String, Json>, String> {
        let Some(mapping) = &self.fields else { return Ok(BTreeMap::new()) };
        let mut members = match &self.allowed {
            Some(allowed) => fields(mapping, scope, allowed).map_err(|reason| format!("fields: {reason}"))?,
            None => match mapping.apply(scope).map_err(|error| format!("fields.{error}"))? {
                Json::Object(members) => members.into_iter().collect(),
                _ => return Err("fields: must give members by their names".to_owned()),
            },
        };
        members.retain(|_, value| self.keeps_nulls || !value.is_null());
        Ok(members)
    }
}

fn scope(webhook: &Webhook<'_>, body: &Json, item: &Json, settings: &BTreeMap<String, String>) -> Value {
    let shown = webhook.headers.iter().filter(|(name, _)| !HIDDEN_HEADERS.contains(&name.as_str()));
    let texts = shown.filter_map(|(name, value)| Some((name.as_str(), Value::text(std::str::from_utf8(value).ok()?))));
    let query: Vec<_> = form_urlencoded::parse(webhook.query.as_bytes()).take(64).collect();
    Value::scope([
        ("body", Value::of(body)),
        ("headers", Value::map(texts)),
        ("item", Value::of(item)),
        ("method", Value::text(webhook.method)),
        ("query", Value::map(query.iter().map(|(name, value)| (name.as_ref(), Value::text(value))))),
        ("settings", of_settings(settings)),
    ])
}

/// Dotted: `booking.updated`.
fn is_type(text: &str) -> bool {
    let word = |word: &str| {
        !word.is_empty() && word.bytes().all(|b| b.is_ascii_lowercase() || b.is_ascii_digit() || b == b'_')
    };
    text.len() <= 128 && text.contains('.') && text.split('.').all(word)
}
