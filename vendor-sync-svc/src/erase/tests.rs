//! A person is found wherever they are, on each engine of the store, and nobody else is.

use std::collections::BTreeMap;

use chassis::{
    clock::Clock,
    id::OrganizationId,
    lane::Offer,
    secret::{DataKeys, place},
    service::Chassis,
    testing::on_each_engine,
};
use jiff::{SignedDuration, Timestamp};
use serde_json::{Value, json};

use super::*;
use crate::{
    import::Refusal,
    integration::{Integration, Kind, tests::settings},
    record::{Source, Update},
    resolve::{Origin, Resolved},
    sync::{
        Engine,
        letter::{Letter, print},
    },
};

struct World {
    engine: Engine,
    store: Store,
    keys: DataKeys,
    crm: Integration,
}

async fn in_each_world<F: Future<Output = ()>>(test: impl Fn(World) -> F) {
    let migrations = &[&chassis::store::MIGRATIONS, &chassis::lane::MIGRATIONS, &crate::MIGRATIONS];
    on_each_engine(migrations, async |store| {
        let keys = DataKeys::new(store.clone(), Chassis::for_test().keyring().expect("keys"), Clock::System);
        let engine = crate::sync::tests::with_keys(&store, &keys).await;
        let settings = crate::integration::Settings {
            connector: "crm".to_owned(),
            vendor: "crm".to_owned(),
            // Nothing goes out: what waits for it waits.
            paused: true,
            ..settings(Kind::Connector)
        };
        let secret = "a-secret-of-24-bytes-or-more".to_owned().into();
        let crm = engine.accounts.integrations.create(acme(), settings, &secret).await.expect("created");
        engine.accounts.refresh(&acme(), &crm.id).await.expect("its lane is open");
        test(World { engine, store, keys, crm }).await;
    })
    .await;
}

fn acme() -> OrganizationId {
    OrganizationId::parse("acme").expect("well-formed")
}

fn key(id: &str) -> RecordKey {
    RecordKey::new(acme(), RecordKind::Client, id).expect("well-formed")
}

fn fields(value: Value) -> BTreeMap<String, Value> {
    serde_json::from_value(value).expect("an object")
}

impl World {
    /// What the CRM says of a contact.
    async fn says(&self, id: &str, email: &str, at: Timestamp) -> Resolved {
        let said = Incoming {
            kind: RecordKind::Client,
            external_id: id.to_owned(),
            external_version: String::new(),
            at,
            fields: fields(json!({ "email": email, "first_name": "Ada", "last_name": "Lovelace" })),
            deleted: false,
            priority_low: false,
            origin: Origin::Poll,
        };
        self.engine.resolver.take(&self.crm, vec![said]).await.expect("it is taken").remove(0)
    }

    /// A client that the CRM made, with a letter to it, a webhook that was set aside and a refused row that name them.
    async fn client(&self, contact: &str, email: &str) -> RecordKey {
        let Resolved::Created { record_id } = self.says(contact, email, self.now()).await else {
            panic!("not created")
        };
        let key = key(&record_id);
        // Of the same time, from another source: it loses.
        let word = Update::new(
            Source::wedsync(),
            self.now() - SignedDuration::from_secs(9),
            fields(json!({ "email": format!("old-{email}") })),
        );
        let mut tx = self.store.begin().await.expect("begun");
        self.engine.resolver.records.apply_in(&mut tx, &key, &word).await.expect("applied");
        tx.commit().await.expect("committed");
        let letter = Letter {
            event_id: format!("e-{contact}"),
            event_type: "client.updated".to_owned(),
            kind: "client".to_owned(),
            record_id: record_id.clone(),
            fields: print(&fields(json!({ "email": email }))),
            ..Letter::default()
        };
        let offer: Offer = letter.offer(&self.crm.id, 3, "realtime");
        let offered = self.engine.dispatcher.offer(vec![offer], false).await.expect("taken");
        offered.wait().await.expect("it is durable");
        self.set_aside(contact, &format!("type=profile&data%5Bemail%5D={}", email.replace('@', "%40"))).await;
        self.refused(contact, &format!("{email} is no address")).await;
        key
    }

