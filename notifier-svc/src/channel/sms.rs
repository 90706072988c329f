//! SMS by Twilio: one line, cut to the parts that the settings allow before it waits.

use std::sync::Arc;

use bytes::Bytes;
use chassis::{
    expression::ExpressionError,
    lane::{Attempted, Delivery},
};
use futures_util::future::BoxFuture;
use serde::{Deserialize, Serialize};

use super::{
    Carriage, Carrier, Channel, Message,
    provider::{Class, Verdict},
    segment::{fit, segments},
    twilio::{Said, Text, Twilio},
    words::{Words, asks, clean, one_line},
};
use crate::{config::Twilio as Settings, recipient::Recipient, template::Texts, variable::Variables};

/// The longest body that Twilio takes, in characters.
pub(super) const CHARACTERS: usize = 1600;

/// How to confirm, where that is asked for.
const HINT: &str = " Reply OK to confirm.";

/// A text as it waits.
#[derive(Serialize, Deserialize)]
struct Sms {
    to: String,
    body: String,
}

/// SMS by one account.
pub(crate) struct SmsChannel {
    twilio: Arc<Twilio>,
    sender: (&'static str, String),
    max_segments: usize,
    public_name: String,
}

impl SmsChannel {
    pub(super) fn new(settings: &Settings, public_name: &str, twilio: Arc<Twilio>) -> Self {
        let sender = match settings.messaging_service_sid.as_str() {
            "" => ("From", settings.from.clone()),
            service => ("MessagingServiceSid", service.to_owned()),
        };
        let max_segments = settings.max_segments as usize;
        Self { twilio, sender, max_segments, public_name: public_name.to_owned() }
    }
}

impl SmsChannel {
    /// As much as may be sent; how to confirm is never cut off.
    fn body(&self, text: &str, asks: bool) -> String {
        let hint = if asks { HINT } else { "" };
        let mut limit = CHARACTERS - hint.len();
        let mut body = format!("{}{hint}", fit(text, self.max_segments, limit));
        while segments(&body).1 > self.max_segments && limit > hint.len() {
            limit = characters(&body) - hint.len() - 1;
            body = format!("{}{hint}", fit(text, self.max_segments, limit));
        }
        body
    }
}

impl SmsChannel {
    async fn send(&self, delivery: &Delivery, again: bool) -> Verdict {
        let Ok(sms) = serde_json::from_slice::<Sms>(&delivery.content) else {
            return Verdict::new(Class::Refused, "the stored message can't be read");
        };
        let sender = (self.sender.0, self.sender.1.as_str());
        let text = Text { to: &sms.to, sender, said: Said::Body(&sms.body) };
        if again { self.twilio.again(delivery, &text).await } else { self.twilio.send(delivery, &text).await }
    }
}

fn characters(text: &str) -> usize {
    text.chars().count()
}

impl Channel for SmsChannel {
    fn name(&self) -> &'static str {
        "sms"
    }

    fn address(&self, recipient: &Recipient) -> Result<String, &'static str> {
        if recipient.contact.phone.is_empty() {
            Err("there is no telephone number")
        } else {
            Ok(recipient.contact.phone.clone())
        }
    }

    fn render(&self, message: &Message<'_>) -> Result<Bytes, ExpressionError> {
        let text = said(message.texts, message.variables, &self.public_name)?;
        let body = self.body(&text, asks(message.workflow.name));
        let (_, parts) = segments(&body);
        metrics::counter!("notifier_sms_segments_total").increment(parts as u64);
        let sms = Sms { to: message.recipient.contact.phone.clone(), body };
        Ok(serde_json::to_vec(&sms).expect("texts have a JSON form").into())
    }

    fn carriage(&self) -> Carriage<'_> {
        Carriage::Carry(self)
    }
}

impl Carrier for SmsChannel {
    fn goes_to(&self, delivery: &Delivery) -> Option<String> {
        serde_json::from_slice::<Sms>(&delivery.content).ok().map(|sms| sms.to)
    }

    fn carry<'a>(&'a self, delivery: &'a Delivery) -> BoxFuture<'a, Attempted> {
        Box::pin(async move { self.send(delivery, false).await.attempted() })
    }

