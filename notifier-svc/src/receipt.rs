//! What providers report is taken in here: believed or not, read, and recorded as how far each message has come.
//!
//! Guarantee: what was answered 2xx is durable. Reports may come early, late, twice or in any order: a message's stage only
//! rises, so that they end alike.

use std::collections::HashMap;

use chassis::{
    clock::Clock,
    config::Secret,
    error::Result,
    signature::{SignedHeaders, WebhookSecret},
    store::Store,
    with,
};

use crate::{
    callback::{Meaning, Refused, Report, Stage, meta, resend, slack, twilio},
    config::Config,
};

/// A report as it came.
pub(crate) struct Request {
    pub(crate) provider: String,
    /// Without its question mark.
    pub(crate) query: String,
    /// It came as GET.
    pub(crate) handshake: bool,
    /// By name in lower case; of several, the first.
    pub(crate) headers: HashMap<String, String>,
    pub(crate) body: bytes::Bytes,
}

/// What the provider is to be answered.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Answer {
    Taken {
        content_type: &'static str,
        text: String,
    },
    /// No such provider, or none that is set up.
    Unknown,
    Refused(Refused),
}

/// What a request holds, and what it is answered if that is recorded.
type Read = (Vec<Report>, Answer);

/// Takes reports in. Cheap to clone.
#[derive(Clone)]
pub(crate) struct Receipts {
    store: Store,
    clock: Clock,
    resend: Vec<WebhookSecret>,
    twilio: (Secret, String),
    meta: (Secret, Secret),
    slack: Secret,
}

impl Receipts {
    /// # Errors
    /// A secret of Resend's that is none.
    pub(crate) fn new(config: &Config, store: Store, clock: Clock) -> Result<Self> {
        let secret = Some(config.resend.webhook_secret.expose()).filter(|secret| !secret.is_empty());
        Ok(Self {
            store,
            clock,
            resend: secret.map(WebhookSecret::parse).transpose()?.into_iter().collect(),
            twilio: (config.twilio.auth_token.clone(), config.twilio.callback_url.clone()),
            meta: (config.whatsapp.app_secret.clone(), config.whatsapp.verify_token.clone()),
            slack: config.slack.signing_secret.clone(),
        })
    }

    /// Takes one request in.
    ///
    /// # Errors
    /// Those of the store: the provider is to try again.
    pub(crate) async fn receive(&self, request: &Request) -> Result<Answer> {
        let (reports, answer) = match self.read(request) {
            Ok(Some(read)) => read,
            Ok(None) => return Ok(Answer::Unknown),
            Err(refused) => {
                tracing::warn!(provider = request.provider, %refused, "a provider's report was refused");
                return Ok(Answer::Refused(refused));
            }
        };
        for report in &reports {
            self.record(&request.provider, report).await?;
        }
        Ok(answer)
    }

    /// None where nothing is set up for it.
    fn read(&self, request: &Request) -> Result<Option<Read>, Refused> {
        let ok = || Answer::Taken { content_type: "text/plain", text: "ok".to_owned() };
        let header = |name: &str| request.headers.get(name).map_or("", String::as_str);
        let now = self.clock.now().as_second();
        let body = &request.body;
        match (request.provider.as_str(), request.handshake) {
            ("resend", false) if !self.resend.is_empty() => {
                let either = |name: &str| [header(&format!("svix-{name}")), header(&format!("webhook-{name}"))];
                let [id, timestamp, signature] = ["id", "timestamp", "signature"]
                    .map(|name| either(name).into_iter().find(|value| !value.is_empty()).unwrap_or_default());
                resend::verify(SignedHeaders { id, timestamp, signature }, body, &self.resend, now)?;
                Ok(Some((resend::read(id, body)?, ok())))
            }
            ("twilio", false) if !self.twilio.0.is_empty() && !self.twilio.1.is_empty() => {
                let mark = if request.query.is_empty() { "" } else { "?" };
                let url = format!("{}{mark}{}", self.twilio.1, request.query);
                twilio::verify(&url, body, header("x-twilio-signature"), self.twilio.0.expose())?;
                let silence = Answer::Taken { content_type: "text/xml", text: "<Response/>".to_owned() };
                Ok(Some((twilio::read(&url, body)?, silence)))
            }
            ("whatsapp", true) if !self.meta.1.is_empty() => Ok(Some((Vec::new(), self.handshake(&request.query)?))),
            ("whatsapp", false) if !self.meta.0.is_empty() => {
                meta::verify(body, header("x-hub-signature-256"), self.meta.0.expose())?;
                Ok(Some((meta::read(body)?, ok())))
            }
            ("slack", false) if !self.slack.is_empty() => {
                let (timestamp, signature) = (header("x-slack-request-timestamp"), header("x-slack-signature"));
                slack::verify(body, timestamp, signature, self.slack.expose(), now)?;
                // An interaction's answer would take the place of the message.
                let silence = Answer::Taken { content_type: "text/plain", text: String::new() };
                Ok(Some(match body.first() {
                    Some(b'{') => match slack::read_event(body)? {
                        slack::Wanted::Challenge(text) => {
                            (Vec::new(), Answer::Taken { content_type: "text/plain", text })
                        }
                        slack::Wanted::Reports(reports) => (reports, silence),
                    },
                    _ => (slack::read_interaction(body)?, silence),
                }))
            }
            _ => Ok(None),
        }
    }

    fn handshake(&self, query: &str) -> Result<Answer, Refused> {
        let fields: HashMap<_, _> = url::form_urlencoded::parse(query.as_bytes()).collect();
        let field = |name: &str| fields.get(name).map_or("", |value| value.as_ref());
        let (mode, token, challenge) = (field("hub.mode"), field("hub.verify_token"), field("hub.challenge"));
        let challenge = meta::handshake(mode, token, challenge, self.meta.1.expose()).ok_or(Refused::Signature)?;
        Ok(Answer::Taken { content_type: "text/plain", text: challenge.to_owned() })
    }

    /// Raises a message's stage. What is about nobody's message, or one that we don't know, is counted and no more.
    async fn record(&self, provider: &str, report: &Report) -> Result<()> {
        let provider = provider.to_owned();
        metrics::counter!("notifier_reports_total", "provider" => provider, "meaning" => report.meaning.name())
            .increment(1);
        let stage = Stage::default().after(&report.meaning);
        let Some(uid) = report.message.filter(|_| stage > Stage::Unreported) else { return Ok(()) };
        let code = match &report.meaning {
            Meaning::Failed { code } => code.chars().take(64).collect(),
            _ => String::new(),
        };
        let mut tx = self.store.begin().await?;
        let known: Option<i64> = with!(tx.on(), c => sqlx::query_scalar("SELECT priority FROM messages WHERE uid = $1")
            .bind(&uid[..]).fetch_optional(c).await)?;
        if known.is_none() {
            return Ok(());
        }
        with!(tx.on(), c => sqlx::query(
            "INSERT INTO receipts (uid, stage, code, reported_at) VALUES ($1, $2, $3, $4)
             ON CONFLICT (uid) DO UPDATE SET stage = excluded.stage, code = excluded.code, reported_at = excluded.reported_at
             WHERE receipts.stage < excluded.stage",
        )
        .bind(&uid[..])
        .bind(stage as i64)
        .bind(&code)
        .bind(self.clock.now_micros())
        .execute(c).await.map(drop))?;
        tx.commit().await
    }
}

#[cfg(test)]
mod tests;
