//! What notifications said goes after its time, in small steps; who was told when, by which channel and how it came out stays.
//!
//! What goes: the variables of old notifications, the words of notices, texts that were never taken, and what providers said
//! of them. Of what it took, a provider's name for the message stays, and nothing else was kept. And what was being sent
//! while its reader was erased goes within the hour after it ended.
//!
//! Guarantee: what still waits or is still to be confirmed when its notification is purged ends in the same transaction, with
//! that as its reason; nothing looks for what isn't there any more.

use chassis::{
    clock::earlier,
    error::Result,
    lane::retention::purge_answers,
    purge::Purge,
    store::{Store, Tx},
    with,
};
use jiff::{SignedDuration, Timestamp};

/// Rows of each kind in one step.
const STEP: i64 = 100;
/// How long ago what is looked through for erased readers may have ended: it is looked at each hour.
const ENDED_WITHIN: SignedDuration = SignedDuration::from_hours(24);

/// Purges what notifications said.
pub(crate) struct Retention {
    pub(crate) store: Store,
    pub(crate) keep: SignedDuration,
}

impl Purge for Retention {
    async fn step(&mut self, now: Timestamp) -> Result<bool> {
        let purged = step(&self.store, earlier(now, self.keep), now).await?;
        if purged > 0 {
            tracing::info!(purged, "what old notifications said is purged");
        }
        Ok(purged > 0)
    }
}

/// Purges up to a step of everything that was made before; gives the number of rows.
async fn step(store: &Store, before: Timestamp, now: Timestamp) -> Result<u64> {
    let before = before.as_microsecond();
    Ok(notifications(store, before).await?
        + notices(store, before, now).await?
        + rows(store, DELIVERIES, before).await?
        + purge_answers(store, before, STEP).await?
        + erased(store, (now - ENDED_WITHIN).as_microsecond()).await?)
}

/// What ended since for somebody who isn't in the directory any more: their answers first, while their texts still name them.
async fn erased(store: &Store, since: i64) -> Result<u64> {
    rows(store, ERASED_ANSWERS, since).await?;
    rows(store, ERASED_TEXTS, since).await
}

const ERASED_ANSWERS: &str = "UPDATE attempts SET response = NULL WHERE response IS NOT NULL AND delivery IN
     (SELECT d.id FROM deliveries AS d WHERE d.content IS NOT NULL AND d.state IN (4, 5, 6) AND d.finished_at >= $1
         AND d.ordering_key NOT LIKE 'room:%' AND NOT EXISTS
             (SELECT 1 FROM recipients AS r WHERE r.organization_id = d.organization_id AND r.id = d.ordering_key)
         ORDER BY d.id LIMIT $2)";
const ERASED_TEXTS: &str = "UPDATE deliveries SET content = NULL WHERE id IN
     (SELECT d.id FROM deliveries AS d WHERE d.content IS NOT NULL AND d.state IN (4, 5, 6) AND d.finished_at >= $1
         AND d.ordering_key NOT LIKE 'room:%' AND NOT EXISTS
             (SELECT 1 FROM recipients AS r WHERE r.organization_id = d.organization_id AND r.id = d.ordering_key)
         ORDER BY d.id LIMIT $2)";

const DELIVERIES: &str = "UPDATE deliveries SET content = NULL WHERE id IN
     (SELECT id FROM deliveries WHERE content IS NOT NULL AND state IN (4, 5, 6) AND created_at < $1 ORDER BY created_at LIMIT $2)";

async fn rows(store: &Store, statement: &'static str, before: i64) -> Result<u64> {
    let purged = with!(store.writer(), c => sqlx::query(statement).bind(before).bind(STEP).execute(c).await.map(|done| done.rows_affected()))?;
    Ok(purged)
}

/// A notice without words is in no inbox any more.
async fn notices(store: &Store, before: i64, now: Timestamp) -> Result<u64> {
    let purged = with!(store.writer(), c => sqlx::query(
        "UPDATE notices SET content = $3, archived_at = COALESCE(archived_at, $4) WHERE id IN
             (SELECT id FROM notices WHERE LENGTH(content) > 0 AND created_at < $1 ORDER BY created_at LIMIT $2)",
    ).bind(before).bind(STEP).bind(&b""[..]).bind(now.as_microsecond()).execute(c).await.map(|done| done.rows_affected()))?;
    Ok(purged)
}

async fn notifications(store: &Store, before: i64) -> Result<u64> {
    let old: Vec<String> = with!(store.reader(), c => sqlx::query_scalar(
        "SELECT id FROM notifications WHERE kept IS NOT NULL AND created_at < $1 ORDER BY created_at LIMIT $2",
    ).bind(before).bind(STEP).fetch_all(c).await)?;
    if old.is_empty() {
        return Ok(0);
    }
    let mut tx = store.begin().await?;
    for id in &old {
        purge(&mut tx, id).await?;
    }
    tx.commit().await?;
    Ok(old.len() as u64)
}

