//! Calls a vendor: credential, turn, request, answer, what it means. The effects around the pure engine.
//!
//! Guarantees: a request goes out through the guard, within the vendor's quotas and with what its connector declares; an
//! answer is read up to a bound. Trying again, and what follows from an answer, is decided by the callers.

use std::{collections::BTreeMap, sync::Arc};

use chassis::{
    clock::Clock,
    error::Error,
    outbound::{Answer, Outbound},
    signature::WebhookSecret,
};
use serde_json::Value as Json;

use super::{
    Account, CallError, Class, Connector, Judgement, Page, Position, Reply,
    catalogue::Catalogue,
    limits::{Asker, Limits},
};
use crate::{
    credential::{Credential, CredentialError, Credentials},
    integration::{Integration, Integrations},
};

/// Calls vendors. Cheap to clone.
#[derive(Clone)]
pub(crate) struct Caller {
    catalogue: Catalogue,
    credentials: Credentials,
    integrations: Integrations,
    outbound: Outbound,
    limits: Limits,
    clock: Clock,
}

/// An account that is about to be called, with all that a request needs.
#[derive(Clone, Debug)]
pub(crate) struct Called {
    pub(crate) connector: Arc<Connector>,
    pub(crate) integration_id: String,
    /// What a shared quota is shared by.
    pub(crate) application: String,
    /// What it gave, and what its vendor gave when it was connected.
    pub(crate) settings: BTreeMap<String, String>,
    pub(crate) credential: Credential,
    pub(crate) secrets: Vec<WebhookSecret>,
}

impl Called {
    fn account(&self) -> Account<'_> {
        Account {
            integration_id: &self.integration_id,
            settings: &self.settings,
            credential: &self.credential,
            secrets: &self.secrets,
        }
    }

    fn asker(&self) -> Asker<'_> {
        Asker { account: &self.integration_id, application: &self.application }
    }
}

impl Caller {
    /// Over these parts.
    pub(crate) fn new(
        catalogue: Catalogue,
        credentials: Credentials,
        integrations: Integrations,
        outbound: Outbound,
        limits: Limits,
        clock: Clock,
    ) -> Self {
        Self { catalogue, credentials, integrations, outbound, limits, clock }
    }

    /// Asks one thing of an integration's vendor.
    ///
    /// # Errors
    /// What kind of refusal it was.
    pub(crate) async fn call(
        &self,
        integration: &Integration,
        operation: &str,
        given: &Json,
    ) -> Result<Reply, CallError> {
        let (called, _, answer) = self.asked(integration, operation, given, &Position::default()).await?;
        self.judged(&called, operation, &answer)
    }

    /// The answer to an integration's request. A credential that is refused is renewed, where it can be, and the request made
    /// once more; where it can't, the integration needs somebody who connects it again.
    async fn asked(
        &self,
        integration: &Integration,
        operation: &str,
        given: &Json,
        position: &Position,
    ) -> Result<(Called, String, Answer), CallError> {
        let (mut called, mut tried) = (self.called(integration).await?, Vec::new());
        for renewed in [false, true] {
            let (url, answer) = self.exchange(&called, operation, given, position).await?;
            let refused =
                self.judged(&called, operation, &answer).is_err_and(|error| error.class == Class::Unauthorized);
            if !refused {
                return Ok((called, url, answer));
            }
            tried.push(called.credential.clone());
            // Rare, and large: kept out of the future of every call.
            let newer = Box::pin(self.credentials.refused(integration, &tried)).await.map_err(no_credential)?;
            if renewed {
                break;
            }
            called.credential = newer;
        }
        Err(CallError::unauthorized("the vendor refuses what it authenticates with"))
    }

    /// The same as an account that may not be stored yet: how a new credential is tried.
    ///
    /// # Errors
    /// Likewise.
    pub(crate) async fn call_as(&self, called: &Called, operation: &str, given: &Json) -> Result<Reply, CallError> {
        let (_, answer) = self.exchange(called, operation, given, &Position::default()).await?;
        self.judged(called, operation, &answer)
    }