    fn now(&self) -> Timestamp {
        self.engine.resolver.clock.now()
    }

    async fn set_aside(&self, name: &str, body: &str) {
        let data_key = self.keys.of(&acme()).await.expect("a key");
        let sealed = data_key.seal(&place("inbound_spool", "body", name), body.as_bytes());
        with!(self.store.writer(), c => {
            sqlx::query(
                "INSERT INTO inbound_spool (integration_id, organization_id, supplier_id, event_id, traceparent, received_at, \
                 body, refused) VALUES ($1, 'acme', '', $2, '', 1, $3, 'it could not be read')",
            )
            .bind(&self.crm.id)
            .bind(name)
            .bind(&sealed)
            .execute(c)
            .await
            .map(drop)
        })
        .expect("stored");
    }

    async fn refused(&self, id: &str, reason: &str) {
        let data_key = self.keys.of(&acme()).await.expect("a key");
        let line = Refusal { line: 1, external_id: String::new(), reason: reason.to_owned() };
        let refusals = data_key.seal(&place("imports", "refusals", id), &serde_json::to_vec(&[line]).expect("JSON"));
        let examples = data_key.seal(&place("imports", "examples", id), b"[]");
        with!(self.store.writer(), c => {
            sqlx::query(
                "INSERT INTO imports (id, organization_id, integration_id, work, source, record_kind, options, dry_run, state, \
                 phase, reason, encoding, total, next, counts, refusals, examples, created_at, updated_at) \
                 VALUES ($1, 'acme', $2, 'import', 'csv', 'client', '{}', 0, 'done', 'applying', '', 'utf-8', 0, '{}', '{}', $3, \
                 $4, 1, 1)",
            )
            .bind(id)
            .bind(&self.crm.id)
            .bind(&refusals)
            .bind(&examples)
            .execute(c)
            .await
            .map(drop)
        })
        .expect("stored");
    }

    async fn count(&self, query: &'static str) -> i64 {
        with!(self.store.reader(), c => sqlx::query_scalar(query).fetch_one(c).await).expect("counted")
    }

    async fn erase(&self, key: &RecordKey, dry: bool) -> Result<Taken> {
        self.engine.resolver.erase(key, "anna", dry).await
    }
}

const LETTERS: &str = "SELECT COUNT(*) FROM deliveries WHERE content IS NOT NULL";
const ASIDE: &str = "SELECT COUNT(*) FROM inbound_spool";
const CONFLICTS: &str = "SELECT COUNT(*) FROM record_conflicts";
const LINKS: &str = "SELECT COUNT(*) FROM record_links";
const EVENTS: &str = "SELECT COUNT(*) FROM outbox";
const KEYS: &str = "SELECT COUNT(*) FROM record_keys";
const DELIVERIES: &str = "SELECT COUNT(*) FROM deliveries";

