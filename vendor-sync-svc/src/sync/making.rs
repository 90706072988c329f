//! Records that are being made at vendors now. A vendor may tell of what we made before it has answered us: until then
//! what it tells of as new can't be told from our own, and waits.
//!
//! In memory: what was made before a crash is found by looking it up.

use std::{
    collections::HashMap,
    sync::{Arc, Mutex, PoisonError},
    time::Duration,
};

use tokio::{sync::Notify, time::timeout};

use crate::record::RecordKind;

/// So long a word is held before its sender is asked to come again.
const LONGEST_WAIT: Duration = Duration::from_secs(5);

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
