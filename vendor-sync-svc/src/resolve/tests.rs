//! What is resolved, on each engine: a real store, and what waits in the outbox read back.

mod refused;

use std::{collections::BTreeMap, sync::Arc};

use chassis::{
    clock::{Clock, ManualClock},
    lane::{Attempted, Courier, Delivery, Dispatcher, Outcome, Slots},
    service::Chassis,
    store::Migrations,
    testing::{manual_clock, noon, on_each_engine},
    with,
};
use jiff::{SignedDuration, Timestamp};
use proto::router::v1 as router;
use serde_json::json;

use super::*;
use crate::{
    connector::Reply,
    event::tests::change,
    integration::{Kind, tests::settings},
    record::{RecordKey, Records},
    sync::{known::Known, letter::Letter, read::read},
};

pub(crate) static MIGRATIONS: &[&Migrations] =
    &[&chassis::store::MIGRATIONS, &chassis::lane::MIGRATIONS, &crate::MIGRATIONS];

/// Delivers nothing: letters are looked at where they wait.
struct Nobody;

impl Courier for Nobody {
    async fn attempt(&self, _: Arc<Delivery>) -> Attempted {
        let (class, error) = ("delivered", String::new());
        Attempted { outcome: Outcome::Delivered, status_code: None, class, error, response: Default::default() }
    }

    async fn closed(&self, _: &str, _: &str) {}
}

/// The resolver over a store, at noon.
struct World {
    resolver: Resolver,
    known: Known,
    clock: ManualClock,
}

impl World {
    async fn open(store: Store) -> Self {
        let (chassis, (clock, time)) = (Chassis::for_test(), manual_clock());
        let keys = DataKeys::new(store.clone(), chassis.keyring().expect("a key"), time.clone());
        let dispatcher = Dispatcher::start(
            store.clone(),
            keys.clone(),
            Arc::new(Nobody),
            Slots::default(),
            Clock::System,
            &chassis.tasks,
        );
        let dispatcher = dispatcher.await.expect("it starts");
        let records = Records::new(store.clone(), keys.clone(), time.clone());
        let links = Links::new(store.clone(), keys.clone());
        let outbox = Outbox::new(store.clone(), keys.clone(), dispatcher, time.clone());
        let resolver = Resolver::new(store, keys, time, records, links, outbox);
        Self { known: Known::over(&resolver), resolver, clock }
    }

    async fn take(&self, integration: &Integration, incoming: Incoming) -> Resolved {
        let mut resolved = self.resolver.take(integration, vec![incoming]).await.expect("it is taken");
        resolved.pop().expect("one of one")
    }

    /// What waits: events, and letters to integrations.
    async fn waiting(&self) -> (Vec<router::Event>, Vec<Letter>) {
        self.resolver.outbox.look(&organization()).await
    }

    async fn record(&self, id: &str) -> BTreeMap<String, Value> {
        let key = RecordKey::new(organization(), RecordKind::Wedding, id).expect("well-formed");
        self.resolver.records.get(&key).await.expect("it is read").expect("it is there").values()
    }

    /// A vendor took these fields from us.
    async fn written(&self, integration: &Integration, id: &str, fields: BTreeMap<String, Value>, version: &str) {
        let key = RecordKey::new(organization(), RecordKind::Wedding, id).expect("well-formed");
        let reply = Reply {
            body: Value::Null,
            resource: Value::Null,
            external_id: "x1".to_owned(),
            external_version: version.to_owned(),
            handed_over: false,
        };
        self.known.intends(integration, &key, &fields).await.expect("it is noted");
        self.known.written(integration, &key, &fields, &reply).await.expect("it is noted");
    }
}

fn organization() -> OrganizationId {
    OrganizationId::parse("acme").expect("well-formed")
}

/// An integration of a supplier; empty: the organization's own.
fn integration(id: u8, supplier: &str) -> Integration {
    let mut settings = settings(Kind::Connector);
    settings.supplier_id = supplier.to_owned();
    Integration {
        id: format!("01990000-0000-7000-8000-0000000000{id:02}"),
        organization: organization(),
        settings,
        version: 1,
        created_at: noon(),
        updated_at: noon(),
        last_received_at: None,
    }
}

fn fields(value: Value) -> BTreeMap<String, Value> {
    serde_json::from_value(value).expect("an object")
}

fn wedding(external_id: &str, at: Timestamp, said: Value) -> Incoming {
    Incoming {
        kind: RecordKind::Wedding,
        external_id: external_id.to_owned(),
        external_version: String::new(),
        at,
        fields: fields(said),
        deleted: false,
        priority_low: false,
        origin: Origin::Webhook,
    }
}

fn after(minutes: i64) -> Timestamp {
    noon() + SignedDuration::from_mins(minutes)
}

