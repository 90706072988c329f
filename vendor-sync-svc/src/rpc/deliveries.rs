//! `DeliveryService`.

use std::time::Duration;

use chassis::{
    auth::caller,
    clock::from_micros,
    error::{Error, Result},
    id::{self, OrganizationId},
    lane::{
        State,
        rows::{self, AttemptRecord, Filter, Record},
    },
};
use proto::vendorsync::v1::{self as wire, DeliveryState, delivery_service_server::DeliveryService};
use tonic::{Request, Response, Status};

use super::wire::{page_size, print_duration, print_timestamp, timestamp};
use crate::{
    body::webhook_id,
    replay::{Range, Replays, Target},
};

pub(crate) struct DeliveryRpc {
    pub(crate) replays: Replays,
}

type Answer<T> = Result<Response<T>, Status>;

#[tonic::async_trait]
impl DeliveryService for DeliveryRpc {
    async fn list_deliveries(
        &self,
        request: Request<wire::ListDeliveriesRequest>,
    ) -> Answer<wire::ListDeliveriesResponse> {
        let caller = caller(&request)?;
        let request = request.into_inner();
        let organization = caller.organization(&request.organization_id)?;
        let (limit, event) = (page_size(request.page_size)?, request.event_id.clone());
        let filter = filter(request)?;
        let mut records = rows::list(&self.replays.endpoints.store, &organization, &filter, limit).await?;
        // An idempotency key can look like a uid.
        if records.is_empty() && filter.event.is_some() {
            let by_key = Filter { event: None, event_id: Some(event), ..filter };
            records = rows::list(&self.replays.endpoints.store, &organization, &by_key, limit).await?;
        }
        let more = records.len() == limit as usize;
        let next_page_token = records.last().filter(|_| more).map_or_else(String::new, |record| record.id.to_string());
        let deliveries = records.iter().map(print).collect();
        Ok(Response::new(wire::ListDeliveriesResponse { deliveries, next_page_token }))
    }

    async fn get_delivery(&self, request: Request<wire::GetDeliveryRequest>) -> Answer<wire::GetDeliveryResponse> {
        let organization = organization(&request)?;
        let record =
            rows::get(&self.replays.endpoints.store, &organization, delivery_id(&request.get_ref().id)?).await?;
        Ok(Response::new(wire::GetDeliveryResponse { delivery: Some(print(&record)) }))
    }

    async fn list_attempts(&self, request: Request<wire::ListAttemptsRequest>) -> Answer<wire::ListAttemptsResponse> {
        let organization = organization(&request)?;
        let (id, endpoints) = (delivery_id(&request.get_ref().delivery_id)?, &self.replays.endpoints);
        let attempts = rows::attempts(&endpoints.store, &endpoints.keys, &organization, id).await?;
        Ok(Response::new(wire::ListAttemptsResponse { attempts: attempts.into_iter().map(print_attempt).collect() }))
    }

    async fn resend_delivery(
        &self,
        request: Request<wire::ResendDeliveryRequest>,
    ) -> Answer<wire::ResendDeliveryResponse> {
        let organization = organization(&request)?;
        let record = self.replays.resend(&organization, delivery_id(&request.get_ref().id)?).await?;
        Ok(Response::new(wire::ResendDeliveryResponse { delivery: Some(print(&record)) }))
    }

    async fn replay_deliveries(
        &self,
        request: Request<wire::ReplayDeliveriesRequest>,
    ) -> Answer<wire::ReplayDeliveriesResponse> {
        let target = self.find(&request, &request.get_ref().endpoint_id)?;
        let request = request.into_inner();
        let since = timestamp("since", request.since.ok_or_else(|| Error::invalid("since", "must be given"))?)?;
        let until = request.until.map(|until| timestamp("until", until)).transpose()?;
        let deliveries = self.replays.replay(target, Range { since, until }, request.dry_run).await?;
        Ok(Response::new(wire::ReplayDeliveriesResponse { deliveries }))
    }

    async fn recover_deliveries(
        &self,
        request: Request<wire::RecoverDeliveriesRequest>,
    ) -> Answer<wire::RecoverDeliveriesResponse> {
        let target = self.find(&request, &request.get_ref().endpoint_id)?;
        let request = request.into_inner();
        let since = timestamp("since", request.since.ok_or_else(|| Error::invalid("since", "must be given"))?)?;
        let deliveries = self.replays.recover(&target, since, request.dry_run).await?;
        Ok(Response::new(wire::RecoverDeliveriesResponse { deliveries }))
    }
}

