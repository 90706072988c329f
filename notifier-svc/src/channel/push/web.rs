//! Web Push: one message to one browser, by its push service (RFC 8030).

use base64::{Engine as _, prelude::BASE64_URL_SAFE_NO_PAD};
use chassis::{
    clock::Clock,
    id::uuid_text,
    lane::Delivery,
    outbound::{Answer, Outbound},
};
use http::{HeaderName, Method, header};
use serde_json::json;
use url::Url;

use super::{
    super::provider::{Ask, Class, Provider, Verdict, by_status},
    Notice,
    encrypt::encrypt,
    vapid::Vapid,
};
use crate::config::WebPush as Settings;

/// How long a push service keeps what it can't deliver, in seconds.
const TTL: &str = "86400";

pub(super) struct WebPush {
    provider: Provider,
    vapid: Vapid,
    clock: Clock,
}

impl WebPush {
    /// # Errors
    /// Keys that are none.
    pub(super) fn new(settings: &Settings, outbound: Outbound, clock: Clock) -> anyhow::Result<Self> {
        let vapid = Vapid::new(settings)?;
        Ok(Self { provider: Provider::new("the push service", outbound, clock.clone(), 0), vapid, clock })
    }

    pub(super) async fn send(
        &self,
        delivery: &Delivery,
        notice: &Notice,
        endpoint: &str,
        p256dh: &str,
        auth: &str,
    ) -> Verdict {
        let name = uuid_text(delivery.event);
        let message = json!({
            "title": notice.title,
            "body": notice.body,
            "url": notice.url,
            "tag": name,
            "message": name,
        });
        let decode = |text: &str| BASE64_URL_SAFE_NO_PAD.decode(text.trim_end_matches('=')).unwrap_or_default();
        let Ok(body) = encrypt(message.to_string().as_bytes(), &decode(p256dh), &decode(auth)) else {
            return Verdict::new(Class::Dead, "the browser's keys are none");
        };
        let Some(origin) = origin(endpoint) else {
            return Verdict::new(Class::Dead, "the browser's address is none");
        };
        let urgency = if delivery.priority <= 2 { "high" } else { "normal" };
        let ask =
            Ask { method: Method::POST, url: endpoint.to_owned(), headers: Default::default(), body: body.into() }
                .with(header::CONTENT_TYPE, "application/octet-stream")
                .with(header::CONTENT_ENCODING, "aes128gcm")
                .with(header::AUTHORIZATION, &self.vapid.authorization(&origin, self.clock.now()))
                .with(HeaderName::from_static("ttl"), TTL)
                .with(HeaderName::from_static("urgency"), urgency)
                // Takes the place of an earlier try that waits there.
                .with(HeaderName::from_static("topic"), &BASE64_URL_SAFE_NO_PAD.encode(delivery.event));
        let verdict = self.provider.ask(ask, table).await;
        // What waits there is replaced by its topic, and what a browser shows by its tag, without ringing again.
        if verdict.class == Class::Unsure { Verdict { class: Class::Unsettled, ..verdict } } else { verdict }
    }
}

fn origin(endpoint: &str) -> Option<String> {
    Url::parse(endpoint).ok().map(|url| url.origin().ascii_serialization()).filter(|origin| origin != "null")
}

/// 404 and 410: the subscription is gone. 401 and 403: our key isn't the one that it was made with.
fn table(answer: &Answer) -> (Class, String) {
    let class = match answer.status.as_u16() {
        404 | 410 => Class::Dead,
        400 | 413 => Class::Refused,
        _ => by_status(answer),
    };
    (class, String::new())
}
