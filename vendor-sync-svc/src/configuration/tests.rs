//! Rows of the configuration tables on a real store: what they become, what keeps up, and what is refused.

use std::sync::{Arc, OnceLock};

use bytes::Bytes;
use chassis::{
    clock::Clock,
    config::Secret,
    error::Error,
    id::OrganizationId,
    lane::{Dispatcher, Slots},
    outbound::{Outbound, OutboundSettings},
    sealed_row,
    secret::DataKeys,
    service::Chassis,
    store::Store,
    testing::on_each_engine,
    with,
};
use serde_json::{Value, json};
use tokio::sync::mpsc;

use super::{
    Tables,
    keep::Keeper,
    rows::{Noted, Row},
};
use crate::{
    endpoint::{State, book::Book},
    event::{Event, Payload, tests::change},
    integration::{Kind, Settings, tests::settings},
    manage::Endpoints,
    sync::{Engine, courier::Couriers, tests::engine},
    webhook::Webhooks,
};

struct World {
    keeper: Keeper,
    store: Store,
    _chassis: Chassis,
}

async fn in_each_world<F: Future<Output = ()>>(test: impl Fn(World) -> F) {
    let migrations = &[&chassis::store::MIGRATIONS, &chassis::lane::MIGRATIONS, &crate::MIGRATIONS];
    on_each_engine(migrations, |store| async { test(World::over(store).await).await }).await;
}

impl World {
    async fn over(store: Store) -> Self {
        let chassis = Chassis::for_test();
        let keys = DataKeys::new(store.clone(), chassis.keyring().expect("keys"), Clock::System);
        let loopback = OutboundSettings { allow_networks: vec!["127.0.0.0/8".to_owned()], allow_http: true };
        let outbound = Outbound::new(&loopback).expect("a client");
        let webhooks = Webhooks::new(Book::default(), outbound.clone(), Clock::System, mpsc::channel(8).0);
        let vendors = Arc::new(OnceLock::new());
        let courier = Arc::new(Couriers { webhooks, vendors: vendors.clone() });
        let started =
            Dispatcher::start(store.clone(), keys.clone(), courier, Slots::default(), Clock::System, &chassis.tasks);
        let dispatcher = started.await.expect("it starts");
        let engine = engine(&store, &keys, &dispatcher, &outbound, &vendors).await;
        let keeper = keeper(&engine, &keys).await;
        Self { keeper, store, _chassis: chassis }
    }

    async fn take(&self, table: &str, old: Option<&Value>, new: Option<&Value>) {
        self.keeper.take(&event(table, old, new)).await.expect("it is taken");
    }

    async fn row(&self, table: &str) -> Option<Row> {
        self.keeper.rows.get(&organization(), table, "1").await.expect("the store")
    }

    async fn count(&self, text: &'static str) -> i64 {
        with!(self.store.reader(), c => sqlx::query_scalar(text).fetch_one(c).await).expect("a number")
    }
}

/// What follows rows, with endpoints of its own.
pub(crate) async fn keeper(engine: &Engine, keys: &DataKeys) -> Keeper {
    let loopback = OutboundSettings { allow_networks: vec!["127.0.0.0/8".to_owned()], allow_http: true };
    let (outbound, store) = (Outbound::new(&loopback).expect("a client"), engine.resolver.store.clone());
    let dispatcher = engine.dispatcher.clone();
    let endpoints = Endpoints::open(store, keys.clone(), Book::default(), dispatcher, outbound, Clock::System).await;
    Keeper::new(Arc::new(endpoints.expect("they open")), Tables::built_in(), engine)
}

fn event(on: &str, old: Option<&Value>, new: Option<&Value>) -> Event {
    let mut event = change("{}", "{}");
    let Payload::Change { table, old: before, new: after, .. } = &mut event.payload else { panic!("a change") };
    on.clone_into(table);
    *before = old.map(|row| Bytes::from(row.to_string()));
    *after = new.map(|row| Bytes::from(row.to_string()));
    event
}

