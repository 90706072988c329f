//! What linked systems say, brought into the canonical records: recognised as our own echo, matched to a record, merged,
//! and told on, all in one transaction.
//!
//! Guarantee: record, conflicts, link and the events that follow are committed together or not at all; the same word
//! taken twice changes nothing the second time. An organization's words are taken one after the other: who creates a
//! record is not overtaken by who would match it.
//!
//! [`find`] says which record is meant, [`echo`] what is our own word coming back, [`tell`] who must hear of a change; [`observe`] takes what
//! WedSync's own events say, [`unite`] what a vendor had called by a row's id before the row was known.
//! How records merge is `record`'s.

pub(crate) mod echo;
mod find;
pub(crate) mod observe;
pub(crate) mod sight;
pub(crate) mod tell;
#[cfg(test)]
pub(crate) mod tests;
mod unite;

use std::{
    collections::BTreeMap,
    hash::{BuildHasher as _, RandomState},
    sync::Arc,
};

use chassis::{
    clock::Clock,
    error::{Error, Result},
    fail,
    id::OrganizationId,
    secret::{DataKey, DataKeys},
    store::{Store, Tx},
};
use jiff::Timestamp;
use serde_json::Value;
use tokio::sync::{Mutex, OwnedMutexGuard};

use self::{echo::OwnWrites, find::Found, sight::Sight};
use crate::{
    erase,
    integration::Integration,
    outbox::Outbox,
    record::{Applied, Change, Link, Links, RecordKind, Records, Source, Update, value},
    sync::making::{self, Making},
};

/// Items of one transaction.
pub(crate) const MOST_ITEMS: usize = 500;
/// Organizations whose words are taken at once, at most.
const TURNS: usize = 64;
/// How often what was aborted is taken.
pub(crate) const TRIES: usize = 3;

/// What a linked system says about one of its things.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct Incoming {
    pub(crate) kind: RecordKind,
    /// Its own id of it.
    pub(crate) external_id: String,
    /// Empty: it has none.
    pub(crate) external_version: String,
    /// When it changed there.
    pub(crate) at: Timestamp,
    /// Canonical fields; null clears one.
    pub(crate) fields: BTreeMap<String, Value>,
    pub(crate) deleted: bool,
    /// Nobody is in a hurry for it.
    pub(crate) priority_low: bool,
    pub(crate) origin: Origin,
}

impl Incoming {
    /// With its values in the one form that records have, so that they can be compared.
    fn normalized(&self) -> Self {
        let fields = self.fields.iter().map(|(name, said)| (name.clone(), value::normalize(name, said))).collect();
        Self { fields, ..self.clone() }
    }
}

/// How we came to know.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Origin {
    /// It told us; by now it may be otherwise.
    Webhook,
    /// We read how it is, and likewise for the others.
    Poll,
    Import,
    Reconcile,
}

/// What came of it.
#[derive(Clone, Debug, PartialEq)]
pub(crate) enum Resolved {
    /// It is known already.
    Unchanged,
    /// It is what we wrote there.
    Echo,
    Created {
        record_id: String,
    },
    Changed {
        record_id: String,
        changes: Vec<Change>,
    },
    /// Others have the last word: nothing changed, and it is told so.
    Conflicted {
        record_id: String,
    },
    /// A person must say.
    Asked {
        record_id: String,
    },
    /// It breaks a limit; nothing of it was taken.
    Refused {
        reason: String,
    },
}

/// Brings what is said into the records. Cheap to clone.
#[derive(Clone)]
pub(crate) struct Resolver {
    pub(crate) store: Store,
    pub(crate) keys: DataKeys,
    pub(crate) clock: Clock,
    pub(crate) records: Records,
    pub(crate) links: Links,
    pub(crate) outbox: Outbox,
    pub(crate) making: Making,
    pub(crate) turns: Arc<Turns>,
}

/// One lock for the organizations that share its number.
pub(crate) struct Turns {
    hasher: RandomState,
    locks: Vec<Arc<Mutex<()>>>,
}

impl Default for Turns {
    fn default() -> Self {
        Self { hasher: RandomState::new(), locks: (0..TURNS).map(|_| Arc::default()).collect() }
    }
}

