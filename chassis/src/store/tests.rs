//! What a store survives.

use sqlx::{ConnectOptions as _, QueryBuilder};

use super::*;
use crate::{testing, with};

#[tokio::test]
async fn after_a_full_disk_transactions_begin_again() {
    let (_folder, engines) = testing::engines();
    let settings = engines.first().expect("SQLite is always there");
    let store = Store::open(settings, &[&MIGRATIONS]).await.expect("a fresh store opens");
    // As few pages as it has by now: the next one is refused as a full disk refuses it.
    with!(store.writer(), c => sqlx::query("PRAGMA max_page_count = 1").execute(c).await.map(drop)).expect("a setting");
    let mut tx = store.begin().await.expect("nothing is written yet");
    let Engine::Sqlite(connection) = tx.on() else { panic!("the first engine is SQLite") };
    let refused = sqlx::query("INSERT INTO data_keys VALUES ('org', ZEROBLOB(1000000), 0)").execute(connection).await;
    let refused = Error::from(refused.expect_err("there is no room"));
    assert!(refused.is_retryable(), "{refused}");
    drop(tx);
    for _ in 0..2 {
        let mut tx = store.begin().await.expect("the next transaction begins");
        with!(tx.on(), c => sqlx::query("SELECT 1").execute(c).await.map(drop)).expect("and works");
        tx.commit().await.expect("to its end");
    }
}

/// Whoever waits for a transaction to begin may leave at any moment, as a caller who hangs up does.
#[tokio::test]
async fn what_is_written_after_a_transaction_that_nobody_waited_for_is_committed() {
    let (_folder, engines) = testing::engines();
    for settings in &engines {
        // All of its connections come up for each two writes.
        let settings = StoreSettings { max_connections: 2, ..settings.clone() };
        let store = Store::open(&settings, &[&MIGRATIONS]).await.expect("a fresh store opens");
        let (mut moments, mut left) = (0, true);
        while left {
            let patience = async {
                for _ in 0..moments {
                    tokio::task::yield_now().await;
                }
            };
            left = tokio::select! {
                biased;
                begun = store.begin() => begun.is_err(),
                () = patience => true,
            };
            for _ in 0..2 {
                with!(store.writer(), c => sqlx::query("INSERT INTO data_keys SELECT CAST(COUNT(*) AS TEXT), $1, 0 FROM data_keys")
                    .bind(&b""[..]).execute(c).await.map(drop)).expect("it is answered");
            }
            moments += 1;
            assert_eq!(seen_by_others(&store).await, 2 * moments, "{moments}");
        }
    }
}

#[tokio::test]
async fn what_was_begun_and_not_ended_is_undone_before_the_next_and_nothing_is_written_after_the_end() {
    let (_folder, engines) = testing::engines();
    let store = Store::open(&engines[0], &[&MIGRATIONS]).await.expect("a fresh store opens");
    let Engine::Sqlite(writer) = store.writer() else { panic!("the first engine is SQLite") };
    let insert = "INSERT INTO data_keys VALUES ('org', x'', 0)";
    let add = async |tx: &mut Tx| with!(tx.on(), c => sqlx::query(insert).execute(c).await.map(drop)).expect("new");
    let mut left = store.begin().await.expect("it begins");
    add(&mut left).await;
    drop(left);
    writer
        .run_whole(QueryBuilder::new(format!("BEGIN; {insert}; {insert}; COMMIT")))
        .await
        .expect_err("it is there twice");
    let mut ended_by_itself = store.begin().await.expect("it begins");
    add(&mut ended_by_itself).await;
    with!(ended_by_itself.on(), c => sqlx::query("ROLLBACK").execute(c).await.map(drop)).expect("it had begun");
    ended_by_itself.commit().await.expect_err("there is nothing to commit");
    let mut last = store.begin().await.expect("it begins");
    add(&mut last).await;
    last.commit().await.expect("nobody had it before");
    assert_eq!(seen_by_others(&store).await, 1);
    store.close().await;
    let late = store.begin().await.expect_err("the store is closed");
    assert!(late.is_retryable(), "{late}");
}

