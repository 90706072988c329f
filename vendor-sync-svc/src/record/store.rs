//! Records in the store: each update is merged into its locked record, with what lost, in the caller's transaction.
//!
//! Every query is scoped by the organization; what a record says is sealed for its own row, and what it is found by is a
//! keyed hash. Limit: a record's row holds at most the words of nine sources for each field.
//!
//! Whoever begins a transaction for these functions asks for the organization's data key before: the first one is made in
//! a transaction of its own, for which SQLite has no room while another is open.

use std::collections::{BTreeMap, BTreeSet};

use chassis::{
    clock::Clock,
    error::{Error, Result},
    id::OrganizationId,
    secret::{DataKey, DataKeys, place},
    store::{Engine, Store, Tx},
    with,
};
use jiff::Timestamp;
use serde::{Deserialize, Serialize};
use serde_json::Value;

use super::{
    Change, Deletion, Field, Record, RecordKey, RecordKind, Update, conflict,
    merge::{Conflict, Merged, Rules, losing, merge},
    natural, pin,
};

/// How often a record that another transaction made first is looked for again.
const TRIES: usize = 3;

/// All records. Cheap to clone.
#[derive(Clone, Debug)]
pub(crate) struct Records {
    pub(super) store: Store,
    pub(super) keys: DataKeys,
    pub(super) clock: Clock,
}

/// What an update led to, once its transaction is committed.
#[derive(Clone, Debug)]
pub(crate) struct Applied {
    pub(crate) record: Record,
    pub(crate) changes: Vec<Change>,
    /// Those that weren't there before; one whose reason `asks` is open until a person decides.
    pub(crate) conflicts: Vec<Conflict>,
    /// Whether the record wasn't known before.
    pub(crate) created: bool,
    /// Whether it is deleted now and wasn't before.
    pub(crate) deleted: bool,
}

/// What of a record is sealed.
#[derive(Serialize, Deserialize)]
struct Body {
    fields: BTreeMap<String, Field>,
    others: BTreeMap<String, Vec<Field>>,
    deletion: Option<Deletion>,
    kept: Option<Timestamp>,
}

#[derive(sqlx::FromRow)]
struct Row {
    id: String,
    version: i64,
    body: Vec<u8>,
}

impl Records {
    pub(crate) fn new(store: Store, keys: DataKeys, clock: Clock) -> Self {
        Self { store, keys, clock }
    }

    /// Merges `update` into its record, which stays locked until the transaction ends: who applies several in one takes
    /// them in the order of their keys, else two wait for each other until PostgreSQL ends one. Where nothing is new,
    /// nothing is written.
    ///
    /// # Errors
    /// `Error::Invalid` beyond a limit of updates or records, `Error::Unavailable` while the store is away.
    pub(crate) async fn apply_in(&self, tx: &mut Tx, key: &RecordKey, update: &Update) -> Result<Applied> {
        for _ in 0..TRIES {
            let before = self.get_in(tx, key).await?.unwrap_or_else(|| Record::new(key.clone()));
            if let Some(applied) = self.merge_in(tx, &before, update).await? {
                return Ok(applied);
            }
        }
        Err(made_meanwhile())
    }

    /// The same for a record that can't be there, since its id was made for it.
    ///
    /// # Errors
    /// Those of [`Records::apply_in`].
    pub(crate) async fn make_in(&self, tx: &mut Tx, key: &RecordKey, update: &Update) -> Result<Applied> {
        self.merge_in(tx, &Record::new(key.clone()), update).await?.ok_or_else(made_meanwhile)
    }

    /// None if another transaction made the record meanwhile.
    async fn merge_in(&self, tx: &mut Tx, before: &Record, update: &Update) -> Result<Option<Applied>> {
        let key = &before.key;
        let data_key = self.keys.of(&key.organization).await?;
        let rules = Rules { pins: pin::of_record(tx, key).await?, ..Rules::at(self.clock.now()) };
        let merged = merge(before, update, &rules)?;
        if merged.record == *before {
            return Ok(Some(applied(before, merged)));
        }
        let Some(version) = self.write(tx, &data_key, before, &merged.record).await? else { return Ok(None) };
        let (was, is) = (losing(before, &rules), losing(&merged.record, &rules));
        if was != is {
            conflict::note(tx, &data_key, key, &is, rules.now).await?;
        }
        let mut applied = applied(before, merged);
        applied.record.version = version;
        Ok(Some(applied))
    }

