//! The small commands: publish an event, look after endpoints and deliveries.

use std::process::ExitCode;

use anyhow::{Result, bail};
use clap::{Args, Subcommand};
use jiff::Timestamp;
use proto::{
    common::v1::Priority,
    router::v1::{Content, Event, Metadata, PublishRequest, event::Payload, event_service_client::EventServiceClient},
    vendorsync::v1::{
        BreakerState, CreateEndpointRequest, Delivery, DeliveryState, Endpoint, EndpointState, ListAttemptsRequest,
        ListDeliveriesRequest, ListEndpointsRequest, ResendDeliveryRequest,
        delivery_service_client::DeliveryServiceClient, endpoint_service_client::EndpointServiceClient,
    },
};

use crate::{
    client::System,
    pages::{at_least_one, list},
    table::{say, show},
};

/// Of an attempt's answer, on a terminal.
const ANSWER_CHARS: usize = 120;

/// Publish one domain event.
#[derive(Args)]
pub(crate) struct Publish {
    #[command(flatten)]
    system: System,
    /// Dotted type: wedding.date_changed, payment.failed, emergency.raised, ...
    #[arg(long = "type")]
    type_: String,
    /// JSON content.
    #[arg(long, default_value = "{}")]
    data: String,
    /// Idempotency key; published twice it is one event.
    #[arg(long, default_value = "")]
    id: String,
    /// What it is about.
    #[arg(long, default_value = "")]
    subject: String,
    /// The wedding it belongs to.
    #[arg(long, default_value = "")]
    wedding: String,
}

impl Publish {
    pub(crate) async fn run(self) -> Result<ExitCode> {
        let event = Event {
            id: self.id,
            r#type: self.type_,
            source: "wedsync publish".into(),
            subject: self.subject,
            metadata: Some(Metadata { wedding_id: self.wedding, ..Default::default() }),
            payload: Some(Payload::Content(Content { content_type: String::new(), data: self.data.into() })),
            ..Default::default()
        };
        let mut events = EventServiceClient::new(self.system.router().await?);
        let receipt =
            events.publish(PublishRequest { event: Some(event) }).await?.into_inner().receipt.unwrap_or_default();
        let position = receipt.position.clone().unwrap_or_default().sequence;
        let known = if receipt.duplicate { " (a duplicate: this is the original's)" } else { "" };
        say(&format!(
            "event {} is durable at position {position}, priority {}{known}",
            receipt.id,
            priority(receipt.priority())
        ));
        Ok(ExitCode::SUCCESS)
    }
}

/// List webhook endpoints, or make one.
#[derive(Args)]
pub(crate) struct Endpoints {
    #[command(flatten)]
    system: System,
    /// How many.
    #[arg(long, default_value_t = 500, value_parser = at_least_one())]
    limit: u32,
    #[command(subcommand)]
    action: Option<EndpointAction>,
}

#[derive(Subcommand)]
enum EndpointAction {
    /// Make an endpoint; its secret is shown this once.
    Add {
        /// Where webhooks go.
        url: String,
        /// Exact, `table.*`, or `*`; may be given several times.
        #[arg(long = "type", default_value = "*")]
        types: Vec<String>,
    },
}

impl Endpoints {
    pub(crate) async fn run(self) -> Result<ExitCode> {
        let mut endpoints = EndpointServiceClient::new(self.system.vendor_sync().await?);
        if let Some(EndpointAction::Add { url, types }) = self.action {
            let endpoint = Endpoint { url, event_types: types, ..Default::default() };
            let made =
                endpoints.create_endpoint(CreateEndpointRequest { endpoint: Some(endpoint) }).await?.into_inner();
            say(&format!("endpoint {}\nsecret   {}", made.endpoint.unwrap_or_default().id, made.secret));
            return Ok(ExitCode::SUCCESS);
        }
        let listed = list(self.limit, async |page_size, page_token| {
            let request = ListEndpointsRequest { page_size, page_token, ..Default::default() };
            let page = endpoints.list_endpoints(request).await?.into_inner();
            Ok((page.endpoints, page.next_page_token))
        })
        .await?;
        let row = |endpoint: Endpoint| {
            let breaker = endpoint.breaker();
            vec![
                endpoint.id.clone(),
                endpoint.url.clone(),
                endpoint.event_types.join(", "),
                endpoint_state(endpoint.state()).to_owned(),
                breaker_state(breaker).to_owned(),
                endpoint.state_reason,
            ]
        };
        listed.show(&["endpoint", "url", "types", "state", "breaker", "why"], row);
        Ok(ExitCode::SUCCESS)
    }
}

/// List deliveries, show the attempts of one, or send one again.
#[derive(Args)]
pub(crate) struct Deliveries {
    #[command(flatten)]
    system: System,
    /// Only of this event, by id.
    #[arg(long, default_value = "")]
    event: String,
    /// How many, newest first.
    #[arg(long, default_value_t = 20, value_parser = at_least_one())]
    limit: u32,
    #[command(subcommand)]
    action: Option<DeliveryAction>,
}

