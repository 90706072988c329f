//! The way in as a whole, on each engine: a real store, and a router of a few lines behind real gRPC.

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
        let running = server.access(ACCESS).add(EventServiceServer::new(router.clone())).serve().expect("it serves");
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

#[tokio::test]
async fn a_signed_request_becomes_one_event_of_its_organization() {
    in_each_world(async |world| {
        let integration = world.create(Kind::ClientSync, |_| {}).await;
        let answer = world.send(&integration, &CLIENT.replace("12:00:00Z", "11:58:00Z")).await;
        let [event] = &world.router.events()[..] else { panic!("not one event") };
        assert_eq!(answer, Answer::Accepted { event_id: event.id.clone() });
        assert_eq!((event.organization_id.as_str(), event.r#type.as_str()), ("org", "client.updated"));
        assert_eq!(event.source, format!("integration:{}", integration.id));
        let metadata = event.metadata.clone().expect("metadata");
        assert_eq!(
            (metadata.supplier_id.as_str(), metadata.couple_id.as_str()),
            ("s1", "3f2504e0-4f89-41d3-9a0c-0305e82c3301")
        );
        let stored = world.integrations.get(&integration.organization, &integration.id).await.expect("it is there");
        assert_eq!((stored.last_received_at, stored.version), (Some(noon()), 1));
    })
    .await;
}

#[tokio::test]
async fn the_table_of_answers_holds() {
    in_each_world(async |world| {
        let integration = world.create(Kind::ClientSync, |_| {}).await;
        let stranger = |id: &str| Integration { id: id.to_owned(), ..integration.clone() };
        for id in ["", "no-uuid", "a\0b", "01990000-0000-7000-8000-00000000dead"] {
            assert_eq!(world.send(&stranger(id), CLIENT).await, Answer::Unknown, "{id:?}");
        }
        let mut elsewhere = integration.clone();
        elsewhere.settings.vendor = "channel-events".to_owned();
        assert_eq!(world.send(&elsewhere, CLIENT).await, Answer::Unknown, "another path");
        let disabled = world.create(Kind::ClientSync, |settings| settings.disabled = true).await;
        assert_eq!(world.send(&disabled, CLIENT).await, Answer::Unknown);
        assert_eq!(world.receive(&integration, &[], CLIENT).await, Answer::Unverified);
        assert_eq!(
            world.receive(&integration, &[("x-wedsync-signature", &hex("{}"))], CLIENT).await,
            Answer::Unverified
        );
        assert_eq!(
            world.send(&integration, &CLIENT.replace("12:00:00Z", "11:54:59Z")).await,
            Answer::Unverified,
            "stale"
        );
        let invalid = world.send(&integration, &CLIENT.replace("client.updated", "client.exploded")).await;
        assert!(matches!(invalid, Answer::Invalid { ref field, .. } if field == "event"));
        assert!(
            matches!(world.send(&integration, "not JSON").await, Answer::Invalid { ref field, .. } if field == "body")
        );
        world.router.refuse(Some(Status::unavailable("away")));
        assert_eq!(world.send(&integration, CLIENT).await, Answer::Unavailable { retry_after: RETRY_AFTER });
        assert!(world.router.events().is_empty(), "nothing of it was published");
        world.router.refuse(None);
        assert!(is_accepted(&world.send(&integration, CLIENT).await));
        assert!(is_duplicate(&world.send(&integration, CLIENT).await));
    })
    .await;
}

#[tokio::test]
async fn an_id_with_another_body_is_a_conflict_and_a_refused_body_may_be_mended() {
    in_each_world(async |world| {
        let integration = world.create(Kind::SignedWebhook, |_| {}).await;
        assert!(matches!(world.send_as(&integration, "m1", r#"{"n":1}"#).await, Answer::Invalid { .. }));
        assert!(is_accepted(&world.send_as(&integration, "m1", r#"{"type":"a.b","n":1}"#).await));
        assert!(is_duplicate(&world.send_as(&integration, "m1", r#"{"type":"a.b","n":1}"#).await));
        assert_eq!(world.send_as(&integration, "m1", r#"{"type":"a.b","n":2}"#).await, Answer::Conflict);
        assert!(
            is_accepted(&world.send_as(&integration, "m2", r#"{"type":"a.b","n":1}"#).await),
            "the same change again"
        );
        assert_eq!(world.router.events().len(), 2);
    })
    .await;
}

#[tokio::test]
async fn a_crash_between_publishing_and_its_receipt_leaves_one_event() {
    in_each_world(async |world| {
        let integration = world.create(Kind::ClientSync, |_| {}).await;
        assert!(is_accepted(&world.send(&integration, CLIENT).await));
        with!(world.store.writer(), c => sqlx::query("DELETE FROM inbound_receipts").execute(c).await.map(drop))
            .expect("forgotten");
        assert!(is_duplicate(&world.send(&integration, CLIENT).await), "the router knows it");
        assert_eq!(world.router.events().len(), 1);
    })
    .await;
}

#[tokio::test]
async fn fifty_repeats_at_once_have_one_effect() {
    in_each_world(async |world| {
        let integration = world.create(Kind::ClientSync, |_| {}).await;
        let repeats = (0..50).map(|_| world.send(&integration, CLIENT));
        let answers = futures_util::future::join_all(repeats).await;
        assert_eq!(answers.iter().filter(|answer| is_accepted(answer)).count(), 1);
        assert_eq!(answers.iter().filter(|answer| is_duplicate(answer)).count(), 49);
        assert_eq!(world.router.events().len(), 1);
    })
    .await;
}

#[tokio::test]
async fn the_limit_is_counted_by_what_is_verified_and_processed() {
    in_each_world(async |world| {
        let integration = world.create(Kind::SignedWebhook, |settings| settings.rate_limit_per_hour = 2).await;
        let body = r#"{"type":"a.b"}"#;
        for _ in 0..5 {
            assert_eq!(
                world.receive(&integration, &[("x-wedsync-signature", "forged")], body).await,
                Answer::Unverified
            );
        }
        world.router.refuse(Some(Status::unavailable("away")));
        for _ in 0..5 {
            assert!(matches!(world.send_as(&integration, "m1", body).await, Answer::Unavailable { .. }));
        }
        world.router.refuse(None);
        for id in ["m1", "m2"] {
            assert!(is_accepted(&world.send_as(&integration, id, body).await));
            assert!(is_duplicate(&world.send_as(&integration, id, body).await));
        }
        let limited = world.send_as(&integration, "m3", body).await;
        assert_eq!(limited, Answer::Limited { retry_after: Duration::from_secs(3600) });
        world.manual.advance(Duration::from_secs(3600));
        assert!(is_accepted(&world.send_as(&integration, "m3", body).await));
    })
    .await;
}

#[tokio::test]
async fn a_rotated_secret_verifies_beside_the_new_one_until_the_overlap_ends() {
    in_each_world(async |world| {
        let integration = world.create(Kind::SignedWebhook, |_| {}).await;
        let new = Secret::from("a-new-secret-of-30-characters!".to_owned());
        let overlap = Duration::from_secs(60);
        world.integrations.rotate(&integration.organization, &integration.id, &new, overlap).await.expect("rotated");
        assert!(is_accepted(&world.send_as(&integration, "m1", r#"{"type":"a.b"}"#).await));
        let body = r#"{"type":"a.b","timestamp":"2026-05-01T12:00:30Z"}"#;
        let signature = signature::hex_sign(new.expose().as_bytes(), body.as_bytes());
        assert!(is_accepted(&world.receive(&integration, &[("x-wedsync-signature", &signature)], body).await));
        world.manual.advance(overlap);
        assert_eq!(world.send_as(&integration, "m2", r#"{"type":"a.b"}"#).await, Answer::Unverified);
    })
    .await;
}

#[tokio::test]
async fn settings_change_only_from_the_version_that_was_read_and_only_by_their_owner() {
    in_each_world(async |world| {
        let integration = world.create(Kind::SignedWebhook, |_| {}).await;
        let (own, other) = (integration.organization.clone(), OrganizationId::parse("other").unwrap());
        let settings = Settings { description: "new".to_owned(), ..integration.settings.clone() };
        let update = async |organization, version| {
            world.integrations.update(organization, &integration.id, version, &settings).await
        };
        assert_eq!(update(&own, 1).await.expect("updated").version, 2);
        assert!(matches!(update(&own, 1).await, Err(Error::Aborted(_))));
        assert!(matches!(update(&other, 2).await, Err(Error::NotFound(_))));
        assert!(matches!(world.integrations.delete(&other, &integration.id).await, Err(Error::NotFound(_))));
        assert!(world.integrations.list(&other, "", 10).await.expect("a page").is_empty());
        assert_eq!(world.integrations.list(&own, "", 10).await.expect("a page").len(), 1);
        world.integrations.delete(&own, &integration.id).await.expect("deleted");
        assert_eq!(world.send_as(&integration, "m1", r#"{"type":"a.b"}"#).await, Answer::Unknown);
    })
    .await;
}

#[tokio::test]
async fn a_database_webhook_is_accepted_whatever_the_router_does_and_arrives_in_order() {
    in_each_world(async |world| {
        let integration = world.create(Kind::Supabase, |settings| settings.rate_limit_per_hour = 1).await;
        world.router.refuse(Some(Status::unavailable("away")));
        for id in 0..40 {
            assert!(is_accepted(&world.spool(&integration, id).await));
        }
        assert!(!world.turn().await);
        assert_eq!(world.waiting().await, 40);
        world.router.refuse(None);
        while world.turn().await {}
        let records: Vec<String> = world.router.events().iter().map(record).collect();
        assert_eq!(records, (0..40).map(|id| format!(r#"{{"id":{id}}}"#)).collect::<Vec<_>>());
        assert_eq!(world.waiting().await, 0);
    })
    .await;
}

fn record(event: &wire::Event) -> String {
    let Some(wire::event::Payload::Change(change)) = &event.payload else { panic!("not a change") };
    String::from_utf8(change.new_record.to_vec()).expect("JSON")
}

#[tokio::test]
async fn two_database_webhooks_that_look_alike_are_two_changes() {
    in_each_world(async |world| {
        let integration = world.create(Kind::Supabase, |_| {}).await;
        for _ in 0..2 {
            assert!(is_accepted(&world.spool(&integration, 7).await));
        }
        while world.turn().await {}
        assert_eq!(world.router.events().len(), 2);
    })
    .await;
}

#[tokio::test]
async fn what_is_spooled_survives_its_integration_and_is_not_readable_in_the_store() {
    in_each_world(async |world| {
        let integration = world.create(Kind::Supabase, |_| {}).await;
        world.spool(&integration, 7).await;
        let body: Vec<u8> =
            with!(world.store.reader(), c => sqlx::query_scalar("SELECT body FROM inbound_spool").fetch_one(c).await)
                .expect("the row");
        assert!(!String::from_utf8_lossy(&body).contains("record"));
        world.integrations.delete(&integration.organization, &integration.id).await.expect("deleted");
        while world.turn().await {}
        assert_eq!(world.router.events().len(), 1);
    })
    .await;
}

#[tokio::test]
async fn a_refused_or_limited_integration_holds_no_other_up() {
    in_each_world(async |world| {
        let integration = world.create(Kind::Supabase, |_| {}).await;
        world.spool(&integration, 1).await;
        world.router.refuse(Some(Status::resource_exhausted("over the limit")));
        assert!(!world.turn().await, "held, not failed");
        assert_eq!(world.waiting().await, 1);
        world.router.refuse(Some(Status::invalid_argument("never")));
        assert!(world.turn().await);
        assert_eq!(world.waiting().await, 0, "set aside");
        world.router.refuse(None);
        world.spool(&integration, 2).await;
        while world.turn().await {}
        assert_eq!(world.router.events().len(), 1);
        world.inbound.spool.purge(noon() + jiff::SignedDuration::from_hours(31 * 24)).await.expect("purged");
    })
    .await;
}

#[tokio::test]
async fn the_spool_is_published_in_the_background_and_outlives_a_router_that_is_away() {
    in_each_world(async |world| {
        let integration = world.create(Kind::Supabase, |_| {}).await;
        world.router.refuse(Some(Status::unavailable("away")));
        world.inbound.start(&world.chassis.tasks);
        world.spool(&integration, 1).await;
        world.router.refuse(None);
        while world.waiting().await > 0 {
            world.manual.advance(Duration::from_secs(5));
            tokio::task::yield_now().await;
        }
        assert_eq!(world.router.events().len(), 1);
    })
    .await;
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(8))]

    #[test]
    fn however_often_and_in_whatever_order_messages_are_repeated_each_has_one_effect(
        sends in prop::collection::vec((0usize..6, any::<bool>()), 1..25),
    ) {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
        runtime.block_on(in_each_world(|world| {
            let sends = sends.clone();
            async move {
                let integration = world.create(Kind::SignedWebhook, |_| {}).await;
                let distinct: std::collections::BTreeSet<_> = sends.iter().collect();
                for (n, by_id) in &sends {
                    let body = format!(r#"{{"type":"a.b","n":{n},"by_id":{by_id},"timestamp":"2026-05-01T12:00:00Z"}}"#);
                    let answer = if *by_id { world.send_as(&integration, &format!("m{n}"), &body).await } else { world.send(&integration, &body).await };
                    assert!(is_accepted(&answer) || is_duplicate(&answer), "{answer:?}");
                }
                assert_eq!(world.router.events().len(), distinct.len());
            }
        }));
    }
}
