//! Webhooks in: seven steps, each with its own file, and what each may answer.
//!
//! Guarantees: nothing is accepted before it is durable, at the router or (for senders that never retry) in our own
//! spool; a request that is sent again has one effect, since its event's id is derived from it and the router keeps one
//! event per id; the signature is checked over the bytes as they came, before anything is believed.
//!
//! Those of integrations with a connector go another way once they are found ([`vendor`]).
//!
//! The answers are the table in `webhooks.md`; `rpc/webhooks.rs` prints them and the gateway makes HTTP of them.

mod dedupe;
mod json;
mod limit;
mod publish;
mod set_aside;
mod spool;
mod transform;
mod validate;
pub(crate) mod vendor;
mod verify;

use std::{borrow::Cow, sync::Arc, time::Duration};

use bytes::Bytes;
use chassis::{
    clock::Clock,
    error::{Error, RETRY_AFTER},
    grpc::Peer,
    id,
    secret::DataKeys,
    store::Store,
    tasks::Tasks,
};
use jiff::Timestamp;

pub(crate) use self::set_aside::SetAside;
use self::{
    dedupe::{Key, Receipts},
    limit::Limits,
    publish::{Event, Publisher, Sender},
    spool::Spool,
};
use crate::integration::{Integration, Integrations, Kind, Secrets};

/// How often what is too old is looked for.
const PURGE_EVERY: Duration = Duration::from_secs(600);

/// A webhook as it came.
#[derive(Clone, Debug)]
pub(crate) struct Request {
    /// From the path.
    pub(crate) vendor: String,
    /// From the path or a header.
    pub(crate) integration_id: String,
    pub(crate) headers: Headers,
    pub(crate) body: Bytes,
    /// `POST`, but for handshakes.
    pub(crate) method: String,
    /// Path and query as they were asked for.
    pub(crate) target: String,
}

/// Names in lower case, in order, repeats kept.
#[derive(Clone, Debug, Default)]
pub(crate) struct Headers(pub(crate) Vec<(String, Bytes)>);

impl Headers {
    /// Whether the header is there, in whatever form.
    fn has(&self, name: &str) -> bool {
        self.0.iter().any(|(other, _)| other == name)
    }

    /// The one text under this name; a header that stands twice says nothing.
    fn one(&self, name: &str) -> Option<&str> {
        let mut values = self.0.iter().filter(|(other, _)| other == name).map(|(_, value)| value);
        let (Some(value), None) = (values.next(), values.next()) else { return None };
        std::str::from_utf8(value).ok()
    }
}

/// What the sender is told.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Answer {
    /// It is durable, as these events.
    Accepted { event_id: String },
    /// It was processed before, as this event.
    Duplicate { event_id: String },
    /// A vendor tried the address out.
    Echo { status: u16, body: String },
    /// No such integration, or not one that takes this.
    Unknown,
    /// The signature is missing, wrong or stale.
    Unverified,
    /// The body isn't what it must be.
    Invalid { field: Cow<'static, str>, reason: String },
    /// Over the hourly limit.
    Limited { retry_after: Duration },
    /// The router or the store is away.
    Unavailable { retry_after: Duration },
    /// The id was used for another body.
    Conflict,
}

impl Answer {
    fn invalid(field: impl Into<Cow<'static, str>>, reason: impl Into<String>) -> Self {
        Self::Invalid { field: field.into(), reason: reason.into() }
    }

    /// Its name, for metrics and logs.
    fn name(&self) -> &'static str {
        match self {
            Self::Accepted { .. } => "accepted",
            Self::Duplicate { .. } => "duplicate",
            Self::Echo { .. } => "echo",
            Self::Unknown => "unknown",
            Self::Unverified => "unverified",
            Self::Invalid { .. } => "invalid",
            Self::Limited { .. } => "limited",
            Self::Unavailable { .. } => "unavailable",
            Self::Conflict => "conflict",
        }
    }
}

/// What our store and the router refuse. Their reasons are ours; what a sender can't mend it may try again.
impl From<Error> for Answer {
    fn from(error: Error) -> Self {
        match error {
            Error::Invalid { field, reason } => Self::Invalid { field, reason },
            Error::AlreadyExists(_) => Self::Conflict,
            Error::Exhausted { retry_after, .. } => Self::Limited { retry_after },
            Error::Unavailable(_) | Error::Aborted(_) => Self::Unavailable { retry_after: RETRY_AFTER },
            other => {
                tracing::error!(error = format!("{other:?}"), "a webhook could not be processed");
                Self::Unavailable { retry_after: RETRY_AFTER }
            }
        }
    }
}

/// The way in. Cheap to clone.
#[derive(Clone)]
pub(crate) struct Inbound {
    integrations: Integrations,
    receipts: Receipts,
    limits: Arc<Limits>,
    spool: Spool,
    publisher: Publisher,
    clock: Clock,
    /// For integrations with a connector.
    vendors: Option<vendor::Vendors>,
}

