//! Push: to every browser and device of a person, by Web Push or by Firebase Cloud Messaging.
//!
//! A message counts as delivered once one of them took it. A browser shows a repeat in the place of the first and doesn't ring
//! for it, so what its service may have taken is tried again; a device does ring, so what Firebase may have taken stays
//! unknown. A browser or device that is gone is forgotten.

mod encrypt;
mod fcm;
mod google;
mod vapid;
mod web;

use anyhow::Result;
use bytes::Bytes;
use chassis::{
    clock::Clock,
    expression::ExpressionError,
    lane::{Attempted, Delivery},
    outbound::Outbound,
};
use futures_util::{StreamExt as _, future::BoxFuture, stream};
use serde::{Deserialize, Serialize};

use self::{fcm::Fcm, web::WebPush};
use super::{
    Carriage, Carrier, Channel, Message,
    provider::{Class, Verdict, is_at},
    words::{Words, cut_by, one_line},
};
use crate::{
    config::Config,
    recipient::{Directory, PushTarget, Recipient},
};

/// What fits everywhere beside all else that a message carries (4,096 bytes with FCM, 3,993 with Web Push), even if every
/// byte of it is escaped.
pub(super) const TITLE_BYTES: usize = 200;
pub(super) const BODY_BYTES: usize = 1_000;
const LINK_BYTES: usize = 500;
/// How many of a person's browsers and devices are written to at once.
const AT_ONCE: usize = 4;

/// A message as it waits.
#[derive(Serialize, Deserialize)]
struct Push {
    notice: Notice,
    targets: Vec<PushTarget>,
}

/// What is shown.
#[derive(Serialize, Deserialize)]
struct Notice {
    title: String,
    body: String,
    /// What a touch opens; empty: the product.
    url: String,
}

pub(crate) struct PushChannel {
    hosts: Vec<String>,
    web: Option<WebPush>,
    fcm: Option<Fcm>,
    directory: Option<Directory>,
}

impl PushChannel {
    /// # Errors
    /// Keys that are none.
    pub(super) fn new(
        config: &Config,
        outbound: &Outbound,
        clock: &Clock,
        directory: Option<Directory>,
    ) -> Result<Self> {
        let web = || WebPush::new(&config.web_push, outbound.clone(), clock.clone());
        let fcm = || Fcm::new(&config.fcm, outbound.clone(), clock.clone());
        Ok(Self {
            hosts: config.web_push.hosts.clone(),
            web: config.web_push.is_configured().then(web).transpose()?,
            fcm: config.fcm.is_configured().then(fcm).transpose()?,
            directory,
        })
    }

    fn reaches(&self, target: &PushTarget) -> bool {
        match target {
            PushTarget::Web { endpoint, .. } => self.web.is_some() && is_at(endpoint, &self.hosts),
            PushTarget::Fcm { .. } => self.fcm.is_some(),
        }
    }

    async fn send(&self, delivery: &Delivery, notice: &Notice, target: &PushTarget) -> Verdict {
        let verdict = match (target, &self.web, &self.fcm) {
            (PushTarget::Web { endpoint, p256dh, auth }, Some(web), _) if is_at(endpoint, &self.hosts) => {
                web.send(delivery, notice, endpoint, p256dh, auth).await
            }
            (PushTarget::Fcm { token }, _, Some(fcm)) => fcm.send(delivery, notice, token).await,
            _ => Verdict::new(Class::Down, "this kind of push is not set up here any more"),
        };
        if verdict.class == Class::Dead {
            self.forget(delivery, target).await;
        }
        verdict
    }

    async fn forget(&self, delivery: &Delivery, target: &PushTarget) {
        let Some(directory) = &self.directory else { return };
        if let Err(error) = directory.forget_push(&delivery.organization, &delivery.ordering_key, target.id()).await {
            tracing::warn!(%error, "a browser or device that is gone can't be forgotten now; the next message tries again");
        }
    }
}

impl Channel for PushChannel {
    fn name(&self) -> &'static str {
        "push"
    }

    fn address(&self, recipient: &Recipient) -> Result<String, &'static str> {
        let reached = recipient.contact.push.iter().filter(|target| self.reaches(target));
        // The latest tells two people apart well enough: a browser is registered for one.
        reached.last().map(|target| target.id().to_owned()).ok_or("there is no browser or device to push to")
    }

    fn render(&self, message: &Message<'_>) -> Result<Bytes, ExpressionError> {
        let words = Words::of("push", message)?;
        let short = |text: &str, limit| cut_by(&one_line(text), limit, escaped_bytes);
        let notice = Notice {
            title: short(&words.title, TITLE_BYTES),
            body: short(&words.body, BODY_BYTES),
            url: words.link.filter(|link| link.len() <= LINK_BYTES).unwrap_or_default(),
        };
        let targets = message.recipient.contact.push.iter().filter(|target| self.reaches(target)).cloned().collect();
        Ok(serde_json::to_vec(&Push { notice, targets }).expect("texts have a JSON form").into())
    }

    fn carriage(&self) -> Carriage<'_> {
        Carriage::Carry(self)
    }
}

impl Carrier for PushChannel {
    fn carry<'a>(&'a self, delivery: &'a Delivery) -> BoxFuture<'a, Attempted> {
        Box::pin(async move {
            let Ok(Push { notice, targets }) = serde_json::from_slice(&delivery.content) else {
                return Verdict::new(Class::Refused, "the stored message can't be read").attempted();
            };
            let sends: Vec<_> = targets.iter().map(|target| self.send(delivery, &notice, target)).collect();
            let verdicts: Vec<Verdict> = stream::iter(sends).buffer_unordered(AT_ONCE).collect().await;
            together(verdicts).attempted()
        })
    }

    /// Only browsers can have it from an earlier attempt, and they show it once.
    fn resume<'a>(&'a self, delivery: &'a Delivery) -> BoxFuture<'a, Attempted> {
        self.carry(delivery)
    }
}

/// What it comes to for the message: the best that any of them said.
fn together(verdicts: Vec<Verdict>) -> Verdict {
    let rank = |verdict: &Verdict| match verdict.class {
        Class::Taken => 0,
        // Another try goes to all of them.
        Class::Unsure => 1,
        Class::Unsettled => 2,
        Class::Later => 3,
        Class::Down | Class::Busy => 4,
        Class::Barred => 5,
        Class::Refused => 6,
        Class::Dead | Class::Stopped => 7,
    };
    let best = verdicts.into_iter().min_by_key(rank);
    best.unwrap_or_else(|| Verdict::new(Class::Dead, "there is no browser or device to push to"))
}

/// What a character takes in JSON, and twice that in a key of JSON in JSON.
pub(super) fn escaped_bytes(c: char) -> usize {
    match c {
        '"' | '\\' => 2,
        c if c.is_control() => 6,
        c => c.len_utf8(),
    }
}

#[cfg(test)]
mod tests;
