//! The tables as they were, and the stream after them: together each row's history without a gap or a repeat.

use std::collections::BTreeMap;

use chassis::tasks::Tasks;
use proto::{common::v1::Priority, router::v1::Operation};
use serde_json::Value;

use crate::{
    capture::{capturing, change, events, with_source},
    world::{PATIENCE, until},
};

const ROWS: usize = 2_000;

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_snapshot_and_the_stream_after_it_have_each_change_once_while_others_write() {
    let setup = [
        "CREATE TABLE t (id int PRIMARY KEY, n int)",
        "ALTER TABLE t REPLICA IDENTITY FULL",
        "INSERT INTO t SELECT id, 0 FROM generate_series(1, 2000) id",
    ];
    with_source(&[("t", "a")], &setup, |world, mut database| async move {
        database.settings.snapshot = vec!["t".to_owned()];
        let writers = Tasks::default();
        let (pool, stopping) = (database.pool.clone(), writers.stopping());
        writers.spawn("writer", async move {
            let mut next = 2_001;
            while !stopping.is_cancelled() {
                let statement = "UPDATE t SET n = n + 1 WHERE id % 50 = $1 % 50";
                sqlx::query(statement).bind(next).execute(&pool).await.unwrap();
                sqlx::query("DELETE FROM t WHERE id = $1 - 2000").bind(next).execute(&pool).await.unwrap();
                sqlx::query("INSERT INTO t VALUES ($1, 0)").bind(next).execute(&pool).await.unwrap();
                next += 1;
            }
        });
        let (world, a) = capturing(world, &database).await;
        until("the snapshot and more", || async { a.head().await.sequence > ROWS as u64 + 500 }).await;
        assert!(writers.stop(PATIENCE).await);
        database.caught_up().await;
        let mut rows = BTreeMap::new();
        for logged in a.all().await {
            let event = logged.event.unwrap();
            let is_import = event.id.contains(":snapshot:");
            assert_eq!(event.priority == Priority::Low as i32, is_import, "{}", event.id);
            assert_eq!(event.metadata.as_ref().is_some_and(|metadata| metadata.origin == "import"), is_import);
            let (operation, old, new) = change(&event);
            let row = |text: &str| serde_json::from_str::<Value>(text).unwrap();
            let id = |text: &str| row(text)["id"].as_i64().unwrap();
            match operation {
                // Each change finds the row as the one before it left it: nothing is missing, nothing came twice.
                Operation::Insert => assert_eq!(rows.insert(id(&new), row(&new)), None, "{new}"),
                Operation::Update => assert_eq!(rows.insert(id(&new), row(&new)), Some(row(&old))),
                Operation::Delete => assert_eq!(rows.remove(&id(&old)), Some(row(&old))),
                Operation::Unspecified => panic!("no operation"),
            }
        }
        let expected: Vec<(i32, i32)> =
            sqlx::query_as("SELECT id, n FROM t ORDER BY id").fetch_all(&database.pool).await.unwrap();
        let got: Vec<(i32, i32)> = rows
            .values()
            .map(|row| {
                let number = |name: &str| i32::try_from(row[name].as_i64().unwrap()).unwrap();
                (number("id"), number("n"))
            })
            .collect();
        assert_eq!(got, expected);
        world
    })
    .await;
}

#[tokio::test]
async fn a_snapshot_has_the_columns_and_rows_of_the_publication() {
    let setup = [
        "CREATE TABLE t (id int PRIMARY KEY, secret text, n int)",
        "CREATE PUBLICATION wedsync FOR TABLE t (id, n) WHERE (n > 1) WITH (publish = 'insert')",
        "INSERT INTO t VALUES (1, 's', 1), (2, 's', 2)",
    ];
    with_source(&[("t", "a")], &setup, |world, mut database| async move {
        database.settings.snapshot = vec!["t".to_owned()];
        let (world, a) = capturing(world, &database).await;
        database.run("INSERT INTO t VALUES (3, 's', 3), (4, 's', 0)").await;
        let new: Vec<String> = events(&a, 2).await.iter().map(|event| change(event).2).collect();
        assert_eq!(new, [r#"{"id":2,"n":2}"#, r#"{"id":3,"n":3}"#]);
        world
    })
    .await;
}
