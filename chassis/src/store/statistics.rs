//! PostgreSQL's statistics of tables that fill faster than its autovacuum comes by: once a minute, and to new tables not
//! before their first. Until then the planner takes any index whose first column is given, and a prepared statement keeps
//! to it: each look-up of an import costs as much as the table is long.

use std::time::Duration;

use anyhow::Result;
use sqlx::{PgConnection, PgPool};

use crate::tasks::Tasks;

const LOOK_EVERY: Duration = Duration::from_secs(5);

/// Keeps looking for such tables until the process stops.
pub(super) fn watch(pool: &PgPool, tasks: &Tasks) {
    let (pool, stopping) = (pool.clone(), tasks.stopping());
    tasks.spawn("store.statistics", async move {
        while stopping.run_until_cancelled(tokio::time::sleep(LOOK_EVERY)).await.is_some() {
            let refreshed = async { refresh(&mut *pool.acquire().await?).await };
            if let Some(Err(error)) = stopping.run_until_cancelled(refreshed).await {
                tracing::warn!(%error, "tables could not be analyzed; trying again");
            }
        }
    });
}

/// Analyzes what has changed as often since the last time as it has rows, so that each row is looked at a bounded number of
/// times; gives the tables' names. One that is locked for long, say, keeps no other from it.
async fn refresh(connection: &mut PgConnection) -> Result<Vec<String>> {
    let tables: Vec<String> = sqlx::query_scalar(
        "SELECT quote_ident(relname) FROM pg_class
         WHERE relnamespace = current_schema()::regnamespace AND relkind = 'r'
             AND pg_stat_get_mod_since_analyze(oid) > GREATEST(reltuples, 1000)",
    )
    .fetch_all(&mut *connection)
    .await?;
    let mut analyzed = Vec::new();
    // Each by itself: its locks go before the next one begins.
    for table in tables {
        let statement = sqlx::AssertSqlSafe(format!("ANALYZE {table}"));
        match sqlx::query(statement).persistent(false).execute(&mut *connection).await {
            Ok(_) => analyzed.push(table),
            Err(sqlx::Error::Database(error)) => tracing::warn!(%error, table, "not analyzed; trying again"),
            Err(error) => return Err(error.into()),
        }
    }
    Ok(analyzed)
}

#[cfg(all(test, feature = "testing"))]
mod tests {
    use super::*;
    use crate::{
        store::{Engine, MIGRATIONS, Store},
        testing,
    };

    #[tokio::test]
    async fn a_table_that_is_locked_keeps_no_other_from_it() {
        let (_folder, engines) = testing::engines();
        for settings in &engines {
            let store = Store::open(settings, &[&MIGRATIONS]).await.expect("a fresh store opens");
            let Engine::Postgres(pool) = store.writer() else { continue };
            let mut connection = pool.acquire().await.expect("the server is there");
            sqlx::raw_sql(
                "INSERT INTO data_keys SELECT gen_random_uuid(), '', 0 FROM generate_series(1, 1001);
                 CREATE TABLE later AS SELECT generate_series(1, 1001);
                 SELECT pg_stat_force_next_flush(); SET lock_timeout = '10ms'",
            )
            .execute(&mut *connection)
            .await
            .expect("there is room");
            let mut other = store.begin().await.expect("the server is there");
            let Engine::Postgres(locked) = other.on() else { unreachable!("one engine") };
            sqlx::query("LOCK TABLE data_keys").execute(locked).await.expect("nobody else holds it");
            assert_eq!(refresh(&mut connection).await.expect("one of them is free"), ["later"]);
        }
    }

    #[tokio::test]
    async fn a_table_that_fills_is_analyzed_at_once_and_not_again_until_it_has_doubled() {
        let (_folder, engines) = testing::engines();
        for settings in &engines {
            let store = Store::open(settings, &[&MIGRATIONS]).await.expect("a fresh store opens");
            let Engine::Postgres(pool) = store.writer() else { continue };
            let mut connection = pool.acquire().await.expect("the server is there");
            for (rows, analyzed) in [(1_001, true), (900, false), (200, true)] {
                sqlx::query("INSERT INTO data_keys SELECT gen_random_uuid(), '', 0 FROM generate_series(1, $1)")
                    .bind(rows)
                    .execute(&mut *connection)
                    .await
                    .expect("there is room");
                sqlx::query("SELECT pg_stat_force_next_flush()").execute(&mut *connection).await.expect("counted");
                let tables = refresh(&mut connection).await.expect("they are ours");
                assert_eq!(tables, if analyzed { vec!["data_keys"] } else { vec![] }, "after {rows} more");
            }
        }
    }
}
