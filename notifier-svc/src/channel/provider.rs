//! What every provider that is reached over HTTP shares: one exchange through the guard, and what its answer means for a
//! message. Which code means what is each provider's own table.
//!
//! Guarantee: a message counts as not sent only if the provider can't have taken it: it was never reached, or it says so. A
//! connection that breaks once the request may have left, and a 5xx, leave it [`Class::Unsure`]. Whoever sends settles that:
//! by the same idempotency key or by looking it up, at once or later ([`Class::Unsettled`]), or not at all.

use std::{
    sync::{Mutex, PoisonError},
    time::Duration,
};

use bytes::Bytes;
use chassis::{
    clock::Clock,
    lane::{Attempted, Blame, Outcome},
    outbound::{Answer, FailureClass, Outbound, Request},
};
use http::{HeaderMap, HeaderName, HeaderValue, Method, header};
use tokio::time::{Instant, sleep};
use url::Url;

use crate::{notification::provider_id, suppression::Reason};

/// How long one exchange may take.
const WITHIN: Duration = Duration::from_secs(15);
/// How much of an answer is kept: the longest are lists of messages that something is looked up in.
const KEEP: usize = 64 * 1024;
/// How long to leave a provider alone that doesn't let us in: until somebody has mended the settings.
const BARRED: Duration = Duration::from_secs(300);
/// The longest that a message waits in memory for its turn with a provider; beyond, it waits in its lane.
const TURN: Duration = Duration::from_secs(5);

/// What an answer means for the message that it answers.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Class {
    /// The provider has it.
    Taken,
    /// It will never take this message.
    Refused,
    /// This address reaches nobody any more: it is not to be used again.
    Dead,
    /// Its owner told the provider STOP.
    Stopped,
    /// Not now, for reasons of this message or its recipient.
    Later,
    /// The provider is away, and hasn't taken it.
    Down,
    /// Too much at a time.
    Busy,
    /// Our account, credentials or set-up: nothing goes until somebody mends it.
    Barred,
    /// It may have been taken, and the next attempt finds out before anything is sent again.
    Unsettled,
    /// It may have been taken, and nobody can say.
    Unsure,
}

impl Class {
    /// As attempts and metrics name it.
    pub(super) fn name(self) -> &'static str {
        match self {
            Self::Taken => "delivered",
            Self::Refused => "refused",
            Self::Dead => "address",
            Self::Stopped => "stopped",
            Self::Later => "postponed",
            Self::Down => "down",
            Self::Busy => "throttled",
            Self::Barred => "auth",
            Self::Unsettled => "unsettled",
            Self::Unsure => "unknown",
        }
    }

    /// Why an address isn't used any more where an attempt ended so.
    pub(crate) fn ends_address(name: &str) -> Option<Reason> {
        match name {
            name if name == Self::Dead.name() => Some(Reason::Bounced),
            name if name == Self::Stopped.name() => Some(Reason::Stopped),
            _ => None,
        }
    }

    /// Whether another provider may be given the message: this one hasn't taken it, and the message isn't at fault.
    pub(super) fn may_fail_over(self) -> bool {
        matches!(self, Self::Down | Self::Busy | Self::Barred)
    }
}

/// What an exchange came to.
#[derive(Debug, Clone)]
pub(super) struct Verdict {
    pub(super) class: Class,
    /// The provider's own code, where it gave one.
    pub(super) code: String,
    /// In plain words, without anything personal; empty if taken.
    pub(super) said: String,
    pub(super) status: Option<u16>,
    /// How long the provider asks to be left alone.
    pub(super) after: Option<Duration>,
    /// What the provider calls the message that it took, or the beginning of why it didn't. Sealed where it is kept.
    pub(super) response: Bytes,
}

impl Verdict {
    /// Known without asking anybody.
    pub(super) fn new(class: Class, said: impl Into<String>) -> Self {
        Self { class, code: String::new(), said: said.into(), status: None, after: None, response: Bytes::new() }
    }

    /// It was found, under this id of the provider's.
    pub(super) fn taken(id: String) -> Self {
        Self { response: id.into(), ..Self::new(Class::Taken, "") }
    }

