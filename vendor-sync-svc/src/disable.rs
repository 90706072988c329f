//! Ends endpoints that are gone or failed for too long, and publishes that, once per change of state.
//!
//! Guarantee: the event is published even if the process stops in between, since the endpoint's row says that it is due;
//! its id holds the endpoint's version, so the router takes it once.

use std::{collections::BTreeMap, sync::Arc, time::Duration};

use chassis::error::Result;
use jiff::Timestamp;
use proto::router::v1 as wire;
use tokio::sync::mpsc;
use tokio_util::sync::CancellationToken;

use crate::{endpoint::Endpoint, manage::Endpoints, router::Router};

/// When the store or the router was away, the next try comes after this.
const AGAIN: Duration = Duration::from_secs(2);

/// What the dispatcher says of a lane that it closed.
#[derive(Debug)]
pub(crate) struct Closing {
    pub(crate) endpoint: String,
    pub(crate) reason: String,
}

/// Disables what is told to `closings` and publishes it, and first what an earlier process left unpublished.
pub(crate) async fn run(
    endpoints: Arc<Endpoints>,
    router: Router,
    mut closings: mpsc::Receiver<Closing>,
    stopping: CancellationToken,
) {
    let mut due = Vec::new();
    loop {
        disable(&endpoints, &mut due).await;
        let done = announce(&endpoints, &router).await && due.is_empty();
        tokio::select! {
            () = stopping.cancelled() => return,
            Some(closing) = closings.recv() => due.push(closing),
            () = tokio::time::sleep(AGAIN), if !done => {}
        }
    }
}

/// Takes what succeeded off the list.
async fn disable(endpoints: &Endpoints, due: &mut Vec<Closing>) {
    let mut left = Vec::new();
    for closing in due.drain(..) {
        if let Err(error) = endpoints.disable(&closing.endpoint, &closing.reason).await {
            tracing::warn!(endpoint.id = closing.endpoint, %error, "an endpoint can't be disabled yet; trying again");
            left.push(closing);
            continue;
        }
        metrics::counter!("endpoints_disabled_total").increment(1);
        tracing::info!(endpoint.id = closing.endpoint, reason = closing.reason, "endpoint disabled");
    }
    *due = left;
}

/// Whether nothing is left to publish.
async fn announce(endpoints: &Endpoints, router: &Router) -> bool {
    let mut done = true;
    for endpoint in endpoints.book.to_announce() {
        if let Err(error) = publish(endpoints, router, &endpoint).await {
            tracing::warn!(endpoint.id = %endpoint.id, %error, "the end of an endpoint can't be published yet; trying again");
            done = false;
        }
    }
    done
}

async fn publish(endpoints: &Endpoints, router: &Router, endpoint: &Endpoint) -> Result<()> {
    match router.publish(disabled(endpoint)).await {
        Err(error) if error.is_retryable() => return Err(error),
        // Trying again can't help: it is said here instead.
        Err(error) => tracing::error!(endpoint.id = %endpoint.id, %error, "the router refuses the end of an endpoint"),
        Ok(()) => {}
    }
    endpoints.announced(endpoint).await
}

/// The same version always gives the same event.
pub(crate) fn disabled(endpoint: &Endpoint) -> wire::Event {
    let at = endpoint.updated_at;
    let data = BTreeMap::from([
        ("endpointId", endpoint.id.to_string()),
        ("supplierId", endpoint.settings.supplier_id.clone()),
        ("reason", endpoint.state_reason.clone()),
        ("disabledAt", at.to_string()),
    ]);
    let content = wire::Content {
        content_type: "application/json".to_owned(),
        data: serde_json::to_vec(&data).expect("strings print as JSON").into(),
    };
    wire::Event {
        id: format!("endpoint.disabled:{}:{}", endpoint.id, endpoint.version),
        organization_id: endpoint.organization.to_string(),
        r#type: "endpoint.disabled".to_owned(),
        source: "vendor-sync".to_owned(),
        subject: endpoint.id.to_string(),
        time: Some(timestamp(at)),
        payload: Some(wire::event::Payload::Content(content)),
        metadata: Some(wire::Metadata {
            supplier_id: endpoint.settings.supplier_id.clone(),
            ..wire::Metadata::default()
        }),
        ..wire::Event::default()
    }
}

fn timestamp(at: Timestamp) -> prost_types::Timestamp {
    crate::rpc::wire::print_timestamp(at)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::endpoint::tests::{endpoint, settings};

    #[test]
    fn each_change_of_state_has_an_id_of_its_own_that_a_router_takes() {
        let mut one = endpoint("11111111-1111-7111-8111-111111111111", settings());
        let first = disabled(&one);
        assert_eq!(first, disabled(&one));
        one.version += 2;
        assert_ne!(first.id, disabled(&one).id);
        let is_taken = |b: u8| b.is_ascii_alphanumeric() || b"_:.-".contains(&b);
        assert!(first.id.len() <= 128 && first.id.bytes().all(is_taken), "{}", first.id);
    }
}
