//! Slack's conversations as they are made, filled and closed (docs.slack.dev, `conversations.*`). An answer of 200 may say no.
//!
//! The rooms are private, so a list of private channels holds the bot's own and little else; a vendor sees none but those
//! that they were invited to.

use std::time::Duration;

use chassis::{
    clock::Clock,
    outbound::{Answer, Outbound},
};
use http::header;
use serde_json::{Value, json};

use super::{
    super::provider::{Ask, Class, Provider, code},
    api::of_error,
};
use crate::config::Slack as Settings;

/// Rooms in a page: an answer has to fit into what is kept of one. And pages, of which a workspace has few.
const PAGE: &str = "30";
const PAGES: usize = 50;

/// The Web API, by one bot.
pub(crate) struct Rooms {
    provider: Provider,
    base: String,
    login: String,
}

/// Why a call came to nothing.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Fault {
    /// Slack won't: its own word for why.
    Refused(String),
    /// Not now; it wasn't done.
    Later { after: Option<Duration>, said: String },
    /// It may have been done.
    Unsure(String),
}

/// A room as Slack has it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Found {
    pub(crate) id: String,
    pub(crate) purpose: String,
    pub(crate) creator: String,
    /// In seconds.
    pub(crate) created: i64,
}

impl Rooms {
    pub(crate) fn new(settings: &Settings, outbound: Outbound, clock: Clock) -> Self {
        Self {
            provider: Provider::new("Slack", outbound, clock, settings.per_second),
            base: settings.base_url.clone(),
            login: format!("Bearer {}", settings.bot_token.expose()),
        }
    }

    /// The bot's own id.
    pub(crate) async fn whoami(&self) -> Result<String, Fault> {
        let answer = self.call("auth.test", &json!({})).await?;
        text(&answer["user_id"]).ok_or_else(|| unreadable("auth.test"))
    }

    /// Makes a private room; gives its id.
    pub(crate) async fn create(&self, name: &str) -> Result<String, Fault> {
        let answer = self.call("conversations.create", &json!({"name": name, "is_private": true})).await?;
        text(&answer["channel"]["id"]).ok_or_else(|| unreadable("conversations.create"))
    }

    /// The bot's room of this name; none if it is in no such room.
    pub(crate) async fn find(&self, name: &str) -> Result<Option<Found>, Fault> {
        let mut cursor = String::new();
        for _ in 0..PAGES {
            let query = url::form_urlencoded::Serializer::new(String::new())
                .append_pair("types", "private_channel")
                .append_pair("limit", PAGE)
                .append_pair("cursor", &cursor)
                .finish();
            let ask = Ask::get(format!("{}/conversations.list?{query}", self.base));
            let answer = self.ask(ask).await?;
            let rooms = answer["channels"].as_array().ok_or_else(|| unreadable("conversations.list"))?;
            if let Some(room) = rooms.iter().find(|room| room["name"] == name) {
                return Ok(Some(found(room)));
            }
            cursor = text(&answer["response_metadata"]["next_cursor"]).unwrap_or_default();
            if cursor.is_empty() {
                return Ok(None);
            }
        }
        Err(Fault::Later { after: None, said: "the bot is in too many rooms to look one up".to_owned() })
    }

    /// Says what a room is for.
    pub(crate) async fn set_purpose(&self, room: &str, purpose: &str) -> Result<(), Fault> {
        self.call("conversations.setPurpose", &json!({"channel": room, "purpose": purpose})).await.map(drop)
    }

    /// Brings a member in; whoever is in is fine.
    pub(crate) async fn invite(&self, room: &str, member: &str) -> Result<(), Fault> {
        let invited = self.call("conversations.invite", &json!({"channel": room, "users": member})).await;
        fine_if(invited, &["already_in_channel"])
    }

    /// Takes a member out; whoever is out is fine.
    pub(crate) async fn remove(&self, room: &str, member: &str) -> Result<(), Fault> {
        let removed = self.call("conversations.kick", &json!({"channel": room, "user": member})).await;
        fine_if(removed, &["not_in_channel", "user_not_found"])
    }

    /// Closes a room; a closed one is fine.
    pub(crate) async fn archive(&self, room: &str) -> Result<(), Fault> {
        let archived = self.call("conversations.archive", &json!({"channel": room})).await;
        fine_if(archived, &["already_archived"])
    }

    async fn call(&self, method: &str, body: &Value) -> Result<Value, Fault> {
        self.ask(Ask::json(format!("{}/{method}", self.base), body)).await
    }

    async fn ask(&self, ask: Ask) -> Result<Value, Fault> {
        match self.provider.answer(ask.with(header::AUTHORIZATION, &self.login)).await {
            Ok(answer) => self.read(&answer),
            Err(verdict) if verdict.class == Class::Unsure => Err(Fault::Unsure(verdict.said)),
            Err(verdict) => Err(Fault::Later { after: verdict.after, said: verdict.said }),
        }
    }

