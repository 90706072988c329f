//! What couldn't be delivered goes on to the next channel: what is urgent and was refused for good at once, and whatever its
//! provider hasn't taken for too long.
//!
//! What is urgent was sent by everything that reaches its person soonest already; this is for what is left then, and for
//! those whom nothing else reached.
//!
//! Guarantee: what goes on while its message still waits has withdrawn that in the same transaction, which finds it waiting
//! or changes nothing. What was sent, is being sent, or may have arrived stays where it is.

mod stall;

use std::{sync::Arc, time::Duration};

use chassis::{
    clock::from_micros,
    error::{Error, Result},
    store::{Store, Tx},
    with,
};
use jiff::Timestamp;
use tokio_util::sync::CancellationToken;

use self::stall::{Next, Stall, decide};
use crate::{
    config::Failover,
    escalate::Because,
    escalation::first_open,
    fact,
    kept::{self, Waiting},
    limit,
    policy::Urgency,
    recipient::Person,
    room,
    tell::Notifier,
};

/// Messages in one pass.
const PAGE: i64 = 100;
/// How often it is looked at what providers don't take.
const LOOK: Duration = Duration::from_secs(10);
/// Never again.
const NEVER: Timestamp = Timestamp::MAX;

/// Notes that a message was refused for good, or failed later, if it is urgent and not confirmed, or was for a wedding's room;
/// true if something is to be done about it.
pub(crate) async fn note(tx: &mut Tx, uid: &[u8; 16], now: Timestamp) -> Result<bool> {
    let noted = with!(tx.on(), c => sqlx::query(
        "UPDATE messages SET failed_at = $2 WHERE uid = $1 AND notification_id IN
             (SELECT id FROM notifications WHERE kept IS NOT NULL
                 AND (priority = 1 OR workflow = 'emergency' OR override_by <> '' OR messages.recipient_id LIKE 'room:%'))
             AND NOT EXISTS (SELECT 1 FROM confirmations AS c WHERE c.notification_id = messages.notification_id
                 AND c.recipient_id = messages.recipient_id AND c.acknowledged_at IS NOT NULL)",
    ).bind(&uid[..]).bind(now.as_microsecond()).execute(c).await.map(|done| done.rows_affected()))?;
    Ok(noted > 0)
}

/// Withdraws a message that still waits in its lane; false if it left, or is leaving, meanwhile.
pub(crate) async fn withdraw(tx: &mut Tx, uid: &[u8; 16]) -> Result<bool> {
    // This holds the row: its lane can't say that it is being sent before we are done, and then sees that it is withdrawn.
    let waits = with!(tx.on(), c => sqlx::query("UPDATE deliveries SET next_at = next_at WHERE event = $1 AND state IN (0, 2)")
        .bind(&uid[..]).execute(c).await.map(|done| done.rows_affected()))?;
    Ok(waits > 0 && fact::withdraw(tx, uid, "withdrawn: another channel went on with it").await?)
}

#[derive(sqlx::FromRow)]
struct Row {
    uid: Vec<u8>,
    notification_id: String,
    recipient_id: String,
    channel: String,
    /// Since when its lane has it.
    since: i64,
}

impl Row {
    fn uid(&self) -> Result<[u8; 16]> {
        let uid = self.uid.as_slice().try_into();
        uid.map_err(|_| Error::internal(anyhow::anyhow!("a message has a malformed uid")))
    }
}

/// Looks at what providers don't take until told to stop.
pub(crate) async fn run(notifier: Arc<Notifier>, stopping: CancellationToken) {
    while !stopping.is_cancelled() {
        match notifier.look().await {
            Ok(looked) if looked == PAGE => {}
            Ok(_) => drop(stopping.run_until_cancelled(notifier.clock.sleep(LOOK)).await),
            Err(error) => {
                tracing::warn!(%error, "can't look at what providers don't take; trying again in 10 seconds");
                stopping.run_until_cancelled(tokio::time::sleep(LOOK)).await;
            }
        }
    }
}

