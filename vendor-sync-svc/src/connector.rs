//! Connectors: how a vendor's API is spoken, declared in one TOML text (`docs/connectors.md` has the language).
//!
//! A [`Connector`] is the compiled text: pure, shared, and all that the other parts know of a vendor. `request` builds
//! requests, `judge` says what answers mean, `page` walks lists, `spec` holds records and events, `inbound` and `verify`
//! webhooks, `auth` the ways to authenticate. [`catalogue`] keeps connectors, [`call`] has the effects. Which operation is
//! called when is decided in `sync`.
//!
//! Guarantees: what parses can be used, its expressions compile and the operations that it names exist; all faults are told
//! with their places; a request shows a vendor no field that the allow-list of its record doesn't name.

mod auth;
mod built_in;
pub(crate) mod call;
pub(crate) mod catalogue;
mod encode;
mod inbound;
mod judge;
pub(crate) mod limits;
mod operation;
mod page;
mod parse;
mod preview;
pub(crate) mod quota;
mod read;
mod request;
mod scope;
mod spec;
mod text;
mod verify;

use std::{
    collections::{BTreeMap, BTreeSet},
    sync::Arc,
    time::Duration,
};

use chassis::{expression::Expression, signature::WebhookSecret};
use regex::Regex;
use serde_json::Value as Json;

pub(crate) use self::{
    auth::{Auth, ClientAuth, Grant, OAuth2},
    inbound::{Inbound, InboundItem, Webhook},
    operation::{Idempotency, Operation},
    page::{Page, Position},
    read::Fault,
    spec::{EventRule, IncrementalKind, Item, RecordSpec},
    verify::{Known, Proved},
};
use self::{judge::ErrorRule, quota::Quota, text::Text};
use crate::{credential::Credential, record::RecordKind};

/// What expressions over an answer see: those of OAuth's token answers too.
pub(crate) fn of_answer(answer: &chassis::outbound::Answer) -> chassis::expression::Value {
    let body: Option<Json> = serde_json::from_slice(&answer.body).ok();
    scope::of_answer(answer.status, &answer.headers, &answer.body, body.as_ref())
}

/// A vendor's API, compiled.
#[derive(Debug)]
pub(crate) struct Connector {
    name: String,
    title: String,
    kind: String,
    docs: String,
    can: Vec<String>,
    cannot: Vec<String>,
    /// The text that it was parsed from.
    source: Arc<str>,
    base_url: Text,
    headers: Vec<(String, Text)>,
    concurrency: u32,
    signed: bool,
    settings: BTreeMap<String, Setting>,
    auth: Vec<Auth>,
    probe: Option<Probe>,
    operations: BTreeMap<String, Operation>,
    errors: Vec<ErrorRule>,
    quotas: Vec<Quota>,
    records: BTreeMap<RecordKind, RecordSpec>,
    events: Vec<EventRule>,
    inbound: Option<Inbound>,
}

/// One thing that an account must or may give.
#[derive(Debug)]
pub(crate) struct Setting {
    pub(crate) description: String,
    pub(crate) required: bool,
    pub(crate) default: Option<String>,
    pattern: Option<Regex>,
}

/// Shows whether an account works.
#[derive(Debug)]
pub(crate) struct Probe {
    pub(crate) operation: String,
    /// Settings that its answer yields.
    pub(crate) settings: Vec<(String, Expression)>,
}

/// An account at the vendor, as a request needs it.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Account<'a> {
    pub(crate) integration_id: &'a str,
    pub(crate) settings: &'a BTreeMap<String, String>,
    pub(crate) credential: &'a Credential,
    /// What a signed connector signs with, the newest first.
    pub(crate) secrets: &'a [WebhookSecret],
}

/// What became of a request.
#[derive(Debug, PartialEq)]
pub(crate) enum Judgement {
    Done(Reply),
    Failed(CallError),
}

/// What the vendor said to what it did.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct Reply {
    /// Null where it is no JSON.
    pub(crate) body: Json,
    /// What was read, found or made.
    pub(crate) resource: Json,
    /// Empty: it names none, or `find` found nothing.
    pub(crate) external_id: String,
    pub(crate) external_version: String,
    /// A person at the vendor must accept it.
    pub(crate) handed_over: bool,
}

impl Reply {
    /// What `find` gives where there is nothing.
    pub(crate) fn nothing() -> Self {
        let (body, resource) = (Json::Null, Json::Null);
        Self { body, resource, external_id: String::new(), external_version: String::new(), handed_over: false }
    }
}

