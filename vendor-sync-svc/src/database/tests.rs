//! Writing to a real PostgreSQL, with the credential sealed in our own store.

mod agree;
mod hostile;

use std::{
    collections::BTreeMap,
    sync::{
        Arc,
        atomic::{AtomicU32, Ordering},
    },
};

use bytes::Bytes;
use chassis::{
    clock::Clock,
    id::{self, OrganizationId},
    lane::{Attempted, Courier, Delivery, Dispatcher, Outcome, Slots},
    outbound::{Outbound, OutboundSettings},
    secret::DataKeys,
    service::Chassis,
    store::Store,
    tasks::Tasks,
    testing::{noon, on_each_engine, postgres_url},
};
use jiff::{SignedDuration, Timestamp};
use serde_json::{Value, json};
use sqlx::{Connection as _, PgConnection, Row as _};

use super::*;
use crate::{
    connector::Reply,
    credential::{Connections, Kept},
    event::tests::change,
    integration::{Kind, Settings, tests::settings},
    outbox::Outbox,
    record::{Links, RecordKind, Records, Source},
    resolve::Resolver,
    sync::{known::Known, read::read},
};

const SCHEMA: &str = "CREATE TABLE wedding_details (id uuid PRIMARY KEY, organization_id text NOT NULL, \
     wedding_date date, ceremony_time time, guest_count integer, venue_name varchar(20), dietary_requirements text[], \
     special_requests jsonb, venue_notes text, total numeric GENERATED ALWAYS AS (guest_count * 2) STORED, \
     updated_at timestamp NOT NULL DEFAULT now())";
const ID: &str = "0190b6f0-0000-7000-8000-000000000001";

struct World {
    database: Database,
    credentials: crate::credential::Credentials,
    connections: Connections,
    integration: Integration,
    url: url::Url,
    name: String,
    store: Store,
    keys: DataKeys,
}

/// In a database of its own, if there is a server.
async fn in_a_database<F: Future<Output = ()>>(test: impl Fn(World) -> F) {
    static NEXT: AtomicU32 = AtomicU32::new(0);
    let Some(server) = postgres_url() else { return };
    let migrations = &[&chassis::store::MIGRATIONS, &chassis::lane::MIGRATIONS, &crate::MIGRATIONS];
    on_each_engine(migrations, async |store| {
        let name = format!("linked_{}_{}", std::process::id(), NEXT.fetch_add(1, Ordering::Relaxed));
        run(&server, &format!("CREATE DATABASE {name}")).await;
        let mut url = url::Url::parse(&server).expect("a URL");
        url.set_path(&name);
        url.query_pairs_mut().clear().append_pair("sslmode", "disable");
        run(url.as_str(), SCHEMA).await;
        let keys = DataKeys::new(store.clone(), Chassis::for_test().keyring().expect("keys"), Clock::System);
        let credentials = crate::sync::tests::with_keys(&store, &keys).await.credentials;
        let connections = credentials.connections.clone();
        let database = Database::new(credentials.clone(), outbound(true));
        let integration = integration("");
        let world = World { database, credentials, connections, integration, url, name: name.clone(), store, keys };
        world.connect(world.url.as_str()).await;
        test(world).await;
        run(&server, &format!("DROP DATABASE {name} WITH (FORCE)")).await;
    })
    .await;
}

fn outbound(open: bool) -> Outbound {
    let networks = if open { vec!["127.0.0.0/8".to_owned()] } else { Vec::new() };
    Outbound::new(&OutboundSettings { allow_networks: networks, allow_http: open }).expect("a client")
}

fn integration(mapping: &str) -> Integration {
    let settings = Settings {
        connector: "database".to_owned(),
        parameters: BTreeMap::from([("mapping".to_owned(), mapping.to_owned())]),
        ..settings(Kind::Connector)
    };
    let organization = OrganizationId::parse("acme").expect("well-formed");
    let (created_at, updated_at) = (noon(), noon());
    let id = id::uuid(noon());
    Integration { id, organization, settings, version: 1, created_at, updated_at, last_received_at: None }
}

