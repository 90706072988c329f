//! To the router: an event of an integration, durable once it answers OK.

use std::fmt;

use bytes::Bytes;
use chassis::{
    error::{Error, Result},
    grpc::{Connection, MESSAGE_LIMIT, Peer},
    id::OrganizationId,
};
use jiff::Timestamp;
use proto::router::v1::{self as wire, event_service_client::EventServiceClient};

use super::validate::Operation;
use crate::{integration::Integration, rpc::wire::print_timestamp};

/// Whose event it is.
#[derive(Clone, Debug)]
pub(super) struct Sender {
    pub(super) organization: OrganizationId,
    pub(super) integration: String,
    pub(super) supplier_id: String,
}

impl Sender {
    pub(super) fn of(integration: &Integration) -> Self {
        Self {
            organization: integration.organization.clone(),
            integration: integration.id.clone(),
            supplier_id: integration.settings.supplier_id.clone(),
        }
    }
}

/// What is published.
#[derive(Clone, Debug)]
pub(super) struct Event {
    /// The same however often the request comes.
    pub(super) id: String,
    /// Empty for a change, whose type follows from it.
    pub(super) type_: String,
    pub(super) subject: String,
    pub(super) couple_id: String,
    pub(super) time: Timestamp,
    pub(super) channels: Vec<String>,
    pub(super) traceparent: String,
    pub(super) payload: Payload,
}

#[derive(Clone, Debug)]
pub(super) enum Payload {
    /// JSON.
    Content(Bytes),
    /// JSON objects; empty for none.
    Change { schema: String, table: String, operation: Operation, old: Bytes, new: Bytes },
}

/// Publishes to one router. Cheap to clone.
#[derive(Clone)]
pub(super) struct Publisher {
    router: EventServiceClient<Connection>,
}

impl fmt::Debug for Publisher {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Publisher")
    }
}

impl Publisher {
    pub(super) fn new(router: &Peer) -> Self {
        let router = EventServiceClient::new(router.channel()).max_encoding_message_size(MESSAGE_LIMIT);
        Self { router }
    }

    /// Publishes an event; true if the router had it already.
    ///
    /// # Errors
    /// The router's refusals, with fields of the event; `Error::Unavailable` while it is away.
    pub(super) async fn publish(&self, sender: &Sender, event: &Event) -> Result<bool> {
        let request = wire::PublishRequest { event: Some(print(sender, event)) };
        let response = self.router.clone().publish(request).await?.into_inner();
        let receipt = response.receipt.ok_or_else(|| Error::Unavailable("the router gave no receipt".to_owned()))?;
        Ok(receipt.duplicate)
    }
}

pub(super) fn print(sender: &Sender, event: &Event) -> wire::Event {
    let metadata = wire::Metadata {
        supplier_id: sender.supplier_id.clone(),
        couple_id: event.couple_id.clone(),
        traceparent: event.traceparent.clone(),
        ..wire::Metadata::default()
    };
    wire::Event {
        id: event.id.clone(),
        organization_id: sender.organization.to_string(),
        r#type: event.type_.clone(),
        source: format!("integration:{}", sender.integration),
        subject: event.subject.clone(),
        time: Some(print_timestamp(event.time)),
        channels: event.channels.clone(),
        payload: Some(print_payload(&event.payload)),
        metadata: Some(metadata),
        ..wire::Event::default()
    }
}

fn print_payload(payload: &Payload) -> wire::event::Payload {
    match payload {
        Payload::Content(data) => wire::event::Payload::Content(wire::Content {
            content_type: "application/json".to_owned(),
            data: data.clone(),
        }),
        Payload::Change { schema, table, operation, old, new } => wire::event::Payload::Change(wire::Change {
            schema: schema.clone(),
            table: table.clone(),
            operation: match operation {
                Operation::Insert => wire::Operation::Insert,
                Operation::Update => wire::Operation::Update,
                Operation::Delete => wire::Operation::Delete,
            }
            .into(),
            old_record: old.clone(),
            new_record: new.clone(),
        }),
    }
}