impl Inbound {
    /// Over the tables of `store`, publishing to `router`.
    pub(crate) fn new(integrations: Integrations, store: &Store, keys: &DataKeys, router: &Peer, clock: Clock) -> Self {
        Self {
            integrations,
            receipts: Receipts::new(store.clone()),
            limits: Arc::new(Limits::new(store.clone())),
            spool: Spool::new(store.clone(), keys.clone(), clock.clone()),
            publisher: Publisher::new(router),
            clock,
            vendors: None,
        }
    }

    /// Takes webhooks of connectors too.
    pub(crate) fn with_vendors(self, vendors: vendor::Vendors) -> Self {
        Self { vendors: Some(vendors), ..self }
    }

    /// Publishes what is spooled and forgets what is old, until the process stops.
    pub(crate) fn start(&self, tasks: &Tasks) {
        tasks.spawn("inbound.spool", self.spool.clone().run(self.publisher.clone(), tasks.clone()));
        tasks.spawn("inbound.purge", self.clone().purge_at_times(tasks.clone()));
    }

    /// Takes one webhook through the steps.
    pub(crate) async fn receive(&self, request: &Request) -> Answer {
        let answer = self.steps(request).await.unwrap_or_else(|refusal| refusal);
        metrics::counter!("inbound_webhooks_total", "result" => answer.name()).increment(1);
        tracing::debug!(result = answer.name(), body_bytes = request.body.len(), "webhook received");
        answer
    }

    async fn steps(&self, request: &Request) -> Result<Answer, Answer> {
        let now = self.clock.now();
        let (integration, secrets) = self.find(request).await?;
        if integration.settings.kind == Kind::Connector {
            let vendors = self.vendors.as_ref().ok_or(Answer::Unknown)?;
            return Box::pin(vendors.steps(self, request, (&integration, &secrets), now)).await;
        }
        if request.method != "POST" {
            return Err(Answer::Unknown);
        }
        let proof = verify::verify(&integration.settings, &secrets, &request.headers, &request.body, now)?;
        let key = self.receipts.dedupe(&integration, proof, &request.body, now).await?;
        self.limits.admit(&integration, now).await?;
        let message = validate::validate(integration.settings.kind, &request.body)?;
        let event = transform::transform(&integration.settings, &request.headers, message, &key, now)?;
        self.publish(&integration, request, &event, &key, now).await
    }

    /// The integration that the request names, if it takes requests on this path. Every miss is the same, and costs a look-up.
    async fn find(&self, request: &Request) -> Result<(Integration, Secrets), Answer> {
        let id = id::parse_uuid(&request.integration_id).map(id::uuid_text).unwrap_or_default();
        let found = self.integrations.find(&id).await?;
        found.filter(|(integration, _)| integration.settings.vendor == request.vendor).ok_or(Answer::Unknown)
    }

    /// Makes it durable: in the spool where the sender never retries, else at the router.
    async fn publish(
        &self,
        integration: &Integration,
        request: &Request,
        event: &Event,
        key: &Key,
        now: Timestamp,
    ) -> Result<Answer, Answer> {
        let sender = Sender::of(integration);
        if integration.settings.kind.is_spooled() {
            self.spool.put(&sender, event, &request.body).await?;
            return Ok(Answer::Accepted { event_id: key.event_id.clone() });
        }
        let published = self.publisher.publish(&sender, event).await;
        // What the router couldn't take, or had already, isn't one more.
        if published.as_ref().is_ok_and(|duplicate| *duplicate) || published.as_ref().is_err_and(Error::is_retryable) {
            self.limits.give_back(&integration.id);
        }
        let duplicate = published?;
        // The router has it: that is what counts. Without the receipt a repeat is stopped there.
        if let Err(error) = self.receipts.record(integration, key, now).await {
            tracing::warn!(%error, integration.id = integration.id, "a receipt was not kept");
        }
        let event_id = key.event_id.clone();
        Ok(if duplicate { Answer::Duplicate { event_id } } else { Answer::Accepted { event_id } })
    }

    async fn purge_at_times(self, tasks: Tasks) {
        let stopping = tasks.stopping();
        while stopping.run_until_cancelled(self.clock.sleep(PURGE_EVERY)).await.is_some() {
            let now = self.clock.now();
            self.limits.forget(now);
            let purged = async { self.receipts.purge(now).await.and(self.spool.purge(now).await) };
            if let Some(Err(error)) = stopping.run_until_cancelled(purged).await {
                tracing::warn!(%error, "old webhooks were not purged; trying again later");
            }
        }
    }
}

#[cfg(test)]
pub(crate) mod tests;
