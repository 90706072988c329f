//! `IntegrationHealthService`: parsed, handed to `health/view.rs`, printed.

use std::pin::Pin;

use chassis::{auth, error::Result, lane::breaker, tasks::Tasks};
use futures_util::{Stream, StreamExt as _};
use proto::vendorsync::v1::{self as wire, integration_health_service_server::IntegrationHealthService};
use tokio_stream::wrappers::ReceiverStream;
use tonic::{Request, Response, Status};

use super::{
    streams::Streams,
    wire::{page_size, print_timestamp},
};
use crate::{
    credential::State,
    health::{
        Standing,
        view::{Shown, View},
    },
};

/// Streams that are open at a time, of all organizations and of one.
const STREAMS: usize = 1_000;
const SHARE: usize = 125;

/// Health over gRPC.
pub(crate) struct Service {
    view: View,
    tasks: Tasks,
    draining: tokio_util::sync::CancellationToken,
    streams: Streams,
}

impl Service {
    pub(crate) fn new(view: View, tasks: Tasks, draining: tokio_util::sync::CancellationToken) -> Self {
        Self { view, tasks, draining, streams: Streams::new(STREAMS, SHARE) }
    }
}

type Watched = Pin<Box<dyn Stream<Item = Result<wire::WatchIntegrationHealthResponse, Status>> + Send>>;

#[tonic::async_trait]
impl IntegrationHealthService for Service {
    type WatchIntegrationHealthStream = Watched;

    async fn get_integration_health(
        &self,
        request: Request<wire::GetIntegrationHealthRequest>,
    ) -> Result<Response<wire::GetIntegrationHealthResponse>, Status> {
        let organization = auth::caller(&request)?.organization("")?;
        let integration = self.view.integrations.get(&organization, &request.get_ref().id).await?;
        let health = Some(print(self.view.of(integration).await?));
        Ok(Response::new(wire::GetIntegrationHealthResponse { health }))
    }

    async fn list_integration_health(
        &self,
        request: Request<wire::ListIntegrationHealthRequest>,
    ) -> Result<Response<wire::ListIntegrationHealthResponse>, Status> {
        let organization = auth::caller(&request)?.organization("")?;
        let request = request.into_inner();
        let size = page_size(request.page_size)?;
        super::integrations::check_page_token(&request.page_token)?;
        let mut page = self.view.list(&organization, &request.page_token, i64::from(size) + 1).await?;
        let more = page.len() > size as usize;
        page.truncate(size as usize);
        let next_page_token = page.last().filter(|_| more).map(|last| last.integration.id.clone()).unwrap_or_default();
        let health = page.into_iter().map(print).collect();
        Ok(Response::new(wire::ListIntegrationHealthResponse { health, next_page_token }))
    }

    async fn watch_integration_health(
        &self,
        request: Request<wire::WatchIntegrationHealthRequest>,
    ) -> Result<Response<Watched>, Status> {
        let organization = auth::caller(&request)?.organization("")?;
        let id = request.into_inner().id;
        if !id.is_empty() {
            self.view.integrations.get(&organization, &id).await?;
        }
        let place = self.streams.place(&organization)?;
        let (shown, work) = self.view.clone().watch(organization, id);
        let draining = self.draining.clone();
        self.tasks.spawn("health.watch", async move {
            let _place = place;
            draining.run_until_cancelled(work).await;
        });
        let stream = ReceiverStream::new(shown).map(|shown| {
            let health = Some(print(shown?));
            Ok(wire::WatchIntegrationHealthResponse { health })
        });
        Ok(Response::new(stream.boxed()))
    }
}

