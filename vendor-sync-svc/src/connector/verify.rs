//! Who sent a webhook, as its connector declares: signatures over the bytes as they came, shared secrets. Pure, and in
//! constant time over what came.
//!
//! Remembering what was seen is `inbound`'s. A scheme that signs no timestamp leaves replays to that memory alone.

use std::{borrow::Cow, time::Duration};

use base64::{Engine as _, prelude::BASE64_STANDARD};
use chassis::{
    expression::Value,
    signature::{self, SignedHeaders, WebhookSecret},
};
use jiff::Timestamp;
use ring::hmac;
use serde_json::Value as Json;
use subtle::ConstantTimeEq as _;
use url::form_urlencoded;

use super::{inbound::Webhook, read::Reader, text::Text};

/// Signatures that one request may show: a rotation needs two.
const MOST_SIGNATURES: usize = 16;
const DEFAULT_TOLERANCE_SECONDS: u64 = 300;
/// What a signed string may be made of.
const SIGNED: &[&str] = &["body", "id", "method", "sorted_form", "timestamp", "url"];

/// Not believed. Why is not for the sender.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Unverified;

/// What was proved, and therefore what a repeat is recognised by.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Proved {
    /// The sender's own, signed id.
    Id(String),
    /// The whole body is signed.
    Body,
    /// The sender, but no message.
    Sender,
}

/// What both sides know.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Known<'a> {
    /// The integration's, those in force, the newest first.
    pub(crate) secrets: &'a [&'a str],
    /// What the vendor made for itself to sign with, where somebody has told us.
    pub(crate) signing: Option<&'a str>,
}

impl<'a> From<&'a [&'a str]> for Known<'a> {
    fn from(secrets: &'a [&'a str]) -> Self {
        Self { secrets, signing: None }
    }
}

impl<'a, const N: usize> From<&'a [&'a str; N]> for Known<'a> {
    fn from(secrets: &'a [&'a str; N]) -> Self {
        Self { secrets, signing: None }
    }
}

/// One thing that must hold.
#[derive(Debug)]
pub(super) enum Verification {
    Hmac(Box<Hmac>),
    Secret { place: SecretPlace, name: String, prefix: String },
    Basic { user: Option<String> },
    Standard,
}

#[derive(Clone, Copy, Debug)]
pub(super) enum SecretPlace {
    Query,
    Header,
    Body,
}

#[derive(Debug)]
pub(super) struct Hmac {
    algorithm: Algorithm,
    base64: bool,
    header: String,
    prefix: String,
    signed: Option<Text>,
    signs_id: bool,
    signs_form: bool,
    timestamp_header: Option<String>,
    id_header: Option<String>,
    parts: Option<Parts>,
    tolerance: Duration,
    key: KeyForm,
    /// By the vendor's own secret: nothing is asked for as long as we haven't been told it.
    by_vendor: bool,
    optional: bool,
}

/// Names within one header like `t=1,v1=abc,v1=def`.
#[derive(Debug)]
struct Parts {
    timestamp: Option<String>,
    signature: String,
}

#[derive(Clone, Copy, Debug)]
enum Algorithm {
    Sha1,
    Sha256,
    Sha512,
}

#[derive(Clone, Copy, Debug)]
enum KeyForm {
    Text,
    Hex,
    Base64,
    Whsec,
}

#[derive(Clone, Copy)]
enum Kind {
    Hmac,
    Secret,
    Basic,
    Standard,
}

impl Verification {
    pub(super) fn read(mut reader: Reader<'_>) -> Option<Self> {
        let kinds =
            [("hmac", Kind::Hmac), ("secret", Kind::Secret), ("basic", Kind::Basic), ("standard", Kind::Standard)];
        if !reader.has("kind") {
            reader.fault("kind", "is missing");
        }
        let verification = match reader.choice("kind", &kinds)? {
            Kind::Hmac => Hmac::read(&mut reader).map(Box::new).map(Self::Hmac),
            Kind::Secret => {
                let places =
                    [("query", SecretPlace::Query), ("header", SecretPlace::Header), ("body", SecretPlace::Body)];
                Some(Self::Secret {
                    place: reader.choice("in", &places).unwrap_or(SecretPlace::Header),
                    name: reader.required("name"),
                    prefix: reader.text("prefix").unwrap_or_default(),
                })
            }
            Kind::Basic => Some(Self::Basic { user: reader.text("user") }),
            Kind::Standard => Some(Self::Standard),
        };
        reader.end();
        verification
    }

