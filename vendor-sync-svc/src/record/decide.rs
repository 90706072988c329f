//! What people say of records: a conflict decided, a field pinned or no longer.
//!
//! Each gives what it led to, in the caller's transaction, which tells it on (`resolve`): a decision changes a record like
//! any other word, by the source "person".

use std::collections::BTreeMap;

use chassis::{
    error::{Error, Result},
    id::OrganizationId,
    store::Tx,
};
use jiff::{SignedDuration, Timestamp};
use serde_json::Value;

use super::{
    Applied, Record, RecordKey, RecordKind, Records, Source, Update,
    conflict::{self, Decision, Entry, Filter, State},
    pin::{self, Pin},
};

/// How somebody ends a conflict.
#[derive(Clone, Debug, PartialEq)]
pub(crate) enum Resolution {
    /// What stands is right; of a deletion: the record stays.
    Keep,
    /// What lost is right; of a deletion: the record goes.
    Take,
    /// Neither is: this is.
    Value(Value),
}

impl Resolution {
    fn as_str(&self) -> &'static str {
        match self {
            Self::Keep => "keep",
            Self::Take => "take",
            Self::Value(_) => "value",
        }
    }
}

impl Records {
    /// Decides a conflict, and whatever else lost on its field, in the name of `by`.
    ///
    /// # Errors
    /// `Error::NotFound` for one that isn't the organization's or that its source has taken back;
    /// `Error::FailedPrecondition` where somebody has decided; `Error::Invalid` for a value in place of a whole record.
    pub(crate) async fn decide_in(
        &self,
        tx: &mut Tx,
        organization: &OrganizationId,
        id: &str,
        resolution: &Resolution,
        by: &str,
    ) -> Result<Applied> {
        let data_key = self.keys.of(organization).await?;
        let key = conflict::get_in(tx, &data_key, organization, id).await?.key;
        // Locked before it is looked at again: an update may have ended the conflict meanwhile.
        let record = self.get_in(tx, &key).await?.ok_or_else(|| Error::NotFound("record".into()))?;
        let entry = conflict::get_in(tx, &data_key, organization, id).await?;
        if entry.state == State::Resolved {
            return Err(Error::FailedPrecondition("the conflict is resolved already".to_owned()));
        }
        let now = self.clock.now();
        let update = word(&entry, resolution, last_word(&record, now))?;
        let (resolution, by) = (resolution.as_str().to_owned(), by.to_owned());
        conflict::resolve(tx, &key, &entry.conflict.field, &Decision { resolution, by, at: now }).await?;
        self.apply_in(tx, &key, &update).await
    }

    /// Pins a field. Of one record, it counts at once, and what that led to is given; of all, with each one's next update.
    ///
    /// # Errors
    /// `Error::FailedPrecondition` beyond 10,000 pins.
    pub(crate) async fn pin_in(
        &self,
        tx: &mut Tx,
        organization: &OrganizationId,
        pin: &Pin,
    ) -> Result<Option<Applied>> {
        pin::put_in(tx, organization, pin).await?;
        self.settle_in(tx, organization, pin.kind, &pin.record_id).await
    }

    /// Ends a pin; as [`Records::pin_in`].
    ///
    /// # Errors
    /// `Error::NotFound` where nothing is pinned.
    pub(crate) async fn unpin_in(
        &self,
        tx: &mut Tx,
        organization: &OrganizationId,
        kind: RecordKind,
        field: &str,
        record_id: &str,
    ) -> Result<Option<Applied>> {
        pin::delete_in(tx, organization, kind, field, record_id).await?;
        self.settle_in(tx, organization, kind, record_id).await
    }

    /// Has what is known already follow new rules.
    async fn settle_in(
        &self,
        tx: &mut Tx,
        organization: &OrganizationId,
        kind: RecordKind,
        record_id: &str,
    ) -> Result<Option<Applied>> {
        if record_id.is_empty() {
            return Ok(None);
        }
        let key = RecordKey::new(organization.clone(), kind, record_id)?;
        let nothing = Update::new(Source::person(), self.clock.now(), BTreeMap::new());
        self.apply_in(tx, &key, &nothing).await.map(Some)
    }

    /// Pins, at most `limit`, by kind, record and field, after those of `after`.
    ///
    /// # Errors
    /// `Error::Unavailable` while the store is away.
    pub(crate) async fn pins(
        &self,
        organization: &OrganizationId,
        after: (&str, &str, &str),
        limit: i64,
    ) -> Result<Vec<Pin>> {
        pin::list(&self.store, organization, after, limit).await
    }

    /// The conflict log: at most `limit`, oldest first, after the one with the id `after`.
    ///
    /// # Errors
    /// `Error::Unavailable` while the store is away.
    pub(crate) async fn conflicts(
        &self,
        organization: &OrganizationId,
        filter: &Filter,
        after: &str,
        limit: i64,
    ) -> Result<Vec<Entry>> {
        conflict::list((&self.store, &self.keys), organization, filter, after, limit).await
    }
}

fn word(entry: &Entry, resolution: &Resolution, at: Timestamp) -> Result<Update> {
    let (person, conflict) = (Source::person(), &entry.conflict);
    if conflict.field.is_empty() {
        let kept = Update { kept: true, ..Update::new(person.clone(), at, BTreeMap::new()) };
        return match resolution {
            Resolution::Keep => Ok(kept),
            Resolution::Take => Ok(Update::deletion(person, at)),
            Resolution::Value(_) => Err(Error::invalid("value", "is for fields: keep the record or take the deletion")),
        };
    }
    let value = match resolution {
        Resolution::Keep => conflict.kept.as_ref().map_or(Value::Null, |kept| kept.value.clone()),
        Resolution::Take => conflict.losing.value.clone(),
        Resolution::Value(value) => value.clone(),
    };
    Ok(Update::new(person, at, BTreeMap::from([(conflict.field.clone(), value)])))
}

/// Now, or just after what a clock ahead of ours has said.
fn last_word(record: &Record, now: Timestamp) -> Timestamp {
    let said = record.fields.values().chain(record.others.values().flatten()).map(|field| field.at);
    let newest = said.chain(record.deletion.as_ref().map(|d| d.at)).max();
    newest.map_or(now, |newest| now.max(newest + SignedDuration::from_micros(1)))
}
