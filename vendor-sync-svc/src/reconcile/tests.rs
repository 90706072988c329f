//! A vendor's list on loopback, taken in and compared, on each engine of the store.

mod ordered;
mod place;

use std::{
    collections::BTreeMap,
    net::SocketAddr,
    sync::{Arc, Mutex, MutexGuard},
};

use axum::{
    Json, Router as Http,
    extract::{Query, State as Shared},
    http::StatusCode,
};
use chassis::{clock::Clock, service::Chassis, tasks::Tasks, testing::on_each_engine, with};
use serde_json::{Value, json};
use tokio::net::TcpListener;

use crate::{
    connector::catalogue::Catalogue,
    credential::Kept,
    import::{
        Import, Order, Origin, State,
        tests::{MIGRATIONS, World},
    },
    integration::{Integration, Kind, Settings, tests::settings},
    record::RecordKind,
};

const CONNECTOR: &str = r#"
name = "client-book"
title = "Client book"
kind = "photography_crm"
base_url = "{settings.url}"

[settings.url]
description = "where it is"
required = true

[[errors]]
when = "status == 422"
class = "permanent"
reason = "body.detail"

[operations.list_clients]
method = "GET"
path = "/clients"
[operations.list_clients.pages]
kind = "page"
items = "body.items"
parameter = "page"
size = 2

[operations.update_client]
method = "PUT"
path = "/clients/{link.external_id}"
body = "out"

[operations.create_client]
method = "POST"
path = "/clients"
body = "out"
[operations.create_client.reply]
external_id = "body.id"

[records.client]
fields = ["first_name", "email", "phone"]
list = "list_clients"
create = "create_client"
update = "update_client"
external_id = "item.id"
external_version = "item.modified"
at = "item.modified"
out = { name = "record.first_name", email = "record.email" }
into = { first_name = "item.name", email = "item.email" }
"#;

/// The vendor: its clients, how often each page was asked for, and what it refuses once.
#[derive(Clone, Default)]
pub(crate) struct Vendor(Arc<Mutex<Shelf>>);

#[derive(Default)]
pub(crate) struct Shelf {
    pub(crate) clients: Vec<Value>,
    pub(crate) asked: BTreeMap<usize, u32>,
    pub(crate) refuses: Option<usize>,
    /// For good, in words that name somebody.
    pub(crate) forbids: Option<usize>,
}

impl Vendor {
    pub(crate) fn shelf(&self) -> MutexGuard<'_, Shelf> {
        self.0.lock().expect("no panic")
    }

    pub(crate) async fn start(clients: usize) -> (Self, SocketAddr) {
        let vendor = Self::default();
        vendor.shelf().clients = (0..clients).map(|client| self::client(client, "Ann", 1)).collect();
        let listener = TcpListener::bind("127.0.0.1:0").await.expect("a port");
        let address = listener.local_addr().expect("bound");
        let app = Http::new().fallback(answer).with_state(vendor.clone());
        Tasks::default().spawn("vendor", async move { axum::serve(listener, app).await.expect("it serves") });
        (vendor, address)
    }
}

async fn answer(
    Shared(vendor): Shared<Vendor>,
    Query(query): Query<BTreeMap<String, String>>,
) -> (StatusCode, Json<Value>) {
    let page: usize = query.get("page").and_then(|page| page.parse().ok()).unwrap_or(1);
    let mut shelf = vendor.shelf();
    *shelf.asked.entry(page).or_default() += 1;
    if shelf.refuses.take_if(|refused| *refused == page).is_some() {
        return (StatusCode::BAD_GATEWAY, Json(json!({})));
    }
    if shelf.forbids == Some(page) {
        return (StatusCode::UNPROCESSABLE_ENTITY, Json(json!({"detail": "ann@example.com is not yours"})));
    }
    let items: Vec<Value> = shelf.clients.iter().skip((page - 1) * 2).take(2).cloned().collect();
    (StatusCode::OK, Json(json!({ "items": items })))
}

