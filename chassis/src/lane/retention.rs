//! Deliveries that ended go after their time, with their attempts; what they said and what was answered may go sooner.
//!
//! No index is kept for it, which every delivery would pay for: ids rise with time, so a walk from the first one on meets what
//! is old, and stops where all is new.
//!
//! Guarantee: what waits or is under way stays, however old, and so does the newest delivery: the next start numbers from it.

use jiff::{SignedDuration, Timestamp};

use crate::{clock::earlier, error::Result, purge::Purge, store::Store, with};

/// Rows that one transaction takes.
const STEP: i64 = 32;

/// How long what ended is kept; none: for ever.
#[derive(Clone, Copy, Debug)]
pub struct Periods {
    /// Deliveries, with their attempts.
    pub deliveries: Option<SignedDuration>,
    /// What those said that didn't arrive, by which they can be recovered, and what was answered to attempts that failed.
    pub contents: Option<SignedDuration>,
}

/// Purges the deliveries of a store.
pub struct Retention {
    store: Store,
    periods: Periods,
    /// Up to here the deliveries were walked through.
    walked: i64,
}

impl Purge for Retention {
    async fn step(&mut self, now: Timestamp) -> Result<bool> {
        let before = |period| earlier(now, period).as_microsecond();
        let deliveries = match self.periods.deliveries {
            Some(period) => self.purge_deliveries(before(period)).await?,
            None => false,
        };
        let contents = match self.periods.contents {
            Some(period) => self.purge_contents(before(period)).await?,
            None => false,
        };
        if !deliveries && !contents {
            self.walked = 0;
        }
        Ok(deliveries || contents)
    }
}

impl Retention {
    /// Of a store with the lanes' tables.
    #[must_use]
    pub fn new(store: Store, periods: Periods) -> Self {
        Self { store, periods, walked: 0 }
    }

    /// Deletes what ended before, of the next few. False where all of them are new.
    async fn purge_deliveries(&mut self, before: i64) -> Result<bool> {
        let (last, first_made): (Option<i64>, Option<i64>) = with!(self.store.reader(), c => sqlx::query_as(
            "SELECT MAX(id), MIN(created_at) FROM (SELECT id, created_at FROM deliveries WHERE id > $1 ORDER BY id LIMIT $2) AS next",
        ).bind(self.walked).bind(STEP).fetch_one(c).await)?;
        let Some(last) = last.filter(|_| first_made.is_some_and(|made| made < before)) else { return Ok(false) };
        let mut tx = self.store.begin().await?;
        let gone: Vec<i64> = with!(tx.on(), c => sqlx::query_scalar(
            "DELETE FROM deliveries WHERE id > $1 AND id <= $2 AND state IN (3, 4, 5, 6) AND COALESCE(finished_at, created_at) < $3
                 AND id <> (SELECT MAX(id) FROM deliveries) RETURNING id",
        ).bind(self.walked).bind(last).bind(before).fetch_all(c).await)?;
        let (any_of, ids) = self.store.reader().any_of("$1", gone.iter().copied());
        let attempts = format!("DELETE FROM attempts WHERE delivery {any_of}");
        with!(tx.on(), c => sqlx::query(sqlx::AssertSqlSafe(attempts.as_str())).bind(&ids).execute(c).await.map(drop))?;
        tx.commit().await?;
        metrics::counter!("lane_deliveries_purged_total").increment(gone.len() as u64);
        self.walked = last;
        Ok(true)
    }

    /// False where nothing of them is old.
    async fn purge_contents(&self, before: i64) -> Result<bool> {
        let purged = with!(self.store.writer(), c => sqlx::query(
            "UPDATE deliveries SET content = NULL WHERE id IN
                 (SELECT id FROM deliveries WHERE content IS NOT NULL AND state IN (4, 5, 6) AND finished_at < $1 ORDER BY finished_at LIMIT $2)",
        ).bind(before).bind(STEP).execute(c).await.map(|done| done.rows_affected()))?;
        Ok(purged + purge_answers(&self.store, before, STEP).await? > 0)
    }
}

