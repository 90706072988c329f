//! Slack's incoming webhooks: one URL, one channel; the URL is the secret (docs.slack.dev).
//!
//! They give no id and can't be asked afterwards: what was cut, or failed on their side, stays unknown.

use chassis::{
    clock::Clock,
    outbound::{Answer, Outbound},
};
use serde_json::Value;

use super::super::provider::{Ask, Class, Provider, Verdict, by_status_of_gateway, code};

pub(super) struct Hook(Provider);

impl Hook {
    pub(super) fn new(outbound: Outbound, clock: Clock) -> Self {
        Self(Provider::new("Slack's webhook", outbound, clock, 0))
    }

    pub(super) async fn send(&self, url: String, message: &Value) -> Verdict {
        self.0.ask(Ask::json(url, message), table).await
    }
}

/// Errors are plain text.
fn table(answer: &Answer) -> (Class, String) {
    let said = std::str::from_utf8(&answer.body).unwrap_or_default().trim();
    if answer.status.is_success() {
        return (Class::Taken, String::new());
    }
    (of_error(said).unwrap_or_else(|| unknown(answer)), code(said))
}

/// A webhook has no credentials of ours: 401 and 403 are about that one.
fn unknown(answer: &Answer) -> Class {
    match by_status_of_gateway(answer) {
        Class::Barred => Class::Refused,
        class => class,
    }
}

fn of_error(error: &str) -> Option<Class> {
    Some(match error {
        "invalid_payload"
        | "no_text"
        | "too_many_attachments"
        | "invalid_blocks"
        | "invalid_blocks_format"
        | "action_prohibited"
        | "posting_to_general_channel_denied" => Class::Refused,
        "invalid_token"
        | "channel_not_found"
        | "no_service"
        | "no_service_id"
        | "no_active_hooks"
        | "no_team"
        | "team_disabled"
        | "user_not_found"
        | "channel_is_archived" => Class::Dead,
        // `rollup_error`, what may have happened there: by its status.
        _ => return None,
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::channel::peer::{Peer, Script, way_out};

    #[tokio::test]
    async fn every_answer_has_its_class() {
        let peer = Peer::start([]).await;
        let hook = Hook::new(way_out(), Clock::System);
        for (status, said, expected) in [
            (200, "ok", Class::Taken),
            (400, "invalid_payload", Class::Refused),
            (400, "no_text", Class::Refused),
            (400, "too_many_attachments", Class::Refused),
            (400, "invalid_blocks", Class::Refused),
            (400, "invalid_blocks_format", Class::Refused),
            (403, "action_prohibited", Class::Refused),
            (403, "invalid_token", Class::Dead),
            (403, "posting_to_general_channel_denied", Class::Refused),
            (403, "something new", Class::Refused),
            (404, "channel_not_found", Class::Dead),
            (404, "no_service", Class::Dead),
            (404, "no_service_id", Class::Dead),
            (404, "no_active_hooks", Class::Dead),
            (404, "no_team", Class::Dead),
            (404, "team_disabled", Class::Dead),
            (404, "user_not_found", Class::Dead),
            (410, "channel_is_archived", Class::Dead),
            (429, "", Class::Busy),
        ] {
            peer.then([Script::text(status, said)]);
            let verdict = hook.send(peer.url("/services/T/B/X"), &serde_json::json!({"text": "hi"})).await;
            assert_eq!(verdict.class, expected, "{status} {said}");
            assert!(!verdict.said.contains("services"), "the URL is a secret: {}", verdict.said);
        }
        peer.then([Script::HangUp]);
        let cut = hook.send(peer.url("/services/T/B/X"), &serde_json::json!({"text": "hi"})).await;
        assert_eq!(cut.class, Class::Unsure);
    }
}
