//! One account at a vendor that is somewhere else: what the contract tests call a connector by.

use std::collections::BTreeMap;

use chassis::{config::Secret, outbound::Answer, signature::WebhookSecret, testing::noon};
use serde_json::{Value as Json, json};

use super::peers::way_out;
use crate::{
    connector::{Account, CallError, Connector, Judgement, Position, Reply, catalogue::Catalogue},
    credential::Credential,
};

/// What both sides sign with.
pub(super) const SECRET: &str = "whsec_MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaSw";
/// What our side shows the vendor.
pub(super) const KEY: &str = "k3y-us21";

/// A connector with an account.
pub(super) struct Rig {
    pub(super) connector: Connector,
    pub(super) settings: BTreeMap<String, String>,
    pub(super) credential: Credential,
    pub(super) secrets: Vec<WebhookSecret>,
}

impl Rig {
    /// The built-in connector of this name as it is.
    pub(super) fn built_in(name: &str) -> Self {
        Self::parsed(Catalogue::built_in(name).expect("it is built in").source())
    }

    /// The built-in connector of this name with its vendor at `base`, by nothing but what an organization may declare.
    pub(super) fn at(name: &str, base: &str) -> Self {
        let text = format!("name = \"here\"\ntitle = \"Here\"\nextends = \"{name}\"\nbase_url = \"{base}\"\n");
        let rig = Self::parsed(&text);
        let url = rig.connector.settings().contains_key("url");
        if url { Self::built_in(name).with("url", base) } else { rig }
    }

    pub(super) fn parsed(text: &str) -> Self {
        let connector = Connector::parse(text).unwrap_or_else(|faults| panic!("{faults:#?}"));
        let secrets = vec![WebhookSecret::parse(SECRET).expect("a secret")];
        let credential = Credential::Key(Secret::from(KEY.to_owned()));
        Self { connector, settings: BTreeMap::new(), credential, secrets }
    }

    pub(super) fn with(mut self, name: &str, value: &str) -> Self {
        self.settings.insert(name.to_owned(), value.to_owned());
        self
    }

    pub(super) fn token(mut self, token: &str) -> Self {
        self.credential = Credential::Token { token: Secret::from(token.to_owned()), client: String::new() };
        self
    }

    pub(super) fn account(&self) -> Account<'_> {
        Account { integration_id: "i1", settings: &self.settings, credential: &self.credential, secrets: &self.secrets }
    }

    /// What is sent, at noon of the tests' day.
    pub(super) fn request(&self, operation: &str, given: &Json) -> Result<chassis::outbound::Request, CallError> {
        self.connector.request(operation, &self.account(), given, noon())
    }

    /// Sends one, now.
    pub(super) async fn send(&self, operation: &str, given: &Json, position: &Position) -> (String, Answer) {
        let now = chassis::clock::Clock::System.now();
        let request = self.connector.request_at(operation, &self.account(), given, position, now);
        let request = request.unwrap_or_else(|error| panic!("{operation}: {error}"));
        let url = request.url.clone();
        (url, way_out().fetch(request, 4 * 1024 * 1024).await.expect("an answer"))
    }

    /// Sends one and says what came of it.
    pub(super) async fn call(&self, operation: &str, given: &Json) -> Result<Reply, CallError> {
        let (_, answer) = self.send(operation, given, &Position::default()).await;
        match self.connector.judge(operation, &answer, chassis::clock::Clock::System.now()) {
            Judgement::Done(reply) => Ok(reply),
            Judgement::Failed(error) => Err(error),
        }
    }

    /// Walks a list to its end.
    pub(super) async fn list(&self, operation: &str, given: &Json) -> Vec<Json> {
        let (mut position, mut items) = (Position::default(), Vec::new());
        for _ in 0..1_000 {
            let (url, answer) = self.send(operation, given, &position).await;
            let page = self.connector.page(operation, &position, &url, &answer).expect("a page");
            items.extend(page.items);
            match page.next {
                Some(next) => position = next,
                None => return items,
            }
        }
        panic!("{operation} doesn't end");
    }
}

/// What a request is about: a wedding.
pub(super) fn wedding() -> Json {
    json!({
        "record": {
            "id": "w1", "bride_name": "Ada", "groom_name": "Grace", "wedding_date": "2026-06-20", "ceremony_time": "15:00",
            "setup_time": "09:30", "reception_time": "18:00", "time_zone": "Europe/London", "venue_name": "Lake House",
            "guest_count": 90, "dietary_requirements": "2 vegan", "special_requests": "no flash", "venue_notes": "gate B",
            "couple_id": "c1", "updated_at": "2026-05-01T11:59:00Z", "budget": 12000,
        },
        "old": {"wedding_date": "2026-06-13"},
        "changed": ["wedding_date"],
        "event": event("wedding_details.update"),
        "link": {"external_id": "x1", "external_version": "7"},
    })
}

/// What a request is about: a client who wants to hear of offers.
pub(super) fn client() -> Json {
    json!({
        "record": {
            "id": "c1", "first_name": "Ada", "last_name": "Lovelace", "email": "Ada@Example.org", "phone": "+44 20 7946 0958",
            "dietary_requirements": "vegan", "preferences": "no flash", "wedding_date": "2026-06-20", "wedding_id": "w1",
            "consent_marketing": true, "address": "1 Lane",
        },
        "old": {}, "changed": ["email", "dietary_requirements"], "event": event("client.updated"), "link": {},
    })
}

fn event(type_: &str) -> Json {
    json!({
        "id": "e1", "delivery_id": "msg_1", "type": type_, "time": "2026-05-01T12:00:00Z", "source": "wedsync",
        "origin": "realtime", "wedding_id": "w1", "couple_id": "c1", "supplier_id": "s1",
    })
}
