//! Old events go, a few at a time, so that the log doesn't grow for ever and nobody waits long behind the purge.
//!
//! First the log's beginning moves: from then on whoever reads from before it is told so (OUT_OF_RANGE). Then what lies before
//! is deleted in small transactions. What a crash leaves undeleted goes after it.
//!
//! Guarantee: nothing goes that a built-in group hasn't acknowledged, however old it is.

use chassis::{
    clock::earlier,
    error::{Error, Result},
    purge::Purge,
    with,
};
use jiff::{SignedDuration, Timestamp};

use super::{Log, number, stored};

/// Events that one transaction deletes.
const STEP: u64 = 32;
/// Events that the log's beginning moves over at once.
const STRIDE: u64 = 1_024;

pub(crate) struct Retention {
    log: Log,
    keep: SignedDuration,
    /// Everything up to here is deleted; none: it isn't known yet.
    deleted: Option<u64>,
}

impl Purge for Retention {
    /// Deletes a little of what lies before the log's beginning, else moves that.
    async fn step(&mut self, now: Timestamp) -> Result<bool> {
        let deleted = match self.deleted {
            Some(deleted) => deleted,
            None => *self.deleted.insert(self.find_deleted().await?),
        };
        let oldest = self.log.oldest();
        if deleted + 1 >= oldest {
            return self.move_beginning(oldest, earlier(now, self.keep)).await;
        }
        let until = (deleted + STEP).min(oldest - 1);
        let purged = with!(self.log.store.writer(), c => sqlx::query("DELETE FROM events WHERE sequence > $1 AND sequence <= $2")
            .bind(stored(deleted)).bind(stored(until)).execute(c).await.map(|done| done.rows_affected()))?;
        metrics::counter!("log_events_purged_total").increment(purged);
        self.deleted = Some(until);
        Ok(true)
    }
}

impl Retention {
    /// Of events that are older than `keep`.
    pub(crate) fn new(log: Log, keep: SignedDuration) -> Self {
        Self { log, keep, deleted: None }
    }

    /// A crash may have left some that lie before the beginning.
    async fn find_deleted(&self) -> Result<u64> {
        let first: Option<i64> = with!(self.log.store.reader(), c => sqlx::query_scalar("SELECT MIN(sequence) FROM events").fetch_one(c).await)?;
        let oldest = self.log.oldest();
        Ok(first.map_or(oldest, |first| number(first).min(oldest)) - 1)
    }

    /// Moves the log's beginning over what is old and was taken. False when it stays.
    async fn move_beginning(&self, oldest: u64, before: Timestamp) -> Result<bool> {
        let old = self.old(oldest, before).await?;
        if old < oldest {
            return Ok(false);
        }
        let (group, taken) = self.slowest_group().await?;
        if taken < oldest {
            tracing::warn!(group, "old events stay until this group has taken them: does its service run?");
            return Ok(false);
        }
        let begins = old.min(taken) + 1;
        let moved = with!(self.log.store.writer(), c => sqlx::query("UPDATE log SET oldest = $1 WHERE epoch = $2")
            .bind(stored(begins)).bind(self.log.epoch).execute(c).await.map(|done| done.rows_affected()))?;
        if moved == 0 {
            return Err(Error::Unavailable("another router has taken this log over".into()));
        }
        self.log.begin_at(begins);
        tracing::debug!(begins, "old events are purged");
        Ok(true)
    }

    /// The last of the old events that follow each other from the beginning on, within a stride; none: what lies before them.
    async fn old(&self, oldest: u64, before: Timestamp) -> Result<u64> {
        let until = (oldest - 1 + STRIDE).min(self.log.head());
        let young: Option<i64> = with!(self.log.store.reader(), c => sqlx::query_scalar(
            "SELECT MIN(sequence) FROM events WHERE sequence >= $1 AND sequence <= $2 AND recorded_at >= $3",
        ).bind(stored(oldest)).bind(stored(until)).bind(before.as_microsecond()).fetch_one(c).await)?;
        Ok(young.map_or(until, |young| number(young) - 1))
    }

