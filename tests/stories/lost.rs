//! A captured database's server throws away what its slot stands for, since nobody read it for too long: that is told to
//! everybody whom it may concern, and the tables are read again as they are.

use proto::router::v1::{Event, event::Payload};
use serde_json::{Value, json};
use sqlx::AssertSqlSafe;

use super::{
    story::{Tenant, eventually},
    web::get,
};
use crate::harness::{Engine, Postgres, Source, organization, provided};

const SETUP: [&str; 2] =
    ["CREATE TABLE orders (id int PRIMARY KEY, organization_id text)", "CREATE TABLE filler (text text)"];
/// The least that a server keeps is a segment of its log; it may keep no more for a slot.
const KEEPS_LITTLE: [&str; 4] =
    ["wal_level=logical", "max_slot_wal_keep_size=16MB", "min_wal_size=32MB", "max_wal_size=64MB"];
const SEGMENTS: usize = 6;

fn row(event: &Event) -> Value {
    let Some(Payload::Change(change)) = &event.payload else { return Value::Null };
    serde_json::from_slice::<Value>(&change.new_record).expect("JSON")["id"].take()
}

async fn metric(system: &crate::harness::Wedsync, name: &str) -> f64 {
    let text = get(system.addresses.gateway, "/metrics", &[]).await.body;
    let of = |line: &&str| line.starts_with(&format!("{name}{{"));
    text.lines().filter(of).filter_map(|line| line.rsplit_once(' ')?.1.parse::<f64>().ok()).sum()
}

/// Fills the server's log until it has given the slot up.
async fn lose_slot(source: &Source, slot: &str) {
    for _ in 0..SEGMENTS {
        source.run("INSERT INTO filler VALUES ('x')").await;
        source.run("SELECT pg_switch_wal()").await;
    }
    source.run("CHECKPOINT").await;
    let query = format!("SELECT COALESCE(wal_status, '') FROM pg_replication_slots WHERE slot_name = '{slot}'");
    eventually("the slot is lost", async || {
        let status = sqlx::query_scalar::<_, String>(AssertSqlSafe(query.clone())).fetch_one(&source.pool).await;
        let status = status.map_err(|error| error.to_string())?;
        if status == "lost" {
            return Ok(());
        }
        source.run("CHECKPOINT").await;
        Err(status)
    })
    .await;
}

#[tokio::test]
async fn a_slot_that_the_server_gave_up_is_told_and_its_tables_are_read_again() {
    if provided("WEDSYNC_TEST_POSTGRES").is_none() {
        return;
    }
    let folder = tempfile::tempdir().expect("a temporary folder");
    let server = Postgres::start_in(folder.path(), &KEEPS_LITTLE).await;
    let source = Source::create_on(&server.url(), &SETUP).await;
    let mut system = source.captured_with(&Engine::Sqlite, &["orders"], "snapshot = ['orders']\n").await;
    let acme = Tenant::of(&system, "Acme").await;
    let organization = organization(acme.addresses.router, &acme.key).await;
    let insert = async |id: u32| source.run(&format!("INSERT INTO orders VALUES ({id}, '{organization}')")).await;
    source.streams().await;
    insert(1).await;
    source.caught_up().await;

    // It stands still for longer than the server waits.
    system.freeze().await;
    insert(2).await;
    lose_slot(&source, source.slot()).await;
    system.thaw().await;
    source.streams().await;
    insert(3).await;
    source.caught_up().await;

    let logged = acme.logged(&[]).await;
    let events: Vec<Event> = logged.into_iter().filter_map(|logged| logged.event).collect();
    let told: Vec<(&str, Value)> = events.iter().map(|event| (event.r#type.as_str(), row(event))).collect();
    let insert_of = |id: u32| ("orders.insert", json!(id));
    let resync = ("capture.resync", Value::Null);
    // The second may have been on its way already, and is told twice then.
    let lost_at = 1 + usize::from(told.get(1) == Some(&insert_of(2)));
    assert_eq!(told[0], insert_of(1));
    assert_eq!(told[lost_at..], [resync, insert_of(1), insert_of(2), insert_of(3)]);
    let Some(Payload::Content(content)) = &events[lost_at].payload else { panic!("no content") };
    let content: Value = serde_json::from_slice(&content.data).expect("JSON");
    assert_eq!(
        (&content["reason"], &content["read_anew"]),
        (&json!("the server invalidated the slot"), &json!(["public.orders"]))
    );
    assert_eq!(metric(&system, "capture_slots_lost_total").await, 1.0);
    assert_eq!(metric(&system, "capture_connected").await, 1.0);
    assert!(system.log().contains("changes were lost: a new generation begins"), "loud");
    let ready = get(system.addresses.gateway, "/readyz", &[]).await.status;
    assert_eq!(ready, 200, "publishers aren't turned away");
    assert!(system.stop().await.success());
}
