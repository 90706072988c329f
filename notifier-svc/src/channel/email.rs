//! E-mail: a letter in text and HTML, carried by Resend's API, or by SMTP (RFC 5322, MIME) where there is no key for that or
//! where it can't take a letter now.
//!
//! Header values go through lettre's builder, which encodes what isn't printable ASCII. The Message-ID is made of the
//! message's uid, so that whoever keeps mail can drop a repeat. Every attempt carries the same bytes.
//!
//! Guarantee: a letter is given to the second way only if the first certainly hasn't taken it.

use std::time::SystemTime;

use anyhow::{Context as _, Result};
use base64::{Engine as _, prelude::BASE64_STANDARD};
use bytes::Bytes;
use chassis::{
    clock::Clock,
    expression::ExpressionError,
    id::uuid_text,
    lane::{Attempted, Delivery},
    outbound::Outbound,
};
use futures_util::future::BoxFuture;
use lettre::{
    Address,
    message::{
        Attachment, Mailbox, MultiPart, SinglePart,
        header::{self, ContentType},
    },
};
use serde::{Deserialize, Serialize};
use serde_json::{Value, json};

use super::{
    Carriage, Carrier, Channel, Message,
    provider::{Class, Verdict},
    resend::Resend,
    smtp::Relay,
    words::one_line,
};
use crate::{calendar, config::Config, event::plain, recipient::Recipient};

/// A letter as it waits: whom it goes to, and as each way carries it.
#[derive(Serialize, Deserialize)]
struct Letter {
    to: String,
    /// For SMTP; ASCII throughout: the bodies are encoded.
    text: String,
    /// For Resend; null without a key.
    #[serde(default)]
    api: Value,
}

/// E-mail by an API, a mail server, or both.
pub(crate) struct Email {
    resend: Option<Resend>,
    relay: Option<Relay>,
    from: Mailbox,
}

impl Email {
    /// # Errors
    /// Settings that can't hold.
    pub(crate) fn new(config: &Config, outbound: &Outbound, clock: &Clock) -> Result<Self> {
        let (smtp, resend) = (&config.smtp, &config.resend);
        let (section, from) = if resend.is_configured() { ("resend", &resend.from) } else { ("smtp", &smtp.from) };
        let address: Address = from.parse().with_context(|| format!("[notifier.{section}] from"))?;
        let relay = || Relay::new(smtp, smtp.from.parse().context("[notifier.smtp] from")?);
        Ok(Self {
            resend: resend.is_configured().then(|| Resend::new(resend, outbound.clone(), clock.clone())),
            relay: smtp.is_configured().then(relay).transpose()?,
            from: Mailbox::new(Some(config.public_name.clone()), address),
        })
    }

    fn compose(&self, message: &Message<'_>, to: Address, parts: Parts) -> Result<Vec<u8>, lettre::error::Error> {
        let name = one_line(&message.recipient.name);
        let to = Mailbox::new(Some(name).filter(|name| !name.is_empty()), to);
        let id = format!("<{}@{}>", uuid_text(message.uid), self.from.email.domain());
        let mut letter = lettre::Message::builder()
            .from(self.from.clone())
            .to(to)
            .subject(parts.subject)
            .date(SystemTime::from(message.at))
            .message_id(Some(id))
            .header(Automatic)
            .header(TemplateName(message.workflow.email_template));
        if let Some(url) = unsubscribe(message) {
            letter = letter.header(Unsubscribe(url)).header(OneClick);
        }
        let body = MultiPart::alternative_plain_html(parts.text, parts.html);
        let body = match parts.calendar {
            Some(entry) => MultiPart::mixed().multipart(body).singlepart(attached(entry)),
            None => body,
        };
        Ok(letter.multipart(body)?.formatted())
    }

