//! What vendors are known to have: links, brought up to date with each answer, and event operations that were done.
//!
//! Invariant: our own write is noted before the vendor is asked, since it may come back before the answer does; the link
//! and its synced fields are committed before the attempt counts, in a turn of the organization: what comes in meanwhile is
//! not written over.

use std::{
    collections::{BTreeMap, BTreeSet},
    sync::Arc,
    time::Duration,
};

use chassis::{
    clock::Clock,
    error::Result,
    id::OrganizationId,
    secret::DataKeys,
    store::{Store, Tx},
    tasks::Tasks,
    with,
};
use jiff::{SignedDuration, Timestamp};
use serde_json::Value;
use tokio::sync::OwnedMutexGuard;

use super::making;
use crate::{
    connector::Reply,
    integration::Integration,
    record::{Link, Links, RecordKey},
    resolve::{
        Resolver, Turns,
        echo::{OwnWrites, equal},
    },
};

const PURGE_EVERY: Duration = Duration::from_secs(3600);
const KEEP_DONE: SignedDuration = SignedDuration::from_hours(7 * 24);

/// What vendors have. Cheap to clone.
#[derive(Clone)]
pub(crate) struct Known {
    pub(crate) store: Store,
    pub(crate) keys: DataKeys,
    pub(crate) clock: Clock,
    pub(crate) links: Links,
    turns: Arc<Turns>,
}

impl Known {
    /// Over the store of `resolver`.
    pub(crate) fn over(resolver: &Resolver) -> Self {
        let Resolver { store, keys, clock, links, turns, .. } = resolver.clone();
        Self { store, keys, clock, links, turns }
    }

    pub(crate) fn now(&self) -> Timestamp {
        self.clock.now()
    }

    /// # Errors
    /// Those of the store, here and below.
    pub(crate) async fn link(&self, integration: &Integration, key: &RecordKey) -> Result<Option<Link>> {
        self.links.by_record(&key.organization, &integration.id, key.kind, &key.id).await
    }

    /// A transaction in a turn of the organization, in the order in which the resolver takes both.
    async fn begin(&self, organization: &OrganizationId) -> Result<(OwnedMutexGuard<()>, Tx)> {
        self.keys.of(organization).await?;
        let turn = self.turns.of(organization).await;
        Ok((turn, self.store.begin().await?))
    }

    /// The record is what was found there under this id, and has these fields.
    pub(crate) async fn adopt(
        &self,
        integration: &Integration,
        key: &RecordKey,
        found: &Reply,
        has: BTreeMap<String, Value>,
    ) -> Result<Link> {
        let (_turn, mut tx) = self.begin(&key.organization).await?;
        let mut link = new(integration, key, self.now());
        link.external_id.clone_from(&found.external_id);
        link.external_version.clone_from(&found.external_version);
        link.synced = has;
        self.links.put_in(&mut tx, &link).await?;
        making::end_in(&mut tx, &integration.id, key).await?;
        tx.commit().await?;
        Ok(link)
    }

    /// The vendor is about to be told `news`; when that was noted.
    pub(crate) async fn intends(
        &self,
        integration: &Integration,
        key: &RecordKey,
        news: &BTreeMap<String, Value>,
    ) -> Result<Timestamp> {
        self.notes(integration, key, news, false).await
    }

    /// The same where the record isn't known to be there: this may make it.
    pub(crate) async fn intends_to_make(
        &self,
        integration: &Integration,
        key: &RecordKey,
        news: &BTreeMap<String, Value>,
    ) -> Result<Timestamp> {
        self.notes(integration, key, news, true).await
    }

    async fn notes(
        &self,
        integration: &Integration,
        key: &RecordKey,
        news: &BTreeMap<String, Value>,
        makes: bool,
    ) -> Result<Timestamp> {
        let (now, data_key) = (self.now(), self.keys.of(&key.organization).await?);
        let own = OwnWrites { key: &data_key, integration: &integration.id, record: key, word: "" };
        let mut tx = self.store.begin().await?;
        own.note_in(&mut tx, news, now).await?;
        if makes {
            making::note_in(&mut tx, &integration.id, key, now).await?;
        }
        tx.commit().await?;
        Ok(now)
    }

    /// It took nothing of what was noted `at` this time.
    pub(crate) async fn withdraw(
        &self,
        integration: &Integration,
        key: &RecordKey,
        news: &BTreeMap<String, Value>,
        at: Timestamp,
    ) -> Result<()> {
        let data_key = self.keys.of(&key.organization).await?;
        let own = OwnWrites { key: &data_key, integration: &integration.id, record: key, word: "" };
        let mut tx = self.store.begin().await?;
        own.withdraw_in(&mut tx, news, at).await?;
        making::end_in(&mut tx, &integration.id, key).await?;
        tx.commit().await
    }

