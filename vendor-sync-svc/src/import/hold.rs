//! What imports hold, and for how long: bounds of what they spool, uploads that were cut off, and what is forgotten when.

use std::{
    collections::HashSet,
    sync::{MutexGuard, PoisonError},
};

use chassis::{
    error::{Error, Result},
    store::Tx,
    with,
};
use jiff::{SignedDuration, Timestamp};

use super::{
    Import, spool,
    store::{Imports, number},
};

const KEEP: SignedDuration = SignedDuration::from_hours(30 * 24);
/// Uploads that were cut off, of one look.
const LOOK: i64 = 1_000;

/// That a file comes in.
#[derive(Debug)]
pub(super) struct Arriving {
    imports: Imports,
    id: String,
}

impl Drop for Arriving {
    fn drop(&mut self) {
        self.imports.arriving().remove(&self.id);
    }
}

impl Imports {
    /// A file begins to come in; until what is given is dropped, it is known to.
    pub(super) fn arrives(&self, id: &str) -> Arriving {
        self.arriving().insert(id.to_owned());
        Arriving { imports: self.clone(), id: id.to_owned() }
    }

    fn arriving(&self) -> MutexGuard<'_, HashSet<String>> {
        self.arriving.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// What was to be received, hasn't been touched since `before`, and is received by nobody can't become whole: who did has
    /// ended, or has gone away before the first byte.
    ///
    /// # Errors
    /// `Error::Unavailable` while the store is away.
    pub(super) async fn fail_cut_off(&self, before: Timestamp) -> Result<()> {
        let open: Vec<String> = with!(self.store.reader(), c => {
            sqlx::query_scalar("SELECT id FROM imports WHERE state = 'receiving' AND updated_at <= $1 ORDER BY id LIMIT $2")
                .bind(before.as_microsecond())
                .bind(LOOK)
                .fetch_all(c)
                .await
        })?;
        for id in open {
            if self.arriving().contains(&id) {
                continue;
            }
            tracing::info!(import.id = id, "an upload was cut off");
            with!(self.store.writer(), c => sqlx::query(
                "UPDATE imports SET state = 'failed', reason = 'the upload was cut off: start it again', updated_at = $1, finished_at = $1
                 WHERE id = $2 AND state = 'receiving'",
            ).bind(self.clock.now_micros()).bind(&id).execute(c).await.map(drop))?;
            self.tell();
        }
        Ok(())
    }

    /// Notes that an import has spooled so many bytes more, in the transaction that does.
    ///
    /// # Errors
    /// `Error::Invalid` for a list over its bound; `Error::Exhausted` where the organization's imports hold too much
    /// together; `Error::Aborted` if it was cancelled, or ended, meanwhile.
    pub(crate) async fn spooled_in(&self, tx: &mut Tx, import: &Import, bytes: usize) -> Result<()> {
        let organization = import.order.organization.as_str();
        let own: Option<i64> = with!(tx.on(), c => sqlx::query_scalar(
            "UPDATE imports SET spooled = spooled + $3 WHERE id = $1 AND organization_id = $2 AND state IN ('receiving', 'running')
             RETURNING spooled",
        ).bind(&import.id).bind(organization).bind(number(bytes as u64)).fetch_optional(c).await)?;
        let own = own.ok_or_else(|| Error::Aborted(format!("import {} has ended meanwhile", import.id)))?;
        if own > spool::LIST_BYTES {
            return Err(Error::invalid("list", "is longer than 1 GiB"));
        }
        let all: i64 = with!(tx.on(), c => sqlx::query_scalar(
            "SELECT CAST(SUM(spooled) AS BIGINT) FROM imports WHERE organization_id = $1 AND spooled > 0",
        ).bind(organization).fetch_one(c).await)?;
        if all > spool::ORGANIZATION_BYTES {
            let reason = "imports of the organization hold 4 GiB: wait for those that run, cancel those that failed";
            return Err(Error::Exhausted { reason: reason.to_owned(), retry_after: spool::FULL_WAIT });
        }
        Ok(())
    }

    /// Forgets imports that ended 30 days ago, with what is left of their spools; at most 100 at a time.
    ///
    /// # Errors
    /// `Error::Unavailable` while the store is away.
    pub(super) async fn purge(&self) -> Result<()> {
        let old: Vec<String> = with!(self.store.reader(), c => sqlx::query_scalar(
            "SELECT id FROM imports WHERE finished_at < $1 ORDER BY finished_at LIMIT 100",
        ).bind((self.clock.now() - KEEP).as_microsecond()).fetch_all(c).await)?;
        for id in old {
            spool::forget(&self.store, &id).await?;
            with!(self.store.writer(), c => {
                sqlx::query("DELETE FROM imports WHERE id = $1").bind(&id).execute(c).await.map(drop)
            })?;
        }
        self.forget_spools().await
    }

    /// Forgets what was spooled for imports that have ended, at most 100 at a time. One that failed keeps what it took in
    /// while it can be resumed: it was received as a whole, nothing has come since, and its integration is there.
    ///
    /// # Errors
    /// `Error::Unavailable` while the store is away.
    pub(super) async fn forget_spools(&self) -> Result<()> {
        let over: Vec<String> = with!(self.store.reader(), c => sqlx::query_scalar(
            "SELECT id FROM imports AS i WHERE spooled > 0 AND finished_at IS NOT NULL AND (state <> 'failed' OR phase = 'receiving'
                 OR NOT EXISTS (SELECT 1 FROM integrations WHERE id = i.integration_id)
                 OR EXISTS (SELECT 1 FROM imports WHERE integration_id = i.integration_id AND work = i.work
                     AND created_at > i.created_at)) LIMIT 100",
        ).fetch_all(c).await)?;
        for id in over {
            spool::forget(&self.store, &id).await?;
        }
        Ok(())
    }
}
