//! Who refreshes a token: one worker at a time, whatever process it is in, by a lease in the connection's row.
//!
//! A lease lasts longer than a vendor may take to answer. Its epoch is raised by whoever takes it, so that a worker that
//! comes late can't end another's; what it brings counts all the same while nobody has put a newer credential in force,
//! since a token that was granted may be the only good one.

use std::time::Duration;

use chassis::{error::Result, id::OrganizationId, with};
use jiff::{SignedDuration, Timestamp};

use super::{
    Kept,
    store::{Connection, Connections, expires_at},
};
use crate::integration::Integration;

/// A vendor answers within half of it; the other half is for the store, and for clocks that differ.
pub(super) const LEASE: Duration = Duration::from_secs(20);

/// A lease that ends after this was taken before the clock stepped back, and is over. Half of it is for clocks that differ.
fn too_far(now: Timestamp) -> i64 {
    now.as_microsecond() + 2 * LEASE.as_micros() as i64
}

impl Connections {
    /// Takes the lease, if `connection` is still as it was read and nobody holds it; gives its epoch.
    ///
    /// # Errors
    /// `Error::Unavailable` while the store is away.
    pub(super) async fn lease(&self, integration: &Integration, connection: &Connection) -> Result<Option<i64>> {
        let now = self.clock.now();
        let until = now + SignedDuration::try_from(LEASE).unwrap_or(SignedDuration::ZERO);
        let taken = with!(self.store.writer(), c => {
            sqlx::query(
                "UPDATE connections SET lease_epoch = lease_epoch + 1, lease_until = $5 WHERE organization_id = $1 \
                 AND integration_id = $2 AND version = $3 AND lease_epoch = $4 AND state = 'connected' \
                 AND (lease_until IS NULL OR lease_until <= $6 OR lease_until > $7)",
            )
            .bind(integration.organization.as_str())
            .bind(&integration.id)
            .bind(connection.version.cast_signed())
            .bind(connection.lease_epoch)
            .bind(until.as_microsecond())
            .bind(now.as_microsecond())
            .bind(too_far(now))
            .execute(c)
            .await
            .map(|done| done.rows_affected())
        })?;
        Ok((taken == 1).then_some(connection.lease_epoch + 1))
    }

    /// Puts renewed tokens in force in place of `version`; whether they are.
    ///
    /// # Errors
    /// `Error::Unavailable` while the store is away.
    pub(super) async fn renewed(
        &self,
        integration: &Integration,
        version: u64,
        kept: &Kept,
        refresh_at: Option<Timestamp>,
    ) -> Result<bool> {
        let sealed = self.seal(integration, "credential", kept).await?;
        let changed = with!(self.store.writer(), c => {
            sqlx::query(
                "UPDATE connections SET version = version + 1, credential = $4, expires_at = $5, refresh_at = $6, failures = 0, \
                 reason = '', lease_until = NULL WHERE organization_id = $1 AND integration_id = $2 AND version = $3 AND state = 'connected'",
            )
            .bind(integration.organization.as_str())
            .bind(&integration.id)
            .bind(version.cast_signed())
            .bind(&sealed)
            .bind(expires_at(kept))
            .bind(refresh_at.map(Timestamp::as_microsecond))
            .execute(c)
            .await
            .map(|done| done.rows_affected())
        })?;
        Ok(changed == 1)
    }

    /// Gives the lease of `epoch` back: it didn't work, and is to be tried again at `again_at`.
    ///
    /// # Errors
    /// `Error::Unavailable` while the store is away.
    pub(super) async fn put_off(
        &self,
        integration: &Integration,
        epoch: i64,
        again_at: Timestamp,
        reason: &str,
    ) -> Result<()> {
        with!(self.store.writer(), c => {
            sqlx::query(
                "UPDATE connections SET failures = failures + 1, refresh_at = $4, reason = $5, lease_until = NULL \
                 WHERE organization_id = $1 AND integration_id = $2 AND lease_epoch = $3 AND state = 'connected'",
            )
            .bind(integration.organization.as_str())
            .bind(&integration.id)
            .bind(epoch)
            .bind(again_at.as_microsecond())
            .bind(reason)
            .execute(c)
            .await
            .map(drop)
        })?;
        Ok(())
    }

    /// Those that are due are due again when a lease taken now would be over, if nothing else comes of them.
    ///
    /// # Errors
    /// `Error::Unavailable` while the store is away.
    pub(super) async fn move_on(&self, due: &[(OrganizationId, String)]) -> Result<()> {
        let now = self.clock.now();
        let later = now + SignedDuration::try_from(LEASE).unwrap_or(SignedDuration::ZERO);
        let mut tx = self.store.begin().await?;
        for (organization, id) in due {
            with!(tx.on(), c => {
                sqlx::query(
                    "UPDATE connections SET refresh_at = $3 WHERE organization_id = $1 AND integration_id = $2 AND refresh_at <= $4",
                )
                .bind(organization.as_str())
                .bind(id)
                .bind(later.as_microsecond())
                .bind(now.as_microsecond())
                .execute(c)
                .await
                .map(drop)
            })?;
        }
        tx.commit().await
    }

    /// Organizations and integrations whose tokens are to be refreshed now, and that nobody refreshes; at most `limit`.
    ///
    /// # Errors
    /// `Error::Unavailable` while the store is away.
    pub(super) async fn due(&self, limit: i64) -> Result<Vec<(OrganizationId, String)>> {
        let now = self.clock.now();
        let due: Vec<(String, String)> = with!(self.store.reader(), c => {
            sqlx::query_as(
                "SELECT organization_id, integration_id FROM connections WHERE refresh_at <= $1 \
                 AND (lease_until IS NULL OR lease_until <= $1 OR lease_until > $3) ORDER BY refresh_at LIMIT $2",
            )
            .bind(now.as_microsecond())
            .bind(limit)
            .bind(too_far(now))
            .fetch_all(c)
            .await
        })?;
        due.into_iter().map(|(organization, id)| Ok((OrganizationId::parse(&organization)?, id))).collect()
    }
}