    /// The record, a deleted one too; none if it was never heard of.
    ///
    /// # Errors
    /// `Error::Unavailable` while the store is away.
    pub(crate) async fn get(&self, key: &RecordKey) -> Result<Option<Record>> {
        let row = with!(self.store.reader(), c => {
            sqlx::query_as::<_, Row>(
                "SELECT id, version, body FROM records WHERE organization_id = $1 AND kind = $2 AND id = $3",
            )
            .bind(key.organization.as_str())
            .bind(key.kind.as_str())
            .bind(&key.id)
            .fetch_optional(c)
            .await
        })?;
        let data_key = self.keys.of(&key.organization).await?;
        row.map(|row| open(&data_key, &key.organization, key.kind, &row)).transpose()
    }

    /// As [`Records::get`], as the transaction sees it, and locked until its end.
    ///
    /// # Errors
    /// `Error::Unavailable` while the store is away.
    pub(crate) async fn get_in(&self, tx: &mut Tx, key: &RecordKey) -> Result<Option<Record>> {
        // On SQLite a transaction that writes is alone already.
        let query = match tx.on() {
            Engine::Sqlite(_) => {
                "SELECT id, version, body FROM records WHERE organization_id = $1 AND kind = $2 AND id = $3"
            }
            Engine::Postgres(_) => {
                "SELECT id, version, body FROM records WHERE organization_id = $1 AND kind = $2 AND id = $3 FOR UPDATE"
            }
        };
        let row = with!(tx.on(), c => {
            sqlx::query_as::<_, Row>(query)
                .bind(key.organization.as_str())
                .bind(key.kind.as_str())
                .bind(&key.id)
                .fetch_optional(c)
                .await
        })?;
        let data_key = self.keys.of(&key.organization).await?;
        row.map(|row| open(&data_key, &key.organization, key.kind, &row)).transpose()
    }

    /// At most `limit`, by id, after `after`; deleted ones left out.
    ///
    /// # Errors
    /// `Error::Unavailable` while the store is away.
    pub(crate) async fn list(
        &self,
        organization: &OrganizationId,
        kind: RecordKind,
        after: &str,
        limit: i64,
    ) -> Result<Vec<Record>> {
        let rows = with!(self.store.reader(), c => {
            sqlx::query_as::<_, Row>(
                "SELECT id, version, body FROM records \
                 WHERE organization_id = $1 AND kind = $2 AND id > $3 AND deleted_at IS NULL ORDER BY id LIMIT $4",
            )
            .bind(organization.as_str())
            .bind(kind.as_str())
            .bind(after)
            .bind(limit)
            .fetch_all(c)
            .await
        })?;
        let data_key = self.keys.of(organization).await?;
        rows.iter().map(|row| open(&data_key, organization, kind, row)).collect()
    }

    /// Ids of records, at most two, that share a natural key with `fields`, deleted ones left out. Two mean that it
    /// doesn't tell.
    ///
    /// # Errors
    /// `Error::Unavailable` while the store is away.
    pub(crate) async fn by_natural_key_in(
        &self,
        tx: &mut Tx,
        organization: &OrganizationId,
        kind: RecordKind,
        fields: &BTreeMap<String, Value>,
    ) -> Result<Vec<String>> {
        let data_key = self.keys.of(organization).await?;
        let mut found = BTreeSet::new();
        for hash in natural::hashes(&data_key, kind, fields) {
            let ids = with!(tx.on(), c => {
                sqlx::query_scalar::<_, String>(
                    "SELECT record_id FROM record_keys WHERE organization_id = $1 AND kind = $2 AND hash = $3 LIMIT 2",
                )
                .bind(organization.as_str())
                .bind(kind.as_str())
                .bind(&hash)
                .fetch_all(c)
                .await
            })?;
            found.extend(ids);
        }
        Ok(found.into_iter().take(2).collect())
    }

