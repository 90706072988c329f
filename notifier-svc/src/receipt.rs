//! What providers report is taken in here: believed or not, read, and recorded as how far each message has come, together
//! with what it does ([`effect`](crate::effect)).
//!
//! Guarantee: what was answered 2xx is durable. Reports may come early, late, twice or in any order: a message's stage only
//! rises, and what else a report does is done by the first of its id.

use std::{collections::HashMap, sync::Arc};

use chassis::{
    clock::Clock,
    config::Secret,
    error::Result,
    secret::DataKeys,
    signature::{SignedHeaders, WebhookSecret},
    store::{Store, Tx},
    with,
};
use jiff::{SignedDuration, Timestamp};
use tokio::sync::Notify;

use crate::{
    callback::{Meaning, Refused, Report, Stage, meta, resend, slack, twilio},
    config::Config,
    effect::{Effect, Effects},
    failover,
    notification::digest,
};

/// How long a report is remembered: no provider repeats it for longer than a week.
const AGAIN: SignedDuration = SignedDuration::from_hours(9 * 24);

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
    effects: Effects,
    /// What goes on after a failure waits for it.
    later: Arc<Notify>,
    resend: Vec<WebhookSecret>,
    twilio: (Secret, String),
    meta: (Secret, Secret),
    slack: Secret,
}

impl Receipts {
    /// # Errors
    /// A secret of Resend's that is none.
    pub(crate) fn new(config: &Config, store: Store, keys: DataKeys, clock: Clock, later: Arc<Notify>) -> Result<Self> {
        let secret = Some(config.resend.webhook_secret.expose()).filter(|secret| !secret.is_empty());
        let effects = Effects { store: store.clone(), keys, clock: clock.clone() };
        Ok(Self {
            store,
            clock,
            effects,
            later,
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
        let challenge = meta::handshake(mode, token, challenge, self.meta.1.expose()).ok_or(Refused::Token)?;
        Ok(Answer::Taken { content_type: "text/plain", text: challenge.to_owned() })
    }

    /// Writes down what a report says of its message, and does what it asks for: at once, and once.
    async fn record(&self, provider: &str, report: &Report) -> Result<()> {
        metrics::counter!("notifier_reports_total", "provider" => provider.to_owned(), "meaning" => report.meaning.name())
            .increment(1);
        let effect = self.effects.of(provider, report).await?;
        let stage = Stage::default().after(&report.meaning);
        let about = report.message.filter(|_| stage > Stage::Unreported);
        if about.is_none() && matches!(effect, Effect::Nothing) {
            return Ok(());
        }
        let now = self.clock.now();
        let mut tx = self.store.begin().await?;
        if !matches!(effect, Effect::Nothing) && !is_new(&mut tx, provider, &report.id, now).await? {
            return Ok(());
        }
        let mut goes_on = false;
        if let Some(uid) = about
            && self.raise(&mut tx, &uid, stage, &report.meaning).await?
            && matches!(stage, Stage::Failed | Stage::Bounced)
        {
            goes_on = failover::note(&mut tx, &uid, now).await?;
        }
        effect.write(&mut tx, provider, now).await?;
        tx.commit().await?;
        if goes_on {
            self.later.notify_one();
        }
        Ok(())
    }

    /// Raises a message's stage; false if it stood higher, or nobody knows the message.
    async fn raise(&self, tx: &mut Tx, uid: &[u8; 16], stage: Stage, meaning: &Meaning) -> Result<bool> {
        let code = match meaning {
            Meaning::Failed { code } => code.chars().take(64).collect(),
            _ => String::new(),
        };
        let raised = with!(tx.on(), c => sqlx::query(
            "INSERT INTO receipts (uid, stage, code, reported_at) SELECT uid, $2, $3, $4 FROM messages WHERE uid = $1
             ON CONFLICT (uid) DO UPDATE SET stage = excluded.stage, code = excluded.code, reported_at = excluded.reported_at
             WHERE receipts.stage < excluded.stage",
        )
        .bind(&uid[..])
        .bind(stage as i64)
        .bind(&code)
        .bind(self.clock.now_micros())
        .execute(c).await.map(|done| done.rows_affected()))?;
        Ok(raised > 0)
    }
}

/// Notes that a report was taken in; false if it was before. A few of those that are too old to come again go.
async fn is_new(tx: &mut Tx, provider: &str, id: &str, now: Timestamp) -> Result<bool> {
    let new = with!(tx.on(), c => sqlx::query("INSERT INTO reports (hash, reported_at) VALUES ($1, $2) ON CONFLICT (hash) DO NOTHING")
        .bind(&digest(&[provider, id])[..])
        .bind(now.as_microsecond())
        .execute(c).await.map(|done| done.rows_affected()))?;
    with!(tx.on(), c => sqlx::query(
        "DELETE FROM reports WHERE hash IN (SELECT hash FROM reports WHERE reported_at < $1 ORDER BY reported_at LIMIT 4)",
    ).bind((now - AGAIN).as_microsecond()).execute(c).await.map(drop))?;
    Ok(new > 0)
}

#[cfg(test)]
mod tests;