    /// Whether it signs what only a form has.
    pub(super) fn signs_form(&self) -> bool {
        matches!(self, Self::Hmac(hmac) if hmac.signs_form)
    }

    /// Whether a request without what it looks for may pass.
    pub(super) fn is_optional(&self) -> bool {
        matches!(self, Self::Hmac(hmac) if hmac.optional || hmac.by_vendor)
    }

    /// Whether it takes a secret of the vendor's own.
    pub(super) fn is_by_vendor(&self) -> bool {
        matches!(self, Self::Hmac(hmac) if hmac.by_vendor)
    }

    /// By any of the secrets that are in force.
    pub(super) fn verify(
        &self,
        webhook: &Webhook<'_>,
        known: Known<'_>,
        body: &Json,
        now: Timestamp,
    ) -> Result<Proved, Unverified> {
        let secrets = known.secrets;
        let sent = |came: Option<&str>, prefix: &str| {
            let came = came.and_then(|came| came.strip_prefix(prefix)).ok_or(Unverified)?;
            any_equal(secrets.iter().map(|secret| secret.as_bytes()), came.as_bytes()).map(|()| Proved::Sender)
        };
        match self {
            Self::Hmac(hmac) if hmac.by_vendor => match &known.signing {
                Some(signing) => hmac.verify(webhook, std::slice::from_ref(signing), now),
                None => Ok(Proved::Sender),
            },
            Self::Hmac(hmac) => hmac.verify(webhook, secrets, now),
            Self::Secret { place: SecretPlace::Header, name, prefix } => sent(webhook.header(name), prefix),
            Self::Secret { place: SecretPlace::Query, name, prefix } => sent(webhook.query(name).as_deref(), prefix),
            Self::Secret { place: SecretPlace::Body, name, prefix } => sent(body[name.as_str()].as_str(), prefix),
            Self::Basic { user } => {
                let user = user.as_deref().unwrap_or(webhook.integration_id);
                let came = webhook.header("authorization").and_then(|came| came.strip_prefix("Basic "));
                let expected =
                    secrets.iter().map(|secret| BASE64_STANDARD.encode(format!("{user}:{secret}")).into_bytes());
                any_equal(expected, came.ok_or(Unverified)?.as_bytes()).map(|()| Proved::Sender)
            }
            Self::Standard => standard(webhook, secrets, now),
        }
    }
}

fn standard(webhook: &Webhook<'_>, secrets: &[&str], now: Timestamp) -> Result<Proved, Unverified> {
    let header = |name| webhook.header(name).ok_or(Unverified);
    let signed = SignedHeaders {
        id: header("webhook-id")?,
        timestamp: header("webhook-timestamp")?,
        signature: header("webhook-signature")?,
    };
    let secrets: Vec<WebhookSecret> = secrets.iter().filter_map(|secret| WebhookSecret::parse(secret).ok()).collect();
    let verified = signature::verify(signed, webhook.body, &secrets, now.as_second(), signature::TOLERANCE);
    verified.map(|()| Proved::Id(signed.id.to_owned())).map_err(|_| Unverified)
}

