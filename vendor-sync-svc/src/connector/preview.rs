//! What a connector makes of a sample, for people who write one: nothing is sent, no real credential is looked at, and
//! where one would stand there are dots. Pure.

use std::collections::BTreeMap;

use chassis::{config::Secret, signature::WebhookSecret};
use jiff::Timestamp;
use serde_json::{Value as Json, json};

use super::{Account, Auth, Connector, InboundItem, Webhook};
use crate::{credential::Credential, record::RecordKind};

const DOTS: &str = "........";
/// Headers that a real secret would make.
const SIGNATURES: [&str; 2] = ["webhook-signature", "x-wedsync-signature"];

/// A request that would be sent.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct RequestPreview {
    pub(crate) method: String,
    pub(crate) url: String,
    pub(crate) headers: BTreeMap<String, String>,
    pub(crate) body: String,
}

impl Connector {
    /// The request of an operation over `given`.
    ///
    /// # Errors
    /// Why it can't be built, with its place.
    pub(crate) fn preview_request(
        &self,
        operation: &str,
        settings: &BTreeMap<String, String>,
        given: &Json,
        now: Timestamp,
    ) -> Result<RequestPreview, String> {
        let (credential, secrets) = (self.dots(), [WebhookSecret::generate()]);
        let account = Account { integration_id: "preview", settings, credential: &credential, secrets: &secrets };
        let request = self.request(operation, &account, given, now).map_err(|error| error.reason)?;
        let shown = |(name, value): (&http::HeaderName, &http::HeaderValue)| {
            let secret = value.is_sensitive() || SIGNATURES.contains(&name.as_str());
            let text = if secret { DOTS.to_owned() } else { String::from_utf8_lossy(value.as_bytes()).into_owned() };
            (name.to_string(), text)
        };
        Ok(RequestPreview {
            method: request.method.to_string(),
            url: request.url,
            headers: request.headers.iter().map(shown).collect(),
            body: String::from_utf8_lossy(&request.body).into_owned(),
        })
    }

    /// What is understood of a vendor's resource.
    ///
    /// # Errors
    /// What can't be read, with its place.
    pub(crate) fn preview_resource(
        &self,
        kind: RecordKind,
        resource: &Json,
        settings: &BTreeMap<String, String>,
    ) -> Result<Json, String> {
        let name = kind.as_str();
        let spec = self.record(kind).ok_or_else(|| format!("{} has no records.{name}", self.name()))?;
        let item = spec.item(resource, &self.filled(settings)).map_err(|reason| format!("records.{name}.{reason}"))?;
        Ok(json!({
            "external_id": item.external_id,
            "external_version": item.external_version,
            "at": item.at.map(|at| at.to_string()),
            "deleted": item.deleted,
            "fields": item.fields,
        }))
    }

    /// What is understood of a webhook, verified or not.
    ///
    /// # Errors
    /// What can't be read, with its place.
    pub(crate) fn preview_webhook(
        &self,
        webhook: &Webhook<'_>,
        settings: &BTreeMap<String, String>,
    ) -> Result<Vec<Json>, String> {
        let inbound = self.inbound().ok_or_else(|| format!("{} takes no webhooks", self.name()))?;
        Ok(inbound.events(webhook, &self.filled(settings))?.iter().map(shown).collect())
    }

    /// Dots, in the form that the first way to authenticate takes.
    fn dots(&self) -> Credential {
        let dots = || Secret::from(DOTS.to_owned());
        match self.auth().first() {
            None | Some(Auth::None) => Credential::None,
            Some(Auth::Key { .. } | Auth::Basic { user: Some(_) }) => Credential::Key(dots()),
            Some(Auth::Basic { user: None }) => Credential::Basic { user: DOTS.to_owned(), password: dots() },
            Some(Auth::OAuth2(_)) => Credential::Token { token: dots(), client: String::new() },
        }
    }
}

fn shown(item: &InboundItem) -> Json {
    json!({
        "type": item.event_type,
        "record": item.kind.map(RecordKind::as_str),
        "external_id": item.external_id,
        "external_version": item.external_version,
        "at": item.at.map(|at| at.to_string()),
        "deleted": item.deleted,
        "read_first": item.read_first,
        "fields": item.fields,
    })
}
