//! How one message that was due goes on, written only while it still waits.

use bytes::Bytes;
use chassis::{error::Result, store::Tx, with};
use jiff::Timestamp;

use super::Verdict;
use crate::{
    notification::{NewMessage, Route, trail},
    resolve::{Fate, How},
};

/// How one message goes on.
pub(super) struct Release {
    pub(super) route: Route,
    pub(super) reason: String,
    pub(super) content: Bytes,
    pub(super) address: Option<Vec<u8>>,
    pub(super) hold: Option<Timestamp>,
    pub(super) carried_by: Option<[u8; 16]>,
    /// Of a digest's, what it becomes.
    pub(super) how: i64,
}

impl Release {
    pub(super) fn of(verdict: &Verdict) -> Self {
        let (route, reason, hold, how) = match &verdict.fate {
            Fate::Send(reason) => (Route::Lane, reason, None, verdict.how),
            // Nothing that waited is told in a room.
            Fate::Skip(reason) | Fate::InRoom(reason) => (Route::Skipped, reason, None, verdict.how),
            // What belongs into a digest stays there.
            Fate::Hold { until, how: How::Deferred, reason } => (Route::Held, reason, Some(*until), verdict.how),
            Fate::Hold { until, how, reason } => (Route::Held, reason, Some(*until), *how as i64),
        };
        Self { route, reason: reason.clone(), content: Bytes::new(), address: None, hold, carried_by: None, how }
    }

    pub(super) fn message(&self, verdict: &Verdict) -> NewMessage {
        NewMessage {
            uid: verdict.uid,
            recipient: verdict.person.as_ref().map(|person| person.id.clone()).unwrap_or_default(),
            channel: verdict.channel.clone(),
            route: self.route,
            reason: self.reason.clone(),
            content: self.content.clone(),
            trail: Vec::new(),
            address: None,
            hold: None,
            carried_by: None,
        }
    }

    /// False if it doesn't wait any more.
    pub(super) async fn write(
        &self,
        tx: &mut Tx,
        verdict: &Verdict,
        sealed: Option<Vec<u8>>,
        now: Timestamp,
    ) -> Result<bool> {
        let told = matches!(self.route, Route::Lane | Route::Record | Route::Carried);
        let written = with!(tx.on(), c => sqlx::query(
            "UPDATE messages SET fate = $2, reason = $3, content = $4, address = COALESCE($5, address), due_at = $6, how = $7,
                 carried_by = $8, handed_at = $9, trail = trail || $10
             WHERE uid = $1 AND fate = 3 AND cancelled = 0",
        )
        .bind(&verdict.uid[..])
        .bind(self.route as i64)
        .bind(&self.reason)
        .bind(sealed)
        .bind(&self.address)
        .bind(self.hold.map(Timestamp::as_microsecond))
        .bind(self.how)
        .bind(self.carried_by.map(|uid| uid.to_vec()))
        .bind(told.then_some(now.as_microsecond()))
        .bind(trail(&verdict.trail, now))
        .execute(c).await.map(|done| done.rows_affected()))?;
        Ok(written > 0)
    }
}

/// They left the wedding, or the directory.
pub(super) fn gone() -> (Fate, Vec<String>) {
    let reason = "it doesn't concern them any more".to_owned();
    (Fate::Skip(reason.clone()), vec![reason])
}
