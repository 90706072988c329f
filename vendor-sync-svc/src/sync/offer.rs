//! From an event to offers: what it says is brought into the record, then each integration that is to know gets a letter.
//!
//! Who is to know: those of the kinds that the plan names, connected or to be connected again, whose supplier sees the event,
//! but not the one that it comes from. The database whose row it is hears of it where the row doesn't say what stands.
//! Who knows already is found out at the attempt. A plan that names the kind `record`, which no connector is of, has the
//! event brought into the record and tells nobody.

use std::{collections::BTreeMap, sync::Arc};

use bytes::Bytes;
use chassis::{
    error::{Error, Result},
    id,
    lane::Offer,
};
use serde_json::Value;

use super::{
    account::{Account, Accounts, DATABASE},
    letter::{self, Letter},
    read::{Said, origin, read},
};
use crate::{
    event::{Event, Payload, Priority},
    resolve::{Resolver, observe::Observed, sight::Sight},
};

/// Kinds of integrations that a plan names, each with its priority.
pub(crate) type Kinds = BTreeMap<String, Priority>;

/// Makes offers. Cheap to clone.
#[derive(Clone)]
pub(crate) struct Offers {
    pub(crate) accounts: Accounts,
    pub(crate) resolver: Resolver,
}

impl Offers {
    /// What integrations of these kinds are told of `event`. Its record is up to date when this returns. With `again`, the
    /// event may have come before.
    ///
    /// # Errors
    /// `Error::Unavailable` while the store is away: the event must come again.
    pub(crate) async fn of(&self, event: &Event, kinds: &Kinds, way: &str, again: bool) -> Result<Vec<Offer>> {
        let accounts = self.accounts.all_of(&event.organization);
        if accounts.is_empty() {
            return Ok(Vec::new());
        }
        let mut suppliers: Vec<String> = event.suppliers().map(str::to_owned).collect();
        let (mut behind, mut is_echo) = (Vec::new(), false);
        let letter = match read(event) {
            Some(said) => {
                let databases = databases(&accounts);
                match self.resolver.observe(event, &said, &databases, again).await {
                    Ok(Some(seen)) => {
                        if seen.is_new {
                            let all: Vec<_> = accounts.iter().map(|account| &account.integration).collect();
                            self.resolver.unite(&said.key, &all).await?;
                        }
                        suppliers.extend_from_slice(&seen.suppliers);
                        (behind, is_echo) = (seen.behind.clone(), seen.is_echo);
                        of_record(event, &said, &seen)
                    }
                    Ok(None) => return Ok(Vec::new()),
                    // It would come again for ever, and hold back everybody's. What it asks for itself is done all the same.
                    Err(error @ Error::Invalid { .. }) => {
                        tracing::warn!(%error, "an event says more of a record than there is room for; it is told without");
                        of_event(event)
                    }
                    Err(error) => return Err(error),
                }
            }
            None => of_event(event),
        };
        let offers = accounts.iter().filter_map(|account| {
            let is_behind = account.is_told() && behind.contains(&account.integration.id);
            let is_told = is_behind || (!is_echo && is_for(account, event, &suppliers));
            let named = kinds.get(account.connector.kind()).copied();
            let priority = named.or_else(|| is_behind.then_some(Priority::Normal)).filter(|_| is_told)?;
            Some(letter.offer(&account.integration.id, priority as i64, way))
        });
        Ok(offers.collect())
    }

    /// What `account` is told of `event` now, for a delivery that is sent again: nothing is merged a second time. None if it isn't
    /// to know, or no longer.
    ///
    /// # Errors
    /// Those of the store.
    pub(crate) async fn again(&self, event: &Event, account: &Account) -> Result<Option<Bytes>> {
        let supplier = &account.integration.settings.supplier_id;
        let Some(said) = read(event) else {
            let suppliers: Vec<String> = event.suppliers().map(str::to_owned).collect();
            return Ok(is_for(account, event, &suppliers).then(|| of_event(event).seal()));
        };
        let sees = Sight::sees(&self.resolver.store, supplier, &said.key).await?;
        if !sees || !is_for(account, event, std::slice::from_ref(supplier)) {
            return Ok(None);
        }
        let record = self.resolver.records.get(&said.key).await?;
        let observed = |record| {
            let (changed, suppliers, behind) = (said.changed.clone(), Vec::new(), Vec::new());
            Observed { record, changed, suppliers, is_echo: false, behind, is_new: false }
        };
        Ok(record.map(|record| of_record(event, &said, &observed(record)).seal()))
    }
}

fn databases(accounts: &[Arc<Account>]) -> Vec<String> {
    let databases = accounts.iter().filter(|account| account.connector.kind() == DATABASE);
    databases.map(|account| account.integration.id.clone()).collect()
}

fn is_for(account: &Account, event: &Event, suppliers: &[String]) -> bool {
    let integration = &account.integration;
    let supplier = integration.settings.supplier_id.as_str();
    let is_row = matches!(event.payload, Payload::Change { .. }) && account.connector.kind() == DATABASE;
    account.is_told()
        && !is_row
        && origin(event) != Some(&integration.id)
        && !event.names(&integration.id)
        && (supplier.is_empty() || suppliers.iter().any(|other| other == supplier))
}

/// What stands of the record, and what of it changed.
fn of_record(event: &Event, said: &Said, seen: &Observed) -> Letter {
    let key = &seen.record.key;
    let old: BTreeMap<String, Value> = said
        .old
        .iter()
        .filter(|(name, _)| seen.changed.contains(name))
        .map(|(name, value)| (name.clone(), value.clone()))
        .collect();
    let mut letter = of_event(event);
    key.kind.as_str().clone_into(&mut letter.kind);
    key.id.clone_into(&mut letter.record_id);
    letter.fields = letter::print(&seen.record.values());
    letter.old = letter::print(&old);
    letter.changed.clone_from(&seen.changed);
    letter.deleted = seen.record.deleted.is_some();
    letter
}

fn of_event(event: &Event) -> Letter {
    let content = match &event.payload {
        Payload::Content { data, .. } => Some(data),
        Payload::Change { old, new, .. } => new.as_ref().or(old.as_ref()),
    };
    let content = content.and_then(|data| std::str::from_utf8(data).ok()).unwrap_or_default();
    Letter {
        event_id: event.id.clone(),
        event_uid: id::uuid_text(event.uid),
        event_type: event.type_.clone(),
        time: event.time.to_string(),
        source: event.source.clone(),
        wedding_id: event.metadata.wedding_id.clone(),
        couple_id: event.metadata.couple_id.clone(),
        supplier_id: event.metadata.supplier_id.clone(),
        traceparent: event.metadata.traceparent.clone(),
        content: content.to_owned(),
        ..Letter::default()
    }
}
