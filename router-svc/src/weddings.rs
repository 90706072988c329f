//! The weddings that the router knows: stored with the events that taught it, and cached.
//!
//! Invariant: what is stored is what the stored events taught, in the log's order. What events under way will teach is
//! expected meanwhile, for the plans of those that come right behind them. No look-up waits for a commit, nor one for it.

use std::{
    collections::HashMap,
    sync::{
        Arc, Mutex, MutexGuard, PoisonError,
        atomic::{AtomicU64, Ordering},
    },
};

use chassis::{
    error::{Error, Result},
    id::OrganizationId,
    store::{Store, Tx},
    with,
};

use crate::{
    remembered::Remembered,
    wedding::{Learnt, Lesson, Wedding},
};

/// Weddings in memory; the others are read when an event is about them.
const CACHED: u64 = 50_000;

type Key = (OrganizationId, String);

/// What is known of weddings. Cheap to clone.
#[derive(Clone)]
pub(crate) struct Weddings {
    store: Store,
    known: Remembered<Key, Option<Arc<Wedding>>>,
    /// Held while what is stored changes and until that is known: of two changes the later is known last.
    changing: Arc<tokio::sync::Mutex<()>>,
    expected: Arc<Mutex<HashMap<Key, Expected>>>,
}

/// What will be known once the event of this number is stored.
struct Expected {
    number: u64,
    wedding: Option<Arc<Wedding>>,
}

/// Keeps an expectation until the event is stored or refused.
pub(crate) struct Expectation {
    weddings: Weddings,
    key: Key,
    number: u64,
}

impl Weddings {
    pub(crate) fn new(store: Store) -> Self {
        Self { store, known: Remembered::new(CACHED), changing: Arc::default(), expected: Arc::default() }
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
        let reading = self.known.reading(&key);
        let definition: Option<String> = with!(self.store.reader(), c => sqlx::query_scalar(
            "SELECT definition FROM weddings WHERE organization_id = $1 AND id = $2",
        ).bind(organization.as_str()).bind(id).fetch_optional(c).await)?;
        let wedding = parse(definition)?.map(Arc::new);
        self.known.keep(key, wedding.clone(), reading);
        Ok(wedding)
    }

    /// What will be known of one wedding when the events under way are stored.
    ///
    /// # Errors
    /// Those of the store.
    pub(crate) async fn foresee(&self, organization: &OrganizationId, id: &str) -> Result<Option<Arc<Wedding>>> {
        let key = (organization.clone(), id.to_owned());
        let expected = self.expected().get(&key).map(|expected| expected.wedding.clone());
        match expected {
            Some(wedding) => Ok(wedding),
            None => self.find(organization, id).await,
        }
    }

    /// The wedding of a couple, where only that is known; the latest, if there are several.
    ///
    /// # Errors
    /// Those of the store.
    pub(crate) async fn foresee_of_couple(
        &self,
        organization: &OrganizationId,
        couple: &str,
    ) -> Result<Option<Arc<Wedding>>> {
        let expected = self.expected().iter().find_map(|((owner, _), expected)| {
            expected.wedding.clone().filter(|wedding| owner == organization && wedding.couple_id == couple)
        });
        if expected.is_some() {
            return Ok(expected);
        }
        let id: Option<String> = with!(self.store.reader(), c => sqlx::query_scalar(
            "SELECT id FROM weddings WHERE organization_id = $1 AND couple_id = $2 ORDER BY updated_at DESC LIMIT 1",
        ).bind(organization.as_str()).bind(couple).fetch_optional(c).await)?;
        match id {
            Some(id) => self.foresee(organization, &id).await,
            None => Ok(None),
        }
    }

    /// Expects what an event will teach, until the answer is dropped.
    ///
    /// # Errors
    /// Those of the store.
    pub(crate) async fn expect(&self, organization: &OrganizationId, lesson: &Lesson) -> Result<Option<Expectation>> {
        static NEXT: AtomicU64 = AtomicU64::new(1);
        let before = self.foresee(organization, &lesson.wedding_id).await?;
        let Some(learnt) = lesson.apply(before.as_deref()) else { return Ok(None) };
        let (id, wedding) = known_by(learnt);
        let (key, number) = ((organization.clone(), id), NEXT.fetch_add(1, Ordering::Relaxed));
        self.expected().insert(key.clone(), Expected { number, wedding });
        Ok(Some(Expectation { weddings: self.clone(), key, number }))
    }