fn organization() -> OrganizationId {
    event("t", None, None).organization
}

fn venue(key: &str) -> Value {
    json!({"id": 1, "supplier_id": "s1", "api_url": "http://127.0.0.1:9/in", "api_key": key, "is_active": true})
}

#[tokio::test]
async fn a_row_becomes_an_integration_that_keeps_up_and_goes_with_it() {
    in_each_world(async |world| {
        let first = venue("the first key");
        for _ in 0..2 {
            world.take("venue_integrations", None, Some(&first)).await;
        }
        let row = world.row("venue_integrations").await.expect("it was met");
        assert_eq!((row.became.as_str(), row.refused.as_str()), ("integration", ""));
        let keeper = &world.keeper;
        let integration = keeper.integrations.get(&organization(), &row.target_id).await.expect("made");
        assert_eq!((integration.settings.connector.as_str(), integration.settings.supplier_id.as_str()), ("venue", "s1"));
        assert_eq!(integration.settings.parameters["url"], "http://127.0.0.1:9/in");
        assert_eq!(integration.version, 1, "the same row again changes nothing");

        let second = venue("the second key");
        world.take("venue_integrations", Some(&first), Some(&second)).await;
        let connection = keeper.credentials.connections.get(&integration).await.expect("the store").expect("connected");
        assert!(connection.old.is_some(), "the key before serves beside it for a while");
        let sealed: Vec<u8> =
            with!(world.store.reader(), c => sqlx::query_scalar("SELECT credential FROM connections").fetch_one(c).await)
                .expect("sealed");
        assert!(!String::from_utf8_lossy(&sealed).contains("second key"));

        world.take("venue_integrations", Some(&second), None).await;
        assert_eq!(world.count("SELECT COUNT(*) FROM integrations").await, 0);
        assert!(world.row("venue_integrations").await.is_none());
    })
    .await;
}

#[tokio::test]
async fn what_nobody_can_follow_is_refused_with_a_reason_and_what_was_stays() {
    in_each_world(async |world| {
        let row = json!({"id": 1, "provider": "Shoe Shop", "api_key": "hush-hush"});
        world.take("supplier_integrations", None, Some(&row)).await;
        let refused = world.row("supplier_integrations").await.expect("it was met");
        assert!(refused.refused.contains("no connector is named shoe-shop"), "{}", refused.refused);
        assert!(!refused.refused.contains("hush"));
        let first = venue("the first key");
        world.take("venue_integrations", None, Some(&first)).await;
        let broken = json!({"id": 1, "api_url": "no url", "api_key": "the first key"});
        world.take("venue_integrations", Some(&first), Some(&broken)).await;
        let row = world.row("venue_integrations").await.expect("it was met");
        assert!(row.refused.contains("url") && row.became == "integration", "{}", row.refused);
        assert_eq!(world.count("SELECT COUNT(*) FROM integrations").await, 1);
    })
    .await;
}

#[tokio::test]
async fn a_webhook_endpoint_has_its_own_secret_and_rests_while_it_is_not_active() {
    in_each_world(async |world| {
        let secret = chassis::signature::WebhookSecret::generate();
        let row = |active: bool| {
            json!({"id": 1, "url": "http://127.0.0.1:9/in", "secret": secret.expose(), "events": ["wedding.*"], "is_active": active})
        };
        world.take("webhook_endpoints", None, Some(&row(true))).await;
        let kept = world.row("webhook_endpoints").await.expect("it was met");
        let endpoint = world.keeper.endpoints.book.of(&organization(), &kept.target_id).expect("made");
        assert_eq!((endpoint.state, endpoint.settings.event_types.as_slice()), (State::Active, ["wedding.*".to_owned()].as_slice()));
        assert_eq!(endpoint.secrets[0].secret.expose(), secret.expose());
        world.take("webhook_endpoints", Some(&row(true)), Some(&row(false))).await;
        let endpoint = world.keeper.endpoints.book.of(&organization(), &kept.target_id).expect("kept");
        assert_eq!(endpoint.state, State::Paused);
        world.take("webhook_endpoints", Some(&row(false)), None).await;
        let gone = world.keeper.endpoints.book.of(&organization(), &kept.target_id);
        assert!(matches!(gone, Err(Error::NotFound(_))));
    })
    .await;
}

