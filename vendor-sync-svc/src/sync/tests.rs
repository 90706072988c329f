//! The engine from an event to a vendor on loopback and back, on each engine of the store.

mod again;
mod own;

use std::{
    collections::BTreeMap,
    net::SocketAddr,
    sync::{Arc, Mutex, OnceLock},
    time::Duration,
};

use axum::{
    Json, Router as Http,
    extract::{Path, Query, State},
    http::{HeaderMap, StatusCode},
    routing::get,
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
    net::TcpListener,
    sync::{broadcast, mpsc},
    time::timeout,
};

use super::{
    Engine, Ground,
    bulk::{Outcome, Wanted},
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

/// A vendor's API as `CONNECTOR` speaks it: jobs with versions, and a switch.
#[derive(Clone)]
struct Peer {
    address: SocketAddr,
    shop: Arc<Mutex<Shop>>,
}

#[derive(Default)]
struct Shop {
    jobs: BTreeMap<String, Job>,
    /// Method and body of what changed something, or tried to.
    log: Vec<(String, Value)>,
    /// Answers instead of its own.
    refuses: Option<u16>,
}

#[derive(Clone, Default)]
struct Job {
    version: u64,
    body: Value,
}

const CONNECTOR: &str = r#"
name = "shop"
title = "A shop"
kind = "photography_crm"
base_url = "{settings.url}"
[[auth]]
kind = "api_key"
in = "header"
name = "x-api-key"
[settings.url]
description = "Where it is"
required = true
[operations.find_job]
method = "GET"
path = "/jobs"
query = { reference = "{record.id}" }
[operations.find_job.reply]
external_id = "(body.items | first).id if body['items'] else none"
external_version = "(body.items | first).version if body['items'] else none"
resource = "body['items'] | first"
[operations.create_job]
method = "POST"
path = "/jobs"
body = "out"
idempotency = "look_up"
[operations.create_job.reply]
external_id = "body.id"
external_version = "body.version"
[operations.read_job]
method = "GET"
path = "/jobs/{link.external_id}"
[operations.read_job.reply]
external_id = "body.id"
external_version = "body.version"
[operations.update_job]
method = "PUT"
path = "/jobs/{link.external_id}"
headers = { "if-match" = "{link.external_version}" }
body = "out"
[operations.update_job.reply]
external_id = "body.id"
external_version = "body.version"
[records.wedding]
fields = ["wedding_date", "guest_count", "venue_name"]
find = "find_job"
create = "create_job"
read = "read_job"
update = "update_job"
external_id = "item.id"
external_version = "item.version"
out = { date = "record.wedding_date", guests = "record.guest_count", place = "record.venue_name", reference = "record.id" }
into = { wedding_date = "item.date", guest_count = "item.guests", venue_name = "item.place" }
[inbound]
[[inbound.verify]]
kind = "hmac"
header = "x-shop-signature"
[[inbound.events]]
when = "item.event == 'job.updated'"
type = "booking.updated"
record = "wedding"
external_id = "item.job.id"
external_version = "item.job.version"
fields = { wedding_date = "item.job.date", guest_count = "item.job.guests" }
"#;
const SECRET: &str = "whsec_MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaSw";

impl Peer {
    async fn start() -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.expect("a port");
        let peer = Self { address: listener.local_addr().expect("bound"), shop: Arc::default() };
        let app = Http::new()
            .route("/jobs", get(find).post(create))
            .route("/jobs/{id}", get(read).put(update))
            .with_state(peer.clone());
        Tasks::default().spawn("shop", async move { axum::serve(listener, app).await.expect("it serves") });
        peer
    }

    fn shop(&self) -> std::sync::MutexGuard<'_, Shop> {
        self.shop.lock().expect("no panic")
    }

    /// The body of each request that was made to change something.
    fn asked(&self) -> Vec<(String, Value)> {
        self.shop().log.clone()
    }

    fn refuse(&self, status: Option<u16>) {
        self.shop().refuses = status;
    }

    /// Notes it; an answer, if it refuses.
    fn note(&self, method: &str, body: &Value) -> Option<Answered> {
        let mut shop = self.shop();
        shop.log.push((method.to_owned(), body.clone()));
        shop.refuses.map(|status| answer(status, json!({"message": "no"})))
    }
}

type Answered = (StatusCode, Json<Value>);

fn answer(status: u16, body: Value) -> Answered {
    (StatusCode::from_u16(status).expect("a status"), Json(body))
}

fn shown(id: &str, job: &Job) -> Value {
    let mut body = job.body.clone();
    body["id"] = json!(id);
    body["version"] = json!(job.version.to_string());
    body
}

