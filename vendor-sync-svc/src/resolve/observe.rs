//! What WedSync's own events say, brought into the records before anybody is told.
//!
//! A row of WedSync's database is also what that database has now: the links of integrations that write there are brought up
//! to date with it, and what they wrote themselves is recognised when it comes back by replication, however late.

use std::collections::{BTreeMap, BTreeSet};

use chassis::{error::Result, fail};
use jiff::Timestamp;
use serde_json::Value;

use super::{Resolver, Taking, echo::OwnWrites, sight::Sight};
use crate::{
    erase,
    event::Event,
    record::{Link, Record, RecordKey, Source, Update},
    sync::read::{Said, origin},
};

/// What stands after an event.
pub(crate) struct Seen {
    pub(crate) record: Record,
    pub(crate) changed: Vec<String>,
    /// Who else than the event says may know: a change that we merged is told to all whose record it is.
    pub(crate) suppliers: Vec<String>,
    /// All that it says is what we wrote there.
    pub(crate) is_echo: bool,
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
    ) -> Result<Option<Seen>> {
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
    async fn observe(&mut self, event: &Event, said: &Said, databases: &[String], again: bool) -> Result<Option<Seen>> {
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
            return Ok(Some(Seen { record, changed: said.changed.clone(), suppliers, is_echo: false }));
        };
        let own = if said.is_row { self.own(event, said, databases).await? } else { BTreeSet::new() };
        let update = without(update, &own, known.as_ref(), &said.rest);
        let is_echo = !again && !own.is_empty() && update.fields.is_empty() && !update.deleted;
        let mut changed: BTreeSet<String> = update.fields.keys().cloned().collect();
        let applied = records.apply_in(&mut self.tx, &said.key, &update).await?;
        self.show(said, &suppliers).await?;
        if again {
            changed.extend(said.changed.iter().cloned());
        }
        changed.extend(applied.changes.into_iter().map(|change| change.field));
        let (changed, suppliers) = (changed.into_iter().collect(), Vec::new());
        Ok(Some(Seen { record: applied.record, changed, suppliers, is_echo }))
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

    /// The columns of a row that are what we wrote there, or known to be so there. What the row has is what its database's links have.
    async fn own(&mut self, event: &Event, said: &Said, databases: &[String]) -> Result<BTreeSet<String>> {
        let Some(update) = said.update.as_ref().filter(|update| !update.deleted) else { return Ok(BTreeSet::new()) };
        let (mut own, links) = (BTreeSet::new(), self.resolver.links.clone());
        for integration in databases {
            let word = event.id.as_str();
            let writes = OwnWrites { key: &self.key, integration, record: &said.key, word };
            let returned = writes.excuse_in(&mut self.tx, &update.fields).await?;
            let link = links
                .by_record_in(&mut self.tx, &said.key.organization, integration, said.key.kind, &said.key.id)
                .await?;
            let before = link.as_ref().map(|link| link.synced.clone()).unwrap_or_default();
            let has = |(name, value): &(&String, &Value)| before.get(*name) == Some(*value);
            own.extend(update.fields.iter().chain(&said.rest).filter(has).map(|(name, _)| name.clone()));
            own.extend(returned.iter().cloned());
            // What the row had before a write of ours that is on its way back is no news.
            let waiting = writes.waiting_in(&mut self.tx).await?;
            own.extend(said.rest.keys().filter(|name| waiting.contains(*name)).cloned());
            let mut link = link.unwrap_or_else(|| link_of(integration, &said.key, self.now));
            let rest = said.rest.iter().filter(|(name, _)| !waiting.contains(*name));
            let news = update.fields.iter().filter(|(name, _)| !returned.contains(*name)).chain(rest);
            link.synced.extend(news.map(|(name, value)| (name.clone(), value.clone())));
            if link.synced != before {
                links.put_in(&mut self.tx, &link).await?;
            }
        }
        Ok(own)
    }
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

/// Without what is our own, and with what other columns say that we didn't know: one that we never heard of only fills a
/// gap; one that isn't what WedSync last said was changed by a statement that concerned nobody.
fn without(
    mut update: Update,
    own: &BTreeSet<String>,
    known: Option<&Record>,
    rest: &BTreeMap<String, Value>,
) -> Update {
    update.fields.retain(|name, _| !own.contains(name));
    for (name, value) in rest.iter().filter(|(name, _)| !own.contains(*name)) {
        match known.and_then(|record| last_word(record, name)) {
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

/// What WedSync itself last said of a field.
fn last_word<'a>(record: &'a Record, name: &str) -> Option<&'a Value> {
    let others = record.others.get(name).into_iter().flatten();
    let mut said = record.fields.get(name).into_iter().chain(others);
    said.find(|field| field.source == Source::wedsync()).map(|field| &field.value)
}
