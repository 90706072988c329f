//! What people may know of the sources, and do about their refusals.

use std::sync::Arc;

use chassis::{error::Result, secret::Keyring, store::Store, with};
use jiff::Timestamp;

use super::{
    live::Live,
    state::{Known, Phase, State, place_of_key},
};

/// Every source. Cheap to clone.
#[derive(Clone)]
pub(crate) struct Captures {
    pub(super) sources: Arc<[(Arc<Live>, State)]>,
    pub(super) store: Store,
    pub(super) keyring: Keyring,
}

/// How a source is.
#[derive(Debug)]
pub(crate) struct Capture {
    pub(crate) name: String,
    pub(crate) standing: Standing,
    pub(crate) generation: i64,
    pub(crate) lost: String,
    /// As PostgreSQL prints it; empty before the first slot.
    pub(crate) acknowledged: String,
    pub(crate) lag_bytes: Option<f64>,
    pub(crate) lag_seconds: Option<f64>,
    pub(crate) refusals: i64,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Standing {
    Away,
    Preparing,
    Streaming,
}

/// A refusal that was kept.
#[derive(Debug)]
pub(crate) struct Kept {
    pub(crate) number: i64,
    pub(crate) source: String,
    pub(crate) event_id: String,
    pub(crate) table: String,
    pub(crate) operation: String,
    pub(crate) key: String,
    pub(crate) reason: String,
    pub(crate) refused_at: Timestamp,
}

type KeptRow = (i64, String, String, String, String, Vec<u8>, String, i64);

impl Captures {
    pub(crate) async fn list(&self) -> Result<Vec<Capture>> {
        let mut captures = Vec::new();
        for (live, state) in &*self.sources {
            let known = state.read().await?;
            captures.push(self.capture(live, known).await?);
        }
        Ok(captures)
    }

    async fn capture(&self, live: &Live, known: Option<Known>) -> Result<Capture> {
        let refusals: i64 = with!(self.store.reader(), c => sqlx::query_scalar(
            "SELECT COUNT(*) FROM capture_refusals WHERE source = $1",
        ).bind(live.source()).fetch_one(c).await)?;
        let seen = live.seen();
        let standing = match &known {
            _ if seen.is_streaming => Standing::Streaming,
            Some(known) if known.phase == Phase::Preparing => Standing::Preparing,
            _ => Standing::Away,
        };
        let acknowledged = known.as_ref().map(|known| known.acknowledged.to_string()).unwrap_or_default();
        let (generation, lost) = known.map_or_else(Default::default, |known| (known.generation, known.lost));
        let (lag_bytes, lag_seconds) = (seen.lag_bytes, seen.lag_seconds);
        let name = live.source().to_owned();
        Ok(Capture { name, standing, generation, lost, acknowledged, lag_bytes, lag_seconds, refusals })
    }

    /// Those before a number, newest first; of one source, or of all where none is named.
    pub(crate) async fn refusals(&self, source: &str, before: i64, limit: u32) -> Result<Vec<Kept>> {
        let rows: Vec<KeptRow> = with!(self.store.reader(), c => sqlx::query_as(
            "SELECT number, source, event_id, table_name, operation, row_key, reason, refused_at FROM capture_refusals
             WHERE ($1 = '' OR source = $1) AND number < $2 ORDER BY number DESC LIMIT $3",
        ).bind(source).bind(before).bind(i64::from(limit)).fetch_all(c).await)?;
        Ok(rows.into_iter().map(|row| self.kept(row)).collect())
    }

    /// Forgets those of a source from one number through another; how many they were.
    pub(crate) async fn dismiss(&self, source: &str, from: i64, through: i64) -> Result<u64> {
        Ok(with!(self.store.writer(), c => sqlx::query(
            "DELETE FROM capture_refusals WHERE source = $1 AND number BETWEEN $2 AND $3",
        ).bind(source).bind(from).bind(through).execute(c).await.map(|done| done.rows_affected()))?)
    }

    /// A key that doesn't open is left out: the event's id and the table still say which row it was.
    fn kept(&self, (number, source, event_id, table, operation, key, reason, refused_at): KeptRow) -> Kept {
        let key = self.keyring.open(&place_of_key(&event_id), &key).unwrap_or_default();
        let (key, refused_at) = (String::from_utf8_lossy(&key).into_owned(), chassis::clock::from_micros(refused_at));
        Kept { number, source, event_id, table, operation, key, reason, refused_at }
    }
}