async fn find(State(peer): State<Peer>, Query(query): Query<BTreeMap<String, String>>) -> Answered {
    let shop = peer.shop();
    let found = shop.jobs.iter().filter(|(_, job)| job.body["reference"] == json!(query["reference"]));
    answer(200, json!({"items": found.map(|(id, job)| shown(id, job)).collect::<Vec<_>>()}))
}

async fn read(State(peer): State<Peer>, Path(id): Path<String>) -> Answered {
    let shop = peer.shop();
    shop.jobs.get(&id).map_or_else(|| answer(404, json!({})), |job| answer(200, shown(&id, job)))
}

async fn create(State(peer): State<Peer>, Json(body): Json<Value>) -> Answered {
    if let Some(refusal) = peer.note("POST", &body) {
        return refusal;
    }
    let mut shop = peer.shop();
    let (id, job) = (format!("job-{}", shop.jobs.len() + 1), Job { version: 1, body });
    let body = shown(&id, &job);
    shop.jobs.insert(id, job);
    answer(201, body)
}

async fn update(
    State(peer): State<Peer>,
    Path(id): Path<String>,
    headers: HeaderMap,
    Json(body): Json<Value>,
) -> Answered {
    if let Some(refusal) = peer.note("PUT", &body) {
        return refusal;
    }
    let mut shop = peer.shop();
    let Some(job) = shop.jobs.get_mut(&id) else { return answer(404, json!({})) };
    if headers.get("if-match").is_some_and(|version| version != job.version.to_string().as_str()) {
        return answer(412, json!({}));
    }
    *job = Job { version: job.version + 1, body };
    answer(200, shown(&id, job))
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
        let keys = DataKeys::new(store.clone(), chassis.keyring().expect("a key"), Clock::System);
        let engine = alone(&store).await;
        let catalogue = Catalogue::new(store.clone(), Clock::System);
        assert!(catalogue.put(&acme(), CONNECTOR, 0).await.is_ok(), "it parses");
        let peer = chassis::grpc::Peer::new("vendor-sync", "http://127.0.0.1:9", &chassis).expect("an address");
        let inbound = Inbound::new(engine.accounts.integrations.clone(), &store, &keys, &peer, Clock::System);
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
        let kind = wire::destination::Kind::Integration(wire::Integration { kind: "photography_crm".to_owned() });
        let destination = wire::Destination { kind: Some(kind), ..wire::Destination::default() };
        let plan = wire::Plan { destinations: vec![destination], priority: 3, ..wire::Plan::default() };
        let event = wire::ConsumedEvent { event: Some(event), plan: Some(plan), ..wire::ConsumedEvent::default() };
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
        let body = json!({"event": "job.updated", "job": job}).to_string();
        let signature = signature::hex_sign(SECRET.as_bytes(), body.as_bytes());
        let header = ("x-shop-signature".to_owned(), Bytes::from(signature));
        let request = inbound::Request {
            vendor: "shop".to_owned(),
            integration_id: integration.id.clone(),
            headers: Headers(vec![header]),
            body: Bytes::from(body),
            method: "POST".to_owned(),
            target: String::new(),
        };
        self.inbound.receive(&request).await
    }

    async fn deliveries(&self, integration: &Integration) -> Vec<Record> {
        let filter = Filter { lane_id: Some(integration.id.clone()), ..Filter::default() };
        rows::list(&self.store, &acme(), &filter, 100).await.expect("they are listed")
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

#[tokio::test]
async fn a_change_reaches_the_vendor_once_and_its_link_knows_what_it_has() {
    in_a_world(async |world: World| {
        let peer = Peer::start().await;
        let integration = world.account(&peer, "").await;
        world.handle(changed(1, "w1", guests(80, 90), &["s1"])).await;
        world.settled(&integration, 1).await;
        world.handle(changed(2, "w1", guests(80, 90), &["s1"])).await;
        world.settled(&integration, 2).await;
        world.handle(changed(3, "w1", guests(90, 95), &["s1"])).await;
        let records = world.settled(&integration, 3).await;
        assert!(records.iter().all(|record| record.state == Stage::Delivered as i64), "{records:?}");
        assert_eq!(records[1].reason, "the vendor has it already");
        let asked = peer.asked();
        let said: Vec<_> = asked.iter().map(|(method, body)| (method.as_str(), body["guests"].clone())).collect();
        assert_eq!(said, [("POST", json!(90)), ("PUT", json!(95))]);
        assert_eq!(asked[0].1["reference"], json!("w1"));
        let link = world.link(&integration, "w1").await;
        assert_eq!((link.external_id.as_str(), link.external_version.as_str()), ("job-1", "2"));
        assert_eq!((&link.synced["guest_count"], &link.synced["venue_name"]), (&json!(95), &json!("Barn")));
    })
    .await;
}

#[tokio::test]
async fn what_one_vendor_changes_reaches_the_other_and_its_echo_is_told_nobody() {
    in_a_world(async |world: World| {
        let (one, two) = (Peer::start().await, Peer::start().await);
        let (a, b) = (world.account(&one, "").await, world.account(&two, "").await);
        world.handle(changed(1, "w1", guests(80, 90), &[])).await;
        world.settled(&a, 1).await;
        world.settled(&b, 1).await;
        let said = json!({"id": "job-1", "version": "7", "guests": 120, "date": null});
        let (first, second) = tokio::join!(world.says(&a, &said), world.says(&a, &said));
        assert!(matches!(first, Answer::Accepted { .. }) || matches!(second, Answer::Accepted { .. }), "{first:?}");
        assert_eq!(world.pass_on().await, 1);
        world.settled(&b, 2).await;
        assert_eq!(two.asked().last().expect("asked").1["guests"], json!(120));
        assert_eq!((one.asked().len(), world.deliveries(&a).await.len()), (1, 1), "whose word it was is told nothing");
        let echo = json!({"id": "job-1", "version": "2", "guests": 120, "date": null});
        assert!(matches!(world.says(&b, &echo).await, Answer::Accepted { .. }));
        let other = json!({"id": "job-1", "version": "9", "guests": 120, "date": null});
        assert!(matches!(world.says(&b, &other).await, Answer::Accepted { .. }));
        assert_eq!(world.pass_on().await, 0);
        assert_eq!((one.asked().len(), two.asked().len()), (1, 2));
    })
    .await;
}

#[tokio::test]
async fn fifty_copies_of_one_webhook_have_one_effect_and_a_forged_one_none() {
    in_a_world(async |world: World| {
        let peer = Peer::start().await;
        let integration = world.account(&peer, "s1").await;
        let said = json!({"id": "x9", "guests": 50, "date": "2026-06-20"});
        let answers = futures_util::future::join_all((0..50).map(|_| world.says(&integration, &said))).await;
        let accepted = answers.iter().filter(|answer| matches!(answer, Answer::Accepted { .. })).count();
        let duplicate = answers.iter().filter(|answer| matches!(answer, Answer::Duplicate { .. })).count();
        assert_eq!((accepted, duplicate), (1, 49));
        assert_eq!(world.engine.resolver.outbox.look(&acme()).await.0.len(), 1);
        let forged = inbound::Request {
            vendor: "shop".to_owned(),
            integration_id: integration.id.clone(),
            headers: Headers(vec![("x-shop-signature".to_owned(), Bytes::from("00".repeat(32)))]),
            body: Bytes::from(r#"{"event":"job.updated","job":{"id":"x9","guests":1}}"#),
            method: "POST".to_owned(),
            target: String::new(),
        };
        assert_eq!(world.inbound.receive(&forged).await, Answer::Unverified);
    })
    .await;
}

#[tokio::test]
async fn while_a_vendor_is_down_its_changes_wait_in_order_and_others_are_not_delayed() {
    in_a_world(async |world: World| {
        let (down, up) = (Peer::start().await, Peer::start().await);
        let (a, b) = (world.account(&down, "").await, world.account(&up, "").await);
        world.handle(changed(1, "w1", guests(80, 90), &[])).await;
        world.settled(&a, 1).await;
        down.refuse(Some(503));
        for number in 2..5_u32 {
            world.handle(changed(number.into(), "w1", guests(80 + number, 90 + number), &[])).await;
        }
        world.settled(&b, 4).await;
        assert!(
            world.deliveries(&a).await.iter().filter(|record| record.state == Stage::Delivered as i64).count() == 1
        );
        down.refuse(None);
        world.settled(&a, 4).await;
        let said: Vec<_> = down.asked().into_iter().map(|(_, body)| body["guests"].clone()).collect();
        let mut applied = said.clone();
        applied.dedup();
        assert_eq!(applied, [json!(90), json!(92), json!(93), json!(94)], "{said:?}");
    })
    .await;
}

#[tokio::test]
async fn what_changed_there_meanwhile_is_merged_and_then_written() {
    in_a_world(async |world: World| {
        let peer = Peer::start().await;
        let integration = world.account(&peer, "").await;
        world.handle(changed(1, "w1", guests(80, 90), &[])).await;
        world.settled(&integration, 1).await;
        {
            let mut shop = peer.shop();
            let job = shop.jobs.get_mut("job-1").expect("made");
            (job.version, job.body["place"]) = (5, json!("Castle"));
        }
        world.handle(changed(2, "w1", guests(90, 95), &[])).await;
        let records = world.settled(&integration, 2).await;
        assert_eq!(records[0].state, Stage::Delivered as i64, "{records:?}");
        let job = peer.shop().jobs["job-1"].clone();
        assert_eq!((job.version, &job.body["guests"], &job.body["place"]), (6, &json!(95), &json!("Castle")));
        let (events, _) = world.engine.resolver.outbox.look(&acme()).await;
        assert_eq!(events.iter().map(|event| event.r#type.as_str()).collect::<Vec<_>>(), ["timeline.updated"]);
    })
    .await;
}

#[tokio::test]
async fn what_was_made_before_a_crash_is_found_and_not_made_again() {
    in_a_world(async |world: World| {
        let peer = Peer::start().await;
        let integration = world.account(&peer, "").await;
        let body = json!({"reference": "w1", "guests": 90, "date": null, "place": "Barn"});
        peer.shop().jobs.insert("job-1".to_owned(), Job { version: 1, body });
        world.handle(changed(1, "w1", guests(80, 90), &[])).await;
        let records = world.settled(&integration, 1).await;
        assert_eq!(records[0].state, Stage::Delivered as i64, "{records:?}");
        assert!(peer.asked().is_empty());
        assert_eq!(world.link(&integration, "w1").await.external_id, "job-1");
    })
    .await;
}

#[tokio::test]
async fn a_refusal_is_a_dead_letter_with_its_reason_and_releases_the_next() {
    in_a_world(async |world: World| {
        let peer = Peer::start().await;
        let integration = world.account(&peer, "").await;
        peer.refuse(Some(422));
        world.handle(changed(1, "w1", guests(80, 90), &[])).await;
        let records = world.settled(&integration, 1).await;
        assert_eq!((records[0].state, records[0].reason.is_empty()), (Stage::Dead as i64, false));
        peer.refuse(None);
        world.handle(changed(2, "w1", guests(90, 95), &[])).await;
        let records = world.settled(&integration, 2).await;
        assert_eq!(records[0].state, Stage::Delivered as i64, "{records:?}");
    })
    .await;
}

#[tokio::test]
async fn a_suppliers_integration_is_told_of_its_own_weddings_alone() {
    in_a_world(async |world: World| {
        let peer = Peer::start().await;
        let (mine, foreign) = (world.account(&peer, "s1").await, world.account(&peer, "s2").await);
        world.handle(changed(1, "w1", guests(80, 90), &["s1"])).await;
        world.settled(&mine, 1).await;
        assert!(world.deliveries(&foreign).await.is_empty());
    })
    .await;
}

#[tokio::test]
async fn records_in_bulk_are_sent_once_and_each_has_a_result() {
    in_a_world(async |world: World| {
        let peer = Peer::start().await;
        world.account(&peer, "s2").await;
        let integration = world.account(&peer, "s1").await;
        let tell = |number, wedding: &'static str| world.handle(changed(number, wedding, guests(80, 90), &["s1"]));
        tell(1, "w1").await;
        tell(2, "w2").await;
        world.settled(&integration, 2).await;
        let wanted = |ids: &[&str]| Wanted {
            organization: acme(),
            kind: RecordKind::Wedding,
            ids: ids.iter().map(|id| (*id).to_owned()).collect(),
            supplier_id: "s1".to_owned(),
            integration_id: String::new(),
            after: String::new(),
            limit: 1,
        };
        let (results, _) = world.engine.bulk(&wanted(&["w1", "w9"])).await.expect("asked");
        let outcomes: Vec<_> = results.into_iter().map(|synced| (synced.record_id, synced.outcome)).collect();
        let unknown = Outcome::Refused("there is no such record".to_owned());
        assert_eq!(outcomes, [("w1".to_owned(), Outcome::Unchanged), ("w9".to_owned(), unknown)]);
        // Another integration of the supplier doesn't have them.
        let late = world.account(&peer, "s1").await;
        let (first, next) = world.engine.bulk(&wanted(&[])).await.expect("asked");
        assert_eq!((first.len(), next.as_str()), (2, "w1"));
        let sent: Vec<_> = first.iter().filter(|synced| synced.outcome == Outcome::Sent).collect();
        assert_eq!(sent[0].integration_id, late.id);
        let (second, next) = world.engine.bulk(&Wanted { after: next, ..wanted(&[]) }).await.expect("asked");
        assert_eq!((second.len(), next.as_str()), (2, ""));
        let records = world.settled(&late, 2).await;
        assert!(records.iter().all(|record| record.priority == 4 && record.state == Stage::Delivered as i64));
        let foreign = Wanted { organization: OrganizationId::parse("other").expect("well-formed"), ..wanted(&["w1"]) };
        let (results, _) = world.engine.bulk(&foreign).await.expect("asked");
        assert!(matches!(results[0].outcome, Outcome::Refused(_)));
    })
    .await;
}