/// Takes out what was answered to attempts that failed before, of up to `step` of them; gives the number of rows. Of what was
/// taken, the answer may hold what the receiver calls it: a part of the record.
///
/// # Errors
/// Those of the store.
pub async fn purge_answers(store: &Store, before: i64, step: i64) -> Result<u64> {
    let purged = with!(store.writer(), c => sqlx::query(
        "UPDATE attempts SET response = NULL WHERE response IS NOT NULL AND outcome <> 'delivered' AND started_at < $1
         AND delivery IN (SELECT delivery FROM attempts WHERE response IS NOT NULL AND outcome <> 'delivered' AND started_at < $1
             ORDER BY started_at LIMIT $2)",
    ).bind(before).bind(step).execute(c).await.map(|done| done.rows_affected()))?;
    Ok(purged)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{
        lane::{self, rows},
        store,
        testing::{noon, on_each_engine},
    };

    const DAY: SignedDuration = SignedDuration::from_hours(24);
    const PERIODS: Periods = Periods {
        deliveries: Some(SignedDuration::from_hours(90 * 24)),
        contents: Some(SignedDuration::from_hours(30 * 24)),
    };

    /// A delivery made and ended so many days ago, with an attempt each of which tells of the other.
    async fn put(store: &Store, id: i64, state: i64, made: i32, ended: Option<i32>) {
        let at = |days: i32| (noon() - DAY * days).as_microsecond();
        let content = (state != 3).then_some(&b"content"[..]);
        with!(store.writer(), c => sqlx::query(
            "INSERT INTO deliveries (id, lane, organization_id, event, event_id, event_type, ordering_key, priority, state, origin, attempts,
                 reopened_after, next_at, created_at, finished_at, reason, content)
             VALUES ($1, 1, 'o', $2, 'e', 'a.b', 'k', 3, $3, 'realtime', 1, 0, $4, $4, $5, '', $6)",
        ).bind(id).bind(id.to_string().into_bytes()).bind(state).bind(at(made)).bind(ended.map(at)).bind(content).execute(c).await.map(drop)).unwrap();
        with!(store.writer(), c => sqlx::query(
            "INSERT INTO attempts (delivery, number, lane, started_at, duration, outcome, error, response) VALUES ($1, 1, 1, $2, 0, $3, '', $4)",
        ).bind(id).bind(at(ended.unwrap_or(made))).bind(if state == 3 { "delivered" } else { "refused" }).bind(&b"answer"[..]).execute(c).await.map(drop)).unwrap();
    }

    async fn ids(store: &Store, query: &'static str) -> Vec<i64> {
        with!(store.reader(), c => sqlx::query_scalar(query).fetch_all(c).await).unwrap()
    }

    async fn purge(store: &Store, periods: Periods) {
        let mut retention = Retention::new(store.clone(), periods);
        while retention.step(noon()).await.unwrap() {}
    }

    const DELIVERIES: &str = "SELECT id FROM deliveries ORDER BY id";
    const ATTEMPTS: &str = "SELECT delivery FROM attempts ORDER BY delivery";
    const CONTENTS: &str = "SELECT id FROM deliveries WHERE content IS NOT NULL ORDER BY id";
    const ANSWERS: &str = "SELECT delivery FROM attempts WHERE response IS NOT NULL ORDER BY delivery";

    /// [`put`]'s arguments.
    const VARIOUS: [(i64, i64, i32, Option<i32>); 10] = [
        (1, 3, 100, Some(99)),
        (2, 0, 100, None),
        (3, 4, 100, Some(91)),
        (4, 4, 100, Some(31)),
        (5, 6, 100, Some(29)),
        (6, 2, 95, None),
        (7, 5, 91, Some(91)),
        (8, 3, 31, Some(31)),
        (9, 4, 31, Some(29)),
        (10, 3, 100, Some(100)),
    ];

    #[tokio::test]
    async fn what_ended_goes_after_its_time_and_what_it_said_sooner() {
        on_each_engine(&[&store::MIGRATIONS, &lane::MIGRATIONS], async |store| {
            for (id, state, made, ended) in VARIOUS {
                put(&store, id, state, made, ended).await;
            }
            // It arrived at the second attempt.
            with!(store.writer(), c => sqlx::query(
                "INSERT INTO attempts (delivery, number, lane, started_at, duration, outcome, error, response)
                 SELECT delivery, 0, lane, started_at, 0, 'refused', '', response FROM attempts WHERE delivery = 8",
            ).execute(c).await.map(drop))
            .unwrap();
            purge(&store, Periods { deliveries: None, contents: None }).await;
            assert_eq!((ids(&store, DELIVERIES).await.len(), ids(&store, ANSWERS).await.len()), (10, 11));
            purge(&store, PERIODS).await;
            let left = [2, 4, 5, 6, 8, 9, 10];
            let tried = [2, 4, 5, 6, 8, 8, 9, 10];
            assert_eq!((ids(&store, DELIVERIES).await, ids(&store, ATTEMPTS).await), (left.into(), tried.into()));
            assert_eq!(ids(&store, CONTENTS).await, [2, 5, 6, 9], "what waits, and what died lately");
            assert_eq!(ids(&store, ANSWERS).await, [5, 8, 9, 10]);
        })
        .await;
    }

    #[tokio::test]
    async fn only_what_still_says_something_is_recovered() {
        on_each_engine(&[&store::MIGRATIONS, &lane::MIGRATIONS], async |store| {
            for (id, state, made, ended) in VARIOUS {
                put(&store, id, state, made, ended).await;
            }
            purge(&store, PERIODS).await;
            assert_eq!(rows::count_dead(&store, 1, 0).await.unwrap(), 1);
            assert_eq!(rows::recover(&store, 1, false, 0, noon().as_microsecond()).await.unwrap(), 1);
            assert_eq!(ids(&store, "SELECT id FROM deliveries WHERE state = 0 ORDER BY id").await, [2, 9]);
        })
        .await;
    }

    #[tokio::test]
    async fn a_walk_takes_small_steps_over_what_stays_and_ends_where_all_is_new() {
        on_each_engine(&[&store::MIGRATIONS, &lane::MIGRATIONS], async |store| {
            for id in 1..=3 * STEP {
                let (state, ended) = if id <= STEP { (0, None) } else { (3, Some(100)) };
                put(&store, id, state, 100, ended).await;
            }
            for id in 3 * STEP + 1..=5 * STEP {
                put(&store, id, 3, 1, Some(1)).await;
            }
            let mut retention = Retention::new(store.clone(), PERIODS);
            for left in [5 * STEP, 4 * STEP, 3 * STEP] {
                assert!(retention.step(noon()).await.unwrap());
                assert_eq!(ids(&store, DELIVERIES).await.len() as i64, left);
            }
            assert!(!retention.step(noon()).await.unwrap());
        })
        .await;
    }
}
