//! A store that can't be written for a while.

use std::time::Duration;

use sqlx::ConnectOptions as _;

use super::world::{DESTINATION_FAILED, World, kept, offer, on_each_engine, ordered, retries};
use crate::{
    lane::{Offer, Outcome, Settings, State},
    store::{Engine, Store},
    with,
};

/// Somebody else's lock on the store.
enum Lock {
    Sqlite(sqlx::SqliteConnection),
    Postgres(sqlx::PgConnection),
}

/// Locks a store whose writers give up at once, so that the test needn't wait for it.
async fn lock(store: &Store) -> Lock {
    if let Engine::Sqlite(pool) = store.writer() {
        sqlx::query("PRAGMA busy_timeout = 20").execute(pool).await.expect("set");
    }
    hold(store).await
}

/// Locks a store whose writers wait.
async fn hold(store: &Store) -> Lock {
    match store.writer() {
        Engine::Sqlite(pool) => {
            let mut other = pool.connect_options().connect().await.expect("a connection");
            sqlx::query("BEGIN IMMEDIATE").execute(&mut other).await.expect("locked");
            Lock::Sqlite(other)
        }
        Engine::Postgres(pool) => {
            let mut other = pool.connect_options().connect().await.expect("a connection");
            let table = "BEGIN; LOCK TABLE deliveries IN EXCLUSIVE MODE";
            sqlx::raw_sql(table).execute(&mut other).await.expect("locked");
            Lock::Postgres(other)
        }
    }
}

impl Lock {
    async fn release(self) {
        match self {
            Self::Sqlite(mut other) => sqlx::query("ROLLBACK").execute(&mut other).await.map(drop),
            Self::Postgres(mut other) => sqlx::query("ROLLBACK").execute(&mut other).await.map(drop),
        }
        .expect("released");
    }
}

/// Returns once the dispatcher takes nothing any more.
async fn stalled<const R: bool>(world: &World<R>) {
    super::world::within("stalled", async {
        while tokio::time::timeout(Duration::from_millis(200), world.dispatcher.breaker("ada/a")).await.is_ok() {}
    })
    .await;
}

async fn nothing_is_sent_while_commits_fail_nor_twice_for_it<const REPEATABLE: bool>() {
    on_each_engine(|store| async move {
        let world = World::<REPEATABLE>::new(store.clone()).await;
        world.open("ada/a", Settings::default()).await;
        world.give(offer("ada/a", 1)).await;
        world.quiet().await;
        let lock = lock(&store).await;
        let first = world.offer(offer("ada/a", 2)).await;
        stalled(&world).await;
        let mut promises = vec![first];
        for event in 3..=30 {
            promises.push(world.offer(offer("ada/a", event)).await);
        }
        let tried = world.courier.events("ada/a");
        assert_eq!(tried, if REPEATABLE { vec![1, 2] } else { vec![1] });
        stalled(&world).await;
        assert_eq!(world.courier.events("ada/a"), tried, "sent while nothing can be recorded");
        lock.release().await;
        for durable in promises {
            kept(durable).await.expect("durable");
        }
        world.quiet().await;
        assert_eq!(world.courier.events("ada/a"), (1..=30).collect::<Vec<_>>());
        assert_eq!(world.states("ada/a").await, [(State::Delivered, 30)].into());
        let attempts: i64 =
            with!(store.reader(), c => sqlx::query_scalar("SELECT COUNT(*) FROM attempts").fetch_one(c).await)
                .expect("a count");
        assert_eq!(attempts, 30);
        world.tasks.stop(Duration::from_secs(5)).await;
    })
    .await;
}

#[tokio::test]
async fn while_commits_fail_nothing_new_is_sent_and_nothing_is_sent_twice_for_it() {
    nothing_is_sent_while_commits_fail_nor_twice_for_it::<true>().await;
}

#[tokio::test]
async fn while_commits_fail_nothing_that_must_not_be_repeated_is_sent() {
    nothing_is_sent_while_commits_fail_nor_twice_for_it::<false>().await;
}

#[tokio::test]
async fn an_event_that_comes_again_while_commits_fail_is_not_sent_again_when_they_succeed() {
    on_each_engine(|store| async move {
        let world = World::<true>::new(store.clone()).await;
        world.open("ada/a", Settings::default()).await;
        let lock = lock(&store).await;
        let first = world.offer(offer("ada/a", 1)).await;
        stalled(&world).await;
        let again = world.dispatcher.offer(vec![offer("ada/a", 1)], true);
        let (again, ()) = tokio::join!(again, lock.release());
        for durable in [first, again.expect("taken")] {
            kept(durable).await.expect("durable");
        }
        world.quiet().await;
        assert_eq!(world.courier.events("ada/a"), [1]);
        world.tasks.stop(Duration::from_secs(5)).await;
    })
    .await;
}

#[tokio::test]
async fn a_claim_that_becomes_durable_while_the_breaker_is_open_waits_with_the_others() {
    on_each_engine(|store| async move {
        let world = World::<false>::new(store.clone()).await;
        world.open("ada/a", retries(&[3_600])).await;
        world.courier.hold("ada/a");
        for event in 1..=5 {
            world.give(offer("ada/a", event)).await;
        }
        world.courier.until("five attempts", |calls| calls.len() == 5).await;
        let lock = lock(&store).await;
        let sixth = world.offer(offer("ada/a", 6)).await;
        stalled(&world).await;
        world.courier.lane("ada/a", DESTINATION_FAILED);
        world.courier.let_go("ada/a");
        world.abreast().await;
        world.manual.advance(Duration::from_secs(1));
        lock.release().await;
        kept(sixth).await.expect("durable");
        world.quiet().await;
        assert_eq!(world.courier.events("ada/a"), [1, 2, 3, 4, 5]);
        assert_eq!(world.state("ada/a", 6).await, State::Waiting);
        world.courier.lane("ada/a", Outcome::Delivered);
        world.pass(Duration::from_secs(12)).await;
        assert_eq!(world.courier.events("ada/a"), [1, 2, 3, 4, 5, 6]);
        assert_eq!(world.state("ada/a", 6).await, State::Delivered);
        world.tasks.stop(Duration::from_secs(5)).await;
    })
    .await;
}

#[tokio::test]
async fn what_comes_to_wait_during_a_commit_is_written_after_it_though_nothing_more_comes() {
    on_each_engine(|store| async move {
        let world = World::<true>::new(store.clone()).await;
        world.open("ada/a", ordered()).await;
        world.courier.hold("ada/a");
        let lock = hold(&store).await;
        let mut promises = Vec::new();
        // More than ever wait for others to be written with.
        for event in 1..=300 {
            promises.push(world.offer(Offer { ordering_key: "one".to_owned(), ..offer("ada/a", event) }).await);
        }
        lock.release().await;
        for durable in promises {
            kept(durable).await.expect("durable");
        }
        world.courier.let_go("ada/a");
        world.quiet().await;
        assert_eq!(world.courier.events("ada/a"), (1..=300).collect::<Vec<_>>());
        world.tasks.stop(Duration::from_secs(5)).await;
    })
    .await;
}
