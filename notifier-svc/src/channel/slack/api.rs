//! Slack's Web API: `chat.postMessage`, and what it takes to know whether a message was posted (docs.slack.dev).
//!
//! There is no idempotency key: `client_msg_id` is for Slack's own clients (slackapi/java-slack-sdk, 852). A message carries its
//! own name as metadata; whether one was posted whose outcome isn't known is read in the conversation's history, and the
//! attempt after it begins so.

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
/// Pages of a conversation that are looked through, the latest first.
const PAGES: usize = 10;

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
    /// It can't be read now.
    Later(Option<Duration>),
    /// It can't be read from here, or there is too much to read.
    Never,
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
    pub(super) async fn again(&self, delivery: &Delivery, to: &str, message: &Value) -> Verdict {
        let said = "Slack's history can't be read before another try";
        match self.look_up(delivery, to).await {
            Found::Yes(ts) => Verdict::taken(ts),
            Found::Later(after) => Verdict { after, ..Verdict::new(Class::Unsettled, said) },
            Found::Never => Verdict::new(Class::Unsure, said),
            Found::No => self.send(delivery, to, message).await,
        }
    }

    /// Posts a message, where no earlier attempt can have.
    pub(super) async fn send(&self, delivery: &Delivery, to: &str, message: &Value) -> Verdict {
        let mut verdict = self.post(message).await;
        if verdict.code == "not_in_channel" && self.join(to).await {
            verdict = self.post(message).await;
        }
        if verdict.class == Class::Unsure { self.settle(delivery, to, verdict).await } else { verdict }
    }

    /// Whether it was posted after all. If it wasn't so far, it waits, and is looked for again before it is posted again.
    async fn settle(&self, delivery: &Delivery, to: &str, unsure: Verdict) -> Verdict {
        for pause in self.look_after {
            sleep(*pause).await;
            match self.look_up(delivery, to).await {
                Found::Yes(ts) => return Verdict::taken(ts),
                Found::Never => return unsure,
                Found::No | Found::Later(_) => {}
            }
        }
        Verdict { class: Class::Unsettled, ..unsure }
    }

    async fn post(&self, message: &Value) -> Verdict {
        self.provider.ask(self.ask("chat.postMessage", message), table).await
    }

    /// A public channel is joined once; false where that isn't allowed.
    async fn join(&self, channel: &str) -> bool {
        self.call(self.ask("conversations.join", &json!({"channel": channel}))).await.is_ok()
    }

    async fn look_up(&self, delivery: &Delivery, to: &str) -> Found {
        self.read(delivery, to).await.unwrap_or_else(|found| found)
    }

    /// Reads the conversation since the message was made, page by page.
    async fn read(&self, delivery: &Delivery, to: &str) -> Result<Found, Found> {
        let conversation = self.conversation(to).await?;
        let oldest = (delivery.created_at / 1_000_000 - SKEW).to_string();
        let name = uuid_text(delivery.event);
        let mut cursor = String::new();
        for _ in 0..PAGES {
            let query = url::form_urlencoded::Serializer::new(String::new())
                .extend_pairs([("channel", &*conversation), ("oldest", &*oldest), ("limit", "15")])
                .extend_pairs([("include_all_metadata", "true"), ("cursor", &*cursor)])
                .finish();
            let ask = Ask::get(format!("{}/conversations.history?{query}", self.base));
            let page = self.call(ask.with(header::AUTHORIZATION, &self.login)).await?;
            let messages = page["messages"].as_array().ok_or(Found::Later(None))?;
            if let Some(message) = messages.iter().find(|message| is_named(message, &name)) {
                return Ok(Found::Yes(message["ts"].as_str().unwrap_or_default().to_owned()));
            }
            if page["has_more"] != true {
                return Ok(Found::No);
            }
            cursor = page["response_metadata"]["next_cursor"].as_str().unwrap_or_default().to_owned();
            if cursor.is_empty() {
                break;
            }
        }
        Ok(Found::Never)
    }

    /// A member is written to in a conversation of their own.
    async fn conversation(&self, to: &str) -> Result<String, Found> {
        if !to.starts_with(['U', 'W']) {
            return Ok(to.to_owned());
        }
        let answer = self.call(self.ask("conversations.open", &json!({"users": to}))).await?;
        answer["channel"]["id"].as_str().map(str::to_owned).ok_or(Found::Later(None))
    }

    /// An answer that says `ok`; else whether another may come later.
    async fn call(&self, ask: Ask) -> Result<Value, Found> {
        let answer = self.provider.answer(ask).await.map_err(|verdict| Found::Later(verdict.after))?;
        match table(&answer).0 {
            Class::Taken => serde_json::from_slice(&answer.body).map_err(|_| Found::Later(None)),
            Class::Refused | Class::Dead | Class::Stopped | Class::Barred => Err(Found::Never),
            _ => Err(Found::Later(self.provider.asks_for(&answer))),
        }
    }

    fn ask(&self, method: &str, body: &Value) -> Ask {
        Ask::json(format!("{}/{method}", self.base), body).with(header::AUTHORIZATION, &self.login)
    }
}

