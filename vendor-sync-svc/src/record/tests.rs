//! Records, links, conflicts and pins in the store, on each engine.

mod orders;

use std::collections::BTreeMap;

use chassis::{
    clock::{Clock, ManualClock},
    error::{Error, Result},
    id::OrganizationId,
    secret::DataKeys,
    service::Chassis,
    store::Store,
    testing::{manual_clock, noon, on_each_engine},
    with,
};
use futures_util::future::join_all;
use jiff::SignedDuration;
use serde_json::{Value, json};

use super::{
    Applied, Link, Links, Reason, Record, RecordKey, RecordKind, Records, Source, Update,
    conflict::{Entry, Filter, State},
    decide::Resolution,
    pin::Pin,
};

struct World {
    records: Records,
    links: Links,
    store: Store,
    clock: ManualClock,
}

async fn in_each_world<F: Future<Output = ()>>(test: impl Fn(World) -> F) {
    let migrations = &[&chassis::store::MIGRATIONS, &chassis::lane::MIGRATIONS, &crate::MIGRATIONS];
    on_each_engine(migrations, async |store| {
        let (manual, clock) = manual_clock();
        let keys = DataKeys::new(store.clone(), Chassis::for_test().keyring().expect("keys"), Clock::System);
        let links = Links::new(store.clone(), keys.clone());
        let world = World { records: Records::new(store.clone(), keys, clock), links, store, clock: manual };
        for name in ["acme", "other"] {
            world.records.keys.of(&organization(name)).await.expect("a key");
        }
        test(world).await;
    })
    .await;
}

impl World {
    async fn apply(&self, key: &RecordKey, update: &Update) -> Result<Applied> {
        let mut tx = self.store.begin().await?;
        let applied = self.records.apply_in(&mut tx, key, update).await?;
        tx.commit().await?;
        Ok(applied)
    }

    async fn decide(&self, organization: &OrganizationId, id: &str, resolution: &Resolution) -> Result<Applied> {
        let mut tx = self.store.begin().await?;
        let applied = self.records.decide_in(&mut tx, organization, id, resolution, "anna").await?;
        tx.commit().await?;
        Ok(applied)
    }

    async fn get(&self, key: &RecordKey) -> Record {
        self.records.get(key).await.expect("read").expect("it is there")
    }

    async fn log(&self, filter: &Filter) -> Vec<Entry> {
        self.records.conflicts(&organization("acme"), filter, "", 1_000).await.expect("read")
    }

    async fn found(&self, name: &str, kind: RecordKind, fields: &Value) -> Vec<String> {
        let mut tx = self.store.begin().await.expect("begun");
        let fields = object(fields);
        self.records.by_natural_key_in(&mut tx, &organization(name), kind, &fields).await.expect("looked up")
    }

    async fn put(&self, link: &Link) -> Result<()> {
        let mut tx = self.store.begin().await?;
        self.links.put_in(&mut tx, link).await?;
        tx.commit().await
    }
}

fn organization(name: &str) -> OrganizationId {
    OrganizationId::parse(name).expect("well-formed")
}

fn key(kind: RecordKind, id: &str) -> RecordKey {
    RecordKey::new(organization("acme"), kind, id).expect("well-formed")
}

fn object(fields: &Value) -> BTreeMap<String, Value> {
    serde_json::from_value(fields.clone()).expect("an object")
}

fn says(source: &str, seconds: i64, fields: &Value) -> Update {
    let at = noon() - SignedDuration::from_hours(1) + SignedDuration::from_secs(seconds);
    Update::new(Source(source.to_owned()), at, object(fields))
}

#[tokio::test]
async fn a_record_comes_back_as_it_was_merged_and_nobody_reads_it_in_the_store() {
    in_each_world(async |world| {
        let key = key(RecordKind::Client, "c1");
        let update = says("a", 1, &json!({"email": "Anna@x.org", "first_name": "Anna"}));
        let applied = world.apply(&key, &update).await.expect("applied");
        assert!(applied.created && applied.changes.len() == 2);
        assert_eq!(world.get(&key).await, applied.record);
        let again = world.apply(&key, &update).await.expect("applied");
        assert_eq!((again.created, again.changes.len(), again.record.version), (false, 0, 1));
        let bytes = with!(world.store.reader(), c => sqlx::query_scalar::<_, Vec<u8>>("SELECT body FROM records").fetch_one(c).await);
        let bytes = bytes.expect("a row");
        assert!(!bytes.windows(4).any(|part| part.eq_ignore_ascii_case(b"anna")), "it is sealed");
        let foreign = RecordKey { organization: organization("other"), ..key.clone() };
        assert_eq!(world.records.get(&foreign).await.expect("read"), None);
        let ids: Vec<_> = world.records.list(&key.organization, key.kind, "", 10).await.expect("listed");
        assert_eq!(ids, [applied.record]);
        assert_eq!(world.records.list(&foreign.organization, key.kind, "", 10).await.expect("listed"), []);
    })
    .await;
}

