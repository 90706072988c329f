//! What the router does when its store, its port or another router is in the way.

use std::{path::PathBuf, time::Duration};

use proto::router::v1::{
    DeleteApiKeyRequest, Event, GetHeadRequest, Route, Scope, TestRouteRequest, UpdateRouteRequest,
};
use serde_json::json;
use sqlx::{Connection as _, Executor as _, PgConnection, SqliteConnection};
use tokio::{
    io::{AsyncReadExt as _, AsyncWriteExt as _},
    net::TcpStream,
    time::timeout,
};
use tonic::{Code, Status};
use tonic_types::StatusExt as _;

use crate::{
    weddings::wedding,
    world::{PATIENCE, World, content, keyed, on_each, until},
};

/// The store by another way in.
pub(crate) enum Aside {
    Sqlite(SqliteConnection),
    Postgres(PgConnection),
}

impl Aside {
    pub(crate) async fn open(world: &World) -> Self {
        let store = &world.config.store;
        let url = store.url.expose();
        if url.starts_with("sqlite:") {
            return Self::Sqlite(SqliteConnection::connect(url).await.unwrap());
        }
        let mut connection = PgConnection::connect(url).await.unwrap();
        let path = format!("SET search_path TO {}", store.schema);
        connection.execute(sqlx::AssertSqlSafe(path)).await.unwrap();
        Self::Postgres(connection)
    }

    async fn run(&mut self, sqlite: &'static str, postgres: &'static str) {
        match self {
            Self::Sqlite(connection) => drop(connection.execute(sqlite).await.unwrap()),
            Self::Postgres(connection) => drop(connection.execute(postgres).await.unwrap()),
        }
    }

    /// From here on the store fails on every event of this type, by an error that is no refusal.
    pub(crate) async fn fail_on(&mut self, type_: &str) {
        let sqlite = format!(
            "CREATE TRIGGER fail BEFORE INSERT ON events WHEN NEW.type = '{type_}'
             BEGIN SELECT RAISE(ABORT, 'on purpose'); END"
        );
        let postgres = format!(
            "CREATE FUNCTION fail() RETURNS trigger AS $$ BEGIN RAISE 'on purpose'; END $$ LANGUAGE plpgsql;
             CREATE TRIGGER fail BEFORE INSERT ON events FOR EACH ROW WHEN (NEW.type = '{type_}') EXECUTE FUNCTION fail()"
        );
        match self {
            Self::Sqlite(connection) => {
                sqlx::raw_sql(sqlx::AssertSqlSafe(sqlite)).execute(connection).await.map(drop).unwrap();
            }
            Self::Postgres(connection) => {
                sqlx::raw_sql(sqlx::AssertSqlSafe(postgres)).execute(connection).await.map(drop).unwrap();
            }
        }
    }

    pub(crate) async fn lock(&mut self) {
        self.run("BEGIN IMMEDIATE", "BEGIN; LOCK TABLE log IN ACCESS EXCLUSIVE MODE").await;
    }

    /// From here on no key and no route can be changed; both can be read.
    async fn lock_settings(&mut self) {
        self.run("BEGIN IMMEDIATE", "BEGIN; LOCK TABLE api_keys, routes IN SHARE ROW EXCLUSIVE MODE").await;
    }

    pub(crate) async fn unlock(&mut self) {
        self.run("ROLLBACK", "ROLLBACK").await;
    }
}

fn assert_unavailable(refused: &Status) {
    assert_eq!(refused.code(), Code::Unavailable, "{refused:?}");
    let details = refused.get_details_retry_info().expect("it says when to try again");
    assert!(details.retry_delay.is_some_and(|delay| delay > Duration::ZERO));
}

/// How `/readyz` answers.
async fn readiness(world: &World) -> String {
    let mut connection = TcpStream::connect(world.address).await.unwrap();
    connection.write_all(b"GET /readyz HTTP/1.1\r\nhost: router\r\nconnection: close\r\n\r\n").await.unwrap();
    let mut answer = String::new();
    connection.read_to_string(&mut answer).await.unwrap();
    answer.lines().next().unwrap_or_default().to_owned()
}