async fn run(url: &str, sql: &str) {
    let mut connection = PgConnection::connect(url).await.expect("the server is there");
    sqlx::raw_sql(sqlx::AssertSqlSafe(sql)).execute(&mut connection).await.expect(sql);
}

struct Nobody;

impl Courier for Nobody {
    async fn attempt(&self, _: Arc<Delivery>) -> Attempted {
        let (class, error) = ("delivered", String::new());
        Attempted { outcome: Outcome::Delivered, status_code: None, class, error, response: Bytes::new() }
    }

    async fn closed(&self, _: &str, _: &str) {}
}

impl World {
    /// What hears of rows, over the same store.
    async fn engine(&self) -> (Resolver, Known) {
        let (store, keys) = (self.store.clone(), self.keys.clone());
        let (courier, slots, tasks) = (Arc::new(Nobody), Slots::default(), Tasks::default());
        let dispatcher = Dispatcher::start(store.clone(), keys.clone(), courier, slots, Clock::System, &tasks).await;
        let (records, links) =
            (Records::new(store.clone(), keys.clone(), Clock::System), Links::new(store.clone(), keys.clone()));
        let outbox = Outbox::new(store.clone(), keys.clone(), dispatcher.expect("it starts"), Clock::System);
        let resolver = Resolver::new(store, keys, Clock::System, records, links, outbox);
        let known = Known::over(&resolver);
        (resolver, known)
    }

    async fn connect(&self, url: &str) {
        let kept = Kept::Key(url.to_owned().into());
        self.connections.connect(&self.integration, &kept, &BTreeMap::new(), None).await.expect("connected");
    }

    /// As a test of the connection would.
    async fn check(&self, database: &Database, integration: &Integration) -> Result<(), CallError> {
        let credential = self.credentials.of(&self.integration).await.expect("it is connected");
        database.check(integration, &credential).await
    }

    async fn run(&self, sql: &str) {
        run(self.url.as_str(), sql).await;
    }

    async fn wedding(&self, organization: &str, count: i64, at: Timestamp) {
        let at = at.to_string();
        self.run(&format!(
            "SET TIME ZONE 'UTC'; INSERT INTO wedding_details (id, organization_id, guest_count, venue_name, updated_at) \
             VALUES ('{ID}', '{organization}', {count}, 'Mill', '{at}')",
        ))
        .await;
    }

    /// The row as JSON, without what isn't looked at; null if it isn't there.
    async fn row(&self) -> Value {
        let mut connection = PgConnection::connect(self.url.as_str()).await.expect("the server is there");
        let row = sqlx::query("SELECT (to_jsonb(t) - 'id' - 'total')::text, xmin::text FROM wedding_details t")
            .fetch_optional(&mut connection)
            .await
            .expect("read");
        row.map_or(Value::Null, |row| serde_json::from_str(row.get(0)).expect("JSON"))
    }

    /// Has the row say what stands since `at`; what came of each field.
    async fn write(&self, stands: &Value, base: &Value, at: Timestamp) -> Result<Compared, CallError> {
        write_as(&self.database, &self.integration, ID, (stands, base, at)).await
    }
}

async fn write_as(
    database: &Database,
    integration: &Integration,
    id: &str,
    (stands, base, at): (&Value, &Value, Timestamp),
) -> Result<Compared, CallError> {
    let key = RecordKey::new(integration.organization.clone(), RecordKind::Wedding, id).expect("well-formed");
    let object = |value: &Value| serde_json::from_value::<BTreeMap<String, Value>>(value.clone()).expect("an object");
    let field = |value| Field { value, at, source: Source::integration("i1"), over: None };
    let stands = object(stands).into_iter().map(|(name, value)| (name, field(value))).collect();
    let row = Row { key: &key, stands: &stands, base: &object(base), said: &BTreeMap::new() };
    let compared = database.look(integration, &row).await?;
    if compared.behind.is_empty() { Ok(compared) } else { database.write(integration, &row, &compared.behind).await }
}