    /// Its new version; none if another transaction made the record meanwhile.
    pub(super) async fn write(
        &self,
        tx: &mut Tx,
        data_key: &DataKey,
        before: &Record,
        record: &Record,
    ) -> Result<Option<u64>> {
        let (key, version) = (&record.key, before.version + 1);
        let query = if before.version == 0 {
            "INSERT INTO records (organization_id, kind, id, version, deleted_at, updated_at, body) \
             VALUES ($1, $2, $3, $4, $5, $6, $7) ON CONFLICT DO NOTHING"
        } else {
            "UPDATE records SET version = $4, deleted_at = $5, updated_at = $6, body = $7 \
             WHERE organization_id = $1 AND kind = $2 AND id = $3"
        };
        let body = seal(data_key, record)?;
        let written = with!(tx.on(), c => {
            sqlx::query(query)
                .bind(key.organization.as_str())
                .bind(key.kind.as_str())
                .bind(&key.id)
                .bind(version.cast_signed())
                .bind(record.deleted.as_ref().map(|(at, _)| at.as_microsecond()))
                .bind(self.clock.now_micros())
                .bind(body)
                .execute(c)
                .await
                .map(|done| done.rows_affected())
        })?;
        if written == 0 {
            return Ok(None);
        }
        index(tx, data_key, before, record).await?;
        Ok(Some(version))
    }
}

fn made_meanwhile() -> Error {
    Error::Unavailable("the record was made by another transaction: try again".to_owned())
}

fn applied(before: &Record, merged: Merged) -> Applied {
    let Merged { record, changes, conflicts } = merged;
    let created = before.version == 0 && record != *before;
    let deleted = before.deleted.is_none() && record.deleted.is_some();
    Applied { record, changes, conflicts, created, deleted }
}

/// Keeps what it is found by; a deleted one is not found.
async fn index(tx: &mut Tx, data_key: &DataKey, before: &Record, record: &Record) -> Result<()> {
    let of = |record: &Record| match record.deleted {
        None => natural::hashes(data_key, record.key.kind, &record.values()),
        Some(_) => Vec::new(),
    };
    let (was, is) = (of(before), of(record));
    let key = &record.key;
    for hash in was.iter().filter(|hash| !is.contains(hash)) {
        with!(tx.on(), c => {
            sqlx::query(
                "DELETE FROM record_keys WHERE organization_id = $1 AND kind = $2 AND hash = $3 AND record_id = $4",
            )
            .bind(key.organization.as_str()).bind(key.kind.as_str()).bind(hash).bind(&key.id).execute(c).await.map(drop)
        })?;
    }
    for hash in is.iter().filter(|hash| !was.contains(hash)) {
        with!(tx.on(), c => {
            sqlx::query("INSERT INTO record_keys (organization_id, kind, hash, record_id) VALUES ($1, $2, $3, $4)")
                .bind(key.organization.as_str()).bind(key.kind.as_str()).bind(hash).bind(&key.id).execute(c).await.map(drop)
        })?;
    }
    Ok(())
}

fn row_place(kind: RecordKind, id: &str) -> Vec<u8> {
    place("records", "body", &format!("{}/{id}", kind.as_str()))
}

fn seal(data_key: &DataKey, record: &Record) -> Result<Vec<u8>> {
    let Record { fields, others, deletion, kept, .. } = record.clone();
    let body = serde_json::to_vec(&Body { fields, others, deletion, kept }).map_err(Error::internal)?;
    Ok(data_key.seal(&row_place(record.key.kind, &record.key.id), &body))
}

fn open(data_key: &DataKey, organization: &OrganizationId, kind: RecordKind, row: &Row) -> Result<Record> {
    let plain = data_key.open(&row_place(kind, &row.id), &row.body)?;
    let Body { fields, others, deletion, kept } = serde_json::from_slice(&plain).map_err(Error::internal)?;
    let key = RecordKey { organization: organization.clone(), kind, id: row.id.clone() };
    let version = row.version.unsigned_abs();
    let mut record = Record { key, fields, others, deletion, kept, deleted: None, version };
    record.deleted = super::merge::deleted(&record);
    Ok(record)
}
