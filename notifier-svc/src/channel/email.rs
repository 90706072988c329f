//! E-mail: a letter in text and HTML (RFC 5322, MIME), carried by SMTP.
//!
//! Header values go through lettre's builder, which encodes what isn't printable ASCII. The Message-ID is made of the
//! message's uid, so that whoever keeps mail can drop a repeat. Every attempt carries the same bytes.

use std::{sync::Arc, time::SystemTime};

use anyhow::{Context as _, Result};
use bytes::Bytes;
use chassis::{expression::ExpressionError, id::uuid_text, lane::Attempted};
use futures_util::future::BoxFuture;
use lettre::{
    Address,
    message::{Mailbox, MultiPart, header},
};
use serde::{Deserialize, Serialize};

use super::{Carriage, Carrier, Channel, Message, smtp::Relay};
use crate::{config::Config, recipient::Recipient, template::Templates};

/// A letter as it waits: whom it goes to, and its bytes.
#[derive(Serialize, Deserialize)]
struct Letter {
    to: String,
    /// ASCII throughout: the bodies are encoded.
    text: String,
}

/// E-mail by one mail server.
pub(crate) struct Email {
    templates: Arc<Templates>,
    relay: Relay,
    from: Mailbox,
}

impl Email {
    /// # Errors
    /// Settings that can't hold.
    pub(crate) fn new(config: &Config, templates: Arc<Templates>) -> Result<Self> {
        let address: Address = config.smtp.from.parse().context("[notifier.smtp] from")?;
        let relay = Relay::new(&config.smtp, address.clone())?;
        Ok(Self { templates, relay, from: Mailbox::new(Some(config.public_name.clone()), address) })
    }

    fn compose(&self, message: &Message<'_>, to: Address, parts: Parts) -> Result<Vec<u8>, lettre::error::Error> {
        let name = one_line(&message.recipient.name);
        let to = Mailbox::new(Some(name).filter(|name| !name.is_empty()), to);
        let id = format!("<{}@{}>", uuid_text(message.uid), self.from.email.domain());
        let letter = lettre::Message::builder()
            .from(self.from.clone())
            .to(to)
            .subject(parts.subject)
            .date(SystemTime::from(message.at))
            .message_id(Some(id))
            .header(Automatic)
            .header(TemplateName(message.workflow.email_template))
            .multipart(MultiPart::alternative_plain_html(parts.text, parts.html))?;
        Ok(letter.formatted())
    }
}

struct Parts {
    subject: String,
    text: String,
    html: String,
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
        let folder = message.workflow.templates;
        let parts = Parts {
            subject: self.templates.line(folder, "email.subject", message.variables)?,
            text: self.templates.render(folder, "email.text", message.variables)?,
            html: self.templates.document(folder, "email.html", message.variables)?,
        };
        let refused = |reason: String| ExpressionError { at: Some("email".to_owned()), line: 1, reason };
        let to: Address =
            message.recipient.contact.email.parse().map_err(|_| refused("the address is malformed".to_owned()))?;
        let text = self.compose(message, to.clone(), parts).map_err(|error| refused(error.to_string()))?;
        let text = String::from_utf8(text).map_err(|_| refused("the letter is not text".to_owned()))?;
        let letter = Letter { to: to.to_string(), text };
        Ok(serde_json::to_vec(&letter).expect("texts have a JSON form").into())
    }

    fn carriage(&self) -> Carriage<'_> {
        Carriage::Carry(self)
    }
}

impl Carrier for Email {
    fn carry<'a>(&'a self, content: &'a [u8]) -> BoxFuture<'a, Attempted> {
        Box::pin(async move {
            let letter = serde_json::from_slice::<Letter>(content).ok();
            let letter = letter.and_then(|letter| Some((letter.to.parse::<Address>().ok()?, letter.text)));
            match letter {
                Some((to, text)) => self.relay.send(to, text.as_bytes()).await,
                None => super::smtp::refused("the stored letter can't be read"),
            }
        })
    }
}

/// A name as a header may hold it.
fn one_line(name: &str) -> String {
    name.split(|c: char| c.is_control() || c.is_whitespace())
        .filter(|word| !word.is_empty())
        .collect::<Vec<_>>()
        .join(" ")
}

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

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;
    use crate::{
        event::tests::content,
        recipient::tests::supplier,
        variable::{for_recipient, of_event},
        workflow::{VendorInstructions, find},
    };

    fn letter(name: &str, data: serde_json::Value) -> String {
        let mut config = Config::default();
        config.smtp.host = "localhost".to_owned();
        config.smtp.from = "us@example.org".to_owned();
        let templates = Arc::new(Templates::load().unwrap());
        let workflow = find("wedding_date_change");
        let mut recipient = supplier("s");
        recipient.name = name.to_owned();
        let variables = of_event(workflow, workflow.name, &content("wedding.date_changed", data));
        let variables = for_recipient(&variables, &recipient, &[], &VendorInstructions::load(), "WedSync");
        let message = Message {
            uid: [7; 16],
            workflow,
            variables: &variables,
            recipient: &recipient,
            at: jiff::Timestamp::UNIX_EPOCH,
        };
        let content = Email::new(&config, templates).unwrap().render(&message).unwrap();
        serde_json::from_slice::<Letter>(&content).unwrap().text
    }

    #[test]
    fn a_letter_has_the_headers_that_mail_systems_look_at() {
        let letter = letter("Ada", json!({"client_name": "Eve & Bob"}));
        for header in [
            "From: WedSync <us@example.org>\r\n",
            "To: Ada <s@example.org>\r\n",
            "Date: Thu, 01 Jan 1970 00:00:00 +0000\r\n",
            "Message-ID: <07070707-0707-0707-0707-070707070707@example.org>\r\n",
            "Auto-Submitted: auto-generated\r\n",
            "X-WedSync-Template: realtime-wedding-change\r\n",
            "MIME-Version: 1.0\r\n",
        ] {
            assert!(letter.contains(header), "{header} is not in\n{letter}");
        }
        assert!(letter.contains("text/plain; charset=utf-8") && letter.contains("text/html; charset=utf-8"));
    }

    #[test]
    fn no_name_adds_a_header_or_a_line_that_mail_cannot_carry() {
        let hostile = "Ada\r\nBcc: all@example.org\r\n\r\n<script>";
        let letter = letter(hostile, json!({"client_name": hostile.repeat(40)}));
        let (headers, _) = letter.split_once("\r\n\r\n").unwrap();
        assert!(!headers.lines().any(|line| line.to_lowercase().starts_with("bcc:")), "{headers}");
        assert!(
            letter.is_ascii() && letter.split("\r\n").all(|line| line.len() <= 998 && !line.contains(['\r', '\n']))
        );
    }
}
