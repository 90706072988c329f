//! The courier of webhooks: signs a letter and posts it, and says what the answer means.
//!
//! Headers: Standard Webhooks (github.com/standard-webhooks/standard-webhooks) with every secret that signs now, and our
//! own. The body is the letter's; time and signatures are each attempt's.

use std::{sync::Arc, time::Duration};

use bytes::Bytes;
use chassis::{
    clock::Clock,
    lane::{Attempted, Blame, Courier, Delivery, Outcome},
    outbound::{Answer, Failure, Outbound, Request},
    signature,
    trace::{TRACEPARENT, TraceContext},
};
use http::{HeaderMap, HeaderName, HeaderValue, Method, StatusCode, header};
use tokio::sync::mpsc;

use crate::{
    disable::Closing,
    endpoint::{Endpoint, book::Book},
    letter::Letter,
};

/// Carries letters to endpoints. Cheap to clone.
#[derive(Clone)]
pub(crate) struct Webhooks {
    book: Book,
    outbound: Outbound,
    clock: Clock,
    closings: mpsc::Sender<Closing>,
}

/// What one request came to.
pub(crate) enum Sent {
    /// An answer of any status.
    Answer(Answer),
    /// None.
    Failure(Failure),
    /// It can't be said as a request.
    Unsayable(String),
}

impl Webhooks {
    /// Sends to the endpoints of `book`; closings are told to `closings`.
    pub(crate) fn new(book: Book, outbound: Outbound, clock: Clock, closings: mpsc::Sender<Closing>) -> Self {
        Self { book, outbound, clock, closings }
    }

    /// Posts a letter to an endpoint, now, whatever its state.
    pub(crate) async fn post(&self, endpoint: &Endpoint, letter: &Letter, source: &str) -> Sent {
        let Some(headers) = headers(endpoint, letter, source, &self.clock) else {
            return Sent::Unsayable("the event's type, time or origin doesn't fit into a header".to_owned());
        };
        let request = Request {
            method: Method::POST,
            url: endpoint.settings.url.clone(),
            headers,
            body: letter.body.clone(),
            timeout: endpoint.settings.timeout,
        };
        match self.outbound.send(request).await {
            Ok(answer) => Sent::Answer(answer),
            Err(failure) => Sent::Failure(failure),
        }
    }
}

impl Courier for Webhooks {
    async fn attempt(&self, delivery: Arc<Delivery>) -> Attempted {
        let Some(endpoint) = self.book.get(&delivery.lane_id) else {
            return unknown();
        };
        let letter = match Letter::open(delivery.content.clone()) {
            Ok(letter) if letter.failure.is_empty() => letter,
            Ok(letter) => return refused("body", letter.failure),
            Err(error) => {
                tracing::error!(delivery.id, ?error, "a stored letter can't be read");
                return refused("body", "the stored message can't be read".to_owned());
            }
        };
        match self.post(&endpoint, &letter, &delivery.origin).await {
            Sent::Answer(answer) => judged(&answer, answer.retry_after(self.clock.now())),
            Sent::Failure(failure) => failed(failure),
            Sent::Unsayable(reason) => refused("body", reason),
        }
    }

    async fn closed(&self, lane_id: &str, reason: &str) {
        let closing = Closing { endpoint: lane_id.into(), reason: reason.to_owned() };
        if self.closings.send(closing).await.is_err() {
            tracing::warn!(endpoint.id = lane_id, "stopping: the endpoint is disabled at its next failure");
        }
    }
}