    fn expected(&self) -> MutexGuard<'_, HashMap<Key, Expected>> {
        self.expected.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Keeps others from changing what is stored until the guard is dropped.
    pub(crate) async fn change(&self) -> tokio::sync::OwnedMutexGuard<()> {
        self.changing.clone().lock_owned().await
    }

    /// Takes over what a committed event taught; the caller holds [`Weddings::change`].
    pub(crate) fn learn(&self, organization: OrganizationId, learnt: Learnt) {
        let (id, wedding) = known_by(learnt);
        self.known.put((organization, id), wedding);
    }

    /// Forgets what is remembered of one wedding, so that it is read again.
    pub(crate) fn forget(&self, organization: &OrganizationId, id: &str) {
        self.known.forget(&(organization.clone(), id.to_owned()));
    }

    /// Stores what a caller without change capture says. To be seen through: what is stored must be known.
    ///
    /// # Errors
    /// Those of the store.
    pub(crate) async fn upsert(&self, organization: OrganizationId, wedding: Wedding, now: i64) -> Result<()> {
        let id = wedding.id.clone();
        let learnt = Learnt::Known(wedding);
        let _changing = self.change().await;
        match self.write(&organization, &learnt, now).await {
            Ok(()) => self.learn(organization, learnt),
            Err(error) => {
                // Whether it was stored is not known: it is read again.
                self.forget(&organization, &id);
                return Err(error);
            }
        }
        Ok(())
    }

    async fn write(&self, organization: &OrganizationId, learnt: &Learnt, now: i64) -> Result<()> {
        let mut tx = self.store.begin().await?;
        store(&mut tx, organization, learnt, now).await?;
        tx.commit().await
    }
}

impl Drop for Expectation {
    fn drop(&mut self) {
        let mut expected = self.weddings.expected();
        if expected.get(&self.key).is_some_and(|expected| expected.number == self.number) {
            expected.remove(&self.key);
        }
    }
}

fn known_by(learnt: Learnt) -> (String, Option<Arc<Wedding>>) {
    match learnt {
        Learnt::Known(wedding) => (wedding.id.clone(), Some(Arc::new(wedding))),
        Learnt::Gone(id) => (id, None),
    }
}

fn parse(definition: Option<String>) -> Result<Option<Wedding>> {
    definition.map(|json| serde_json::from_str(&json)).transpose().map_err(Error::internal)
}

/// Applies a lesson to what is stored, in the transaction of the event that teaches it.
pub(crate) async fn teach(
    tx: &mut Tx,
    organization: &OrganizationId,
    lesson: &Lesson,
    now: i64,
) -> Result<Option<Learnt>> {
    let definition: Option<String> = with!(tx.on(), c => sqlx::query_scalar(
        "SELECT definition FROM weddings WHERE organization_id = $1 AND id = $2",
    ).bind(organization.as_str()).bind(&lesson.wedding_id).fetch_optional(c).await)?;
    let learnt = lesson.apply(parse(definition)?.as_ref());
    if let Some(learnt) = &learnt {
        store(tx, organization, learnt, now).await?;
    }
    Ok(learnt)
}

async fn store(tx: &mut Tx, organization: &OrganizationId, learnt: &Learnt, now: i64) -> Result<()> {
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

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use tokio::time::timeout;

    use super::*;

    #[tokio::test]
    async fn whoever_looks_a_wedding_up_waits_for_no_change_of_any() {
        chassis::testing::on_each_engine(&[&chassis::store::MIGRATIONS, &crate::MIGRATIONS], |store| async move {
            let weddings = Weddings::new(store);
            let organization = OrganizationId::parse("o").expect("an id");
            let changing = weddings.change().await;
            let found = timeout(Duration::from_secs(60), weddings.find(&organization, "unknown")).await;
            assert!(found.expect("it waits for nobody").expect("the store is there").is_none());
            drop(changing);
        })
        .await;
    }
}
