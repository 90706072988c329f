//! Whether the store answers, told to the health of the server that needs it.

use std::time::Duration;

use tokio::time::timeout;

use super::Store;
use crate::{clock::Clock, health::Health, tasks::Tasks};

/// The part's name in the server's health.
const PART: &str = "store";
const ASK_EVERY: Duration = Duration::from_secs(2);
const ANSWER_WITHIN: Duration = Duration::from_secs(2);
/// Questions in a row without an answer: one alone may have waited behind a crowd, and a crowd is no reason to be sent
/// none of it.
const UNANSWERED_MAX: u32 = 3;

impl Store {
    /// Keeps asking whether the store answers, and tells `health`, until the process stops.
    pub fn report(&self, health: &Health, clock: &Clock, tasks: &Tasks) {
        let (store, health, clock, stopping) = (self.clone(), health.clone(), clock.clone(), tasks.stopping());
        health.set_serving(PART, true);
        tasks.spawn("store.health", async move {
            let asking = async {
                let mut unanswered = 0;
                loop {
                    clock.sleep(ASK_EVERY).await;
                    unanswered = store.ask(unanswered, &health).await;
                }
            };
            stopping.run_until_cancelled(asking).await;
        });
    }

    /// Asks once more after so many questions without an answer; gives their number now.
    async fn ask(&self, before: u32, health: &Health) -> u32 {
        let answered = matches!(timeout(ANSWER_WITHIN, self.ping()).await, Ok(Ok(())));
        let unanswered = if answered { 0 } else { before.saturating_add(1) };
        match (before, unanswered) {
            (UNANSWERED_MAX.., 0) => tracing::info!("the store answers again"),
            (_, UNANSWERED_MAX) => tracing::error!("the store doesn't answer: this server is not ready until it does"),
            _ => {}
        }
        health.set_serving(PART, unanswered < UNANSWERED_MAX);
        unanswered
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{store::MIGRATIONS, testing};

    #[tokio::test]
    async fn a_store_that_has_not_answered_three_times_makes_its_server_not_ready() {
        let (_folder, engines) = testing::engines();
        for settings in &engines {
            let store = Store::open(settings, &[&MIGRATIONS]).await.expect("a fresh store opens");
            let health = Health::default();
            assert_eq!((store.ask(UNANSWERED_MAX, &health).await, health.ready().is_ok()), (0, true));
            store.close().await;
            for unanswered in 1..=UNANSWERED_MAX {
                assert_eq!(store.ask(unanswered - 1, &health).await, unanswered);
                assert_eq!(health.ready().is_ok(), unanswered < UNANSWERED_MAX);
            }
        }
    }
}