    fn read(&self, answer: &Answer) -> Result<Value, Fault> {
        let status = answer.status.as_u16();
        let body: Value = serde_json::from_slice(&answer.body).unwrap_or_default();
        if answer.status.is_success() && body["ok"] == true {
            return Ok(body);
        }
        let error = code(body["error"].as_str().unwrap_or_default());
        let said = if error.is_empty() { format!("Slack answered {status}") } else { error.clone() };
        let after = self.provider.asks_for(answer);
        match of_error(&error) {
            Some(Class::Unsure) => Err(Fault::Unsure(said)),
            Some(Class::Busy | Class::Down) => Err(Fault::Later { after, said }),
            Some(Class::Barred) => {
                tracing::error!(said, "Slack doesn't let us make rooms: look at the bot's token and scopes");
                Err(Fault::Later { after: Some(BARRED), said })
            }
            _ if status == 429 => Err(Fault::Later { after, said }),
            _ if status >= 500 || (answer.status.is_success() && error.is_empty()) => Err(Fault::Unsure(said)),
            _ => Err(Fault::Refused(said)),
        }
    }
}

/// How long to wait for somebody to mend the settings.
const BARRED: Duration = Duration::from_secs(3600);

fn fine_if(done: Result<Value, Fault>, errors: &[&str]) -> Result<(), Fault> {
    match done {
        Err(Fault::Refused(error)) if errors.contains(&&*error) => Ok(()),
        done => done.map(drop),
    }
}

fn text(value: &Value) -> Option<String> {
    value.as_str().filter(|text| !text.is_empty()).map(str::to_owned)
}

/// It was taken, but what came back names nothing: it is looked up.
fn unreadable(method: &str) -> Fault {
    Fault::Unsure(format!("Slack's answer to {method} can't be read"))
}

fn found(room: &Value) -> Found {
    Found {
        id: text(&room["id"]).unwrap_or_default(),
        purpose: text(&room["purpose"]["value"]).unwrap_or_default(),
        creator: text(&room["creator"]).unwrap_or_default(),
        created: room["created"].as_i64().unwrap_or_default(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::channel::peer::{Peer, Script, way_out};

    fn rooms(peer: &Peer) -> Rooms {
        let settings = Settings {
            bot_token: "xoxb-1".to_owned().into(),
            base_url: peer.base(),
            per_second: 0,
            ..Settings::default()
        };
        Rooms::new(&settings, way_out(), Clock::System)
    }

    fn no(error: &str) -> Script {
        Script::json(200, json!({"ok": false, "error": error}))
    }

    #[tokio::test]
    async fn two_hundred_may_say_no_and_what_may_have_been_done_is_unsure() {
        let later =
            |seconds| Fault::Later { after: Some(Duration::from_secs(seconds)), said: "ratelimited".to_owned() };
        let limited = Script::json(429, json!({"ok": false, "error": "ratelimited"})).header("Retry-After: 30");
        for (script, fault) in [
            (no("name_taken"), Fault::Refused("name_taken".to_owned())),
            (no("restricted_action"), Fault::Refused("restricted_action".to_owned())),
            (limited, later(30)),
            (no("fatal_error"), Fault::Unsure("fatal_error".to_owned())),
            (Script::json(200, json!({"ok": true})), unreadable("conversations.create")),
        ] {
            let peer = Peer::start([script]).await;
            assert_eq!(rooms(&peer).create("wedding-w1").await, Err(fault));
        }
        for script in [Script::HangUp, Script::Garbage, Script::status(502)] {
            let peer = Peer::start([script.clone()]).await;
            assert!(matches!(rooms(&peer).create("w").await, Err(Fault::Unsure(_))), "{script:?}");
        }
        let peer = Peer::start([no("missing_scope")]).await;
        assert!(matches!(rooms(&peer).create("w").await, Err(Fault::Later { after: Some(BARRED), .. })));
    }

    #[tokio::test]
    async fn who_is_in_or_out_already_is_fine() {
        let peer = Peer::start([no("already_in_channel"), no("not_in_channel"), no("already_archived")]).await;
        let rooms = rooms(&peer);
        assert_eq!(rooms.invite("C1", "U1").await, Ok(()));
        assert_eq!(rooms.remove("C1", "U1").await, Ok(()));
        assert_eq!(rooms.archive("C1").await, Ok(()));
        let asked: Vec<_> = peer.asked().iter().map(|asked| (asked.target.clone(), asked.json())).collect();
        assert_eq!(asked[0], ("/conversations.invite".to_owned(), json!({"channel": "C1", "users": "U1"})));
        assert_eq!(asked[1], ("/conversations.kick".to_owned(), json!({"channel": "C1", "user": "U1"})));
    }

    #[tokio::test]
    async fn a_room_is_looked_for_on_every_page() {
        let room =
            |name: &str| json!({"id": "G1", "name": name, "creator": "UB", "created": 7, "purpose": {"value": "p"}});
        let page = |name: &str, cursor: &str| {
            Script::json(
                200,
                json!({"ok": true, "channels": [room(name)], "response_metadata": {"next_cursor": cursor}}),
            )
        };
        let peer = Peer::start([page("a", "x="), page("b", ""), page("a", "")]).await;
        let found = rooms(&peer).find("b").await.unwrap().unwrap();
        assert_eq!((&*found.id, &*found.purpose, &*found.creator, found.created), ("G1", "p", "UB", 7));
        assert!(peer.asked()[1].target.ends_with("&cursor=x%3D"), "{}", peer.asked()[1].target);
        assert_eq!(rooms(&peer).find("b").await, Ok(None));
    }
}
