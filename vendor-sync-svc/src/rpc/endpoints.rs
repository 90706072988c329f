//! `EndpointService`.

use std::{collections::BTreeMap, sync::Arc, time::Duration};

use bytes::Bytes;
use chassis::{
    auth::caller,
    error::{Error, Result},
    id,
    lane::{State as DeliveryState, breaker, rows},
};
use jiff::SignedDuration;
use proto::vendorsync::v1::{self as wire, endpoint_service_server::EndpointService};
use tonic::{Request, Response, Status};

use super::wire::{duration, page_size, print_duration, print_timestamp, timestamp};
use crate::{
    body::{plain_letter, webhook_id},
    endpoint::{DISABLE_AFTER, Endpoint, RATE_LIMIT, REDACTED, Settings, TIMEOUT, rows::ids as endpoint_ids},
    event::{Event, Metadata, Payload, Priority},
    letter::Letter,
    manage::Endpoints,
    router::Router,
    tried::Tried,
    webhook::{Sent, Webhooks},
};

const OVERLAP: Duration = Duration::from_secs(24 * 3600);
const OVERLAP_MAX: Duration = Duration::from_secs(7 * 24 * 3600);
const STATISTICS_OF: SignedDuration = SignedDuration::from_hours(24);
/// How much of a test's answer is shown.
const SHOWN_BYTES: usize = 1_024;

pub(crate) struct EndpointRpc {
    pub(crate) endpoints: Arc<Endpoints>,
    pub(crate) webhooks: Webhooks,
    pub(crate) router: Router,
    pub(crate) tried: Tried,
}

type Answer<T> = Result<Response<T>, Status>;

#[tonic::async_trait]
impl EndpointService for EndpointRpc {
    async fn create_endpoint(
        &self,
        request: Request<wire::CreateEndpointRequest>,
    ) -> Answer<wire::CreateEndpointResponse> {
        let caller = caller(&request)?;
        let given = request.into_inner().endpoint.ok_or_else(missing)?;
        let organization = caller.organization(&given.organization_id)?;
        let mut settings = settings(given).map_err(within)?;
        settings.check().map_err(within)?;
        settings.url = self.endpoints.vet(&settings.url).await.map_err(within)?;
        let since = self.router.head().await?;
        let (endpoint, secret) = self.endpoints.create(organization, settings, since).await.map_err(within)?;
        let endpoint = Some(self.print(&endpoint).await?);
        Ok(Response::new(wire::CreateEndpointResponse { endpoint, secret: secret.expose().to_owned() }))
    }

    async fn get_endpoint(&self, request: Request<wire::GetEndpointRequest>) -> Answer<wire::GetEndpointResponse> {
        let endpoint = self.find(&request, &request.get_ref().id)?;
        Ok(Response::new(wire::GetEndpointResponse { endpoint: Some(self.print(&endpoint).await?) }))
    }

    async fn list_endpoints(
        &self,
        request: Request<wire::ListEndpointsRequest>,
    ) -> Answer<wire::ListEndpointsResponse> {
        let caller = caller(&request)?;
        let request = request.into_inner();
        let organization = caller.organization(&request.organization_id)?;
        let (limit, after) = (page_size(request.page_size)?, &request.page_token);
        if !after.is_empty() && id::parse_uuid(after).is_none() {
            return Err(Error::invalid("page_token", "must be from the previous answer").into());
        }
        let ids = endpoint_ids(&self.endpoints.store, &organization, &request.supplier_id, after, limit).await?;
        let next_page_token =
            if ids.len() == limit as usize { ids.last().cloned().unwrap_or_default() } else { String::new() };
        let mut endpoints = Vec::with_capacity(ids.len());
        for id in ids {
            // One that was deleted since its id was read is left out.
            if let Ok(endpoint) = self.endpoints.book.of(&organization, &id) {
                endpoints.push(self.print(&endpoint).await?);
            }
        }
        Ok(Response::new(wire::ListEndpointsResponse { endpoints, next_page_token }))
    }

    async fn update_endpoint(
        &self,
        request: Request<wire::UpdateEndpointRequest>,
    ) -> Answer<wire::UpdateEndpointResponse> {
        let caller = caller(&request)?;
        let given = request.into_inner().endpoint.ok_or_else(missing)?;
        let organization = caller.organization(&given.organization_id)?;
        let (id, version) = (given.id.clone(), given.version);
        let settings = settings(given).map_err(within)?;
        let endpoint = self.endpoints.update(&organization, &id, version, settings).await.map_err(within)?;
        Ok(Response::new(wire::UpdateEndpointResponse { endpoint: Some(self.print(&endpoint).await?) }))
    }

