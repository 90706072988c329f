//! A webhook endpoint: what its owner sets, what may be set, its secrets and its state. Pure but for the look at its URL.
//!
//! `endpoint/rows.rs` keeps endpoints, `endpoint/book.rs` holds them in memory, `manage.rs` changes them.

pub(crate) mod book;
pub(crate) mod rows;

use std::{
    collections::{BTreeMap, BTreeSet},
    sync::Arc,
    time::Duration,
};

use chassis::{
    error::{Error, Result},
    expression::{Condition, ExpressionError, Mapping, OF_CHANGE},
    id::OrganizationId,
    lane::{self, Schedule},
    outbound,
    signature::WebhookSecret,
};
use http::{HeaderMap, HeaderName, HeaderValue};
use jiff::{SignedDuration, Timestamp};
use serde::{Deserialize, Serialize};

use crate::{event::Event, matching::TypePattern, policy::snake_case};

/// Attempts in any 60 s, where the owner says nothing.
pub(crate) const RATE_LIMIT: u32 = 100;
const RATE_LIMIT_MAX: u32 = 1_000_000;
/// How long an attempt may take, where the owner says nothing.
pub(crate) const TIMEOUT: Duration = Duration::from_secs(10);
const TIMEOUT_MIN: Duration = Duration::from_secs(1);
/// How long it may fail before it is disabled, where the owner says nothing.
pub(crate) const DISABLE_AFTER: Duration = Duration::from_secs(5 * 24 * 3600);
const DISABLE_AFTER_MIN: Duration = Duration::from_secs(1);
const DISABLE_AFTER_MAX: Duration = Duration::from_secs(90 * 24 * 3600);
const DELAYS: usize = 64;
const DELAY_MAX: Duration = Duration::from_secs(24 * 3600);
const EVENT_TYPES: usize = 100;
const HEADERS: usize = 32;
const HEADER_BYTES: usize = 4 * 1024;
const FIELDS: usize = 256;
const NAME_BYTES: usize = 256;
const DESCRIPTION_BYTES: usize = 1_024;
/// Secrets that sign at once; receivers look at no more than 16 signatures.
const SECRETS: usize = 8;
/// What stands for a custom header's value where it is shown; sent back in an update, it keeps the value.
pub(crate) const REDACTED: &str = "<redacted>";

/// What the owner sets. Durations are whole and bounded once [`Settings::check`] has passed.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Settings {
    /// Empty: the whole organization's.
    pub(crate) supplier_id: String,
    pub(crate) url: String,
    pub(crate) event_types: Vec<String>,
    /// Empty: always.
    pub(crate) condition: String,
    /// Empty: the standard body.
    pub(crate) transformation: String,
    /// They can hold credentials: kept sealed, beside the secrets.
    #[serde(skip)]
    pub(crate) headers: BTreeMap<String, String>,
    pub(crate) description: String,
    pub(crate) rate_limit: u32,
    pub(crate) ordered: bool,
    pub(crate) timeout: Duration,
    /// Empty: the standard one.
    pub(crate) schedule: Vec<Duration>,
    /// In snake case, as the two sets that the field policy compares.
    pub(crate) granted_fields: BTreeSet<String>,
    pub(crate) allowed_fields: BTreeSet<String>,
    pub(crate) disable_after: Duration,
}

/// What the settings come to, ready for use.
#[derive(Debug, Default)]
pub(crate) struct Compiled {
    pub(crate) patterns: Vec<TypePattern>,
    pub(crate) condition: Option<Condition>,
    pub(crate) transformation: Option<Mapping>,
    pub(crate) headers: HeaderMap,
}

impl Settings {
    /// Holds the settings to every rule but that of the URL, and compiles them.
    ///
    /// # Errors
    /// `Error::Invalid` naming the field.
    pub(crate) fn check(&self) -> Result<Compiled> {
        check_name("supplier_id", &self.supplier_id, self.supplier_id.is_empty())?;
        at_most("description", self.description.len(), DESCRIPTION_BYTES, "bytes")?;
        at_most("retry_schedule", self.schedule.len(), DELAYS, "delays")?;
        within("rate_limit_per_minute", self.rate_limit, 1, RATE_LIMIT_MAX)?;
        within("timeout", self.timeout, TIMEOUT_MIN, outbound::LONGEST)?;
        within("disable_after", self.disable_after, DISABLE_AFTER_MIN, DISABLE_AFTER_MAX)?;
        for delay in &self.schedule {
            within("retry_schedule", *delay, Duration::ZERO, DELAY_MAX)?;
        }
        check_fields("granted_fields", &self.granted_fields)?;
        check_fields("allowed_fields", &self.allowed_fields)?;
        Ok(Compiled {
            patterns: patterns(&self.event_types)?,
            condition: compile("condition", &self.condition, Condition::compile)?,
            transformation: compile("transformation", &self.transformation, |source| {
                Mapping::compile(source, OF_CHANGE)
            })?,
            headers: headers(&self.headers)?,
        })
    }

