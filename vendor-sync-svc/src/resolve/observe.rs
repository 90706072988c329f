//! What WedSync's own events say, brought into the records before anybody is told.
//!
//! A row of WedSync's database is also what that database has now: the links of integrations that write there are brought up
//! to date with it, and what they wrote themselves is recognised when it comes back by replication, however late. An image
//! of the row that is older than the one last seen (an event that comes again) says nothing about either.
//!
//! Invariant: whenever a row comes to say something else than what stands, a letter to its database is on its way. The
//! cases: a record changed (its event sends one); a row's word lost, or won while a write of ours was under way; a write
//! of ours that nobody noted came back (these send one here). What the letter finds is compared in `database::compare`.

use std::collections::{BTreeMap, BTreeSet};

use chassis::{error::Result, fail};
use jiff::Timestamp;
use serde_json::Value;

use super::{
    Resolver, Taking,
    echo::{OwnWrites, equal},
    sight::Sight,
};
use crate::{
    erase,
    event::{Event, Operation, Payload},
    record::{Link, Record, RecordKey, Source, Update},
    sync::read::{Said, origin},
};

/// What stands after an event.
pub(crate) struct Observed {
    pub(crate) record: Record,
    pub(crate) changed: Vec<String>,
    /// Who else than the event says may know: a change that we merged is told to all whose record it is.
    pub(crate) suppliers: Vec<String>,
    /// All that it says is what we wrote there.
    pub(crate) is_echo: bool,
    /// Databases whose row doesn't say what stands, or may not.
    pub(crate) behind: Vec<String>,
    /// A row's record that wasn't known before, or may not have been.
    pub(crate) is_new: bool,
}

/// A row beside what one database's link knew of it.
struct Seen {
    integration: String,
    /// What it has now that the link didn't say.
    news: BTreeSet<String>,
    /// Fields that a write of ours is on its way to, or back from.
    waiting: BTreeSet<String>,
    /// A later image was seen before.
    is_old: bool,
}

impl Resolver {
    /// Merges what `event` says of a record. `databases` are the integrations that write to WedSync's own database. None
    /// for an event of an integration that may not see the record, and for a record that nothing is known of.
    ///
    /// With `again`, the event may have been merged before and nobody told: that the database's links know it says nothing
    /// then. Who has it finds so at the attempt.
    ///
    /// # Errors
    /// `Error::Unavailable` while the store is away.
    pub(crate) async fn observe(
        &self,
        event: &Event,
        said: &Said,
        databases: &[String],
        again: bool,
    ) -> Result<Option<Observed>> {
        let mut taking = self.begin_at_once(&event.organization).await?;
        let seen = taking.observe(event, said, databases, again).await?;
        if seen.is_some() {
            taking.tx.commit().await?;
        }
        fail::point("sync.observed");
        Ok(seen)
    }
}

impl Taking {
    async fn observe(
        &mut self,
        event: &Event,
        said: &Said,
        databases: &[String],
        again: bool,
    ) -> Result<Option<Observed>> {
        let (records, suppliers) = (self.resolver.records.clone(), event.suppliers().collect::<Vec<_>>());
        let known = records.get_in(&mut self.tx, &said.key).await?;
        if let Some(record) = &known
            && erase::was_erased_in(&mut self.tx, record, event.time).await?
        {
            return Ok(None);
        }
        let foreign = origin(event).is_some() && known.is_some();
        if foreign && !Sight::sees_in(&mut self.tx, &event.metadata.supplier_id, &said.key).await? {
            return Ok(None);
        }
        let Some(update) = said.update.clone() else {
            let Some(record) = known else { return Ok(None) };
            let suppliers = Sight::of_in(&mut self.tx, &said.key).await?;
            let changed = said.changed.clone();
            return Ok(Some(Observed {
                record,
                changed,
                suppliers,
                is_echo: false,
                behind: Vec::new(),
                is_new: false,
            }));
        };
        let (own, rows) = self.rows(event, said, databases, again).await?;
        let update = without(event, said, update, &own, known.as_ref());
        let is_echo = !again && !own.is_empty() && update.fields.is_empty() && !update.deleted;
        let mut changed: BTreeSet<String> = update.fields.keys().cloned().collect();
        let applied = records.apply_in(&mut self.tx, &said.key, &update).await?;
        if !rows.iter().any(|row| row.is_old) {
            self.show(said, &suppliers).await?;
        }
        let is_behind = |row: &&Seen| again || row.is_behind(said, &changed, &applied.record);
        let behind = rows.iter().filter(is_behind).map(|row| row.integration.clone()).collect();
        let is_new = said.is_row && (applied.created || again);
        if again {
            changed.extend(said.changed.iter().cloned());
        }
        changed.extend(applied.changes.into_iter().map(|change| change.field));
        let (changed, suppliers) = (changed.into_iter().collect(), Vec::new());
        Ok(Some(Observed { record: applied.record, changed, suppliers, is_echo, behind, is_new }))
    }

    /// A row's event names everybody whose record it is; another only some of them.
    async fn show(&mut self, said: &Said, suppliers: &[&str]) -> Result<()> {
        if said.is_row {
            return Sight::set_in(&mut self.tx, &said.key, suppliers).await;
        }
        for supplier in suppliers {
            Sight::add_in(&mut self.tx, &said.key, supplier).await?;
        }
        Ok(())
    }

