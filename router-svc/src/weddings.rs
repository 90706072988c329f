//! The weddings that the router knows: stored with the events that taught it, and cached.

use std::sync::Arc;

use chassis::{
    error::{Error, Result},
    id::OrganizationId,
    store::{Store, Tx},
    with,
};
use moka::sync::Cache;

use crate::wedding::{Learnt, Wedding};

/// Weddings in memory; the others are read when an event is about them.
const CACHED: u64 = 50_000;

type Key = (OrganizationId, String);

/// What is known of weddings. Cheap to clone.
#[derive(Clone)]
pub(crate) struct Weddings {
    store: Store,
    known: Cache<Key, Option<Arc<Wedding>>>,
}

impl Weddings {
    pub(crate) fn new(store: Store) -> Self {
        Self { store, known: Cache::new(CACHED) }
    }

    /// What is known of one wedding.
    ///
    /// # Errors
    /// Those of the store.
    pub(crate) async fn find(&self, organization: &OrganizationId, id: &str) -> Result<Option<Arc<Wedding>>> {
        let key = (organization.clone(), id.to_owned());
        if let Some(known) = self.known.get(&key) {
            return Ok(known);
        }
        let definition: Option<String> = with!(self.store.reader(), c => sqlx::query_scalar(
            "SELECT definition FROM weddings WHERE organization_id = $1 AND id = $2",
        ).bind(organization.as_str()).bind(id).fetch_optional(c).await)?;
        let wedding = definition.map(|json| serde_json::from_str(&json)).transpose().map_err(Error::internal)?.map(Arc::new);
        // What was learnt since the read is newer: it stays.
        Ok(self.known.entry(key).or_insert(wedding).into_value())
    }

    /// The wedding of a couple, where only that is known; the latest, if there are several.
    ///
    /// # Errors
    /// Those of the store.
    pub(crate) async fn find_of_couple(&self, organization: &OrganizationId, couple: &str) -> Result<Option<Arc<Wedding>>> {
        let id: Option<String> = with!(self.store.reader(), c => sqlx::query_scalar(
            "SELECT id FROM weddings WHERE organization_id = $1 AND couple_id = $2 ORDER BY updated_at DESC LIMIT 1",
        ).bind(organization.as_str()).bind(couple).fetch_optional(c).await)?;
        match id {
            Some(id) => self.find(organization, &id).await,
            None => Ok(None),
        }
    }

    /// Takes over what a committed event taught.
    pub(crate) fn learn(&self, organization: &OrganizationId, learnt: Learnt) {
        match learnt {
            Learnt::Known(wedding) => self.known.insert((organization.clone(), wedding.id.clone()), Some(Arc::new(wedding))),
            Learnt::Gone(id) => self.known.insert((organization.clone(), id), None),
        }
    }

    /// Stores what a caller without change capture says.
    ///
    /// # Errors
    /// Those of the store.
    pub(crate) async fn upsert(&self, organization: &OrganizationId, wedding: Wedding, now: i64) -> Result<()> {
        let learnt = Learnt::Known(wedding);
        let mut tx = self.store.begin().await?;
        store(&mut tx, organization, &learnt, now).await?;
        tx.commit().await?;
        self.learn(organization, learnt);
        Ok(())
    }
}

/// Writes what was learnt, in the transaction of the event that taught it.
pub(crate) async fn store(tx: &mut Tx, organization: &OrganizationId, learnt: &Learnt, now: i64) -> Result<()> {
    match learnt {
        Learnt::Known(wedding) => {
            let definition = serde_json::to_string(wedding).map_err(Error::internal)?;
            with!(tx.on(), c => sqlx::query(
                "INSERT INTO weddings (organization_id, id, couple_id, definition, updated_at) VALUES ($1, $2, $3, $4, $5)
                 ON CONFLICT (organization_id, id) DO UPDATE SET couple_id = excluded.couple_id, definition = excluded.definition,
                     updated_at = excluded.updated_at",
            ).bind(organization.as_str()).bind(&wedding.id).bind(&wedding.couple_id).bind(definition).bind(now).execute(c).await.map(drop))?;
        }
        Learnt::Gone(id) => {
            with!(tx.on(), c => sqlx::query("DELETE FROM weddings WHERE organization_id = $1 AND id = $2")
                .bind(organization.as_str()).bind(id).execute(c).await.map(drop))?;
        }
    }
    Ok(())
}
