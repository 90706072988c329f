//! Letters carried to vendors by the sync engine: from an event to what the vendor has, on each engine of the store.

use std::{collections::BTreeMap, sync::Arc};

use chassis::{
    clock::Clock,
    config::Secret,
    id::OrganizationId,
    lane::{Delivery, Dispatcher, Slots},
    outbound::Outbound,
    secret::DataKeys,
    service::Chassis,
    store::Store,
    testing::{noon, on_each_engine},
};
use serde_json::{Value as Json, json};

use super::{
    peers::way_out,
    rig::{KEY, SECRET},
};
use crate::{
    connector::{call::Caller, catalogue::Catalogue, limits::Limits},
    credential::{Connections, Kept, State},
    database::Database,
    integration::{Integrations, Kind, Settings, tests::settings},
    outbox::Outbox,
    record::{Links, RecordKey, RecordKind, Records, Source, Update},
    resolve::Resolver,
    sync::{account::Account, carry::Carrier, known::Known, letter::Letter, tests::with_keys},
    testing::vendor::{
        Server,
        mailchimp::{Mailchimp, hash_of},
        postgrest::Postgrest,
        profile::{Profile, Receiver},
    },
};

struct World {
    store: Store,
    carrier: Carrier,
    records: Records,
    catalogue: Catalogue,
    integrations: Integrations,
    connections: Connections,
}

/// Letters are handed to the carrier by the tests themselves.
struct Nobody;

impl chassis::lane::Courier for Nobody {
    async fn attempt(&self, _: Arc<Delivery>) -> chassis::lane::Attempted {
        unreachable!("nothing is offered")
    }

    async fn closed(&self, _: &str, _: &str) {}
}

fn acme() -> OrganizationId {
    OrganizationId::parse("acme").expect("well-formed")
}

impl World {
    async fn open(store: Store) -> Self {
        let chassis = Chassis::for_test();
        let keys = DataKeys::new(store.clone(), chassis.keyring().expect("a key"), Clock::System);
        let outbound: Outbound = way_out();
        let (slots, clock) = (Slots::default(), Clock::System);
        let dispatcher =
            Dispatcher::start(store.clone(), keys.clone(), Arc::new(Nobody), slots, clock.clone(), &chassis.tasks)
                .await;
        let catalogue = Catalogue::new(store.clone(), clock.clone());
        let integrations = Integrations::new(store.clone(), keys.clone(), clock.clone());
        let credentials = with_keys(&store, &keys).await.credentials;
        let connections = credentials.connections.clone();
        let limits = Limits::new(store.clone(), clock.clone());
        let caller = Caller::new(
            catalogue.clone(),
            credentials.clone(),
            integrations.clone(),
            outbound.clone(),
            limits,
            clock.clone(),
        );
        let records = Records::new(store.clone(), keys.clone(), clock.clone());
        let links = Links::new(store.clone(), keys.clone());
        let outbox = Outbox::new(store.clone(), keys.clone(), dispatcher.expect("it starts"), clock.clone());
        let resolver = Resolver::new(store.clone(), keys, clock, records.clone(), links, outbox);
        let known = Known::over(&resolver);
        let database = Database::new(credentials, outbound);
        let carrier = Carrier { caller, records: records.clone(), known, resolver, database };
        Self { store, carrier, records, catalogue, integrations, connections }
    }

    /// An account of acme at a built-in connector's vendor that is at `base`.
    async fn account(&self, connector: &str, base: &str, parameters: &[(&str, &str)]) -> Account {
        let text = format!("name = \"here\"\ntitle = \"Here\"\nextends = \"{connector}\"\nbase_url = \"{base}\"\n");
        let entry = self.catalogue.put(&acme(), &text, 0).await;
        assert!(entry.is_ok(), "an organization may lay its own over a built-in one");
        let parameters = parameters.iter().map(|(name, value)| ((*name).to_owned(), (*value).to_owned())).collect();
        let settings =
            Settings { connector: "here".into(), vendor: "here".into(), parameters, ..settings(Kind::Connector) };
        let integration = self.integrations.create(acme(), settings, &Secret::from(SECRET.to_owned())).await;
        let integration = integration.expect("created");
        let kept = Kept::Key(Secret::from(KEY.to_owned()));
        self.connections.connect(&integration, &kept, &BTreeMap::new(), None).await.expect("connected");
        let connector = self.catalogue.get(&acme(), "here").await.expect("it is there").connector;
        Account { integration, connector, state: State::Connected }
    }

    /// What WedSync knows of a record.
    async fn knows(&self, kind: RecordKind, id: &str, fields: Json) {
        let key = RecordKey::new(acme(), kind, id).expect("well-formed");
        let fields = serde_json::from_value(fields).expect("an object");
        let mut tx = self.store.begin().await.expect("begun");
        let update = Update::new(Source::wedsync(), noon(), fields);
        self.records.apply_in(&mut tx, &key, &update).await.expect("applied");
        tx.commit().await.expect("committed");
    }

    async fn carry(&self, account: &Account, letter: &Letter) {
        let carried = self.carrier.carry(account, letter, &delivery()).await;
        carried.unwrap_or_else(|error| panic!("{}: {error}", letter.event_type));
    }
}

fn delivery() -> Delivery {
    Delivery {
        id: 1,
        lane: 1,
        lane_id: "i".into(),
        organization: acme(),
        event: [7; 16],
        event_id: "e1".to_owned(),
        event_type: "x".to_owned(),
        ordering_key: "w1".to_owned(),
        priority: 2,
        origin: "realtime".to_owned(),
        attempts: 0,
        reopened_after: 0,
        created_at: noon().as_microsecond(),
        content: bytes::Bytes::new(),
    }
}

