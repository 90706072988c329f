//! What is urgent and couldn't be delivered goes on to the next channel at once.
//!
//! What is urgent was sent by everything that reaches its person soonest already; this is for what is left then, and for
//! those whom nothing else reached.

use chassis::{
    error::{Error, Result},
    store::Tx,
    with,
};
use jiff::Timestamp;

use crate::{
    escalate::Because,
    escalation::first_open,
    kept::{self, Waiting},
    policy::Urgency,
    recipient::Person,
    tell::Notifier,
};

/// Messages in one pass.
const PAGE: i64 = 100;

/// Notes that a message was refused for good, or failed later, if it is urgent and not confirmed; true if something is to be
/// done about it.
pub(crate) async fn note(tx: &mut Tx, uid: &[u8; 16], now: Timestamp) -> Result<bool> {
    let noted = with!(tx.on(), c => sqlx::query(
        "UPDATE messages SET failed_at = $2 WHERE uid = $1 AND notification_id IN
             (SELECT id FROM notifications WHERE kept IS NOT NULL AND (priority = 1 OR workflow = 'emergency' OR override_by <> ''))
             AND NOT EXISTS (SELECT 1 FROM confirmations AS c WHERE c.notification_id = messages.notification_id
                 AND c.recipient_id = messages.recipient_id AND c.acknowledged_at IS NOT NULL)",
    ).bind(&uid[..]).bind(now.as_microsecond()).execute(c).await.map(|done| done.rows_affected()))?;
    Ok(noted > 0)
}

#[derive(sqlx::FromRow)]
struct Row {
    uid: Vec<u8>,
    notification_id: String,
    recipient_id: String,
    channel: String,
}

impl Notifier {
    /// Goes on with everything urgent that failed.
    ///
    /// # Errors
    /// Those of the store; what came before the one that failed is done.
    pub(crate) async fn fail_over(&self) -> Result<()> {
        loop {
            let failed: Vec<Row> = with!(self.store.reader(), c => sqlx::query_as(
                "SELECT uid, notification_id, recipient_id, channel FROM messages WHERE failed_at IS NOT NULL ORDER BY failed_at LIMIT $1",
            ).bind(PAGE).fetch_all(c).await)?;
            if failed.is_empty() {
                return Ok(());
            }
            for row in failed {
                self.go_on(row).await?;
            }
        }
    }

    async fn go_on(&self, row: Row) -> Result<()> {
        let uid: [u8; 16] =
            row.uid.try_into().map_err(|_| Error::internal(anyhow::anyhow!("a message has a malformed uid")))?;
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
}
