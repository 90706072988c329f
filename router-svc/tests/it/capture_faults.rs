//! What must not happen to a source whatever breaks: a change lost, repeated, or out of its order.

use std::time::Duration;

use proto::router::v1::{Operation, event::Payload};
use serde_json::Value;
use tokio::runtime::Runtime;

use crate::{
    capture::{Database, capturing, change, changes, client, events, start, with_source},
    faults::Aside,
    world::{Client, World, keyed, until},
};

const TABLE: &str = "CREATE TABLE t (id bigint PRIMARY KEY, n bigint)";

/// The rows' ids in the order of the log.
async fn ids(client: &Client, count: u64) -> Vec<u64> {
    until(&format!("{count} events"), || async { client.head().await.sequence >= count }).await;
    let id = |event| serde_json::from_str::<Value>(&change(&event).2).unwrap()["id"].as_u64().unwrap();
    client.all().await.into_iter().map(|logged| id(logged.event.unwrap())).collect()
}

#[tokio::test]
async fn a_stream_that_is_cut_again_and_again_loses_and_repeats_nothing() {
    with_source(&[("t", "a")], &[TABLE], |world, database| async move {
        let (world, a) = capturing(world, &database).await;
        for part in 0..20 {
            database
                .run(&format!("INSERT INTO t SELECT id, 0 FROM generate_series({}, {}) id", part * 50, part * 50 + 49))
                .await;
            database.cut().await;
            database.streams().await;
        }
        assert_eq!(ids(&a, 1_000).await, (0..1_000).collect::<Vec<_>>());
        assert!(database.metric("capture_reconnects_total") >= 10.0);
        database.caught_up().await;
        world
    })
    .await;
}

#[tokio::test]
async fn a_store_that_can_not_take_changes_for_a_while_gets_them_in_their_order_afterwards() {
    with_source(&[("t", "a")], &[TABLE], |world, database| async move {
        let (world, a) = capturing(world, &database).await;
        let mut aside = Aside::open(&world).await;
        let insert = async |first: u64, last: u64| {
            for id in first..=last {
                database.run(&format!("INSERT INTO t VALUES ({id}, 0)")).await;
            }
        };
        insert(0, 99).await;
        aside.lock().await;
        insert(100, 299).await;
        until("a commit failed", || async { database.metric("capture_reconnects_total") > 0.0 }).await;
        let (_, ()) = tokio::join!(insert(300, 599), aside.unlock());
        assert_eq!(ids(&a, 600).await, (0..600).collect::<Vec<_>>());
        database.caught_up().await;
        world
    })
    .await;
}