/// What waits ends first: nothing can be made of it any more.
const END: &[&str] = &[
    "UPDATE confirmations SET due_at = NULL, how = 'it is too old' WHERE notification_id = $1 AND due_at IS NOT NULL",
    "UPDATE messages SET cancelled = 1, content = NULL, due_at = NULL, ended = 'it is too old to be sent'
     WHERE notification_id = $1 AND cancelled = 0 AND (fate = 3 OR fate = 0 AND (content IS NOT NULL OR EXISTS
         (SELECT 1 FROM deliveries AS d WHERE d.event = messages.uid AND d.state IN (0, 2))))",
    "UPDATE messages SET failed_at = NULL WHERE notification_id = $1 AND failed_at IS NOT NULL",
    "DELETE FROM behinds WHERE (organization_id, event_uid) IN
         (SELECT organization_id, event_uid FROM notifications WHERE id = $1)",
    "UPDATE notifications SET kept = NULL WHERE id = $1",
];

async fn purge(tx: &mut Tx, id: &str) -> Result<()> {
    for statement in END {
        with!(tx.on(), c => sqlx::query(*statement).bind(id).execute(c).await.map(drop))?;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use chassis::{
        clock::from_micros,
        lane, store,
        testing::{noon, on_each_engine},
    };

    use super::*;
    use crate::MIGRATIONS;

    const DAY: i64 = 86_400_000_000;

    /// A notification of which something waits, something lies in a lane, something died there, and a notice.
    async fn put(store: &Store, id: &str, at: i64) {
        let bytes = id.as_bytes();
        with!(store.writer(), c => sqlx::query(
            "INSERT INTO notifications (id, organization_id, workflow, event_id, event_uid, priority, collapse_key, request, created_at, kept)
             VALUES ($1, 'o', 'w', $1, $1, 3, '', $2, $3, $2)",
        ).bind(id).bind(bytes).bind(at).execute(c).await.map(drop)).unwrap();
        with!(store.writer(), c => sqlx::query(
            "INSERT INTO notices (id, organization_id, recipient_id, workflow, event_uid, priority, content, created_at)
             VALUES ($1, 'o', 'r', 'w', $1, 3, $2, $3)",
        ).bind(id).bind(bytes).bind(at).execute(c).await.map(drop))
        .unwrap();
        with!(store.writer(), c => sqlx::query(
            "INSERT INTO confirmations (notification_id, recipient_id, organization_id, fact, asked_at, step, wait, due_at, acknowledged_by, how)
             VALUES ($1, 'r', 'o', '', $2, 0, 1, $2, '', '')",
        ).bind(id).bind(at).execute(c).await.map(drop)).unwrap();
        with!(store.writer(), c => sqlx::query("INSERT INTO behinds (organization_id, about, event_uid) VALUES ('o', 'a', $1)")
            .bind(id).execute(c).await.map(drop))
        .unwrap();
        for (channel, fate, state) in
            [("sms", 3, None), ("email", 0, Some(0)), ("push", 0, Some(4)), ("slack", 0, Some(3))]
        {
            let uid = format!("{id}-{channel}-uid").into_bytes();
            with!(store.writer(), c => sqlx::query(
                "INSERT INTO messages (uid, notification_id, organization_id, recipient_id, channel, fate, cancelled, reason, priority, created_at)
                 VALUES ($1, $2, 'o', 'r', $3, $4, 0, 'because', 3, $5)",
            ).bind(&uid).bind(id).bind(channel).bind(fate).bind(at).execute(c).await.map(drop)).unwrap();
            let Some(state) = state else { continue };
            let text = (state != 3).then_some(bytes);
            let outcome = if state == 3 { "delivered" } else { "refused" };
            with!(store.writer(), c => sqlx::query(
                "INSERT INTO deliveries (id, lane, organization_id, event, event_id, event_type, ordering_key, priority, state, origin, attempts,
                     reopened_after, next_at, created_at, reason, content)
                 SELECT COALESCE(MAX(id), 0) + 1, 1, 'o', $1, $2, 'w', 'r', 3, $3, 'realtime', 1, 0, $4, $4, '', $5 FROM deliveries",
            ).bind(&uid).bind(id).bind(state).bind(at).bind(text).execute(c).await.map(drop)).unwrap();
            with!(store.writer(), c => sqlx::query(
                "INSERT INTO attempts (delivery, number, lane, started_at, duration, outcome, error, response)
                 SELECT MAX(id), 1, 1, $1, 0, $2, '', $3 FROM deliveries",
            ).bind(at).bind(outcome).bind(bytes).execute(c).await.map(drop))
            .unwrap();
        }
    }

    async fn count(store: &Store, query: &'static str) -> i64 {
        with!(store.reader(), c => sqlx::query_scalar(query).fetch_one(c).await).unwrap()
    }

    #[tokio::test]
    async fn what_is_old_says_nothing_any_more_and_all_else_stays() {
        on_each_engine(&[&store::MIGRATIONS, &lane::MIGRATIONS, &MIGRATIONS], async |store| {
            let now = noon().as_microsecond();
            put(&store, "old", now - 401 * DAY).await;
            put(&store, "new", now - 399 * DAY).await;
            let before = from_micros(now - 400 * DAY);
            assert!(step(&store, before, noon()).await.unwrap() > 0);
            assert_eq!(step(&store, before, noon()).await.unwrap(), 0, "once");
            for (claim, query) in [
                ("variables", "SELECT COUNT(*) FROM notifications WHERE kept IS NOT NULL"),
                ("what it is behind with", "SELECT COUNT(*) FROM behinds"),
                ("words", "SELECT COUNT(*) FROM notices WHERE LENGTH(content) > 0 AND archived_at IS NULL"),
                ("what is confirmed later", "SELECT COUNT(*) FROM confirmations WHERE due_at IS NOT NULL"),
                ("what waits for its time", "SELECT COUNT(*) FROM messages WHERE fate = 3 AND cancelled = 0"),
                ("what waits in its lane", "SELECT COUNT(*) FROM messages WHERE channel = 'email' AND cancelled = 0"),
                ("texts that died", "SELECT COUNT(*) FROM deliveries WHERE state = 4 AND content IS NOT NULL"),
                (
                    "answers to what died",
                    "SELECT COUNT(*) FROM attempts AS a JOIN deliveries AS d ON d.id = a.delivery
                                          WHERE d.state = 4 AND a.response IS NOT NULL",
                ),
            ] {
                assert_eq!(count(&store, query).await, 1, "{claim}: the new one's alone");
            }
            for (claim, query, number) in [
                ("notifications", "SELECT COUNT(*) FROM notifications", 2),
                ("notices", "SELECT COUNT(*) FROM notices", 2),
                ("messages with their reasons", "SELECT COUNT(*) FROM messages WHERE reason = 'because'", 8),
                (
                    "what arrived",
                    "SELECT COUNT(*) FROM messages WHERE channel IN ('push', 'slack') AND cancelled = 0",
                    4,
                ),
                ("deliveries", "SELECT COUNT(*) FROM deliveries", 6),
                (
                    "names of what was taken",
                    "SELECT COUNT(*) FROM attempts WHERE outcome = 'delivered' AND response IS NOT NULL",
                    2,
                ),
            ] {
                assert_eq!(count(&store, query).await, number, "{claim}");
            }
        })
        .await;
    }

    #[tokio::test]
    async fn what_was_being_sent_to_somebody_who_was_erased_goes_once_it_ended() {
        on_each_engine(&[&store::MIGRATIONS, &lane::MIGRATIONS, &MIGRATIONS], async |store| {
            let now = noon().as_microsecond();
            put(&store, "n", now - DAY).await;
            let finish = "UPDATE deliveries SET finished_at = created_at + 86000000000, ordering_key = $1 WHERE state = 4";
            let left = "SELECT COUNT(*) FROM deliveries AS d JOIN attempts AS a ON a.delivery = d.id
                        WHERE d.state = 4 AND d.content IS NOT NULL AND a.response IS NOT NULL";
            let gone = "SELECT COUNT(*) FROM deliveries AS d JOIN attempts AS a ON a.delivery = d.id
                        WHERE d.state = 4 AND d.content IS NULL AND a.response IS NULL";
            with!(store.writer(), c => sqlx::query(
                "INSERT INTO recipients (organization_id, id, kind, vendor_type, time_zone, locale, channels, contact, updated_at)
                 VALUES ('o', 'here', 1, '', '', '', '[]', $1, 1)",
            ).bind(&b""[..]).execute(c).await.map(drop)).unwrap();
            for (reader, query) in [("here", left), ("room:w", left), ("erased", gone)] {
                with!(store.writer(), c => sqlx::query(finish).bind(reader).execute(c).await.map(drop)).unwrap();
                step(&store, from_micros(0), noon()).await.unwrap();
                assert_eq!(count(&store, query).await, 1, "{reader}");
            }
            let waits = "SELECT COUNT(*) FROM deliveries WHERE state = 0 AND content IS NOT NULL";
            assert_eq!(count(&store, waits).await, 1, "what waits is its lane's");
        })
        .await;
    }

    #[tokio::test]
    async fn a_step_is_small_and_the_next_goes_on() {
        on_each_engine(&[&store::MIGRATIONS, &lane::MIGRATIONS, &MIGRATIONS], async |store| {
            let now = noon().as_microsecond();
            for number in 0..STEP + 1 {
                put(&store, &format!("n{number}"), now - 500 * DAY + number).await;
            }
            let left = "SELECT COUNT(*) FROM notifications WHERE kept IS NOT NULL";
            step(&store, noon(), noon()).await.unwrap();
            assert_eq!(count(&store, left).await, 1);
            step(&store, noon(), noon()).await.unwrap();
            assert_eq!(count(&store, left).await, 0);
        })
        .await;
    }
}