/// How many fields were written, were so, and are somebody else's.
fn counts(written: Result<Compared, CallError>) -> (usize, usize, usize) {
    let written = written.expect("it is written");
    (written.behind.len(), written.same.len(), written.newer.len())
}

fn minutes(minutes: i64) -> Timestamp {
    noon() + SignedDuration::from_mins(minutes)
}

#[tokio::test]
async fn a_resolved_change_is_written_in_the_columns_own_types_and_the_second_time_nothing_is() {
    in_a_database(async |world| {
        world.wedding("acme", 100, noon()).await;
        let wanted = json!({
            "wedding_date": "2026-06-20", "ceremony_time": "15:00", "guest_count": 120, "venue_name": null,
            "dietary_requirements": ["vegan", "nuts"], "special_requests": {"music": "none"},
            "venue_notes": "it's; DROP TABLE wedding_details --", "budget": 5,
        });
        assert_eq!(counts(world.write(&wanted, &json!({"guest_count": 100}), minutes(1)).await), (7, 0, 0));
        let row = world.row().await;
        let expected = json!({
            "organization_id": "acme", "wedding_date": "2026-06-20", "ceremony_time": "15:00:00", "guest_count": 120,
            "venue_name": null, "dietary_requirements": ["vegan", "nuts"], "special_requests": {"music": "none"},
            "venue_notes": "it's; DROP TABLE wedding_details --", "updated_at": "2026-05-01T12:01:00",
        });
        assert_eq!(row, expected);
        assert_eq!(counts(world.write(&wanted, &json!({}), minutes(2)).await), (0, 7, 0));
        assert_eq!(world.row().await, row, "not even its version");
        assert_eq!(counts(world.write(&json!({"budget": 5}), &json!({}), minutes(3)).await), (0, 0, 0));
    })
    .await;
}

#[tokio::test]
async fn a_row_that_somebody_changed_since_stays_unless_it_says_what_was_agreed() {
    in_a_database(async |world| {
        world.wedding("acme", 100, minutes(5)).await;
        let wanted = json!({"guest_count": 120});
        let both = json!({"guest_count": 120, "venue_name": "Barn"});
        let base = |guests| json!({"guest_count": guests, "venue_name": "Mill"});
        assert_eq!(
            counts(world.write(&both, &base(90), minutes(1)).await),
            (1, 0, 1),
            "the other is written all the same"
        );
        let row = world.row().await;
        assert_eq!((&row["guest_count"], &row["venue_name"]), (&json!(100), &json!("Barn")));
        assert_eq!(counts(world.write(&wanted, &base(100), minutes(1)).await), (1, 0, 0));
        let row = world.row().await;
        assert_eq!((&row["guest_count"], &row["updated_at"]), (&json!(120), &json!("2026-05-01T12:05:00")));
    })
    .await;
}

#[tokio::test]
async fn another_organizations_row_is_never_written() {
    in_a_database(async |world| {
        world.wedding("other", 100, noon()).await;
        let refused = world.write(&json!({"guest_count": 120}), &json!({}), minutes(1)).await.expect_err("refused");
        assert_eq!(
            (refused.class, refused.reason.as_str()),
            (Class::Permanent, "table wedding_details has no row of this organization with this id")
        );
        let inserting = "[wedding]\ntable = \"wedding_details\"\nkey = \"id\"\norganization = \"organization_id\"\n\
             version = \"updated_at\"\ninsert = true\nfields = [\"guest_count\", \"venue_name\"]";
        let integration = Integration { settings: integration(inserting).settings, ..world.integration.clone() };
        let at = minutes(1);
        let refused = write_as(&world.database, &integration, ID, (&json!({"guest_count": 1}), &json!({}), at)).await;
        assert_eq!(refused.expect_err("its key is taken").class, Class::Retry);
        assert_eq!(world.row().await["guest_count"], json!(100));
        world.run("DELETE FROM wedding_details").await;
        let written = write_as(&world.database, &integration, ID, (&json!({"guest_count": 7}), &json!({}), at)).await;
        assert_eq!(counts(written), (1, 0, 0));
        let row = world.row().await;
        assert_eq!((&row["guest_count"], &row["organization_id"]), (&json!(7), &json!("acme")));
    })
    .await;
}

