//! What the operator sees of captured databases, and nobody else.

use chassis::testing::postgres_url;
use proto::router::v1::{
    CaptureRefusal, CaptureState, DismissRefusalsRequest, ListCapturesRequest, ListRefusalsRequest, Scope,
};
use sqlx::{AssertSqlSafe, Connection as _, PgConnection};
use tonic::{Code, Status};

use crate::{
    capture::{Database, capturing, with_source},
    faults::Aside,
    world::{Client, World, field, until},
};

const TABLE: &str = "CREATE TABLE clients (id int PRIMARY KEY, org text)";

async fn refusals(operator: &Client, request: ListRefusalsRequest) -> (Vec<CaptureRefusal>, String) {
    let page = operator.captures().list_refusals(request).await.unwrap().into_inner();
    (page.refusals, page.next_page_token)
}

fn keys(refusals: &[CaptureRefusal]) -> Vec<&str> {
    refusals.iter().map(|refusal| refusal.key.as_str()).collect()
}

async fn refused(world: World, database: &Database) -> (World, Client) {
    let (world, _) = capturing(world, database).await;
    for id in 1..=5 {
        database.run(&format!("INSERT INTO clients VALUES ({id}, null)")).await;
    }
    database.caught_up().await;
    let operator = world.operator();
    (world, operator)
}

#[tokio::test]
async fn refusals_are_listed_page_by_page_and_forgotten_by_number() {
    with_source(&[("clients", "@org")], &[TABLE], |world, database| async move {
        let (world, operator) = refused(world, &database).await;
        let page = |page_token| ListRefusalsRequest { page_size: 2, page_token, capture: database.name.clone() };
        let (first, next) = refusals(&operator, page(String::new())).await;
        assert_eq!(keys(&first), ["id=5", "id=4"], "newest first");
        let refusal = &first[0];
        assert_eq!(
            (&*refusal.capture, &*refusal.table, &*refusal.operation),
            (&*database.name, "public.clients", "insert")
        );
        assert!(refusal.reason.contains("column org") && refusal.event_id.starts_with("pg:"), "{refusal:?}");
        assert!(refusal.refused_at.is_some());
        // What comes meanwhile moves no page.
        database.run("INSERT INTO clients VALUES (6, null)").await;
        database.caught_up().await;
        let (second, next) = refusals(&operator, page(next)).await;
        let (third, end) = refusals(&operator, page(next)).await;
        assert_eq!((keys(&second), keys(&third), &*end), (vec!["id=3", "id=2"], vec!["id=1"], ""));

        let dismiss = |from, through| DismissRefusalsRequest { capture: database.name.clone(), from, through };
        let dismissed =
            async |request| operator.captures().dismiss_refusals(request).await.unwrap().into_inner().dismissed;
        let one = second[0].number;
        assert_eq!((dismissed(dismiss(one, one)).await, dismissed(dismiss(one, one)).await), (1, 0));
        assert_eq!(dismissed(dismiss(0, second[1].number)).await, 2);
        let other = DismissRefusalsRequest { capture: "another".to_owned(), from: 0, through: i64::MAX };
        assert_eq!(dismissed(other).await, 0, "each by its source");
        let (left, _) = refusals(&operator, ListRefusalsRequest::default()).await;
        assert_eq!(keys(&left), ["id=6", "id=5", "id=4"]);
        world
    })
    .await;
}

