//! What the router's own store keeps of a source: how far it is, which generation its slot is, and what was refused.

use chassis::{
    clock::Clock,
    error::Result,
    secret::{Keyring, place},
    store::Store,
    with,
};

use super::position::Lsn;

/// Refusals that are kept of one source; older ones make room.
const REFUSALS_MAX: i64 = 10_000;

/// How far a source is.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Known {
    pub(super) system: String,
    /// The timeline that was read last; none where it was read before that was kept.
    pub(super) timeline: Option<u32>,
    pub(super) generation: i64,
    pub(super) phase: Phase,
    /// Why changes before this generation may be missing; empty where none are.
    pub(super) lost: String,
    pub(super) acknowledged: Lsn,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Phase {
    /// Its slot, its snapshot or the notice of a loss isn't whole yet.
    Preparing,
    Streaming,
}

/// A change that the log doesn't take.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Refusal {
    pub(super) event_id: String,
    pub(super) table: String,
    pub(super) operation: &'static str,
    pub(super) key: String,
}

/// One source in the router's store. Cheap to clone.
#[derive(Clone)]
pub(super) struct State {
    pub(super) source: String,
    pub(super) store: Store,
    pub(super) clock: Clock,
    pub(super) keyring: Keyring,
}

/// Where a refusal's key belongs, for its seal.
pub(super) fn place_of_key(event_id: &str) -> Vec<u8> {
    place("capture_refusals", "row_key", event_id)
}

impl State {
    pub(super) async fn read(&self) -> Result<Option<Known>> {
        let row: Option<(String, i64, i64, String, String, i64)> = with!(self.store.reader(), c => sqlx::query_as(
            "SELECT system, timeline, generation, phase, lost, acknowledged FROM capture_sources WHERE name = $1",
        ).bind(&self.source).fetch_optional(c).await)?;
        Ok(row.map(|(system, timeline, generation, phase, lost, acknowledged)| Known {
            system,
            timeline: u32::try_from(timeline).ok().filter(|timeline| *timeline > 0),
            generation,
            phase: if phase == "streaming" { Phase::Streaming } else { Phase::Preparing },
            lost,
            acknowledged: Lsn(acknowledged.cast_unsigned()),
        }))
    }

    pub(super) async fn write(&self, known: &Known) -> Result<()> {
        let phase = if known.phase == Phase::Streaming { "streaming" } else { "preparing" };
        with!(self.store.writer(), c => sqlx::query(
            "INSERT INTO capture_sources (name, system, generation, phase, lost, acknowledged, timeline)
             VALUES ($1, $2, $3, $4, $5, $6, $7) ON CONFLICT (name) DO UPDATE
             SET system = $2, generation = $3, phase = $4, lost = $5, acknowledged = $6, timeline = $7",
        )
        .bind(&self.source).bind(&known.system).bind(known.generation).bind(phase).bind(&known.lost)
        .bind(known.acknowledged.0.cast_signed()).bind(known.timeline.map_or(0, i64::from)).execute(c).await.map(drop))?;
        Ok(())
    }

    /// Stores what the server will be told next.
    pub(super) async fn acknowledge(&self, generation: i64, place: Lsn) -> Result<()> {
        with!(self.store.writer(), c => sqlx::query("UPDATE capture_sources SET acknowledged = $3 WHERE name = $1 AND generation = $2")
            .bind(&self.source).bind(generation).bind(place.0.cast_signed()).execute(c).await.map(drop))?;
        Ok(())
    }

    /// Keeps a refusal where a person can see it, once. Its key is of a row, and may be anybody's address: it is sealed, and
    /// logged nowhere.
    pub(super) async fn refuse(&self, refusal: &Refusal, reason: &str) -> Result<()> {
        let Refusal { event_id, table, operation, key } = refusal;
        tracing::error!(source = self.source, table, operation, event.id = event_id, reason, "a change was refused");
        metrics::counter!("capture_refusals_total", "source" => self.source.clone()).increment(1);
        with!(self.store.writer(), c => sqlx::query(
            "INSERT INTO capture_refusals (source, event_id, table_name, operation, row_key, reason, refused_at)
             VALUES ($1, $2, $3, $4, $5, $6, $7) ON CONFLICT (source, event_id) DO NOTHING",
        )
        .bind(&self.source).bind(event_id).bind(table).bind(operation)
        .bind(self.keyring.seal(&place_of_key(event_id), key.as_bytes())).bind(reason).bind(self.clock.now_micros())
        .execute(c).await.map(drop))?;
        with!(self.store.writer(), c => sqlx::query(
            "DELETE FROM capture_refusals WHERE source = $1 AND number <=
             (SELECT number FROM capture_refusals WHERE source = $1 ORDER BY number DESC LIMIT 1 OFFSET $2)",
        ).bind(&self.source).bind(REFUSALS_MAX).execute(c).await.map(drop))?;
        Ok(())
    }
}
