//! Events about integrations: how one is written. They wait in the outbox, put there with the change that they tell of.
//!
//! Each is told once: its id is made of what changed, so that the router drops a repeat, and of when its integration was
//! made, since one that is made anew may have the id of the one before it. They tell of changes of state
//! alone, never of a delivery, so that none can be the cause of the next.

use jiff::Timestamp;
use proto::router::v1 as wire;

use crate::{integration::Integration, rpc::wire::print_timestamp};

/// The event that tells of one change of `integration`; `change` names the change among all of this integration.
pub(crate) fn event(
    integration: &Integration,
    type_: &str,
    change: &str,
    at: Timestamp,
    content: &serde_json::Value,
) -> wire::Event {
    let content =
        wire::Content { content_type: "application/json".to_owned(), data: content.to_string().into_bytes().into() };
    wire::Event {
        id: format!("{type_}:{}.{}:{change}", integration.id, integration.created_at.as_microsecond()),
        organization_id: integration.organization.to_string(),
        r#type: type_.to_owned(),
        source: "vendor-sync".to_owned(),
        subject: integration.id.clone(),
        // Those of one integration are published in their order.
        ordering_key: integration.id.clone(),
        time: Some(print_timestamp(at)),
        payload: Some(wire::event::Payload::Content(content)),
        metadata: Some(wire::Metadata {
            supplier_id: integration.settings.supplier_id.clone(),
            ..wire::Metadata::default()
        }),
        ..wire::Event::default()
    }
}

/// What every such event says of its integration, with `more` of its own.
pub(crate) fn content(integration: &Integration, more: serde_json::Value) -> serde_json::Value {
    let mut content = serde_json::json!({
        "integration_id": integration.id,
        "vendor": integration.settings.vendor,
        "supplier_id": integration.settings.supplier_id,
    });
    if let (Some(all), serde_json::Value::Object(more)) = (content.as_object_mut(), more) {
        all.extend(more);
    }
    content
}