/// None if something of the event doesn't fit into a header.
fn headers(endpoint: &Endpoint, letter: &Letter, source: &str, clock: &Clock) -> Option<HeaderMap> {
    let (now, secrets) = (clock.now(), endpoint.signing(clock.now()));
    let newest = secrets.first().map(|secret| secret.expose().as_bytes()).unwrap_or_default();
    let ours = [
        ("webhook-id", letter.webhook_id.clone()),
        ("webhook-timestamp", now.as_second().to_string()),
        ("webhook-signature", signature::sign(&letter.webhook_id, now.as_second(), &letter.body, &secrets)),
        ("x-wedsync-signature", signature::hex_sign(newest, &letter.body)),
        ("x-wedsync-event", letter.event_type.clone()),
        ("x-wedsync-timestamp", letter.timestamp.clone()),
        ("x-wedsync-source", source.to_owned()),
    ];
    let mut headers = endpoint.compiled.headers.clone();
    headers.insert(header::CONTENT_TYPE, HeaderValue::from_static("application/json"));
    for (name, value) in ours {
        headers.insert(HeaderName::from_static(name), HeaderValue::from_maybe_shared(Bytes::from(value)).ok()?);
    }
    if let Ok(context) = TraceContext::parse(&letter.traceparent) {
        let value = HeaderValue::from_str(&context.new_child().to_string()).expect("hex digits and dashes are ASCII");
        headers.insert(HeaderName::from_static(TRACEPARENT), value);
    }
    Some(headers)
}

/// What an answer means. Only 410 ends an endpoint; a refusal that isn't about load or time is the message's own fault.
fn judged(answer: &Answer, retry_after: Option<Duration>) -> Attempted {
    let status = answer.status;
    let (outcome, class, error) = match status {
        status if status.is_success() => (Outcome::Delivered, "delivered", String::new()),
        StatusCode::GONE => (Outcome::Gone, "status", said(status)),
        status => (Outcome::Retry { after: retry_after, blame: blame(status) }, "status", said(status)),
    };
    Attempted { outcome, status_code: Some(status.as_u16()), class, error, response: answer.body.clone() }
}

fn said(status: StatusCode) -> String {
    format!("the endpoint answered {status}")
}

fn blame(status: StatusCode) -> Blame {
    let about_load =
        [StatusCode::REQUEST_TIMEOUT, StatusCode::TOO_EARLY, StatusCode::TOO_MANY_REQUESTS].contains(&status);
    if status.is_client_error() && !about_load { Blame::Message } else { Blame::Destination }
}

/// Whether an endpoint is deleted for good, and what waits for it cancelled, is its lane's to say.
fn unknown() -> Attempted {
    let outcome = Outcome::Retry { after: None, blame: Blame::Message };
    let error = "the endpoint is being deleted".to_owned();
    Attempted { outcome, status_code: None, class: "unknown", error, response: Bytes::new() }
}

/// An address that is refused today may be another tomorrow: names move.
fn failed(failure: Failure) -> Attempted {
    let outcome = Outcome::Retry { after: None, blame: Blame::Destination };
    let class = failure.class.as_str();
    Attempted { outcome, status_code: None, class, error: failure.reason, response: Bytes::new() }
}

fn refused(class: &'static str, reason: String) -> Attempted {
    Attempted { outcome: Outcome::Permanent, status_code: None, class, error: reason, response: Bytes::new() }
}

#[cfg(test)]
mod tests {
    use chassis::{
        id::OrganizationId,
        outbound::{FailureClass, OutboundSettings},
        signature::{SignedHeaders, TOLERANCE, WebhookSecret, hex_verify, verify},
        testing::{manual_clock, noon},
    };

    use super::*;
    use crate::endpoint::tests::{endpoint, settings};

    fn letter() -> Letter {
        Letter {
            webhook_id: "msg_1".to_owned(),
            event_type: "a.b".to_owned(),
            timestamp: "2026-05-01T12:00:00Z".to_owned(),
            traceparent: "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01".to_owned(),
            body: Bytes::from_static(b"{}"),
            failure: String::new(),
        }
    }

    fn answer(status: u16) -> Answer {
        Answer {
            status: StatusCode::from_u16(status).expect("a status"),
            headers: HeaderMap::new(),
            body: Bytes::new(),
            complete: true,
            duration: Duration::ZERO,
        }
    }

    #[tokio::test]
    async fn what_waits_for_an_endpoint_that_is_being_deleted_is_no_dead_letter() {
        let outbound = Outbound::new(&OutboundSettings::default()).expect("a client");
        let webhooks = Webhooks::new(Book::default(), outbound, Clock::System, mpsc::channel(1).0);
        let delivery = Delivery {
            id: 1,
            lane: 1,
            lane_id: "gone".into(),
            organization: OrganizationId::parse("acme").expect("well-formed"),
            event: [0; 16],
            event_id: String::new(),
            event_type: "a.b".to_owned(),
            ordering_key: String::new(),
            priority: 3,
            origin: "realtime".to_owned(),
            attempts: 0,
            reopened_after: 0,
            created_at: 0,
            content: letter().seal(),
        };
        let attempted = webhooks.attempt(Arc::new(delivery)).await;
        assert_eq!(attempted.outcome, Outcome::Retry { after: None, blame: Blame::Message });
    }