/// Why nothing came of a call. As a text it says of which kind that is, and quotes nobody.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{}", class.words())]
pub(crate) struct CallError {
    pub(crate) class: Class,
    pub(crate) retry_after: Option<Duration>,
    /// For people; holds no credential. It may be the vendor's own words, which name people: it is never logged, and kept
    /// only sealed.
    pub(crate) reason: String,
    /// Who must wait until then.
    pub(crate) park: Option<Park>,
}

impl CallError {
    pub(crate) fn permanent(reason: impl Into<String>) -> Self {
        Self { class: Class::Permanent, retry_after: None, reason: reason.into(), park: None }
    }

    pub(crate) fn unauthorized(reason: impl Into<String>) -> Self {
        Self { class: Class::Unauthorized, ..Self::permanent(reason) }
    }

    pub(crate) fn retry(reason: impl Into<String>) -> Self {
        Self { class: Class::Retry, ..Self::permanent(reason) }
    }

    /// It was not even sent: it must wait for its turn.
    pub(crate) fn throttled(retry_after: Duration, reason: impl Into<String>) -> Self {
        Self { class: Class::Throttled, retry_after: Some(retry_after), ..Self::permanent(reason) }
    }
}

/// What kind of refusal it is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(crate) enum Class {
    /// Sending it again changes nothing.
    Permanent,
    /// It may work later.
    Retry,
    /// It may work when there is room again.
    Throttled,
    /// The credential is no good.
    Unauthorized,
    /// The vendor has another like it.
    Duplicate,
    /// What it was about is no longer there.
    Gone,
    /// Somebody changed it meanwhile: read it again.
    Conflict,
    /// It may have arrived, and must not be sent twice.
    Unknown,
}

impl Class {
    pub(crate) fn as_str(self) -> &'static str {
        match self {
            Self::Permanent => "permanent",
            Self::Retry => "retry",
            Self::Throttled => "throttled",
            Self::Unauthorized => "unauthorized",
            Self::Duplicate => "duplicate",
            Self::Gone => "gone",
            Self::Conflict => "conflict",
            Self::Unknown => "unknown",
        }
    }

    /// The same as people read it.
    pub(crate) fn words(self) -> &'static str {
        match self {
            Self::Permanent => "it is refused",
            Self::Retry => "it can't be done now",
            Self::Throttled => "it must wait for its turn",
            Self::Unauthorized => "the credential is refused",
            Self::Duplicate => "there is another like it",
            Self::Gone => "it is no longer there",
            Self::Conflict => "it was changed there meanwhile",
            Self::Unknown => "it may have arrived, or not",
        }
    }
}

/// Who must wait after a refusal.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Park {
    Account,
    /// Everybody who uses the connector with the same application.
    Application,
}

impl Connector {
    /// `[a-z0-9-]{1,64}`.
    pub(crate) fn name(&self) -> &str {
        &self.name
    }

    /// For people.
    pub(crate) fn title(&self) -> &str {
        &self.title
    }

    /// What routes call integrations of it.
    pub(crate) fn kind(&self) -> &str {
        &self.kind
    }

    /// Where the vendor describes its API; may be empty.
    pub(crate) fn source_docs(&self) -> &str {
        &self.docs
    }

    /// What it can do, in words.
    pub(crate) fn can(&self) -> &[String] {
        &self.can
    }

    /// What it can't, and why.
    pub(crate) fn cannot(&self) -> &[String] {
        &self.cannot
    }

    /// The text that it was parsed from.
    pub(crate) fn source(&self) -> &str {
        &self.source
    }

    /// Whether its requests are signed with the account's secret.
    pub(crate) fn is_signed(&self) -> bool {
        self.signed
    }

    /// Requests of one account at a time.
    pub(crate) fn concurrency(&self) -> u32 {
        self.concurrency
    }

    /// What an account gives, by name.
    pub(crate) fn settings(&self) -> &BTreeMap<String, Setting> {
        &self.settings
    }

    /// Ways to authenticate; empty: none is needed.
    pub(crate) fn auth(&self) -> &[Auth] {
        &self.auth
    }

    /// Its OAuth declaration, where it has one.
    pub(crate) fn oauth(&self) -> Option<&OAuth2> {
        self.auth.iter().find_map(|auth| if let Auth::OAuth2(oauth) = auth { Some(&**oauth) } else { None })
    }

    /// What shows whether an account works.
    pub(crate) fn probe(&self) -> Option<&Probe> {
        self.probe.as_ref()
    }