#[tokio::test]
async fn updates_at_the_same_time_lose_nothing_and_make_one_record() {
    in_each_world(async |world| {
        let key = key(RecordKind::Wedding, "w1");
        let updates: Vec<_> =
            (0..20).map(|n| says("a", n, &json!({format!("field_{n}"): n, "guest_count": n}))).collect();
        let applied = join_all(updates.iter().map(|update| world.apply(&key, update))).await;
        assert_eq!(applied.iter().filter(|applied| applied.as_ref().is_ok_and(|a| a.created)).count(), 1);
        let failed: Vec<_> = applied.into_iter().filter_map(Result::err).collect();
        assert!(failed.is_empty(), "{failed:?}");
        let values = world.get(&key).await.values();
        assert_eq!((values.len(), &values["guest_count"]), (21, &json!(19)));
    })
    .await;
}

#[tokio::test]
async fn a_natural_key_finds_what_stands_now_and_no_deleted_or_foreign_record() {
    in_each_world(async |world| {
        let client = key(RecordKind::Client, "c1");
        world.apply(&client, &says("a", 1, &json!({"email": "anna@x.org"}))).await.expect("applied");
        let anna = json!({"email": " ANNA@x.org "});
        assert_eq!(world.found("acme", RecordKind::Client, &anna).await, ["c1"]);
        assert!(world.found("other", RecordKind::Client, &anna).await.is_empty());
        assert!(world.found("acme", RecordKind::Booking, &anna).await.is_empty());
        let second = key(RecordKind::Client, "c2");
        world.apply(&second, &says("a", 1, &json!({"partner_email": "anna@x.org"}))).await.expect("applied");
        assert_eq!(world.found("acme", RecordKind::Client, &anna).await, ["c1", "c2"]);
        world.apply(&client, &says("a", 2, &json!({"email": "new@x.org"}))).await.expect("applied");
        world.apply(&second, &Update::deletion(Source("a".to_owned()), noon())).await.expect("applied");
        assert!(world.found("acme", RecordKind::Client, &anna).await.is_empty());
        assert_eq!(world.found("acme", RecordKind::Client, &json!({"email": "new@x.org"})).await, ["c1"]);
        let listed = world.records.list(&client.organization, client.kind, "", 10).await.expect("listed");
        assert_eq!(listed.len(), 1, "a deleted one is in no list");
    })
    .await;
}

#[tokio::test]
async fn what_lost_is_in_the_log_until_its_source_says_something_else() {
    in_each_world(async |world| {
        let key = key(RecordKind::Wedding, "w1");
        world.apply(&key, &says("a", 5, &json!({"guest_count": 100}))).await.expect("applied");
        let late = world.apply(&key, &says("b", 2, &json!({"guest_count": 90}))).await.expect("applied");
        assert_eq!((late.changes.len(), late.conflicts.len()), (0, 1));
        let log = world.log(&Filter { source: "b".to_owned(), ..Filter::default() }).await;
        assert_eq!((log.len(), log[0].state, log[0].conflict.reason), (1, State::Settled, Reason::Older));
        assert_eq!((&log[0].conflict.losing.value, log[0].conflict.losing.source.as_str()), (&json!(90), "b"));
        assert!(world.log(&Filter { state: Some(State::Open), ..Filter::default() }).await.is_empty());
        assert!(world.log(&Filter { record_id: "w2".to_owned(), ..Filter::default() }).await.is_empty());
        let foreign = world.records.conflicts(&organization("other"), &Filter::default(), "", 10).await.expect("read");
        assert!(foreign.is_empty());
        world.apply(&key, &says("b", 6, &json!({"guest_count": 100}))).await.expect("applied");
        assert!(world.log(&Filter::default()).await.is_empty(), "they agree");
    })
    .await;
}