impl Hmac {
    fn read(reader: &mut Reader<'_>) -> Option<Self> {
        let source = reader.text("signed");
        let compile = |source: &str| Text::compile(source, SIGNED);
        let signed = source.as_deref().map(compile).transpose();
        let signed = signed.map_err(|error| reader.fault("signed", error.to_string())).ok()?;
        let algorithms = [("sha1", Algorithm::Sha1), ("sha256", Algorithm::Sha256), ("sha512", Algorithm::Sha512)];
        let keys =
            [("text", KeyForm::Text), ("hex", KeyForm::Hex), ("base64", KeyForm::Base64), ("whsec", KeyForm::Whsec)];
        let hmac = Self {
            algorithm: reader.choice("algorithm", &algorithms).unwrap_or(Algorithm::Sha256),
            base64: reader.choice("encoding", &[("hex", false), ("base64", true)]).unwrap_or(false),
            header: reader.required("header").to_ascii_lowercase(),
            prefix: reader.text("prefix").unwrap_or_default(),
            signs_form: source.as_ref().is_some_and(|source| source.contains("{sorted_form")),
            signs_id: source.as_ref().is_some_and(|source| source.contains("{id")),
            signed,
            timestamp_header: reader.text("timestamp_header").map(|name| name.to_ascii_lowercase()),
            id_header: reader.text("id_header").map(|name| name.to_ascii_lowercase()),
            parts: Parts::read(reader),
            tolerance: Duration::from_secs(
                reader.number("tolerance_seconds", 1..=3_600).unwrap_or(DEFAULT_TOLERANCE_SECONDS),
            ),
            key: reader.choice("key", &keys).unwrap_or(KeyForm::Text),
            by_vendor: reader.choice("by", &[("integration", false), ("vendor", true)]).unwrap_or(false),
            optional: reader.flag("optional"),
        };
        let dated =
            hmac.timestamp_header.is_some() || hmac.parts.as_ref().is_some_and(|parts| parts.timestamp.is_some());
        let signs_time = source.as_ref().is_some_and(|source| source.contains("{timestamp"));
        if signs_time && !dated {
            reader.fault("signed", "names a timestamp that no header gives: say timestamp_header or parts.timestamp");
        }
        let signs_body = |source: &String| source.contains("{body") || source.contains("{sorted_form");
        if !source.as_ref().is_none_or(signs_body) {
            reader.fault("signed", "must hold {body} or {sorted_form}: else any body could be sent with it");
        }
        if dated && !signs_time {
            reader.fault("signed", "leaves the timestamp out, which anybody could then change");
        }
        Some(hmac)
    }

    fn verify(&self, webhook: &Webhook<'_>, secrets: &[&str], now: Timestamp) -> Result<Proved, Unverified> {
        if self.optional && !webhook.has(&self.header) {
            return Ok(Proved::Sender);
        }
        let value = webhook.header(&self.header).ok_or(Unverified)?;
        let (signatures, timestamp) = self.candidates(webhook, value)?;
        if let Some(timestamp) = &timestamp {
            self.check_time(timestamp, now)?;
        }
        let id = self.id_header.as_ref().map(|name| webhook.header(name).ok_or(Unverified)).transpose()?;
        let message = self.message(webhook, timestamp.as_deref(), id)?;
        let mut matches = subtle::Choice::from(0);
        for key in secrets.iter().filter_map(|secret| self.key(secret)) {
            let tag = hmac::sign(&key, &message);
            for signature in &signatures {
                matches |= tag.as_ref().ct_eq(signature);
            }
        }
        if !bool::from(matches) {
            return Err(Unverified);
        }
        Ok(match id {
            Some(id) if self.signs_id => Proved::Id(id.to_owned()),
            _ => Proved::Body,
        })
    }

    /// The signatures that are shown, and the time that they are of.
    fn candidates(&self, webhook: &Webhook<'_>, value: &str) -> Result<(Vec<Vec<u8>>, Option<String>), Unverified> {
        let header = self.timestamp_header.as_ref();
        let mut timestamp = header.map(|name| webhook.header(name).ok_or(Unverified)).transpose()?.map(str::to_owned);
        let shown: Vec<&str> = match &self.parts {
            None => value.strip_prefix(self.prefix.as_str()).into_iter().collect(),
            Some(parts) => {
                if let Some(name) = &parts.timestamp {
                    let [one] = parts_of(value, name)[..] else { return Err(Unverified) };
                    timestamp = Some(one.to_owned());
                }
                parts_of(value, &parts.signature)
            }
        };
        if shown.len() > MOST_SIGNATURES {
            return Err(Unverified);
        }
        Ok((shown.into_iter().filter_map(|text| self.decode(text)).collect(), timestamp))
    }

    fn decode(&self, text: &str) -> Option<Vec<u8>> {
        if self.base64 { BASE64_STANDARD.decode(text).ok() } else { hex::decode(text).ok() }
    }

