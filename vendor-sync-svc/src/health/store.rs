//! Standings in the store: a change and the event that tells of it are written together.

use std::collections::HashMap;

use chassis::{
    clock::{Clock, from_micros},
    error::{Error, Result},
    secret::DataKeys,
    store::Store,
    with,
};
use jiff::Timestamp;
use std::sync::{Arc, Mutex, PoisonError};
use tokio::sync::broadcast;

use super::{Health, Standing};
use crate::{credential::Changed, integration::Integration, notice, outbox::Outbox};

/// What is known of one integration in this process.
#[derive(Clone, Debug)]
pub(crate) struct Known {
    pub(crate) health: Health,
    pub(crate) probed_at: Option<Timestamp>,
    /// Empty: all was well.
    pub(crate) probe_error: String,
    pub(crate) last_good_at: Option<Timestamp>,
}

impl Known {
    fn new(health: Health) -> Self {
        Self { health, probed_at: None, probe_error: String::new(), last_good_at: None }
    }
}

/// How all integrations stand. Cheap to clone.
#[derive(Clone)]
pub(crate) struct Healths {
    store: Store,
    keys: DataKeys,
    outbox: Outbox,
    clock: Clock,
    /// Of those that are probed; no more than there are connections.
    known: Arc<Mutex<HashMap<String, Known>>>,
    changed: broadcast::Sender<Changed>,
}

impl Healths {
    /// Over the tables of `store`; each change is told to `changed` too.
    pub(crate) fn new(
        store: Store,
        keys: DataKeys,
        outbox: Outbox,
        clock: Clock,
        changed: broadcast::Sender<Changed>,
    ) -> Self {
        Self { store, keys, outbox, clock, known: Arc::default(), changed }
    }

    /// What is known of `integration`; none: it was never probed in this process, and never changed.
    ///
    /// # Errors
    /// `Error::Unavailable` while the store is away.
    pub(crate) async fn of(&self, integration: &Integration) -> Result<Option<Known>> {
        if let Some(known) = self.lock().get(&integration.id) {
            return Ok(Some(known.clone()));
        }
        Ok(self.read(integration).await?.map(Known::new))
    }

    async fn read(&self, integration: &Integration) -> Result<Option<Health>> {
        let row: Option<(i64, i64, i64, String)> = with!(self.store.reader(), c => {
            sqlx::query_as(
                "SELECT failing, since, changes, recent FROM integration_health WHERE organization_id = $1 AND integration_id = $2",
            )
            .bind(integration.organization.as_str())
            .bind(&integration.id)
            .fetch_optional(c)
            .await
        })?;
        let Some((failing, since, changes, recent)) = row else { return Ok(None) };
        let standing = if failing == 0 { Standing::Healthy } else { Standing::Failing };
        let recent: Vec<i64> = serde_json::from_str(&recent).map_err(Error::internal)?;
        let recent = recent.into_iter().map(from_micros).collect();
        Ok(Some(Health::of(standing, from_micros(since), changes.unsigned_abs(), recent)))
    }

    /// A sign of how `integration` does: nothing, or what is wrong. A change of standing is durable, with its event, before
    /// it is shown.
    ///
    /// # Errors
    /// `Error::Unavailable` while the store is away: the sign counts for nothing then.
    pub(crate) async fn sign(&self, integration: &Integration, wrong: &str) -> Result<()> {
        let now = self.clock.now();
        let mut known = self.of(integration).await?.unwrap_or_else(|| Known::new(Health::new(now)));
        let changed = known.health.sign(wrong.is_empty(), now);
        (known.probed_at, known.probe_error) = (Some(now), wrong.to_owned());
        if wrong.is_empty() {
            known.last_good_at = Some(now);
        }
        if changed {
            self.keep(integration, &known.health, wrong).await?;
        }
        self.lock().insert(integration.id.clone(), known);
        if changed {
            // Nobody may listen.
            drop(self.changed.send(Changed::of(integration)));
        }
        Ok(())
    }

    async fn keep(&self, integration: &Integration, health: &Health, wrong: &str) -> Result<()> {
        let recent: Vec<i64> = health.recent.iter().map(|at| at.as_microsecond()).collect();
        let recent = serde_json::to_string(&recent).map_err(Error::internal)?;
        let mut tx = self.store.begin().await?;
        with!(tx.on(), c => {
            sqlx::query(
                "INSERT INTO integration_health (integration_id, organization_id, failing, since, changes, recent) \
                 VALUES ($1, $2, $3, $4, $5, $6) ON CONFLICT (integration_id) DO UPDATE SET failing = $3, since = $4, \
                 changes = $5, recent = $6",
            )
            .bind(&integration.id)
            .bind(integration.organization.as_str())
            .bind(i64::from(health.standing == Standing::Failing))
            .bind(health.since.as_microsecond())
            .bind(health.changes.cast_signed())
            .bind(&recent)
            .execute(c)
            .await
            .map(drop)
        })?;
        let (type_, next_step) = match health.standing {
            Standing::Failing => ("integration.failing", "nothing is lost: changes wait until it answers again"),
            Standing::Healthy => ("integration.recovered", ""),
        };
        let more = serde_json::json!({ "reason": wrong, "since": health.since.to_string(), "next_step": next_step });
        let content = notice::content(integration, more);
        let event = notice::event(integration, type_, &format!("health.{}", health.changes), health.since, &content);
        let key = self.keys.of(&integration.organization).await?;
        self.outbox.put_in(&mut tx, &key, &event).await?;
        tx.commit().await?;
        self.outbox.wake();
        Ok(())
    }

    /// Forgets those that `keep` doesn't name: they aren't probed any more.
    pub(super) fn retain(&self, keep: impl Fn(&str) -> bool) {
        self.lock().retain(|id, _| keep(id));
    }

    fn lock(&self) -> std::sync::MutexGuard<'_, HashMap<String, Known>> {
        self.known.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
