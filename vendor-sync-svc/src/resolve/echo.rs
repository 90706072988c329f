//! Our own word coming back. What we write to a vendor is noted field by field, as keyed hashes; a value that comes from
//! there and was written by us is an echo, even when we have written another since.
//!
//! Each write excuses one return, and with it all earlier ones of its field: a vendor's person who chooses an old value
//! again is heard. Time alone never makes an echo; it only ends how long a write is remembered.

use std::collections::{BTreeMap, BTreeSet};

use chassis::{error::Result, secret::DataKey, store::Tx, with};
use jiff::{SignedDuration, Timestamp};
use serde_json::Value;

use crate::record::RecordKey;

/// How often a vendor is told in a day that its value lost.
pub(crate) const MOST_CORRECTIONS: i64 = 3;
/// How long a write is remembered, and how many fields of one record.
const KEEP: SignedDuration = SignedDuration::from_hours(24);
const MOST: i64 = 1_024;

/// What was written to one vendor of one record.
pub(crate) struct OwnWrites<'a> {
    pub(crate) key: &'a DataKey,
    pub(crate) integration: &'a str,
    pub(crate) record: &'a RecordKey,
    /// What says so now: the same word taken again is excused again. Empty: it can't be told from another.
    pub(crate) word: &'a str,
}

