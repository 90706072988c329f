//! A vendor that names one of our own things before we know it ourselves has made another record of it. Once the row comes,
//! the two are one: what the vendor said becomes its word on the row's record, its link goes over, and the other record ends.
//!
//! Only where nobody else has spoken on the other record, and the vendor's supplier may see the row's: else it stays.

use chassis::error::Result;

use super::{Resolver, Taking, sight::Sight, tell};
use crate::{
    integration::Integration,
    record::{Link, Record, RecordKey, Source, Update},
};

impl Resolver {
    /// Unites a record that was just made of a row with what these called by its id before.
    ///
    /// # Errors
    /// Those of the store.
    pub(crate) async fn unite(&self, key: &RecordKey, integrations: &[&Integration]) -> Result<()> {
        let (mut taking, mut united) = (self.begin_at_once(&key.organization).await?, false);
        for integration in integrations {
            if let Some((link, record)) = taking.other(key, integration).await? {
                taking.unite(key, integration, link, &record).await?;
                united = true;
            }
        }
        if united { taking.commit().await } else { Ok(()) }
    }
}

impl Taking {
    /// What the integration knows by this id, if it is its own alone and may be united.
    async fn other(&mut self, key: &RecordKey, integration: &Integration) -> Result<Option<(Link, Record)>> {
        let (links, organization) = (self.resolver.links.clone(), &key.organization);
        let named = links.by_external_in(&mut self.tx, organization, &integration.id, key.kind, &key.id).await?;
        let Some(link) = named.filter(|link| link.record_id != key.id) else { return Ok(None) };
        let known = links.by_record_in(&mut self.tx, organization, &integration.id, key.kind, &key.id).await?;
        if known.is_some() || !Sight::sees_in(&mut self.tx, &integration.settings.supplier_id, key).await? {
            return Ok(None);
        }
        let other = RecordKey { id: link.record_id.clone(), ..key.clone() };
        let record = self.resolver.records.clone().get_in(&mut self.tx, &other).await?;
        let source = Source::integration(&integration.id);
        let is_alone = |record: &Record| {
            let mut words = record.fields.values().chain(record.others.values().flatten());
            record.deletion.is_none() && words.all(|word| word.source == source)
        };
        Ok(record.filter(is_alone).map(|record| (link, record)))
    }

    async fn unite(&mut self, key: &RecordKey, integration: &Integration, link: Link, other: &Record) -> Result<()> {
        let (links, records) = (self.resolver.links.clone(), self.resolver.records.clone());
        let source = Source::integration(&integration.id);
        let times = other.fields.iter().map(|(name, field)| (name.clone(), field.at)).collect();
        let words = other.fields.iter().map(|(name, field)| (name.clone(), field.value.clone())).collect();
        let update = Update { times, ..Update::new(source.clone(), self.now, words) };
        let applied = records.apply_in(&mut self.tx, key, &update).await?;
        links.delete_in(&mut self.tx, &link).await?;
        links.put_in(&mut self.tx, &Link { record_id: key.id.clone(), ..link }).await?;
        self.tell(integration, self.now, &applied).await?;
        if tell::has_lost(&applied.record, &update) {
            self.correct(integration, &applied, &update).await?;
        }
        // A vendor's clock may be ahead: nothing that it said speaks against the end.
        let end = other.fields.values().map(|field| field.at).chain([self.now]).max().unwrap_or(self.now);
        let ended = records.apply_in(&mut self.tx, &other.key, &Update::deletion(source, end)).await?;
        self.tell(integration, self.now, &ended).await
    }
}
