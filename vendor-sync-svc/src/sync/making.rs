//! Records that are being made at vendors. A vendor may show what we made before it has answered us: until then what it
//! shows as new can't be told from our own.
//!
//! What is under way in this process is counted in memory, and whoever comes meanwhile waits. What a process asked for and
//! never heard of (a crash, a lost answer) stands in the store for a day: what the vendor then shows as new is that record
//! if it says what was written there (`resolve::find`).

use std::{
    collections::HashMap,
    sync::{Arc, Mutex, PoisonError},
    time::Duration,
};

use chassis::{error::Result, store::Tx, with};
use jiff::{SignedDuration, Timestamp};
use tokio::{sync::Notify, time::timeout};

use crate::record::{RecordKey, RecordKind};

/// So long a word is held before its sender is asked to come again.
const LONGEST_WAIT: Duration = Duration::from_secs(5);

/// How long what was asked for may still show up.
const KEEP: SignedDuration = SignedDuration::from_hours(24);
/// Of one integration and kind that are compared with what is new there; beyond it nothing can be told.
const MOST: usize = 64;

/// How many are being made, by integration and kind. Cheap to clone.
#[derive(Clone, Debug, Default)]
pub(crate) struct Making(Arc<Inner>);

#[derive(Debug, Default)]
struct Inner {
    counts: Mutex<HashMap<(String, RecordKind), usize>>,
    ended: Notify,
}

/// One of them; dropped, it is made, or not.
pub(crate) struct One(Making, (String, RecordKind));

impl Drop for One {
    fn drop(&mut self) {
        let mut counts = self.0.counts();
        let left = counts.get(&self.1).map_or(0, |count| count.saturating_sub(1));
        if left == 0 {
            counts.remove(&self.1);
        } else {
            counts.insert(self.1.clone(), left);
        }
        drop(counts);
        self.0.0.ended.notify_waiters();
    }
}

impl Making {
    pub(crate) fn begin(&self, integration_id: &str, kind: RecordKind) -> One {
        let of = (integration_id.to_owned(), kind);
        *self.counts().entry(of.clone()).or_default() += 1;
        One(self.clone(), of)
    }

    pub(crate) fn is_any(&self, integration_id: &str, kind: RecordKind) -> bool {
        self.counts().contains_key(&(integration_id.to_owned(), kind))
    }

    /// Waits until none is being made there, for a while.
    pub(crate) async fn ended(&self, integration_id: &str) {
        let none = async {
            loop {
                let ended = self.0.ended.notified();
                tokio::pin!(ended);
                ended.as_mut().enable();
                if RecordKind::ALL.into_iter().all(|kind| !self.is_any(integration_id, kind)) {
                    return;
                }
                ended.await;
            }
        };
        // Whoever waits looks again by itself.
        drop(timeout(LONGEST_WAIT, none).await);
    }

    fn counts(&self) -> std::sync::MutexGuard<'_, HashMap<(String, RecordKind), usize>> {
        self.0.counts.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Notes that a vendor is about to be asked for the record.
pub(crate) async fn note_in(tx: &mut Tx, integration_id: &str, key: &RecordKey, now: Timestamp) -> Result<()> {
    with!(tx.on(), c => {
        sqlx::query(
            "INSERT INTO makings (organization_id, integration_id, kind, record_id, began_at) VALUES ($1, $2, $3, $4, $5) \
             ON CONFLICT (integration_id, kind, record_id) DO UPDATE SET began_at = excluded.began_at",
        )
        .bind(key.organization.as_str())
        .bind(integration_id)
        .bind(key.kind.as_str())
        .bind(&key.id)
        .bind(now.as_microsecond())
        .execute(c)
        .await
        .map(drop)
    })?;
    Ok(())
}

/// It is linked now, or was refused.
pub(crate) async fn end_in(tx: &mut Tx, integration_id: &str, key: &RecordKey) -> Result<()> {
    with!(tx.on(), c => {
        sqlx::query("DELETE FROM makings WHERE integration_id = $1 AND kind = $2 AND record_id = $3")
            .bind(integration_id)
            .bind(key.kind.as_str())
            .bind(&key.id)
            .execute(c)
            .await
            .map(drop)
    })?;
    Ok(())
}

/// Ids of records that may be there, and aren't known to be; none where they are too many to be told apart.
pub(crate) async fn unknown_in(
    tx: &mut Tx,
    integration_id: &str,
    kind: RecordKind,
    now: Timestamp,
) -> Result<Vec<String>> {
    let limit = i64::try_from(MOST + 1).unwrap_or(i64::MAX);
    let ids: Vec<String> = with!(tx.on(), c => {
        sqlx::query_scalar(
            "SELECT record_id FROM makings WHERE integration_id = $1 AND kind = $2 AND began_at > $3 ORDER BY record_id LIMIT $4",
        )
        .bind(integration_id)
        .bind(kind.as_str())
        .bind((now - KEEP).as_microsecond())
        .bind(limit)
        .fetch_all(c)
        .await
    })?;
    Ok(if ids.len() > MOST { Vec::new() } else { ids })
}

/// Forgets what never showed up.
pub(crate) async fn purge_in(tx: &mut Tx, now: Timestamp) -> Result<()> {
    with!(tx.on(), c => {
        sqlx::query("DELETE FROM makings WHERE began_at <= $1")
            .bind((now - KEEP).as_microsecond())
            .execute(c)
            .await
            .map(drop)
    })?;
    Ok(())
}