#[tokio::test]
async fn a_person_decides_once_and_the_log_keeps_it_for_ninety_days() {
    in_each_world(async |world| {
        let key = key(RecordKind::Wedding, "w1");
        world.apply(&key, &says("a", 5, &json!({"guest_count": 100, "venue_name": "Mill"}))).await.expect("applied");
        world.apply(&key, &says("b", 2, &json!({"guest_count": 90, "venue_name": "Barn"}))).await.expect("applied");
        let log = world.log(&Filter::default()).await;
        let of = |field: &str| log.iter().find(|entry| entry.conflict.field == field).expect("noted").id.clone();
        let foreign = world.decide(&organization("other"), &of("guest_count"), &Resolution::Take).await;
        assert!(matches!(foreign, Err(Error::NotFound(_))), "{foreign:?}");
        let taken = world.decide(&key.organization, &of("guest_count"), &Resolution::Take).await.expect("decided");
        assert_eq!(taken.changes.iter().map(|change| change.new.clone()).collect::<Vec<_>>(), [json!(90)]);
        let again = world.decide(&key.organization, &of("guest_count"), &Resolution::Keep).await;
        assert!(matches!(again, Err(Error::FailedPrecondition(_))), "{again:?}");
        let third = Resolution::Value(json!("Hall"));
        world.decide(&key.organization, &of("venue_name"), &third).await.expect("decided");
        assert_eq!(world.get(&key).await.values(), object(&json!({"guest_count": 90, "venue_name": "Hall"})));
        let resolved = world.log(&Filter::default()).await;
        let said: Vec<_> = resolved.iter().filter_map(|entry| entry.decision.as_ref()).collect();
        assert_eq!((resolved.len(), said.len(), said[0].by.as_str()), (2, 2, "anna"));

        world.clock.advance(std::time::Duration::from_secs(91 * 86_400));
        world.apply(&key, &says("c", 1, &json!({"guest_count": 7}))).await.expect("applied");
        let ahead = says("b", 92 * 86_400, &json!({"guest_count": 5}));
        world.apply(&key, &Update { at: world.clock_now(), ..ahead }).await.expect("applied");
        let open = world.log(&Filter { state: Some(State::Settled), ..Filter::default() }).await;
        world.decide(&key.organization, &open[0].id, &Resolution::Keep).await.expect("decided");
        let left = world.log(&Filter { state: Some(State::Resolved), ..Filter::default() }).await;
        assert!(left.iter().all(|entry| entry.decision.as_ref().is_some_and(|d| d.resolution == "keep")), "{left:?}");
    })
    .await;
}

impl World {
    fn clock_now(&self) -> jiff::Timestamp {
        Clock::Manual(self.clock.clone()).now()
    }
}

#[tokio::test]
async fn a_deletion_against_an_edit_stays_open_until_somebody_says() {
    in_each_world(async |world| {
        for (id, resolution, is_gone) in [("w1", Resolution::Keep, false), ("w2", Resolution::Take, true)] {
            let key = key(RecordKind::Wedding, id);
            world.apply(&key, &says("a", 5, &json!({"guest_count": 100}))).await.expect("applied");
            let deletion = Update { deleted: true, ..says("b", 3, &json!({})) };
            let asked = world.apply(&key, &deletion).await.expect("applied");
            assert!(!asked.deleted && asked.record.deleted.is_none());
            let open = world.log(&Filter { state: Some(State::Open), ..Filter::default() }).await;
            assert_eq!((open.len(), open[0].conflict.field.as_str()), (1, ""));
            let refused = world.decide(&key.organization, &open[0].id, &Resolution::Value(json!(1))).await;
            assert!(matches!(refused, Err(Error::Invalid { .. })), "{refused:?}");
            let decided = world.decide(&key.organization, &open[0].id, &resolution).await.expect("decided");
            assert_eq!((decided.deleted, world.get(&key).await.deleted.is_some()), (is_gone, is_gone));
            assert!(world.log(&Filter { state: Some(State::Open), ..Filter::default() }).await.is_empty());
        }
    })
    .await;
}