    /// As the lane takes it.
    pub(super) fn attempted(self) -> Attempted {
        let retry = |after, blame| Outcome::Retry { after, blame };
        let outcome = match self.class {
            Class::Taken => Outcome::Delivered,
            Class::Refused | Class::Dead | Class::Stopped => Outcome::Permanent,
            Class::Later => retry(self.after, Blame::Message),
            Class::Down | Class::Busy | Class::Unsettled => retry(self.after, Blame::Destination),
            Class::Barred => retry(Some(self.after.unwrap_or_default().max(BARRED)), Blame::Destination),
            Class::Unsure => Outcome::Unknown,
        };
        let error = match self.class {
            Class::Unsure | Class::Unsettled => format!("{}; it may have been taken", self.said),
            _ => self.said,
        };
        Attempted { outcome, status_code: self.status, class: self.class.name(), error, response: self.response }
    }
}

/// One request to a provider.
pub(super) struct Ask {
    pub(super) method: Method,
    pub(super) url: String,
    pub(super) headers: HeaderMap,
    pub(super) body: Bytes,
}

impl Ask {
    pub(super) fn get(url: String) -> Self {
        Self { method: Method::GET, url, headers: HeaderMap::new(), body: Bytes::new() }
    }

    pub(super) fn json(url: String, body: &serde_json::Value) -> Self {
        let body = serde_json::to_vec(body).expect("JSON has a text").into();
        Self { method: Method::POST, url, headers: HeaderMap::new(), body }
            .with(header::CONTENT_TYPE, "application/json; charset=utf-8")
    }

    pub(super) fn form(url: String, fields: &[(&str, &str)]) -> Self {
        let body = url::form_urlencoded::Serializer::new(String::new()).extend_pairs(fields).finish();
        Self { method: Method::POST, url, headers: HeaderMap::new(), body: body.into() }
            .with(header::CONTENT_TYPE, "application/x-www-form-urlencoded")
    }

    /// With a header whose value is our own: settings and ids, checked to be such.
    pub(super) fn with(mut self, name: HeaderName, value: &str) -> Self {
        if let Ok(mut value) = HeaderValue::from_str(value) {
            value.set_sensitive(name == header::AUTHORIZATION);
            self.headers.insert(name, value);
        }
        self
    }
}

/// A provider as it is reached.
pub(super) struct Provider {
    /// As people know it.
    name: &'static str,
    outbound: Outbound,
    clock: Clock,
    pace: Pace,
}

impl Provider {
    /// One that takes `per_second` requests of ours; 0: as many as there are.
    pub(super) fn new(name: &'static str, outbound: Outbound, clock: Clock, per_second: u32) -> Self {
        Self { name, outbound, clock, pace: Pace::new(per_second) }
    }

    /// Asks once; `table` says what an answer means, and names it by the provider's own code.
    pub(super) async fn ask(&self, ask: Ask, table: impl FnOnce(&Answer) -> (Class, String)) -> Verdict {
        let verdict = match self.answer(ask).await {
            Ok(answer) => self.judge(&answer, table(&answer)),
            Err(verdict) => verdict,
        };
        metrics::counter!("notifier_provider_requests_total", "provider" => self.name, "class" => verdict.class.name())
            .increment(1);
        if verdict.class == Class::Barred {
            tracing::error!(
                provider = self.name,
                said = verdict.said,
                "a provider doesn't let us in; its messages wait"
            );
        }
        verdict
    }

    /// What came back, whatever it says; what it means that nothing did.
    pub(super) async fn answer(&self, ask: Ask) -> Result<Answer, Verdict> {
        self.turn().await?;
        let Ask { method, url, headers, body } = ask;
        let request = Request { method, url, headers, body, timeout: WITHIN };
        self.outbound.fetch(request, KEEP).await.map_err(|failure| {
            let class = if may_have_left(failure.class) { Class::Unsure } else { Class::Down };
            Verdict::new(class, format!("{}: {}", self.name, failure.class.as_str()))
        })
    }

    /// How long an answer asks us to wait.
    pub(super) fn asks_for(&self, answer: &Answer) -> Option<Duration> {
        answer.retry_after(self.clock.now())
    }

