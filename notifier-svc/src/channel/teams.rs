//! Microsoft Teams: an Adaptive Card to the webhook of somebody's workflow (learn.microsoft.com, "Create incoming webhooks
//! with Workflows"). The URL holds its own signature, and so is a secret.
//!
//! Whatever people wrote stands in text runs, which know no Markdown. An acceptance is all that comes back: no id, no
//! receipt, and nothing to look up, so what was cut or failed on their side stays unknown.

use bytes::Bytes;
use chassis::{
    clock::Clock,
    expression::ExpressionError,
    lane::{Attempted, Delivery},
    outbound::{Answer, Outbound},
};
use futures_util::future::BoxFuture;
use serde::{Deserialize, Serialize};
use serde_json::{Value, json};

use super::{
    Carriage, Carrier, Channel, Message,
    provider::{Ask, Class, Provider, Verdict, by_status, is_at},
    words::{Words, cut},
};
use crate::{config::Teams as Settings, recipient::Recipient};

/// What a message may have at most, card and all: 28 KB of UTF-8, less a little for what is put around it there.
pub(super) const BYTES: usize = 27_000;
/// Characters of the body and number of facts, tried in this order until the card is small enough.
pub(super) const BUDGETS: [(usize, usize); 5] = [(8_000, 10), (4_000, 10), (2_000, 5), (1_000, 2), (400, 0)];
pub(super) const TITLE: usize = 300;

/// A message as it waits.
#[derive(Serialize, Deserialize)]
struct Post {
    url: String,
    message: Value,
}

/// Teams, by the webhooks that people have.
pub(crate) struct TeamsChannel {
    public_name: String,
    hosts: Vec<String>,
    provider: Provider,
}

impl TeamsChannel {
    pub(super) fn new(settings: &Settings, public_name: &str, outbound: &Outbound, clock: &Clock) -> Self {
        Self {
            public_name: public_name.to_owned(),
            hosts: settings.hosts.clone(),
            provider: Provider::new("Teams", outbound.clone(), clock.clone(), 0),
        }
    }
}

impl Channel for TeamsChannel {
    fn name(&self) -> &'static str {
        "teams"
    }

    fn address(&self, recipient: &Recipient) -> Result<String, &'static str> {
        let url = &recipient.contact.teams_webhook;
        match url.as_str() {
            "" => Err("there is no Teams webhook"),
            _ if is_at(url, &self.hosts) => Ok(url.clone()),
            _ => Err("the Teams webhook is none of a workflow: connectors (webhook.office.com) are gone"),
        }
    }

    fn render(&self, message: &Message<'_>) -> Result<Bytes, ExpressionError> {
        let words = Words::of("teams", message)?;
        let post =
            Post { url: message.recipient.contact.teams_webhook.clone(), message: envelope(&words, &self.public_name) };
        Ok(serde_json::to_vec(&post).expect("texts have a JSON form").into())
    }

    fn carriage(&self) -> Carriage<'_> {
        Carriage::Carry(self)
    }
}

impl Carrier for TeamsChannel {
    fn goes_to(&self, delivery: &Delivery) -> Option<String> {
        serde_json::from_slice::<Post>(&delivery.content).ok().map(|post| post.url)
    }

    fn carry<'a>(&'a self, delivery: &'a Delivery) -> BoxFuture<'a, Attempted> {
        Box::pin(async move {
            let verdict = match serde_json::from_slice::<Post>(&delivery.content) {
                Ok(post) if is_at(&post.url, &self.hosts) => {
                    self.provider.ask(Ask::json(post.url, &post.message), table).await
                }
                Ok(_) => Verdict::new(Class::Refused, "the webhook is none of a workflow"),
                Err(_) => Verdict::new(Class::Refused, "the stored message can't be read"),
            };
            verdict.attempted()
        })
    }
}

/// The largest card that fits.
pub(super) fn envelope(words: &Words, public_name: &str) -> Value {
    let messages = BUDGETS.map(|(body, facts)| around(card(words, public_name, body, facts)));
    let [.., smallest] = &messages;
    messages.iter().find(|message| message.to_string().len() <= BYTES).unwrap_or(smallest).clone()
}

