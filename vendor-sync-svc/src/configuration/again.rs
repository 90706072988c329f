//! Rows that were refused are tried again now and then: a name that nobody could resolve, or a connector that nobody had put
//! yet, is no reason for ever. What a refused row says is sealed in the store until then.
//!
//! A refused row is no error of the event that brought it: one misspelt name would hold up everything that comes behind it.

use std::time::Duration;

use chassis::{
    error::{Error, Result},
    id::OrganizationId,
    secret::place,
};
use serde::{Deserialize, Serialize};
use serde_json::{Map, Value};
use tokio_util::sync::CancellationToken;

use super::{
    keep::{Case, Keeper},
    rows::Name,
};
use crate::endpoint::Since;

const LOOK_EVERY: Duration = Duration::from_secs(300);
const PAGE: i64 = 100;

/// What is sealed of a refused row: the row, and where its event stood.
#[derive(Serialize, Deserialize)]
struct Kept {
    row: Map<String, Value>,
    log_id: String,
    sequence: u64,
}

impl Keeper {
    /// Tries refused rows again, at once and then now and then, until the process stops.
    pub(crate) async fn run(self, stopping: CancellationToken) {
        let work = async {
            loop {
                if let Err(error) = self.look().await {
                    tracing::warn!(%error, "refused configuration rows can't be tried again; trying later");
                }
                self.clock.sleep(LOOK_EVERY).await;
            }
        };
        stopping.run_until_cancelled(work).await;
    }

    /// Tries each refused row once.
    ///
    /// # Errors
    /// Those of the store; one row holds up no other.
    pub(super) async fn look(&self) -> Result<()> {
        let (mut after, mut failed) = (Name::default(), None);
        loop {
            let page = self.rows.refused(&after, PAGE).await?;
            let Some(last) = page.last() else { return failed.map_or(Ok(()), Err) };
            after.clone_from(last);
            for name in page {
                failed = self.again(name).await.err().or(failed);
            }
        }
    }

    async fn again(&self, (organization, table, id): Name) -> Result<()> {
        let organization = OrganizationId::parse(&organization)?;
        let _turn = self.turn.lock().await;
        // One that came meanwhile counts, not the one that was listed.
        let Some(sealed) = self.rows.kept(&organization, &table, &id).await? else { return Ok(()) };
        let plain = self.keys.of(&organization).await?.open(&place_of(&table, &id), &sealed)?;
        let kept: Kept = serde_json::from_slice(&plain).map_err(Error::internal)?;
        let since = Since { log_id: kept.log_id, sequence: kept.sequence };
        let before = self.rows.get(&organization, &table, &id).await?;
        let case = Case { organization: &organization, table: &table, id, before, since };
        self.follow(&case, &kept.row).await
    }

    /// A row as it is kept while it is refused.
    pub(super) async fn seal(&self, case: &Case<'_>, row: &Map<String, Value>) -> Result<Vec<u8>> {
        let (log_id, sequence) = (case.since.log_id.clone(), case.since.sequence);
        let plain = serde_json::to_vec(&Kept { row: row.clone(), log_id, sequence }).map_err(Error::internal)?;
        Ok(self.keys.of(case.organization).await?.seal(&place_of(case.table, &case.id), &plain))
    }
}

fn place_of(table: &str, id: &str) -> Vec<u8> {
    place("configured", "kept", &[table, id].join("\0"))
}