#[tokio::test]
async fn a_sealed_row_is_opened_and_another_organizations_is_not() {
    in_each_world(async |world| {
        let sealed = |organization: &str| {
            let organization = OrganizationId::parse(organization).expect("well-formed");
            let row = venue("a key").to_string();
            let row = sealed_row::seal(world.keeper.keys.keyring(), &organization, row.as_bytes()).expect("an object");
            event("venue_integrations", None, Some(&serde_json::from_slice(&row).expect("JSON")))
        };
        assert!(world.keeper.take(&sealed("somebody-else")).await.is_err());
        assert!(world.row("venue_integrations").await.is_none());
        world.keeper.take(&sealed("acme")).await.expect("it is taken");
        assert_eq!(world.row("venue_integrations").await.expect("it was met").became, "integration");
    })
    .await;
}

#[tokio::test]
async fn what_a_suppliers_own_database_says_of_configuration_is_not_followed() {
    in_each_world(async |world| {
        let organization = OrganizationId::parse("acme").expect("well-formed");
        for (supplier, is_followed) in [("s1", false), ("", true)] {
            let settings = Settings { supplier_id: supplier.to_owned(), ..settings(Kind::Supabase) };
            let secret = Secret::from("a secret of theirs".to_owned());
            let made = world.keeper.integrations.create(organization.clone(), settings, &secret).await.expect("made");
            let mut said = event("venue_integrations", None, Some(&venue("a key")));
            said.source = format!("integration:{}", made.id);
            world.keeper.take(&said).await.expect("it is taken");
            assert_eq!(world.row("venue_integrations").await.is_some(), is_followed, "{supplier}");
        }
    })
    .await;
}

#[tokio::test]
async fn a_changed_secret_signs_from_then_on_and_the_one_before_it_for_a_while() {
    in_each_world(async |world| {
        let secrets = [(); 2].map(|()| chassis::signature::WebhookSecret::generate());
        let row = |secret: usize| json!({"id": 1, "url": "http://127.0.0.1:9/in", "secret": secrets[secret].expose()});
        world.take("webhook_endpoints", None, Some(&row(0))).await;
        for _ in 0..2 {
            world.take("webhook_endpoints", Some(&row(0)), Some(&row(1))).await;
        }
        let id = world.row("webhook_endpoints").await.expect("it was met").target_id;
        let endpoint = world.keeper.endpoints.book.of(&organization(), &id).expect("made");
        let signing: Vec<_> =
            endpoint.secrets.iter().map(|kept| (kept.secret.expose(), kept.expires_at.is_some())).collect();
        assert_eq!(signing, [(secrets[1].expose(), false), (secrets[0].expose(), true)]);
    })
    .await;
}

