//! What the vendor lacks, or has otherwise than we do though it never said so, is written to it by way of its lane.
//!
//! How far it is, is committed with the letters of each page: it goes on there, and writes none twice.

use std::collections::{BTreeMap, BTreeSet};

use chassis::error::Result;
use serde_json::Value;

use super::{PAGE, Reconcile, list::listed};
use crate::{
    connector::RecordSpec,
    import::{Import, State, work::Pages},
    record::{Link, Record},
    resolve::sight::Sight,
    sync::{
        account::Account,
        bulk, known,
        letter::{self, Letter},
    },
};

impl Reconcile {
    /// Finds what differs here, counts it, and, unless it is a dry run, has it sent, from where it was; false if the turn is
    /// over before the end.
    ///
    /// # Errors
    /// Those of the store; `Error::Unavailable` while too much waits: it goes on there.
    pub(crate) async fn mend(&self, import: &mut Import, turn: &mut Pages) -> Result<bool> {
        let account = self.accounts.of(&import.order.organization, &import.order.integration_id)?;
        for (kind, spec, _) in listed(&account)? {
            loop {
                let after = match &import.next.mended {
                    Some((at, _)) if at.as_str() > kind.as_str() => break,
                    Some((at, id)) if at == kind.as_str() => id.as_str(),
                    _ => "",
                };
                let page = self.resolver.records.list(&import.order.organization, kind, after, PAGE).await?;
                let Some(last) = page.last() else { break };
                let mut next = import.clone();
                next.next.mended = Some((kind.as_str().to_owned(), last.key.id.clone()));
                self.mend_page(&account, &mut next, spec, &page).await?;
                *import = next;
                if turn.spend() {
                    return Ok(false);
                }
            }
        }
        Ok(true)
    }

    async fn mend_page(
        &self,
        account: &Account,
        import: &mut Import,
        spec: &RecordSpec,
        records: &[Record],
    ) -> Result<()> {
        let (integration, organization) = (&account.integration, &import.order.organization.clone());
        self.resolver.outbox.check(organization).await?;
        let key = self.keys.of(organization).await?;
        let mut tx = self.store.begin().await?;
        for record in records {
            let supplier = integration.settings.supplier_id.as_str();
            if !Sight::sees_in(&mut tx, supplier, &record.key).await? {
                continue;
            }
            let link = self.links.by_record_in(&mut tx, organization, &integration.id, record.key.kind, &record.key.id);
            let link = link.await?;
            let news = unsent(record, link.as_ref(), spec);
            if news.is_empty() {
                continue;
            }
            import.counts.sent += 1;
            let external = link.map(|link| link.external_id).unwrap_or_default();
            import.give_example(&external, &record.key.id, "unsent", news.keys().cloned().collect());
            if !import.order.dry_run {
                let letter = self.letter(import, record, &news);
                self.resolver.outbox.put_letter_in(&mut tx, &key, integration, &letter).await?;
            }
        }
        self.imports.save_in(&mut tx, State::Running, import).await?;
        tx.commit().await?;
        self.imports.tell();
        self.resolver.outbox.wake();
        Ok(())
    }

    fn letter(&self, import: &Import, record: &Record, news: &BTreeMap<String, Value>) -> Letter {
        let kind = record.key.kind.as_str();
        Letter {
            event_id: format!("reconcile:{}:{kind}:{}", import.id, record.key.id),
            event_type: format!("{kind}.reconciled"),
            time: import.created_at.to_string(),
            source: "wedsync".to_owned(),
            wedding_id: bulk::wedding(record),
            kind: kind.to_owned(),
            record_id: record.key.id.clone(),
            fields: letter::print(&record.values()),
            changed: news.keys().cloned().collect(),
            low: true,
            ..Letter::default()
        }
    }
}

/// Fields that the vendor doesn't have as they stand. What it was never told of is its to make, where it can.
fn unsent(record: &Record, link: Option<&Link>, spec: &RecordSpec) -> BTreeMap<String, Value> {
    let can = if link.is_some() { &spec.update } else { &spec.create };
    if can.is_none() || link.is_some_and(|link| link.handed_over) {
        return BTreeMap::new();
    }
    let values = allowed(record.values(), &spec.fields);
    let none = BTreeMap::new();
    known::news(&values, link.map_or(&none, |link| &link.synced))
}

fn allowed(mut values: BTreeMap<String, Value>, fields: &BTreeSet<String>) -> BTreeMap<String, Value> {
    values.retain(|name, _| fields.contains(name));
    values
}