impl Turns {
    pub(crate) async fn of(&self, organization: &OrganizationId) -> OwnedMutexGuard<()> {
        let number = self.hasher.hash_one(organization.as_str()) % TURNS as u64;
        self.locks[usize::try_from(number).unwrap_or_default()].clone().lock_owned().await
    }
}

/// A transaction in which an organization's words are taken; dropped, it is undone.
pub(crate) struct Taking {
    pub(crate) tx: Tx,
    resolver: Resolver,
    key: Arc<DataKey>,
    now: Timestamp,
    _turn: OwnedMutexGuard<()>,
}

impl Resolver {
    pub(crate) fn new(
        store: Store,
        keys: DataKeys,
        clock: Clock,
        records: Records,
        links: Links,
        outbox: Outbox,
    ) -> Self {
        Self { store, keys, clock, records, links, outbox, making: Making::default(), turns: Arc::default() }
    }

    /// Takes at most [`MOST_ITEMS`] in one transaction; what came of each, in their order.
    ///
    /// # Errors
    /// `Error::Unavailable` while the store is away, or too much waits for the router; nothing was taken then.
    pub(crate) async fn take(&self, integration: &Integration, incoming: Vec<Incoming>) -> Result<Vec<Resolved>> {
        let mut tries = 1;
        loop {
            match self.try_take(integration, &incoming).await {
                // Somebody who takes no turns changed the same: a person who decides.
                Err(Error::Aborted(_)) if tries < TRIES => {
                    tries += 1;
                    self.making.ended(&integration.id).await;
                }
                other => return other,
            }
        }
    }

    async fn try_take(&self, integration: &Integration, incoming: &[Incoming]) -> Result<Vec<Resolved>> {
        let mut taking = self.begin(&integration.organization).await?;
        let resolved = taking.take(integration, incoming).await?;
        taking.commit().await?;
        Ok(resolved)
    }

    /// Begins a transaction to take words in, for those who commit something of their own along with it.
    ///
    /// # Errors
    /// As [`Resolver::take`].
    pub(crate) async fn begin(&self, organization: &OrganizationId) -> Result<Taking> {
        self.outbox.check(organization).await?;
        self.begin_at_once(organization).await
    }

    /// The same however much waits for the router: where nothing is told on, and for what can't come again.
    ///
    /// # Errors
    /// Those of the store.
    pub(crate) async fn begin_at_once(&self, organization: &OrganizationId) -> Result<Taking> {
        // The first use of a key writes it, which can't be done inside of another transaction.
        let key = self.keys.of(organization).await?;
        let turn = self.turns.of(organization).await;
        let tx = self.store.begin().await?;
        Ok(Taking { tx, resolver: self.clone(), key, now: self.clock.now(), _turn: turn })
    }
}

impl Taking {
    /// What came of each, in their order.
    ///
    /// # Errors
    /// `Error::Invalid` for too many; `Error::Aborted` if another changed the same meanwhile; those of the store.
    pub(crate) async fn take(&mut self, integration: &Integration, incoming: &[Incoming]) -> Result<Vec<Resolved>> {
        if incoming.len() > MOST_ITEMS {
            return Err(Error::invalid("items", format!("must be at most {MOST_ITEMS}")));
        }
        let mut resolved = Vec::with_capacity(incoming.len());
        for incoming in incoming {
            let incoming = incoming.normalized();
            resolved.push(self.take_or_refuse(integration, &incoming).await?);
        }
        Ok(resolved)
    }

    /// Publishes another event along with it.
    ///
    /// # Errors
    /// Those of the store.
    pub(crate) async fn publish(&mut self, event: &proto::router::v1::Event) -> Result<()> {
        let outbox = self.resolver.outbox.clone();
        outbox.put_in(&mut self.tx, &self.key, event).await
    }

    /// Makes all of it durable, and has it told.
    ///
    /// # Errors
    /// Those of the store.
    pub(crate) async fn commit(self) -> Result<()> {
        fail::point("resolve.commit");
        self.tx.commit().await?;
        fail::point("resolve.committed");
        self.resolver.outbox.wake();
        Ok(())
    }

