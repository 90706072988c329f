//! WhatsApp's Cloud API by Meta (facebook/openapi, business messaging v23.0).
//!
//! An answer is an acceptance; what becomes of a message comes by webhook, with the message's own name in
//! `biz_opaque_callback_data`. There is neither an idempotency key nor a way to ask: what was cut stays unknown.

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

use super::provider::{Ask, Class, Provider, Verdict, by_status};
use crate::config::Whatsapp as Settings;

/// The version that requests are written for.
const VERSION: &str = "v23.0";
/// One message in 6 s to one person; and how often that is multiplied by 4.
const PAIR: Duration = Duration::from_secs(6);
const PAIR_STEPS: u32 = 5;

pub(super) struct Meta {
    provider: Provider,
    url: String,
    login: String,
    template: String,
    language: String,
}

impl Meta {
    pub(super) fn new(settings: &Settings, outbound: Outbound, clock: Clock) -> Self {
        Self {
            provider: Provider::new("WhatsApp", outbound, clock, settings.per_second),
            url: format!("{}/{VERSION}/{}/messages", settings.base_url, settings.phone_number_id),
            login: format!("Bearer {}", settings.access_token.expose()),
            template: settings.template.clone(),
            language: settings.language.clone(),
        }
    }

    /// Sends the text if the person's window is open, else the template.
    pub(super) async fn send(&self, delivery: &Delivery, to: &str, text: Option<&str>, words: [&str; 2]) -> Verdict {
        let mut verdict = match text {
            Some(text) => self.post(delivery, self.text(to, text)).await,
            None => self.post(delivery, self.template(to, words)).await,
        };
        if text.is_some() && verdict.code == "131047" {
            // The window has closed meanwhile.
            verdict = self.post(delivery, self.template(to, words)).await;
        }
        if verdict.code == "131056" {
            verdict.after = Some(PAIR * 4_u32.pow(delivery.attempts.min(PAIR_STEPS)));
        }
        verdict
    }

    async fn post(&self, delivery: &Delivery, mut message: Value) -> Verdict {
        message["biz_opaque_callback_data"] = uuid_text(delivery.event).into();
        let ask = Ask::json(self.url.clone(), &message)
            // As Meta's description has it: without a character set.
            .with(header::CONTENT_TYPE, "application/json")
            .with(header::AUTHORIZATION, &self.login);
        self.provider.ask(ask, table).await
    }

    fn text(&self, to: &str, text: &str) -> Value {
        json!({
            "messaging_product": "whatsapp",
            "recipient_type": "individual",
            "to": to,
            "type": "text",
            "text": {"body": text, "preview_url": false},
        })
    }

    fn template(&self, to: &str, words: [&str; 2]) -> Value {
        json!({
            "messaging_product": "whatsapp",
            "recipient_type": "individual",
            "to": to,
            "type": "template",
            "template": {
                "name": self.template,
                "language": {"code": self.language, "policy": "deterministic"},
                "components": [{
                    "type": "body",
                    "parameters": words.map(|text| json!({"type": "text", "text": text})),
                }],
            },
        })
    }
}

#[derive(Deserialize)]
struct Said {
    error: Fault,
}

#[derive(Deserialize)]
struct Fault {
    code: u32,
}

/// What Meta's answer to a new message means.
fn table(answer: &Answer) -> (Class, String) {
    if answer.status.is_success() {
        return (Class::Taken, String::new());
    }
    match serde_json::from_slice::<Said>(&answer.body) {
        Ok(Said { error }) if is_vague(error.code) => (Class::Unsure, error.code.to_string()),
        Ok(Said { error }) => (of_code(error.code).unwrap_or_else(|| by_status(answer)), error.code.to_string()),
        Err(_) => (by_status(answer), String::new()),
    }
}

/// Answers that say that something is broken there or doesn't answer, and not that the message failed.
fn is_vague(code: u32) -> bool {
    matches!(code, 1 | 2 | 131016 | 133004)
}