    /// The columns of a row that say nothing new: what we wrote there, or known to be so there. What the row has is what its
    /// databases' links have.
    async fn rows(
        &mut self,
        event: &Event,
        said: &Said,
        databases: &[String],
        again: bool,
    ) -> Result<(BTreeSet<String>, Vec<Seen>)> {
        let (mut own, mut rows) = (BTreeSet::new(), Vec::new());
        let Some(update) = said.update.as_ref().filter(|update| said.is_row && !update.deleted) else {
            return Ok((own, rows));
        };
        for integration in databases {
            let link = self.row_link(integration, &said.key).await?;
            if is_older(event, &link, again) {
                own.extend(update.fields.keys().chain(said.rest.keys()).cloned());
                let (integration, news, waiting) = (integration.clone(), BTreeSet::new(), BTreeSet::new());
                rows.push(Seen { integration, news, waiting, is_old: true });
            } else {
                rows.push(self.row(said, &update.fields, link, event, &mut own).await?);
            }
        }
        Ok((own, rows))
    }

    /// What an image says of the row, and the columns of it that say nothing new (`own`).
    async fn row(
        &mut self,
        said: &Said,
        changed: &BTreeMap<String, Value>,
        mut link: Link,
        event: &Event,
        own: &mut BTreeSet<String>,
    ) -> Result<Seen> {
        let image = || changed.iter().chain(&said.rest);
        let (integration, before, key) = (link.integration_id.clone(), link.synced.clone(), self.key.clone());
        let writes = OwnWrites { key: &key, integration: &integration, record: &said.key, word: event.id.as_str() };
        own.extend(writes.excuse_in(&mut self.tx, changed).await?);
        own.extend(image().filter(|(name, value)| before.get(*name) == Some(*value)).map(|(name, _)| name.clone()));
        // What the row had before a write of ours that is on its way back is no news.
        let waiting = writes.waiting_in(&mut self.tx).await?;
        own.extend(said.rest.keys().filter(|name| waiting.contains(*name)).cloned());
        // Nor is what we wrote before, where the event doesn't tell whether it changed.
        let mut untold = changed.clone();
        untold.retain(|name, _| waiting.contains(name) && !said.old.contains_key(name));
        own.extend(writes.written_in(&mut self.tx, &untold).await?);
        let now = image().filter(|(name, _)| !waiting.contains(*name));
        link.synced.extend(now.map(|(name, value)| (name.clone(), value.clone())));
        let news = link.synced.iter().filter(|(name, value)| before.get(*name) != Some(value));
        let news = news.map(|(name, _)| name.clone()).collect();
        link.external_version = place(event);
        self.resolver.links.clone().put_in(&mut self.tx, &link).await?;
        Ok(Seen { integration, news, waiting, is_old: false })
    }

    async fn row_link(&mut self, integration: &str, key: &RecordKey) -> Result<Link> {
        let links = self.resolver.links.clone();
        let link = links.by_record_in(&mut self.tx, &key.organization, integration, key.kind, &key.id).await?;
        Ok(link.unwrap_or_else(|| link_of(integration, key, self.now)))
    }
}

impl Seen {
    /// Whether the row may say something else than what stands, of what the event brought.
    fn is_behind(&self, said: &Said, words: &BTreeSet<String>, record: &Record) -> bool {
        let image = |name: &String| {
            said.update.as_ref().and_then(|update| update.fields.get(name)).or_else(|| said.rest.get(name))
        };
        let stands = |name: &String| record.fields.get(name).map(|field| &field.value);
        let differs = |name: &String| !equal(stands(name), image(name).unwrap_or(&Value::Null));
        words.iter().chain(&self.news).any(|name| self.waiting.contains(name) || differs(name))
    }
}

/// Where an event stands in the router's log.
fn place(event: &Event) -> String {
    format!("{}/{}", event.log_id, event.sequence)
}

/// Whether the link has seen a later image of the row, or this one. A source without places gives its events in order.
fn is_older(event: &Event, link: &Link, again: bool) -> bool {
    let seen = link.external_version.rsplit_once('/').filter(|(log, _)| *log == event.log_id);
    let seen = seen.and_then(|(_, sequence)| sequence.parse::<u64>().ok()).filter(|_| event.sequence > 0);
    seen.is_some_and(|seen| event.sequence < seen || (again && event.sequence == seen))
}

/// A row's link with the database that it is a row of: it has our own id there.
fn link_of(integration: &str, key: &RecordKey, now: Timestamp) -> Link {
    Link {
        organization: key.organization.clone(),
        integration_id: integration.to_owned(),
        kind: key.kind,
        record_id: key.id.clone(),
        external_id: key.id.clone(),
        external_version: String::new(),
        own_version: String::new(),
        synced: BTreeMap::new(),
        synced_at: now,
        handed_over: false,
    }
}

/// Without what is our own, and what WedSync said before where an UPDATE doesn't tell that it changed. With what other
/// columns say that we didn't know: one that we never heard of only fills a gap; one that isn't what WedSync last said was
/// changed by a statement that concerned nobody.
fn without(event: &Event, said: &Said, mut update: Update, own: &BTreeSet<String>, known: Option<&Record>) -> Update {
    let last = |name: &String| known.and_then(|record| record.last_word(&Source::wedsync(), name));
    let is_update = matches!(event.payload, Payload::Change { operation: Operation::Update, .. });
    let is_repeated =
        |name: &String, value: &Value| is_update && !said.old.contains_key(name) && last(name) == Some(value);
    update.fields.retain(|name, value| !own.contains(name) && !is_repeated(name, value));
    for (name, value) in said.rest.iter().filter(|(name, _)| !own.contains(*name)) {
        match last(name) {
            Some(last) if last == value => {}
            Some(_) => drop(update.fields.insert(name.clone(), value.clone())),
            None if value.is_null() || known.is_some_and(|record| record.fields.contains_key(name)) => {}
            None => {
                update.fields.insert(name.clone(), value.clone());
                update.times.insert(name.clone(), Timestamp::UNIX_EPOCH);
            }
        }
    }
    update
}
