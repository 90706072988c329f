//! `GET /integrations/health`: how the services stand, and the webhook endpoints and integrations of the caller's
//! organization. Holds no URL and no payload: only ids, states and counts.

use axum::{
    Json,
    extract::{Query, State, rejection::QueryRejection},
};
use chassis::grpc::Connection;
use futures_util::{StreamExt as _, TryStreamExt as _, stream};
use jiff::Timestamp;
use proto::vendorsync::v1::{
    BreakerState, Endpoint, EndpointState, GetEndpointStatisticsRequest, GetEndpointStatisticsResponse,
    ListEndpointsRequest, ListIntegrationHealthRequest, endpoint_service_client::EndpointServiceClient,
    integration_health_service_client::IntegrationHealthServiceClient,
};
use serde::Serialize;

use crate::{
    Gateway,
    delivery_status::page_size,
    integration_health::{self, IntegrationHealth},
    key::ApiKey,
    problem::Problem,
    wire,
};

/// Above this share of failed attempts an endpoint needs somebody's attention.
const ERROR_RATE: f64 = 0.01;
/// Endpoints that are asked about at a time.
const AT_ONCE: usize = 8;

#[derive(Debug, Serialize)]
pub(crate) struct Report {
    status: Status,
    services: Vec<Service>,
    /// Of all attempts of these endpoints in the last 24 hours.
    error_rate: f64,
    backlog: u64,
    last_success_at: Option<Timestamp>,
    endpoints: Vec<EndpointHealth>,
    next_page_token: Option<String>,
    integrations: Vec<IntegrationHealth>,
    next_integration_page_token: Option<String>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub(crate) enum Status {
    Healthy,
    Degraded,
}

impl Status {
    pub(crate) fn of(healthy: bool) -> Self {
        if healthy { Self::Healthy } else { Self::Degraded }
    }
}

#[derive(Debug, Serialize)]
struct Service {
    name: &'static str,
    serving: bool,
}

#[derive(Debug, Serialize)]
struct EndpointHealth {
    id: String,
    description: Option<String>,
    status: Status,
    state: String,
    state_reason: Option<String>,
    breaker: String,
    backlog: u64,
    oldest_waiting_at: Option<Timestamp>,
    dead: u64,
    attempts: u64,
    failed_attempts: u64,
    error_rate: f64,
    last_success_at: Option<Timestamp>,
    latency_p50_ms: Option<f64>,
    latency_p99_ms: Option<f64>,
}

/// Asks vendor-sync in the caller's name about a page of endpoints.
pub(crate) async fn report(
    State(gateway): State<Gateway>,
    key: ApiKey,
    query: Result<Query<Vec<(String, String)>>, QueryRejection>,
) -> Result<Json<Report>, Problem> {
    let Query(query) = query.map_err(|_| Problem::invalid("", "the query can't be read"))?;
    let (of_endpoints, of_integrations) = parse(query)?;
    let mut client = EndpointServiceClient::new(key.calls(&gateway.peers.vendor_sync)?);
    let page = client.list_endpoints(of_endpoints).await?.into_inner();
    let asked = page.endpoints.into_iter().map(|endpoint| examine(client.clone(), endpoint));
    let endpoints = stream::iter(asked).buffered(AT_ONCE).try_filter_map(async |found| Ok(found)).try_collect().await?;
    let mut client = IntegrationHealthServiceClient::new(key.calls(&gateway.peers.vendor_sync)?);
    let listed = client.list_integration_health(of_integrations).await?.into_inner();
    let integrations = listed.health.into_iter().map(integration_health::judge).collect();
    let services = gateway.peers.states().map(|(name, serving)| Service { name, serving }).collect();
    let mut report = sum_up(services, endpoints, integrations);
    report.next_page_token = wire::text(page.next_page_token);
    report.next_integration_page_token = wire::text(listed.next_page_token);
    Ok(Json(report))
}

/// One size for both lists; each has a token of its own.
fn parse(query: Vec<(String, String)>) -> Result<(ListEndpointsRequest, ListIntegrationHealthRequest), Problem> {
    let (mut endpoints, mut integrations) = (ListEndpointsRequest::default(), ListIntegrationHealthRequest::default());
    for (name, value) in query {
        match name.as_str() {
            "page_token" => endpoints.page_token = value,
            "integration_page_token" => integrations.page_token = value,
            "page_size" => {
                endpoints.page_size = page_size(&value)?;
                integrations.page_size = endpoints.page_size;
            }
            _ => return Err(Problem::invalid(name, "is no parameter of this path")),
        }
    }
    Ok((endpoints, integrations))
}

/// Nothing for an endpoint that was deleted since it was listed.
async fn examine(
    mut client: EndpointServiceClient<Connection>,
    endpoint: Endpoint,
) -> Result<Option<EndpointHealth>, Problem> {
    let request = GetEndpointStatisticsRequest { id: endpoint.id.clone(), since: None };
    match client.get_endpoint_statistics(request).await {
        Ok(statistics) => Ok(Some(judge(endpoint, statistics.into_inner()))),
        Err(status) if status.code() == tonic::Code::NotFound => Ok(None),
        Err(status) => Err(status.into()),
    }
}

fn judge(endpoint: Endpoint, statistics: GetEndpointStatisticsResponse) -> EndpointHealth {
    let (state, breaker) = (endpoint.state(), endpoint.breaker());
    let error_rate = rate(statistics.failed_attempts, statistics.attempts);
    let at_work = state != EndpointState::Disabled && !matches!(breaker, BreakerState::Open | BreakerState::HalfOpen);
    EndpointHealth {
        status: Status::of(at_work && error_rate <= ERROR_RATE),
        id: endpoint.id,
        description: wire::text(endpoint.description),
        state: wire::name(state.as_str_name(), "ENDPOINT_STATE_"),
        state_reason: wire::text(endpoint.state_reason),
        breaker: wire::name(breaker.as_str_name(), "BREAKER_STATE_"),
        backlog: statistics.waiting,
        oldest_waiting_at: wire::time(statistics.oldest_waiting_at),
        dead: statistics.dead,
        attempts: statistics.attempts,
        failed_attempts: statistics.failed_attempts,
        error_rate,
        last_success_at: wire::time(statistics.last_success_at),
        latency_p50_ms: wire::millis(statistics.latency_p50),
        latency_p99_ms: wire::millis(statistics.latency_p99),
    }
}

fn sum_up(services: Vec<Service>, endpoints: Vec<EndpointHealth>, integrations: Vec<IntegrationHealth>) -> Report {
    let sum = |of: fn(&EndpointHealth) -> u64| endpoints.iter().map(of).fold(0, u64::saturating_add);
    let healthy = endpoints.iter().all(|endpoint| endpoint.status == Status::Healthy)
        && integrations.iter().all(|integration| integration.status == Status::Healthy);
    Report {
        status: Status::of(healthy && services.iter().all(|service| service.serving)),
        error_rate: rate(sum(|endpoint| endpoint.failed_attempts), sum(|endpoint| endpoint.attempts)),
        backlog: sum(|endpoint| endpoint.backlog),
        last_success_at: endpoints.iter().filter_map(|endpoint| endpoint.last_success_at).max(),
        services,
        endpoints,
        next_page_token: None,
        integrations,
        next_integration_page_token: None,
    }
}

pub(crate) fn rate(failed: u64, attempts: u64) -> f64 {
    if attempts == 0 { 0.0 } else { failed as f64 / attempts as f64 }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn endpoint(state: EndpointState, breaker: BreakerState, attempts: u64, failed_attempts: u64) -> EndpointHealth {
        let endpoint = Endpoint { state: state.into(), breaker: breaker.into(), ..Default::default() };
        judge(endpoint, GetEndpointStatisticsResponse { attempts, failed_attempts, ..Default::default() })
    }

    #[test]
    fn an_endpoint_is_degraded_above_one_percent_of_errors_or_when_it_is_held_back() {
        let status = |state, breaker, attempts, failed| endpoint(state, breaker, attempts, failed).status;
        let (active, closed) = (EndpointState::Active, BreakerState::Closed);
        assert_eq!(status(active, closed, 0, 0), Status::Healthy);
        assert_eq!(status(active, closed, 100, 1), Status::Healthy);
        assert_eq!(status(active, closed, 100, 2), Status::Degraded);
        assert_eq!(status(active, BreakerState::Open, 0, 0), Status::Degraded);
        assert_eq!(status(EndpointState::Disabled, closed, 0, 0), Status::Degraded);
        assert_eq!(status(EndpointState::Paused, closed, 0, 0), Status::Healthy, "its owner's wish is no failure");
    }

    #[test]
    fn one_part_that_fails_degrades_the_whole() {
        let healthy = || endpoint(EndpointState::Active, BreakerState::Closed, 10, 0);
        let failing = || endpoint(EndpointState::Active, BreakerState::Closed, 10, 10);
        let service = |serving| vec![Service { name: "router", serving }];
        assert_eq!(sum_up(service(true), vec![healthy()], Vec::new()).status, Status::Healthy);
        assert_eq!(sum_up(service(false), vec![healthy()], Vec::new()).status, Status::Degraded);
        let mixed = sum_up(service(true), vec![healthy(), failing()], Vec::new());
        assert_eq!((mixed.status, mixed.error_rate), (Status::Degraded, 0.5));
    }
}