/// A card in what a workflow expects around it: without `attachments` the flow fails, and nobody hears of it.
pub(super) fn around(card: Value) -> Value {
    json!({
        "type": "message",
        "attachments": [{
            "contentType": "application/vnd.microsoft.card.adaptive",
            "contentUrl": null,
            "content": card,
        }],
    })
}

pub(super) fn card(words: &Words, public_name: &str, body: usize, facts: usize) -> Value {
    let title = if words.title.is_empty() { public_name } else { &words.title };
    let mut blocks = vec![json!({
        "type": "RichTextBlock",
        "inlines": [{"type": "TextRun", "text": cut(title, TITLE), "size": "large", "weight": "bolder"}],
    })];
    for line in cut(&words.body, body).lines().filter(|line| !line.trim().is_empty()) {
        blocks.push(json!({"type": "RichTextBlock", "inlines": [{"type": "TextRun", "text": line}]}));
    }
    for (name, value) in words.facts.iter().take(facts) {
        blocks.push(json!({
            "type": "RichTextBlock",
            "spacing": "small",
            "inlines": [
                {"type": "TextRun", "text": format!("{name}: "), "weight": "bolder"},
                {"type": "TextRun", "text": value},
            ],
        }));
    }
    let mut card = json!({
        "$schema": "http://adaptivecards.io/schemas/adaptive-card.json",
        "type": "AdaptiveCard",
        "version": "1.4",
        "fallbackText": cut(&words.line(), TITLE),
        "body": blocks,
    });
    if let Some(link) = &words.link {
        card["actions"] = json!([{"type": "Action.OpenUrl", "title": "Acknowledge", "url": link}]);
    }
    card
}

/// What a workflow's answer means. There are no credentials of ours: 401, 403 and 404 are about that one webhook.
fn table(answer: &Answer) -> (Class, String) {
    let said = String::from_utf8_lossy(&answer.body);
    let known = ["WorkflowTriggerIsNotEnabled", "RequestEntityTooLarge"].into_iter().find(|code| said.contains(code));
    let class = match (answer.status.as_u16(), known) {
        // Behind an older webhook: taken by its front, and throttled behind it.
        (200..=299, _) if said.contains("HTTP error 429") => Class::Busy,
        (401 | 403 | 404 | 410, _) | (_, Some("WorkflowTriggerIsNotEnabled")) => Class::Dead,
        _ => by_status(answer),
    };
    (class, known.unwrap_or_default().to_owned())
}

#[cfg(test)]
mod tests {
    use chassis::lane::Outcome;
    use proptest::prelude::*;

    use super::*;
    use crate::channel::{
        peer::{Peer, Script, assert_described, delivery, naughty, vendor_description, way_out},
        tests::{message_to, reachable, rendered_with},
    };

    fn channel() -> TeamsChannel {
        let settings = Settings { hosts: vec!["127.0.0.1".to_owned()] };
        TeamsChannel::new(&settings, "WedSync", &way_out(), &Clock::System)
    }

    fn person(peer: &Peer) -> Recipient {
        let mut person = reachable("Ada");
        person.contact.teams_webhook = peer
            .url("/powerautomate/automations/direct/workflows/1/triggers/manual/paths/invoke?api-version=1&sig=s3cret");
        person
    }

    #[tokio::test]
    async fn a_card_is_one_that_its_schema_describes() {
        let peer = Peer::start([Script::status(202)]).await;
        let data = json!({"old_date": "2026-06-20", "new_date": "2026-06-27", "client_name": "Mia & Tom"});
        let content = message_to(&channel(), &person(&peer), "wedding_date_change", data);
        assert_eq!(channel().carry(&delivery(content, 0)).await.outcome, Outcome::Delivered);
        let message = peer.asked()[0].json();
        assert_eq!(message["type"], "message");
        let attachment = &message["attachments"][0];
        assert_eq!(attachment["contentType"], "application/vnd.microsoft.card.adaptive");
        assert!(attachment["content"]["body"].to_string().contains("Saturday 27 June 2026"));
        for version in ["1.4.0", "1.5.0"] {
            if let Some(description) =
                vendor_description(&format!("adaptive-cards/adaptive-card-{version}.schema.json"))
            {
                let mut linked = attachment["content"].clone();
                linked["actions"] =
                    json!([{"type": "Action.OpenUrl", "title": "Acknowledge", "url": "https://example.org/a"}]);
                assert_described(&description, "", &attachment["content"]);
                assert_described(&description, "", &linked);
            }
        }
    }

