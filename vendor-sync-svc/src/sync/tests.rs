//! The engine from an event to a vendor on loopback and back, on each engine of the store: the world of these tests, whose
//! stories are told by the files below.

mod again;
mod ask;
mod back;
mod bulk;
#[cfg(feature = "fail-points")]
mod kill;
mod out;
mod own;
mod peer;
mod resend;
mod spool;

use std::{
    collections::BTreeMap,
    sync::{Arc, OnceLock},
    time::Duration,
};

use bytes::Bytes;
use chassis::{
    clock::Clock,
    config::Secret,
    consume::Handler as _,
    id::{self, OrganizationId},
    lane::{
        Dispatcher, Slots, State as Stage,
        rows::{self, Filter, Record},
    },
    outbound::{Outbound, OutboundSettings},
    secret::DataKeys,
    service::Chassis,
    signature,
    store::Store,
    tasks::Tasks,
    testing::on_each_engine,
    with,
};
use proto::router::v1 as wire;
use serde_json::{Value, json};
use tokio::{
    sync::{broadcast, mpsc},
    time::timeout,
};

use self::peer::{Peer, SECRET, connector};
use super::{
    Engine, Ground,
    courier::{Couriers, Vendors},
};
use crate::{
    body::Renderer,
    connector::catalogue::Catalogue,
    credential::{Connections, Credentials, Kept, vendor::Declared},
    deliver::Deliver,
    endpoint::book::Book,
    inbound::{self, Answer, Headers, Inbound},
    integration::{Integration, Integrations, Kind, Settings, tests::settings},
    oauth,
    outbox::Outbox,
    policy::Personal,
    record::{RecordKey, RecordKind},
    rpc::wire::print_timestamp,
    webhook::Webhooks,
};

/// The engine over these parts.
pub(crate) async fn engine(
    store: &Store,
    keys: &DataKeys,
    dispatcher: &Dispatcher,
    outbound: &Outbound,
    vendors: &Arc<OnceLock<Vendors>>,
) -> Engine {
    let outbox = Outbox::new(store.clone(), keys.clone(), dispatcher.clone(), Clock::System);
    let credentials = credentials(store, keys, &outbox, outbound);
    let ground = Ground {
        store: store.clone(),
        keys: keys.clone(),
        clock: Clock::System,
        outbox,
        dispatcher: dispatcher.clone(),
        integrations: Integrations::new(store.clone(), keys.clone(), Clock::System),
        catalogue: Catalogue::new(store.clone(), Clock::System),
        credentials,
        outbound: outbound.clone(),
    };
    Engine::open(ground, vendors).await.expect("it opens")
}

fn credentials(store: &Store, keys: &DataKeys, outbox: &Outbox, outbound: &Outbound) -> Credentials {
    let changed = broadcast::Sender::new(16);
    let connections = Connections::new(store.clone(), keys.clone(), outbox.clone(), Clock::System, changed);
    let client = oauth::Client::new(outbound.clone(), Clock::System);
    let (apps, tasks) = (BTreeMap::new(), Tasks::default());
    let declared = Declared(Catalogue::new(store.clone(), Clock::System));
    Credentials::new(connections, Arc::new(declared), apps, client, tasks, Clock::System)
}

/// The engine over a store, with no endpoints beside it and loopback open.
pub(crate) async fn alone(store: &Store) -> Engine {
    let keys = Chassis::for_test().keyring().expect("a key");
    with_keys(store, &DataKeys::new(store.clone(), keys, Clock::System)).await
}

/// The same with these keys.
pub(crate) async fn with_keys(store: &Store, keys: &DataKeys) -> Engine {
    let loopback = OutboundSettings { allow_networks: vec!["127.0.0.0/8".to_owned()], allow_http: true };
    let outbound = Outbound::new(&loopback).expect("a client");
    let (closing, _) = mpsc::channel(8);
    let webhooks = Webhooks::new(Book::default(), outbound.clone(), Clock::System, closing);
    let vendors = Arc::new(OnceLock::new());
    let courier = Arc::new(Couriers { webhooks, vendors: vendors.clone() });
    let slots = Slots::default();
    let dispatcher =
        Dispatcher::start(store.clone(), keys.clone(), courier, slots, Clock::System, &Tasks::default()).await;
    engine(store, keys, &dispatcher.expect("it starts"), &outbound, &vendors).await
}

