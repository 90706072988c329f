//! Outbound webhooks from an event to a real receiver: through the handler, the dispatcher and the guarded client, on each
//! engine.

use std::{
    collections::{BTreeSet, VecDeque},
    net::SocketAddr,
    sync::{Arc, Mutex},
    time::Duration,
};

use axum::{Router as Http, extract::State as Shared, http::HeaderMap, response::Response};
use bytes::Bytes;
use chassis::{
    auth::{Caller, Role, Scopes},
    clock::Clock,
    consume::Handler as _,
    grpc::Peer,
    id::{self, OrganizationId},
    lane::{
        self, Dispatcher, Slots, State,
        rows::{self, Filter, Record},
    },
    outbound::{Outbound, OutboundSettings},
    secret::DataKeys,
    service::Chassis,
    signature::hex_verify,
    store::Store,
    tasks::Tasks,
    testing::on_each_engine,
};
use proto::{
    common::v1::Position,
    router::v1::{self as wire, destination::Kind, event::Payload},
    vendorsync::v1::{
        self as api, delivery_service_server::DeliveryService as _, endpoint_service_server::EndpointService as _,
    },
};
use tokio::{net::TcpListener, sync::mpsc, time::timeout};
use tonic::{Code, Request};

use crate::{
    MIGRATIONS,
    body::Renderer,
    configuration::{Tables, keep::Keeper},
    deliver::Deliver,
    disable::Closing,
    endpoint::{Endpoint, Settings, Since, State as EndpointState, book::Book, tests::settings},
    manage::Endpoints,
    policy::Personal,
    replay::Replays,
    router::Router,
    rpc::{deliveries::DeliveryRpc, endpoints::EndpointRpc},
    sync::{courier::Couriers, tests::engine},
    webhook::Webhooks,
};