#[tokio::test]
async fn a_mapping_that_doesnt_fit_names_every_table_and_column_at_fault() {
    in_a_database(async |world| {
        let text = "[wedding]\ntable = \"wedding_details\"\nkey = \"id\"\nversion = \"venue_notes\"\n\
             fields = [\"guests\", \"total\"]\n[client]\ntable = \"couples\"\nkey = \"id\"\nfields = [\"email\"]";
        let integration = Integration { settings: integration(text).settings, ..world.integration.clone() };
        let refused = world.check(&world.database, &integration).await.expect_err("refused");
        let reason = "there is no table couples, or the user may not see it; table wedding_details has no column guests; \
             table wedding_details can't write column total; \
             column venue_notes of table wedding_details must be a timestamp, and is text";
        let (mut said, mut expected): (Vec<_>, Vec<_>) = (refused.reason.split("; ").collect(), reason.split("; ").collect());
        said.sort_unstable();
        expected.sort_unstable();
        assert_eq!((refused.class, said), (Class::Permanent, expected));
        world.check(&world.database, &world.integration).await.expect("the built-in one leaves out what isn't there");
    })
    .await;
}

#[tokio::test]
async fn each_refusal_is_of_its_class_and_quotes_no_value() {
    in_a_database(async |world| {
        world.wedding("acme", 100, noon()).await;
        let class = async |wanted: Value| {
            let refused = world.write(&wanted, &json!({}), minutes(1)).await.expect_err("refused");
            assert!(!refused.reason.contains("secret"), "{}", refused.reason);
            (refused.class, refused.reason)
        };
        let wrong = class(json!({"wedding_date": "secret day"})).await;
        assert_eq!(
            wrong,
            (Class::Permanent, "the database refused it: a value isn't of its column's type (22007)".to_owned())
        );
        assert_eq!(class(json!({"venue_name": "secret, and over twenty characters"})).await.0, Class::Permanent);
        let one = json!({"guest_count": 1});
        let no_id = write_as(&world.database, &world.integration, "w1", (&one, &json!({}), noon())).await;
        assert_eq!(no_id.expect_err("no uuid").class, Class::Permanent);

        let open = world.write(&json!({"guest_count": 100}), &json!({}), minutes(1)).await;
        assert_eq!(counts(open), (0, 1, 0));
        world.run("ALTER TABLE wedding_details RENAME COLUMN venue_notes TO notes").await;
        let gone = class(json!({"venue_notes": "secret"})).await;
        assert_eq!(gone.1, "the database refused it: a column is gone (42703)");
        let looked_at_anew = world.write(&json!({"venue_notes": "x"}), &json!({}), minutes(1)).await;
        assert_eq!(counts(looked_at_anew), (0, 0, 0));

        let mut holder = PgConnection::connect(world.url.as_str()).await.expect("the server is there");
        let mut held = holder.begin().await.expect("begun");
        sqlx::query("SELECT 1 FROM wedding_details FOR UPDATE").execute(&mut *held).await.expect("locked");
        let locked = class(json!({"guest_count": 1})).await;
        assert_eq!(locked, (Class::Retry, "the database refused it: somebody holds the row (55P03)".to_owned()));
        held.rollback().await.expect("let go");

        let mut wrong = world.url.clone();
        wrong.set_path("/there_is_none");
        world.connect(wrong.as_str()).await;
        world.database.credentials.forget(&world.integration);
        assert_eq!(class(json!({"guest_count": 1})).await.0, Class::Permanent);
        wrong.set_path(&world.name);
        wrong.set_port(Some(1)).expect("a port");
        world.connect(wrong.as_str()).await;
        world.database.credentials.forget(&world.integration);
        assert_eq!(class(json!({"guest_count": 1})).await.0, Class::Retry);
    })
    .await;
}

