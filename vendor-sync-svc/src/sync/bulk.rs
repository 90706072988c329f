//! Records in bulk, on request: what a vendor doesn't have is put into its lane, at LOW priority, with a result for each.

use std::{collections::BTreeMap, sync::Arc};

use chassis::{
    error::{Error, Result},
    id::{self, OrganizationId},
    with,
};

use super::{
    Engine,
    account::{Account, DATABASE},
    known,
    letter::{self, Letter},
};
use crate::{
    event::Priority,
    record::{Record, RecordKey, RecordKind},
    resolve::sight::Sight,
};

/// Records of one request.
pub(crate) const MOST: usize = 200;

/// Which records, to whom.
#[derive(Clone, Debug)]
pub(crate) struct Wanted {
    pub(crate) organization: OrganizationId,
    pub(crate) kind: RecordKind,
    /// Empty: all of the supplier's, after `after`.
    pub(crate) ids: Vec<String>,
    pub(crate) supplier_id: String,
    /// Empty: every one.
    pub(crate) integration_id: String,
    pub(crate) after: String,
    pub(crate) limit: usize,
}

/// What became of one record at one integration.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Synced {
    pub(crate) record_id: String,
    /// Empty: at none.
    pub(crate) integration_id: String,
    pub(crate) outcome: Outcome,
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Outcome {
    /// Its delivery is durable.
    Sent,
    Unchanged,
    Refused(String),
}

impl Engine {
    /// Syncs a page of records; gives where the next one begins, if there is one.
    ///
    /// # Errors
    /// `Error::Invalid` for too many, `Error::NotFound` for an integration that isn't the organization's; those of the store.
    pub(crate) async fn bulk(&self, wanted: &Wanted) -> Result<(Vec<Synced>, String)> {
        if wanted.ids.len() > MOST {
            return Err(Error::invalid("ids", format!("must be at most {MOST}")));
        }
        let accounts = self.takers(wanted)?;
        let (ids, next) = self.ids(wanted).await?;
        let mut results = Vec::new();
        for id in ids {
            results.extend(self.sync(wanted, &accounts, &id).await?);
        }
        Ok((results, next))
    }

    /// The integrations that take such records.
    fn takers(&self, wanted: &Wanted) -> Result<Vec<Arc<Account>>> {
        let accounts = match wanted.integration_id.as_str() {
            "" => self.accounts.all_of(&wanted.organization),
            id => vec![self.accounts.of(&wanted.organization, id)?],
        };
        let takes = |account: &Arc<Account>| {
            account.is_told()
                && (account.connector.record(wanted.kind).is_some() || account.connector.kind() == DATABASE)
        };
        Ok(accounts.into_iter().filter(takes).collect())
    }

    async fn ids(&self, wanted: &Wanted) -> Result<(Vec<String>, String)> {
        if !wanted.ids.is_empty() {
            return Ok((wanted.ids.clone(), String::new()));
        }
        let limit = i64::try_from(wanted.limit.clamp(1, MOST)).unwrap_or(1);
        let mut ids: Vec<String> = with!(self.known.store.reader(), c => {
            sqlx::query_scalar(
                "SELECT id FROM records AS r WHERE organization_id = $1 AND kind = $2 AND id > $3 AND deleted_at IS NULL \
                 AND ($4 = '' OR EXISTS (SELECT 1 FROM record_suppliers AS s WHERE s.organization_id = r.organization_id \
                 AND s.kind = r.kind AND s.record_id = r.id AND s.supplier_id = $4)) ORDER BY id LIMIT $5",
            )
            .bind(wanted.organization.as_str())
            .bind(wanted.kind.as_str())
            .bind(&wanted.after)
            .bind(&wanted.supplier_id)
            .bind(limit + 1)
            .fetch_all(c)
            .await
        })?;
        let more = ids.len() > usize::try_from(limit).unwrap_or(usize::MAX);
        if more {
            ids.pop();
        }
        let next = ids.last().filter(|_| more).cloned().unwrap_or_default();
        Ok((ids, next))
    }

    async fn sync(&self, wanted: &Wanted, accounts: &[Arc<Account>], id: &str) -> Result<Vec<Synced>> {
        let refused = |reason: &str| {
            let outcome = Outcome::Refused(reason.to_owned());
            Ok(vec![Synced { record_id: id.to_owned(), integration_id: String::new(), outcome }])
        };
        let Ok(key) = RecordKey::new(wanted.organization.clone(), wanted.kind, id) else {
            return refused("is no id of a record");
        };
        let record = self.resolver.records.get(&key).await?.filter(|record| record.deleted.is_none());
        let Some(record) = record else { return refused("there is no such record") };
        if !Sight::sees(&self.known.store, &wanted.supplier_id, &key).await? {
            return refused("there is no such record");
        }
        let mut results = Vec::new();
        for account in accounts {
            if Sight::sees(&self.known.store, &account.integration.settings.supplier_id, &key).await? {
                let (record_id, integration_id) = (id.to_owned(), account.integration.id.clone());
                results.push(Synced { record_id, integration_id, outcome: self.offer(account, &record).await? });
            }
        }
        if results.is_empty() { refused("no connected integration takes it") } else { Ok(results) }
    }

    async fn offer(&self, account: &Account, record: &Record) -> Result<Outcome> {
        let synced = self.known.link(&account.integration, &record.key).await?;
        let is_linked = synced.is_some();
        let synced = synced.map(|link| link.synced).unwrap_or_default();
        let mut fields: BTreeMap<_, _> = record.values();
        if let Some(spec) = account.connector.record(record.key.kind) {
            fields.retain(|name, _| spec.fields.contains(name));
        }
        if is_linked && known::news(&fields, &synced).is_empty() {
            return Ok(Outcome::Unchanged);
        }
        let now = self.known.now();
        let letter = Letter {
            event_id: format!("sync:{}", id::uuid(now)),
            event_type: format!("{}.synced", record.key.kind.as_str()),
            time: now.to_string(),
            source: "wedsync".to_owned(),
            wedding_id: wedding(record),
            kind: record.key.kind.as_str().to_owned(),
            record_id: record.key.id.clone(),
            fields: letter::print(&record.values()),
            ..Letter::default()
        };
        let offer = letter.offer(&account.integration.id, Priority::Low as i64, "import");
        self.dispatcher.offer(vec![offer], false).await?.wait().await?;
        Ok(Outcome::Sent)
    }
}

/// The wedding that a record belongs to, by which it keeps its order.
pub(crate) fn wedding(record: &Record) -> String {
    if record.key.kind == RecordKind::Wedding {
        return record.key.id.clone();
    }
    let field = record.fields.get("wedding_id").and_then(|field| field.value.as_str());
    field.unwrap_or_default().to_owned()
}
