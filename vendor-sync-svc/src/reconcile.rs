//! The comparison of a vendor's list with what is linked: what webhooks missed is taken in, what the vendor lacks is sent,
//! and what has vanished there is told, and left as it is (closed or hidden at a vendor is not deleted).
//!
//! It runs as an import does (`import/work.rs`), over a list that is spooled once, so that it is counted and applied as it
//! was at one time. What isn't our own word coming back is told by `resolve`.

mod daily;
mod list;
mod mend;
#[cfg(test)]
pub(crate) mod tests;

use chassis::{error::Result, id::OrganizationId, secret::DataKeys, store::Store, with};

use crate::{
    connector::call::Caller,
    import::{Import, State, store::Imports, work::Pages},
    record::{Link, Links, RecordKind, external_hash},
    resolve::Resolver,
    sync::account::Accounts,
};

/// Links, or records, of one look.
const PAGE: i64 = 500;

/// What compares. Cheap to clone.
#[derive(Clone)]
pub(crate) struct Reconcile {
    pub(crate) store: Store,
    pub(crate) keys: DataKeys,
    pub(crate) links: Links,
    pub(crate) imports: Imports,
    pub(crate) accounts: Accounts,
    pub(crate) caller: Caller,
    pub(crate) resolver: Resolver,
}

impl Reconcile {
    /// How many records are linked with an integration.
    ///
    /// # Errors
    /// `Error::Unavailable` while the store is away.
    pub(crate) async fn linked(&self, organization: &OrganizationId, integration: &str) -> Result<u64> {
        let count: i64 = with!(self.store.reader(), c => {
            sqlx::query_scalar("SELECT COUNT(*) FROM record_links WHERE organization_id = $1 AND integration_id = $2")
                .bind(organization.as_str())
                .bind(integration)
                .fetch_one(c)
                .await
        })?;
        Ok(count.unsigned_abs())
    }

    /// Counts what is linked and no longer in the list, of the kinds that were listed, from where it was; false if the turn
    /// is over before the end.
    ///
    /// # Errors
    /// `Error::Unavailable` while the store is away.
    pub(crate) async fn find_vanished(&self, import: &mut Import, turn: &mut Pages) -> Result<bool> {
        let (organization, integration) = (import.order.organization.clone(), import.order.integration_id.clone());
        let account = self.accounts.of(&organization, &integration)?;
        let listed: Vec<RecordKind> = list::listed(&account)?.into_iter().map(|(kind, ..)| kind).collect();
        loop {
            let after = import.next.link.as_ref().and_then(|(kind, id)| Some((RecordKind::parse(kind)?, id.as_str())));
            let page = self.links.list(&organization, &integration, after, PAGE).await?;
            let Some(last) = page.last() else { return Ok(true) };
            let mut next = import.clone();
            next.next.link = Some((last.kind.as_str().to_owned(), last.record_id.clone()));
            for link in page.iter().filter(|link| listed.contains(&link.kind) && !link.external_id.is_empty()) {
                if !self.is_listed(&import.id, link).await? {
                    next.counts.vanished += 1;
                    next.give_example(&link.external_id, &link.record_id, "vanished", Vec::new());
                }
            }
            self.imports.save(State::Running, &next).await?;
            *import = next;
            if turn.spend() {
                return Ok(false);
            }
        }
    }

    async fn is_listed(&self, import: &str, link: &Link) -> Result<bool> {
        let key = self.keys.of(&link.organization).await?;
        let hash = external_hash(&key, &link.external_id);
        let found: Option<i64> = with!(self.store.reader(), c => sqlx::query_scalar(
            "SELECT number FROM import_items WHERE import_id = $1 AND record_kind = $2 AND external_hash = $3 LIMIT 1",
        ).bind(import).bind(link.kind.as_str()).bind(hash).fetch_optional(c).await)?;
        Ok(found.is_some())
    }
}