    /// The built-in group that is furthest behind, and up to where it has acknowledged everything.
    async fn slowest_group(&self) -> Result<(String, u64)> {
        let slowest: Option<(String, i64)> = with!(self.log.store.reader(), c => sqlx::query_as(
            "SELECT name, sequence FROM cursors JOIN consumer_groups ON number = group_number WHERE organization_id = ''
             ORDER BY sequence LIMIT 1",
        ).fetch_optional(c).await)?;
        Ok(slowest.map_or_else(|| (String::new(), 0), |(name, sequence)| (name, number(sequence))))
    }
}

#[cfg(test)]
mod tests {
    use chassis::{
        id::OrganizationId,
        secret::DataKeys,
        service::Chassis,
        store::{Engine, Store},
        testing::{manual_clock, noon, on_each_engine},
    };

    use super::*;
    use crate::weddings::Weddings;

    const DAY: SignedDuration = SignedDuration::from_hours(24);
    const LENGTH: u64 = 2_000;

    /// A log of which the first 1,800 events are 100 days old, the others new, and of which the notifier has taken `taken`.
    async fn log(store: &Store, taken: u64) -> Log {
        let (bytes, empty) = match store.writer() {
            Engine::Sqlite(_) => ("BLOB", "x''"),
            Engine::Postgres(_) => ("BYTEA", "''"),
        };
        let (old, new) = ((noon() - 100 * DAY).as_microsecond(), noon().as_microsecond());
        let text = format!(
            "INSERT INTO events (sequence, organization_id, id, uid, type, ordering_key, priority, content_hash, recorded_at, body)
             WITH RECURSIVE n (n) AS (SELECT 1 UNION ALL SELECT n + 1 FROM n WHERE n < {LENGTH})
             SELECT n, 'o', n, CAST(CAST(n AS TEXT) AS {bytes}), 'a.b', 'k', 3, {empty},
                 CASE WHEN n <= 1800 THEN {old} ELSE {new} END, {empty} FROM n"
        );
        open(store).await;
        with!(store.writer(), c => sqlx::query(sqlx::AssertSqlSafe(text.as_str())).execute(c).await.map(drop)).unwrap();
        with!(store.writer(), c => sqlx::query("UPDATE log SET head = $1").bind(stored(LENGTH)).execute(c).await.map(drop)).unwrap();
        for (group, organization, sequence) in [(1, "", LENGTH), (2, "", taken), (3, "o", 1)] {
            with!(store.writer(), c => sqlx::query(
                "INSERT INTO consumer_groups (number, organization_id, name, types, created_at) VALUES ($1, $2, CAST($1 AS TEXT), '', 0)",
            ).bind(group).bind(organization).execute(c).await.map(drop)).unwrap();
            with!(store.writer(), c => sqlx::query("INSERT INTO cursors (group_number, priority, sequence) VALUES ($1, 3, $2)")
                .bind(group).bind(stored(sequence)).execute(c).await.map(drop))
            .unwrap();
        }
        open(store).await
    }

    async fn open(store: &Store) -> Log {
        let Chassis { tasks, .. } = Chassis::for_test();
        let (_, clock) = manual_clock();
        let keys = DataKeys::new(store.clone(), Chassis::for_test().keyring().unwrap(), clock.clone());
        Log::open(store.clone(), keys, Weddings::new(store.clone()), &clock, &tasks).await.unwrap()
    }

    fn retention(log: &Log) -> Retention {
        Retention::new(log.clone(), 90 * DAY)
    }

    async fn left(store: &Store) -> (i64, i64) {
        with!(store.reader(), c => sqlx::query_as("SELECT COUNT(*), COALESCE(MIN(sequence), 0) FROM events").fetch_one(c).await).unwrap()
    }

    /// Steps until there is nothing to do, each of which deletes a few.
    async fn purge(retention: &mut Retention, now: Timestamp) {
        let store = retention.log.store.clone();
        let mut before = left(&store).await.0;
        while retention.step(now).await.unwrap() {
            let after = left(&store).await.0;
            assert!(before - after <= stored(STEP), "{before} to {after} in one step");
            before = after;
        }
    }

