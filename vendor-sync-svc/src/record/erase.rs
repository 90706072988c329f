//! Empties a record: nothing of what it said is left, and it counts as deleted by a person.
//!
//! Its row stays, for its version: what is published of a record is named by it. What else is kept of a record is
//! `crate::erase`'s.

use chassis::{
    error::{Error, Result},
    store::Tx,
    with,
};
use jiff::Timestamp;

use super::{Deletion, Record, RecordKey, Records, Source, merge};

/// What is kept of a record beside it.
const BESIDE: [&str; 2] = [
    "DELETE FROM record_conflicts WHERE organization_id = $1 AND kind = $2 AND record_id = $3",
    "DELETE FROM record_pins WHERE organization_id = $1 AND kind = $2 AND record_id = $3",
];

impl Records {
    /// Empties the record, and forgets its conflicts and pins.
    ///
    /// # Errors
    /// `Error::NotFound` if it was never heard of; those of the store.
    pub(crate) async fn erase_in(&self, tx: &mut Tx, key: &RecordKey, now: Timestamp) -> Result<()> {
        let before = self.get_in(tx, key).await?.ok_or_else(|| Error::NotFound("record".into()))?;
        let data_key = self.keys.of(&key.organization).await?;
        let deletion = Some(Deletion { at: now, source: Source::person(), seen: now });
        let mut empty = Record { deletion, version: before.version, ..Record::new(key.clone()) };
        empty.deleted = merge::deleted(&empty);
        self.write(tx, &data_key, &before, &empty).await?;
        for statement in BESIDE {
            with!(tx.on(), c => {
                sqlx::query(statement)
                    .bind(key.organization.as_str())
                    .bind(key.kind.as_str())
                    .bind(&key.id)
                    .execute(c)
                    .await
                    .map(drop)
            })?;
        }
        Ok(())
    }
}