    /// The letter as Resend takes it; its tags come back with what becomes of it.
    fn for_api(&self, message: &Message<'_>, to: &Address, parts: &Parts) -> Value {
        let name = uuid_text(message.uid);
        let mut headers = json!({
            "Auto-Submitted": "auto-generated",
            "X-WedSync-Template": message.workflow.email_template,
        });
        if let Some(url) = unsubscribe(message) {
            headers["List-Unsubscribe"] = url.into();
            headers["List-Unsubscribe-Post"] = ONE_CLICK.into();
        }
        let mut mail = json!({
            "from": self.from.to_string(),
            "to": [to.to_string()],
            "subject": parts.subject,
            "text": parts.text,
            "html": parts.html,
            "headers": headers,
            "tags": [{"name": "message", "value": name}, {"name": "workflow", "value": message.workflow.name}],
        });
        if let Some(entry) = &parts.calendar {
            let content = BASE64_STANDARD.encode(entry);
            mail["attachments"] = json!([{"filename": FILE, "content": content, "content_type": calendar::TYPE}]);
        }
        mail
    }

    async fn by_relay(&self, letter: &Letter) -> Option<Attempted> {
        let relay = self.relay.as_ref().filter(|_| !letter.text.is_empty())?;
        Some(match letter.to.parse::<Address>() {
            Ok(to) => relay.send(to, letter.text.as_bytes()).await,
            Err(_) => super::smtp::refused("the stored letter can't be read"),
        })
    }
}

/// Where one click ends such mail (RFC 8058), which takes https; only what can be ended has a link.
fn unsubscribe(message: &Message<'_>) -> Option<String> {
    let url = message.variables.get("unsubscribe_url").and_then(plain).filter(|url| url.starts_with("https://"))?;
    Some(format!("<{url}>"))
}

struct Parts {
    subject: String,
    text: String,
    html: String,
    /// An entry for calendars, where there is a date to enter.
    calendar: Option<String>,
}

/// What the entry is attached as.
const FILE: &str = "wedding.ics";

fn attached(entry: String) -> SinglePart {
    let kind = ContentType::parse(calendar::TYPE).expect("a media type");
    Attachment::new(FILE.to_owned()).body(entry, kind)
}

impl Channel for Email {
    fn name(&self) -> &'static str {
        "email"
    }

    fn address(&self, recipient: &Recipient) -> Result<String, &'static str> {
        match recipient.contact.email.parse::<Address>() {
            _ if recipient.contact.email.is_empty() => Err("there is no e-mail address"),
            // Local parts may differ by case in theory; no provider lets them.
            Ok(address) => Ok(address.to_string().to_lowercase()),
            Err(_) => Err("the e-mail address is malformed"),
        }
    }

    fn render(&self, message: &Message<'_>) -> Result<Bytes, ExpressionError> {
        let texts = message.texts;
        let parts = Parts {
            subject: texts.line("email.subject", message.variables)?,
            text: texts.render("email.text", message.variables)?,
            html: texts.document("email.html", message.variables)?,
            calendar: calendar::ics(message.variables, self.from.email.as_ref(), message.at),
        };
        let refused = |reason: String| ExpressionError { at: Some("email".to_owned()), line: 1, reason };
        let to: Address =
            message.recipient.contact.email.parse().map_err(|_| refused("the address is malformed".to_owned()))?;
        let api = if self.resend.is_some() { self.for_api(message, &to, &parts) } else { Value::Null };
        let text = match &self.relay {
            Some(_) => self.compose(message, to.clone(), parts).map_err(|error| refused(error.to_string()))?,
            None => Vec::new(),
        };
        let text = String::from_utf8(text).map_err(|_| refused("the letter is not text".to_owned()))?;
        let letter = Letter { to: to.to_string(), text, api };
        Ok(serde_json::to_vec(&letter).expect("texts have a JSON form").into())
    }

    fn carriage(&self) -> Carriage<'_> {
        Carriage::Carry(self)
    }
}

impl Carrier for Email {
    fn goes_to(&self, delivery: &Delivery) -> Option<String> {
        serde_json::from_slice::<Letter>(&delivery.content).ok().map(|letter| letter.to)
    }

