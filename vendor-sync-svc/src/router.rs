//! What this service asks of the router: the log's head, one event, and to publish.

use chassis::{
    error::{Error, RETRY_AFTER, Result},
    grpc::{Connection, MESSAGE_LIMIT, Peer},
    id::{self, OrganizationId},
};
use proto::router::v1::{
    self as wire, event_service_client::EventServiceClient, publish_result::Result as PublishOutcome,
};
use tonic::Code;

use crate::{endpoint::Since, event::Event, rpc::wire as parse};

fn fared(result: wire::PublishResult) -> Result<()> {
    match result.result {
        Some(PublishOutcome::Receipt(_)) => Ok(()),
        Some(PublishOutcome::Refusal(refusal)) if refusal.code == i32::from(Code::ResourceExhausted) => {
            Err(Error::Exhausted { reason: refusal.message, retry_after: RETRY_AFTER })
        }
        Some(PublishOutcome::Refusal(refusal)) if refusal.retryable => Err(Error::Unavailable(refusal.message)),
        Some(PublishOutcome::Refusal(refusal)) => Err(Error::invalid(refusal.field, refusal.message)),
        None => Err(Error::Unavailable("the router gave no receipt".to_owned())),
    }
}

/// The router's event log. Cheap to clone.
#[derive(Clone)]
pub(crate) struct Router(EventServiceClient<Connection>);

impl Router {
    pub(crate) fn new(peer: &Peer) -> Self {
        let client = EventServiceClient::new(peer.channel());
        Self(client.max_decoding_message_size(MESSAGE_LIMIT).max_encoding_message_size(MESSAGE_LIMIT))
    }

    /// Where the log ends now.
    ///
    /// # Errors
    /// `Error::Unavailable` while the router is away.
    pub(crate) async fn head(&self) -> Result<Since> {
        let answer = self.0.clone().get_head(wire::GetHeadRequest {}).await?.into_inner();
        let head = answer.head.ok_or_else(|| Error::internal(anyhow::anyhow!("the router gave no head")))?;
        Ok(Since { log_id: head.log_id, sequence: head.sequence })
    }

    /// One event of the log.
    ///
    /// # Errors
    /// `Error::NotFound` when it is no longer kept; `Error::Unavailable` while the router is away.
    pub(crate) async fn event(&self, organization: &OrganizationId, uid: [u8; 16]) -> Result<Event> {
        let request = wire::GetEventRequest { id: id::uuid_text(uid), organization_id: organization.to_string() };
        let answer = self.0.clone().get_event(request).await?.into_inner();
        let event = answer.event.and_then(|logged| logged.event).ok_or_else(|| Error::NotFound("event".into()))?;
        parse::event(event)
    }

    /// Publishes an event; when this returns it is durable.
    ///
    /// # Errors
    /// The router's refusal; `Error::Unavailable` while it is away.
    pub(crate) async fn publish(&self, event: wire::Event) -> Result<()> {
        self.0.clone().publish(wire::PublishRequest { event: Some(event) }).await?;
        Ok(())
    }

    /// Publishes several, each on its own; how each fared, in their order.
    ///
    /// # Errors
    /// `Error::Unavailable` while the router is away: any of them may be durable.
    pub(crate) async fn publish_batch(&self, events: Vec<wire::Event>) -> Result<Vec<Result<()>>> {
        let asked = events.len();
        let answer = self.0.clone().publish_batch(wire::PublishBatchRequest { events }).await?.into_inner();
        if answer.results.len() != asked {
            return Err(Error::Unavailable("the router answered for another number of events".to_owned()));
        }
        Ok(answer.results.into_iter().map(fared).collect())
    }
}
