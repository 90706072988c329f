//! What this service asks of the router: the log's head, one event, and to publish.

use chassis::{
    error::{Error, Result},
    grpc::{Connection, MESSAGE_LIMIT, Peer},
    id::{self, OrganizationId},
};
use proto::router::v1::{self as wire, event_service_client::EventServiceClient};

use crate::{endpoint::Since, event::Event, rpc::wire as parse};

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
}
