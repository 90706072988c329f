//! Slack's Web API: `chat.postMessage`, and what it takes to know whether a message was posted (docs.slack.dev).
//!
//! There is no idempotency key. A message carries its own name as metadata; whether one was posted whose outcome isn't
//! known is read in the conversation's history, and every attempt after the first begins so.

use std::time::Duration;

use chassis::{
    clock::Clock,
    id::uuid_text,
    lane::Delivery,
    outbound::{Answer, Outbound},
};
use http::header;
use serde::Deserialize;
use serde_json::{Value, json};
use tokio::time::sleep;

use super::{
    super::provider::{Ask, Class, Provider, Verdict, by_status, code},
    block::EVENT_TYPE,
};
use crate::config::Slack as Settings;

/// When a message that may have been posted is looked for.
const LOOK_AFTER: &[Duration] = &[Duration::from_secs(1), Duration::from_secs(8)];
/// Their clock may be behind ours, in seconds.
const SKEW: i64 = 60;

/// The Web API, by one bot.
pub(super) struct Api {
    provider: Provider,
    base: String,
    login: String,
    look_after: &'static [Duration],
}

enum Found {
    /// Under this time, which is its id there.
    Yes(String),
    No,
    Unknown,
}

impl Api {
    pub(super) fn new(settings: &Settings, outbound: Outbound, clock: Clock) -> Self {
        Self {
            provider: Provider::new("Slack", outbound, clock, settings.per_second),
            base: settings.base_url.clone(),
            login: format!("Bearer {}", settings.bot_token.expose()),
            look_after: LOOK_AFTER,
        }
    }

    #[cfg(test)]
    pub(super) fn look_at_once(&mut self) {
        self.look_after = crate::channel::peer::AT_ONCE;
    }

    /// Posts a message, unless an earlier attempt has.
    pub(super) async fn send(&self, delivery: &Delivery, to: &str, message: &Value) -> Verdict {
        if delivery.attempts > 0 {
            match self.look_up(delivery, to).await {
                Found::Yes(ts) => return Verdict::taken(ts),
                Found::Unknown => {
                    return Verdict::new(Class::Later, "Slack's history can't be read before another try");
                }
                Found::No => {}
            }
        }
        let mut verdict = self.post(message).await;
        if verdict.code == "not_in_channel" && self.join(to).await {
            verdict = self.post(message).await;
        }
        if verdict.class == Class::Unsure { self.settle(delivery, to, verdict).await } else { verdict }
    }

    /// Whether it was posted after all. If it wasn't so far, it waits, and is looked for again before it is posted again.
    async fn settle(&self, delivery: &Delivery, to: &str, unsure: Verdict) -> Verdict {
        let mut last = Found::No;
        for pause in self.look_after {
            sleep(*pause).await;
            last = self.look_up(delivery, to).await;
            if let Found::Yes(ts) = last {
                return Verdict::taken(ts);
            }
        }
        if matches!(last, Found::No) { Verdict { class: Class::Later, ..unsure } } else { unsure }
    }

    async fn post(&self, message: &Value) -> Verdict {
        self.provider.ask(self.ask("chat.postMessage", message), table).await
    }

    /// A public channel is joined once; false where that isn't allowed.
    async fn join(&self, channel: &str) -> bool {
        self.call("conversations.join", &json!({"channel": channel})).await.is_some()
    }

    async fn look_up(&self, delivery: &Delivery, to: &str) -> Found {
        let Some(conversation) = self.conversation(to).await else { return Found::Unknown };
        let oldest = delivery.created_at / 1_000_000 - SKEW;
        let query = url::form_urlencoded::Serializer::new(String::new())
            .append_pair("channel", &conversation)
            .append_pair("oldest", &oldest.to_string())
            .append_pair("limit", "15")
            .append_pair("include_all_metadata", "true")
            .finish();
        let ask = Ask::get(format!("{}/conversations.history?{query}", self.base));
        let answer = self.provider.answer(ask.with(header::AUTHORIZATION, &self.login)).await;
        let Some(answer) = answer.ok().and_then(|answer| ok(&answer)) else { return Found::Unknown };
        let name = uuid_text(delivery.event);
        let is_it = |message: &Value| {
            message["metadata"]["event_type"] == EVENT_TYPE
                && message["metadata"]["event_payload"]["message"] == name.as_str()
        };
        let Some(messages) = answer["messages"].as_array() else { return Found::Unknown };
        match messages.iter().find(|message| is_it(message)) {
            Some(message) => Found::Yes(message["ts"].as_str().unwrap_or_default().to_owned()),
            // More than one page since then: not to be known from the first.
            None if answer["has_more"] == true => Found::Unknown,
            None => Found::No,
        }
    }

