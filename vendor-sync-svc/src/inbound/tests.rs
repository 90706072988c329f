//! The way in as a whole, on each engine: a real store, and a router of a few lines behind real gRPC.

mod answers;
mod spooled;

use std::{
    collections::BTreeMap,
    sync::{Arc, Mutex},
};

use chassis::{
    auth::{Access, AccessTable},
    clock::ManualClock,
    config::Secret,
    grpc::Server,
    id::OrganizationId,
    service::Chassis,
    signature::{self, WebhookSecret},
    store::Migrations,
    testing::{manual_clock, noon, on_each_engine},
    with,
};
use proptest::prelude::*;
use proto::router::v1::{
    self as wire,
    event_service_server::{EventService, EventServiceServer},
};
use tokio_stream::Empty;
use tonic::{Response, Status, Streaming};

use super::*;
use crate::integration::{Kind, Settings, tests::settings};

pub(super) static MIGRATIONS: &[&Migrations] =
    &[&chassis::store::MIGRATIONS, &chassis::lane::MIGRATIONS, &crate::MIGRATIONS];

const ACCESS: AccessTable = &[
    ("/wedsync.router.v1.EventService/Publish", Access::Service),
    ("/wedsync.router.v1.EventService/PublishBatch", Access::Service),
    ("/wedsync.router.v1.EventService/GetEvent", Access::Service),
];
const SECRET: &str = "whsec_MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaSw";
const CLIENT: &str = r#"{"event":"client.updated","data":{"clientId":"3f2504e0-4f89-41d3-9a0c-0305e82c3301","changes":{}},"timestamp":"2026-05-01T12:00:00Z"}"#;

/// An integration that isn't stored.
pub(super) fn integration(kind: Kind) -> Integration {
    Integration {
        id: "01990000-0000-7000-8000-000000000001".to_owned(),
        organization: OrganizationId::parse("org").unwrap(),
        settings: settings(kind),
        version: 1,
        created_at: noon(),
        updated_at: noon(),
        last_received_at: None,
    }
}

/// The key of a message whose event is `e1`.
pub(super) fn key() -> Key {
    Key::of_event("e1")
}

/// A router that keeps events by id, and answers as it is told to.
#[derive(Clone, Default)]
pub(crate) struct Router {
    events: Arc<Mutex<BTreeMap<String, wire::Event>>>,
    order: Arc<Mutex<Vec<String>>>,
    refuses: Arc<Mutex<Option<Status>>>,
    tries: Arc<Mutex<usize>>,
}

impl Router {
    /// One that listens, and the way to it.
    pub(crate) async fn serve(chassis: &Chassis) -> (Self, Peer) {
        let (router, address) = Self::listen(chassis).await;
        let peer = Peer::new("vendor-sync", &address, chassis).expect("a peer");
        (router, peer)
    }

    /// One that listens, and where.
    pub(crate) async fn listen(chassis: &Chassis) -> (Self, String) {
        let router = Self::default();
        let server = Server::bind("router", "127.0.0.1:0".parse().unwrap(), chassis).await.expect("a free port");
        let running = server.access(ACCESS).add(EventServiceServer::new(router.clone())).serve();
        (router, format!("http://{}", running.address))
    }

    /// How often an event was published, known or not.
    #[cfg(feature = "fail-points")]
    pub(crate) fn tries(&self) -> usize {
        *self.tries.lock().unwrap()
    }

    pub(crate) fn refuse(&self, status: Option<Status>) {
        *self.refuses.lock().unwrap() = status;
    }

    pub(crate) fn events(&self) -> Vec<wire::Event> {
        let events = self.events.lock().unwrap();
        self.order.lock().unwrap().iter().map(|id| events[id].clone()).collect()
    }

    /// Has an event in its log.
    pub(crate) fn store(&self, event: wire::Event) -> Result<wire::Receipt, Status> {
        if let Some(status) = self.refuses.lock().unwrap().clone() {
            return Err(status);
        }
        *self.tries.lock().unwrap() += 1;
        let id = event.id.clone();
        let known = self.events.lock().unwrap().insert(id.clone(), event.clone());
        match &known {
            None => self.order.lock().unwrap().push(id.clone()),
            Some(other) if other.payload == event.payload && other.r#type == event.r#type => {}
            Some(other) => {
                self.events.lock().unwrap().insert(id, other.clone());
                return Err(Status::already_exists("same id, other content"));
            }
        }
        Ok(wire::Receipt { id, duplicate: known.is_some(), ..wire::Receipt::default() })
    }
}

fn unused<T>() -> Result<Response<T>, Status> {
    Err(Status::unimplemented("not needed here"))
}

#[tonic::async_trait]
impl EventService for Router {
    type PublishStreamStream = Empty<Result<wire::PublishStreamResponse, Status>>;

    async fn publish(
        &self,
        request: tonic::Request<wire::PublishRequest>,
    ) -> Result<Response<wire::PublishResponse>, Status> {
        let receipt = self.store(request.into_inner().event.expect("an event"))?;
        Ok(Response::new(wire::PublishResponse { receipt: Some(receipt) }))
    }

    async fn publish_batch(
        &self,
        request: tonic::Request<wire::PublishBatchRequest>,
    ) -> Result<Response<wire::PublishBatchResponse>, Status> {
        let fared = |event| match self.store(event) {
            Ok(receipt) => wire::publish_result::Result::Receipt(receipt),
            Err(status) => wire::publish_result::Result::Refusal(wire::Refusal {
                code: status.code().into(),
                message: status.message().to_owned(),
                field: "event".to_owned(),
                retryable: [tonic::Code::ResourceExhausted, tonic::Code::Unavailable].contains(&status.code()),
            }),
        };
        let events = request.into_inner().events;
        let results = events.into_iter().map(|event| wire::PublishResult { result: Some(fared(event)) }).collect();
        Ok(Response::new(wire::PublishBatchResponse { results }))
    }