/// Starts the router in a runtime of its own, so that it can be torn away in the middle of whatever it does.
pub(crate) async fn start_apart(world: &World) -> (World, Runtime) {
    let runtime = Runtime::new().unwrap();
    let (config, time, chassis) = (world.config.clone(), world.time.clone(), world.another_chassis());
    let started = runtime.spawn(World::start_with(config, time, chassis)).await.unwrap();
    (started, runtime)
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_router_that_is_torn_away_in_the_middle_has_every_change_once_when_it_is_back() {
    with_source(&[("t", "a")], &[TABLE], |world, database| async move {
        let (world, _) = capturing(world, &database).await;
        assert!(world.chassis.drain().await);
        let mut torn = 0;
        for part in 0..10_i64 {
            let (running, runtime) = start_apart(&world).await;
            let (first, last) = (part * 1_000, part * 1_000 + 999);
            for id in (first..=last).step_by(100) {
                database.run(&format!("INSERT INTO t SELECT id, 0 FROM generate_series({id}, {}) id", id + 99)).await;
            }
            let a = client(&running, "a").await;
            until("some came", || async { a.head().await.sequence > first as u64 }).await;
            torn += u64::from(a.head().await.sequence < last as u64);
            drop(running);
            tokio::task::spawn_blocking(move || runtime.shutdown_timeout(Duration::from_secs(5))).await.unwrap();
        }
        let world = World::start_with(world.config.clone(), world.time.clone(), world.another_chassis()).await;
        let a = client(&world, "a").await;
        assert_eq!(ids(&a, 10_000).await, (0..10_000).collect::<Vec<_>>());
        assert!(torn > 0, "it was never torn away in the middle");
        database.caught_up().await;
        world
    })
    .await;
}

#[tokio::test]
async fn a_transaction_of_a_hundred_thousand_rows_comes_whole_and_in_bounded_memory() {
    with_source(
        &[("t", "a")],
        &["CREATE TABLE t (id bigint PRIMARY KEY, filler text)"],
        |world, database| async move {
            let (world, a) = capturing(world, &database).await;
            let before = resident_kib();
            database.run("INSERT INTO t SELECT id, repeat('x', 1000) FROM generate_series(1, 100000) id").await;
            let mut most = 0;
            let began = tokio::time::Instant::now();
            while a.head().await.sequence < 100_000 {
                assert!(began.elapsed() < Duration::from_secs(300), "it came to {}", a.head().await.sequence);
                most = most.max(resident_kib());
                tokio::time::sleep(Duration::from_millis(50)).await;
            }
            println!("100,000 rows in {:?}, {} KiB more at most", began.elapsed(), most.saturating_sub(before));
            assert!(most < before + 256 * 1024, "{} KiB more", most - before);
            database.caught_up().await;
            assert_eq!(database.metric("capture_events_total"), 100_000.0);
            world
        },
    )
    .await;
}

fn resident_kib() -> u64 {
    let status = std::fs::read_to_string("/proc/self/status").unwrap();
    let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:")).unwrap();
    line.split_whitespace().next().unwrap().parse().unwrap()
}

async fn drop_slot(database: &Database) {
    let drop = format!("SELECT pg_drop_replication_slot('{}')", database.name);
    until("the slot is free", || async {
        database.cut().await;
        sqlx::query(sqlx::AssertSqlSafe(drop.clone())).execute(&database.pool).await.is_ok()
    })
    .await;
}

#[tokio::test]
async fn a_slot_that_was_dropped_is_told_and_made_anew_with_the_tables_as_they_are() {
    with_source(&[("t", "a")], &[TABLE], |world, mut database| async move {
        database.settings.snapshot = vec!["t".to_owned()];
        let (world, a) = capturing(world, &database).await;
        database.run("INSERT INTO t VALUES (1, 1)").await;
        events(&a, 1).await;
        assert!(world.chassis.drain().await);
        drop_slot(&database).await;
        database.run("UPDATE t SET n = 2").await;
        let (world, a) = capturing(world, &database).await;
        database.run("UPDATE t SET n = 3").await;
        let events = events(&a, 4).await;
        let types: Vec<_> = events.iter().map(|event| event.r#type.as_str()).collect();
        assert_eq!(types, ["t.insert", "capture.resync", "t.insert", "t.update"]);
        let Some(Payload::Content(content)) = &events[1].payload else { panic!("no content") };
        assert!(String::from_utf8_lossy(&content.data).contains("the slot was dropped"));
        assert_eq!(change(&events[2]), (Operation::Insert, String::new(), r#"{"id":1,"n":2}"#.to_owned()));
        assert_eq!(change(&events[3]).2, r#"{"id":1,"n":3}"#);
        assert_eq!(database.metric("capture_slots_lost_total"), 1.0);
        world
    })
    .await;
}

#[tokio::test]
async fn a_slot_that_somebody_else_made_anew_under_its_name_is_noticed() {
    with_source(&[("t", "a")], &[TABLE], |world, database| async move {
        let (world, a) = capturing(world, &database).await;
        database.run("INSERT INTO t VALUES (1, 1)").await;
        events(&a, 1).await;
        assert!(world.chassis.drain().await);
        drop_slot(&database).await;
        database.run("INSERT INTO t VALUES (2, 2)").await;
        database.run(&format!("SELECT pg_create_logical_replication_slot('{}', 'pgoutput')", database.name)).await;
        let (world, a) = capturing(world, &database).await;
        database.run("INSERT INTO t VALUES (3, 3)").await;
        let events = events(&a, 3).await;
        assert_eq!(events[1].r#type, "capture.resync");
        assert_eq!(change(&events[2]).2, r#"{"id":3,"n":3}"#);
        world
    })
    .await;
}

#[tokio::test]
async fn a_source_that_is_away_holds_nothing_up_and_is_read_once_it_can_be() {
    with_source(&[("t", "a")], &[], |world, database| async move {
        // Its table isn't there yet.
        let (world, a) = start(world, &database).await;
        a.publish(keyed("e", "k")).await;
        until("it was tried", || async { database.metric("capture_reconnects_total") > 0.0 }).await;
        database.run(TABLE).await;
        database.streams().await;
        database.run("INSERT INTO t VALUES (1, 1)").await;
        events(&a, 2).await;
        world
    })
    .await;
}

#[tokio::test]
async fn a_server_that_was_not_told_for_long_throws_nothing_of_ours_away() {
    with_source(&[("t", "a")], &[TABLE], |world, database| async move {
        let (world, a) = capturing(world, &database).await;
        assert!(world.chassis.drain().await);
        for round in 0..50 {
            database
                .run(&format!(
                    "INSERT INTO t SELECT id, 0 FROM generate_series({}, {}) id",
                    round * 20,
                    round * 20 + 19
                ))
                .await;
        }
        database.run("SELECT pg_switch_wal(); CHECKPOINT").await;
        let (world, _) = capturing(world, &database).await;
        drop(a);
        let a = client(&world, "a").await;
        assert_eq!(ids(&a, 1_000).await, (0..1_000).collect::<Vec<_>>());
        assert_eq!(changes(&a, 1_000).await.len(), 1_000);
        world
    })
    .await;
}
