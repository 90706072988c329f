//! What is kept of a person, to be handed out (GDPR, article 20) and to be erased (article 17).
//!
//! Erasing leaves ids, times and outcomes, so that records stay whole, and of a suppressed address its hash, so that an
//! opt-out holds on.

use std::collections::HashSet;

use chassis::{
    error::{Error, Result},
    id::OrganizationId,
    with,
};
use serde_json::{Value, json};

use crate::{
    audit,
    inbox::Notice,
    notification::{self, Filter, Notification},
    recipient::{Person, Recipient, Relation, erase},
    suppression::hash,
    tell::Notifier,
};

/// How much an export holds.
const NOTIFICATIONS: u32 = 500;
const NOTICES: u32 = 1_000;

impl Notifier {
    /// Everything that is kept of a recipient; true if there was more than it holds.
    ///
    /// # Errors
    /// `Error::NotFound` when the organization has none of this id.
    pub(crate) async fn export(&self, organization: &OrganizationId, id: &str) -> Result<(Vec<u8>, bool)> {
        let recipient = self.directory.get(organization, id).await?;
        let preference = self.preferences.get(organization, id).await?;
        let suppressed =
            self.suppressions.among(organization, &self.addresses(&alone(&recipient), &HashSet::new())).await?;
        let facts: Vec<(String, String, String)> = with!(self.store.reader(), c => sqlx::query_as(
            "SELECT fact, channel, value FROM known_facts WHERE organization_id = $1 AND recipient_id = $2 ORDER BY fact, channel",
        ).bind(organization.as_str()).bind(id).fetch_all(c).await)?;
        let filter = Filter { recipient: id.to_owned(), ..Filter::default() };
        let notifications = notification::list(&self.store, organization, &filter, NOTIFICATIONS + 1).await?;
        let notices = self.inbox.all(organization, id, NOTICES + 1).await?;
        let truncated = notifications.len() > NOTIFICATIONS as usize || notices.len() > NOTICES as usize;
        let document = json!({
            "recipient": profile(&recipient),
            "preference": preference,
            "suppressions": suppressed.iter().map(|(channel, reason)| json!({ "channel": channel, "reason": reason.as_str() })).collect::<Vec<_>>(),
            "facts": facts.iter().map(|(fact, channel, value)| json!({ "fact": fact, "channel": channel, "value": value })).collect::<Vec<_>>(),
            "notifications": notifications.iter().take(NOTIFICATIONS as usize).map(|notification| sent(notification, id)).collect::<Vec<_>>(),
            "notices": notices.iter().take(NOTICES as usize).map(notice).collect::<Vec<_>>(),
        });
        Ok((serde_json::to_vec(&document).map_err(Error::internal)?, truncated))
    }

    /// Erases a recipient, and ends what waits for them.
    ///
    /// # Errors
    /// `Error::NotFound` when the organization has none of this id.
    pub(crate) async fn erase(&self, organization: &OrganizationId, id: &str, by: &str) -> Result<()> {
        let recipient = self.directory.get(organization, id).await?;
        let hashes: HashSet<Vec<u8>> = self
            .addresses(&alone(&recipient), &HashSet::new())
            .values()
            .chain([&recipient.contact.email, &recipient.contact.phone])
            .map(|address| hash(organization, address))
            .collect();
        let _turn = self.turns.of(organization).await;
        let mut tx = self.store.begin().await?;
        if !erase(&mut tx, organization, id, self.clock.now_micros()).await? {
            return Err(Error::NotFound("recipient".into()));
        }
        for statement in ERASE {
            with!(tx.on(), c => sqlx::query(sqlx::AssertSqlSafe(*statement)).bind(organization.as_str()).bind(id).execute(c).await.map(drop))?;
        }
        let entry = audit::Entry { action: audit::Action::Erase, by, subject: id, detail: "" };
        audit::note(&mut tx, organization, &entry, self.clock.now()).await?;
        for hash in hashes {
            with!(tx.on(), c => sqlx::query("UPDATE suppressions SET address = NULL WHERE organization_id = $1 AND hash = $2")
                .bind(organization.as_str()).bind(hash).execute(c).await.map(drop))?;
        }
        tx.commit().await
    }
}

/// What goes beside the directory's entry. A message that is being sent keeps its body until that has ended, and loses it then
/// (`retention`).
const ERASE: &[&str] = &[
    "UPDATE suppressions SET address = NULL WHERE organization_id = $1
         AND hash IN (SELECT address FROM messages WHERE organization_id = $1 AND recipient_id = $2 AND address IS NOT NULL)",
    "DELETE FROM preferences WHERE organization_id = $1 AND recipient_id = $2",
    "DELETE FROM tellings WHERE organization_id = $1 AND recipient_id = $2",
    "DELETE FROM known_facts WHERE organization_id = $1 AND recipient_id = $2",
    "UPDATE confirmations SET due_at = NULL, how = 'they were erased' WHERE organization_id = $1 AND recipient_id = $2 AND due_at IS NOT NULL",
    "UPDATE messages SET cancelled = 1, due_at = NULL, ended = 'they were erased' WHERE organization_id = $1 AND recipient_id = $2 AND fate = 3 AND cancelled = 0",
    "UPDATE messages SET address = NULL, content = NULL, failed_at = NULL WHERE organization_id = $1 AND recipient_id = $2",
    "UPDATE notifications SET kept = NULL WHERE organization_id = $1 AND kept IS NOT NULL
         AND id IN (SELECT notification_id FROM messages WHERE organization_id = $1 AND recipient_id = $2)
         AND NOT EXISTS (SELECT 1 FROM messages AS m WHERE m.notification_id = notifications.id AND m.recipient_id <> $2)",
    "UPDATE deliveries SET content = NULL WHERE organization_id = $1 AND state <> 1 AND content IS NOT NULL
         AND event IN (SELECT uid FROM messages WHERE organization_id = $1 AND recipient_id = $2)",
    "UPDATE attempts SET response = NULL WHERE response IS NOT NULL AND delivery IN
         (SELECT d.id FROM deliveries AS d JOIN messages AS m ON m.uid = d.event WHERE m.organization_id = $1 AND m.recipient_id = $2)",
];