/// The service's parts around the engine, without a router.
struct World {
    engine: Engine,
    deliver: Deliver,
    inbound: Inbound,
    store: Store,
}

impl World {
    async fn open(store: Store) -> Self {
        let chassis = Chassis::for_test();
        let peer = chassis::grpc::Peer::new("vendor-sync", "http://127.0.0.1:9", &chassis).expect("an address");
        let world = Self::over(store, &chassis, &peer).await;
        world.declare().await;
        world
    }

    /// Puts the shop's connector into a new store.
    async fn declare(&self) {
        let catalogue = Catalogue::new(self.store.clone(), Clock::System);
        if let Err(refused) = catalogue.put(&acme(), &connector(), 0).await {
            panic!("it must parse: {refused:?}");
        }
    }

    /// With this router, and the keys of this chassis.
    async fn over(store: Store, chassis: &Chassis, router: &chassis::grpc::Peer) -> Self {
        let keys = DataKeys::new(store.clone(), chassis.keyring().expect("a key"), Clock::System);
        let engine = with_keys(&store, &keys).await;
        let inbound = Inbound::new(engine.accounts.integrations.clone(), &store, &keys, router, Clock::System);
        let deliver = Deliver {
            book: Book::default(),
            renderer: Renderer::new(Personal::built_in()),
            offers: engine.offers.clone(),
            configuration: crate::configuration::kept::keeper(&engine, &keys).await,
            dispatcher: engine.dispatcher.clone(),
            store: store.clone(),
        };
        let inbound = inbound.with_vendors(engine.vendors());
        Self { engine, deliver, inbound, store }
    }

    /// An account at `peer`, connected.
    async fn account(&self, peer: &Peer, supplier: &str) -> Integration {
        let settings = Settings {
            connector: "shop".to_owned(),
            vendor: "shop".to_owned(),
            supplier_id: supplier.to_owned(),
            parameters: BTreeMap::from([("url".to_owned(), format!("http://{}", peer.address))]),
            ..settings(Kind::Connector)
        };
        let integrations = &self.engine.accounts.integrations;
        let integration = integrations.create(acme(), settings, &Secret::from(SECRET.to_owned())).await.expect("made");
        let connections = &self.engine.credentials.connections;
        let key = Kept::Key(Secret::from("k".to_owned()));
        connections.connect(&integration, &key, &BTreeMap::new(), None).await.expect("connected");
        self.engine.accounts.refresh(&acme(), &integration.id).await.expect("known");
        integration
    }

    /// Handles an event until its deliveries are durable.
    async fn handle(&self, event: wire::Event) {
        self.consume(event, false).await;
    }

    /// The same for one that may have been handled before.
    async fn consume(&self, event: wire::Event, redelivered: bool) {
        let kind = wire::destination::Kind::Integration(wire::Integration { kind: "photography_crm".to_owned() });
        let destination = wire::Destination { kind: Some(kind), ..wire::Destination::default() };
        let plan = wire::Plan { destinations: vec![destination], priority: 3, ..wire::Plan::default() };
        let (event, plan) = (Some(event), Some(plan));
        let event = wire::ConsumedEvent { event, plan, redelivered, ..wire::ConsumedEvent::default() };
        self.deliver.take(event).await.expect("it is taken").await.expect("it is durable");
    }

    /// Publishes what waits, as the router would: every event comes back by its group.
    async fn pass_on(&self) -> usize {
        let (events, _) = self.engine.resolver.outbox.look(&acme()).await;
        let count = events.len();
        for mut event in events {
            event.uid = id::uuid(Clock::System.now());
            self.handle(event).await;
        }
        let cleared = with!(self.store.writer(), c => sqlx::query("DELETE FROM outbox").execute(c).await.map(drop));
        cleared.expect("cleared");
        count
    }

    /// A webhook of the shop about a job.
    async fn says(&self, integration: &Integration, job: &Value) -> Answer {
        self.sends(integration, &json!({"event": "job.updated", "job": job}).to_string()).await
    }