#[tokio::test]
async fn a_refused_row_is_sealed_and_followed_once_what_it_was_refused_for_is_over() {
    in_each_world(async |world| {
        let row = json!({"id": 1, "provider": "shoe-shop", "api_key": "hush-hush"});
        world.take("supplier_integrations", None, Some(&row)).await;
        world.keeper.look().await.expect("it is looked at");
        assert!(world.row("supplier_integrations").await.expect("it was met").refused.contains("shoe-shop"));
        let sealed: Vec<u8> =
            with!(world.store.reader(), c => sqlx::query_scalar("SELECT kept FROM configured").fetch_one(c).await)
                .expect("sealed");
        assert!(!String::from_utf8_lossy(&sealed).contains("hush"));

        let connector = "name = 'shoe-shop'\ntitle = 'Shoes'\nkind = 'other'\nbase_url = 'https://shoes.example'\n\
            [[auth]]\nkind = 'api_key'\nin = 'header'\nname = 'x-key'\n";
        world.keeper.catalogue.put(&organization(), connector, 0).await.unwrap_or_else(|refused| panic!("{refused:?}"));
        world.keeper.look().await.expect("it is looked at");
        let row = world.row("supplier_integrations").await.expect("it was met");
        assert_eq!((row.became.as_str(), row.refused.as_str()), ("integration", ""));
        let connected = "SELECT COUNT(*) FROM connections WHERE state = 'connected'";
        assert_eq!(world.count(connected).await, 1);
        assert_eq!(world.count("SELECT COUNT(*) FROM configured WHERE kept IS NOT NULL").await, 0);
    })
    .await;
}

#[tokio::test]
async fn the_same_row_again_is_followed_if_it_was_refused_before() {
    in_each_world(async |world| {
        let row = json!({"id": 1, "url": "http://nowhere.invalid/in"});
        world.take("webhook_endpoints", None, Some(&row)).await;
        let refused = world.row("webhook_endpoints").await.expect("it was met");
        assert!(refused.refused.contains("can't be resolved"), "{}", refused.refused);
        // As if the name had been unknown for a moment.
        let noted = Noted {
            table: &refused.table,
            id: &refused.id,
            became: "",
            target_id: "",
            hash: &refused.hash,
            refused: "something else",
            kept: None,
        };
        world.keeper.rows.put(&organization(), &noted).await.expect("the store");
        world.take("webhook_endpoints", None, Some(&row)).await;
        assert_eq!(world.row("webhook_endpoints").await.expect("it was met").refused, refused.refused);
    })
    .await;
}

#[tokio::test]
async fn a_row_whose_id_changes_leaves_nothing_of_what_it_was() {
    in_each_world(async |world| {
        let (before, mut after) = (venue("key"), venue("key"));
        after["id"] = 2.into();
        world.take("venue_integrations", None, Some(&before)).await;
        world.take("venue_integrations", Some(&before), Some(&after)).await;
        assert!(world.row("venue_integrations").await.is_none(), "the row 1 is gone");
        assert_eq!(world.count("SELECT COUNT(*) FROM integrations").await, 1);
        assert_eq!(world.count("SELECT COUNT(*) FROM configured").await, 1);
    })
    .await;
}

#[tokio::test]
async fn what_a_row_became_goes_with_its_health_and_what_was_told_of_it_ends() {
    in_each_world(async |world| {
        world.take("venue_integrations", None, Some(&venue("key"))).await;
        let id = world.row("venue_integrations").await.expect("it was met").target_id;
        for statement in [
            "INSERT INTO integration_health (integration_id, organization_id, failing, since, changes, recent)
             VALUES ($1, $2, 1, 0, 1, '[]')",
            "INSERT INTO integration_behind (integration_id, wedding_id, organization_id, delivery, since)
             VALUES ($1, 'w1', $2, 7, 0)",
        ] {
            with!(world.store.writer(), c => sqlx::query(statement).bind(&id).bind(organization().as_str()).execute(c).await.map(drop))
                .expect("it is written");
        }
        world.take("venue_integrations", Some(&venue("key")), None).await;
        for table in [
            "SELECT COUNT(*) FROM integration_health",
            "SELECT COUNT(*) FROM integration_behind",
            "SELECT COUNT(*) FROM connections",
        ] {
            assert_eq!(world.count(table).await, 0, "{table}");
        }
        let over = "SELECT COUNT(*) FROM outbox WHERE event_id LIKE 'integration.caught_up:%:behind.7'";
        assert_eq!(world.count(over).await, 1);
    })
    .await;
}