    fn check_time(&self, timestamp: &str, now: Timestamp) -> Result<(), Unverified> {
        let digits = !timestamp.is_empty() && timestamp.bytes().all(|b| b.is_ascii_digit());
        let signed_at: i64 = timestamp.parse().ok().filter(|_| digits).ok_or(Unverified)?;
        // Some vendors count milliseconds.
        let seconds = if signed_at > 100_000_000_000 { signed_at / 1_000 } else { signed_at };
        if seconds.abs_diff(now.as_second()) <= self.tolerance.as_secs() { Ok(()) } else { Err(Unverified) }
    }

    /// The bytes that were signed. A body stands in it as it came, UTF-8 or not.
    fn message<'a>(
        &self,
        webhook: &Webhook<'a>,
        timestamp: Option<&str>,
        id: Option<&str>,
    ) -> Result<Cow<'a, [u8]>, Unverified> {
        let Some(signed) = &self.signed else { return Ok(Cow::Borrowed(webhook.body)) };
        let text = |text: Option<&str>| text.map_or_else(|| Value::of(&Json::Null), Value::text);
        let marker = hex::encode(chassis::secret::random::<16>());
        let scope = Value::scope([
            ("body", Value::text(&marker)),
            ("id", text(id)),
            ("method", Value::text(webhook.method)),
            ("sorted_form", Value::text(&sorted_form(webhook.body))),
            ("timestamp", text(timestamp)),
            ("url", Value::text(webhook.url)),
        ]);
        let written = signed.write(&scope, Ok).map_err(|_| Unverified)?.ok_or(Unverified)?;
        let mut message = Vec::with_capacity(written.len() + webhook.body.len());
        for (index, part) in written.split(&marker).enumerate() {
            if index > 0 {
                message.extend_from_slice(webhook.body);
            }
            message.extend_from_slice(part.as_bytes());
        }
        Ok(Cow::Owned(message))
    }

    fn key(&self, secret: &str) -> Option<hmac::Key> {
        let bytes = match self.key {
            KeyForm::Text => secret.as_bytes().to_vec(),
            KeyForm::Hex => hex::decode(secret).ok()?,
            KeyForm::Base64 => BASE64_STANDARD.decode(secret).ok()?,
            KeyForm::Whsec => BASE64_STANDARD.decode(secret.strip_prefix("whsec_").unwrap_or(secret)).ok()?,
        };
        // Anybody has the empty key.
        let algorithm = match self.algorithm {
            Algorithm::Sha1 => hmac::HMAC_SHA1_FOR_LEGACY_USE_ONLY,
            Algorithm::Sha256 => hmac::HMAC_SHA256,
            Algorithm::Sha512 => hmac::HMAC_SHA512,
        };
        (!bytes.is_empty()).then(|| hmac::Key::new(algorithm, &bytes))
    }
}

impl Parts {
    fn read(reader: &mut Reader<'_>) -> Option<Self> {
        let mut reader = reader.table("parts")?;
        let parts = Self { timestamp: reader.text("timestamp"), signature: reader.required("signature") };
        reader.end();
        Some(parts)
    }
}

/// The values under one name in a header like `t=1,v1=abc,v1=def`.
fn parts_of<'v>(header: &'v str, wanted: &str) -> Vec<&'v str> {
    let pairs = header.split(',').filter_map(|part| part.trim().split_once('='));
    pairs.filter(|(name, _)| *name == wanted).map(|(_, value)| value).collect()
}

/// Names and values of a form, sorted by name and put together without anything between them.
fn sorted_form(body: &[u8]) -> String {
    let mut pairs: Vec<_> = form_urlencoded::parse(body).collect();
    pairs.sort();
    pairs.into_iter().flat_map(|(name, value)| [name, value]).collect()
}

/// Compares with all of them, whichever it is.
fn any_equal<T: AsRef<[u8]>>(expected: impl Iterator<Item = T>, came: &[u8]) -> Result<(), Unverified> {
    let mut matches = subtle::Choice::from(0);
    for expected in expected.filter(|expected| !expected.as_ref().is_empty()) {
        matches |= subtle::Choice::from(u8::from(signature::equal(expected.as_ref(), came)));
    }
    if bool::from(matches) { Ok(()) } else { Err(Unverified) }
}

#[cfg(test)]
mod tests;