/// As a server that restarts does, which nobody asks about beforehand.
#[tokio::test]
async fn sessions_that_the_server_ended_cost_an_error_each_that_may_be_tried_again() {
    testing::on_each_engine(&[&MIGRATIONS], |store| async move {
        let Engine::Postgres(pool) = store.writer() else { return };
        let mut other = pool.connect_options().connect().await.expect("a session");
        let ended: i64 = sqlx::query_scalar(
            "SELECT COUNT(pg_terminate_backend(pid, 5000)) FROM pg_stat_activity
             WHERE application_name = current_setting('application_name') AND pid <> pg_backend_pid()",
        )
        .fetch_one(&mut other)
        .await
        .expect("tests may end sessions");
        assert!(ended > 0);
        let mut errors = 0;
        while let Err(error) = store.ping().await {
            assert!(error.is_retryable(), "{error}");
            errors += 1;
            assert!(errors <= ended, "{error}");
        }
    })
    .await;
}

/// A task's own connection is lost as a pool's is; one that wasn't in use lately is asked first.
#[tokio::test]
async fn a_kept_connection_is_another_one_after_a_failure_or_a_pause_in_which_it_was_lost() {
    testing::on_each_engine(&[&MIGRATIONS], |store| async move {
        let Engine::Postgres(mut kept) = store.keep() else { return };
        let first = kept_backend(&mut kept).await.expect("the server is there");
        assert_eq!(kept_backend(&mut kept).await.expect("it is kept"), first);
        end(&store, first).await;
        tokio::time::pause();
        tokio::time::advance(RECENTLY).await;
        tokio::time::resume();
        let second = kept_backend(&mut kept).await.expect("it was asked");
        assert_ne!(second, first);
        end(&store, second).await;
        kept_backend(&mut kept).await.expect_err("nobody asked it");
        assert_ne!(kept_backend(&mut kept).await.expect("it was dropped"), second);
    })
    .await;
}

async fn kept_backend(kept: &mut Kept) -> Result<i32, sqlx::Error> {
    let mut connection = kept.take().await?;
    let backend = sqlx::query_scalar("SELECT pg_backend_pid()").fetch_one(&mut connection).await?;
    kept.put_back(connection);
    Ok(backend)
}

async fn end(store: &Store, backend: i32) {
    let Engine::Postgres(pool) = store.writer() else { return };
    let ended = sqlx::query_scalar("SELECT pg_terminate_backend($1, 5000)").bind(backend).fetch_one(pool).await;
    assert!(ended.unwrap_or(false), "tests may end sessions");
}

async fn seen_by_others(store: &Store) -> i64 {
    const COUNT: &str = "SELECT COUNT(*) FROM data_keys";
    let seen = match store.reader() {
        Engine::Sqlite(pool) => sqlx::query_scalar(COUNT).fetch_one(pool).await,
        Engine::Postgres(pool) => {
            let mut other = pool.connect_options().connect().await.expect("the server is there");
            sqlx::query_scalar(COUNT).fetch_one(&mut other).await
        }
    };
    seen.expect("it can be read")
}

/// A store that takes no write for a while: on SQLite as when its file may not be written, on PostgreSQL as a server that is
/// full, or has become a standby.
#[tokio::test]
async fn a_store_that_is_read_only_for_now_is_waited_for() {
    let (_folder, engines) = testing::engines();
    for settings in &engines {
        let store = Store::open(settings, &[&MIGRATIONS]).await.expect("a fresh store opens");
        let mut tx = store.begin().await.expect("nothing is written yet");
        let read_only = match tx.on() {
            Engine::Sqlite(c) => sqlx::query("PRAGMA query_only = on").execute(c).await.map(drop),
            Engine::Postgres(c) => sqlx::query("SET TRANSACTION READ ONLY").execute(c).await.map(drop),
        };
        read_only.expect("a setting");
        let refused = with!(tx.on(), c => sqlx::query("DELETE FROM data_keys").execute(c).await.map(drop));
        let refused = Error::from(refused.expect_err("it may not be written"));
        assert!(refused.is_retryable(), "{refused}");
    }
}
