//! Whether one server can do its work: per gRPC service, and as a whole (`""`), by the gRPC health checking protocol
//! (github.com/grpc/grpc/blob/master/doc/health-checking.md).
//!
//! Parts that a service depends on (its store, a peer) are registered the same way under a name of their own: the
//! whole serves if every part does. Once draining begins nothing serves, whatever is reported afterwards.

use std::{collections::BTreeMap, pin::Pin, sync::Arc};

use futures_util::{Stream, StreamExt as _, future, stream};
use tokio::sync::watch;
use tokio_stream::wrappers::WatchStream;
use tonic::{Request, Response, Status};
use tonic_health::pb::{
    HealthCheckRequest, HealthCheckResponse, health_check_response::ServingStatus, health_server,
    health_server::HealthServer,
};

/// The health of one server. Cheap to clone.
#[derive(Debug, Clone, Default)]
pub struct Health {
    state: Arc<watch::Sender<State>>,
}

#[derive(Debug, Clone, Default)]
struct State {
    draining: bool,
    parts: BTreeMap<String, bool>,
}

impl Health {
    /// Reports a gRPC service, or something that this server depends on.
    pub fn set_serving(&self, service: &str, serving: bool) {
        self.state.send_modify(|state| {
            state.parts.insert(service.to_owned(), serving);
        });
    }

    /// Everything stops serving, for good.
    pub fn drain(&self) {
        self.state.send_modify(|state| state.draining = true);
    }

    /// Whether this server should be sent requests.
    ///
    /// # Errors
    /// Why not: the names of what isn't serving, or that it is draining.
    pub fn ready(&self) -> Result<(), Vec<String>> {
        let state = self.state.borrow();
        let parts =
            state.parts.iter().filter(|(_, serving)| !**serving).map(|(name, _)| format!("{name} is not serving"));
        let reasons: Vec<_> = state.draining.then(|| "draining".to_owned()).into_iter().chain(parts).collect();
        if reasons.is_empty() { Ok(()) } else { Err(reasons) }
    }

    pub(crate) fn server(&self) -> HealthServer<Self> {
        HealthServer::new(self.clone())
    }
}

impl State {
    fn of(&self, service: &str) -> ServingStatus {
        let serving = match self.parts.get(service) {
            Some(serving) => *serving,
            None if service.is_empty() => self.parts.values().all(|serving| *serving),
            None => return ServingStatus::ServiceUnknown,
        };
        if serving && !self.draining { ServingStatus::Serving } else { ServingStatus::NotServing }
    }
}

#[tonic::async_trait]
impl health_server::Health for Health {
    type WatchStream = Pin<Box<dyn Stream<Item = Result<HealthCheckResponse, Status>> + Send>>;

    async fn check(&self, request: Request<HealthCheckRequest>) -> Result<Response<HealthCheckResponse>, Status> {
        let status = self.state.borrow().of(&request.get_ref().service);
        if status == ServingStatus::ServiceUnknown {
            return Err(Status::not_found("service not found"));
        }
        Ok(Response::new(HealthCheckResponse { status: status.into() }))
    }

    async fn watch(&self, request: Request<HealthCheckRequest>) -> Result<Response<Self::WatchStream>, Status> {
        let service = request.into_inner().service;
        let statuses = WatchStream::new(self.state.subscribe()).map(move |state| state.of(&service));
        let changes = statuses.scan(None, |last, status| {
            let changed = last.replace(status) != Some(status);
            future::ready(Some(changed.then_some(status)))
        });
        let answers = changes.flat_map(stream::iter).map(|status| Ok(HealthCheckResponse { status: status.into() }));
        Ok(Response::new(Box::pin(answers)))
    }
}

#[cfg(test)]
mod tests {
    use health_server::Health as _;

    use super::*;

    async fn check(health: &Health, service: &str) -> Result<i32, tonic::Code> {
        let request = Request::new(HealthCheckRequest { service: service.to_owned() });
        health.check(request).await.map(|answer| answer.into_inner().status).map_err(|status| status.code())
    }

    #[tokio::test]
    async fn the_whole_serves_only_while_every_part_does() {
        let health = Health::default();
        health.set_serving("wedsync.router.v1.EventService", true);
        health.set_serving("store", false);
        assert_eq!(check(&health, "").await, Ok(ServingStatus::NotServing.into()));
        assert_eq!(check(&health, "wedsync.router.v1.EventService").await, Ok(ServingStatus::Serving.into()));
        assert_eq!(health.ready(), Err(vec!["store is not serving".to_owned()]));
        health.set_serving("store", true);
        assert_eq!(check(&health, "").await, Ok(ServingStatus::Serving.into()));
        assert_eq!(health.ready(), Ok(()));
        assert_eq!(check(&health, "nobody").await, Err(tonic::Code::NotFound));
    }

    #[tokio::test]
    async fn draining_is_final_and_watchers_hear_of_each_change_once() {
        let health = Health::default();
        health.set_serving("store", true);
        let request = Request::new(HealthCheckRequest::default());
        let mut watched = health.watch(request).await.expect("a stream").into_inner();
        let first = watched.next().await.expect("the status now").expect("no error");
        assert_eq!(first.status(), ServingStatus::Serving);
        health.set_serving("peer", true);
        health.drain();
        health.set_serving("store", true);
        let next = watched.next().await.expect("the change").expect("no error");
        assert_eq!(next.status(), ServingStatus::NotServing);
        assert_eq!(health.ready(), Err(vec!["draining".to_owned()]));
    }
}
