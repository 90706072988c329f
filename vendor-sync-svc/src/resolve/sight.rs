//! Whose a record is. The router says so with each row; a supplier's integration makes records that are its supplier's.

use chassis::{
    error::Result,
    store::{Store, Tx},
    with,
};

use crate::record::RecordKey;

/// Suppliers of one record that are kept.
const MOST: usize = 256;
const SEES: &str = "SELECT CAST(1 AS BIGINT) FROM record_suppliers WHERE organization_id = $1 AND kind = $2 AND record_id = $3 AND supplier_id = $4";

/// Who may see which record.
pub(crate) struct Sight;

impl Sight {
    /// Whether an integration of this supplier may see the record; an organization's own (empty) sees all.
    pub(crate) async fn sees_in(tx: &mut Tx, supplier_id: &str, key: &RecordKey) -> Result<bool> {
        if supplier_id.is_empty() {
            return Ok(true);
        }
        let found: Option<i64> = with!(tx.on(), c => {
            sqlx::query_scalar(SEES)
                .bind(key.organization.as_str())
                .bind(key.kind.as_str())
                .bind(&key.id)
                .bind(supplier_id)
                .fetch_optional(c)
                .await
        })?;
        Ok(found.is_some())
    }

    /// The same as it is now.
    ///
    /// # Errors
    /// Those of the store.
    pub(crate) async fn sees(store: &Store, supplier_id: &str, key: &RecordKey) -> Result<bool> {
        if supplier_id.is_empty() {
            return Ok(true);
        }
        let found: Option<i64> = with!(store.reader(), c => {
            sqlx::query_scalar(SEES)
                .bind(key.organization.as_str())
                .bind(key.kind.as_str())
                .bind(&key.id)
                .bind(supplier_id)
                .fetch_optional(c)
                .await
        })?;
        Ok(found.is_some())
    }

    /// Adds a supplier; empty: none.
    pub(crate) async fn add_in(tx: &mut Tx, key: &RecordKey, supplier_id: &str) -> Result<()> {
        if supplier_id.is_empty() {
            return Ok(());
        }
        with!(tx.on(), c => {
            sqlx::query(
                "INSERT INTO record_suppliers (organization_id, kind, record_id, supplier_id) VALUES ($1, $2, $3, $4) ON CONFLICT DO NOTHING",
            )
            .bind(key.organization.as_str())
            .bind(key.kind.as_str())
            .bind(&key.id)
            .bind(supplier_id)
            .execute(c)
            .await
            .map(drop)
        })?;
        Ok(())
    }

    /// Whose the record is.
    pub(crate) async fn of_in(tx: &mut Tx, key: &RecordKey) -> Result<Vec<String>> {
        Ok(with!(tx.on(), c => {
            sqlx::query_scalar("SELECT supplier_id FROM record_suppliers WHERE organization_id = $1 AND kind = $2 AND record_id = $3")
                .bind(key.organization.as_str())
                .bind(key.kind.as_str())
                .bind(&key.id)
                .fetch_all(c)
                .await
        })?)
    }

    /// Puts these in place of those before: who left a wedding sees it no more. None says nothing.
    pub(crate) async fn set_in(tx: &mut Tx, key: &RecordKey, suppliers: &[&str]) -> Result<()> {
        if suppliers.is_empty() {
            return Ok(());
        }
        let mut known = Self::of_in(tx, key).await?;
        known.retain(|supplier| !suppliers.contains(&supplier.as_str()));
        for gone in known {
            with!(tx.on(), c => {
                sqlx::query("DELETE FROM record_suppliers WHERE organization_id = $1 AND kind = $2 AND record_id = $3 AND supplier_id = $4")
                    .bind(key.organization.as_str())
                    .bind(key.kind.as_str())
                    .bind(&key.id)
                    .bind(&gone)
                    .execute(c)
                    .await
                    .map(drop)
            })?;
        }
        for supplier in suppliers.iter().take(MOST) {
            Self::add_in(tx, key, supplier).await?;
        }
        Ok(())
    }
}