    fn resume<'a>(&'a self, delivery: &'a Delivery) -> BoxFuture<'a, Attempted> {
        Box::pin(async move { self.send(delivery, true).await.attempted() })
    }
}

/// What is said, before it is cut: the workflow's own text, else the inbox's.
fn said(texts: &Texts<'_>, variables: &Variables, public_name: &str) -> Result<String, ExpressionError> {
    let text = match texts.own("sms.text", variables)? {
        Some(text) => text,
        None => format!("{public_name}: {}", Words::said("sms", texts, variables)?.line()),
    };
    Ok(one_line(&clean(&text)))
}

/// What would be sent if it could be as long as it likes.
pub(super) fn whole(texts: &Texts<'_>, variables: &Variables, public_name: &str) -> Result<String, ExpressionError> {
    let hint = if asks(texts.workflow.name) { HINT } else { "" };
    Ok(format!("{}{hint}", said(texts, variables, public_name)?))
}

#[cfg(test)]
mod tests {
    use chassis::{clock::Clock, lane::Outcome};
    use serde_json::json;

    use super::*;
    use crate::channel::{
        peer::{Peer, Script, delivery, naughty, way_out},
        tests::{message_of, rendered_with},
    };

    fn channel(peer: &Peer) -> SmsChannel {
        let settings = Settings {
            account_sid: format!("AC{}", "0".repeat(32)),
            auth_token: "t".to_owned().into(),
            from: "+15005550006".to_owned(),
            base_url: peer.base(),
            ..Settings::default()
        };
        let twilio = Arc::new(Twilio::new(&settings, way_out(), Clock::System).looking_at_once());
        SmsChannel::new(&settings, "WedSync", twilio)
    }

    #[tokio::test]
    async fn how_to_confirm_is_never_cut_off_and_stands_where_it_is_asked_alone() {
        let channel = channel(&Peer::start([]).await);
        for text in ["a".repeat(2_000), "\u{1F492}".repeat(600), "€".repeat(700), "short".to_owned(), String::new()] {
            let body = channel.body(&text, true);
            assert!(body.ends_with(HINT) && segments(&body).1 <= channel.max_segments, "{body}");
            assert!(body.chars().count() <= CHARACTERS);
            assert!(!channel.body(&text, false).contains(HINT));
        }
        assert_eq!(channel.body("short", true), "short Reply OK to confirm.");
    }

    #[tokio::test]
    async fn a_vendor_reads_both_dates_and_what_to_do_in_one_text() {
        let peer = Peer::start([Script::json(201, json!({"sid": "SM1"}))]).await;
        let channel = channel(&peer);
        let content = message_of(
            &channel,
            "wedding_date_change",
            json!({"old_date": "2026-06-20", "new_date": "2026-06-27", "client_name": "Mia & Tom"}),
        );
        assert_eq!(channel.carry(&delivery(content, 0)).await.outcome, Outcome::Delivered);
        let form = peer.asked()[0].form();
        let body = form["Body"].as_str().unwrap();
        assert_eq!(form["To"], "+15005550009");
        assert_eq!(
            body,
            "WedSync: the wedding of Mia & Tom moves from Saturday 20 June 2026 to Saturday 27 June 2026. Action required: update your calendar. Reply OK to confirm."
        );
        assert_eq!(segments(body).1, 1);
    }

    #[tokio::test]
    async fn no_text_is_longer_than_allowed_nor_adds_a_field_nor_is_read_as_a_template() {
        let peer = Peer::start([]).await;
        let channel = channel(&peer);
        for text in naughty() {
            for (workflow, content) in rendered_with(&channel, &text) {
                let sms: Sms = serde_json::from_slice(&content).unwrap();
                assert!(segments(&sms.body).1 <= 4 && !sms.body.contains(['\n', '\r']), "{workflow}: {text:?}");
                assert_eq!(sms.to, "+15005550009");
                assert!(!(text.contains("7 * 7") && sms.body.contains("49")), "{text:?}");
                // One of each text goes all the way.
                if workflow != "form_response_received" {
                    continue;
                }
                peer.then([Script::json(201, json!({}))]);
                channel.carry(&delivery(content, 0)).await;
                let form = peer.asked().last().unwrap().form();
                assert_eq!((form.as_object().unwrap().len(), &form["Body"]), (3, &json!(sms.body)), "{text:?}");
            }
        }
    }
}