/// Has `take` be what was there before, for tests that begin with a linked record.
async fn linked(world: &World, integration: &Integration, said: Value) -> String {
    match world.take(integration, wedding("x1", noon(), said)).await {
        Resolved::Created { record_id } => record_id,
        other => panic!("{other:?}"),
    }
}

#[tokio::test]
async fn a_new_word_makes_a_record_a_link_and_one_event_and_the_same_again_nothing() {
    on_each_engine(MIGRATIONS, async |store| {
        let (world, tave) = (World::open(store).await, integration(1, "s1"));
        let id = linked(&world, &tave, json!({"wedding_date": "2026-06-20", "guest_count": 80})).await;
        assert_eq!(world.record(&id).await["guest_count"], json!(80));
        for _ in 0..3 {
            let again = wedding("x1", after(1), json!({"wedding_date": "2026-06-20", "guest_count": 80}));
            assert_eq!(world.take(&tave, again).await, Resolved::Unchanged);
        }
        let (events, letters) = world.waiting().await;
        assert_eq!((events.len(), letters.len()), (1, 0));
        assert_eq!(
            (events[0].r#type.as_str(), events[0].source.as_str()),
            ("booking.updated", &*format!("integration:{}", tave.id))
        );
        assert_eq!(events[0].metadata.as_ref().expect("metadata").supplier_id, "s1");
    })
    .await;
}

#[tokio::test]
async fn each_thing_that_changed_is_told_by_its_own_event() {
    on_each_engine(MIGRATIONS, async |store| {
        let (world, tave) = (World::open(store).await, integration(1, ""));
        linked(&world, &tave, json!({"wedding_date": "2026-06-20", "guest_count": 80})).await;
        let said = json!({"wedding_date": "2026-07-01", "guest_count": 90, "ceremony_time": "15:00"});
        assert!(matches!(world.take(&tave, wedding("x1", after(5), said)).await, Resolved::Changed { .. }));
        let (events, _) = world.waiting().await;
        let mut types: Vec<_> = events.iter().skip(1).map(|event| event.r#type.as_str()).collect();
        types.sort_unstable();
        assert_eq!(types, ["guest_count.changed", "timeline.updated", "wedding.date_changed"]);
        let ids: std::collections::BTreeSet<_> = events.iter().map(|event| &event.id).collect();
        assert_eq!(ids.len(), 4);
    })
    .await;
}

#[tokio::test]
async fn our_own_write_coming_back_changes_nothing_and_is_told_nobody() {
    on_each_engine(MIGRATIONS, async |store| {
        let (world, tave) = (World::open(store).await, integration(1, ""));
        let id = linked(&world, &tave, json!({"guest_count": 80})).await;
        world.written(&tave, &id, fields(json!({"guest_count": 90})), "v2").await;
        let by_value = wedding("x1", after(1), json!({"guest_count": 90}));
        assert_eq!(world.take(&tave, by_value).await, Resolved::Echo);
        let by_version =
            Incoming { external_version: "v2".to_owned(), ..wedding("x1", after(1), json!({"guest_count": 91})) };
        assert_eq!(world.take(&tave, by_version).await, Resolved::Echo);
        assert_eq!(world.waiting().await.0.len(), 1);
    })
    .await;
}

#[tokio::test]
async fn an_echo_that_comes_late_undoes_no_newer_write_and_an_old_value_chosen_again_is_heard() {
    on_each_engine(MIGRATIONS, async |store| {
        let (world, tave) = (World::open(store).await, integration(1, ""));
        let id = linked(&world, &tave, json!({"guest_count": 80})).await;
        world.written(&tave, &id, fields(json!({"guest_count": 90})), "").await;
        world.written(&tave, &id, fields(json!({"guest_count": 100})), "").await;
        let back = |minutes, guests: u32| wedding("x1", after(minutes), json!({"guest_count": guests}));
        assert_eq!(world.take(&tave, back(5, 90)).await, Resolved::Echo);
        assert_eq!(world.take(&tave, back(6, 100)).await, Resolved::Echo);
        assert!(matches!(world.take(&tave, back(7, 90)).await, Resolved::Changed { .. }), "somebody there chose it");
        assert_eq!(world.record(&id).await["guest_count"], json!(90));
    })
    .await;
}

#[tokio::test]
async fn a_vendor_whose_word_lost_is_told_what_stands_a_few_times_and_no_more() {
    on_each_engine(MIGRATIONS, async |store| {
        let (world, tave, other) = (World::open(store).await, integration(1, ""), integration(2, ""));
        let id = linked(&world, &tave, json!({"guest_count": 80})).await;
        // A vendor that says so of an older time, having read it.
        let poll = |minutes, guests: u32| Incoming {
            origin: Origin::Poll,
            ..wedding("x1", after(minutes), json!({"guest_count": guests}))
        };
        world.clock.advance(std::time::Duration::from_secs(3600));
        let newer = Incoming { external_id: id.clone(), ..wedding("x1", after(50), json!({"guest_count": 70})) };
        assert!(matches!(world.take(&other, newer).await, Resolved::Changed { .. }));
        for round in 0..5 {
            assert_eq!(world.take(&tave, poll(10 + round, 60)).await, Resolved::Conflicted { record_id: id.clone() });
            world.written(&tave, &id, fields(json!({"guest_count": 70})), "").await;
        }
        assert_eq!(world.record(&id).await["guest_count"], json!(70));
        let (_, letters) = world.waiting().await;
        assert_eq!(letters.len(), 3);
        assert_eq!(letters[0].fields()["guest_count"], json!(70));
    })
    .await;
}

#[tokio::test]
async fn no_supplier_is_matched_to_anothers_record_by_id_or_by_natural_key() {
    on_each_engine(MIGRATIONS, async |store| {
        let (world, mine, foreign) = (World::open(store).await, integration(1, "s1"), integration(2, "s2"));
        let said = || json!({"wedding_date": "2026-06-20", "bride_name": "Ann Lee", "groom_name": "Bo Ray"});
        let id = linked(&world, &mine, said()).await;
        for external_id in [id.as_str(), "y1"] {
            let Resolved::Created { record_id } = world.take(&foreign, wedding(external_id, after(1), said())).await
            else {
                panic!("another record");
            };
            assert_ne!(record_id, id);
        }
        let own = integration(3, "s1");
        let same = wedding("z1", after(2), said());
        assert!(
            !matches!(world.take(&own, same).await, Resolved::Created { .. }) || world.waiting().await.0.len() == 4
        );
    })
    .await;
}

#[tokio::test]
async fn fifty_copies_at_once_have_one_effect() {
    on_each_engine(MIGRATIONS, async |store| {
        let (world, tave) = (World::open(store).await, integration(1, ""));
        let takes = (0..50).map(|_| world.take(&tave, wedding("x1", noon(), json!({"guest_count": 80}))));
        let resolved = futures_util::future::join_all(takes).await;
        let created = resolved.iter().filter(|resolved| matches!(resolved, Resolved::Created { .. })).count();
        assert_eq!((created, world.waiting().await.0.len()), (1, 1));
    })
    .await;
}

#[tokio::test]
async fn what_isnt_committed_never_was() {
    on_each_engine(MIGRATIONS, async |store| {
        let (world, tave) = (World::open(store.clone()).await, integration(1, ""));
        let mut taking = world.resolver.begin(&organization()).await.expect("it begins");
        taking.take(&tave, &[wedding("x1", noon(), json!({"guest_count": 80}))]).await.expect("it is taken");
        drop(taking);
        for table in ["records", "record_links", "outbox", "record_suppliers"] {
            let text = format!("SELECT COUNT(*) FROM {table}");
            let rows: i64 = with!(store.reader(), c => {
                sqlx::query_scalar(sqlx::AssertSqlSafe(text.as_str())).fetch_one(c).await
            })
            .expect("counted");
            assert_eq!(rows, 0, "{table}");
        }
    })
    .await;
}

#[tokio::test]
async fn the_databases_own_echo_is_recognised_however_late_and_its_row_is_what_it_has() {
    on_each_engine(MIGRATIONS, async |store| {
        let (world, tave, database) = (World::open(store).await, integration(1, ""), integration(9, ""));
        let databases = [database.id.clone()];
        let observe = async |old: &str, new: &str, number: u8| {
            let mut event = change(old, new);
            event.id = format!("e{number}");
            let said = read(&event).expect("about a wedding");
            world
                .resolver
                .observe(&event, &said, &databases, false)
                .await
                .expect("it is observed")
                .expect("it is known")
        };
        let row = |guests: u32| format!(r#"{{"id":"w1","guest_count":{guests},"venue_name":"Barn"}}"#);
        assert!(!observe("", &row(80), 1).await.is_echo);
        for (guests, minutes) in [(90, 1), (100, 2)] {
            world.clock.advance(std::time::Duration::from_secs(60));
            let said = wedding("w1", after(minutes), json!({"guest_count": guests}));
            assert!(matches!(world.take(&tave, said).await, Resolved::Changed { .. }));
            world.written(&database, "w1", fields(json!({"guest_count": guests})), "").await;
        }
        assert!(observe(&row(80), &row(90), 2).await.is_echo, "though another was written since");
        assert!(observe(&row(80), &row(90), 2).await.is_echo, "and likewise when the event comes again");
        assert!(observe(&row(90), &row(100), 3).await.is_echo);
        assert_eq!(world.record("w1").await["guest_count"], json!(100));
        world.clock.advance(std::time::Duration::from_secs(600));
        let seen = observe(&row(100), &row(90), 4).await;
        assert!(!seen.is_echo, "somebody changed it there");
        assert_eq!(seen.changed, ["guest_count"]);
    })
    .await;
}
