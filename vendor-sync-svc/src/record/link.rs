//! Links: what a record is called in a linked system, and what was last agreed with it.
//!
//! One per integration, kind and record, and no two with the same external id: the store refuses a second. Ids and values
//! of vendors are sealed; an external id is found by its keyed hash.

use std::collections::BTreeMap;

use chassis::{
    error::{Error, Result},
    id::OrganizationId,
    secret::{DataKey, DataKeys, place},
    store::{Store, Tx},
    with,
};
use jiff::Timestamp;
use serde::{Deserialize, Serialize};
use serde_json::Value;

use super::RecordKind;

/// Systems that one record is shown to be linked with.
const MOST_OF_RECORD: i64 = 1_000;

/// One record in one linked system.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct Link {
    pub(crate) organization: OrganizationId,
    pub(crate) integration_id: String,
    pub(crate) kind: RecordKind,
    pub(crate) record_id: String,
    /// Empty: handed over, and not known yet what it is called there.
    pub(crate) external_id: String,
    /// Of the last state that we know there: an ETag, a number, a time. Empty: it has none.
    pub(crate) external_version: String,
    /// The version that our own last write led to: what comes back with it is our echo. Empty: none is known.
    pub(crate) own_version: String,
    /// Canonical fields as last agreed: the base of a three-way merge.
    pub(crate) synced: BTreeMap<String, Value>,
    /// When that was.
    pub(crate) synced_at: Timestamp,
    /// Given to an inbox that a person there has yet to accept.
    pub(crate) handed_over: bool,
}

/// What of a link is sealed.
#[derive(Serialize, Deserialize)]
struct Body {
    external_id: String,
    external_version: String,
    own_version: String,
    synced: BTreeMap<String, Value>,
    synced_at: Timestamp,
    handed_over: bool,
}

#[derive(sqlx::FromRow)]
struct Row {
    integration_id: String,
    kind: String,
    record_id: String,
    body: Vec<u8>,
}

/// All links. Cheap to clone.
#[derive(Clone, Debug)]
pub(crate) struct Links {
    store: Store,
    keys: DataKeys,
}

const BY_EXTERNAL: &str = "SELECT integration_id, kind, record_id, body FROM record_links \
     WHERE organization_id = $1 AND integration_id = $2 AND kind = $3 AND external_hash = $4";
const BY_RECORD: &str = "SELECT integration_id, kind, record_id, body FROM record_links \
     WHERE organization_id = $1 AND integration_id = $2 AND kind = $3 AND record_id = $4";

impl Links {
    pub(crate) fn new(store: Store, keys: DataKeys) -> Self {
        Self { store, keys }
    }

    /// # Errors
    /// `Error::Unavailable` while the store is away; likewise for all that reads.
    pub(crate) async fn by_external_in(
        &self,
        tx: &mut Tx,
        organization: &OrganizationId,
        integration_id: &str,
        kind: RecordKind,
        external_id: &str,
    ) -> Result<Option<Link>> {
        let key = self.keys.of(organization).await?;
        let row = with!(tx.on(), c => {
            sqlx::query_as::<_, Row>(BY_EXTERNAL)
                .bind(organization.as_str())
                .bind(integration_id)
                .bind(kind.as_str())
                .bind(external_hash(&key, external_id))
                .fetch_optional(c)
                .await
        })?;
        row.map(|row| open(&key, organization, row)).transpose()
    }

    pub(crate) async fn by_record(
        &self,
        organization: &OrganizationId,
        integration_id: &str,
        kind: RecordKind,
        record_id: &str,
    ) -> Result<Option<Link>> {
        let row = with!(self.store.reader(), c => {
            sqlx::query_as::<_, Row>(BY_RECORD)
                .bind(organization.as_str())
                .bind(integration_id)
                .bind(kind.as_str())
                .bind(record_id)
                .fetch_optional(c)
                .await
        })?;
        let key = self.keys.of(organization).await?;
        row.map(|row| open(&key, organization, row)).transpose()
    }

    pub(crate) async fn by_record_in(
        &self,
        tx: &mut Tx,
        organization: &OrganizationId,
        integration_id: &str,
        kind: RecordKind,
        record_id: &str,
    ) -> Result<Option<Link>> {
        let row = with!(tx.on(), c => {
            sqlx::query_as::<_, Row>(BY_RECORD)
                .bind(organization.as_str())
                .bind(integration_id)
                .bind(kind.as_str())
                .bind(record_id)
                .fetch_optional(c)
                .await
        })?;
        let key = self.keys.of(organization).await?;
        row.map(|row| open(&key, organization, row)).transpose()
    }

    /// Every system that a record is linked with, by integration; at most 1,000.
    pub(crate) async fn of_record(
        &self,
        organization: &OrganizationId,
        kind: RecordKind,
        record_id: &str,
    ) -> Result<Vec<Link>> {
        let rows = with!(self.store.reader(), c => {
            sqlx::query_as::<_, Row>(
                "SELECT integration_id, kind, record_id, body FROM record_links \
                 WHERE organization_id = $1 AND kind = $2 AND record_id = $3 ORDER BY integration_id LIMIT $4",
            )
            .bind(organization.as_str())
            .bind(kind.as_str())
            .bind(record_id)
            .bind(MOST_OF_RECORD)
            .fetch_all(c)
            .await
        })?;
        let key = self.keys.of(organization).await?;
        rows.into_iter().map(|row| open(&key, organization, row)).collect()
    }