    /// The vendor took `fields`.
    pub(crate) async fn written(
        &self,
        integration: &Integration,
        key: &RecordKey,
        fields: &BTreeMap<String, Value>,
        reply: &Reply,
    ) -> Result<()> {
        let now = self.now();
        let (_turn, mut tx) = self.begin(&key.organization).await?;
        // As it is now: what came in since the attempt began is not forgotten.
        let known = self.links.by_record_in(&mut tx, &key.organization, &integration.id, key.kind, &key.id).await?;
        let mut link = known.unwrap_or_else(|| new(integration, key, now));
        if !reply.external_id.is_empty() {
            link.external_id.clone_from(&reply.external_id);
        }
        if !reply.external_version.is_empty() {
            link.external_version.clone_from(&reply.external_version);
        }
        link.own_version.clone_from(&reply.external_version);
        link.synced.extend(fields.clone());
        link.synced_at = now;
        link.handed_over = reply.handed_over;
        self.links.put_in(&mut tx, &link).await?;
        making::end_in(&mut tx, &integration.id, key).await?;
        tx.commit().await
    }

    /// The vendor no longer has it.
    pub(crate) async fn forget(&self, link: &Link) -> Result<()> {
        let (_turn, mut tx) = self.begin(&link.organization).await?;
        self.links.delete_in(&mut tx, link).await?;
        tx.commit().await
    }

    /// Whether an operation was done for an event before.
    pub(crate) async fn is_done(&self, integration: &Integration, event_id: &str, operation: &str) -> Result<bool> {
        let found: Option<i64> = with!(self.store.reader(), c => {
            sqlx::query_scalar(
                "SELECT done_at FROM event_operations WHERE integration_id = $1 AND event_id = $2 AND operation = $3",
            )
            .bind(&integration.id)
            .bind(event_id)
            .bind(operation)
            .fetch_optional(c)
            .await
        })?;
        Ok(found.is_some())
    }

    /// Notes that it was.
    pub(crate) async fn done(&self, integration: &Integration, event_id: &str, operation: &str) -> Result<()> {
        with!(self.store.writer(), c => {
            sqlx::query(
                "INSERT INTO event_operations (integration_id, event_id, operation, done_at) VALUES ($1, $2, $3, $4) ON CONFLICT DO NOTHING",
            )
            .bind(&integration.id)
            .bind(event_id)
            .bind(operation)
            .bind(self.clock.now_micros())
            .execute(c)
            .await
            .map(drop)
        })?;
        Ok(())
    }

    /// Forgets what was done over a week ago, until the process stops.
    pub(crate) async fn purge_at_times(self, tasks: Tasks) {
        let stopping = tasks.stopping();
        while stopping.run_until_cancelled(self.clock.sleep(PURGE_EVERY)).await.is_some() {
            if let Err(error) = self.purge().await {
                tracing::warn!(%error, "what was done at vendors long ago is forgotten later");
            }
        }
    }

    async fn purge(&self) -> Result<()> {
        let before = (self.now() - KEEP_DONE).as_microsecond();
        with!(self.store.writer(), c => {
            sqlx::query("DELETE FROM event_operations WHERE done_at < $1").bind(before).execute(c).await.map(drop)
        })?;
        let mut tx = self.store.begin().await?;
        making::purge_in(&mut tx, self.now()).await?;
        tx.commit().await
    }
}

fn new(integration: &Integration, key: &RecordKey, now: Timestamp) -> Link {
    Link {
        organization: key.organization.clone(),
        integration_id: integration.id.clone(),
        kind: key.kind,
        record_id: key.id.clone(),
        external_id: String::new(),
        external_version: String::new(),
        own_version: String::new(),
        synced: BTreeMap::new(),
        synced_at: now,
        handed_over: false,
    }
}

/// A letter that waited says what was so when it was written. What the vendor has as it stands now isn't set back; what was
/// cleared is said as null, so that it is cleared there too.
pub(crate) fn keep_current(
    fields: &mut BTreeMap<String, Value>,
    synced: &BTreeMap<String, Value>,
    now: &BTreeMap<String, Value>,
    changed: &[String],
    allowed: &BTreeSet<String>,
) {
    let cleared = changed.iter().filter(|name| allowed.contains(*name) && !fields.contains_key(*name));
    let cleared: Vec<String> = cleared.cloned().collect();
    fields.extend(cleared.into_iter().map(|name| (name, Value::Null)));
    for (name, value) in fields {
        let (there, stands) = (synced.get(name), now.get(name));
        if there.is_some() && equal(stands, there.unwrap_or(&Value::Null)) {
            *value = stands.cloned().unwrap_or(Value::Null);
        }
    }
}

/// What the vendor doesn't have. A field that it never heard of and that has no value is none.
pub(crate) fn news(fields: &BTreeMap<String, Value>, has: &BTreeMap<String, Value>) -> BTreeMap<String, Value> {
    let news = fields.iter().filter(|(name, value)| !equal(has.get(*name), value));
    news.map(|(name, value)| (name.clone(), value.clone())).collect()
}
