//! A database of the planner's whose changes the router captures, and what every source of changes promises.

use std::{
    collections::BTreeMap,
    str::FromStr as _,
    sync::atomic::{AtomicU32, Ordering},
};

use chassis::{config::Secret, telemetry, testing::postgres_url};
use proto::router::v1::{Change, Event, Operation, Scope, event::Payload};
use router_svc::{OwnerSettings, SourceSettings, Unlisted};
use serde_json::{Value, json};
use sqlx::{
    AssertSqlSafe, PgPool,
    postgres::{PgConnectOptions, PgPoolOptions},
};

use crate::world::{Client, World, on_each, until};

/// A database of its own on the test's server, and a source that reads it.
#[derive(Clone)]
pub(crate) struct Database {
    pub(crate) name: String,
    pub(crate) pool: PgPool,
    pub(crate) settings: SourceSettings,
}

impl Database {
    pub(crate) async fn create(server: &str, tables: &[(&str, &str)], setup: &[&str]) -> Self {
        static NEXT: AtomicU32 = AtomicU32::new(0);
        let name = format!("c{}_{}", std::process::id(), NEXT.fetch_add(1, Ordering::Relaxed));
        let admin = PgPool::connect(server).await.unwrap();
        sqlx::query(AssertSqlSafe(format!("CREATE DATABASE {name}"))).execute(&admin).await.unwrap();
        admin.close().await;
        let url = format!("{}/{name}", server.rsplit_once('/').unwrap().0);
        let options = PgConnectOptions::from_str(&url).unwrap().options([("TimeZone", "UTC")]);
        let pool = PgPoolOptions::new().max_connections(4).connect_with(options).await.unwrap();
        let settings = SourceSettings {
            url: Secret::from(url.clone()),
            slot: name.clone(),
            tables: tables.iter().map(|(table, owner)| ((*table).to_owned(), owned_by(owner))).collect(),
            ..SourceSettings::default()
        };
        let database = Self { name, pool, settings };
        for statement in setup {
            database.run(statement).await;
        }
        database
    }

    pub(crate) async fn run(&self, statement: &str) {
        let done = sqlx::raw_sql(AssertSqlSafe(statement.to_owned())).execute(&self.pool).await;
        done.unwrap_or_else(|error| panic!("{statement}: {error}"));
    }

    pub(crate) async fn text(&self, query: &str) -> String {
        sqlx::query_scalar(AssertSqlSafe(query.to_owned())).fetch_one(&self.pool).await.unwrap()
    }

    /// Waits until the slot is whole and read: what is written from here on is captured.
    pub(crate) async fn streams(&self) {
        let streams =
            "EXISTS (SELECT 1 FROM pg_stat_replication WHERE pid = active_pid AND state IN ('catchup', 'streaming'))";
        until("the slot is read", || async { self.count(streams).await == 1 }).await;
    }

    async fn count(&self, condition: &str) -> i64 {
        let query =
            format!("SELECT COUNT(*) FROM pg_replication_slots WHERE slot_name = '{}' AND {condition}", self.name);
        sqlx::query_scalar(AssertSqlSafe(query)).fetch_one(&self.pool).await.unwrap()
    }

    /// Cuts the stream off, and waits for its end.
    pub(crate) async fn cut(&self) {
        self.run(&format!(
            "SELECT pg_terminate_backend(active_pid, 5000) FROM pg_replication_slots WHERE slot_name = '{}' AND active",
            self.name
        ))
        .await;
    }

    /// Waits until the server was told that everything so far is durable.
    pub(crate) async fn caught_up(&self) {
        let now = self.text("SELECT pg_current_wal_insert_lsn()::text").await;
        // Whatever is written meanwhile may be ahead of that.
        self.run("SELECT pg_logical_emit_message(true, 'test', '')").await;
        let confirmed = format!("confirmed_flush_lsn >= '{now}'");
        until("the slot advances", || async { self.count(&confirmed).await == 1 }).await;
    }

    /// A metric of this source.
    pub(crate) fn metric(&self, name: &str) -> f64 {
        let text = telemetry::render();
        let of_ours =
            |line: &&str| line.starts_with(&format!("{name}{{")) && line.contains(&format!("source=\"{}\"", self.name));
        text.lines().filter(of_ours).filter_map(|line| line.rsplit_once(' ')?.1.parse::<f64>().ok()).sum()
    }

