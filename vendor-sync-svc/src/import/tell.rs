//! The event that says that an import asks. Pure.

use jiff::Timestamp;
use proto::router::v1 as wire;
use serde_json::json;

use super::Import;
use crate::rpc::wire::print_timestamp;

/// That an import, or a comparison, has stopped at the brake: to the integration's owner.
pub(super) fn asked(import: &Import, now: Timestamp) -> wire::Event {
    let counts = &import.counts;
    let content = json!({
        "integration_id": import.order.integration_id,
        "import_id": import.id,
        "work": import.order.work.as_str(),
        "reason": import.reason,
        "linked": counts.linked,
        "would_change": counts.planned,
        "vanished": counts.vanished,
    });
    // Each time that it is asked, told once: what was agreed to says which time.
    let id = format!(
        "import:{}:asked:{}",
        import.id,
        import.agreed.map_or_else(|| "first".to_owned(), |agreed| agreed.to_string())
    );
    wire::Event {
        id,
        organization_id: import.order.organization.to_string(),
        r#type: "integration.import_asked".to_owned(),
        source: "vendor-sync".to_owned(),
        subject: import.order.integration_id.clone(),
        time: Some(print_timestamp(now)),
        payload: Some(wire::event::Payload::Content(wire::Content {
            content_type: "application/json".to_owned(),
            data: content.to_string().into(),
        })),
        ..wire::Event::default()
    }
}