    /// A webhook of the shop with this body.
    async fn sends(&self, integration: &Integration, body: &str) -> Answer {
        self.inbound.receive(&webhook(integration, body)).await
    }

    async fn deliveries(&self, integration: &Integration) -> Vec<Record> {
        let filter = Filter { lane_id: Some(integration.id.clone()), ..Filter::default() };
        rows::list(&self.store, &acme(), &filter, 100).await.expect("they are listed")
    }

    /// Waits until it holds.
    async fn until(&self, what: &str, holds: impl AsyncFn() -> bool) {
        let wait = async {
            while !holds().await {
                tokio::task::yield_now().await;
            }
        };
        assert!(timeout(Duration::from_secs(30), wait).await.is_ok(), "not in time: {what}");
    }

    /// Waits until nothing is on its way to it.
    async fn settled(&self, integration: &Integration, count: usize) -> Vec<Record> {
        let settle = async {
            loop {
                let records = self.deliveries(integration).await;
                let is_final = |record: &Record| Stage::from_number(record.state).is_some_and(Stage::is_final);
                if records.len() == count && records.iter().all(is_final) {
                    return records;
                }
                tokio::task::yield_now().await;
            }
        };
        match timeout(Duration::from_secs(30), settle).await {
            Ok(records) => records,
            Err(_) => panic!("not {count} at their end: {:?}", self.deliveries(integration).await),
        }
    }

    async fn link(&self, integration: &Integration, id: &str) -> crate::record::Link {
        let key = RecordKey::new(acme(), RecordKind::Wedding, id).expect("well-formed");
        self.engine.known.link(integration, &key).await.expect("it is read").expect("it is linked")
    }
}

/// Signed by the shop.
fn webhook(integration: &Integration, body: &str) -> inbound::Request {
    let signature = signature::hex_sign(SECRET.as_bytes(), body.as_bytes());
    inbound::Request {
        vendor: "shop".to_owned(),
        integration_id: integration.id.clone(),
        headers: Headers(vec![("x-shop-signature".to_owned(), Bytes::from(signature))]),
        body: Bytes::copy_from_slice(body.as_bytes()),
        method: "POST".to_owned(),
        target: String::new(),
    }
}

fn acme() -> OrganizationId {
    OrganizationId::parse("acme").expect("well-formed")
}

async fn in_a_world<F: Future<Output = ()>>(test: impl Fn(World) -> F) {
    let migrations = &[&chassis::store::MIGRATIONS, &chassis::lane::MIGRATIONS, &crate::MIGRATIONS];
    on_each_engine(migrations, |store| {
        let test = &test;
        async move { test(World::open(store).await).await }
    })
    .await;
}

/// A change of a wedding, of these suppliers, as the router hands it out.
fn changed(number: u64, wedding: &str, (old, new): (Value, Value), suppliers: &[&str]) -> wire::Event {
    let row = |mut row: Value| {
        row["id"] = json!(wedding);
        Bytes::from(row.to_string())
    };
    let change = wire::Change {
        schema: "public".to_owned(),
        table: "wedding_details".to_owned(),
        operation: wire::Operation::Update.into(),
        old_record: row(old),
        new_record: row(new),
    };
    wire::Event {
        id: format!("e{number}"),
        uid: id::uuid(Clock::System.now()),
        organization_id: "acme".to_owned(),
        r#type: "wedding_details.update".to_owned(),
        source: "capture".to_owned(),
        ordering_key: wedding.to_owned(),
        channels: suppliers.iter().map(|supplier| format!("supplier:dashboard:{supplier}")).collect(),
        time: Some(print_timestamp(Clock::System.now())),
        payload: Some(wire::event::Payload::Change(change)),
        metadata: Some(wire::Metadata { wedding_id: wedding.to_owned(), ..wire::Metadata::default() }),
        ..wire::Event::default()
    }
}

fn guests(old: u32, new: u32) -> (Value, Value) {
    (json!({"guest_count": old, "venue_name": "Barn"}), json!({"guest_count": new, "venue_name": "Barn"}))
}