    #[tokio::test]
    async fn every_answer_has_its_class_and_none_tells_the_url() {
        let peer = Peer::start([]).await;
        let throttled = "Webhook message delivery failed with error: Microsoft Teams endpoint returned HTTP error 429 with ContextId x";
        for (status, said, expected) in [
            (202, "", Class::Taken),
            (200, "1", Class::Taken),
            (200, throttled, Class::Busy),
            (400, "{\"error\":{\"code\":\"TriggerInputSchemaMismatch\"}}", Class::Refused),
            (400, "{\"error\":{\"code\":\"WorkflowTriggerIsNotEnabled\"}}", Class::Dead),
            (401, "", Class::Dead),
            (403, "", Class::Dead),
            (404, "", Class::Dead),
            (413, "{\"error\":{\"code\":\"RequestEntityTooLarge\"}}", Class::Refused),
            (429, "", Class::Busy),
            (502, "", Class::Unsure),
            (504, "", Class::Unsure),
        ] {
            peer.then([Script::text(status, said)]);
            let content = message_to(&channel(), &person(&peer), "emergency", json!({}));
            let attempted = channel().carry(&delivery(content, 0)).await;
            assert_eq!(attempted.class, expected.name(), "{status} {said}");
            assert!(!attempted.error.contains("s3cret"));
        }
        peer.then([Script::HangUp]);
        let content = message_to(&channel(), &person(&peer), "emergency", json!({}));
        assert_eq!(channel().carry(&delivery(content, 0)).await.outcome, Outcome::Unknown);
    }

    #[tokio::test]
    async fn only_a_workflows_webhook_is_written_to() {
        let settings = Settings::default();
        let channel = TeamsChannel::new(&settings, "WedSync", &way_out(), &Clock::System);
        let address = |url: &str| {
            let mut person = reachable("Ada");
            person.contact.teams_webhook = url.to_owned();
            channel.address(&person)
        };
        assert!(address("https://x.1.environment.api.powerplatform.com:443/powerautomate/x?sig=1").is_ok());
        assert!(address("https://prod-01.westeurope.logic.azure.com:443/workflows/x?sig=1").is_ok());
        assert!(address("https://acme.webhook.office.com/webhookb2/x").unwrap_err().contains("connectors"));
        assert!(address("https://logic.azure.com.evil.example/x").is_err());
        assert_eq!(address(""), Err("there is no Teams webhook"));
    }

    #[test]
    fn no_text_makes_markup_or_an_action() {
        let channel = channel();
        for text in naughty() {
            for (_, content) in rendered_with(&channel, &text) {
                let post: Post = serde_json::from_slice(&content).unwrap();
                let card = &post.message["attachments"][0]["content"];
                assert!(card.get("actions").is_none());
                let blocks = card["body"].as_array().unwrap();
                assert!(blocks.iter().all(|block| block["type"] == "RichTextBlock"));
                let runs = blocks.iter().flat_map(|block| block["inlines"].as_array().unwrap());
                assert!(
                    runs.clone().count() > 0
                        && runs.into_iter().all(|run| run["type"] == "TextRun" && run.get("selectAction").is_none())
                );
            }
        }
    }

    proptest! {
        #[test]
        fn no_words_are_more_than_teams_takes(
            title in ".{0,1000}", body in "(?s).{0,20000}",
            facts in proptest::collection::vec(("[田\"👍]{1,300}", "[田\"👍]{1,300}"), 0..10),
        ) {
            let words = Words { title, body, facts, asks: true, link: Some(format!("https://example.org/{}", "a".repeat(200))) };
            prop_assert!(envelope(&words, "WedSync").to_string().len() <= BYTES);
        }
    }
}