fn alone(recipient: &Recipient) -> Person {
    Person {
        id: recipient.id.clone(),
        relation: Relation::default(),
        recipient: Some(recipient.clone()),
        vendor_types: Vec::new(),
    }
}

fn profile(recipient: &Recipient) -> Value {
    json!({
        "id": recipient.id,
        "name": recipient.name,
        "contact": recipient.contact,
        "vendor_type": recipient.vendor_type,
        "time_zone": recipient.time_zone,
        "locale": recipient.locale,
        "channels": recipient.channels,
    })
}

fn sent(notification: &Notification, recipient: &str) -> Value {
    let own = notification.messages.iter().filter(|message| message.recipient == recipient);
    let message = |message: &notification::Message| {
        json!({
            "channel": message.channel,
            "state": format!("{:?}", message.standing).to_lowercase(),
            "reason": message.reason,
            "created_at": message.created_at,
            "sent_at": message.sent_at,
        })
    };
    json!({
        "id": notification.id,
        "workflow": notification.workflow,
        "event_id": notification.event_id,
        "created_at": notification.created_at,
        "messages": own.map(message).collect::<Vec<_>>(),
    })
}

fn notice(notice: &Notice) -> Value {
    json!({
        "id": notice.id,
        "workflow": notice.workflow,
        "title": notice.words.title,
        "body": notice.words.body,
        "created_at": notice.created_at,
        "read_at": notice.read_at,
        "archived_at": notice.archived_at,
    })
}

#[cfg(test)]
mod tests {
    use chassis::{
        lane,
        store::{self, Store},
        testing::on_each_engine,
    };

    use super::*;
    use crate::MIGRATIONS;

    /// A message in a lane, with its answer, and the suppression of where it went.
    async fn put(store: &Store, recipient: &str, state: i64) {
        let uid = format!("{recipient}{state}").into_bytes();
        with!(store.writer(), c => sqlx::query(
            "INSERT INTO notifications (id, organization_id, workflow, event_id, event_uid, priority, collapse_key, request, created_at)
             VALUES ('n', 'o', 'w', 'e', 'e', 3, '', $1, 1) ON CONFLICT DO NOTHING",
        ).bind(&b""[..]).execute(c).await.map(drop)).unwrap();
        with!(store.writer(), c => sqlx::query(
            "INSERT INTO messages (uid, notification_id, organization_id, recipient_id, channel, fate, cancelled, reason, priority,
                 created_at, address) VALUES ($1, 'n', 'o', $2, 'sms', 0, 0, 'because', 3, 1, $1)",
        ).bind(&uid).bind(recipient).execute(c).await.map(drop)).unwrap();
        with!(store.writer(), c => sqlx::query(
            "INSERT INTO deliveries (id, lane, organization_id, event, event_id, event_type, ordering_key, priority, state, origin,
                 attempts, reopened_after, next_at, created_at, reason, content)
             SELECT COALESCE(MAX(id), 0) + 1, 1, 'o', $1, 'e', 'w', $2, 3, $3, 'realtime', 1, 0, 1, 1, '', $1 FROM deliveries",
        ).bind(&uid).bind(recipient).bind(state).execute(c).await.map(drop)).unwrap();
        with!(store.writer(), c => sqlx::query(
            "INSERT INTO attempts (delivery, number, lane, started_at, duration, outcome, error, response)
             SELECT MAX(id), 1, 1, 1, 0, 'delivered', '', $1 FROM deliveries",
        ).bind(&uid).execute(c).await.map(drop))
        .unwrap();
        with!(store.writer(), c => sqlx::query(
            "INSERT INTO suppressions (organization_id, channel, hash, address, reason, source, created_at)
             VALUES ('o', 'sms', $1, $1, 'bounced', '', 1)",
        ).bind(&uid).execute(c).await.map(drop))
        .unwrap();
    }

    #[tokio::test]
    async fn an_erasure_takes_what_waits_what_was_answered_and_former_addresses() {
        on_each_engine(&[&store::MIGRATIONS, &lane::MIGRATIONS, &MIGRATIONS], async |store| {
            for recipient in ["gone", "here"] {
                for state in 0..7 {
                    put(&store, recipient, state).await;
                }
            }
            let mut tx = store.begin().await.unwrap();
            for statement in ERASE {
                with!(tx.on(), c => sqlx::query(*statement).bind("o").bind("gone").execute(c).await.map(drop)).unwrap();
            }
            tx.commit().await.unwrap();
            let left = async |query: &'static str| -> Vec<String> {
                with!(store.reader(), c => sqlx::query_scalar(query).fetch_all(c).await).unwrap()
            };
            let here = vec!["here"; 7];
            let texts = "SELECT ordering_key FROM deliveries WHERE content IS NOT NULL ORDER BY ordering_key";
            assert_eq!(left(texts).await, [&["gone"][..], &here].concat(), "what is being sent keeps its text until then");
            let answers = "SELECT d.ordering_key FROM attempts AS a JOIN deliveries AS d ON d.id = a.delivery WHERE a.response IS NOT NULL";
            assert_eq!(left(answers).await, here);
            let addresses = "SELECT m.recipient_id FROM suppressions AS s JOIN messages AS m ON m.uid = s.hash WHERE s.address IS NOT NULL";
            assert_eq!(left(addresses).await, here);
        })
        .await;
    }
}
