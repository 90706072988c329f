//! Pins: a field that one source alone decides, of one record or of every record of a kind. A record's own comes first.

use std::collections::BTreeMap;

use chassis::{
    clock::from_micros,
    error::{Error, Result},
    id::OrganizationId,
    store::{Store, Tx},
    with,
};
use jiff::Timestamp;

use super::{RecordKey, RecordKind, Source, merge::is_name};

/// Pins of one organization.
const MOST: i64 = 10_000;
const MOST_SOURCE_BYTES: usize = 64;

/// One pin.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Pin {
    pub(crate) kind: RecordKind,
    pub(crate) field: String,
    /// Empty: of every record of the kind.
    pub(crate) record_id: String,
    /// Who decides it.
    pub(crate) source: Source,
    pub(crate) pinned_by: String,
    pub(crate) pinned_at: Timestamp,
}

#[derive(sqlx::FromRow)]
struct Row {
    kind: String,
    field: String,
    record_id: String,
    source: String,
    pinned_by: String,
    pinned_at: i64,
}

impl Row {
    fn pin(self) -> Result<Pin> {
        let kind = RecordKind::parse(&self.kind);
        let kind =
            kind.ok_or_else(|| Error::internal(anyhow::anyhow!("a pin is of the unknown kind {}", self.kind)))?;
        let Self { field, record_id, source, pinned_by, pinned_at, .. } = self;
        let (source, pinned_at) = (Source(source), from_micros(pinned_at));
        Ok(Pin { kind, field, record_id, source, pinned_by, pinned_at })
    }
}

impl Pin {
    /// # Errors
    /// `Error::Invalid` for a name that no field has, or a source that none can be.
    pub(crate) fn check(self) -> Result<Self> {
        if !is_name(&self.field) {
            return Err(Error::invalid("field", "must match [a-z0-9_]{1,64}"));
        }
        let source = self.source.as_str();
        let plain = source.bytes().all(|b| b.is_ascii_alphanumeric() || b == b'-');
        if self.source.is_person() || !plain || !(1..=MOST_SOURCE_BYTES).contains(&source.len()) {
            return Err(Error::invalid("source", "must be `wedsync` or an integration's id"));
        }
        Ok(self)
    }
}

/// What is pinned of one record, by field.
pub(super) async fn of_record(tx: &mut Tx, key: &RecordKey) -> Result<BTreeMap<String, Source>> {
    let rows = with!(tx.on(), c => {
        sqlx::query_as::<_, (String, String)>(
            "SELECT field, source FROM record_pins WHERE organization_id = $1 AND kind = $2 AND record_id IN ('', $3) \
             ORDER BY record_id",
        )
        .bind(key.organization.as_str())
        .bind(key.kind.as_str())
        .bind(&key.id)
        .fetch_all(c)
        .await
    })?;
    // The record's own come last, and stay.
    Ok(rows.into_iter().map(|(field, source)| (field, Source(source))).collect())
}

/// Pins it, in place of another pin of the same field and record.
///
/// # Errors
/// `Error::FailedPrecondition` beyond 10,000 of one organization.
pub(super) async fn put_in(tx: &mut Tx, organization: &OrganizationId, pin: &Pin) -> Result<()> {
    let count = with!(tx.on(), c => {
        sqlx::query_scalar::<_, i64>("SELECT COUNT(*) FROM record_pins WHERE organization_id = $1")
            .bind(organization.as_str()).fetch_one(c).await
    })?;
    if count >= MOST {
        return Err(Error::FailedPrecondition(format!("an organization has at most {MOST} pins")));
    }
    with!(tx.on(), c => {
        sqlx::query(
            "INSERT INTO record_pins (organization_id, kind, field, record_id, source, pinned_by, pinned_at) \
             VALUES ($1, $2, $3, $4, $5, $6, $7) ON CONFLICT (organization_id, kind, record_id, field) \
             DO UPDATE SET source = excluded.source, pinned_by = excluded.pinned_by, pinned_at = excluded.pinned_at",
        )
        .bind(organization.as_str())
        .bind(pin.kind.as_str())
        .bind(&pin.field)
        .bind(&pin.record_id)
        .bind(pin.source.as_str())
        .bind(&pin.pinned_by)
        .bind(pin.pinned_at.as_microsecond())
        .execute(c)
        .await
        .map(drop)
    })?;
    Ok(())
}

/// # Errors
/// `Error::NotFound` where nothing is pinned.
pub(super) async fn delete_in(
    tx: &mut Tx,
    organization: &OrganizationId,
    kind: RecordKind,
    field: &str,
    record_id: &str,
) -> Result<()> {
    let deleted = with!(tx.on(), c => {
        sqlx::query("DELETE FROM record_pins WHERE organization_id = $1 AND kind = $2 AND field = $3 AND record_id = $4")
            .bind(organization.as_str())
            .bind(kind.as_str())
            .bind(field)
            .bind(record_id)
            .execute(c)
            .await
            .map(|done| done.rows_affected())
    })?;
    if deleted == 0 { Err(Error::NotFound("pin".into())) } else { Ok(()) }
}

/// At most `limit`, by kind, record and field, after those of `after`.
pub(super) async fn list(
    store: &Store,
    organization: &OrganizationId,
    after: (&str, &str, &str),
    limit: i64,
) -> Result<Vec<Pin>> {
    let rows = with!(store.reader(), c => {
        sqlx::query_as::<_, Row>(
            "SELECT kind, field, record_id, source, pinned_by, pinned_at FROM record_pins \
             WHERE organization_id = $1 AND (kind, record_id, field) > ($2, $3, $4) \
             ORDER BY kind, record_id, field LIMIT $5",
        )
        .bind(organization.as_str())
        .bind(after.0)
        .bind(after.1)
        .bind(after.2)
        .bind(limit)
        .fetch_all(c)
        .await
    })?;
    rows.into_iter().map(Row::pin).collect()
}