    #[test]
    fn only_2xx_delivers_only_410_ends_and_all_else_is_tried_again() {
        for status in [200, 201, 204, 299] {
            assert_eq!(judged(&answer(status), None).outcome, Outcome::Delivered, "{status}");
        }
        assert_eq!(judged(&answer(410), None).outcome, Outcome::Gone);
        for status in [301, 302, 304, 400, 401, 404, 408, 425, 429, 500, 503, 599] {
            assert!(matches!(judged(&answer(status), None).outcome, Outcome::Retry { .. }), "{status}");
        }
    }

    #[test]
    fn refusals_are_the_messages_fault_unless_they_are_about_load_or_time() {
        for (status, expected) in [
            (400, Blame::Message),
            (401, Blame::Message),
            (404, Blame::Message),
            (422, Blame::Message),
            (408, Blame::Destination),
            (425, Blame::Destination),
            (429, Blame::Destination),
            (302, Blame::Destination),
            (500, Blame::Destination),
        ] {
            assert_eq!(blame(StatusCode::from_u16(status).expect("a status")), expected, "{status}");
        }
    }

    #[test]
    fn what_the_receiver_asks_for_is_passed_on() {
        let hour = Some(Duration::from_secs(3600));
        let asked = judged(&answer(503), hour);
        assert_eq!(asked.outcome, Outcome::Retry { after: hour, blame: Blame::Destination });
    }

    #[test]
    fn a_refused_address_is_the_destinations_fault_and_tried_again() {
        let failure = Failure { class: FailureClass::Address, reason: "no".to_owned(), duration: Duration::ZERO };
        let attempted = failed(failure);
        assert_eq!((attempted.class, attempted.status_code), ("address", None));
        assert_eq!(attempted.outcome, Outcome::Retry { after: None, blame: Blame::Destination });
    }

    #[test]
    fn every_secret_that_signs_is_in_the_standard_header_and_the_newest_alone_in_ours() {
        let (_, clock) = manual_clock();
        let mut endpoint = endpoint("a", settings());
        let old = endpoint.secrets[0].secret.clone();
        let new = WebhookSecret::generate();
        endpoint.rotate(new.clone(), Duration::from_secs(60), noon()).expect("one secret signs");
        let headers = headers(&endpoint, &letter(), "realtime", &clock).expect("they fit");
        let text = |name: &str| headers[name].to_str().expect("ASCII").to_owned();
        let (id, timestamp, signature) = (text("webhook-id"), text("webhook-timestamp"), text("webhook-signature"));
        let signed = SignedHeaders { id: &id, timestamp: &timestamp, signature: &signature };
        for secret in [old.clone(), new.clone()] {
            assert_eq!(verify(signed, b"{}", &[secret], noon().as_second(), TOLERANCE), Ok(()));
        }
        assert!(hex_verify(new.expose().as_bytes(), b"{}", &text("x-wedsync-signature")));
        assert!(!hex_verify(old.expose().as_bytes(), b"{}", &text("x-wedsync-signature")));
    }

    #[test]
    fn a_receiver_gets_the_trace_as_its_next_step() {
        let (_, clock) = manual_clock();
        let sent = headers(&endpoint("a", settings()), &letter(), "test", &clock).expect("they fit");
        let (sent, came) = (sent[TRACEPARENT].to_str().expect("ASCII").to_owned(), letter().traceparent);
        let (sent, came) =
            (TraceContext::parse(&sent).expect("well-formed"), TraceContext::parse(&came).expect("well-formed"));
        assert_eq!(sent.trace_id(), came.trace_id());
        assert_ne!(sent, came);
    }

    #[test]
    fn what_does_not_fit_into_a_header_is_never_sent_as_one() {
        let (_, clock) = manual_clock();
        assert!(headers(&endpoint("a", settings()), &letter(), "real\r\nx: y", &clock).is_none());
    }
}
