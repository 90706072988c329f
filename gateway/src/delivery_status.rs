//! `GET /webhooks/delivery-status`: the deliveries of the caller's organization, newest first, page by page.

use axum::{
    Json,
    extract::{Query, State, rejection::QueryRejection},
};
use chassis::grpc::MESSAGE_LIMIT;
use jiff::Timestamp;
use proto::vendorsync::v1::{
    Delivery, DeliveryState, ListDeliveriesRequest, delivery_service_client::DeliveryServiceClient,
};
use serde::Serialize;

use crate::{Gateway, key::ApiKey, problem::Problem, wire};

const STATE: &str = "DELIVERY_STATE_";

#[derive(Debug, Serialize)]
pub(crate) struct Page {
    deliveries: Vec<Status>,
    next_page_token: Option<String>,
}

#[derive(Debug, Serialize)]
struct Status {
    id: String,
    endpoint_id: String,
    event_id: String,
    event_uid: String,
    event_type: String,
    webhook_id: String,
    state: String,
    reason: Option<String>,
    priority: String,
    ordering_key: Option<String>,
    attempts: u32,
    last_status_code: Option<i32>,
    created_at: Option<Timestamp>,
    next_attempt_at: Option<Timestamp>,
    finished_at: Option<Timestamp>,
}

/// Asks vendor-sync in the caller's name.
pub(crate) async fn list(
    State(gateway): State<Gateway>,
    key: ApiKey,
    query: Result<Query<Vec<(String, String)>>, QueryRejection>,
) -> Result<Json<Page>, Problem> {
    let Query(query) = query.map_err(|_| Problem::invalid("", "the query can't be read"))?;
    let request = parse(query)?;
    let mut client =
        DeliveryServiceClient::new(key.calls(&gateway.peers.vendor_sync)?).max_decoding_message_size(MESSAGE_LIMIT);
    let page = client.list_deliveries(request).await?.into_inner();
    let deliveries = page.deliveries.into_iter().map(print).collect();
    Ok(Json(Page { deliveries, next_page_token: wire::text(page.next_page_token) }))
}

/// `state` may be repeated; of the others the last counts.
fn parse(query: Vec<(String, String)>) -> Result<ListDeliveriesRequest, Problem> {
    let mut request = ListDeliveriesRequest::default();
    for (name, value) in query {
        match name.as_str() {
            "endpoint_id" => request.endpoint_id = value,
            "event_id" => request.event_id = value,
            "page_token" => request.page_token = value,
            "page_size" => request.page_size = page_size(&value)?,
            "state" => request.states.push(state(&value)?.into()),
            _ => return Err(Problem::invalid(name, "is no parameter of this path")),
        }
    }
    Ok(request)
}

/// 1 to 500.
pub(crate) fn page_size(text: &str) -> Result<i32, Problem> {
    let size = text.parse().ok().filter(|size| (1..=500).contains(size));
    size.ok_or_else(|| Problem::invalid("page_size", "must be a number from 1 to 500"))
}

fn state(text: &str) -> Result<DeliveryState, Problem> {
    let known = wire::wire_name(text, STATE).and_then(|name| DeliveryState::from_str_name(&name));
    known.ok_or_else(|| {
        Problem::invalid("state", "must be waiting, sending, delivered, dead, cancelled, blocked or unknown")
    })
}

fn print(delivery: Delivery) -> Status {
    Status {
        state: wire::name(delivery.state().as_str_name(), STATE),
        priority: wire::name(delivery.priority().as_str_name(), "PRIORITY_"),
        id: delivery.id,
        endpoint_id: delivery.endpoint_id,
        event_id: delivery.event_id,
        event_uid: delivery.event_uid,
        event_type: delivery.event_type,
        webhook_id: delivery.webhook_id,
        reason: wire::text(delivery.reason),
        ordering_key: wire::text(delivery.ordering_key),
        attempts: delivery.attempts,
        last_status_code: wire::status_code(delivery.last_status_code),
        created_at: wire::time(delivery.created_at),
        next_attempt_at: wire::time(delivery.next_attempt_at),
        finished_at: wire::time(delivery.finished_at),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parsed(query: &[(&str, &str)]) -> Result<ListDeliveriesRequest, Problem> {
        parse(query.iter().map(|(name, value)| ((*name).to_owned(), (*value).to_owned())).collect())
    }

    #[test]
    fn every_state_has_a_name_and_no_other_spelling() {
        for number in 1..=7 {
            let known = DeliveryState::try_from(number).expect("a state");
            let name = wire::name(known.as_str_name(), STATE);
            assert_eq!(state(&name), Ok(known), "{name}");
        }
        for bad in ["", "Dead", "DEAD", "unspecified", "gone", "delivery_state_dead"] {
            assert!(state(bad).is_err(), "{bad}");
        }
    }

    #[test]
    fn what_is_asked_for_is_passed_on_and_unknown_parameters_are_refused() {
        let request = parsed(&[("state", "dead"), ("page_size", "500"), ("state", "waiting")]).expect("well-formed");
        assert_eq!((request.states, request.page_size), (vec![4, 1], 500));
        assert_eq!(request.organization_id, "", "the key says whose they are");
        for bad in [("page_size", "0"), ("page_size", "501"), ("page_size", "x"), ("organization_id", "other")] {
            assert!(parsed(&[bad]).is_err(), "{bad:?}");
        }
    }
}