#[tokio::test]
async fn a_locked_store_refuses_for_now_and_loses_nothing_and_leaves_no_gap() {
    on_each(|world| async move {
        let a = world.organization("a").await;
        a.publish(keyed("before", "k")).await;
        let mut member = a.join("g", 100).await;
        let mut aside = Aside::open(&world).await;
        aside.lock().await;
        let (one, two) =
            tokio::join!(a.try_publish(keyed("one", "k")), a.try_publish(content("two", "test.happened", json!(2))));
        for refused in [one, two] {
            assert_unavailable(&refused.unwrap_err());
        }
        aside.unlock().await;
        let stored = a.publish(keyed("one", "k")).await;
        assert!(!stored.duplicate && stored.position.unwrap().sequence == 2);
        assert_eq!(a.sequence(content("two", "test.happened", json!(2))).await, 3);
        assert_eq!(a.all().await.len(), 3);
        assert_eq!(member.ids(2).await, ["one", "two"]);
    })
    .await;
}

#[tokio::test]
async fn acknowledgements_that_could_not_be_stored_are_stored_later() {
    on_each(|world| async move {
        let a = world.organization("a").await;
        let mut member = a.join("g", 100).await;
        a.publish(keyed("e1", "k")).await;
        let events = member.rest().await;
        let mut aside = Aside::open(&world).await;
        aside.lock().await;
        member.acknowledge(&events).await;
        // Long enough for a commit of the cursors to fail.
        assert_unavailable(&a.try_publish(keyed("e2", "k")).await.unwrap_err());
        aside.unlock().await;
        crate::consume::acknowledged(&a, "g", 1).await;
    })
    .await;
}

#[tokio::test]
async fn two_routers_never_serve_one_store() {
    on_each(|world| async move {
        let config = router_svc::Config { listen: ([127, 0, 0, 1], 0).into(), ..world.config.clone() };
        let refused = router_svc::start(config, &world.another_chassis()).await.unwrap_err();
        assert!(format!("{refused:#}").contains("in use by another process"), "{refused:#}");
        world.organization("a").await.publish(keyed("e1", "k")).await;
    })
    .await;
}

#[tokio::test]
async fn a_router_whose_log_was_taken_over_writes_nothing_more_and_stops_by_itself() {
    on_each(|world| async move {
        assert_eq!(readiness(&world).await, "HTTP/1.1 200 OK");
        let a = world.organization("a").await;
        let mut member = a.join("g", 100).await;
        a.publish(keyed("e1", "k")).await;
        let events = member.rest().await;
        Aside::open(&world).await.run("UPDATE log SET epoch = epoch + 1", "UPDATE log SET epoch = epoch + 1").await;
        for _ in 0..2 {
            assert_unavailable(&a.try_publish(keyed("e2", "k")).await.unwrap_err());
        }
        let row = proto::router::v1::Change {
            schema: "public".to_owned(),
            table: "wedding_details".to_owned(),
            operation: 1,
            new_record: r#"{"id":"w","wedding_date":"2026-05-02"}"#.into(),
            ..Default::default()
        };
        let teaches = Event { payload: Some(proto::router::v1::event::Payload::Change(row)), ..Event::default() };
        assert_unavailable(&a.try_publish(teaches).await.unwrap_err());
        assert!(wedding(&a, "w").await.is_none(), "what was not stored is not known");
        assert_eq!((a.head().await.sequence, a.all().await.len()), (1, 1));
        member.acknowledge(&events).await;
        assert_eq!(readiness(&world).await, "HTTP/1.1 503 Service Unavailable");
        let ended = timeout(PATIENCE, world.chassis.run()).await.expect("it stops by itself").unwrap();
        assert!(!ended, "that is a failure");
        assert!(world.chassis.tasks.running().is_empty(), "cursors that can't be stored don't hold up the stop");
    })
    .await;
}