    /// Reads the page of a list that begins at `position`.
    ///
    /// # Errors
    /// Likewise.
    pub(crate) async fn page(
        &self,
        integration: &Integration,
        operation: &str,
        given: &Json,
        position: &Position,
    ) -> Result<Page, CallError> {
        let (called, url, answer) = self.asked(integration, operation, given, position).await?;
        self.judged(&called, operation, &answer)?;
        called.connector.page(operation, position, &url, &answer)
    }

    /// Everything that a request of `integration` needs.
    ///
    /// # Errors
    /// Why it can't be called now.
    pub(crate) async fn called(&self, integration: &Integration) -> Result<Called, CallError> {
        let credential = self.credentials.of(integration).await.map_err(no_credential)?;
        let yielded = self.credentials.yielded(integration).await.map_err(no_credential)?;
        self.called_with(integration, credential, yielded).await
    }

    /// The same with a credential that may not be in force, and the settings that its vendor gave.
    ///
    /// # Errors
    /// Likewise.
    pub(crate) async fn called_with(
        &self,
        integration: &Integration,
        credential: Credential,
        yielded: BTreeMap<String, String>,
    ) -> Result<Called, CallError> {
        let entry = self.catalogue.get(&integration.organization, &integration.settings.connector).await;
        let entry = entry.map_err(unavailable)?;
        let mut settings = integration.settings.parameters.clone();
        settings.extend(yielded);
        let secrets = if entry.connector.is_signed() { self.secrets(integration).await? } else { Vec::new() };
        let name = entry.connector.name();
        // An organization's own connector says itself who grants: whose application it names is never believed.
        let shared = match entry.own {
            None => name.to_owned(),
            Some(_) => format!("{}/{name}", integration.organization),
        };
        let application = match self.credentials.client_of(name, &credential) {
            Some(client) => format!("{shared}#{client}"),
            None => shared,
        };
        let (connector, integration_id) = (entry.connector, integration.id.clone());
        Ok(Called { connector, integration_id, application, settings, credential, secrets })
    }

    async fn secrets(&self, integration: &Integration) -> Result<Vec<WebhookSecret>, CallError> {
        let found = self.integrations.find(&integration.id).await.map_err(unavailable)?;
        let (_, secrets) = found.ok_or_else(|| CallError::permanent("the integration is disabled"))?;
        Ok(secrets.iter().filter_map(|secret| WebhookSecret::parse(secret).ok()).collect())
    }

    async fn exchange(
        &self,
        called: &Called,
        operation: &str,
        given: &Json,
        position: &Position,
    ) -> Result<(String, Answer), CallError> {
        let connector = &called.connector;
        // Built before its turn is asked for: what can't be said must not count.
        connector.request_at(operation, &called.account(), given, position, self.clock.now())?;
        let _permit = self.limits.enter(connector, called.asker()).await?;
        let request = connector.request_at(operation, &called.account(), given, position, self.clock.now())?;
        let url = request.url.clone();
        let answer = self.outbound.fetch(request, connector.answer_bytes(operation)).await;
        answer.map(|answer| (url, answer)).map_err(|failure| connector.judge_failure(operation, &failure))
    }

    fn judged(&self, called: &Called, operation: &str, answer: &Answer) -> Result<Reply, CallError> {
        match called.connector.judge(operation, answer, self.clock.now()) {
            Judgement::Done(reply) => Ok(reply),
            Judgement::Failed(error) => {
                if let (Some(park), Some(wait)) = (error.park, error.retry_after) {
                    self.limits.park(called.asker(), park, wait);
                }
                Err(error)
            }
        }
    }
}

fn no_credential(error: CredentialError) -> CallError {
    match error {
        CredentialError::NeedsReconnect(reason) => CallError::unauthorized(reason),
        CredentialError::Unavailable(reason) => CallError::retry(reason),
    }
}

fn unavailable(error: Error) -> CallError {
    match error {
        Error::NotFound(what) => CallError::permanent(format!("{what} not found")),
        error => CallError::retry(error.to_string()),
    }
}

#[cfg(test)]
mod tests;