#[tokio::test]
async fn only_addresses_that_the_guard_opens_are_connected_to_and_only_with_tls() {
    in_a_database(async |world| {
        let closed = Database::new(world.credentials.clone(), outbound(false));
        let url = |text: &str| text.to_owned();
        for (text, class, part) in [
            (url("postgres://u:secret@127.0.0.1/x"), Class::Permanent, "not a public address"),
            (url("postgres://u:secret@metadata.google.internal/x"), Class::Permanent, "not a public address"),
            (url("postgres://u:secret@10.0.0.1/x?sslmode=verify-full"), Class::Permanent, "not a public address"),
            (
                url("postgres://u:secret@db.example.com/x?sslmode=prefer"),
                Class::Permanent,
                "without TLS are not allowed",
            ),
            (url("postgres://u:secret@db.example.com/x?host=/tmp"), Class::Permanent, "may not set host"),
            (
                url("postgres://u:secret@db.example.com/x?sslrootcert=/etc/passwd"),
                Class::Permanent,
                "may not set sslrootcert",
            ),
            (url("http://db.example.com/secret"), Class::Unauthorized, "must be a URL like postgres://"),
            (url("secret"), Class::Unauthorized, "must be a URL like postgres://"),
            (url("postgres://:secret@db.example.com/x"), Class::Unauthorized, "must be a URL like postgres://"),
        ] {
            world.connect(&text).await;
            closed.credentials.forget(&world.integration);
            let refused = world.check(&closed, &world.integration).await.expect_err(&text);
            assert!(refused.class == class && refused.reason.contains(part), "{text}: {refused:?}");
            assert!(!refused.reason.contains("secret"), "{refused:?}");
        }
    })
    .await;
}

#[tokio::test]
async fn what_was_written_comes_back_as_a_row_and_is_known_as_our_own() {
    in_a_database(async |world| {
        world.wedding("acme", 100, noon()).await;
        let before = world.row().await;
        let (resolver, known) = world.engine().await;
        let observe = async |before: &Value, after: &Value, id: &str| {
            let with_id = |row: &Value| {
                let mut row = row.clone();
                row["id"] = json!(ID);
                row.to_string()
            };
            let mut event = change(&with_id(before), &with_id(after));
            event.id = id.to_owned();
            let said = read(&event).expect("about a wedding");
            let databases = [world.integration.id.clone()];
            resolver.observe(&event, &said, &databases, false).await.expect("it is observed").expect("it is known")
        };
        assert!(!observe(&json!({}), &before, "e0").await.is_echo);
        let wanted = json!({
            "wedding_date": "2026-06-20", "ceremony_time": "15:00", "guest_count": 120,
            "dietary_requirements": ["vegan", "nuts"], "special_requests": {"music": "none"},
        });
        assert_eq!(counts(world.write(&wanted, &json!({"guest_count": 100}), minutes(1)).await).0, 5);
        let key = RecordKey::new(world.integration.organization.clone(), RecordKind::Wedding, ID).expect("well-formed");
        let fields = serde_json::from_value(wanted).expect("an object");
        known.intends(&world.integration, &key, &fields).await.expect("it is noted");
        known.written(&world.integration, &key, &fields, &Reply::nothing()).await.expect("it is noted");

        let after = world.row().await;
        assert!(observe(&before, &after, "e1").await.is_echo);
        world.run("UPDATE wedding_details SET guest_count = 90, updated_at = updated_at + interval '1 minute'").await;
        assert!(!observe(&after, &world.row().await, "e2").await.is_echo, "somebody's own change is none");
    })
    .await;
}

#[test]
fn the_connector_is_declared_with_what_a_database_needs() {
    let connector = crate::connector::Connector::parse(include_str!("../../connectors/database.toml"));
    let connector = connector.expect("it is well-formed");
    assert_eq!((connector.kind(), connector.is_repeatable()), ("database", true));
}