    /// Gives the headers that were sent back as they are shown their values of before.
    pub(crate) fn keep_redacted(&mut self, before: &Self) {
        for (name, value) in &mut self.headers {
            if let (true, Some(kept)) = (value == REDACTED, before.headers.get(name)) {
                value.clone_from(kept);
            }
        }
    }

    /// Column names in the one spelling that they are compared in.
    pub(crate) fn fields(names: Vec<String>) -> BTreeSet<String> {
        names.iter().map(|name| snake_case(name)).collect()
    }
}

fn at_most(field: &'static str, count: usize, limit: usize, what: &str) -> Result<()> {
    if count <= limit { Ok(()) } else { Err(Error::invalid(field, format!("must hold at most {limit} {what}"))) }
}

fn within<T: PartialOrd + std::fmt::Debug>(field: &'static str, value: T, least: T, most: T) -> Result<()> {
    let is_within = least <= value && value <= most;
    if is_within { Ok(()) } else { Err(Error::invalid(field, format!("must be between {least:?} and {most:?}"))) }
}

fn check_name(field: &'static str, name: &str, may_be_empty: bool) -> Result<()> {
    let is_plain = !name.chars().any(|c| c.is_control() || c.is_whitespace() || c == ':' || c == '*');
    if name.len() <= NAME_BYTES && is_plain && (may_be_empty || !name.is_empty()) {
        return Ok(());
    }
    Err(Error::invalid(field, format!("must be 1 to {NAME_BYTES} bytes without blanks, `:` or `*`")))
}

fn check_fields(field: &'static str, names: &BTreeSet<String>) -> Result<()> {
    at_most(field, names.len(), FIELDS, "columns")?;
    names.iter().try_for_each(|name| check_name(field, name, false))
}

fn patterns(types: &[String]) -> Result<Vec<TypePattern>> {
    if types.is_empty() {
        return Err(Error::invalid("event_types", "must name at least one type, `<table>.*` or `*`"));
    }
    at_most("event_types", types.len(), EVENT_TYPES, "types")?;
    types.iter().map(|text| TypePattern::parse(text)).collect()
}

fn compile<T>(
    field: &'static str,
    source: &str,
    compile: impl FnOnce(&str) -> Result<T, ExpressionError>,
) -> Result<Option<T>> {
    if source.is_empty() {
        return Ok(None);
    }
    compile(source).map(Some).map_err(|error| Error::invalid(field, error.to_string()))
}

fn headers(given: &BTreeMap<String, String>) -> Result<HeaderMap> {
    at_most("headers", given.len(), HEADERS, "headers")?;
    let mut headers = HeaderMap::with_capacity(given.len());
    for (name, value) in given {
        let invalid = |reason: &str| Error::invalid("headers", format!("{name:.100?} {reason}"));
        let parsed = HeaderName::from_bytes(name.as_bytes()).map_err(|_| invalid("is not a header's name"))?;
        if is_ours(&parsed) {
            return Err(invalid("is set by us, or belongs to the connection"));
        }
        if value.len() > HEADER_BYTES {
            return Err(invalid("must have a value of at most 4 KiB"));
        }
        let mut value =
            HeaderValue::from_str(value).map_err(|_| invalid("must have a value of visible ASCII characters"))?;
        value.set_sensitive(true);
        if headers.insert(parsed, value).is_some() {
            return Err(invalid("stands twice"));
        }
    }
    Ok(headers)
}

fn is_ours(name: &HeaderName) -> bool {
    let text = name.as_str();
    let is_named = matches!(text, "content-type" | "content-encoding" | "user-agent" | "traceparent" | "tracestate");
    is_named || text.starts_with("webhook-") || text.starts_with("x-wedsync-") || !outbound::may_set(name)
}

/// Where an endpoint stands. The numbers are those of the store and of the wire.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(i64)]
pub(crate) enum State {
    Active = 1,
    /// By its owner: deliveries wait.
    Paused = 2,
    /// By us: it gets none.
    Disabled = 3,
}

impl State {
    pub(crate) fn from_number(number: i64) -> Option<Self> {
        [Self::Active, Self::Paused, Self::Disabled].into_iter().find(|state| *state as i64 == number)
    }
}

/// The log's head at an endpoint's creation: it sees what comes later.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct Since {
    pub(crate) log_id: String,
    pub(crate) sequence: u64,
}

impl Since {
    /// Events of another log (one that was restored from a backup) are all later.
    pub(crate) fn is_before(&self, event: &Event) -> bool {
        self.log_id != event.log_id || self.sequence < event.sequence
    }
}