    async fn remove(self, server: &str) {
        self.pool.close().await;
        let admin = PgPool::connect(server).await.unwrap();
        let drop_slot = format!(
            "SELECT pg_drop_replication_slot(slot_name) FROM pg_replication_slots WHERE slot_name = '{}'",
            self.name
        );
        until("the slot can be dropped", || async {
            sqlx::query(AssertSqlSafe(drop_slot.clone())).execute(&admin).await.is_ok()
        })
        .await;
        sqlx::query(AssertSqlSafe(format!("DROP DATABASE {} WITH (FORCE)", self.name))).execute(&admin).await.unwrap();
        admin.close().await;
    }
}

/// `@org` is the column `org`, anything else an organization.
fn owned_by(owner: &str) -> OwnerSettings {
    match owner.strip_prefix('@') {
        Some(column) => OwnerSettings { column: column.to_owned(), ..OwnerSettings::default() },
        None => OwnerSettings { organization: owner.to_owned(), ..OwnerSettings::default() },
    }
}

/// Starts the router anew with this source, and waits until it streams; gives a client of organization `a`.
pub(crate) async fn capturing(world: World, database: &Database) -> (World, Client) {
    let started = start(world, database).await;
    database.streams().await;
    started
}

/// The same without waiting.
pub(crate) async fn start(world: World, database: &Database) -> (World, Client) {
    assert!(world.chassis.drain().await, "it stops in time");
    let chassis = world.another_chassis();
    let mut config = world.config.clone();
    config.capture = BTreeMap::from([(database.name.clone(), database.settings.clone())]);
    let world = World::start_with(config, world.time.clone(), chassis).await;
    let a = client(&world, "a").await;
    (world, a)
}

pub(crate) async fn client(world: &World, organization: &str) -> Client {
    world.client(&world.key(organization, &[Scope::Admin]).await.1)
}

/// Runs `test` on each engine of the router's, with organizations `a` and `b` and a fresh database; needs a server.
pub(crate) async fn with_source<F: Future<Output = World>>(
    tables: &[(&str, &str)],
    setup: &[&str],
    test: impl Fn(World, Database) -> F,
) {
    let Some(server) = postgres_url() else {
        println!("skipped: there is no PostgreSQL");
        return;
    };
    on_each(|world| async {
        world.organization("a").await;
        world.organization("b").await;
        let database = Database::create(&server, tables, setup).await;
        let world = Box::pin(test(world, database.clone())).await;
        assert!(world.chassis.drain().await, "it stops in time");
        database.remove(&server).await;
    })
    .await;
}

/// A change in an event: operation, old and new record as they were sent.
pub(crate) fn change(event: &Event) -> (Operation, String, String) {
    let Some(Payload::Change(Change { operation, old_record, new_record, .. })) = &event.payload else {
        panic!("no change: {event:?}")
    };
    let text = |bytes: &[u8]| String::from_utf8(bytes.to_vec()).unwrap();
    (Operation::try_from(*operation).unwrap(), text(old_record), text(new_record))
}