#[tokio::test]
async fn what_another_hand_committed_shows_with_the_next_answer() {
    on_each(|world| async move {
        let a = world.organization("a").await;
        a.publish(keyed("e1", "k")).await;
        // As after a commit whose answer was lost: the store holds an event that this process doesn't know of.
        let insert = "INSERT INTO events (sequence, organization_id, id, uid, type, ordering_key, priority, content_hash, recorded_at, body)
             SELECT 2, organization_id, 'e2', '0123456789abcdef', type, ordering_key, priority, content_hash, recorded_at, body FROM events WHERE sequence = 1";
        let mut aside = Aside::open(&world).await;
        aside.run("UPDATE log SET head = 2", "UPDATE log SET head = 2").await;
        let as_bytes = "INSERT INTO events (sequence, organization_id, id, uid, type, ordering_key, priority, content_hash, recorded_at, body)
             SELECT 2, organization_id, 'e2', CAST('0123456789abcdef' AS BLOB), type, ordering_key, priority, content_hash, recorded_at, body FROM events WHERE sequence = 1";
        aside.run(as_bytes, insert).await;
        let again = a.publish(keyed("e2", "k")).await;
        assert!(again.duplicate && again.position.unwrap().sequence == 2);
        assert_eq!(a.head().await.sequence, 2, "whoever is answered can read it");
        assert_eq!(a.sequence(keyed("e3", "k")).await, 3);
    })
    .await;
}

#[tokio::test]
async fn nothing_of_an_events_content_lies_open_in_the_files() {
    on_each(|world| async move {
        let a = world.organization("a").await;
        let canary = "canary-in-the-mine-7391";
        a.publish(content("e1", "test.happened", json!({"note": canary, "wedding_id": "w"}))).await;
        let Some(path) = world.config.store.url.expose().strip_prefix("sqlite:").map(PathBuf::from) else { return };
        let holds = |canary: &str| {
            let folder = std::fs::read_dir(path.parent().unwrap()).unwrap().map(|entry| entry.unwrap().path());
            let files: Vec<_> =
                folder.filter(|file| file.file_name().unwrap().to_string_lossy().starts_with("test.db")).collect();
            assert!(files.len() >= 2, "{files:?}");
            files
                .iter()
                .any(|file| std::fs::read(file).unwrap().windows(canary.len()).any(|bytes| bytes == canary.as_bytes()))
        };
        assert!(holds("test.happened"), "what is not sealed is found by this");
        assert!(!holds(canary));
        until("it is read back", || async { a.all().await.len() == 1 }).await;
    })
    .await;
}

#[tokio::test]
async fn a_port_in_use_is_named() {
    on_each(|world| async move {
        let config = router_svc::Config { listen: world.address, ..world.config.clone() };
        let refused = router_svc::start(config, &world.another_chassis()).await.unwrap_err();
        let expected = format!("port {} of router is in use: set [router] listen", world.address.port());
        assert_eq!(refused.to_string(), expected);
    })
    .await;
}

/// A call that nobody waits for to its end.
fn cut_short<T>(message: T) -> tonic::Request<T> {
    let mut request = tonic::Request::new(message);
    request.set_timeout(Duration::from_millis(200));
    request
}

#[tokio::test]
async fn a_change_whose_caller_did_not_wait_for_it_is_in_force_once_it_is_stored() {
    on_each(|world| async move {
        let a = world.organization("a").await;
        let (id, secret) = world.key("a", &[Scope::Consume]).await;
        let revoked = world.client(&secret);
        revoked.head().await;
        let silenced = crate::routes::create(&a, crate::routes::own_route("test.happened", "")).await;
        assert_eq!(destinations(&a).await, 1);
        let mut aside = Aside::open(&world).await;
        aside.lock_settings().await;
        let delete = DeleteApiKeyRequest { id: id.clone(), ..Default::default() };
        let off = UpdateRouteRequest { route: Some(Route { disabled: true, ..silenced }) };
        let (mut organizations, mut routes) = (a.organizations(), a.routes());
        let (deleted, updated) =
            tokio::join!(organizations.delete_api_key(cut_short(delete)), routes.update_route(cut_short(off)));
        for cut in [deleted.map(drop), updated.map(drop)] {
            let code = cut.unwrap_err().code();
            assert!([Code::DeadlineExceeded, Code::Cancelled].contains(&code), "{code}");
        }
        aside.unlock().await;
        until("the key is refused", || async {
            revoked
                .events()
                .get_head(GetHeadRequest {})
                .await
                .is_err_and(|status| status.code() == Code::Unauthenticated)
        })
        .await;
        until("the route is off", || async { destinations(&a).await == 0 }).await;
    })
    .await;
}

/// Of an event that one route sends somewhere.
async fn destinations(client: &crate::world::Client) -> usize {
    let asked = TestRouteRequest { event: Some(keyed("e", "k")), route: None };
    client.routes().test_route(asked).await.unwrap().into_inner().plan.unwrap().destinations.len()
}