impl Notifier {
    /// Goes on with everything urgent that failed.
    ///
    /// # Errors
    /// Those of the store; one message's failure holds up no other.
    pub(crate) async fn fail_over(&self) -> Result<()> {
        let (mut after, mut failed) = ((i64::MIN, Vec::new()), None);
        loop {
            let page: Vec<Row> = with!(self.store.reader(), c => sqlx::query_as(
                "SELECT uid, notification_id, recipient_id, channel, failed_at AS since FROM messages
                 WHERE failed_at IS NOT NULL AND (failed_at, uid) > ($1, $2) ORDER BY failed_at, uid LIMIT $3",
            ).bind(after.0).bind(&after.1).bind(PAGE).fetch_all(c).await)?;
            let Some(last) = page.last() else { return failed.map_or(Ok(()), Err) };
            after = (last.since, last.uid.clone());
            for row in page {
                failed = self.go_on(row).await.err().or(failed);
            }
        }
    }

    async fn go_on(&self, row: Row) -> Result<()> {
        let uid = row.uid()?;
        if room::is_room(&row.recipient_id) {
            let mut tx = self.store.begin().await?;
            room::leave(&mut tx, &row.notification_id, &uid, self.clock.now()).await?;
            return tx.commit().await;
        }
        let waiting = kept::read(&self.store, &self.keys, &row.notification_id).await?;
        let _turn = self.turns.of(&waiting.organization).await;
        if let Some((person, channel)) = self.next_channel(&waiting, &row.recipient_id).await? {
            let because = Because::Failed { uid: &uid, channel: &row.channel };
            return self.by_channel(&because, &waiting, &person, &channel, self.clock.now()).await;
        }
        with!(self.store.writer(), c => sqlx::query("UPDATE messages SET failed_at = NULL WHERE uid = $1")
            .bind(&uid[..]).execute(c).await.map(drop))?;
        Ok(())
    }

    /// The first channel that reaches somebody and wasn't used for this; none if nothing is left.
    async fn next_channel(&self, waiting: &Waiting, recipient: &str) -> Result<Option<(Person, String)>> {
        let people = self.directory.people(&waiting.organization, waiting.kept.named()).await?;
        let urgency = waiting.kept.urgency(&waiting.asked, waiting.priority);
        let person = people.iter().find(|person| person.id == recipient && person.recipient.is_some());
        let Some(person) = person.filter(|_| urgency != Urgency::Ordinary) else { return Ok(None) };
        let left = self.left(waiting, person, &people, urgency).await?;
        Ok(first_open(&left).map(|channel| (person.clone(), channel.to_owned())))
    }

    /// Looks at up to a page of messages that their providers haven't taken for too long; gives their number.
    ///
    /// # Errors
    /// Those of the store; one message's failure holds up no other.
    async fn look(&self) -> Result<i64> {
        let now = self.clock.now();
        let stalled = stalled(&self.store, &self.failover, now).await?;
        let looked = i64::try_from(stalled.len()).unwrap_or(PAGE);
        let mut failed = None;
        for row in stalled {
            failed = self.look_at(&row, now).await.err().or(failed);
        }
        failed.map_or(Ok(looked), Err)
    }

    async fn look_at(&self, row: &Row, now: Timestamp) -> Result<()> {
        let uid = row.uid()?;
        if room::is_room(&row.recipient_id) {
            let mut tx = self.store.begin().await?;
            if withdraw(&mut tx, &uid).await? {
                room::leave(&mut tx, &row.notification_id, &uid, now).await?;
            }
            tx.commit().await?;
            self.later.notify_one();
            return Ok(());
        }
        let waiting = kept::read(&self.store, &self.keys, &row.notification_id).await?;
        let _turn = self.turns.of(&waiting.organization).await;
        let people = self.directory.people(&waiting.organization, waiting.kept.named()).await?;
        let person = people.iter().find(|person| person.id == row.recipient_id && person.recipient.is_some());
        let Some(person) = person else { return look_again(&self.store, &uid, NEVER).await };
        match decide(&self.stall(row, &waiting, person, &people, now).await?, &self.failover, now) {
            Next::Channel(channel) => {
                let because = Because::Stalled { uid: &uid, channel: &row.channel };
                self.by_channel(&because, &waiting, person, channel, now).await
            }
            Next::Later(at) => look_again(&self.store, &uid, at).await,
            Next::Never => look_again(&self.store, &uid, NEVER).await,
        }
    }

