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
    import::{Import, store::Imports},
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
        let (mut count, mut after) = (0, None);
        while let Some(page) = self.links_after(organization, integration, &mut after).await? {
            count += page.len() as u64;
        }
        Ok(count)
    }

    /// The next links; none at their end.
    async fn links_after(
        &self,
        organization: &OrganizationId,
        integration: &str,
        after: &mut Option<(RecordKind, String)>,
    ) -> Result<Option<Vec<Link>>> {
        let place = after.as_ref().map(|(kind, id)| (*kind, id.as_str()));
        let page = self.links.list(organization, integration, place, PAGE).await?;
        *after = page.last().map(|last| (last.kind, last.record_id.clone()));
        Ok((!page.is_empty()).then_some(page))
    }

    /// Counts what is linked and no longer in the list, of the kinds that were listed.
    ///
    /// # Errors
    /// `Error::Unavailable` while the store is away.
    pub(crate) async fn find_vanished(&self, import: &mut Import) -> Result<()> {
        let (order, mut after) = (import.order.clone(), None);
        let account = self.accounts.of(&order.organization, &order.integration_id)?;
        let listed: Vec<RecordKind> = list::listed(&account)?.into_iter().map(|(kind, ..)| kind).collect();
        import.counts.vanished = 0;
        while let Some(page) = self.links_after(&order.organization, &order.integration_id, &mut after).await? {
            for link in page.iter().filter(|link| listed.contains(&link.kind) && !link.external_id.is_empty()) {
                if !self.is_listed(&import.id, link).await? {
                    import.counts.vanished += 1;
                    import.give_example(&link.external_id, &link.record_id, "vanished", Vec::new());
                }
            }
        }
        Ok(())
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