    async fn delete_endpoint(
        &self,
        request: Request<wire::DeleteEndpointRequest>,
    ) -> Answer<wire::DeleteEndpointResponse> {
        let endpoint = self.find(&request, &request.get_ref().id)?;
        let cancelled = self.endpoints.delete(&endpoint.organization, &endpoint.id).await?;
        Ok(Response::new(wire::DeleteEndpointResponse { cancelled }))
    }

    async fn pause_endpoint(
        &self,
        request: Request<wire::PauseEndpointRequest>,
    ) -> Answer<wire::PauseEndpointResponse> {
        let endpoint = self.find(&request, &request.get_ref().id)?;
        let endpoint = self.endpoints.pause(&endpoint.organization, &endpoint.id).await?;
        Ok(Response::new(wire::PauseEndpointResponse { endpoint: Some(self.print(&endpoint).await?) }))
    }

    async fn resume_endpoint(
        &self,
        request: Request<wire::ResumeEndpointRequest>,
    ) -> Answer<wire::ResumeEndpointResponse> {
        let endpoint = self.find(&request, &request.get_ref().id)?;
        let endpoint = self.endpoints.resume(&endpoint.organization, &endpoint.id).await?;
        Ok(Response::new(wire::ResumeEndpointResponse { endpoint: Some(self.print(&endpoint).await?) }))
    }

    async fn rotate_endpoint_secret(
        &self,
        request: Request<wire::RotateEndpointSecretRequest>,
    ) -> Answer<wire::RotateEndpointSecretResponse> {
        let endpoint = self.find(&request, &request.get_ref().id)?;
        let overlap = duration("overlap", request.into_inner().overlap, OVERLAP)?;
        if overlap > OVERLAP_MAX {
            return Err(Error::invalid("overlap", "must be at most 7 days").into());
        }
        let (secret, ends) = self.endpoints.rotate(&endpoint.organization, &endpoint.id, overlap).await?;
        let old_expires_at = Some(print_timestamp(ends));
        Ok(Response::new(wire::RotateEndpointSecretResponse { secret: secret.expose().to_owned(), old_expires_at }))
    }

    async fn send_test_event(
        &self,
        request: Request<wire::SendTestEventRequest>,
    ) -> Answer<wire::SendTestEventResponse> {
        let endpoint = self.find(&request, &request.get_ref().id)?;
        self.tried.admit(&endpoint.organization, self.endpoints.clock.now())?;
        let letter = self.test_letter(&endpoint)?;
        Ok(Response::new(print_test(self.webhooks.post(&endpoint, &letter, "test").await)))
    }

    async fn get_endpoint_statistics(
        &self,
        request: Request<wire::GetEndpointStatisticsRequest>,
    ) -> Answer<wire::GetEndpointStatisticsResponse> {
        let endpoint = self.find(&request, &request.get_ref().id)?;
        let day_ago = self.endpoints.clock.now() - STATISTICS_OF;
        let since = request.into_inner().since.map_or(Ok(day_ago), |since| timestamp("since", since))?;
        let statistics = rows::statistics(&self.endpoints.store, &endpoint.id, since).await?;
        Ok(Response::new(print_statistics(&statistics)))
    }
}

impl EndpointRpc {
    /// The caller's own endpoint.
    fn find<T>(&self, request: &Request<T>, id: &str) -> Result<Arc<Endpoint>> {
        self.endpoints.book.of(&caller(request)?.organization("")?, id)
    }

    /// About an event that no log holds.
    fn test_letter(&self, endpoint: &Endpoint) -> Result<Letter> {
        let now = self.endpoints.clock.now();
        let uid = id::parse_uuid(&id::uuid(now))
            .ok_or_else(|| Error::internal(anyhow::anyhow!("a UUID of ours can't be read")))?;
        let data = serde_json::json!({ "endpointId": &*endpoint.id, "text": "A test: this is how what we send you is signed." });
        let event = Event {
            organization: endpoint.organization.clone(),
            id: webhook_id(uid),
            uid,
            type_: "webhook.test".to_owned(),
            source: "vendor-sync".to_owned(),
            subject: endpoint.id.to_string(),
            time: now,
            ordering_key: String::new(),
            channels: Vec::new(),
            payload: Payload::Content { content_type: String::new(), data: Bytes::new() },
            metadata: Metadata { origin: "test".to_owned(), ..Metadata::default() },
            log_id: String::new(),
            sequence: 0,
            priority: Priority::Normal,
        };
        Ok(plain_letter(&event, &data))
    }

    async fn print(&self, endpoint: &Endpoint) -> Result<wire::Endpoint> {
        let breaker = match self.endpoints.dispatcher.breaker(&endpoint.id).await? {
            Some(breaker::State::Closed) => wire::BreakerState::Closed,
            Some(breaker::State::Open(_)) => wire::BreakerState::Open,
            Some(breaker::State::HalfOpen) => wire::BreakerState::HalfOpen,
            None => wire::BreakerState::Unspecified,
        };
        Ok(wire::Endpoint { breaker: breaker.into(), ..print(endpoint) })
    }
}