#[derive(Subcommand)]
enum DeliveryAction {
    /// Every attempt of one delivery.
    Show {
        /// Its id.
        delivery: String,
    },
    /// Send one again: the same webhook-id, a new attempt.
    Resend {
        /// Its id.
        delivery: String,
    },
}

impl Deliveries {
    pub(crate) async fn run(self) -> Result<ExitCode> {
        let mut deliveries = DeliveryServiceClient::new(self.system.vendor_sync().await?);
        match self.action {
            None => {
                let listed = list(self.limit, async |page_size, page_token| {
                    let event_id = self.event.clone();
                    let request = ListDeliveriesRequest { page_size, page_token, event_id, ..Default::default() };
                    let page = deliveries.list_deliveries(request).await?.into_inner();
                    Ok((page.deliveries, page.next_page_token))
                })
                .await?;
                let heading = ["delivery", "event", "type", "endpoint", "state", "attempts", "status", "at", "why"];
                listed.show(&heading, delivery_row);
            }
            Some(DeliveryAction::Show { delivery }) => {
                let attempts = deliveries
                    .list_attempts(ListAttemptsRequest { delivery_id: delivery })
                    .await?
                    .into_inner()
                    .attempts;
                let rows = attempts.into_iter().map(|attempt| {
                    let took =
                        attempt.duration.map_or(0.0, |took| took.seconds as f64 * 1e3 + f64::from(took.nanos) / 1e6);
                    vec![
                        attempt.number.to_string(),
                        time(attempt.started_at),
                        format!("{took:.1} ms"),
                        attempt.status_code.to_string(),
                        attempt.outcome,
                        attempt.error,
                        beginning(&attempt.response),
                    ]
                });
                show(&["attempt", "started", "took", "status", "outcome", "error", "answer"], rows);
            }
            Some(DeliveryAction::Resend { delivery }) => {
                let Some(resent) =
                    deliveries.resend_delivery(ResendDeliveryRequest { id: delivery }).await?.into_inner().delivery
                else {
                    bail!("the answer names no delivery")
                };
                say(&format!("delivery {} waits to be sent again", resent.id));
            }
        }
        Ok(ExitCode::SUCCESS)
    }
}

fn delivery_row(delivery: Delivery) -> Vec<String> {
    let state = delivery.state();
    vec![
        delivery.id,
        delivery.event_id,
        delivery.event_type,
        delivery.endpoint_id,
        state_name(state).to_owned(),
        delivery.attempts.to_string(),
        delivery.last_status_code.to_string(),
        time(delivery.finished_at.or(delivery.next_attempt_at)),
        delivery.reason,
    ]
}

/// What an answer begins with, in one line.
fn beginning(answer: &[u8]) -> String {
    let text = String::from_utf8_lossy(answer);
    text.chars().map(|c| if c.is_control() { ' ' } else { c }).take(ANSWER_CHARS).collect()
}

/// A time for a table, in UTC.
pub(crate) fn time(at: Option<prost_types::Timestamp>) -> String {
    let at = at.and_then(|at| Timestamp::new(at.seconds, at.nanos).ok());
    at.map(|at| at.strftime("%Y-%m-%d %H:%M:%S%.3fZ").to_string()).unwrap_or_default()
}

fn priority(priority: Priority) -> &'static str {
    match priority {
        Priority::Unspecified => "unknown",
        Priority::Critical => "CRITICAL",
        Priority::High => "HIGH",
        Priority::Normal => "NORMAL",
        Priority::Low => "LOW",
    }
}

fn state_name(state: DeliveryState) -> &'static str {
    match state {
        DeliveryState::Unspecified => "?",
        DeliveryState::Waiting => "waiting",
        DeliveryState::Sending => "sending",
        DeliveryState::Delivered => "delivered",
        DeliveryState::Dead => "dead",
        DeliveryState::Cancelled => "cancelled",
        DeliveryState::Blocked => "blocked",
        DeliveryState::Unknown => "unknown",
    }
}

fn endpoint_state(state: EndpointState) -> &'static str {
    match state {
        EndpointState::Unspecified => "?",
        EndpointState::Active => "active",
        EndpointState::Paused => "paused",
        EndpointState::Disabled => "disabled",
    }
}

pub(crate) fn breaker_state(state: BreakerState) -> &'static str {
    match state {
        BreakerState::Unspecified => "",
        BreakerState::Closed => "closed",
        BreakerState::Open => "open",
        BreakerState::HalfOpen => "half open",
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_delivery_is_shown_with_ids_that_other_commands_take() {
        let id = "0190b6f0-0000-7000-8000-b302099a8057".to_owned();
        let row = delivery_row(Delivery { event_id: id.clone(), endpoint_id: id.clone(), ..Delivery::default() });
        assert_eq!((&row[1], &row[3]), (&id, &id));
    }
}