    #[tokio::test]
    async fn what_is_old_and_taken_goes_a_few_at_a_time_and_nothing_else() {
        on_each_engine(&[&chassis::store::MIGRATIONS, &crate::MIGRATIONS], |store| async move {
            let log = log(&store, 1_500).await;
            let mut retention = retention(&log);
            purge(&mut retention, noon()).await;
            assert_eq!((log.oldest(), left(&store).await), (1_501, (500, 1_501)), "the notifier has more before it");
            with!(store.writer(), c => sqlx::query("UPDATE cursors SET sequence = 2000").execute(c).await.map(drop))
                .unwrap();
            purge(&mut retention, noon()).await;
            assert_eq!((log.oldest(), left(&store).await), (1_801, (200, 1_801)), "the others are new");
            purge(&mut retention, noon() + 91 * DAY).await;
            assert_eq!((log.oldest(), left(&store).await.0), (LENGTH + 1, 0));
            let next = open(&store).await;
            assert_eq!((next.oldest(), next.head()), (LENGTH + 1, LENGTH), "whoever opens it next knows");
        })
        .await;
    }

    #[tokio::test]
    async fn what_a_crash_left_undeleted_goes_after_it() {
        on_each_engine(&[&chassis::store::MIGRATIONS, &crate::MIGRATIONS], |store| async move {
            let log = log(&store, LENGTH).await;
            let mut crashed = retention(&log);
            for _ in 0..3 {
                assert!(crashed.step(noon()).await.unwrap());
            }
            assert_eq!((log.oldest(), left(&store).await.1), (STRIDE + 1, stored(2 * STEP + 1)), "it is half way");
            let log = open(&store).await;
            purge(&mut retention(&log), noon()).await;
            assert_eq!(left(&store).await, (200, 1_801));
        })
        .await;
    }

    #[tokio::test]
    async fn an_old_one_behind_a_new_one_stays() {
        on_each_engine(&[&chassis::store::MIGRATIONS, &crate::MIGRATIONS], |store| async move {
            let log = log(&store, LENGTH).await;
            // The machine's clock was ahead for a moment.
            with!(store.writer(), c => sqlx::query("UPDATE events SET recorded_at = $1 WHERE sequence = 100")
                .bind(noon().as_microsecond()).execute(c).await.map(drop))
            .unwrap();
            purge(&mut retention(&log), noon()).await;
            assert_eq!(left(&store).await, (1_901, 100));
        })
        .await;
    }

    #[tokio::test]
    async fn a_router_whose_log_was_taken_over_purges_nothing() {
        on_each_engine(&[&chassis::store::MIGRATIONS, &crate::MIGRATIONS], |store| async move {
            let mut late = retention(&log(&store, LENGTH).await);
            open(&store).await;
            assert!(matches!(late.step(noon()).await, Err(Error::Unavailable(_))));
            assert_eq!(left(&store).await.0, stored(LENGTH));
        })
        .await;
    }

    #[tokio::test]
    async fn whoever_reads_from_before_what_is_kept_is_told_so() {
        on_each_engine(&[&chassis::store::MIGRATIONS, &crate::MIGRATIONS], |store| async move {
            let log = log(&store, LENGTH).await;
            let o = OrganizationId::parse("o").unwrap();
            // Its beginning moves first: whoever reads between finds the events, and that they needn't be all.
            log.begin_at(1_000);
            let end = log.head();
            for since in [0, 998] {
                let told = [
                    log.since(&log.position(since)).map(drop),
                    log.read(None, since).await.map(drop),
                    log.read(Some(&o), since).await.map(drop),
                    log.read_of(&o, since, end, 10).await.map(drop),
                    log.read_priority(3, None, since, end).await.map(drop),
                    log.read_key(&o, "k", since, end).await.map(drop),
                    log.count_of(&o, since, end).await.map(drop),
                ];
                for (way, told) in told.into_iter().enumerate() {
                    assert!(matches!(told, Err(Error::OutOfRange { .. })), "{way}: {told:?}");
                }
            }
            assert_eq!(log.count_of(&o, 999, end).await.unwrap(), 1_001);
            assert_eq!(log.since(&log.position(999)).unwrap(), 999);
        })
        .await;
    }
}
