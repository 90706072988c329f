//! Tables that are kept in parts: their changes come under their own name, whatever the publication says at first.

use crate::capture::{capturing, change, events, with_source};

const TABLE: [&str; 3] = [
    "CREATE TABLE t (id int, day date, PRIMARY KEY (id, day)) PARTITION BY RANGE (day)",
    "CREATE TABLE t_2026 PARTITION OF t FOR VALUES FROM ('2026-01-01') TO ('2027-01-01')",
    "INSERT INTO t VALUES (1, '2026-05-01')",
];

#[tokio::test]
async fn a_partitioned_table_is_read_and_streams_under_its_own_name_in_every_session() {
    with_source(&[("t", "a")], &TABLE, |world, mut database| async move {
        database.settings.snapshot = vec!["t".to_owned()];
        let (world, a) = capturing(world, &database).await;
        for id in 2..=4 {
            database.run(&format!("INSERT INTO t VALUES ({id}, '2026-05-0{id}')")).await;
            database.caught_up().await;
            database.cut().await;
            database.streams().await;
        }
        let events = events(&a, 4).await;
        assert_eq!(events.iter().map(|event| event.r#type.as_str()).collect::<Vec<_>>(), ["t.insert"; 4]);
        assert_eq!(change(&events[3]).2, r#"{"id":4,"day":"2026-05-04"}"#);
        world
    })
    .await;
}

#[tokio::test]
async fn a_publication_of_all_tables_that_somebody_made_is_taken_as_it_is_but_for_partitions() {
    let setup = [&TABLE[..], &["CREATE TABLE plain (id int)", "CREATE PUBLICATION wedsync FOR ALL TABLES"]].concat();
    with_source(&[("t", "a"), ("plain", "a")], &setup, |world, database| async move {
        let (world, a) = capturing(world, &database).await;
        database.run("INSERT INTO t VALUES (2, '2026-05-02')").await;
        database.run("INSERT INTO plain VALUES (3)").await;
        let events = events(&a, 2).await;
        assert_eq!(events.iter().map(|event| event.r#type.as_str()).collect::<Vec<_>>(), ["t.insert", "plain.insert"]);
        world
    })
    .await;
}

#[tokio::test]
async fn a_partition_that_is_listed_beside_its_table_stops_nothing() {
    with_source(&[("t", "a"), ("t_2026", "a")], &TABLE, |world, database| async move {
        let (world, a) = capturing(world, &database).await;
        database.cut().await;
        database.streams().await;
        database.run("INSERT INTO t VALUES (2, '2026-05-02')").await;
        assert_eq!(events(&a, 1).await[0].r#type, "t.insert");
        world
    })
    .await;
}
