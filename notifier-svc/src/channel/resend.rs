//! Resend's API for mail (resend-openapi): one message by `POST /emails`, under an idempotency key.
//!
//! The key is the message's own name, and holds for a day: an attempt whose outcome isn't known is made again with it, several
//! times at once and then by its lane's schedule. No other way may be tried meanwhile, whatever a later answer says of itself.

use std::time::Duration;

use chassis::{
    clock::Clock,
    id::uuid_text,
    outbound::{Answer, Outbound},
};
use http::{HeaderName, header};
use serde::Deserialize;
use serde_json::Value;
use tokio::time::sleep;

use super::provider::{Ask, Class, Provider, Verdict, by_status, code};
use crate::config::Resend as Settings;

/// When an attempt of unknown outcome is made again.
const AGAIN_AFTER: &[Duration] = &[Duration::from_secs(1), Duration::from_secs(5), Duration::from_secs(20)];
/// This key stands for another mail.
const OTHER_PAYLOAD: &str = "invalid_idempotent_request";
const IDEMPOTENCY_KEY: HeaderName = HeaderName::from_static("idempotency-key");

pub(super) struct Resend {
    provider: Provider,
    url: String,
    login: String,
    again_after: &'static [Duration],
}

impl Resend {
    pub(super) fn new(settings: &Settings, outbound: Outbound, clock: Clock) -> Self {
        Self {
            provider: Provider::new("Resend", outbound, clock, settings.per_second),
            url: format!("{}/emails", settings.base_url),
            login: format!("Bearer {}", settings.api_key.expose()),
            again_after: AGAIN_AFTER,
        }
    }

    #[cfg(test)]
    pub(super) fn at_once(&mut self) {
        self.again_after = super::peer::AT_ONCE;
    }

    /// Sends one mail, once however often it is called for one name within a day.
    pub(super) async fn send(&self, uid: [u8; 16], mail: &Value) -> Verdict {
        let mut last = self.post(uid, mail).await;
        if last.class != Class::Unsure {
            return last;
        }
        for pause in self.again_after {
            sleep(*pause).await;
            last = self.again(uid, mail).await;
            if last.class != Class::Unsettled {
                return last;
            }
        }
        Verdict { class: Class::Unsettled, ..last }
    }

    /// Sends it where an earlier attempt may have been taken.
    pub(super) async fn again(&self, uid: [u8; 16], mail: &Value) -> Verdict {
        let again = self.post(uid, mail).await;
        match again.class {
            // What is said of the mail itself holds for the earlier attempt as well.
            Class::Taken | Class::Refused | Class::Dead | Class::Stopped => again,
            Class::Unsure if again.code == OTHER_PAYLOAD => again,
            // All else says nothing about it.
            _ => Verdict { class: Class::Unsettled, ..again },
        }
    }

    async fn post(&self, uid: [u8; 16], mail: &Value) -> Verdict {
        let ask = Ask::json(self.url.clone(), mail)
            .with(header::AUTHORIZATION, &self.login)
            .with(IDEMPOTENCY_KEY, &uuid_text(uid));
        self.provider.ask(ask, table).await
    }
}

#[derive(Deserialize)]
struct Fault {
    name: String,
}

/// What Resend's answer to a mail means.
fn table(answer: &Answer) -> (Class, String) {
    if answer.status.is_success() {
        return (Class::Taken, String::new());
    }
    match serde_json::from_slice::<Fault>(&answer.body) {
        Ok(Fault { name }) => {
            (of_name(answer.status.as_u16(), &name).unwrap_or_else(|| by_status(answer)), code(&name))
        }
        Err(_) => (by_status(answer), String::new()),
    }
}

fn of_name(status: u16, name: &str) -> Option<Class> {
    Some(match name {
        // An unverified domain of ours, or one of theirs that only takes tests.
        "validation_error" if status == 403 => Class::Barred,
        "missing_api_key" | "restricted_api_key" | "invalid_api_key" | "security_error" => Class::Barred,
        // The first under this key may have been delivered: it is never sent under another, nor another way.
        OTHER_PAYLOAD => Class::Unsure,
        "concurrent_idempotent_requests" => Class::Later,
        "validation_error"
        | "invalid_idempotency_key"
        | "not_found"
        | "method_not_allowed"
        | "missing_required_field"
        | "invalid_from_address"
        | "invalid_attachment"
        | "invalid_parameter"
        | "invalid_access"
        | "invalid_region" => Class::Refused,
        "rate_limit_exceeded" | "daily_quota_exceeded" | "monthly_quota_exceeded" => Class::Busy,
        // `application_error`, `internal_server_error`: by their status.
        _ => return None,
    })
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;
    use crate::channel::peer::{Peer, Script, way_out};

    async fn send(peer: &Peer) -> Verdict {
        let settings =
            Settings { api_key: "re_1".to_owned().into(), base_url: peer.base(), per_second: 0, ..Settings::default() };
        let mut resend = Resend::new(&settings, way_out(), Clock::System);
        resend.at_once();
        resend.send([7; 16], &json!({"subject": "hi"})).await
    }

    #[tokio::test]
    async fn every_name_has_its_class() {
        let peer = Peer::start([]).await;
        for (status, name, expected) in [
            (400, "validation_error", Class::Refused),
            (400, "invalid_idempotency_key", Class::Refused),
            (401, "missing_api_key", Class::Barred),
            (401, "restricted_api_key", Class::Barred),
            (403, "invalid_api_key", Class::Barred),
            (403, "validation_error", Class::Barred),
            (404, "not_found", Class::Refused),
            (405, "method_not_allowed", Class::Refused),
            (409, "concurrent_idempotent_requests", Class::Later),
            (422, "missing_required_field", Class::Refused),
            (422, "invalid_from_address", Class::Refused),
            (422, "invalid_attachment", Class::Refused),
            (422, "invalid_parameter", Class::Refused),
            (422, "invalid_access", Class::Refused),
            (422, "invalid_region", Class::Refused),
            (429, "rate_limit_exceeded", Class::Busy),
            (429, "daily_quota_exceeded", Class::Busy),
            (429, "monthly_quota_exceeded", Class::Busy),
            (451, "security_error", Class::Barred),
            (418, "something_new", Class::Refused),
        ] {
            peer.then([Script::json(
                status,
                json!({"statusCode": status, "name": name, "message": "ada@example.org"}),
            )]);
            let verdict = send(&peer).await;
            assert_eq!((verdict.class, verdict.said), (expected, format!("Resend answered {status} ({name})")));
        }
    }

    #[tokio::test]
    async fn an_unknown_outcome_is_settled_by_the_same_key_or_later_by_it() {
        let taken = || Script::json(200, json!({"id": "49a3999c-0ce1-4ea6-ab68-afcd6dc2e794"}));
        let peer = Peer::start([Script::HangUp, Script::HangUp, taken()]).await;
        assert_eq!(send(&peer).await.class, Class::Taken);
        let keys: Vec<String> = peer.asked().iter().map(|asked| asked.header("idempotency-key").to_owned()).collect();
        assert_eq!(keys, ["07070707-0707-0707-0707-070707070707"; 3]);
        assert_eq!(peer.asked()[0].body, peer.asked()[2].body, "the same key, the same bytes");
        // Being turned away afterwards says nothing about the first.
        for status in [429, 503, 401] {
            let peer = Peer::start([Script::HangUp, Script::status(status), Script::status(status)]).await;
            assert_eq!(send(&peer).await.class, Class::Unsettled, "{status}");
        }
    }
}