/// What an error code means, in an answer or in a report; none for one that isn't known.
pub(crate) fn of_code(code: u32) -> Option<Class> {
    Some(match code {
        // Token, permission, a number that isn't registered or has a bad name, a template that is gone.
        0 | 3 | 10 | 190 | 200..=299 | 131048 | 132001 | 132015 | 132016 | 133010 => Class::Barred,
        4 | 80007 | 130429 => Class::Busy,
        1 | 2 | 131000 | 131016 | 133004 => Class::Down,
        131056 => Class::Later,
        // What is said; who can't or doesn't want to read it: another channel may reach them.
        100 | 131008 | 131009 | 131026 | 131047 | 131049 | 131050 | 132000 | 132005 | 132007 | 132012 => Class::Refused,
        _ => return None,
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::channel::peer::{Peer, Script, assert_described, delivery, vendor_description, way_out};

    async fn send(peer: &Peer, text: Option<&str>, attempts: u32) -> Verdict {
        let settings = Settings {
            access_token: "EAA".to_owned().into(),
            phone_number_id: "106540352242922".to_owned(),
            base_url: peer.base(),
            per_second: 0,
            ..Settings::default()
        };
        let meta = Meta::new(&settings, way_out(), Clock::System);
        meta.send(&delivery("".into(), attempts), "+15005550010", text, ["A new date", "20 June becomes 27 June"]).await
    }

    fn taken() -> Script {
        Script::json(
            200,
            json!({"messaging_product": "whatsapp", "contacts": [{"input": "+15005550010", "wa_id": "15005550010"}], "messages": [{"id": "wamid.1", "message_status": "accepted"}]}),
        )
    }

    fn fault(status: u16, code: u32) -> Script {
        let error = json!({"message": "(#1) +15005550010", "type": "OAuthException", "code": code, "error_data": {"messaging_product": "whatsapp", "details": "d"}, "fbtrace_id": "f"});
        Script::json(status, json!({"error": error}))
    }

    #[tokio::test]
    async fn a_template_and_a_text_are_as_meta_describes_them() {
        let peer = Peer::start([taken(), taken()]).await;
        assert_eq!(send(&peer, None, 0).await.class, Class::Taken);
        assert_eq!(send(&peer, Some("hi"), 0).await.class, Class::Taken);
        let [template, text] = &peer.asked()[..] else { panic!("two requests") };
        assert_eq!(
            (template.target.as_str(), template.header("authorization")),
            ("/v23.0/106540352242922/messages", "Bearer EAA")
        );
        assert_eq!(template.json()["biz_opaque_callback_data"], "07070707-0707-0707-0707-070707070707");
        assert_eq!(template.json()["template"]["components"][0]["parameters"][1]["text"], "20 June becomes 27 June");
        assert_eq!(text.json()["text"], json!({"body": "hi", "preview_url": false}));
        if let Some(description) = vendor_description("meta-whatsapp/business-messaging-api_v23.0.messaging.json") {
            assert_described(&description, "/components/schemas/TemplateMessage", &template.json());
            // Its own schema of a text allows no field but one and requires others.
            assert_described(&description, "/components/schemas/BaseMessageProperties", &text.json());
        }
    }

    #[tokio::test]
    async fn every_code_has_its_class() {
        let peer = Peer::start([]).await;
        let barred = [0, 3, 10, 190, 200, 299, 131048, 132001, 132015, 132016, 133010];
        let refused = [100, 131008, 131009, 131026, 131047, 131049, 131050, 132000, 132005, 132007, 132012, 999_999];
        for (codes, class) in [
            (&barred[..], Class::Barred),
            (&refused[..], Class::Refused),
            (&[4, 80007, 130429][..], Class::Busy),
            (&[131000][..], Class::Down),
            (&[1, 2, 131016, 133004][..], Class::Unsure),
            (&[131056][..], Class::Later),
        ] {
            for code in codes {
                peer.then([fault(400, *code)]);
                let verdict = send(&peer, None, 0).await;
                assert_eq!((verdict.class, verdict.said), (class, format!("WhatsApp answered 400 ({code})")));
            }
        }
        for script in [Script::HangUp, Script::text(502, "<html>"), fault(500, 999_999)] {
            peer.then([script]);
            assert_eq!(send(&peer, None, 0).await.class, Class::Unsure);
        }
    }

    #[tokio::test]
    async fn a_window_that_has_closed_gets_the_template_and_a_fast_pair_waits() {
        let peer = Peer::start([fault(400, 131047), taken()]).await;
        assert_eq!(send(&peer, Some("hi"), 0).await.class, Class::Taken);
        assert_eq!(peer.asked()[1].json()["type"], "template");
        peer.then([fault(400, 131056), fault(400, 131056)]);
        assert_eq!(send(&peer, None, 0).await.after, Some(Duration::from_secs(6)));
        assert_eq!(send(&peer, None, 2).await.after, Some(Duration::from_secs(96)));
    }
}