fn missing() -> Error {
    Error::invalid("endpoint", "must be given")
}

fn within(error: Error) -> Error {
    error.within("endpoint")
}

fn settings(given: wire::Endpoint) -> Result<Settings> {
    let delay = |given| duration("retry_schedule", Some(given), Duration::ZERO);
    Ok(Settings {
        supplier_id: given.supplier_id,
        url: given.url,
        event_types: given.event_types,
        condition: given.condition,
        transformation: given.transformation,
        headers: given.headers.into_iter().collect(),
        description: given.description,
        rate_limit: if given.rate_limit_per_minute == 0 { RATE_LIMIT } else { given.rate_limit_per_minute },
        ordered: given.ordered,
        timeout: duration("timeout", given.timeout, TIMEOUT)?,
        schedule: given.retry_schedule.into_iter().map(delay).collect::<Result<_>>()?,
        granted_fields: Settings::fields(given.granted_fields),
        allowed_fields: Settings::fields(given.allowed_fields),
        disable_after: duration("disable_after", given.disable_after, DISABLE_AFTER)?,
    })
}

/// All but the breaker. Custom headers can hold credentials: their values aren't shown.
fn print(endpoint: &Endpoint) -> wire::Endpoint {
    let Endpoint { settings, .. } = endpoint;
    let headers: BTreeMap<_, _> = settings.headers.keys().map(|name| (name.clone(), REDACTED.to_owned())).collect();
    wire::Endpoint {
        id: endpoint.id.to_string(),
        organization_id: endpoint.organization.to_string(),
        supplier_id: settings.supplier_id.clone(),
        url: settings.url.clone(),
        event_types: settings.event_types.clone(),
        condition: settings.condition.clone(),
        transformation: settings.transformation.clone(),
        headers: headers.into_iter().collect(),
        description: settings.description.clone(),
        rate_limit_per_minute: settings.rate_limit,
        ordered: settings.ordered,
        timeout: Some(print_duration(settings.timeout)),
        retry_schedule: settings.schedule.iter().copied().map(print_duration).collect(),
        granted_fields: settings.granted_fields.iter().cloned().collect(),
        allowed_fields: settings.allowed_fields.iter().cloned().collect(),
        disable_after: Some(print_duration(settings.disable_after)),
        state: endpoint.state as i32,
        state_reason: endpoint.state_reason.clone(),
        version: endpoint.version,
        created_at: Some(print_timestamp(endpoint.created_at)),
        updated_at: Some(print_timestamp(endpoint.updated_at)),
        breaker: wire::BreakerState::Unspecified.into(),
    }
}

fn print_test(sent: Sent) -> wire::SendTestEventResponse {
    match sent {
        Sent::Answer(answer) => {
            let delivered = answer.status.is_success();
            wire::SendTestEventResponse {
                delivered,
                status_code: answer.status.as_u16().into(),
                duration: Some(print_duration(answer.duration)),
                error: if delivered { String::new() } else { format!("the endpoint answered {}", answer.status) },
                response: answer.body.slice(..answer.body.len().min(SHOWN_BYTES)),
            }
        }
        Sent::Failure(failure) => wire::SendTestEventResponse {
            duration: Some(print_duration(failure.duration)),
            error: failure.to_string(),
            ..wire::SendTestEventResponse::default()
        },
        Sent::Unsayable(error) => wire::SendTestEventResponse { error, ..wire::SendTestEventResponse::default() },
    }
}

fn print_statistics(statistics: &rows::Statistics) -> wire::GetEndpointStatisticsResponse {
    let in_state = |wanted: DeliveryState| {
        statistics.states.iter().filter(|(state, _)| *state == wanted).map(|(_, count)| count).sum()
    };
    let time = |micros: Option<i64>| micros.map(chassis::clock::from_micros).map(print_timestamp);
    let waiting = |(priority, count): &(i64, u64)| {
        let priority = i32::try_from(*priority).unwrap_or_default();
        wire::WaitingCount { priority, count: *count }
    };
    wire::GetEndpointStatisticsResponse {
        delivered: in_state(DeliveryState::Delivered),
        waiting: statistics.waiting.iter().map(|(_, count)| count).sum(),
        dead: in_state(DeliveryState::Dead),
        cancelled: in_state(DeliveryState::Cancelled),
        attempts: statistics.attempts,
        failed_attempts: statistics.failed_attempts,
        latency_p50: Some(print_duration(statistics.latency_p50)),
        latency_p99: Some(print_duration(statistics.latency_p99)),
        last_success_at: time(statistics.last_success_at),
        oldest_waiting_at: time(statistics.oldest_waiting_at),
        waiting_by_priority: statistics.waiting.iter().map(waiting).collect(),
    }
}