    fn judge(&self, answer: &Answer, (class, code): (Class, String)) -> Verdict {
        let status = answer.status.as_u16();
        let said = match (class, code.is_empty()) {
            (Class::Taken, _) => String::new(),
            (_, true) => format!("{} answered {status}", self.name),
            (_, false) => format!("{} answered {status} ({code})", self.name),
        };
        let after = self.asks_for(answer);
        // An answer to what was taken repeats to whom it goes and what it says: its name is enough.
        let response = match class {
            Class::Taken => provider_id::read(&answer.body).into(),
            _ => answer.body.slice(..answer.body.len().min(1024)),
        };
        Verdict { class, code, said, status: Some(status), after, response }
    }

    async fn turn(&self) -> Result<(), Verdict> {
        match self.pace.wait() {
            wait if wait.is_zero() => Ok(()),
            wait if wait <= TURN => {
                sleep(wait).await;
                Ok(())
            }
            wait => {
                self.pace.give_back();
                let said = format!("{} takes no more than it is given already", self.name);
                Err(Verdict { after: Some(wait), ..Verdict::new(Class::Later, said) })
            }
        }
    }
}

/// What a status means that no table knows better (RFC 9110). A 5xx says nothing of how far it came, and may be said by
/// something in front of the provider; a 408 says that the request never came whole, and a 429 that it wasn't looked at.
pub(super) fn by_status(answer: &Answer) -> Class {
    match answer.status.as_u16() {
        200..=299 => Class::Taken,
        401 | 403 | 407 => Class::Barred,
        408 | 425 | 429 => Class::Busy,
        500.. => Class::Unsure,
        _ => Class::Refused,
    }
}

/// A provider's code as it may stand in a log: what isn't a short word is left out.
pub(super) fn code(text: &str) -> String {
    let is_word =
        (1..=64).contains(&text.len()) && text.bytes().all(|b| b.is_ascii_alphanumeric() || b"_-. /".contains(&b));
    if is_word { text.to_owned() } else { String::new() }
}

/// Whether a URL that somebody gave goes to one of these hosts; one that begins with a dot stands for all below it.
pub(super) fn is_at(url: &str, hosts: &[String]) -> bool {
    let Ok(url) = Url::parse(url) else { return false };
    let Some(host) = url.host_str() else { return false };
    let is_in = |known: &String| host == known || known.starts_with('.') && host.ends_with(known.as_str());
    hosts.iter().any(is_in)
}

fn may_have_left(class: FailureClass) -> bool {
    match class {
        FailureClass::Timeout | FailureClass::Protocol => true,
        FailureClass::Connect | FailureClass::Dns | FailureClass::Tls | FailureClass::Address => false,
    }
}

/// Requests a second, evenly; one second's worth may come at once.
struct Pace {
    /// Between two; zero: no limit.
    interval: Duration,
    /// When the next would be due if they had come evenly.
    due: Mutex<Option<Instant>>,
}

impl Pace {
    fn new(per_second: u32) -> Self {
        let interval = Duration::from_secs(1).checked_div(per_second).unwrap_or_default();
        Self { interval, due: Mutex::default() }
    }

    /// Takes a turn; gives how long it is until then.
    fn wait(&self) -> Duration {
        if self.interval.is_zero() {
            return Duration::ZERO;
        }
        let now = Instant::now();
        let mut due = self.due.lock().unwrap_or_else(PoisonError::into_inner);
        let at = due.unwrap_or(now).max(now);
        *due = Some(at + self.interval);
        let burst = Duration::from_secs(1).saturating_sub(self.interval);
        (at - now).saturating_sub(burst)
    }