    /// What breaks a limit is refused alone: it would hold back all others, for ever.
    async fn take_or_refuse(&mut self, integration: &Integration, incoming: &Incoming) -> Result<Resolved> {
        match self.take_one(integration, incoming).await {
            Err(error @ Error::Invalid { .. }) => {
                tracing::warn!(%error, integration.id, kind = incoming.kind.as_str(), "what a vendor says is refused");
                Ok(Resolved::Refused { reason: error.to_string() })
            }
            // Another linked it meanwhile: it is found by whoever tries again.
            Err(Error::AlreadyExists(reason)) => Err(Error::Aborted(reason)),
            other => other,
        }
    }

    async fn take_one(&mut self, integration: &Integration, incoming: &Incoming) -> Result<Resolved> {
        if erase::is_past_in(&mut self.tx, &self.key, integration, incoming).await? {
            return Ok(Resolved::Unchanged);
        }
        let found = self.find(integration, incoming).await?;
        if !found.is_seen {
            return Ok(Resolved::Unchanged);
        }
        // Who never had it here takes nothing away: that it matches a record of ours is a guess.
        if incoming.deleted && found.link.is_none() {
            return Ok(Resolved::Unchanged);
        }
        if found.is_new && self.resolver.making.is_any(&integration.id, incoming.kind) {
            return Err(Error::Aborted("it may be what is being made there: it is known soon".to_owned()));
        }
        let news = self.news(integration, incoming, &found).await?;
        if let (Some(link), false, true) = (&found.link, incoming.deleted, news.fields.is_empty()) {
            self.note_version(link, incoming).await?;
            return Ok(if news.is_echo { Resolved::Echo } else { Resolved::Unchanged });
        }
        let update = update(integration, incoming, &found, news.fields);
        let records = self.resolver.records.clone();
        let applied = match found.is_new {
            true => records.make_in(&mut self.tx, &found.key, &update).await?,
            false => records.apply_in(&mut self.tx, &found.key, &update).await?,
        };
        let stale = is_stale(incoming, found.link.as_ref());
        self.link(integration, incoming, &found, stale).await?;
        let supplier = &integration.settings.supplier_id;
        let suppliers = if found.is_new {
            Sight::add_in(&mut self.tx, &found.key, supplier).await?;
            Some(supplier.clone()).filter(|supplier| !supplier.is_empty()).into_iter().collect()
        } else {
            Sight::of_in(&mut self.tx, &found.key).await?
        };
        let at = incoming.at.min(self.now);
        let (low, import) = (incoming.priority_low, incoming.origin == Origin::Import);
        self.tell_all(integration, (at, low, import), suppliers, &applied).await?;
        let lost = !stale && tell::has_lost(&applied.record, &update);
        if lost {
            self.correct(integration, &applied, &update).await?;
        }
        Ok(outcome(applied, lost))
    }

    /// What it says that isn't our own word, nor known to be so there.
    async fn news(&mut self, integration: &Integration, incoming: &Incoming, found: &Found) -> Result<News> {
        if found.is_new {
            return Ok(News { fields: incoming.fields.clone(), is_echo: false });
        }
        let own_version = found.link.as_ref().map(|link| link.own_version.as_str()).unwrap_or_default();
        if !own_version.is_empty() && own_version == incoming.external_version && !incoming.deleted {
            return Ok(News { fields: BTreeMap::new(), is_echo: true });
        }
        let word = &incoming.external_version;
        let own = OwnWrites { key: &self.key, integration: &integration.id, record: &found.key, word };
        let returned = own.excuse_in(&mut self.tx, &incoming.fields).await?;
        let mut fields = incoming.fields.clone();
        let is_known = |name: &String, value: &Value| {
            found.link.as_ref().is_some_and(|link| echo::equal(link.synced.get(name), value))
        };
        fields.retain(|name, value| !returned.contains(name) && !is_known(name, value));
        let is_echo = fields.is_empty() && !returned.is_empty();
        Ok(News { fields, is_echo })
    }

    async fn note_version(&mut self, link: &Link, incoming: &Incoming) -> Result<()> {
        let known = incoming.external_version.is_empty() || link.external_version == incoming.external_version;
        if known && link.external_id == incoming.external_id {
            return Ok(());
        }
        let mut link = link.clone();
        link.external_id.clone_from(&incoming.external_id);
        link.external_version.clone_from(&incoming.external_version);
        self.resolver.links.put_in(&mut self.tx, &link).await
    }

