//! Firebase Cloud Messaging, HTTP v1 (discovery document `fcm.v1`): one message to one registration token.
//!
//! There is no idempotency key, and nothing to look up. A collapse key and a tag make a repeat take the place of what is there,
//! but a device rings for it again: what may have been taken stays unknown.

use std::path::Path;

use anyhow::Result;
use chassis::{
    clock::Clock,
    id::uuid_text,
    lane::Delivery,
    outbound::{Answer, Outbound},
};
use http::header;
use serde::Deserialize;
use serde_json::{Value, json};

use super::{
    super::provider::{Ask, Class, Provider, Verdict, by_status, code},
    Notice,
    google::Account,
};
use crate::config::Fcm as Settings;

const FCM_ERROR: &str = "type.googleapis.com/google.firebase.fcm.v1.FcmError";

pub(super) struct Fcm {
    provider: Provider,
    account: Account,
    url: String,
}

impl Fcm {
    /// # Errors
    /// A key file that can't be used.
    pub(super) fn new(settings: &Settings, outbound: Outbound, clock: Clock) -> Result<Self> {
        let account = Account::read(Path::new(&settings.service_account_file), &settings.token_url, clock.clone())?;
        let url = format!("{}/v1/projects/{}/messages:send", settings.base_url, account.project);
        Ok(Self { provider: Provider::new("FCM", outbound, clock, 0), account, url })
    }

    pub(super) async fn send(&self, delivery: &Delivery, notice: &Notice, token: &str) -> Verdict {
        let message = message(delivery, notice, token);
        let bearer = match self.account.token(&self.provider, None).await {
            Ok(bearer) => bearer,
            Err(verdict) => return verdict,
        };
        let verdict = self.post(&message, &bearer).await;
        if verdict.status != Some(401) || verdict.code != "UNAUTHENTICATED" {
            return verdict;
        }
        // It may have been withdrawn before its time: once more with another.
        match self.account.token(&self.provider, Some(&bearer)).await {
            Ok(bearer) => self.post(&message, &bearer).await,
            Err(verdict) => verdict,
        }
    }

    async fn post(&self, message: &Value, bearer: &str) -> Verdict {
        let ask = Ask::json(self.url.clone(), message).with(header::AUTHORIZATION, &format!("Bearer {bearer}"));
        self.provider.ask(ask, table).await
    }
}

fn message(delivery: &Delivery, notice: &Notice, token: &str) -> Value {
    let name = uuid_text(delivery.event);
    let (android, apns) = if delivery.priority <= 2 { ("HIGH", "10") } else { ("NORMAL", "5") };
    json!({
        "message": {
            "token": token,
            "notification": {"title": notice.title, "body": notice.body},
            "data": {"message": name, "url": notice.url},
            "android": {
                "priority": android,
                "ttl": "86400s",
                "collapseKey": name,
                "notification": {"tag": name},
            },
            "apns": {"headers": {"apns-priority": apns, "apns-collapse-id": name}},
        },
    })
}

#[derive(Deserialize)]
struct Said {
    error: Fault,
}

#[derive(Deserialize)]
struct Fault {
    #[serde(default)]
    status: String,
    #[serde(default)]
    details: Vec<Value>,
}

/// What FCM's answer to a message means.
fn table(answer: &Answer) -> (Class, String) {
    if answer.status.is_success() {
        return (Class::Taken, String::new());
    }
    let Ok(Said { error }) = serde_json::from_slice::<Said>(&answer.body) else {
        return (by_status(answer), String::new());
    };
    let of_fcm = error.details.iter().find(|detail| detail["@type"] == FCM_ERROR);
    let name = of_fcm.and_then(|detail| detail["errorCode"].as_str()).unwrap_or(&error.status);
    // A field that is wrong is our fault, even where the token is blamed too.
    let is_field = error.details.iter().any(|detail| detail["fieldViolations"].is_array());
    let class = of_name(name, of_fcm.is_some() && !is_field).unwrap_or_else(|| by_status(answer));
    (class, code(name))
}

fn of_name(name: &str, blames_token: bool) -> Option<Class> {
    Some(match name {
        "UNREGISTERED" | "SENDER_ID_MISMATCH" => Class::Dead,
        "INVALID_ARGUMENT" if blames_token => Class::Dead,
        "INVALID_ARGUMENT" => Class::Refused,
        "QUOTA_EXCEEDED" | "RESOURCE_EXHAUSTED" => Class::Busy,
        // "Couldn't be processed in time", "an unknown internal error": neither says how far it came.
        "UNAVAILABLE" | "INTERNAL" => Class::Unsure,
        "THIRD_PARTY_AUTH_ERROR" | "UNAUTHENTICATED" | "PERMISSION_DENIED" => Class::Barred,
        _ => return None,
    })
}