    /// A member is written to in a conversation of their own.
    async fn conversation(&self, to: &str) -> Option<String> {
        if !to.starts_with(['U', 'W']) {
            return Some(to.to_owned());
        }
        let answer = self.call("conversations.open", &json!({"users": to})).await?;
        answer["channel"]["id"].as_str().map(str::to_owned)
    }

    async fn call(&self, method: &str, body: &Value) -> Option<Value> {
        self.provider.answer(self.ask(method, body)).await.ok().and_then(|answer| ok(&answer))
    }

    fn ask(&self, method: &str, body: &Value) -> Ask {
        Ask::json(format!("{}/{method}", self.base), body).with(header::AUTHORIZATION, &self.login)
    }
}

/// An answer that says `ok`.
fn ok(answer: &Answer) -> Option<Value> {
    let body: Value = serde_json::from_slice(&answer.body).ok()?;
    (answer.status.is_success() && body["ok"] == true).then_some(body)
}

#[derive(Deserialize)]
struct Said {
    ok: bool,
    #[serde(default)]
    error: String,
}

/// What Slack's answer to a new message means: a method's own errors come with 200.
fn table(answer: &Answer) -> (Class, String) {
    match serde_json::from_slice::<Said>(&answer.body) {
        Ok(said) if said.ok && answer.status.is_success() => (Class::Taken, String::new()),
        Ok(said) if !said.error.is_empty() => {
            (of_error(&said.error).unwrap_or_else(|| unknown(answer)), code(&said.error))
        }
        // Taken or not: it can't be read.
        _ if answer.status.is_success() => (Class::Unsure, String::new()),
        _ => (by_status(answer), String::new()),
    }
}

/// What an error means that Slack has added since: it says no.
fn unknown(answer: &Answer) -> Class {
    if answer.status.is_success() { Class::Refused } else { by_status(answer) }
}