#[tokio::test]
async fn an_erased_person_is_nowhere_and_everybody_else_is_where_they_were() {
    in_each_world(async |world| {
        let ada = world.client("contact-1", "ada@example.org").await;
        let eve = world.client("contact-2", "eve@example.org").await;
        let all = [LETTERS, ASIDE, CONFLICTS, LINKS, EVENTS, KEYS];
        let mut before = Vec::new();
        for query in all {
            before.push(world.count(query).await);
        }
        assert!(before.iter().all(|count| *count >= 2 && count % 2 == 0), "{before:?}");

        let would = world.erase(&ada, true).await.expect("a dry run");
        for (query, count) in all.iter().zip(&before) {
            assert_eq!(world.count(query).await, *count, "a dry run takes nothing: {query}");
        }
        let taken = world.erase(&ada, false).await.expect("erased");
        assert_eq!(taken, would, "what was said is what went");
        assert_eq!((taken.links.len(), taken.letters, taken.webhooks, taken.lines), (1, 1, 1, 1));
        for (query, count) in all.iter().zip(&before) {
            assert_eq!(world.count(query).await, count / 2, "{query}");
        }
        assert_eq!(world.count(DELIVERIES).await, 2, "that there was a delivery stays");

        let records = &world.engine.resolver.records;
        let (gone, there) = (records.get(&ada).await.expect("read"), records.get(&eve).await.expect("read"));
        let gone = gone.expect("its id stays");
        assert!(gone.fields.is_empty() && gone.others.is_empty() && gone.deleted.is_some(), "{gone:?}");
        assert!(gone.version > 1, "its events keep their names: {}", gone.version);
        assert_eq!(there.expect("she stays").fields["email"].value, json!("eve@example.org"));

        let noted = list(&world.store, &acme(), (i64::MIN, "", ""), 10).await.expect("listed");
        assert_eq!(noted.len(), 1);
        assert_eq!((noted[0].record_id.as_str(), noted[0].erased_by.as_str()), (ada.id.as_str(), "anna"));
        let other = OrganizationId::parse("other").expect("well-formed");
        assert!(list(&world.store, &other, (i64::MIN, "", ""), 10).await.expect("listed").is_empty());
        world.erase(&ada, false).await.expect("once more does no harm");
    })
    .await;
}

#[tokio::test]
async fn what_was_said_before_does_not_bring_them_back_and_what_is_said_later_is_new() {
    in_each_world(async |world| {
        let early = world.now();
        let ada = world.client("contact-1", "ada@example.org").await;
        world.erase(&ada, false).await.expect("erased");
        assert_eq!(world.says("contact-1", "ada@example.org", early).await, Resolved::Unchanged);
        assert_eq!(world.count(LINKS).await, 0, "a list that is read late makes no link");
        let later = world.now() + SignedDuration::from_secs(1);
        let Resolved::Created { record_id } = world.says("contact-1", "ada@example.org", later).await else {
            panic!("a new contact is a new record")
        };
        assert_ne!(record_id, ada.id);
    })
    .await;
}

#[tokio::test]
async fn another_organization_erases_nothing_and_an_open_import_is_waited_for() {
    in_each_world(async |world| {
        let ada = world.client("contact-1", "ada@example.org").await;
        let foreign = RecordKey { organization: OrganizationId::parse("other").expect("well-formed"), ..ada.clone() };
        assert!(matches!(world.erase(&foreign, false).await, Err(Error::NotFound(_))));
        with!(world.store.writer(), c => sqlx::query("UPDATE imports SET state = 'running'").execute(c).await.map(drop)).expect("stored");
        let refused = world.erase(&ada, false).await.expect_err("its rows may be theirs");
        assert!(matches!(&refused, Error::FailedPrecondition(reason) if reason.contains("contact-1")), "{refused:?}");
        assert_eq!(world.count(LETTERS).await, 1);
    })
    .await;
}

#[test]
fn a_person_is_found_as_forms_write_them_and_never_by_a_short_word() {
    let key = key("c1");
    let mut record = Record::new(key.clone());
    let field = |value: &str| crate::record::Field {
        value: json!(value),
        at: Timestamp::UNIX_EPOCH,
        source: Source::wedsync(),
        over: None,
    };
    record.fields.insert("email".to_owned(), field("Ada@Example.org"));
    record.fields.insert("phone".to_owned(), field("112"));
    let subject = Subject::of(&key, &record, &[]);
    for body in ["{\"to\":\"ada@example.org\"}", "email=ADA%40example.org", "x ADA@EXAMPLE.ORG y"] {
        assert!(subject.is_in(body.as_bytes()), "{body}");
    }
    for body in ["c1", "112", "ada at example.org", "eve@example.org"] {
        assert!(!subject.is_in(body.as_bytes()), "{body}");
    }
}