fn letter(type_: &str, content: &Json) -> Letter {
    Letter {
        event_id: format!("e-{type_}"),
        event_uid: "01990000-0000-7000-8000-000000000001".to_owned(),
        event_type: type_.to_owned(),
        time: noon().to_string(),
        source: "wedsync".to_owned(),
        wedding_id: "w1".to_owned(),
        couple_id: "c1".to_owned(),
        content: content.to_string(),
        ..Letter::default()
    }
}

fn about(mut letter: Letter, kind: &str, id: &str, fields: &Json, changed: &[&str]) -> Letter {
    (letter.kind, letter.record_id) = (kind.to_owned(), id.to_owned());
    letter.fields = fields.to_string();
    letter.changed = changed.iter().map(|name| (*name).to_owned()).collect();
    letter
}

async fn on_each_store<F: Future<Output = ()>>(test: impl Fn(Store) -> F) {
    on_each_engine(crate::resolve::tests::MIGRATIONS, test).await;
}

#[tokio::test]
async fn a_milestone_makes_the_couple_a_member_tags_them_and_starts_their_journey_once() {
    on_each_store(async |store| {
        let (world, server) = (World::open(store).await, Server::start(Mailchimp::new(KEY, "a1")).await);
        let account = world.account("mailchimp", server.base(), &[("list_id", "a1")]).await;
        let couple = json!({"first_name": "Ada", "email": "Ada@Example.org", "consent_marketing": true});
        world.knows(RecordKind::Client, "c1", couple).await;
        let reached = letter("journey.milestone_completed", &json!({"milestone_name": "Menu chosen"}));
        world.carry(&account, &reached).await;
        world.carry(&account, &reached).await;
        let (hash, mut vendor) = (hash_of("ada@example.org"), server.vendor());
        let audience = vendor.audience("a1");
        assert_eq!(audience.members[&hash]["merge_fields"]["FNAME"], "Ada");
        assert!(audience.tags[&hash].contains("milestone-menu chosen"));
        assert_eq!(audience.events[&hash].len(), 1, "the journey starts once");
    })
    .await;
}

#[tokio::test]
async fn nobody_who_did_not_consent_becomes_a_member_by_any_event() {
    on_each_store(async |store| {
        let (world, server) = (World::open(store).await, Server::start(Mailchimp::new(KEY, "a1")).await);
        let account = world.account("mailchimp", server.base(), &[("list_id", "a1")]).await;
        let couple = json!({"first_name": "Ada", "email": "ada@example.org", "wedding_date": "2026-06-20"});
        world.knows(RecordKind::Client, "c1", couple.clone()).await;
        let reached = letter("journey.milestone_completed", &json!({"milestone_name": "Menu chosen"}));
        world.carry(&account, &reached).await;
        for type_ in ["client.created", "client.updated"] {
            world.carry(&account, &about(letter(type_, &Json::Null), "client", "c1", &couple, &["wedding_date"])).await;
        }
        assert!(server.asked().is_empty(), "{:?}", server.asked());
    })
    .await;
}

#[tokio::test]
async fn a_signed_request_carries_the_events_own_id_however_often_it_is_sent() {
    on_each_store(async |store| {
        let world = World::open(store).await;
        let server = Server::start(Receiver::new(Profile::Venue, KEY, SECRET)).await;
        let account = world.account("venue", server.base(), &[("url", server.base())]).await;
        let wedding = json!({"wedding_date": "2026-06-20", "guest_count": 90});
        world.knows(RecordKind::Wedding, "w1", wedding.clone()).await;
        let moved = about(letter("wedding_details.update", &Json::Null), "wedding", "w1", &wedding, &["guest_count"]);
        world.carry(&account, &moved).await;
        let asked = server.asked();
        assert_eq!(
            asked[0].header("webhook-id"),
            "msg_01990000-0000-7000-8000-000000000001",
            "{:?}",
            server.vendor().refused
        );
        assert_eq!(server.vendor().taken[0]["party_size"], 90);
        world.carry(&account, &moved).await;
        assert_eq!(server.asked().len(), 1, "the venue is known to have it");
    })
    .await;
}

#[tokio::test]
async fn what_a_vendor_changed_is_patched_into_wedsyncs_own_table() {
    on_each_store(async |store| {
        let world = World::open(store).await;
        let mut tables = Postgrest::new(KEY);
        let row =
            json!({"id": "w1", "wedding_date": "2026-06-13", "guest_count": 80, "updated_at": "2026-05-01T00:00:00Z"});
        tables.tables.insert("wedding_details".to_owned(), vec![row]);
        let server = Server::start(tables).await;
        let account = world.account("wedsync-postgrest", server.base(), &[("url", server.base())]).await;
        let wedding = json!({"wedding_date": "2026-06-20", "guest_count": 80});
        world.knows(RecordKind::Wedding, "w1", wedding.clone()).await;
        let moved = about(letter("wedding.date_changed", &Json::Null), "wedding", "w1", &wedding, &["wedding_date"]);
        world.carry(&account, &moved).await;
        assert_eq!(server.vendor().tables["wedding_details"][0]["wedding_date"], "2026-06-20");
        let patches = server.asked().iter().filter(|asked| asked.method == "PATCH").count();
        world.carry(&account, &moved).await;
        assert_eq!(server.asked().iter().filter(|asked| asked.method == "PATCH").count(), patches, "it has it");
    })
    .await;
}