    /// What the vendor has now is what was last agreed with it; a deletion ends the link.
    async fn link(&mut self, integration: &Integration, incoming: &Incoming, found: &Found, stale: bool) -> Result<()> {
        let links = self.resolver.links.clone();
        if incoming.deleted {
            return match &found.link {
                Some(link) => links.delete_in(&mut self.tx, link).await,
                None => Ok(()),
            };
        }
        let mut link = found.link.clone().unwrap_or_else(|| Link {
            organization: integration.organization.clone(),
            integration_id: integration.id.clone(),
            kind: incoming.kind,
            record_id: found.key.id.clone(),
            external_id: String::new(),
            external_version: String::new(),
            own_version: String::new(),
            synced: BTreeMap::new(),
            synced_at: incoming.at.min(self.now),
            handed_over: false,
        });
        link.external_id.clone_from(&incoming.external_id);
        link.handed_over = false;
        if !stale {
            link.external_version.clone_from(&incoming.external_version);
            link.synced.extend(incoming.fields.clone());
            link.synced_at = link.synced_at.max(incoming.at.min(self.now));
        }
        links.put_in(&mut self.tx, &link).await?;
        // Nobody was asked to make what nobody had heard of.
        if found.is_new || found.link.is_some() {
            return Ok(());
        }
        making::end_in(&mut self.tx, &integration.id, &found.key).await
    }

    async fn tell(&mut self, integration: &Integration, at: Timestamp, applied: &Applied) -> Result<()> {
        let suppliers = Sight::of_in(&mut self.tx, &applied.record.key).await?;
        self.tell_all(integration, (at, false, false), suppliers, applied).await
    }

    async fn tell_all(
        &mut self,
        integration: &Integration,
        (at, low, import): (Timestamp, bool, bool),
        suppliers: Vec<String>,
        applied: &Applied,
    ) -> Result<()> {
        let told = tell::Told {
            suppliers,
            source: format!("integration:{}", integration.id),
            supplier_id: &integration.settings.supplier_id,
            at,
            low,
            import,
        };
        let outbox = self.resolver.outbox.clone();
        for event in tell::events(applied, &told) {
            outbox.put_in(&mut self.tx, &self.key, &event).await?;
        }
        Ok(())
    }

    /// Tells a vendor whose word lost what stands; a few times, should it insist.
    async fn correct(&mut self, integration: &Integration, applied: &Applied, update: &Update) -> Result<()> {
        let own = OwnWrites { key: &self.key, integration: &integration.id, record: &applied.record.key, word: "" };
        let stands = tell::standing(&applied.record, update);
        if own.count_in(&mut self.tx, &stands, self.now).await? >= echo::MOST_CORRECTIONS {
            tracing::warn!(integration.id, "a vendor keeps a value that lost; it is left to people");
            return Ok(());
        }
        let letter = tell::correction(applied, update, self.now);
        let outbox = self.resolver.outbox.clone();
        outbox.put_letter_in(&mut self.tx, &self.key, integration, &letter).await
    }
}

/// What is left of what was said, and whether what is gone was our own.
struct News {
    fields: BTreeMap<String, Value>,
    is_echo: bool,
}

fn update(integration: &Integration, incoming: &Incoming, found: &Found, fields: BTreeMap<String, Value>) -> Update {
    let (base, seen) =
        found.link.as_ref().map_or_else(Default::default, |link| (link.synced.clone(), Some(link.synced_at)));
    let source = Source::integration(&integration.id);
    Update { deleted: incoming.deleted, base, seen, ..Update::new(source, incoming.at, fields) }
}

/// What it told us before we wrote to it is no longer so; what we read is.
fn is_stale(incoming: &Incoming, link: Option<&Link>) -> bool {
    incoming.origin == Origin::Webhook && link.is_some_and(|link| incoming.at < link.synced_at)
}

fn outcome(applied: Applied, lost: bool) -> Resolved {
    let record_id = applied.record.key.id;
    if applied.conflicts.iter().any(|conflict| conflict.reason.asks()) {
        Resolved::Asked { record_id }
    } else if applied.created {
        Resolved::Created { record_id }
    } else if !applied.changes.is_empty() || applied.deleted {
        Resolved::Changed { record_id, changes: applied.changes }
    } else if lost {
        Resolved::Conflicted { record_id }
    } else {
        Resolved::Unchanged
    }
}