fn client(number: usize, name: &str, hour: u32) -> Value {
    let modified = format!("2026-05-01T0{hour}:00:00Z");
    json!({"id": format!("x{number}"), "name": name, "email": format!("c{number}@example.com"), "modified": modified})
}

/// An account at the vendor.
pub(crate) async fn account(world: &World, address: SocketAddr) -> Integration {
    let reconcile = world.worker.reconcile();
    let organization = crate::import::tests::organization("acme");
    let catalogue = Catalogue::new(world.store.clone(), Clock::System);
    if catalogue.get(&organization, "client-book").await.is_err() {
        assert!(catalogue.put(&organization, CONNECTOR, 0).await.is_ok(), "a connector that holds");
    }
    let parameters = BTreeMap::from([("url".to_owned(), format!("http://{address}"))]);
    let settings = Settings {
        connector: "client-book".to_owned(),
        vendor: String::new(),
        supplier_id: String::new(),
        parameters,
        ..settings(Kind::Connector)
    };
    let settings = settings.check().expect("they hold");
    let secret = crate::integration::secret_or_new("").expect("made");
    let integrations = &reconcile.accounts.integrations;
    let integration = integrations.create(organization.clone(), settings, &secret).await.expect("created");
    let connections = &world.engine.credentials.connections;
    connections.connect(&integration, &Kept::None, &BTreeMap::new(), None).await.expect("connected");
    reconcile.accounts.refresh(&organization, &integration.id).await.expect("known");
    integration
}

async fn in_each_world<F: Future<Output = ()>>(test: impl Fn(World) -> F) {
    on_each_engine(MIGRATIONS, |store| async { test(World::over(store, Chassis::for_test()).await).await }).await;
}

async fn compare(world: &World, integration: &Integration, dry_run: bool) -> Import {
    let order = Order::reconcile(integration.organization.clone(), integration.id.clone(), dry_run);
    let import = world.worker.imports.begin(order).await.expect("it begins");
    world.go_on(&import).await
}

async fn take_all(world: &World, integration: &Integration) -> Import {
    let mut order = world.order(Origin::Vendor, RecordKind::Client);
    integration.id.clone_into(&mut order.integration_id);
    let import = world.worker.imports.begin(order).await.expect("it begins");
    world.go_on(&import).await
}

#[tokio::test]
async fn a_list_that_breaks_off_goes_on_at_its_page_and_is_taken_once() {
    in_each_world(async |world| {
        let (vendor, address) = Vendor::start(5).await;
        let integration = account(&world, address).await;
        vendor.shelf().refuses = Some(2);
        let import = take_all(&world, &integration).await;
        assert_eq!((import.state, import.counts.created, import.total), (State::Done, 5, 5), "{}", import.reason);
        assert_eq!(vendor.shelf().asked, BTreeMap::from([(1, 1), (2, 2), (3, 1)]), "no page is asked for in vain");
        let again = take_all(&world, &integration).await;
        assert_eq!((again.counts.created, again.counts.changed, again.counts.unchanged), (0, 0, 5));
        assert_eq!(world.told().await, 5);
    })
    .await;
}

#[tokio::test]
async fn what_webhooks_missed_is_mended_and_what_vanished_is_told_and_left() {
    in_each_world(async |world| {
        let (vendor, address) = Vendor::start(5).await;
        let integration = account(&world, address).await;
        take_all(&world, &integration).await;
        // A client that the vendor never heard of.
        world.import("id,first name,e-mail\nn1,New,new@example.com\n").await;
        vendor.shelf().clients[1] = client(1, "Anna", 2);
        vendor.shelf().clients.remove(4);
        let told = world.told().await;

        let dry = compare(&world, &integration, true).await;
        assert_eq!((dry.counts.changed, dry.counts.vanished, dry.counts.sent), (1, 1, 1), "{}", dry.reason);
        assert_eq!(world.told().await, told, "a dry run says, and does nothing");

        let done = compare(&world, &integration, false).await;
        assert_eq!((done.state, done.counts.changed, done.counts.vanished), (State::Done, 1, 1), "{}", done.reason);
        assert_eq!(done.counts.sent, 1, "the new one goes to the vendor");
        let differences: Vec<&str> = done.examples.iter().map(|example| example.difference.as_str()).collect();
        assert_eq!(differences, ["missed", "vanished", "unsent"]);
        assert_eq!(done.examples[0].fields, ["first_name"]);
        assert_eq!(world.told().await, told + 2, "one event, one letter");
        assert_eq!(
            world.worker.reconcile().linked(&integration.organization, &integration.id).await.expect("counted"),
            5
        );

        let again = compare(&world, &integration, false).await;
        assert_eq!((again.counts.changed, again.counts.unchanged), (0, 4));
    })
    .await;
}