/// A request as it arrived.
type Arrived = (HeaderMap, Bytes);
/// A status and a `Retry-After`.
type Scripted = (u16, Option<&'static str>);

/// Notes what arrives and answers by its script, then with 200.
#[derive(Clone)]
struct Receiver {
    address: SocketAddr,
    script: Arc<Mutex<VecDeque<Scripted>>>,
    arrived: mpsc::UnboundedSender<Arrived>,
}

impl Receiver {
    async fn start(script: &[Scripted]) -> (Self, mpsc::UnboundedReceiver<Arrived>) {
        let listener = TcpListener::bind("127.0.0.1:0").await.expect("a port");
        let (arrived, arrivals) = mpsc::unbounded_channel();
        let address = listener.local_addr().expect("bound");
        let receiver = Self { address, script: Arc::new(Mutex::new(script.iter().copied().collect())), arrived };
        let app = Http::new().fallback(receive).with_state(receiver.clone());
        Tasks::default().spawn("receiver", async move { axum::serve(listener, app).await.expect("it serves") });
        (receiver, arrivals)
    }

    fn settings(&self) -> Settings {
        Settings { url: format!("http://{}/in", self.address), ..settings() }
    }
}

async fn receive(Shared(receiver): Shared<Receiver>, headers: HeaderMap, body: Bytes) -> Response<String> {
    let (status, retry_after) = receiver.script.lock().expect("no panic").pop_front().unwrap_or((200, None));
    receiver.arrived.send((headers, body)).expect("the test listens");
    let mut response = Response::builder().status(status);
    if let Some(retry_after) = retry_after {
        response = response.header("retry-after", retry_after);
    }
    response.body("noted".to_owned()).expect("well-formed")
}

/// The outbound half, without a router.
struct World {
    deliver: Deliver,
    endpoints: Arc<Endpoints>,
    endpoint_rpc: EndpointRpc,
    delivery_rpc: DeliveryRpc,
    closings: mpsc::Receiver<Closing>,
    chassis: Chassis,
}

impl World {
    async fn open(store: &Store, chassis: &Chassis) -> Self {
        let keys = DataKeys::new(store.clone(), chassis.keyring().expect("a key"), Clock::System);
        let loopback = OutboundSettings { allow_networks: vec!["127.0.0.0/8".to_owned()], allow_http: true };
        let outbound = Outbound::new(&loopback).expect("a client");
        let (book, (closing, closings)) = (Book::default(), mpsc::channel(8));
        let webhooks = Webhooks::new(book.clone(), outbound.clone(), Clock::System, closing);
        let vendors = Arc::new(std::sync::OnceLock::new());
        let courier = Arc::new(Couriers { webhooks: webhooks.clone(), vendors: vendors.clone() });
        let dispatcher =
            Dispatcher::start(store.clone(), keys.clone(), courier, Slots::default(), Clock::System, &chassis.tasks)
                .await
                .expect("it starts");
        let engine = engine(store, &keys, &dispatcher, &outbound, &vendors).await;
        let endpoints =
            Endpoints::open(store.clone(), keys, book.clone(), dispatcher.clone(), outbound, Clock::System).await;
        let endpoints = Arc::new(endpoints.expect("they are read"));
        let renderer = Renderer::new(Personal::built_in());
        let router = Router::new(&Peer::new("vendor-sync", "http://127.0.0.1:9", chassis).expect("an address"));
        let replays = Replays {
            endpoints: endpoints.clone(),
            router: router.clone(),
            renderer: renderer.clone(),
            offers: engine.offers.clone(),
            tasks: chassis.tasks.clone(),
        };
        Self {
            deliver: Deliver {
                book,
                renderer,
                offers: engine.offers.clone(),
                configuration: Keeper::new(endpoints.clone(), Tables::built_in(), &engine),
                dispatcher,
                store: store.clone(),
            },
            endpoint_rpc: EndpointRpc { endpoints: endpoints.clone(), webhooks, router },
            delivery_rpc: DeliveryRpc { replays },
            endpoints,
            closings,
            chassis: chassis.clone(),
        }
    }

    async fn endpoint(&self, settings: Settings) -> Arc<Endpoint> {
        let since = Since { log_id: "log".to_owned(), sequence: 5 };
        self.endpoints.create(acme(), settings, since).await.expect("settings that pass").0
    }

    /// Handles an event until its deliveries are durable.
    async fn handle(&self, event: wire::ConsumedEvent) {
        self.deliver.take(event).await.expect("it is taken").await.expect("it is durable");
    }

    async fn deliveries(&self) -> Vec<Record> {
        rows::list(&self.endpoints.store, &acme(), &Filter::default(), 100).await.expect("they are listed")
    }

    /// The only delivery, once it is in `state`.
    async fn settled(&self, state: State) -> Record {
        let settle = async {
            loop {
                match self.deliveries().await.as_slice() {
                    [record] if record.state == state as i64 => return record.clone(),
                    _ => tokio::task::yield_now().await,
                }
            }
        };
        match timeout(LONG, settle).await {
            Ok(record) => record,
            Err(_) => panic!("not {state:?}: {:?}", self.deliveries().await),
        }
    }

    async fn stop(self) {
        assert!(self.chassis.tasks.stop(LONG).await);
    }
}

/// Something is broken, and not slow.
const LONG: Duration = Duration::from_secs(120);

fn acme() -> OrganizationId {
    OrganizationId::parse("acme").expect("well-formed")
}

/// Runs `test` in a world on each engine.
async fn in_a_world<F: Future<Output = ()>>(test: impl Fn(World) -> F) {
    on_each_engine(&[&chassis::store::MIGRATIONS, &lane::MIGRATIONS, &MIGRATIONS], |store| {
        let test = &test;
        async move { test(World::open(&store, &Chassis::for_test()).await).await }
    })
    .await;
}

/// A change of a wedding, as the router hands it out.
fn changed(sequence: u64) -> wire::ConsumedEvent {
    let change = wire::Change {
        schema: "public".to_owned(),
        table: "wedding_details".to_owned(),
        operation: wire::Operation::Update.into(),
        old_record: r#"{"id":"w1","bride_name":"Ana","guest_count":1}"#.into(),
        new_record: r#"{"id":"w1","bride_name":"Ana","guest_count":2}"#.into(),
    };
    let event = wire::Event {
        id: format!("e{sequence}"),
        uid: id::uuid(Clock::System.now()),
        organization_id: "acme".to_owned(),
        r#type: "wedding_details.update".to_owned(),
        ordering_key: "w1".to_owned(),
        time: Some(prost_types::Timestamp { seconds: 1_777_636_800, nanos: 0 }),
        payload: Some(Payload::Change(change)),
        metadata: Some(wire::Metadata {
            wedding_id: "w1".to_owned(),
            traceparent: "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01".to_owned(),
            ..wire::Metadata::default()
        }),
        position: Some(Position { log_id: "log".to_owned(), sequence }),
        ..wire::Event::default()
    };
    let webhooks = wire::Destination {
        kind: Some(Kind::Webhooks(wire::Webhooks {})),
        priority: 2,
        ..wire::Destination::default()
    };
    let plan = wire::Plan { destinations: vec![webhooks], priority: 3, ..wire::Plan::default() };
    wire::ConsumedEvent { event: Some(event), plan: Some(plan), ..wire::ConsumedEvent::default() }
}

/// What a member of `organization` asks.
pub(crate) fn asked<T>(organization: &str, message: T) -> Request<T> {
    let organization = Some(OrganizationId::parse(organization).expect("well-formed"));
    let mut request = Request::new(message);
    request.extensions_mut().insert(Caller {
        organization,
        role: Role::Member,
        scopes: Scopes::all(),
        name: "key".to_owned(),
    });
    request
}

#[tokio::test]
async fn a_delivered_webhook_verifies_with_the_public_library_and_shows_all_our_headers() {
    in_a_world(async |world: World| {
        let (receiver, mut arrivals) = Receiver::start(&[]).await;
        let mut settings = receiver.settings();
        settings.headers.insert("authorization".to_owned(), "Bearer theirs".to_owned());
        let endpoint = world.endpoint(settings).await;
        let event = changed(6);
        let uid = event.event.as_ref().expect("an event").uid.clone();
        world.handle(event).await;
        let (headers, body) = arrivals.recv().await.expect("it arrives");
        let secret = endpoint.secrets[0].secret.expose();
        standardwebhooks::Webhook::new(secret).expect("our secret").verify(&body, &headers).expect("it verifies");
        let text = |name: &str| headers[name].to_str().expect("ASCII").to_owned();
        assert!(hex_verify(secret.as_bytes(), &body, &text("x-wedsync-signature")));
        for (name, expected) in [
            ("webhook-id", format!("msg_{uid}").as_str()),
            ("x-wedsync-event", "wedding_details.update"),
            ("x-wedsync-timestamp", "2026-05-01T12:00:00Z"),
            ("x-wedsync-source", "realtime"),
            ("content-type", "application/json"),
            ("authorization", "Bearer theirs"),
        ] {
            assert_eq!(text(name), expected, "{name}");
        }
        assert!(text("user-agent").starts_with("WedSync/"));
        assert!(text("traceparent").starts_with("00-0af7651916cd43dd8448eb211c80319c-"));
        let body: serde_json::Value = serde_json::from_slice(&body).expect("JSON");
        assert_eq!(body["oldRecord"], serde_json::json!({"id": "w1", "guest_count": 1}));
        assert_eq!(body["newRecord"], serde_json::json!({"id": "w1", "guest_count": 2}));
        let record = world.settled(State::Delivered).await;
        assert_eq!((record.priority, record.attempts, record.status_code), (2, 1, Some(200)));
        world.stop().await;
    })
    .await;
}

#[tokio::test]
async fn a_retry_repeats_the_bytes_and_the_id() {
    in_a_world(async |world: World| {
        let (receiver, mut arrivals) = Receiver::start(&[(500, None)]).await;
        world.endpoint(Settings { schedule: vec![Duration::from_millis(20)], ..receiver.settings() }).await;
        world.handle(changed(6)).await;
        let (first, second) = (arrivals.recv().await.expect("the first"), arrivals.recv().await.expect("the second"));
        assert_eq!(first.1, second.1);
        assert_eq!(first.0["webhook-id"], second.0["webhook-id"]);
        let record = world.settled(State::Delivered).await;
        assert_eq!(record.attempts, 2);
        world.stop().await;
    })
    .await;
}

#[tokio::test]
async fn retry_after_is_obeyed() {
    in_a_world(async |world: World| {
        let (receiver, mut arrivals) = Receiver::start(&[(503, Some("3600"))]).await;
        world.endpoint(receiver.settings()).await;
        let before = Clock::System.now_micros();
        world.handle(changed(6)).await;
        arrivals.recv().await.expect("the first attempt");
        let record = world.settled(State::Waiting).await;
        assert_eq!((record.attempts, record.status_code), (1, Some(503)));
        assert!(record.next_at - before >= 3_600_000_000, "{record:?}");
        world.stop().await;
    })
    .await;
}

#[tokio::test]
async fn a_410_disables_the_endpoint_for_good_and_that_is_to_be_published() {
    in_a_world(async |mut world: World| {
        let (receiver, mut arrivals) = Receiver::start(&[(410, None)]).await;
        let endpoint = world.endpoint(receiver.settings()).await;
        world.handle(changed(6)).await;
        arrivals.recv().await.expect("the attempt");
        let closing = world.closings.recv().await.expect("its lane is closed");
        assert_eq!(closing.endpoint, &*endpoint.id);
        world.endpoints.disable(&closing.endpoint, &closing.reason).await.expect("the store takes it");
        world.settled(State::Dead).await;
        let now = world.endpoints.book.get(&endpoint.id).expect("it is still there");
        assert_eq!((now.state, now.version), (EndpointState::Disabled, 2));
        assert_eq!(world.endpoints.book.to_announce().len(), 1);
        world.handle(changed(7)).await;
        assert_eq!(world.deliveries().await.len(), 1, "a disabled endpoint gets no new deliveries");
        let refused = world.endpoints.pause(&acme(), &endpoint.id).await.expect_err("nothing is sent anyway");
        assert_eq!(refused.code(), Code::FailedPrecondition);
        world.endpoints.resume(&acme(), &endpoint.id).await.expect("its owner enables it");
        assert!(world.endpoints.book.to_announce().is_empty());
        world.handle(changed(8)).await;
        arrivals.recv().await.expect("it gets what comes now");
        world.stop().await;
    })
    .await;
}

#[tokio::test]
async fn a_redelivered_event_is_left_as_it_is_and_a_replayed_one_is_sent_again() {
    in_a_world(async |world: World| {
        let (receiver, mut arrivals) = Receiver::start(&[]).await;
        world.endpoint(receiver.settings()).await;
        let event = changed(6);
        world.handle(event.clone()).await;
        let (first, _) = arrivals.recv().await.expect("it arrives");
        world.settled(State::Delivered).await;
        world.handle(wire::ConsumedEvent { redelivered: true, ..event.clone() }).await;
        world.handle(wire::ConsumedEvent { replayed: true, ..event }).await;
        let (second, _) = arrivals.recv().await.expect("it arrives again");
        assert_eq!(second["x-wedsync-source"], "replay");
        assert_eq!(first["webhook-id"], second["webhook-id"]);
        let record = world.settled(State::Delivered).await;
        assert_eq!(record.attempts, 2, "the redelivered one was no attempt");
        world.stop().await;
    })
    .await;
}

#[tokio::test]
async fn a_paused_endpoints_deliveries_wait_and_a_deleted_ones_are_cancelled() {
    in_a_world(async |world: World| {
        let (receiver, mut arrivals) = Receiver::start(&[]).await;
        let endpoint = world.endpoint(receiver.settings()).await;
        world.endpoints.pause(&acme(), &endpoint.id).await.expect("the store takes it");
        world.handle(changed(6)).await;
        world.settled(State::Waiting).await;
        world.endpoints.resume(&acme(), &endpoint.id).await.expect("the store takes it");
        arrivals.recv().await.expect("it arrives now");
        world.settled(State::Delivered).await;
        world.endpoints.pause(&acme(), &endpoint.id).await.expect("the store takes it");
        world.handle(changed(7)).await;
        assert_eq!(world.endpoints.delete(&acme(), &endpoint.id).await.expect("the store takes it"), 1);
        let states: BTreeSet<i64> = world.deliveries().await.iter().map(|record| record.state).collect();
        assert_eq!(states, BTreeSet::from([State::Delivered as i64, State::Cancelled as i64]));
        world.handle(changed(8)).await;
        assert_eq!(world.deliveries().await.len(), 2);
        world.stop().await;
    })
    .await;
}

#[tokio::test]
async fn an_event_that_cannot_be_rendered_is_a_dead_letter_that_says_why() {
    in_a_world(async |world: World| {
        let (receiver, _arrivals) = Receiver::start(&[]).await;
        world
            .endpoint(Settings { transformation: r#"{"a": "new.bride_name + 1"}"#.to_owned(), ..receiver.settings() })
            .await;
        world.handle(changed(6)).await;
        let record = world.settled(State::Dead).await;
        assert!(record.reason.contains("transformation"), "{}", record.reason);
        world.stop().await;
    })
    .await;
}

#[tokio::test]
async fn an_event_whose_plan_wants_no_webhooks_goes_nowhere() {
    in_a_world(async |world: World| {
        let (receiver, _arrivals) = Receiver::start(&[]).await;
        world.endpoint(receiver.settings()).await;
        world.handle(wire::ConsumedEvent { plan: Some(wire::Plan::default()), ..changed(6) }).await;
        assert!(world.deliveries().await.is_empty());
        world.stop().await;
    })
    .await;
}

#[tokio::test]
async fn endpoints_are_in_force_again_after_a_restart() {
    on_each_engine(&[&chassis::store::MIGRATIONS, &lane::MIGRATIONS, &MIGRATIONS], |store| async move {
        let chassis = Chassis::for_test();
        let (receiver, mut arrivals) = Receiver::start(&[]).await;
        let world = World::open(&store, &chassis).await;
        let endpoint = world.endpoint(receiver.settings()).await;
        world.stop().await;
        // The same keys, with tasks that still run.
        let chassis = Chassis::new((*chassis.shared).clone(), Clock::System).expect("they hold");
        let world = World::open(&store, &chassis).await;
        world.handle(changed(6)).await;
        let (headers, body) = arrivals.recv().await.expect("it arrives");
        let secret = endpoint.secrets[0].secret.expose();
        standardwebhooks::Webhook::new(secret)
            .expect("our secret")
            .verify(&body, &headers)
            .expect("the secret is the same");
        world.settled(State::Delivered).await;
        world.stop().await;
    })
    .await;
}

#[tokio::test]
async fn a_test_event_is_sent_at_once_and_is_no_delivery() {
    in_a_world(async |world: World| {
        let (receiver, mut arrivals) = Receiver::start(&[(200, None), (418, None)]).await;
        let endpoint = world.endpoint(Settings { event_types: vec!["a.b".to_owned()], ..receiver.settings() }).await;
        let send = || async {
            let request = asked("acme", api::SendTestEventRequest { id: endpoint.id.to_string() });
            world.endpoint_rpc.send_test_event(request).await.expect("it is sent").into_inner()
        };
        let sent = send().await;
        assert_eq!((sent.delivered, sent.status_code, &sent.response[..]), (true, 200, &b"noted"[..]));
        let (headers, body) = arrivals.recv().await.expect("it arrives");
        assert_eq!(
            (&headers["x-wedsync-source"], &headers["x-wedsync-event"]),
            (&"test".parse().unwrap(), &"webhook.test".parse().unwrap())
        );
        let secret = endpoint.secrets[0].secret.expose();
        standardwebhooks::Webhook::new(secret).expect("our secret").verify(&body, &headers).expect("it verifies");
        let sent = send().await;
        assert!(!sent.delivered && sent.error.contains("418"), "{}", sent.error);
        assert!(world.deliveries().await.is_empty());
        world.stop().await;
    })
    .await;
}

#[tokio::test]
async fn another_organizations_ids_are_not_found() {
    in_a_world(async |world: World| {
        let (receiver, mut arrivals) = Receiver::start(&[]).await;
        let endpoint = world.endpoint(receiver.settings()).await;
        world.handle(changed(6)).await;
        arrivals.recv().await.expect("it arrives");
        let record = world.settled(State::Delivered).await;
        let (id, delivery) = (endpoint.id.to_string(), record.id.to_string());
        let (endpoints, deliveries) = (&world.endpoint_rpc, &world.delivery_rpc);
        let since = Some(prost_types::Timestamp::default());
        let mut answers = vec![
            ("get", endpoints.get_endpoint(asked("other", api::GetEndpointRequest { id: id.clone() })).await.map(drop)),
            (
                "delete",
                endpoints
                    .delete_endpoint(asked("other", api::DeleteEndpointRequest { id: id.clone() }))
                    .await
                    .map(drop),
            ),
            (
                "pause",
                endpoints.pause_endpoint(asked("other", api::PauseEndpointRequest { id: id.clone() })).await.map(drop),
            ),
            (
                "resume",
                endpoints
                    .resume_endpoint(asked("other", api::ResumeEndpointRequest { id: id.clone() }))
                    .await
                    .map(drop),
            ),
            (
                "test",
                endpoints.send_test_event(asked("other", api::SendTestEventRequest { id: id.clone() })).await.map(drop),
            ),
        ];
        let rotate = api::RotateEndpointSecretRequest { id: id.clone(), overlap: None };
        answers.push(("rotate", endpoints.rotate_endpoint_secret(asked("other", rotate)).await.map(drop)));
        let statistics = api::GetEndpointStatisticsRequest { id: id.clone(), since: None };
        answers.push(("statistics", endpoints.get_endpoint_statistics(asked("other", statistics)).await.map(drop)));
        let own = endpoints
            .get_endpoint(asked("acme", api::GetEndpointRequest { id: id.clone() }))
            .await
            .expect("it is ours")
            .into_inner();
        let update = api::UpdateEndpointRequest {
            endpoint: own.endpoint.map(|own| api::Endpoint { organization_id: String::new(), ..own }),
        };
        answers.push(("update", endpoints.update_endpoint(asked("other", update)).await.map(drop)));
        let replay = api::ReplayDeliveriesRequest { endpoint_id: id.clone(), since, ..Default::default() };
        answers.push(("replay", deliveries.replay_deliveries(asked("other", replay)).await.map(drop)));
        let recover = api::RecoverDeliveriesRequest { endpoint_id: id.clone(), since, ..Default::default() };
        answers.push(("recover", deliveries.recover_deliveries(asked("other", recover)).await.map(drop)));
        answers.push((
            "delivery",
            deliveries.get_delivery(asked("other", api::GetDeliveryRequest { id: delivery.clone() })).await.map(drop),
        ));
        let attempts = api::ListAttemptsRequest { delivery_id: delivery.clone() };
        answers.push(("attempts", deliveries.list_attempts(asked("other", attempts)).await.map(drop)));
        answers.push((
            "resend",
            deliveries.resend_delivery(asked("other", api::ResendDeliveryRequest { id: delivery })).await.map(drop),
        ));
        for (method, answer) in answers {
            assert_eq!(answer.expect_err(method).code(), Code::NotFound, "{method}");
        }
        let listed =
            deliveries.list_deliveries(asked("other", api::ListDeliveriesRequest::default())).await.expect("its own");
        assert!(listed.into_inner().deliveries.is_empty());
        let listed =
            endpoints.list_endpoints(asked("other", api::ListEndpointsRequest::default())).await.expect("its own");
        assert!(listed.into_inner().endpoints.is_empty());
        world.stop().await;
    })
    .await;
}

#[tokio::test]
async fn an_update_needs_the_version_it_read_and_shows_no_header_values() {
    in_a_world(async |world: World| {
        let (receiver, mut arrivals) = Receiver::start(&[]).await;
        let mut settings = receiver.settings();
        settings.headers.insert("x-key".to_owned(), "hush".to_owned());
        let endpoint = world.endpoint(settings).await;
        let get = api::GetEndpointRequest { id: endpoint.id.to_string() };
        let read = world.endpoint_rpc.get_endpoint(asked("acme", get)).await.expect("it is ours").into_inner().endpoint;
        let mut read = read.expect("an endpoint");
        assert_eq!(read.headers["x-key"], "<redacted>");
        read.description = "new".to_owned();
        let update = |endpoint: api::Endpoint| {
            world.endpoint_rpc.update_endpoint(asked("acme", api::UpdateEndpointRequest { endpoint: Some(endpoint) }))
        };
        let updated =
            update(read.clone()).await.expect("nobody changed it").into_inner().endpoint.expect("an endpoint");
        assert_eq!((updated.version, updated.description.as_str()), (2, "new"));
        assert_eq!(update(read).await.expect_err("it is at version 2").code(), Code::Aborted);
        world.handle(changed(6)).await;
        let (headers, _) = arrivals.recv().await.expect("it arrives");
        assert_eq!(headers["x-key"], "hush");
        world.settled(State::Delivered).await;
        world.stop().await;
    })
    .await;
}

#[tokio::test]
async fn deliveries_and_attempts_are_found_by_key_by_uid_and_by_state() {
    in_a_world(async |world: World| {
        let (receiver, mut arrivals) = Receiver::start(&[]).await;
        let endpoint = world.endpoint(receiver.settings()).await;
        let event = changed(6);
        let uid = event.event.as_ref().expect("an event").uid.clone();
        world.handle(event).await;
        arrivals.recv().await.expect("it arrives");
        world.settled(State::Delivered).await;
        let list = async |filter: api::ListDeliveriesRequest| {
            world
                .delivery_rpc
                .list_deliveries(asked("acme", filter))
                .await
                .expect("they are listed")
                .into_inner()
                .deliveries
        };
        let by_event =
            |event_id: &str| api::ListDeliveriesRequest { event_id: event_id.to_owned(), ..Default::default() };
        let in_state =
            |state: api::DeliveryState| api::ListDeliveriesRequest { states: vec![state.into()], ..Default::default() };
        assert_eq!(list(by_event("e6")).await.len(), 1);
        assert_eq!(list(in_state(api::DeliveryState::Delivered)).await.len(), 1);
        assert!(list(in_state(api::DeliveryState::Dead)).await.is_empty());
        let found = list(by_event(&uid)).await.pop().expect("by its uid");
        assert_eq!((&found.endpoint_id, &found.webhook_id), (&endpoint.id.to_string(), &format!("msg_{uid}")));
        let attempts = api::ListAttemptsRequest { delivery_id: found.id };
        let attempts = world
            .delivery_rpc
            .list_attempts(asked("acme", attempts))
            .await
            .expect("they are listed")
            .into_inner()
            .attempts;
        assert_eq!(
            (attempts.len(), attempts[0].outcome.as_str(), &attempts[0].response[..]),
            (1, "delivered", &b"noted"[..])
        );
        world.stop().await;
    })
    .await;
}
