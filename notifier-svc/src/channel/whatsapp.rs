//! WhatsApp: by Meta's Cloud API, and by Twilio where there is no number with Meta or where that can't take a message now.
//!
//! Who hasn't written to us within a day is reached by an approved template with two variables, a title and a body; free
//! text is for those who have.

use std::sync::Arc;

use bytes::Bytes;
use chassis::{
    clock::Clock,
    expression::ExpressionError,
    lane::{Attempted, Delivery},
    outbound::Outbound,
};
use futures_util::future::BoxFuture;
use serde::{Deserialize, Serialize};
use serde_json::json;

use super::{
    Carriage, Carrier, Channel, Message,
    meta::Meta,
    provider::{Class, Verdict},
    twilio::{Said, Text, Twilio},
    words::{Words, cut, one_line},
};
use crate::{config::Config, recipient::Recipient};

/// A template's whole body may have 1,024 characters; the rest is for what is around its variables.
pub(super) const TITLE: usize = 200;
pub(super) const BODY: usize = 700;
/// Twilio takes less than Meta (4,096).
const TEXT: usize = 1600;

/// A message as it waits.
#[derive(Serialize, Deserialize)]
struct Chat {
    to: String,
    /// The template's variables: one line each, never empty.
    title: String,
    body: String,
    /// Where the person's window was open.
    text: Option<String>,
}

pub(crate) struct WhatsappChannel {
    meta: Option<Meta>,
    twilio: Option<ByTwilio>,
}

struct ByTwilio {
    twilio: Arc<Twilio>,
    from: String,
    content_sid: String,
}

impl WhatsappChannel {
    pub(super) fn new(config: &Config, twilio: Arc<Twilio>, outbound: &Outbound, clock: &Clock) -> Self {
        let meta = || Meta::new(&config.whatsapp, outbound.clone(), clock.clone());
        let by_twilio = || ByTwilio {
            twilio,
            from: format!("whatsapp:{}", config.twilio.whatsapp_from),
            content_sid: config.twilio.whatsapp_content_sid.clone(),
        };
        Self {
            meta: config.whatsapp.is_configured().then(meta),
            twilio: config.twilio.sends_whatsapp().then(by_twilio),
        }
    }

    async fn send(&self, delivery: &Delivery, chat: &Chat) -> Verdict {
        let first = match &self.meta {
            Some(meta) => Some(meta.send(delivery, &chat.to, chat.text.as_deref(), [&chat.title, &chat.body]).await),
            None => None,
        };
        match (first, &self.twilio) {
            (Some(verdict), None) => verdict,
            (Some(verdict), Some(_)) if !verdict.class.may_fail_over() => verdict,
            (_, Some(twilio)) => twilio.send(delivery, chat, false).await,
            (None, None) => Verdict::new(Class::Down, "WhatsApp is not set up here any more"),
        }
    }

    /// Only Twilio can be asked what became of an earlier attempt; Meta isn't given what Twilio may have.
    async fn again(&self, delivery: &Delivery, chat: &Chat) -> Verdict {
        match &self.twilio {
            Some(twilio) => twilio.send(delivery, chat, true).await,
            None => Verdict::new(Class::Unsure, "WhatsApp can't be asked about an earlier attempt"),
        }
    }
}

impl ByTwilio {
    async fn send(&self, delivery: &Delivery, chat: &Chat, again: bool) -> Verdict {
        let to = format!("whatsapp:{}", chat.to);
        let variables = json!({"1": chat.title, "2": chat.body}).to_string();
        let template = Said::Content { sid: &self.content_sid, variables: &variables, holds: &chat.body };
        let said = chat.text.as_deref().map_or(template, Said::Body);
        let text = Text { to: &to, sender: ("From", &self.from), said };
        if again { self.twilio.again(delivery, &text).await } else { self.twilio.send(delivery, &text).await }
    }
}

impl Channel for WhatsappChannel {
    fn name(&self) -> &'static str {
        "whatsapp"
    }

    fn address(&self, recipient: &Recipient) -> Result<String, &'static str> {
        let number = &recipient.contact.whatsapp;
        if number.is_empty() { Err("there is no WhatsApp number") } else { Ok(number.clone()) }
    }

    fn render(&self, message: &Message<'_>) -> Result<Bytes, ExpressionError> {
        let words = Words::of("whatsapp", message)?;
        let is_open = message.recipient.contact.whatsapp_open_until > message.at.as_microsecond();
        let variable = |text: &str, limit| {
            let text = cut(&one_line(text), limit);
            if text.is_empty() { "–".to_owned() } else { text }
        };
        let chat = Chat {
            to: message.recipient.contact.whatsapp.clone(),
            title: variable(&words.title, TITLE),
            body: variable(&words.body, BODY),
            text: is_open.then(|| variable(&words.line(), TEXT)),
        };
        Ok(serde_json::to_vec(&chat).expect("texts have a JSON form").into())
    }

    fn carriage(&self) -> Carriage<'_> {
        Carriage::Carry(self)
    }
}

impl Carrier for WhatsappChannel {
    fn goes_to(&self, delivery: &Delivery) -> Option<String> {
        serde_json::from_slice::<Chat>(&delivery.content).ok().map(|chat| chat.to)
    }