    /// What counts for a message that its provider hasn't taken.
    async fn stall(
        &self,
        row: &Row,
        waiting: &Waiting,
        person: &Person,
        people: &[Person],
        now: Timestamp,
    ) -> Result<Stall> {
        let organization = &waiting.organization;
        let urgency = waiting.kept.urgency(&waiting.asked, waiting.priority);
        let preference = self.preferences.get(organization, &person.id).await?;
        let directory = person.recipient.as_ref().map_or(&[][..], |recipient| &recipient.channels);
        let failing: Vec<String> = with!(self.store.reader(), c => sqlx::query_scalar(
            "SELECT id FROM lanes WHERE organization_id = $1 AND failing_since IS NOT NULL",
        ).bind(organization.as_str()).fetch_all(c).await)?;
        let elsewhere: i64 = with!(self.store.reader(), c => sqlx::query_scalar(
            "SELECT COUNT(*) FROM messages AS m LEFT JOIN deliveries AS d ON d.event = m.uid
             WHERE m.notification_id = $1 AND m.recipient_id = $2 AND m.uid <> $3 AND m.fate = 0 AND m.cancelled = 0
                 AND COALESCE(d.state, 1) IN (1, 3, 6)",
        ).bind(&row.notification_id).bind(&row.recipient_id).bind(&row.uid).fetch_one(c).await)?;
        Ok(Stall {
            urgency,
            since: from_micros(row.since),
            left: self.left(waiting, person, people, urgency).await?,
            failing: failing.iter().filter_map(|id| Some(id.split_once(':')?.0.to_owned())).collect(),
            wishes: stall::wishes(&preference, &waiting.asked, waiting.kept.category(&waiting.asked), directory),
            quiet_until: self.quiet_until(organization, person, now).await?,
            told: limit::told(&self.store, organization, &person.id, now).await?,
            elsewhere: elsewhere > 0,
        })
    }
}

/// What has waited too long in a lane whose provider is down, throttles us or doesn't let us in. What was put off for reasons
/// of its own, or may have been taken, may turn up yet, what its provider reported of since was taken after all, and what was confirmed needs nothing more.
async fn stalled(store: &Store, settings: &Failover, now: Timestamp) -> Result<Vec<Row>> {
    let before = |urgency| settings.before(urgency, now).map_or(i64::MIN, Timestamp::as_microsecond);
    let rows = with!(store.reader(), c => sqlx::query_as(
        "SELECT m.uid, m.notification_id, m.recipient_id, m.channel, d.created_at AS since
         FROM deliveries AS d JOIN lanes AS l ON l.number = d.lane JOIN messages AS m ON m.uid = d.event
         JOIN notifications AS n ON n.id = m.notification_id
         WHERE d.state IN (0, 2) AND m.fate = 0 AND m.cancelled = 0 AND n.kept IS NOT NULL AND COALESCE(m.look_at, 0) <= $1
             AND d.created_at <= CASE WHEN n.priority = 1 OR n.workflow = 'emergency' OR n.override_by <> '' THEN $2 ELSE $3 END
             AND (l.failing_since IS NOT NULL OR EXISTS (SELECT 1 FROM attempts AS a WHERE a.delivery = d.id
                 AND a.number = d.attempts AND a.outcome IN ('down', 'throttled', 'auth')))
             AND NOT EXISTS (SELECT 1 FROM attempts AS a WHERE a.delivery = d.id AND a.outcome IN ('postponed', 'unsettled', 'unknown'))
             AND NOT EXISTS (SELECT 1 FROM receipts AS r WHERE r.uid = m.uid)
             AND NOT EXISTS (SELECT 1 FROM confirmations AS c WHERE c.notification_id = m.notification_id
                 AND c.recipient_id = m.recipient_id AND c.acknowledged_at IS NOT NULL)
         ORDER BY m.priority, d.id LIMIT $4",
    )
    .bind(now.as_microsecond())
    .bind(before(Urgency::Urgent))
    .bind(before(Urgency::Ordinary))
    .bind(PAGE)
    .fetch_all(c).await)?;
    Ok(rows)
}

/// Notes when a message is looked at again.
pub(crate) async fn look_again(store: &Store, uid: &[u8; 16], at: Timestamp) -> Result<()> {
    with!(store.writer(), c => sqlx::query("UPDATE messages SET look_at = $2 WHERE uid = $1")
        .bind(&uid[..]).bind(at.as_microsecond()).execute(c).await.map(drop))?;
    Ok(())
}

#[cfg(test)]
mod tests;