/// A signing secret, and when it stops signing.
#[derive(Clone, Debug)]
pub(crate) struct KeptSecret {
    pub(crate) secret: WebhookSecret,
    pub(crate) expires_at: Option<Timestamp>,
}

/// An endpoint as this process uses it; a change makes a new one.
#[derive(Clone, Debug)]
pub(crate) struct Endpoint {
    pub(crate) id: Arc<str>,
    pub(crate) organization: OrganizationId,
    pub(crate) settings: Settings,
    pub(crate) compiled: Arc<Compiled>,
    /// The newest first; it has no end.
    pub(crate) secrets: Vec<KeptSecret>,
    pub(crate) state: State,
    pub(crate) state_reason: String,
    /// That it was disabled is still to be published.
    pub(crate) announce: bool,
    pub(crate) version: u64,
    pub(crate) since: Since,
    pub(crate) created_at: Timestamp,
    pub(crate) updated_at: Timestamp,
}

impl Endpoint {
    /// The secrets that sign now, the newest first.
    pub(crate) fn signing(&self, now: Timestamp) -> Vec<WebhookSecret> {
        let valid = self.secrets.iter().filter(|kept| kept.expires_at.is_none_or(|at| now < at));
        valid.map(|kept| kept.secret.clone()).collect()
    }

    /// Puts a new secret first. The others keep signing for `overlap` at most: a rotation without one ends them all.
    ///
    /// # Errors
    /// `Error::FailedPrecondition` while too many still sign.
    pub(crate) fn rotate(&mut self, secret: WebhookSecret, overlap: Duration, now: Timestamp) -> Result<Timestamp> {
        let ends = now + SignedDuration::try_from(overlap).unwrap_or(SignedDuration::ZERO);
        // One that comes again takes its own place.
        let is_other = |kept: &KeptSecret| kept.secret.expose() != secret.expose();
        self.secrets.retain(|kept| is_other(kept) && kept.expires_at.is_none_or(|at| now < at));
        if self.secrets.len() >= SECRETS {
            return Err(Error::FailedPrecondition(format!(
                "{SECRETS} secrets still sign: wait until one of them ends"
            )));
        }
        for kept in &mut self.secrets {
            kept.expires_at = Some(kept.expires_at.map_or(ends, |at| at.min(ends)));
        }
        self.secrets.insert(0, KeptSecret { secret, expires_at: None });
        Ok(ends)
    }

    /// How its lane behaves.
    pub(crate) fn lane(&self) -> lane::Settings {
        let schedule = &self.settings.schedule;
        lane::Settings {
            rate_limit: self.settings.rate_limit,
            ordered: self.settings.ordered,
            schedule: if schedule.is_empty() { Schedule::default() } else { Schedule::new(schedule.clone()) },
            disable_after: self.settings.disable_after,
            paused: self.state == State::Paused,
            // Receivers drop repeats by `webhook-id`.
            repeatable: true,
        }
    }

    /// Whether an event may be shown to it at all: its organization's, and its supplier's if it is a supplier's.
    pub(crate) fn may_see(&self, event: &Event) -> bool {
        let supplier = self.settings.supplier_id.as_str();
        self.organization == event.organization && (supplier.is_empty() || event.suppliers().any(|id| id == supplier))
    }
}

#[cfg(test)]
pub(crate) mod tests {
    use chassis::testing::noon;

    use super::*;

    /// Settings that pass, for everything.
    pub(crate) fn settings() -> Settings {
        Settings {
            supplier_id: String::new(),
            url: "https://hooks.example.com/in".to_owned(),
            event_types: vec!["*".to_owned()],
            condition: String::new(),
            transformation: String::new(),
            headers: BTreeMap::new(),
            description: String::new(),
            rate_limit: RATE_LIMIT,
            ordered: false,
            timeout: TIMEOUT,
            schedule: Vec::new(),
            granted_fields: BTreeSet::new(),
            allowed_fields: BTreeSet::new(),
            disable_after: DISABLE_AFTER,
        }
    }

    /// An active endpoint of `acme` that sees what comes after the fifth event of `log`.
    pub(crate) fn endpoint(id: &str, settings: Settings) -> Endpoint {
        Endpoint {
            id: id.into(),
            organization: OrganizationId::parse("acme").expect("well-formed"),
            compiled: Arc::new(settings.check().expect("settings that pass")),
            settings,
            secrets: vec![KeptSecret { secret: WebhookSecret::generate(), expires_at: None }],
            state: State::Active,
            state_reason: String::new(),
            announce: false,
            version: 1,
            since: Since { log_id: "log".to_owned(), sequence: 5 },
            created_at: noon(),
            updated_at: noon(),
        }
    }

    fn field_at_fault(change: impl FnOnce(&mut Settings)) -> String {
        let mut settings = settings();
        change(&mut settings);
        match settings.check() {
            Err(Error::Invalid { field, .. }) => field.into_owned(),
            Err(other) => panic!("{other}"),
            Ok(_) => String::new(),
        }
    }