    /// An operation by its name.
    pub(crate) fn operation(&self, name: &str) -> Option<&Operation> {
        self.operations.get(name)
    }

    /// Names of its operations.
    pub(crate) fn operations(&self) -> impl Iterator<Item = &str> {
        self.operations.keys().map(String::as_str)
    }

    /// How fast it may be asked.
    pub(crate) fn quotas(&self) -> &[Quota] {
        &self.quotas
    }

    /// What it can do with one kind of record.
    pub(crate) fn record(&self, kind: RecordKind) -> Option<&RecordSpec> {
        self.records.get(&kind)
    }

    /// The kinds of records that it knows.
    pub(crate) fn records(&self) -> impl Iterator<Item = RecordKind> {
        self.records.keys().copied()
    }

    /// What is done about an event of this type, in the order of the text. Whether each holds is asked of it.
    pub(crate) fn events<'a>(&'a self, event_type: &'a str) -> impl Iterator<Item = &'a EventRule> {
        self.events.iter().filter(move |rule| rule.takes(event_type))
    }

    /// Its webhooks.
    pub(crate) fn inbound(&self) -> Option<&Inbound> {
        self.inbound.as_ref()
    }

    /// Whether everything that it writes may be sent again when nobody knows whether it arrived.
    pub(crate) fn is_repeatable(&self) -> bool {
        let used = |name: &str| self.operations.get(name).is_none_or(Operation::is_repeatable);
        let written = self.records.values().flat_map(RecordSpec::operations).map(|(_, name)| name);
        written.chain(self.events.iter().map(|rule| rule.operation.as_str())).all(used)
    }

    /// How much of an operation's answer is read.
    fn answer_bytes(&self, name: &str) -> usize {
        self.operations.get(name).map_or(0, |operation| operation.answer_bytes)
    }

    /// Whether an operation looks a record up.
    fn is_find(&self, name: &str) -> bool {
        self.records.values().any(|spec| spec.find.as_deref() == Some(name))
    }

    /// Holds an account's settings to what is declared.
    ///
    /// # Errors
    /// Name and reason of the first that doesn't hold.
    pub(crate) fn check_settings(&self, given: &BTreeMap<String, String>) -> Result<(), (String, String)> {
        if let Some(strange) = given.keys().find(|name| !self.settings.contains_key(*name)) {
            return Err((strange.clone(), format!("is no setting of {}", self.name)));
        }
        for (name, setting) in &self.settings {
            let wrong = |reason: &str| Err((name.clone(), reason.to_owned()));
            match given.get(name).map(String::as_str).filter(|value| !value.is_empty()) {
                None if setting.required && setting.default.is_none() => return wrong("is missing"),
                Some(value) if value.len() > 1_024 || value.chars().any(char::is_control) => {
                    return wrong("must be at most 1,024 bytes without control characters");
                }
                Some(value) if setting.pattern.as_ref().is_some_and(|pattern| !pattern.is_match(value)) => {
                    return wrong("doesn't have the form that its connector asks for");
                }
                _ => {}
            }
        }
        Ok(())
    }

    /// An account's settings with the defaults, and no others.
    pub(crate) fn filled(&self, given: &BTreeMap<String, String>) -> BTreeMap<String, String> {
        let value = |(name, setting): (&String, &Setting)| {
            let given = given.get(name).filter(|value| !value.is_empty()).cloned();
            Some((name.clone(), given.or_else(|| setting.default.clone())?))
        };
        self.settings.iter().filter_map(value).collect()
    }

    /// The settings that the probe's reply yields.
    ///
    /// # Errors
    /// Name and reason of the first that can't be read.
    pub(crate) fn probed(&self, reply: &Reply) -> Result<BTreeMap<String, String>, String> {
        let scope = chassis::expression::Value::scope([("body", chassis::expression::Value::of(&reply.body))]);
        let settings = self.probe.iter().flat_map(|probe| &probe.settings);
        let value = |(name, expression): &(String, Expression)| {
            let value = judge::id(expression, &scope).map_err(|reason| format!("probe.settings.{name}: {reason}"))?;
            Ok((name.clone(), value))
        };
        settings.map(value).collect()
    }

    /// The allow-list of a record kind.
    fn allowed(&self, kind: RecordKind) -> BTreeSet<String> {
        self.records.get(&kind).map(|spec| spec.fields.clone()).unwrap_or_default()
    }
}

#[cfg(test)]
mod tests;