impl DeliveryRpc {
    /// The caller's own endpoint or integration.
    fn find<T>(&self, request: &Request<T>, id: &str) -> Result<Target> {
        self.replays.target(&organization(request)?, id)
    }
}

fn organization<T>(request: &Request<T>) -> Result<OrganizationId> {
    caller(request)?.organization("")
}

/// What isn't a number is nobody's delivery.
fn delivery_id(text: &str) -> Result<i64> {
    text.parse().map_err(|_| Error::NotFound("delivery".into()))
}

fn filter(request: wire::ListDeliveriesRequest) -> Result<Filter> {
    let given = |text: String| (!text.is_empty()).then_some(text);
    let before = given(request.page_token.clone()).map(|token| token.parse());
    let before = before.transpose().map_err(|_| Error::invalid("page_token", "must be from the previous answer"))?;
    let states = request.states().map(state).collect::<Result<_>>()?;
    let event = id::parse_uuid(&request.event_id);
    Ok(Filter {
        lane_id: given(request.endpoint_id),
        states,
        event_id: given(request.event_id).filter(|_| event.is_none()),
        event,
        since: request.since.map(|time| timestamp("since", time)).transpose()?.map(|time| time.as_microsecond()),
        until: request.until.map(|time| timestamp("until", time)).transpose()?.map(|time| time.as_microsecond()),
        before,
    })
}

const STATES: [(State, DeliveryState); 7] = [
    (State::Waiting, DeliveryState::Waiting),
    (State::Sending, DeliveryState::Sending),
    (State::Blocked, DeliveryState::Blocked),
    (State::Delivered, DeliveryState::Delivered),
    (State::Dead, DeliveryState::Dead),
    (State::Cancelled, DeliveryState::Cancelled),
    (State::Unknown, DeliveryState::Unknown),
];

fn state(wanted: DeliveryState) -> Result<State> {
    let found = STATES.iter().find(|(_, wire)| *wire == wanted);
    found.map(|(state, _)| *state).ok_or_else(|| Error::invalid("states", "must be states of a delivery"))
}

fn print_state(number: i64) -> i32 {
    let found = STATES.iter().find(|(state, _)| *state as i64 == number);
    found.map_or(DeliveryState::Unspecified, |(_, wire)| *wire).into()
}

fn print(record: &Record) -> wire::Delivery {
    let uid = <[u8; 16]>::try_from(record.event.as_slice()).unwrap_or_default();
    let time = |micros: i64| print_timestamp(from_micros(micros));
    let state = State::from_number(record.state);
    wire::Delivery {
        id: record.id.to_string(),
        endpoint_id: record.lane_id.clone(),
        event_id: record.event_id.clone(),
        event_uid: id::uuid_text(uid),
        event_type: record.event_type.clone(),
        state: print_state(record.state),
        priority: i32::try_from(record.priority).unwrap_or_default(),
        ordering_key: record.ordering_key.clone(),
        attempts: u32::try_from(record.attempts).unwrap_or(u32::MAX),
        created_at: Some(time(record.created_at)),
        next_attempt_at: (state == Some(State::Waiting)).then(|| time(record.next_at)),
        finished_at: record.finished_at.map(time),
        reason: record.reason.clone(),
        webhook_id: webhook_id(uid),
        last_status_code: record.status_code.and_then(|code| i32::try_from(code).ok()).unwrap_or(0),
    }
}

fn print_attempt(attempt: AttemptRecord) -> wire::Attempt {
    let duration = Duration::from_micros(u64::try_from(attempt.duration).unwrap_or(0));
    wire::Attempt {
        number: u32::try_from(attempt.number).unwrap_or(u32::MAX),
        started_at: Some(print_timestamp(from_micros(attempt.started_at))),
        duration: Some(print_duration(duration)),
        status_code: attempt.status_code.and_then(|code| i32::try_from(code).ok()).unwrap_or(0),
        outcome: attempt.outcome,
        error: attempt.error,
        response: attempt.response.into(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_state_survives_the_wire() {
        for state in State::ALL {
            let printed = DeliveryState::try_from(print_state(state as i64)).expect("a state of the wire");
            assert_eq!(super::state(printed).expect("it reads back"), state);
        }
        assert!(super::state(DeliveryState::Unspecified).is_err());
    }
}