    fn with_header(name: &str, value: &str) -> String {
        field_at_fault(|settings| drop(settings.headers.insert(name.to_owned(), value.to_owned())))
    }

    #[test]
    fn what_is_out_of_bounds_is_refused_by_name() {
        assert_eq!(field_at_fault(|_| {}), "");
        assert_eq!(field_at_fault(|settings| settings.event_types.clear()), "event_types");
        assert_eq!(field_at_fault(|settings| settings.event_types.push("Wedding".to_owned())), "event_types");
        assert_eq!(field_at_fault(|settings| settings.condition = "new.a ==".to_owned()), "condition");
        assert_eq!(field_at_fault(|settings| settings.condition = "secrets".to_owned()), "condition");
        assert_eq!(field_at_fault(|settings| settings.transformation = "{".to_owned()), "transformation");
        assert_eq!(field_at_fault(|settings| settings.timeout = Duration::from_millis(999)), "timeout");
        assert_eq!(field_at_fault(|settings| settings.timeout = Duration::from_millis(30_001)), "timeout");
        assert_eq!(field_at_fault(|settings| settings.schedule = vec![TIMEOUT; 65]), "retry_schedule");
        assert_eq!(field_at_fault(|settings| settings.schedule = vec![DELAY_MAX * 2]), "retry_schedule");
        assert_eq!(field_at_fault(|settings| settings.rate_limit = 1_000_001), "rate_limit_per_minute");
        assert_eq!(field_at_fault(|settings| settings.disable_after = Duration::ZERO), "disable_after");
        assert_eq!(field_at_fault(|settings| settings.supplier_id = "a:b".to_owned()), "supplier_id");
    }

    #[test]
    fn headers_that_we_or_http_own_are_refused_and_others_pass() {
        for name in [
            "webhook-id",
            "X-WedSync-Event",
            "Content-Type",
            "Host",
            "Content-Length",
            "User-Agent",
            "traceparent",
            "Connection",
            "a b",
            "",
        ] {
            assert_eq!(with_header(name, "x"), "headers", "{name}");
        }
        assert_eq!(with_header("x-key", "a\r\nb: c"), "headers", "a header within a header");
        assert_eq!(with_header("authorization", "Bearer x"), "");
    }

    #[test]
    fn two_spellings_of_one_header_are_refused() {
        let at_fault = field_at_fault(|settings| {
            settings.headers = ["X-Key", "x-key"].map(|name| (name.to_owned(), "x".to_owned())).into();
        });
        assert_eq!(at_fault, "headers");
    }

    #[test]
    fn a_header_sent_back_as_it_is_shown_keeps_its_value() {
        let (mut before, mut after) = (settings(), settings());
        before.headers.insert("authorization".to_owned(), "Bearer x".to_owned());
        after.headers = [("authorization", REDACTED), ("x-new", "1")]
            .map(|(name, value)| (name.to_owned(), value.to_owned()))
            .into();
        after.keep_redacted(&before);
        assert_eq!(after.headers["authorization"], "Bearer x");
        assert_eq!(after.headers["x-new"], "1");
    }

    #[test]
    fn a_rotated_secret_signs_beside_the_new_one_until_its_overlap_ends() {
        let mut endpoint = endpoint("a", settings());
        let old = endpoint.secrets[0].secret.clone();
        let new = WebhookSecret::generate();
        let ends = endpoint.rotate(new.clone(), Duration::from_secs(60), noon()).expect("one secret signs");
        let signing =
            |at: Timestamp| endpoint.signing(at).iter().map(|secret| secret.expose().to_owned()).collect::<Vec<_>>();
        assert_eq!(signing(noon()), [new.expose(), old.expose()]);
        assert_eq!(signing(ends), [new.expose()]);
    }

    #[test]
    fn rotating_again_never_lengthens_an_old_secrets_life() {
        let mut endpoint = endpoint("a", settings());
        let first = endpoint.secrets[0].secret.clone();
        let ends =
            endpoint.rotate(WebhookSecret::generate(), Duration::from_secs(60), noon()).expect("one secret signs");
        endpoint.rotate(WebhookSecret::generate(), Duration::from_secs(600), noon()).expect("two secrets sign");
        let kept = endpoint.secrets.iter().find(|kept| kept.secret.expose() == first.expose()).expect("it still signs");
        assert_eq!(kept.expires_at, Some(ends));
        for _ in 0..5 {
            endpoint
                .rotate(WebhookSecret::generate(), Duration::from_secs(600), noon())
                .expect("fewer than eight sign");
        }
        assert!(endpoint.rotate(WebhookSecret::generate(), Duration::from_secs(600), noon()).is_err());
    }
}
