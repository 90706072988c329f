//! Which row of a configuration table became what, or why it was refused.

use chassis::{
    clock::{Clock, from_micros},
    error::Result,
    id::OrganizationId,
    store::Store,
    with,
};
use jiff::Timestamp;

/// All rows that were met. Cheap to clone.
#[derive(Clone, Debug)]
pub(crate) struct Rows {
    store: Store,
    clock: Clock,
}

/// One row.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Row {
    pub(crate) table: String,
    pub(crate) id: String,
    /// `endpoint`, `integration`, or empty.
    pub(crate) became: String,
    pub(crate) target_id: String,
    /// Of all that it asks for, keyed: what it asked for last.
    pub(crate) hash: Vec<u8>,
    /// Empty: it is followed.
    pub(crate) refused: String,
    pub(crate) updated_at: Timestamp,
}

/// What is noted of a row.
pub(crate) struct Noted<'a> {
    pub(crate) table: &'a str,
    pub(crate) id: &'a str,
    pub(crate) became: &'a str,
    pub(crate) target_id: &'a str,
    pub(crate) hash: &'a [u8],
    pub(crate) refused: &'a str,
    /// The row itself, sealed, while it is refused.
    pub(crate) kept: Option<Vec<u8>>,
}

/// Which row: organization, table and id.
pub(crate) type Name = (String, String, String);

type Columns = (String, String, String, String, Vec<u8>, String, i64);

impl Rows {
    pub(crate) fn new(store: Store, clock: Clock) -> Self {
        Self { store, clock }
    }

    /// # Errors
    /// `Error::Unavailable` while the store is away.
    pub(crate) async fn get(&self, organization: &OrganizationId, table: &str, id: &str) -> Result<Option<Row>> {
        let found: Option<Columns> = with!(self.store.reader(), c => sqlx::query_as(
            "SELECT table_name, row_id, became, target_id, hash, refused, updated_at FROM configured
             WHERE organization_id = $1 AND table_name = $2 AND row_id = $3",
        ).bind(organization.as_str()).bind(table).bind(id).fetch_optional(c).await)?;
        Ok(found.map(row))
    }

    /// At most `limit`, in order, after (table, id) `after`.
    ///
    /// # Errors
    /// `Error::Unavailable` while the store is away.
    pub(crate) async fn list(
        &self,
        organization: &OrganizationId,
        after: (&str, &str),
        limit: i64,
    ) -> Result<Vec<Row>> {
        let rows: Vec<Columns> = with!(self.store.reader(), c => sqlx::query_as(
            "SELECT table_name, row_id, became, target_id, hash, refused, updated_at FROM configured
             WHERE organization_id = $1 AND (table_name, row_id) > ($2, $3) ORDER BY table_name, row_id LIMIT $4",
        ).bind(organization.as_str()).bind(after.0).bind(after.1).bind(limit).fetch_all(c).await)?;
        Ok(rows.into_iter().map(row).collect())
    }

    /// # Errors
    /// `Error::Unavailable` while the store is away.
    pub(crate) async fn put(&self, organization: &OrganizationId, row: &Noted<'_>) -> Result<()> {
        with!(self.store.writer(), c => sqlx::query(
            "INSERT INTO configured (organization_id, table_name, row_id, became, target_id, hash, refused, updated_at, kept)
             VALUES ($1, $2, $3, $4, $5, $6, $7, $8, $9)
             ON CONFLICT (organization_id, table_name, row_id) DO UPDATE SET became = excluded.became, target_id = excluded.target_id,
                 hash = excluded.hash, refused = excluded.refused, updated_at = excluded.updated_at, kept = excluded.kept",
        )
        .bind(organization.as_str())
        .bind(row.table)
        .bind(row.id)
        .bind(row.became)
        .bind(row.target_id)
        .bind(row.hash)
        .bind(row.refused)
        .bind(self.clock.now_micros())
        .bind(&row.kept)
        .execute(c).await.map(drop))?;
        Ok(())
    }

    /// A row that is refused, as it was sealed; none: it is followed, or nobody knows it.
    ///
    /// # Errors
    /// `Error::Unavailable` while the store is away.
    pub(crate) async fn kept(&self, organization: &OrganizationId, table: &str, id: &str) -> Result<Option<Vec<u8>>> {
        let kept: Option<Option<Vec<u8>>> = with!(self.store.reader(), c => sqlx::query_scalar(
            "SELECT kept FROM configured WHERE organization_id = $1 AND table_name = $2 AND row_id = $3",
        ).bind(organization.as_str()).bind(table).bind(id).fetch_optional(c).await)?;
        Ok(kept.flatten())
    }

    /// At most `limit` that are refused, of all organizations, in order, after `after`.
    ///
    /// # Errors
    /// `Error::Unavailable` while the store is away.
    pub(crate) async fn refused(&self, after: &Name, limit: i64) -> Result<Vec<Name>> {
        Ok(with!(self.store.reader(), c => sqlx::query_as(
            "SELECT organization_id, table_name, row_id FROM configured
             WHERE refused <> '' AND (organization_id, table_name, row_id) > ($1, $2, $3)
             ORDER BY organization_id, table_name, row_id LIMIT $4",
        ).bind(&after.0).bind(&after.1).bind(&after.2).bind(limit).fetch_all(c).await)?)
    }

    /// # Errors
    /// `Error::Unavailable` while the store is away.
    pub(crate) async fn delete(&self, organization: &OrganizationId, table: &str, id: &str) -> Result<()> {
        with!(self.store.writer(), c => sqlx::query(
            "DELETE FROM configured WHERE organization_id = $1 AND table_name = $2 AND row_id = $3",
        ).bind(organization.as_str()).bind(table).bind(id).execute(c).await.map(drop))?;
        Ok(())
    }
}

fn row((table, id, became, target_id, hash, refused, updated_at): Columns) -> Row {
    Row { table, id, became, target_id, hash, refused, updated_at: from_micros(updated_at) }
}