    /// The turn that was taken last isn't used.
    fn give_back(&self) {
        let mut due = self.due.lock().unwrap_or_else(PoisonError::into_inner);
        *due = due.and_then(|due| due.checked_sub(self.interval));
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::channel::peer::{Peer, Script, provider};

    async fn class(script: Script) -> Class {
        let peer = Peer::start([script]).await;
        let ask = Ask::json(peer.url("/x"), &serde_json::json!({}));
        provider("peer").ask(ask, |answer| (by_status(answer), String::new())).await.class
    }

    #[tokio::test]
    async fn a_message_that_may_have_left_is_unsure_and_one_that_cannot_have_is_not() {
        assert_eq!(class(Script::HangUp).await, Class::Unsure, "cut after the request");
        assert_eq!(class(Script::Garbage).await, Class::Unsure);
        let closed = Ask::json("http://127.0.0.1:1/x".to_owned(), &serde_json::json!({}));
        let verdict = provider("peer").ask(closed, |answer| (by_status(answer), String::new())).await;
        assert_eq!(verdict.class, Class::Down, "nobody listens");
        let inside = Ask::json("http://10.0.0.1/x".to_owned(), &serde_json::json!({}));
        assert_eq!(provider("peer").ask(inside, |answer| (by_status(answer), String::new())).await.class, Class::Down);
    }

    #[tokio::test]
    async fn statuses_that_no_table_knows_have_a_class() {
        for (status, expected) in [
            (200, Class::Taken),
            (202, Class::Taken),
            (302, Class::Refused),
            (400, Class::Refused),
            (401, Class::Barred),
            (403, Class::Barred),
            (404, Class::Refused),
            (408, Class::Busy),
            (429, Class::Busy),
            (500, Class::Unsure),
            (503, Class::Unsure),
        ] {
            assert_eq!(class(Script::status(status)).await, expected, "{status}");
        }
    }

    #[tokio::test]
    async fn what_a_provider_asks_for_is_passed_on_and_who_is_barred_waits_longer() {
        let peer = Peer::start([Script::status(429).header("Retry-After: 42")]).await;
        let ask = Ask::json(peer.url("/x"), &serde_json::json!({}));
        let verdict = provider("peer").ask(ask, |answer| (by_status(answer), "slow_down".to_owned())).await;
        assert_eq!(
            (verdict.after, verdict.said.as_str()),
            (Some(Duration::from_secs(42)), "peer answered 429 (slow_down)")
        );
        let barred = Verdict::new(Class::Barred, "no").attempted();
        assert_eq!(barred.outcome, Outcome::Retry { after: Some(BARRED), blame: Blame::Destination });
        assert_eq!(Verdict::new(Class::Unsure, "cut").attempted().outcome, Outcome::Unknown);
        assert_eq!(Verdict::new(Class::Dead, "gone").attempted().outcome, Outcome::Permanent);
    }

    #[tokio::test(start_paused = true)]
    async fn a_pace_lets_a_seconds_worth_through_and_then_holds_to_its_rate() {
        let pace = Pace::new(4);
        let waits: Vec<u64> = (0..8).map(|_| pace.wait().as_millis() as u64).collect();
        assert_eq!(waits, [0, 0, 0, 0, 250, 500, 750, 1000]);
        pace.give_back();
        assert_eq!(pace.wait().as_millis(), 1000);
        tokio::time::advance(Duration::from_secs(10)).await;
        assert_eq!(pace.wait(), Duration::ZERO);
        assert_eq!(Pace::new(0).wait(), Duration::ZERO);
    }

    #[test]
    fn a_host_is_known_whole_or_by_what_it_is_below() {
        let hosts = ["hooks.slack.com".to_owned(), ".environment.api.powerplatform.com".to_owned()];
        assert!(is_at("https://hooks.slack.com/services/T/B/X", &hosts));
        assert!(is_at("https://a.b.environment.api.powerplatform.com:443/x", &hosts));
        for foreign in [
            "https://hooks.slack.com.evil.example/",
            "https://evil.example/hooks.slack.com",
            "https://hooks.slack.com@evil.example/",
            "https://evilenvironment.api.powerplatform.com/",
            "not a url",
        ] {
            assert!(!is_at(foreign, &hosts), "{foreign}");
        }
    }

    #[test]
    fn a_providers_code_is_a_word_or_nothing() {
        assert_eq!(code("channel_not_found"), "channel_not_found");
        assert_eq!(code("Ada <ada@example.org> is unknown"), "");
        assert_eq!(code(&"a".repeat(65)), "");
    }
}