    fn carry<'a>(&'a self, delivery: &'a Delivery) -> BoxFuture<'a, Attempted> {
        Box::pin(async move {
            match serde_json::from_slice::<Chat>(&delivery.content) {
                Ok(chat) => self.send(delivery, &chat).await.attempted(),
                Err(_) => Verdict::new(Class::Refused, "the stored message can't be read").attempted(),
            }
        })
    }

    fn resume<'a>(&'a self, delivery: &'a Delivery) -> BoxFuture<'a, Attempted> {
        Box::pin(async move {
            match serde_json::from_slice::<Chat>(&delivery.content) {
                Ok(chat) => self.again(delivery, &chat).await.attempted(),
                Err(_) => Verdict::new(Class::Unsure, "the stored message can't be read").attempted(),
            }
        })
    }
}

#[cfg(test)]
mod tests {
    use chassis::lane::Outcome;
    use serde_json::Value;

    use super::*;
    use crate::channel::{
        peer::{Peer, Script, assert_described, delivery, naughty, vendor_description, way_out},
        tests::{message_of, message_to, reachable, rendered_with},
    };

    fn channel(meta: Option<&Peer>, twilio: Option<&Peer>) -> WhatsappChannel {
        let mut config = Config::default();
        if let Some(peer) = meta {
            config.whatsapp.access_token = "EAA".to_owned().into();
            config.whatsapp.phone_number_id = "1".to_owned();
            config.whatsapp.base_url = peer.base();
        }
        if let Some(peer) = twilio {
            config.twilio.account_sid = format!("AC{}", "0".repeat(32));
            config.twilio.whatsapp_from = "+15005550006".to_owned();
            config.twilio.whatsapp_content_sid = format!("HX{}", "0".repeat(32));
            config.twilio.base_url = peer.base();
        }
        let twilio = Arc::new(Twilio::new(&config.twilio, way_out(), Clock::System).looking_at_once());
        WhatsappChannel::new(&config, twilio, &way_out(), &Clock::System)
    }

    fn dates() -> Value {
        json!({"old_date": "2026-06-20", "new_date": "2026-06-27", "client_name": "Mia & Tom"})
    }

    #[tokio::test]
    async fn twilio_gets_the_template_with_its_variables_as_it_describes_it() {
        let peer = Peer::start([Script::json(201, json!({"sid": "SM1"}))]).await;
        let channel = channel(None, Some(&peer));
        let content = message_of(&channel, "wedding_date_change", dates());
        assert_eq!(channel.carry(&delivery(content, 0)).await.outcome, Outcome::Delivered);
        let form = peer.asked()[0].form();
        assert_eq!((&form["To"], &form["From"]), (&json!("whatsapp:+15005550010"), &json!("whatsapp:+15005550006")));
        let variables: Value = serde_json::from_str(form["ContentVariables"].as_str().unwrap()).unwrap();
        assert_eq!(variables["1"], "Action required: the wedding of Mia & Tom has a new date");
        if let Some(description) = vendor_description("twilio/twilio_api_v2010.messages.json") {
            let schema = "/paths/~12010-04-01~1Accounts~1{AccountSid}~1Messages.json/post/requestBody/content/application~1x-www-form-urlencoded/schema";
            assert_described(&description, schema, &form);
        }
    }

    #[tokio::test]
    async fn twilio_is_tried_only_if_meta_certainly_has_not_taken_it() {
        let fault = |code: u32| Script::json(400, json!({"error": {"code": code}}));
        for (script, expected) in [
            (fault(130429), true),
            (fault(190), true),
            (fault(131000), true),
            (fault(131026), false),
            (fault(131056), false),
            (Script::HangUp, false),
            (Script::status(502), false),
        ] {
            let (meta, twilio) =
                (Peer::start([script.clone()]).await, Peer::start([Script::json(201, json!({}))]).await);
            let channel = channel(Some(&meta), Some(&twilio));
            let content = message_of(&channel, "wedding_date_change", dates());
            let attempted = channel.carry(&delivery(content, 0)).await;
            assert_eq!(!twilio.asked().is_empty(), expected, "{script:?}");
            assert_eq!(attempted.outcome == Outcome::Delivered, expected, "{script:?}");
        }
    }

    #[tokio::test]
    async fn free_text_is_for_those_who_wrote_within_a_day() {
        let peer = Peer::start([Script::json(200, json!({})), Script::json(200, json!({}))]).await;
        let channel = channel(Some(&peer), None);
        let mut person = reachable("Ada");
        for (until, expected) in [(i64::MAX, "text"), (1, "template")] {
            person.contact.whatsapp_open_until = until;
            let content = message_to(&channel, &person, "wedding_date_change", dates());
            channel.carry(&delivery(content, 0)).await;
            assert_eq!(peer.asked().last().unwrap().json()["type"], expected);
        }
    }

    #[test]
    fn no_text_breaks_a_template() {
        let channel = channel(None, None);
        for text in naughty() {
            for (_, content) in rendered_with(&channel, &text) {
                let chat: Chat = serde_json::from_slice(&content).unwrap();
                for (said, limit) in [(&chat.title, TITLE), (&chat.body, BODY)] {
                    // Meta refuses line ends, tabs and runs of spaces in a variable.
                    assert!(!said.is_empty() && said.chars().count() <= limit, "{text:?}");
                    assert!(!said.contains(['\n', '\r', '\t']) && !said.contains("    "), "{text:?}");
                }
                assert_eq!(chat.to, "+15005550010");
            }
        }
    }
}