fn is_named(message: &Value, name: &str) -> bool {
    let metadata = &message["metadata"];
    metadata["event_type"] == EVENT_TYPE && metadata["event_payload"]["message"] == name
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
            let unknown = || if answer.status.is_success() { Class::Refused } else { by_status(answer) };
            (of_error(&said.error).unwrap_or_else(unknown), code(&said.error))
        }
        // What can't be read may say that it was posted.
        _ if answer.status.is_success() => (Class::Unsure, String::new()),
        _ => (by_status(answer), String::new()),
    }
}

pub(super) fn of_error(error: &str) -> Option<Class> {
    Some(match error {
        "ratelimited" | "rate_limited" | "message_limit_exceeded" => Class::Busy,
        // The request came cut off, or the workspace is being moved.
        "request_timeout" | "team_added_to_org" => Class::Down,
        // By Slack's own words, a part of it may have been done; or how far it came isn't said.
        "internal_error" | "fatal_error" | "service_unavailable" => Class::Unsure,
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
        let (delivery, message) = (delivery("".into(), attempts), json!({"channel": to, "text": "hi"}));
        match attempts {
            0 => api(peer).send(&delivery, to, &message).await,
            _ => api(peer).again(&delivery, to, &message).await,
        }
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
        let down = ["request_timeout", "team_added_to_org"];
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
        ];
        let dead = ["channel_not_found", "is_archived", "user_not_found", "cannot_dm_bot", "messages_tab_disabled"];
        let refused = [
            "restricted_action",
            "msg_too_long",
            "no_text",
            "invalid_blocks",
            "invalid_blocks_format",
            "too_many_attachments",
            "duplicate_channel_not_found",
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
        peer.then([Script::json(429, json!({"ok": false, "error": "ratelimited"})).header("Retry-After: 30")]);
        let limited = send(&peer, "C1", 0).await;
        assert_eq!((limited.class, limited.after), (Class::Busy, Some(Duration::from_secs(30))));
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
        assert_eq!(send(&peer, "C1", 0).await.class, Class::Unsettled, "another message isn't this one");
        let peer =
            Peer::start([Script::HangUp, Script::json(200, json!({"ok": false, "error": "missing_scope"}))]).await;
        assert_eq!(send(&peer, "C1", 0).await.class, Class::Unsure, "nobody says");
        let more = Script::json(200, json!({"ok": true, "messages": [], "has_more": true}));
        let peer = Peer::start([Script::HangUp, more]).await;
        assert_eq!(send(&peer, "C1", 0).await.class, Class::Unsure, "it may be on a page that isn't shown");
        let page = |has_more| {
            Script::json(
                200,
                json!({"ok": true, "messages": ours(if has_more { 8 } else { 7 }), "has_more": has_more, "response_metadata": {"next_cursor": "a="}}),
            )
        };
        let peer = Peer::start([Script::HangUp, page(true), page(false)]).await;
        assert_eq!(send(&peer, "C1", 0).await.class, Class::Taken, "it is on the second page");
        assert!(peer.asked()[2].target.ends_with("&cursor=a%3D"), "{}", peer.asked()[2].target);
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
        assert_eq!(send(&peer, "C1", 1).await.class, Class::Unsettled);
        assert_eq!(peer.asked().len(), 1, "while nothing can be looked up, nothing is posted");
    }
}