/// All events of the client's organization, once there are so many.
pub(crate) async fn events(client: &Client, count: usize) -> Vec<Event> {
    until(&format!("{count} events"), || async {
        client.head().await.sequence >= count as u64 && client.all().await.len() >= count
    })
    .await;
    let events: Vec<Event> = client.all().await.into_iter().map(|logged| logged.event.unwrap()).collect();
    assert_eq!(events.len(), count, "{:#?}", events.iter().map(|event| &event.r#type).collect::<Vec<_>>());
    events
}

pub(crate) async fn changes(client: &Client, count: usize) -> Vec<(Operation, String, String)> {
    events(client, count).await.iter().map(change).collect()
}

#[tokio::test]
async fn inserts_updates_and_deletes_arrive_with_old_and_new_records() {
    let setup = ["CREATE TABLE clients (id int PRIMARY KEY, name text)", "ALTER TABLE clients REPLICA IDENTITY FULL"];
    with_source(&[("clients", "a")], &setup, |world, database| async move {
        let (world, a) = capturing(world, &database).await;
        database.run("INSERT INTO clients VALUES (1, 'Ada')").await;
        database.run("BEGIN; UPDATE clients SET name = 'Grace'; DELETE FROM clients; COMMIT").await;
        let events = events(&a, 3).await;
        let (ada, grace) = (r#"{"id":1,"name":"Ada"}"#.to_owned(), r#"{"id":1,"name":"Grace"}"#.to_owned());
        assert_eq!(change(&events[0]), (Operation::Insert, String::new(), ada.clone()));
        assert_eq!(change(&events[1]), (Operation::Update, ada, grace.clone()));
        assert_eq!(change(&events[2]), (Operation::Delete, grace, String::new()));
        let types: Vec<_> = events.iter().map(|event| event.r#type.as_str()).collect();
        assert_eq!(types, ["clients.insert", "clients.update", "clients.delete"]);
        assert!(events.iter().all(|event| event.source == format!("postgres:{}", database.name)));
        let (one, two) = (events[1].id.rsplit_once(':').unwrap(), events[2].id.rsplit_once(':').unwrap());
        assert!(one.0 == two.0 && (one.1, two.1) == ("0", "1"), "{one:?} {two:?}");
        assert_eq!(events[1].time, events[2].time, "their commit's");
        database.caught_up().await;
        assert_eq!(database.metric("capture_events_total"), 3.0);
        world
    })
    .await;
}

#[tokio::test]
async fn a_column_says_whose_a_row_is_and_a_row_that_moves_is_seen_by_each_as_its_own() {
    let setup = ["CREATE TABLE clients (id int PRIMARY KEY, org text)", "ALTER TABLE clients REPLICA IDENTITY FULL"];
    with_source(&[("clients", "@org")], &setup, |world, database| async move {
        let (world, a) = capturing(world, &database).await;
        database.run("INSERT INTO clients VALUES (1, 'a'), (2, 'b')").await;
        database.run("UPDATE clients SET org = 'b' WHERE id = 1").await;
        let own = |client: Client| async move { changes(&client, 2).await };
        let b = client(&world, "b").await;
        let row = |id: i32, org: &str| format!(r#"{{"id":{id},"org":"{org}"}}"#);
        let inserted = |id, org| (Operation::Insert, String::new(), row(id, org));
        assert_eq!(own(a).await, [inserted(1, "a"), (Operation::Delete, row(1, "a"), String::new())]);
        assert_eq!(own(b).await, [inserted(2, "b"), inserted(1, "b")]);
        world
    })
    .await;
}

#[tokio::test]
async fn a_row_that_is_refused_is_kept_and_holds_nothing_up() {
    let setup = [
        "CREATE TABLE clients (id int PRIMARY KEY, org text, notes text)",
        "CREATE TABLE others (id int PRIMARY KEY)",
        "CREATE TABLE ignored (id int PRIMARY KEY)",
        "CREATE PUBLICATION wedsync FOR TABLE clients, others",
    ];
    with_source(&[("clients", "@org")], &setup, |world, database| async move {
        let (world, a) = capturing(world, &database).await;
        database.run("INSERT INTO clients VALUES (1, 'nobody', ''), (2, 'a b', ''), (3, null, '')").await;
        database.run("INSERT INTO clients SELECT 4, 'a', repeat('x', 1 << 20)").await;
        database.run("INSERT INTO clients SELECT 5, 'a', repeat('x', 17 << 20)").await;
        database.run("INSERT INTO others VALUES (1)").await;
        database.run("DELETE FROM clients WHERE id = 4").await;
        database.run("INSERT INTO clients VALUES (6, 'a', 'fine')").await;
        let changes = changes(&a, 1).await;
        assert_eq!(changes[0].2, r#"{"id":6,"org":"a","notes":"fine"}"#);
        assert_eq!(database.metric("capture_refusals_total"), 7.0);
        database.caught_up().await;
        world
    })
    .await;
}

#[tokio::test]
async fn a_table_that_is_not_listed_may_be_ignored() {
    let setup =
        ["CREATE TABLE clients (id int)", "CREATE TABLE others (id int)", "CREATE PUBLICATION wedsync FOR ALL TABLES"];
    with_source(&[("clients", "a")], &setup, |world, mut database| async move {
        database.settings.unlisted = Unlisted::Ignore;
        let (world, a) = capturing(world, &database).await;
        database.run("INSERT INTO others VALUES (1)").await;
        database.run("INSERT INTO clients VALUES (1)").await;
        assert_eq!(changes(&a, 1).await[0].2, r#"{"id":1}"#);
        assert_eq!((database.metric("capture_ignored_total"), database.metric("capture_refusals_total")), (1.0, 0.0));
        world
    })
    .await;
}

#[tokio::test]
async fn a_truncated_table_is_told_to_everybody_who_may_have_had_rows() {
    with_source(&[("clients", "@org")], &["CREATE TABLE clients (id int, org text)"], |world, database| async move {
        let (world, a) = capturing(world, &database).await;
        database.run("TRUNCATE clients").await;
        for client in [a, client(&world, "b").await] {
            let event = events(&client, 1).await.remove(0);
            assert_eq!(event.r#type, "capture.truncated");
            let Some(Payload::Content(content)) = event.payload else { panic!("no content") };
            let content: Value = serde_json::from_slice(&content.data).unwrap();
            assert_eq!(content, json!({"source": database.name, "schema": "public", "table": "clients"}));
        }
        world
    })
    .await;
}
