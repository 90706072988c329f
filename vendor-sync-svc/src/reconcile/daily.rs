//! Comparisons by themselves: each integration whose vendor gives a list once a day, spread over two hours.
//!
//! When the last one was stands with the imports, of which an integration has one open at most: two processes, or a person
//! beside us, never compare the same at once.

use std::time::Duration;

use chassis::{
    clock::from_micros,
    error::{Error, Result},
    tasks::Tasks,
    with,
};
use jiff::{SignedDuration, Timestamp};

use super::{Reconcile, list::listed};
use crate::{import::Order, sync::account::Account};

const LOOK_EVERY: Duration = Duration::from_secs(300);
const EVERY: SignedDuration = SignedDuration::from_hours(24);
const SPREAD_SECONDS: i64 = 2 * 60 * 60;

impl Reconcile {
    /// Begins each comparison at its time, until the process stops.
    pub(crate) async fn run(self, tasks: Tasks) {
        let stopping = tasks.stopping();
        while stopping.run_until_cancelled(self.imports.clock().sleep(LOOK_EVERY)).await.is_some() {
            match stopping.run_until_cancelled(self.begin_due()).await {
                Some(Ok(())) => {}
                Some(Err(error)) => tracing::warn!(%error, "comparisons wait for the store"),
                None => return,
            }
        }
    }

    /// Begins what is due.
    ///
    /// # Errors
    /// Those of the store.
    pub(crate) async fn begin_due(&self) -> Result<()> {
        for account in self.accounts.all() {
            if !account.is_asked() || listed(&account).is_err() || !self.is_due(&account).await? {
                continue;
            }
            let (organization, id) = (account.integration.organization.clone(), account.integration.id.clone());
            match self.imports.begin(Order::reconcile(organization, id, false)).await {
                // Another one is open: this one is due again when that has ended.
                Ok(_) | Err(Error::FailedPrecondition(_)) => {}
                Err(error) => return Err(error),
            }
        }
        Ok(())
    }

    async fn is_due(&self, account: &Account) -> Result<bool> {
        let integration = &account.integration;
        let last: Option<i64> = with!(self.store.reader(), c => sqlx::query_scalar(
            "SELECT MAX(created_at) FROM imports WHERE integration_id = $1 AND work = 'reconcile' AND dry_run = 0",
        ).bind(&integration.id).fetch_one(c).await)?;
        let last = last.map_or(integration.created_at, from_micros);
        Ok(self.imports.clock().now() >= next(&integration.id, last))
    }
}

/// The same time for the same integration, another one for each.
fn next(id: &str, last: Timestamp) -> Timestamp {
    let sum = id.bytes().fold(0_i64, |sum, byte| (sum * 31 + i64::from(byte)) % SPREAD_SECONDS);
    last + EVERY + SignedDuration::from_secs(sum)
}

#[cfg(test)]
mod tests {
    use chassis::testing::noon;

    use super::*;

    #[test]
    fn integrations_are_compared_a_day_later_and_not_all_at_once() {
        let (one, two) = (next("0190-a", noon()), next("0190-b", noon()));
        assert!(one != two && one >= noon() + EVERY && one < noon() + EVERY + SignedDuration::from_hours(2));
        assert_eq!(one, next("0190-a", noon()));
    }
}