    async fn publish_stream(
        &self,
        _: tonic::Request<Streaming<wire::PublishStreamRequest>>,
    ) -> Result<Response<Self::PublishStreamStream>, Status> {
        unused()
    }

    async fn get_event(
        &self,
        request: tonic::Request<wire::GetEventRequest>,
    ) -> Result<Response<wire::GetEventResponse>, Status> {
        let event = self.events().into_iter().find(|event| event.uid == request.get_ref().id);
        let event = event.ok_or_else(|| Status::not_found("event"))?;
        let logged = wire::LoggedEvent { event: Some(event), ..wire::LoggedEvent::default() };
        Ok(Response::new(wire::GetEventResponse { event: Some(logged) }))
    }

    async fn list_events(
        &self,
        _: tonic::Request<wire::ListEventsRequest>,
    ) -> Result<Response<wire::ListEventsResponse>, Status> {
        unused()
    }

    async fn replay_events(
        &self,
        _: tonic::Request<wire::ReplayEventsRequest>,
    ) -> Result<Response<wire::ReplayEventsResponse>, Status> {
        unused()
    }

    async fn get_head(
        &self,
        _: tonic::Request<wire::GetHeadRequest>,
    ) -> Result<Response<wire::GetHeadResponse>, Status> {
        unused()
    }
}

/// One process over a store, with a router beside it.
struct World {
    store: Store,
    inbound: Inbound,
    integrations: Integrations,
    router: Router,
    manual: ManualClock,
    chassis: Chassis,
}

impl World {
    async fn new(store: Store) -> Self {
        let chassis = Chassis::for_test();
        let (manual, clock) = manual_clock();
        let (router, peer) = Router::serve(&chassis).await;
        let keys = DataKeys::new(store.clone(), chassis.keyring().expect("keys"), clock.clone());
        let integrations = Integrations::new(store.clone(), keys.clone(), clock.clone());
        let inbound = Inbound::new(integrations.clone(), &store, &keys, &peer, clock);
        Self { store, inbound, integrations, router, manual, chassis }
    }

    async fn create(&self, kind: Kind, change: impl FnOnce(&mut Settings)) -> Integration {
        let mut settings = settings(kind);
        change(&mut settings);
        let organization = OrganizationId::parse("org").unwrap();
        let secret = Secret::from(SECRET.to_owned());
        self.integrations.create(organization, settings.check().expect("they hold"), &secret).await.expect("created")
    }

    async fn receive(&self, integration: &Integration, headers: &[(&str, &str)], body: &str) -> Answer {
        self.inbound.receive(&request(integration, headers, body)).await
    }

    /// With the hex signature.
    async fn send(&self, integration: &Integration, body: &str) -> Answer {
        self.receive(integration, &[("x-wedsync-signature", &hex(body))], body).await
    }

    /// With Standard Webhooks headers.
    async fn send_as(&self, integration: &Integration, id: &str, body: &str) -> Answer {
        let at = self.inbound.clock.now().as_second();
        let signature = signature::sign(id, at, body.as_bytes(), &[WebhookSecret::parse(SECRET).unwrap()]);
        let headers = [("webhook-id", id), ("webhook-timestamp", &at.to_string()), ("webhook-signature", &signature)];
        self.receive(integration, &headers, body).await
    }

    async fn spool(&self, integration: &Integration, id: usize) -> Answer {
        let body =
            format!(r#"{{"type":"INSERT","table":"t","schema":"public","record":{{"id":{id}}},"old_record":null}}"#);
        self.receive(integration, &[("x-wedsync-secret", SECRET)], &body).await
    }

    async fn waiting(&self) -> i64 {
        with!(self.store.reader(), c => sqlx::query_scalar("SELECT COUNT(*) FROM inbound_spool WHERE refused = ''").fetch_one(c).await)
            .expect("counted")
    }

    async fn turn(&self) -> bool {
        self.inbound.spool.turn(&self.inbound.publisher).await.unwrap_or(false)
    }
}

fn request(integration: &Integration, headers: &[(&str, &str)], body: &str) -> Request {
    let headers = headers.iter().map(|(name, value)| ((*name).to_owned(), Bytes::copy_from_slice(value.as_bytes())));
    Request {
        vendor: integration.settings.vendor.clone(),
        integration_id: integration.id.clone(),
        headers: Headers(headers.collect()),
        body: Bytes::copy_from_slice(body.as_bytes()),
        method: "POST".to_owned(),
        target: String::new(),
    }
}

fn hex(body: &str) -> String {
    signature::hex_sign(SECRET.as_bytes(), body.as_bytes())
}

async fn in_each_world<F: Future<Output = ()>>(test: impl Fn(World) -> F) {
    on_each_engine(MIGRATIONS, |store| async {
        let world = World::new(store).await;
        let chassis = world.chassis.clone();
        test(world).await;
        chassis.drain().await;
    })
    .await;
}

fn is_accepted(answer: &Answer) -> bool {
    matches!(answer, Answer::Accepted { .. })
}

fn is_duplicate(answer: &Answer) -> bool {
    matches!(answer, Answer::Duplicate { .. })
}
