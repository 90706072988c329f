//! Which record a vendor means: the linked one; else the one whose own id it gives; else the only one with its natural key;
//! else the only one that it was asked to make, and never answered of, with what was written there; else a new one.
//!
//! Invariant: an integration of a supplier means no record that isn't that supplier's, whatever it says; nor one that it is
//! linked with from when it was.

use chassis::{error::Result, id};

use super::{Incoming, Taking, echo::OwnWrites, sight::Sight};
use crate::{
    integration::Integration,
    record::{Link, RecordKey},
    sync::making,
};

/// The record that is meant.
pub(super) struct Found {
    pub(super) key: RecordKey,
    pub(super) link: Option<Link>,
    pub(super) is_new: bool,
    /// False: its supplier has left the wedding.
    pub(super) is_seen: bool,
}

impl Taking {
    pub(super) async fn find(&mut self, integration: &Integration, incoming: &Incoming) -> Result<Found> {
        let (organization, links) = (&integration.organization, self.resolver.links.clone());
        let linked = links
            .by_external_in(&mut self.tx, organization, &integration.id, incoming.kind, &incoming.external_id)
            .await?;
        if let Some(link) = linked {
            let key = RecordKey::new(organization.clone(), incoming.kind, link.record_id.as_str())?;
            let is_seen = Sight::sees_in(&mut self.tx, &integration.settings.supplier_id, &key).await?;
            return Ok(Found { key, link: Some(link), is_new: false, is_seen });
        }
        if let Some(found) = self.by_own_id(integration, incoming).await? {
            return Ok(found);
        }
        if let Some(found) = self.by_natural_key(integration, incoming).await? {
            return Ok(found);
        }
        if let Some(found) = self.by_what_was_written(integration, incoming).await? {
            return Ok(found);
        }
        let key = RecordKey::new(organization.clone(), incoming.kind, id::uuid(self.now))?;
        Ok(Found { key, link: None, is_new: true, is_seen: true })
    }

    async fn by_own_id(&mut self, integration: &Integration, incoming: &Incoming) -> Result<Option<Found>> {
        let key = RecordKey::new(integration.organization.clone(), incoming.kind, incoming.external_id.as_str());
        let Ok(key) = key else { return Ok(None) };
        if self.resolver.records.clone().get_in(&mut self.tx, &key).await?.is_none() {
            return Ok(None);
        }
        self.unlinked(integration, incoming, key).await
    }

    async fn by_natural_key(&mut self, integration: &Integration, incoming: &Incoming) -> Result<Option<Found>> {
        let (organization, records) = (&integration.organization, self.resolver.records.clone());
        let ids = records.by_natural_key_in(&mut self.tx, organization, incoming.kind, &incoming.fields).await?;
        // Two mean that the key doesn't tell, whoever may see them.
        let [id] = ids.as_slice() else { return Ok(None) };
        let key = RecordKey::new(organization.clone(), incoming.kind, id.as_str())?;
        self.unlinked(integration, incoming, key).await
    }

    /// While one is being made the answer tells more: whoever asks waits for it.
    async fn by_what_was_written(&mut self, integration: &Integration, incoming: &Incoming) -> Result<Option<Found>> {
        if self.resolver.making.is_any(&integration.id, incoming.kind) {
            return Ok(None);
        }
        let (data_key, mut like) = (self.key.clone(), Vec::new());
        for id in making::unknown_in(&mut self.tx, &integration.id, incoming.kind, self.now).await? {
            let key = RecordKey::new(integration.organization.clone(), incoming.kind, id)?;
            let own = OwnWrites { key: &data_key, integration: &integration.id, record: &key, word: "" };
            if own.is_like_in(&mut self.tx, &incoming.fields).await? {
                like.push(key);
            }
        }
        // Two alike can't be told apart.
        match <[RecordKey; 1]>::try_from(like) {
            Ok([key]) => self.unlinked(integration, incoming, key).await,
            Err(_) => Ok(None),
        }
    }

    /// The record, if the integration may see it and knows it under no other id.
    async fn unlinked(
        &mut self,
        integration: &Integration,
        incoming: &Incoming,
        key: RecordKey,
    ) -> Result<Option<Found>> {
        if !Sight::sees_in(&mut self.tx, &integration.settings.supplier_id, &key).await? {
            return Ok(None);
        }
        let links = self.resolver.links.clone();
        let link = links.by_record_in(&mut self.tx, &key.organization, &integration.id, key.kind, &key.id).await?;
        let is_other = |link: &Link| !link.external_id.is_empty() && link.external_id != incoming.external_id;
        if link.as_ref().is_some_and(is_other) {
            return Ok(None);
        }
        Ok(Some(Found { key, link, is_new: false, is_seen: true }))
    }
}