fn print(shown: Shown) -> wire::IntegrationHealth {
    let time = |time: Option<jiff::Timestamp>| time.map(print_timestamp);
    let (connection, state) = (print_connection(shown.connection), print_standing(&shown));
    wire::IntegrationHealth {
        connection: connection.into(),
        connection_reason: shown.connection_reason,
        connection_since: time(shown.connection_since),
        state: state.into(),
        state_since: time(shown.standing.map(|(_, since)| since)),
        probe_error: shown.probe_error,
        probed_at: time(shown.probed_at),
        breaker: print_breaker(shown.breaker).into(),
        backlog: shown.backlog,
        oldest_waiting_at: time(shown.oldest_waiting_at),
        attempts: shown.attempts,
        failed_attempts: shown.failed_attempts,
        last_success_at: time(shown.last_success_at),
        last_received_at: time(shown.integration.last_received_at),
        old_credential_expires_at: time(shown.old_expires_at),
        old_credential_used_at: time(shown.old_used_at),
        vendor: shown.integration.settings.vendor,
        description: shown.integration.settings.description,
        id: shown.integration.id,
    }
}

fn print_connection(state: State) -> wire::ConnectionState {
    match state {
        State::Connected => wire::ConnectionState::Connected,
        State::NeedsReconnect => wire::ConnectionState::NeedsReconnect,
        State::Disconnected => wire::ConnectionState::Disconnected,
    }
}

/// One that isn't connected has no standing.
fn print_standing(shown: &Shown) -> wire::HealthState {
    match shown.standing {
        Some((Standing::Healthy, _)) if shown.connection == State::Connected => wire::HealthState::Healthy,
        Some((Standing::Failing, _)) if shown.connection == State::Connected => wire::HealthState::Failing,
        _ => wire::HealthState::Unspecified,
    }
}

fn print_breaker(state: Option<breaker::State>) -> wire::BreakerState {
    match state {
        Some(breaker::State::Closed) => wire::BreakerState::Closed,
        Some(breaker::State::Open(_)) => wire::BreakerState::Open,
        Some(breaker::State::HalfOpen) => wire::BreakerState::HalfOpen,
        None => wire::BreakerState::Unspecified,
    }
}

#[cfg(test)]
mod tests {
    use chassis::{
        auth::{Caller, Role, Scopes},
        id::OrganizationId,
    };
    use tonic::Code;

    use super::*;
    use crate::credential::tests::{Vendor, World, on_each};

    fn as_member<T>(organization: &str, message: T) -> Request<T> {
        let organization = Some(OrganizationId::parse(organization).expect("well-formed"));
        let mut request = Request::new(message);
        let caller = Caller { organization, role: Role::Member, scopes: Scopes::all(), name: "key".to_owned() };
        request.extensions_mut().insert(caller);
        request
    }

    #[tokio::test]
    async fn another_organizations_health_is_not_found_not_listed_and_not_watched() {
        on_each(async |store, chassis, _| {
            let world = World::open(&store, &chassis, Vendor::without_oauth("http://127.0.0.1:9/")).await;
            let (mine, service) = (
                world.integration("acme").await,
                Service::new(world.view.clone(), chassis.tasks.clone(), chassis.draining()),
            );
            let get = || wire::GetIntegrationHealthRequest { id: mine.id.clone() };
            let own = service.get_integration_health(as_member("acme", get())).await.expect("its own").into_inner();
            let own = own.health.expect("it is shown");
            assert_eq!((own.id.as_str(), own.connection()), (mine.id.as_str(), wire::ConnectionState::Disconnected));
            let refused = service.get_integration_health(as_member("other", get())).await.expect_err("not theirs");
            assert_eq!(refused.code(), Code::NotFound);
            let watch = wire::WatchIntegrationHealthRequest { id: mine.id.clone() };
            let refused = service.watch_integration_health(as_member("other", watch)).await.err().expect("not theirs");
            assert_eq!(refused.code(), Code::NotFound);
            for (organization, count) in [("acme", 1), ("other", 0)] {
                let list = wire::ListIntegrationHealthRequest::default();
                let page = service.list_integration_health(as_member(organization, list)).await.expect("a page");
                assert_eq!(page.into_inner().health.len(), count, "{organization}");
            }
        })
        .await;
    }
}