pub(super) fn of_error(error: &str) -> Option<Class> {
    Some(match error {
        "ratelimited" | "rate_limited" | "message_limit_exceeded" => Class::Busy,
        "internal_error" | "fatal_error" | "service_unavailable" | "request_timeout" | "team_added_to_org" => {
            Class::Down
        }
        "invalid_auth"
        | "not_authed"
        | "account_inactive"
        | "token_revoked"
        | "token_expired"
        | "missing_scope"
        | "org_login_required"
        | "team_access_not_granted"
        | "ekm_access_denied"
        | "no_permission" => Class::Barred,
        "channel_not_found"
        | "is_archived"
        | "user_not_found"
        | "users_not_found"
        | "cannot_dm_bot"
        | "messages_tab_disabled"
        | "user_disabled" => Class::Dead,
        "not_in_channel"
        | "restricted_action"
        | "msg_too_long"
        | "no_text"
        | "invalid_blocks"
        | "invalid_blocks_format"
        | "too_many_attachments"
        | "duplicate_channel_not_found"
        | "duplicate_message_not_found" => Class::Refused,
        _ => return None,
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::channel::peer::{Peer, Script, delivery, way_out};

    fn api(peer: &Peer) -> Api {
        let settings = Settings {
            bot_token: "xoxb-1".to_owned().into(),
            base_url: peer.base(),
            per_second: 0,
            ..Settings::default()
        };
        let mut api = Api::new(&settings, way_out(), Clock::System);
        api.look_at_once();
        api
    }

    async fn send(peer: &Peer, to: &str, attempts: u32) -> Verdict {
        api(peer).send(&delivery("".into(), attempts), to, &json!({"channel": to, "text": "hi"})).await
    }

    fn history(messages: Value) -> Script {
        Script::json(200, json!({"ok": true, "messages": messages, "has_more": false}))
    }

    fn ours(byte: u8) -> Value {
        json!([{"text": "hi", "metadata": {"event_type": EVENT_TYPE, "event_payload": {"message": uuid_text([byte; 16])}}}])
    }

    #[tokio::test]
    async fn every_error_has_its_class() {
        let busy = ["ratelimited", "rate_limited", "message_limit_exceeded"];
        let down = ["internal_error", "fatal_error", "service_unavailable", "request_timeout", "team_added_to_org"];
        let barred = [
            "invalid_auth",
            "not_authed",
            "account_inactive",
            "token_revoked",
            "token_expired",
            "missing_scope",
            "org_login_required",
            "team_access_not_granted",
            "ekm_access_denied",
            "no_permission",
        ];
        let dead = [
            "channel_not_found",
            "is_archived",
            "user_not_found",
            "users_not_found",
            "user_disabled",
            "cannot_dm_bot",
            "messages_tab_disabled",
        ];
        let refused = [
            "restricted_action",
            "msg_too_long",
            "no_text",
            "invalid_blocks",
            "invalid_blocks_format",
            "too_many_attachments",
            "duplicate_channel_not_found",
            "duplicate_message_not_found",
            "something_new",
        ];
        let peer = Peer::start([]).await;
        for (errors, class) in [
            (&busy[..], Class::Busy),
            (&down[..], Class::Down),
            (&barred[..], Class::Barred),
            (&dead[..], Class::Dead),
            (&refused[..], Class::Refused),
        ] {
            for error in errors {
                peer.then([Script::json(200, json!({"ok": false, "error": error}))]);
                let verdict = send(&peer, "C1", 0).await;
                assert_eq!((verdict.class, verdict.said), (class, format!("Slack answered 200 ({error})")));
            }
        }
        peer.then([
            Script::json(429, json!({"ok": false, "error": "ratelimited"})).header("Retry-After: 30"),
            Script::status(503),
        ]);
        let limited = send(&peer, "C1", 0).await;
        assert_eq!((limited.class, limited.after), (Class::Busy, Some(Duration::from_secs(30))));
        assert_eq!(send(&peer, "C1", 0).await.class, Class::Down);
    }

    #[tokio::test]
    async fn a_channel_that_the_bot_is_not_in_is_joined_once() {
        let out = || Script::json(200, json!({"ok": false, "error": "not_in_channel"}));
        let peer = Peer::start([
            out(),
            Script::json(200, json!({"ok": true})),
            Script::json(200, json!({"ok": true, "ts": "1.2"})),
        ])
        .await;
        assert_eq!(send(&peer, "C1", 0).await.class, Class::Taken);
        assert_eq!(
            (peer.asked()[1].target.as_str(), peer.asked()[1].json()),
            ("/conversations.join", json!({"channel": "C1"}))
        );
        let peer = Peer::start([out(), Script::json(200, json!({"ok": true})), out()]).await;
        assert_eq!(send(&peer, "C1", 0).await.class, Class::Refused);
        let peer = Peer::start([out(), Script::json(200, json!({"ok": false, "error": "missing_scope"}))]).await;
        assert_eq!(send(&peer, "C1", 0).await.class, Class::Refused);
        assert_eq!(peer.asked().len(), 2);
    }

    #[tokio::test]
    async fn a_connection_that_was_cut_never_makes_a_second_message() {
        let peer = Peer::start([Script::HangUp, history(json!([])), history(ours(7))]).await;
        assert_eq!(send(&peer, "C1", 0).await.class, Class::Taken);
        assert!(
            peer.asked()[1].target.starts_with("/conversations.history?channel=C1&oldest="),
            "{:?}",
            peer.asked()[1]
        );
        let peer = Peer::start([Script::HangUp, history(json!([])), history(ours(8))]).await;
        assert_eq!(send(&peer, "C1", 0).await.class, Class::Later, "another message isn't this one");
        let peer = Peer::start([
            Script::HangUp,
            Script::json(200, json!({"ok": false, "error": "missing_scope"})),
            Script::HangUp,
        ])
        .await;
        assert_eq!(send(&peer, "C1", 0).await.class, Class::Unsure, "nobody says");
        let more = Script::json(200, json!({"ok": true, "messages": [], "has_more": true}));
        let peer = Peer::start([Script::HangUp, more.clone(), more]).await;
        assert_eq!(send(&peer, "C1", 0).await.class, Class::Unsure, "it may be on a later page");
    }

    #[tokio::test]
    async fn an_answer_that_cannot_be_read_is_settled_as_one_that_did_not_come() {
        for unread in [Script::text(200, "<html>"), Script::text(200, ""), Script::json(200, json!({"ok": "yes"}))] {
            let peer = Peer::start([unread.clone(), history(ours(7))]).await;
            assert_eq!(send(&peer, "C1", 0).await.class, Class::Taken, "{unread:?}");
            let peer = Peer::start([unread, history(json!([])), history(json!([]))]).await;
            assert_eq!(send(&peer, "C1", 0).await.class, Class::Later);
        }
    }

    #[tokio::test]
    async fn every_try_after_the_first_looks_first_and_a_members_conversation_is_opened_for_it() {
        let opened = || Script::json(200, json!({"ok": true, "channel": {"id": "D9"}}));
        let peer = Peer::start([opened(), history(ours(7))]).await;
        assert_eq!(send(&peer, "U1", 1).await.class, Class::Taken);
        assert!(peer.asked()[1].target.contains("channel=D9"));
        let peer = Peer::start([history(json!([])), Script::json(200, json!({"ok": true}))]).await;
        assert_eq!(send(&peer, "C1", 1).await.class, Class::Taken);
        assert_eq!(peer.asked()[1].target, "/chat.postMessage");
        let peer = Peer::start([Script::status(503)]).await;
        assert_eq!(send(&peer, "C1", 1).await.class, Class::Later);
        assert_eq!(peer.asked().len(), 1, "while nothing can be looked up, nothing is posted");
    }
}
