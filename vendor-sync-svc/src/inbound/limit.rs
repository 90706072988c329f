//! How many requests an integration may have processed in any hour.
//!
//! A log of the times of the last ones (`hourly`) holds the limit exactly, in any window; it is restored from the receipts when an
//! integration is first heard of after a start. Only verified requests that weren't processed before are counted, so a
//! stranger can't use another's limit up; spooled kinds have none.

use std::{
    collections::{HashMap, VecDeque},
    sync::{Mutex, MutexGuard, PoisonError},
};

use chassis::{error::Result, store::Store, with};
use jiff::Timestamp;

use super::Answer;
use crate::{
    hourly::{Log, WINDOW_MICROS},
    integration::Integration,
};

/// The logs of all integrations that were heard of.
#[derive(Debug)]
pub(super) struct Limits {
    store: Store,
    logs: Mutex<HashMap<String, Log>>,
}

impl Limits {
    pub(super) fn new(store: Store) -> Self {
        Self { store, logs: Mutex::default() }
    }

    /// Counts a request.
    ///
    /// # Errors
    /// `Answer::Limited` with the time until there is room.
    pub(super) async fn admit(&self, integration: &Integration, now: Timestamp) -> Result<(), Answer> {
        if integration.settings.kind.is_spooled() {
            return Ok(());
        }
        let most = integration.settings.rate() as usize;
        if !self.logs().contains_key(&integration.id) {
            let log = self.restore(&integration.id, most, now).await?;
            self.logs().entry(integration.id.clone()).or_insert(log);
        }
        let admitted = self.logs().entry(integration.id.clone()).or_default().admit(most, now.as_microsecond());
        admitted.map_err(|retry_after| Answer::Limited { retry_after })
    }

    /// Takes the last count back: we could not process it, and the sender will try again.
    pub(super) fn give_back(&self, integration: &str) {
        if let Some(log) = self.logs().get_mut(integration) {
            log.give_back();
        }
    }

    /// Drops the logs that hold nothing of the last hour.
    pub(super) fn forget(&self, now: Timestamp) {
        let since = now.as_microsecond() - WINDOW_MICROS;
        self.logs().retain(|_, log| log.holds_since(since));
    }

    async fn restore(&self, integration: &str, most: usize, now: Timestamp) -> Result<Log> {
        let mut times: VecDeque<i64> = with!(self.store.reader(), c => {
            sqlx::query_scalar(
                "SELECT received_at FROM inbound_receipts WHERE integration_id = $1 AND received_at > $2 \
                 ORDER BY received_at DESC LIMIT $3",
            )
            .bind(integration)
            .bind(now.as_microsecond() - WINDOW_MICROS)
            .bind(i64::try_from(most).unwrap_or(i64::MAX))
            .fetch_all(c)
            .await
        })?
        .into();
        times.make_contiguous().reverse();
        Ok(Log::of(times))
    }

    fn logs(&self) -> MutexGuard<'_, HashMap<String, Log>> {
        self.logs.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use chassis::testing::{noon, on_each_engine};
    use jiff::SignedDuration;

    use super::*;
    use crate::inbound::{
        dedupe::Receipts,
        tests::{MIGRATIONS, integration},
        verify::Proof,
    };
    use crate::integration::{Kind, Settings};

    #[tokio::test]
    async fn the_limit_holds_over_a_restart_and_opens_as_the_hour_passes() {
        on_each_engine(MIGRATIONS, async |store| {
            let mut integration = integration(Kind::SignedWebhook);
            integration.settings = Settings { rate_limit_per_hour: 3, ..integration.settings };
            let (limits, receipts) = (Limits::new(store.clone()), Receipts::new(store.clone()));
            for minute in 0..3 {
                let at = noon() + SignedDuration::from_mins(minute);
                limits.admit(&integration, at).await.expect("within the limit");
                let key = receipts.dedupe(&integration, Proof::Id(minute.to_string()), b"{}", at).await.expect("new");
                receipts.record(&integration, &key, at).await.expect("recorded");
            }
            let after = noon() + SignedDuration::from_mins(10);
            for limits in [limits, Limits::new(store)] {
                let limited = limits.admit(&integration, after).await;
                assert_eq!(limited, Err(Answer::Limited { retry_after: Duration::from_secs(50 * 60) }));
                assert!(limits.admit(&integration, noon() + SignedDuration::from_mins(60)).await.is_ok());
            }
        })
        .await;
    }

    #[tokio::test]
    async fn what_could_not_be_processed_is_not_counted_and_spooled_kinds_never_are() {
        on_each_engine(MIGRATIONS, async |store| {
            let (limits, mut signed) = (Limits::new(store), integration(Kind::SignedWebhook));
            signed.settings.rate_limit_per_hour = 1;
            for _ in 0..5 {
                limits.admit(&signed, noon()).await.expect("room");
                limits.give_back(&signed.id);
            }
            let mut spooled = integration(Kind::Supabase);
            spooled.settings.rate_limit_per_hour = 1;
            for _ in 0..5 {
                limits.admit(&spooled, noon()).await.expect("no limit");
            }
        })
        .await;
    }
}
