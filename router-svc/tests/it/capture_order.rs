//! What a source's order is made of beyond rows: a TRUNCATE, a table that changes its form, a row that the log can't take,
//! and the stop: each at its place, once, however often the router is torn away.

use std::time::Duration;

use proto::router::v1::{Event, event::Payload};
use serde_json::{Map, Value, json};
use sqlx::AssertSqlSafe;

use crate::{
    capture::{Database, capturing, change, client, events, with_source},
    capture_faults::start_apart,
    faults::Aside,
    world::{World, until},
};

const TABLE: &str = "CREATE TABLE t (id bigint PRIMARY KEY)";

/// What an event says: the new record of a change, or that the table was truncated.
fn said(event: &Event) -> Value {
    match &event.payload {
        Some(Payload::Change(_)) => serde_json::from_str(&change(event).2).unwrap(),
        _ => Value::from(event.r#type.as_str()),
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_truncate_and_a_new_column_keep_their_place_however_often_the_router_is_torn_away() {
    with_source(&[("t", "a")], &[TABLE], |world, database| async move {
        let (world, a) = capturing(world, &database).await;
        assert!(world.chassis.drain().await);
        drop(a);
        let (mut expected, mut torn) = (Vec::new(), 0);
        for round in 0..8_u32 {
            let (running, runtime) = start_apart(&world).await;
            let a = client(&running, "a").await;
            changed(&database, round, &mut expected).await;
            let some = expected.len() as u64 - u64::from(round);
            until("some came", || async { a.head().await.sequence >= some.saturating_sub(60) }).await;
            torn += u64::from(a.head().await.sequence < expected.len() as u64);
            drop(running);
            tokio::task::spawn_blocking(move || runtime.shutdown_timeout(Duration::from_secs(5))).await.unwrap();
        }
        let world = World::start_with(world.config.clone(), world.time.clone(), world.another_chassis()).await;
        let a = client(&world, "a").await;
        let got: Vec<Value> = events(&a, expected.len()).await.iter().map(said).collect();
        for (place, (got, expected)) in got.iter().zip(&expected).enumerate() {
            assert_eq!(got, expected, "at {place}");
        }
        assert!(torn > 0, "it was never torn away in the middle");
        database.caught_up().await;
        world
    })
    .await;
}

/// Rows, a new column, rows, a TRUNCATE, rows: each in a transaction of its own, and once all in one.
async fn changed(database: &Database, round: u32, expected: &mut Vec<Value>) {
    let at_once = round % 2 == 1;
    let mut statements = Vec::new();
    let mut insert = |columns: u32, from: u32| {
        for id in (round * 1_000 + from)..(round * 1_000 + from + 20) {
            statements.push(format!("INSERT INTO t (id) VALUES ({id})"));
            let defaults = (0..columns).map(|column| (format!("c{column}"), json!(column)));
            expected
                .push(Value::Object([("id".to_owned(), json!(id))].into_iter().chain(defaults).collect::<Map<_, _>>()));
        }
        if from == 0 {
            statements.push(format!("ALTER TABLE t ADD COLUMN c{round} int DEFAULT {round}"));
        } else if from == 100 {
            statements.push("TRUNCATE t".to_owned());
            expected.push("capture.truncated".into());
        }
    };
    insert(round, 0);
    insert(round + 1, 100);
    insert(round + 1, 200);
    if at_once {
        return database.run(&format!("BEGIN; {}; COMMIT", statements.join("; "))).await;
    }
    for statement in statements {
        database.run(&statement).await;
    }
}

#[tokio::test]
async fn a_row_that_the_log_fails_on_again_and_again_is_refused_alone() {
    let setup = [TABLE, "CREATE TABLE poison (id int)"];
    with_source(&[("t", "a"), ("poison", "a")], &setup, |world, database| async move {
        let (world, a) = capturing(world, &database).await;
        let mut aside = Aside::open(&world).await;
        aside.fail_on("poison.insert").await;
        database
            .run(
                "BEGIN; INSERT INTO t VALUES (1), (2); INSERT INTO poison VALUES (3); INSERT INTO t VALUES (4); COMMIT",
            )
            .await;
        database.run("INSERT INTO t VALUES (5)").await;
        let got: Vec<Value> = events(&a, 4).await.iter().map(said).collect();
        assert_eq!(got, [1, 2, 4, 5].map(|id| json!({ "id": id })));
        // Once for each failure, no more.
        assert_eq!(database.metric("capture_reconnects_total"), 10.0);
        assert_eq!(database.metric("capture_refusals_total"), 1.0);
        database.caught_up().await;
        world
    })
    .await;
}

#[tokio::test]
async fn a_stop_tells_the_server_all_that_is_durable() {
    with_source(&[("t", "a")], &[TABLE], |world, database| async move {
        let (mut world, _) = capturing(world, &database).await;
        for round in 0..5_u64 {
            let (first, last) = (round * 100, round * 100 + 99);
            database.run(&format!("INSERT INTO t SELECT id FROM generate_series({first}, {last}) id")).await;
            let a = client(&world, "a").await;
            until("all are in the log", || async { a.head().await.sequence > last }).await;
            // Told twice a second at most: without its last word the slot would be behind.
            assert!(world.chassis.drain().await, "it stops in time");
            let idle = format!(
                "SELECT COUNT(*)::text FROM pg_replication_slots WHERE slot_name = '{}' AND NOT active",
                database.name
            );
            until("the slot is free", || async { database.text(&idle).await == "1" }).await;
            let left = "SELECT COUNT(*) FROM pg_logical_slot_peek_binary_changes";
            let query = format!(
                "{left}('{}', NULL, NULL, 'proto_version', '1', 'publication_names', 'wedsync')",
                database.name
            );
            let left: i64 = sqlx::query_scalar(AssertSqlSafe(query)).fetch_one(&database.pool).await.unwrap();
            assert_eq!(left, 0, "in round {round}");
            world = World::start_with(world.config.clone(), world.time.clone(), world.another_chassis()).await;
            database.streams().await;
        }
        world
    })
    .await;
}