#[tokio::test]
async fn an_empty_list_where_records_are_linked_asks() {
    in_each_world(async |world| {
        let (vendor, address) = Vendor::start(3).await;
        let integration = account(&world, address).await;
        take_all(&world, &integration).await;
        vendor.shelf().clients.clear();
        let asked = compare(&world, &integration, false).await;
        assert_eq!((asked.state, asked.counts.vanished), (State::Asked, 3));
        assert!(asked.reason.contains("the list is empty"), "{}", asked.reason);
        let waits = compare_refused(&world, &integration).await;
        assert!(waits.contains("is open"), "{waits}");
    })
    .await;
}

async fn compare_refused(world: &World, integration: &Integration) -> String {
    let order = Order::reconcile(integration.organization.clone(), integration.id.clone(), false);
    world.worker.imports.begin(order).await.expect_err("one at a time").to_string()
}

#[tokio::test]
async fn a_comparison_begins_by_itself_a_day_later_and_not_twice() {
    in_each_world(async |world| {
        let (_vendor, address) = Vendor::start(1).await;
        account(&world, address).await;
        let reconcile = world.worker.reconcile();
        reconcile.begin_due().await.expect("nothing is due");
        assert_eq!(world.count("SELECT COUNT(*) FROM imports").await, 0, "it was made just now");
        world
            .age("UPDATE integrations SET created_at = created_at - 100000000000 WHERE connector = 'client-book'")
            .await;
        reconcile.accounts.load().await.expect("they are read again");
        for _ in 0..2 {
            reconcile.begin_due().await.expect("it is due");
        }
        assert_eq!(world.count("SELECT COUNT(*) FROM imports WHERE work = 'reconcile'").await, 1);
    })
    .await;
}

#[tokio::test]
async fn what_a_vendor_says_of_its_list_and_calls_its_clients_is_legible_to_people_and_not_in_the_store() {
    in_each_world(async |world| {
        let (vendor, address) = Vendor::start(3).await;
        let integration = account(&world, address).await;
        vendor.shelf().forbids = Some(2);
        let import = take_all(&world, &integration).await;
        assert_eq!((import.state, import.reason.contains("ann@")), (State::Failed, false), "{}", import.reason);
        let [refusal] = &import.refusals[..] else { panic!("{:?}", import.refusals) };
        assert_eq!((refusal.line, refusal.reason.as_str()), (0, "ann@example.com is not yours"));
        let items: Vec<(Vec<u8>, Vec<u8>)> = with!(world.store.reader(), c => {
            sqlx::query_as("SELECT external_hash, body FROM import_items").fetch_all(c).await
        })
        .expect("they are read");
        assert_eq!(items.len(), 2, "the first page");
        assert!(
            items.iter().all(|(hash, body)| hash.len() == 32 && !String::from_utf8_lossy(body).contains("example"))
        );

        vendor.shelf().forbids = None;
        let resumed = world.worker.imports.resume(&import.order.organization, &import.id).await.expect("it failed");
        let done = world.go_on(&resumed).await;
        assert_eq!((done.state, done.counts.created, done.refusals.len()), (State::Done, 3, 0), "{}", done.reason);
    })
    .await;
}