    /// Stores it in place of the one of the same integration, kind and record.
    ///
    /// # Errors
    /// `Error::AlreadyExists` if another record of that integration has this external id, or the integration is another
    /// organization's: on PostgreSQL the transaction can do nothing more then.
    pub(crate) async fn put_in(&self, tx: &mut Tx, link: &Link) -> Result<()> {
        let key = self.keys.of(&link.organization).await?;
        let external = (!link.external_id.is_empty()).then(|| external_hash(&key, &link.external_id));
        let body = seal(&key, link)?;
        let written = with!(tx.on(), c => {
            sqlx::query(
                "INSERT INTO record_links (organization_id, integration_id, kind, record_id, external_hash, body) \
                 VALUES ($1, $2, $3, $4, $5, $6) ON CONFLICT (integration_id, kind, record_id) \
                 DO UPDATE SET external_hash = excluded.external_hash, body = excluded.body \
                 WHERE record_links.organization_id = excluded.organization_id",
            )
            .bind(link.organization.as_str())
            .bind(&link.integration_id)
            .bind(link.kind.as_str())
            .bind(&link.record_id)
            .bind(external)
            .bind(body)
            .execute(c)
            .await
            .map(|done| done.rows_affected())
        });
        match written {
            Ok(1..) => Ok(()),
            Ok(0) => Err(taken()),
            Err(sqlx::Error::Database(cause)) if cause.is_unique_violation() => Err(taken()),
            Err(error) => Err(error.into()),
        }
    }

    /// Forgets it.
    pub(crate) async fn delete_in(&self, tx: &mut Tx, link: &Link) -> Result<()> {
        with!(tx.on(), c => {
            sqlx::query(
                "DELETE FROM record_links \
                 WHERE organization_id = $1 AND integration_id = $2 AND kind = $3 AND record_id = $4",
            )
            .bind(link.organization.as_str())
            .bind(&link.integration_id)
            .bind(link.kind.as_str())
            .bind(&link.record_id)
            .execute(c)
            .await
            .map(drop)
        })?;
        Ok(())
    }

    /// Of one integration, at most `limit`, by kind and record, after `after`.
    pub(crate) async fn list(
        &self,
        organization: &OrganizationId,
        integration_id: &str,
        after: Option<(RecordKind, &str)>,
        limit: i64,
    ) -> Result<Vec<Link>> {
        let (kind, record_id) = after.map_or(("", ""), |(kind, record_id)| (kind.as_str(), record_id));
        let rows = with!(self.store.reader(), c => {
            sqlx::query_as::<_, Row>(
                "SELECT integration_id, kind, record_id, body FROM record_links \
                 WHERE organization_id = $1 AND integration_id = $2 AND (kind, record_id) > ($3, $4) \
                 ORDER BY kind, record_id LIMIT $5",
            )
            .bind(organization.as_str())
            .bind(integration_id)
            .bind(kind)
            .bind(record_id)
            .bind(limit)
            .fetch_all(c)
            .await
        })?;
        let key = self.keys.of(organization).await?;
        rows.into_iter().map(|row| open(&key, organization, row)).collect()
    }
}

fn taken() -> Error {
    Error::AlreadyExists("another record is linked with this external id".to_owned())
}

/// What an external id is found by, here and wherever else one is kept.
pub(crate) fn external_hash(key: &DataKey, external_id: &str) -> Vec<u8> {
    key.mac("record link external id", external_id.as_bytes()).to_vec()
}

fn row_place(integration_id: &str, kind: &str, record_id: &str) -> Vec<u8> {
    place("record_links", "body", &format!("{integration_id}/{kind}/{record_id}"))
}

fn seal(key: &DataKey, link: &Link) -> Result<Vec<u8>> {
    let Link { external_id, external_version, own_version, synced, synced_at, handed_over, .. } = link.clone();
    let body = Body { external_id, external_version, own_version, synced, synced_at, handed_over };
    let plain = serde_json::to_vec(&body).map_err(Error::internal)?;
    Ok(key.seal(&row_place(&link.integration_id, link.kind.as_str(), &link.record_id), &plain))
}

fn open(key: &DataKey, organization: &OrganizationId, row: Row) -> Result<Link> {
    let plain = key.open(&row_place(&row.integration_id, &row.kind, &row.record_id), &row.body)?;
    let Body { external_id, external_version, own_version, synced, synced_at, handed_over } =
        serde_json::from_slice(&plain).map_err(Error::internal)?;
    let kind = RecordKind::parse(&row.kind);
    let kind = kind.ok_or_else(|| Error::internal(anyhow::anyhow!("a link is of the unknown kind {}", row.kind)))?;
    let Row { integration_id, record_id, .. } = row;
    Ok(Link {
        organization: organization.clone(),
        integration_id,
        kind,
        record_id,
        external_id,
        external_version,
        own_version,
        synced,
        synced_at,
        handed_over,
    })
}