impl OwnWrites<'_> {
    /// Notes what is written, in a transaction before the vendor is asked.
    pub(crate) async fn note_in(&self, tx: &mut Tx, fields: &BTreeMap<String, Value>, now: Timestamp) -> Result<()> {
        for (field, value) in fields {
            with!(tx.on(), c => {
                sqlx::query(
                    "INSERT INTO own_writes (organization_id, integration_id, kind, record_id, field, hash, written_at, echoed, word) \
                     VALUES ($1, $2, $3, $4, $5, $6, $7, 0, '')",
                )
                .bind(self.record.organization.as_str())
                .bind(self.integration)
                .bind(self.record.kind.as_str())
                .bind(&self.record.id)
                .bind(field)
                .bind(&self.hash(field, value)[..])
                .bind(now.as_microsecond())
                .execute(c)
                .await
                .map(drop)
            })?;
        }
        self.forget_in(tx, now).await
    }

    /// Forgets what was noted at this time: it wasn't written after all.
    pub(crate) async fn withdraw_in(&self, tx: &mut Tx, fields: &BTreeMap<String, Value>, at: Timestamp) -> Result<()> {
        for (field, value) in fields {
            with!(tx.on(), c => {
                sqlx::query(
                    "DELETE FROM own_writes WHERE integration_id = $1 AND kind = $2 AND record_id = $3 AND field = $4 \
                     AND hash = $5 AND written_at = $6 AND echoed = 0",
                )
                .bind(self.integration)
                .bind(self.record.kind.as_str())
                .bind(&self.record.id)
                .bind(field)
                .bind(&self.hash(field, value)[..])
                .bind(at.as_microsecond())
                .execute(c)
                .await
                .map(drop)
            })?;
        }
        Ok(())
    }

    /// Which of these fields are our own word: each is excused this once.
    pub(crate) async fn excuse_in(&self, tx: &mut Tx, fields: &BTreeMap<String, Value>) -> Result<BTreeSet<String>> {
        let waiting: Vec<(i64, String, Vec<u8>)> = with!(tx.on(), c => {
            sqlx::query_as(
                "SELECT id, field, hash FROM own_writes WHERE integration_id = $1 AND kind = $2 AND record_id = $3 AND \
                 (echoed = 0 OR (word = $5 AND word <> '')) ORDER BY id DESC LIMIT $4",
            )
            .bind(self.integration)
            .bind(self.record.kind.as_str())
            .bind(&self.record.id)
            .bind(MOST)
            .bind(self.word)
            .fetch_all(c)
            .await
        })?;
        let mut excused = BTreeSet::new();
        for (field, value) in fields {
            let hash = self.hash(field, value);
            let Some((newest, ..)) = waiting.iter().find(|(_, of, said)| of == field && *said == hash) else {
                continue;
            };
            self.end_in(tx, field, *newest).await?;
            excused.insert(field.clone());
        }
        Ok(excused)
    }

    /// Fields whose last write hasn't come back: an older image of the thing says what they were before it.
    pub(crate) async fn waiting_in(&self, tx: &mut Tx) -> Result<BTreeSet<String>> {
        let fields: Vec<String> = with!(tx.on(), c => {
            sqlx::query_scalar(
                "SELECT DISTINCT field FROM own_writes WHERE integration_id = $1 AND kind = $2 AND record_id = $3 AND echoed = 0",
            )
            .bind(self.integration)
            .bind(self.record.kind.as_str())
            .bind(&self.record.id)
            .fetch_all(c)
            .await
        })?;
        Ok(fields.into_iter().collect())
    }

    /// Whether these are most likely what we wrote, of which nothing has come back: most of what was written, of what they
    /// speak of, is so.
    pub(crate) async fn is_like_in(&self, tx: &mut Tx, fields: &BTreeMap<String, Value>) -> Result<bool> {
        let written: Vec<(String, Vec<u8>)> = with!(tx.on(), c => {
            sqlx::query_as(
                "SELECT field, hash FROM own_writes WHERE integration_id = $1 AND kind = $2 AND record_id = $3 AND echoed = 0 \
                 ORDER BY id LIMIT $4",
            )
            .bind(self.integration)
            .bind(self.record.kind.as_str())
            .bind(&self.record.id)
            .bind(MOST)
            .fetch_all(c)
            .await
        })?;
        // The last of each field; what was cleared tells nothing.
        let mut last: BTreeMap<String, Vec<u8>> = written.into_iter().collect();
        last.retain(|field, hash| fields.contains_key(field) && *hash != self.hash(field, &Value::Null));
        let equal = last.iter().filter(|(field, hash)| self.hash(field, &fields[*field]) == hash.as_slice()).count();
        Ok(equal * 2 > last.len())
    }

    /// Which of these fields have a value that we wrote, as far as it is remembered.
    pub(crate) async fn written_in(&self, tx: &mut Tx, fields: &BTreeMap<String, Value>) -> Result<BTreeSet<String>> {
        let mut written = BTreeSet::new();
        for (field, value) in fields {
            let found: Option<i64> = with!(tx.on(), c => {
                sqlx::query_scalar(
                    "SELECT id FROM own_writes WHERE integration_id = $1 AND kind = $2 AND record_id = $3 AND field = $4 \
                     AND hash = $5 LIMIT 1",
                )
                .bind(self.integration)
                .bind(self.record.kind.as_str())
                .bind(&self.record.id)
                .bind(field)
                .bind(&self.hash(field, value)[..])
                .fetch_optional(c)
                .await
            })?;
            written.extend(found.map(|_| field.clone()));
        }
        Ok(written)
    }

    /// No write of a field up to this one excuses anything any more.
    async fn end_in(&self, tx: &mut Tx, field: &str, newest: i64) -> Result<()> {
        with!(tx.on(), c => {
            sqlx::query(
                "UPDATE own_writes SET echoed = 1, word = CASE WHEN id = $5 THEN $6 ELSE word END WHERE integration_id = $1 AND kind = $2 \
                 AND record_id = $3 AND field = $4 AND id <= $5",
            )
            .bind(self.integration)
            .bind(self.record.kind.as_str())
            .bind(&self.record.id)
            .bind(field)
            .bind(newest)
            .bind(self.word)
            .execute(c)
            .await
            .map(drop)
        })?;
        Ok(())
    }

    /// How often the last day the one of these fields that was written most was written so.
    pub(crate) async fn count_in(&self, tx: &mut Tx, fields: &BTreeMap<String, Value>, now: Timestamp) -> Result<i64> {
        let mut most = 0;
        for (field, value) in fields {
            let count: i64 = with!(tx.on(), c => {
                sqlx::query_scalar(
                    "SELECT COUNT(*) FROM own_writes WHERE integration_id = $1 AND kind = $2 AND record_id = $3 AND field = $4 \
                     AND hash = $5 AND written_at > $6",
                )
                .bind(self.integration)
                .bind(self.record.kind.as_str())
                .bind(&self.record.id)
                .bind(field)
                .bind(&self.hash(field, value)[..])
                .bind((now - KEEP).as_microsecond())
                .fetch_one(c)
                .await
            })?;
            most = most.max(count);
        }
        Ok(most)
    }

    async fn forget_in(&self, tx: &mut Tx, now: Timestamp) -> Result<()> {
        with!(tx.on(), c => {
            sqlx::query(
                "DELETE FROM own_writes WHERE integration_id = $1 AND kind = $2 AND record_id = $3 AND (written_at <= $4 OR id <= \
                 (SELECT id FROM own_writes WHERE integration_id = $1 AND kind = $2 AND record_id = $3 ORDER BY id DESC LIMIT 1 OFFSET $5))",
            )
            .bind(self.integration)
            .bind(self.record.kind.as_str())
            .bind(&self.record.id)
            .bind((now - KEEP).as_microsecond())
            .bind(MOST)
            .execute(c)
            .await
            .map(drop)
        })?;
        Ok(())
    }

    fn hash(&self, field: &str, value: &Value) -> [u8; 32] {
        let said = serde_json::to_vec(&(field, value)).expect("JSON values are JSON");
        self.key.mac("own write", &said)
    }
}

/// Whether what is known agrees with what is said; nothing known and null are the same.
pub(crate) fn equal(known: Option<&Value>, said: &Value) -> bool {
    known.unwrap_or(&Value::Null) == said
}
