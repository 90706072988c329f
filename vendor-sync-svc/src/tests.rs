//! Outbound webhooks from an event to a real receiver: through the handler, the dispatcher and the guarded client, on each
//! engine.

mod asked;
mod sent;

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
    tried::Tried,
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
            endpoint_rpc: EndpointRpc { endpoints: endpoints.clone(), webhooks, router, tried: Tried::default() },
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
