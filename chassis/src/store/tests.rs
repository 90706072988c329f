//! What a store survives.

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
