//! Records of captured changes: each value as PostgreSQL itself writes it as JSON, and what of a row is sent at all.

use proto::router::v1::Operation;
use serde_json::Value;

use crate::capture::{capturing, changes, with_source};

const TYPES: &str = "CREATE TYPE mood AS ENUM ('happy', 'sad'); CREATE DOMAIN guests AS int CHECK (VALUE > 0);
    CREATE TABLE t (
        id bigint PRIMARY KEY, yes bool, small int2, big int8, exact numeric, nan numeric, single float4, double float8, inf float8,
        words text, varying varchar(20), fixed char(4), uid uuid, j json, jb jsonb, raw bytea, day date, at timestamp,
        instant timestamptz, forever timestamptz, clock time, clock_tz timetz, span interval, address inet, nothing text,
        ints int[], matrix int[][], texts text[], jsonbs jsonb[], instants timestamptz[], feeling mood, feelings mood[],
        party guests, parties guests[], bits bit(3), within int4range, price money)";
const ROW: &str = "INSERT INTO t VALUES (9223372036854775807, true, -32768, -9223372036854775808, 12345678901234567890.123456789000,
    'NaN', 1.1, 1e300, '-Infinity', E'tab\\t\"quote\" \\\\ \u{1F492} \u{1}', 'v', 'f', 'a0eebc99-9c0b-4ef8-bb6d-6bb9bd380a11',
    '{\"b\": 1,  \"a\": [1.0, null]}', '{\"b\": 1, \"a\": 1.10}', '\\x00ff', '2026-06-20', '2026-06-20 15:00:00.25',
    '2026-06-20 15:00:00+02', 'infinity', '15:00', '15:00+02', '1 day 02:00', '10.0.0.1/8', NULL, '{1,NULL,3}', '{{1,2},{3,4}}',
    ARRAY['a,b', 'c\"d', NULL, 'NULL', ''], ARRAY['{\"a\": \"b\"}']::jsonb[], ARRAY['2026-06-20 15:00:00+02'::timestamptz],
    'happy', '{happy,sad}', 80, '{1,2}', B'101', '[1,10)', 12.5)";

#[tokio::test]
async fn every_value_is_as_postgresql_writes_it_as_json() {
    with_source(&[("t", "a")], &[TYPES], |world, database| async move {
        let (world, a) = capturing(world, &database).await;
        database.run(ROW).await;
        let captured = changes(&a, 1).await.remove(0).2;
        let json = "SELECT row_to_json(t)::text FROM t WHERE set_config('IntervalStyle', 'iso_8601', false) <> ''";
        assert_eq!(captured, database.text(json).await);
        world
    })
    .await;
}

#[tokio::test]
async fn of_a_row_with_a_key_the_key_alone_is_known_as_it_was() {
    with_source(&[("t", "a")], &["CREATE TABLE t (id int PRIMARY KEY, v text)"], |world, database| async move {
        let (world, a) = capturing(world, &database).await;
        database.run("INSERT INTO t VALUES (1, 'x')").await;
        database.run("UPDATE t SET v = 'y'").await;
        database.run("UPDATE t SET id = 2").await;
        database.run("DELETE FROM t").await;
        let changes = changes(&a, 4).await;
        let text = |text: &str| text.to_owned();
        assert_eq!(changes[1], (Operation::Update, text(""), text(r#"{"id":1,"v":"y"}"#)));
        assert_eq!(changes[2], (Operation::Update, text(r#"{"id":1}"#), text(r#"{"id":2,"v":"y"}"#)));
        assert_eq!(changes[3], (Operation::Delete, text(r#"{"id":2}"#), text("")));
        world
    })
    .await;
}

#[tokio::test]
async fn a_large_value_that_did_not_change_comes_from_the_whole_old_row_or_is_left_out() {
    let table = "CREATE TABLE t (id int PRIMARY KEY, n int, long text); ALTER TABLE t ALTER long SET STORAGE EXTERNAL";
    with_source(&[("t", "a")], &[table], |world, database| async move {
        let (world, a) = capturing(world, &database).await;
        database.run("INSERT INTO t SELECT 1, 1, repeat('long', 5000)").await;
        database.run("UPDATE t SET n = 2").await;
        database.run("ALTER TABLE t REPLICA IDENTITY FULL").await;
        database.run("UPDATE t SET n = 3").await;
        let changes = changes(&a, 3).await;
        assert_eq!((changes[1].1.as_str(), changes[1].2.as_str()), ("", r#"{"id":1,"n":2}"#), "left out, not null");
        let new: Value = serde_json::from_str(&changes[2].2).unwrap();
        let old: Value = serde_json::from_str(&changes[2].1).unwrap();
        assert_eq!((new["n"].as_i64(), new["long"].as_str().map(str::len)), (Some(3), Some(20_000)));
        assert_eq!((old["n"].as_i64(), &old["long"]), (Some(2), &new["long"]));
        world
    })
    .await;
}

#[tokio::test]
async fn a_table_may_change_its_columns_while_it_is_read() {
    with_source(&[("t", "a")], &["CREATE TABLE t (id int PRIMARY KEY, v text)"], |world, database| async move {
        let (world, a) = capturing(world, &database).await;
        database.run("INSERT INTO t VALUES (1, 'x')").await;
        database.run("ALTER TABLE t ADD n int DEFAULT 7; INSERT INTO t VALUES (2, 'y')").await;
        database.run("ALTER TABLE t RENAME v TO w; INSERT INTO t VALUES (3, 'z')").await;
        database
            .run("BEGIN; INSERT INTO t VALUES (4, 'u'); ALTER TABLE t DROP w; INSERT INTO t VALUES (5); COMMIT")
            .await;
        // A type that wasn't there when the stream began.
        database.run("CREATE DOMAIN count AS int; ALTER TABLE t ADD c count; INSERT INTO t VALUES (6, 1, 2)").await;
        let new: Vec<String> = changes(&a, 6).await.into_iter().map(|change| change.2).collect();
        let expected = [
            r#"{"id":1,"v":"x"}"#,
            r#"{"id":2,"v":"y","n":7}"#,
            r#"{"id":3,"w":"z","n":7}"#,
            r#"{"id":4,"w":"u","n":7}"#,
            r#"{"id":5,"n":7}"#,
            r#"{"id":6,"n":1,"c":2}"#,
        ];
        assert_eq!(new, expected);
        world
    })
    .await;
}

#[tokio::test]
async fn a_type_is_known_however_soon_the_stream_brings_it() {
    with_source(&[("t", "a")], &["CREATE TABLE t (id int PRIMARY KEY)"], |world, database| async move {
        let (world, a) = capturing(world, &database).await;
        // The stream may bring a transaction before others see what it made.
        for n in 0..30 {
            let made = format!("CREATE DOMAIN d{n} AS int; ALTER TABLE t ADD d{n} d{n}");
            database.run(&format!("{made}; INSERT INTO t (id, d{n}) VALUES ({n}, {n})")).await;
        }
        for (n, change) in changes(&a, 30).await.into_iter().enumerate() {
            let row: Value = serde_json::from_str(&change.2).unwrap();
            assert_eq!(row[format!("d{n}")].as_u64(), Some(n as u64), "{}", change.2);
        }
        world
    })
    .await;
}