    fn carry<'a>(&'a self, delivery: &'a Delivery) -> BoxFuture<'a, Attempted> {
        Box::pin(async move {
            let Ok(letter) = serde_json::from_slice::<Letter>(&delivery.content) else {
                return super::smtp::refused("the stored letter can't be read");
            };
            let first = match &self.resend {
                Some(resend) if !letter.api.is_null() => Some(resend.send(delivery.event, &letter.api).await),
                _ => None,
            };
            let second = match &first {
                Some(verdict) if !verdict.class.may_fail_over() => None,
                _ => self.by_relay(&letter).await,
            };
            let nobody = || super::smtp::waits("no way that this letter was written for is set up any more");
            second.or_else(|| first.map(Verdict::attempted)).unwrap_or_else(nobody)
        })
    }

    /// Only Resend can tell a repeat; the server isn't given what Resend may have.
    fn resume<'a>(&'a self, delivery: &'a Delivery) -> BoxFuture<'a, Attempted> {
        Box::pin(async move {
            let unsure = |said| Verdict::new(Class::Unsure, said).attempted();
            let Ok(letter) = serde_json::from_slice::<Letter>(&delivery.content) else {
                return unsure("the stored letter can't be read");
            };
            match &self.resend {
                Some(resend) if !letter.api.is_null() => resend.again(delivery.event, &letter.api).await.attempted(),
                _ => unsure("a mail server can't be asked about an earlier attempt"),
            }
        })
    }
}

/// What the receiver of one click posts (RFC 8058).
const ONE_CLICK: &str = "List-Unsubscribe=One-Click";

/// Says that no person wrote it, so that no absence notice is sent back (RFC 3834).
#[derive(Clone)]
struct Automatic;

impl header::Header for Automatic {
    fn name() -> header::HeaderName {
        header::HeaderName::new_from_ascii_str("Auto-Submitted")
    }

    fn parse(_: &str) -> Result<Self, Box<dyn std::error::Error + Send + Sync>> {
        Ok(Self)
    }

    fn display(&self) -> header::HeaderValue {
        header::HeaderValue::new(Self::name(), "auto-generated".to_owned())
    }
}

/// Which template it was, for filters and support.
#[derive(Clone)]
struct TemplateName(&'static str);

impl header::Header for TemplateName {
    fn name() -> header::HeaderName {
        header::HeaderName::new_from_ascii_str("X-WedSync-Template")
    }

    fn parse(_: &str) -> Result<Self, Box<dyn std::error::Error + Send + Sync>> {
        Err("only ever written".into())
    }

    fn display(&self) -> header::HeaderValue {
        header::HeaderValue::new(Self::name(), self.0.to_owned())
    }
}

/// Where such mail can be ended (RFC 2369).
#[derive(Clone)]
struct Unsubscribe(String);

impl header::Header for Unsubscribe {
    fn name() -> header::HeaderName {
        header::HeaderName::new_from_ascii_str("List-Unsubscribe")
    }

    fn parse(_: &str) -> Result<Self, Box<dyn std::error::Error + Send + Sync>> {
        Err("only ever written".into())
    }

    fn display(&self) -> header::HeaderValue {
        header::HeaderValue::new(Self::name(), self.0.clone())
    }
}

/// That one click is enough (RFC 8058).
#[derive(Clone)]
struct OneClick;

impl header::Header for OneClick {
    fn name() -> header::HeaderName {
        header::HeaderName::new_from_ascii_str("List-Unsubscribe-Post")
    }

    fn parse(_: &str) -> Result<Self, Box<dyn std::error::Error + Send + Sync>> {
        Ok(Self)
    }

    fn display(&self) -> header::HeaderValue {
        header::HeaderValue::new(Self::name(), ONE_CLICK.to_owned())
    }
}

#[cfg(test)]
mod tests;