#[tokio::test]
async fn a_refused_rows_key_is_sealed_where_it_is_kept() {
    let table = "CREATE TABLE clients (email text PRIMARY KEY, org text)";
    with_source(&[("clients", "@org")], &[table], |world, database| async move {
        let (world, _) = capturing(world, &database).await;
        database.run("INSERT INTO clients VALUES ('ada@example.com', null)").await;
        database.caught_up().await;
        let select = "SELECT row_key FROM capture_refusals";
        let kept: Vec<u8> = match Aside::open(&world).await {
            Aside::Sqlite(mut store) => sqlx::query_scalar(select).fetch_one(&mut store).await.unwrap(),
            Aside::Postgres(mut store) => sqlx::query_scalar(select).fetch_one(&mut store).await.unwrap(),
        };
        assert!(!String::from_utf8_lossy(&kept).contains("ada@"), "{kept:?}");
        let (listed, _) = refusals(&world.operator(), ListRefusalsRequest::default()).await;
        assert_eq!(keys(&listed), ["email=ada@example.com"]);
        world
    })
    .await;
}

/// Whether the database can be connected to.
async fn admit(database: &Database, admits: bool) {
    let server = postgres_url().expect("there is one");
    let mut admin = PgConnection::connect(&server).await.unwrap();
    let alter = format!("ALTER DATABASE {} ALLOW_CONNECTIONS {admits}", database.name);
    sqlx::query(AssertSqlSafe(alter)).execute(&mut admin).await.unwrap();
}

#[tokio::test]
async fn a_source_says_how_far_it_is() {
    with_source(&[("clients", "@org")], &[TABLE], |world, database| async move {
        let (world, operator) = refused(world, &database).await;
        let list =
            async || operator.captures().list_captures(ListCapturesRequest {}).await.unwrap().into_inner().captures;
        let capture = list().await.remove(0);
        assert_eq!(
            (&*capture.name, capture.state(), capture.generation),
            (&*database.name, CaptureState::Streaming, 1)
        );
        assert_eq!((capture.refusals, &*capture.lost), (5, ""));
        assert!(capture.acknowledged.contains('/'), "a place: {}", capture.acknowledged);
        assert!(capture.lag.is_some());
        until("the server was asked", || async { list().await[0].lag_bytes.is_some() }).await;
        admit(&database, false).await;
        database.cut().await;
        until("it is away", || async { list().await[0].state() == CaptureState::Away }).await;
        assert_eq!(list().await[0].lag_bytes, None, "nobody looks");
        admit(&database, true).await;
        database.streams().await;
        world
    })
    .await;
}

fn denied<T>(answer: Result<T, Status>) -> bool {
    answer.err().is_some_and(|status| status.code() == Code::PermissionDenied)
}

#[tokio::test]
async fn captures_are_the_operators_alone_and_bad_requests_name_their_field() {
    with_source(&[("clients", "@org")], &[TABLE], |world, database| async move {
        let (world, operator) = refused(world, &database).await;
        let member = world.client(&world.key("a", &[Scope::Admin]).await.1);
        let all = DismissRefusalsRequest { capture: database.name.clone(), from: 0, through: i64::MAX };
        for other in [member, world.service()] {
            assert!(denied(other.captures().list_captures(ListCapturesRequest {}).await));
            assert!(denied(other.captures().list_refusals(ListRefusalsRequest::default()).await));
            assert!(denied(other.captures().dismiss_refusals(all.clone()).await));
        }
        let dismiss = async |request| field(operator.captures().dismiss_refusals(request).await.unwrap_err());
        assert_eq!(dismiss(DismissRefusalsRequest { capture: String::new(), ..all.clone() }).await, "capture");
        assert_eq!(dismiss(DismissRefusalsRequest { from: 3, through: 2, ..all.clone() }).await, "through");
        assert_eq!(dismiss(DismissRefusalsRequest { through: 0, ..all }).await, "through");
        let list = async |request| field(operator.captures().list_refusals(request).await.unwrap_err());
        assert_eq!(list(ListRefusalsRequest { page_size: -1, ..Default::default() }).await, "page_size");
        assert_eq!(list(ListRefusalsRequest { page_token: "x".to_owned(), ..Default::default() }).await, "page_token");
        assert_eq!(refusals(&operator, ListRefusalsRequest::default()).await.0.len(), 5, "nothing was forgotten");
        world
    })
    .await;
}