#[tokio::test]
async fn a_records_own_pin_comes_before_its_kinds_and_counts_at_once() {
    in_each_world(async |world| {
        let (key, organization) = (key(RecordKind::Wedding, "w1"), organization("acme"));
        world.apply(&key, &says("a", 1, &json!({"guest_count": 100}))).await.expect("applied");
        world.apply(&key, &says("b", 2, &json!({"guest_count": 120}))).await.expect("applied");
        let pin = |source: &str, record_id: &str| Pin {
            kind: RecordKind::Wedding,
            field: "guest_count".to_owned(),
            record_id: record_id.to_owned(),
            source: Source(source.to_owned()),
            pinned_by: "anna".to_owned(),
            pinned_at: noon(),
        };
        let mut tx = world.store.begin().await.expect("begun");
        let all = world.records.pin_in(&mut tx, &organization, &pin("b", "")).await.expect("pinned");
        let own = world.records.pin_in(&mut tx, &organization, &pin("a", "w1")).await.expect("pinned");
        tx.commit().await.expect("committed");
        assert!(all.is_none());
        assert_eq!(own.expect("it counts at once").changes[0].new, json!(100));
        let refused = world.apply(&key, &says("b", 3, &json!({"guest_count": 130}))).await.expect("applied");
        assert_eq!((refused.changes.len(), refused.conflicts[0].reason), (0, Reason::Pinned));
        let mut tx = world.store.begin().await.expect("begun");
        let unpinned = world.records.unpin_in(&mut tx, &organization, RecordKind::Wedding, "guest_count", "w1").await;
        tx.commit().await.expect("committed");
        assert_eq!(unpinned.expect("unpinned").expect("at once").changes[0].new, json!(130));
        let mut tx = world.store.begin().await.expect("begun");
        let twice = world.records.unpin_in(&mut tx, &organization, RecordKind::Wedding, "guest_count", "w1").await;
        assert!(matches!(twice, Err(Error::NotFound(_))), "{twice:?}");
        drop(tx);
        assert_eq!(world.records.pins(&organization, ("", "", ""), 10).await.expect("listed"), [pin("b", "")]);
    })
    .await;
}

fn link(integration: &str, record: &str, external: &str) -> Link {
    Link {
        organization: organization("acme"),
        integration_id: integration.to_owned(),
        kind: RecordKind::Client,
        record_id: record.to_owned(),
        external_id: external.to_owned(),
        external_version: "\"7\"".to_owned(),
        own_version: "\"6\"".to_owned(),
        synced: object(&json!({"email": "anna@x.org", "guest_count": 120})),
        synced_at: noon(),
        handed_over: false,
    }
}

#[tokio::test]
async fn a_link_is_found_from_both_sides_by_its_own_organization_alone() {
    in_each_world(async |world| {
        let (acme, other, client) = (organization("acme"), organization("other"), RecordKind::Client);
        let first = link("i1", "c1", "anna@x.org");
        world.put(&first).await.expect("stored");
        let by_external = async |of: &OrganizationId| {
            let mut tx = world.store.begin().await.expect("begun");
            world.links.by_external_in(&mut tx, of, "i1", client, "anna@x.org").await
        };
        let by_record = async |of: &OrganizationId| world.links.by_record(of, "i1", client, "c1").await;
        assert_eq!(by_external(&acme).await.expect("read"), Some(first.clone()));
        assert_eq!(by_record(&acme).await.expect("read"), Some(first.clone()));
        assert_eq!(by_external(&other).await.expect("read"), None);
        assert_eq!(by_record(&other).await.expect("read"), None);
        let changed = Link { external_id: "anna.b@x.org".to_owned(), handed_over: true, ..first };
        world.put(&changed).await.expect("stored");
        assert_eq!(by_external(&acme).await.expect("read"), None, "its old name is nobody's");
        assert_eq!(world.links.of_record(&acme, client, "c1").await.expect("read"), std::slice::from_ref(&changed));
        let stolen = world.put(&Link { organization: other, ..changed.clone() }).await;
        assert!(matches!(stolen, Err(Error::AlreadyExists(_))), "{stolen:?}");
        let mut tx = world.store.begin().await.expect("begun");
        let seen = world.links.by_external_in(&mut tx, &acme, "i1", client, "anna.b@x.org").await.expect("read");
        world.links.delete_in(&mut tx, &seen.expect("there")).await.expect("deleted");
        assert_eq!(world.links.by_record_in(&mut tx, &acme, "i1", client, "c1").await.expect("read"), None);
    })
    .await;
}

#[tokio::test]
async fn two_records_never_share_an_external_id_and_those_without_one_may_be_many() {
    in_each_world(async |world| {
        world.put(&link("i1", "c1", "x")).await.expect("stored");
        let second = world.put(&link("i1", "c2", "x")).await;
        assert!(matches!(second, Err(Error::AlreadyExists(_))), "{second:?}");
        world.put(&link("i2", "c2", "x")).await.expect("another integration's");
        for record in ["c3", "c4"] {
            world.put(&link("i1", record, "")).await.expect("handed over");
        }
        let page = async |after| world.links.list(&organization("acme"), "i1", after, 2).await.expect("listed");
        let ids = |links: Vec<Link>| links.into_iter().map(|link| link.record_id).collect::<Vec<_>>();
        assert_eq!(ids(page(None).await), ["c1", "c3"]);
        assert_eq!(ids(page(Some((RecordKind::Client, "c3"))).await), ["c4"]);
    })
    .await;
}
