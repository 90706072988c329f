//! What one group must never do to the others.

use std::time::Duration;

use chassis::{secret::DataKeys, service::Chassis};
use tokio::time::timeout;

use super::*;
use crate::weddings::Weddings;

const PATIENCE: Duration = Duration::from_secs(60);

async fn consumers(store: Store) -> Consumers {
    let Chassis { clock, tasks, .. } = Chassis::for_test();
    let keys = DataKeys::new(store.clone(), Chassis::for_test().keyring().expect("it has keys"), clock.clone());
    let weddings = Weddings::new(store.clone());
    let log = Log::open(store.clone(), keys, weddings, &clock, &tasks).await.expect("a fresh log opens");
    Consumers::open(store, log, clock, tasks).await.expect("the built-in groups are made")
}

fn join(group: &str) -> Join {
    Join { organization: OrganizationId::parse("o").ok(), group: group.to_owned(), types: Vec::new(), from: None }
}

/// Makes a group that hears nobody; what it was told stands in its queue.
async fn deaf(consumers: &Consumers, name: &str) -> (Arc<AtomicUsize>, mpsc::Receiver<Ask>) {
    let row = consumers.create(OrganizationId::parse("o").ok().as_ref(), name, &[], 0).await.expect("it is made");
    let (asks, asked) = mpsc::channel(1);
    asks.send(Ask::Replay).await.expect("there is room for one");
    let members = Arc::new(AtomicUsize::new(0));
    consumers.running.lock().await.insert(row.number, Running { asks, members: members.clone() });
    (members, asked)
}

#[tokio::test]
async fn whoever_waits_for_a_busy_group_keeps_nobody_from_another() {
    chassis::testing::on_each_engine(&[&chassis::store::MIGRATIONS, &crate::MIGRATIONS], |store| async move {
        let consumers = consumers(store).await;
        let (members, asked) = deaf(&consumers, "busy").await;
        let mut waiting = Box::pin(consumers.join(join("busy")));
        let other = async {
            while members.load(Ordering::Relaxed) == 0 {
                tokio::task::yield_now().await;
            }
            timeout(PATIENCE, consumers.join(join("other"))).await
        };
        tokio::select! {
            _ = &mut waiting => panic!("nobody takes it in"),
            joined = other => drop(joined.expect("it waits for nobody").expect("the store is there")),
        }
        let refused = consumers.delete(&OrganizationId::parse("o").expect("an id"), "busy").await;
        assert!(matches!(refused, Err(Error::FailedPrecondition(_))), "one is about to join it");
        drop(waiting);
        assert_eq!(members.load(Ordering::Relaxed), 0, "who is cut off is counted no more");
        drop(asked);
    })
    .await;
}

#[tokio::test]
async fn a_built_in_group_that_is_made_late_begins_with_what_is_kept() {
    chassis::testing::on_each_engine(&[&chassis::store::MIGRATIONS, &crate::MIGRATIONS], |store| async move {
        with!(store.writer(), c => sqlx::query("INSERT INTO log (id, log_id, head, oldest, epoch) VALUES (1, 'l', 9, 5, 0)")
            .execute(c).await.map(drop))
        .expect("a log whose beginning went");
        for group in consumers(store).await.list(None).await.expect("the store is there") {
            assert_eq!(group.cursors.iter().map(|(_, sequence)| *sequence).collect::<Vec<_>>(), [4; 4], "{}", group.name);
        }
    })
    .await;
}
