//! Notifications and their messages as the store holds them.
//!
//! Who is told and how is fixed when a notification is recorded, in one transaction with the notices it puts into
//! inboxes. How a message in a lane stands is read from its delivery.
//!
//! Invariant: one notification per (organization, event, workflow), so that nobody is told twice of one event.

use chassis::{
    clock::from_micros,
    error::{Error, Result},
    id::{OrganizationId, uuid, uuid_text},
    lane::State,
    secret::{DataKeys, place},
    store::{Store, Tx},
    with,
};
use jiff::Timestamp;
use sha2::{Digest as _, Sha256};

use crate::{
    collapse::Said,
    inbox::{self, NewNotice},
};

/// How a message gets to its recipient. The numbers are those of the store.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[repr(i64)]
pub(crate) enum Route {
    /// Through a lane.
    Lane = 0,
    /// It is in the inbox.
    Record = 1,
    /// Not at all.
    Skipped = 2,
}

/// A notification to be recorded.
#[derive(Debug, Clone)]
pub(crate) struct NewNotification {
    pub(crate) organization: OrganizationId,
    /// The name that was asked for.
    pub(crate) workflow: String,
    pub(crate) event_id: String,
    pub(crate) event_uid: String,
    pub(crate) priority: i64,
    pub(crate) collapse_key: String,
    /// SHA-256 of what an RPC asked for; empty for an event.
    pub(crate) request: Vec<u8>,
}

/// A message to be recorded.
#[derive(Debug, Clone)]
pub(crate) struct NewMessage {
    pub(crate) uid: [u8; 16],
    pub(crate) recipient: String,
    pub(crate) channel: String,
    pub(crate) route: Route,
    pub(crate) reason: String,
    /// Rendered; empty if it was skipped.
    pub(crate) content: bytes::Bytes,
}

/// A message's uid: the same however often its event comes.
pub(crate) fn message_uid(
    organization: &OrganizationId,
    event_uid: &str,
    workflow: &str,
    recipient: &str,
    channel: &str,
) -> [u8; 16] {
    digest(&[organization.as_str(), event_uid, workflow, recipient, channel])
}

/// The first 16 bytes of a SHA-256 over the parts, each with its length.
pub(crate) fn digest(parts: &[&str]) -> [u8; 16] {
    let mut hash = Sha256::new();
    for part in parts {
        hash.update((part.len() as u64).to_be_bytes());
        hash.update(part);
    }
    let hash = hash.finalize();
    let mut first = [0; 16];
    first.copy_from_slice(&hash[..16]);
    first
}

/// Where a message's content belongs, for its seal.
pub(crate) fn content_place(uid: &[u8; 16]) -> Vec<u8> {
    place("messages", "content", &uuid_text(*uid))
}

/// A notification that was recorded before.
#[derive(Debug, Clone, sqlx::FromRow)]
pub(crate) struct Known {
    pub(crate) id: String,
    pub(crate) workflow: String,
    pub(crate) request: Vec<u8>,
}

/// The notification of an event; of this workflow, unless it is empty.
pub(crate) async fn known(
    store: &Store,
    organization: &OrganizationId,
    event_uid: &str,
    workflow: &str,
) -> Result<Option<Known>> {
    let known = with!(store.reader(), c => sqlx::query_as(
        "SELECT id, workflow, request FROM notifications WHERE organization_id = $1 AND event_uid = $2 AND ($3 = '' OR workflow = $3) LIMIT 1",
    ).bind(organization.as_str()).bind(event_uid).bind(workflow).fetch_optional(c).await)?;
    Ok(known)
}

/// Records a notification with everything it comes to. Gives its id, and the notices that inboxes now hold; none if
/// another had recorded it meanwhile.
pub(crate) async fn record(
    store: &Store,
    keys: &DataKeys,
    new: &NewNotification,
    messages: &[NewMessage],
    told_by: Option<&str>,
    said: &Said<'_>,
    now: Timestamp,
) -> Result<Option<(String, Vec<inbox::Changed>)>> {
    let (id, at) = (uuid(now), now.as_microsecond());
    // Making an organization's key is a commit of its own: it comes before ours begins.
    let key = keys.of(&new.organization).await?;
    let mut tx = store.begin().await?;
    if !insert(&mut tx, &id, new, at).await? {
        return Ok(None);
    }
    let mut changed = Vec::new();
    for message in messages {
        let sealed = (message.route == Route::Lane).then(|| key.seal(&content_place(&message.uid), &message.content));
        insert_message(&mut tx, &id, new, message, sealed, at).await?;
        if message.route == Route::Record {
            let notice = NewNotice {
                organization: &new.organization,
                recipient: &message.recipient,
                workflow: &new.workflow,
                event_uid: &new.event_uid,
                priority: new.priority,
                content: &message.content,
            };
            changed.push(inbox::insert(&mut tx, &key, &notice, now).await?);
        }
    }
    said.note(&mut tx, &new.event_id, told_by.is_some(), at).await?;
    tx.commit().await?;
    Ok(Some((id, changed)))
}

async fn insert(tx: &mut Tx, id: &str, new: &NewNotification, at: i64) -> Result<bool> {
    let inserted = with!(tx.on(), c => sqlx::query(
        "INSERT INTO notifications (id, organization_id, workflow, event_id, event_uid, priority, collapse_key, request, created_at)
         VALUES ($1, $2, $3, $4, $5, $6, $7, $8, $9) ON CONFLICT (organization_id, event_uid, workflow) DO NOTHING",
    )
    .bind(id)
    .bind(new.organization.as_str())
    .bind(&new.workflow)
    .bind(&new.event_id)
    .bind(&new.event_uid)
    .bind(new.priority)
    .bind(&new.collapse_key)
    .bind(&new.request)
    .bind(at)
    .execute(c).await.map(|done| done.rows_affected()))?;
    Ok(inserted > 0)
}

async fn insert_message(
    tx: &mut Tx,
    id: &str,
    new: &NewNotification,
    message: &NewMessage,
    sealed: Option<Vec<u8>>,
    at: i64,
) -> Result<()> {
    with!(tx.on(), c => sqlx::query(
        "INSERT INTO messages (uid, notification_id, organization_id, recipient_id, channel, fate, cancelled, reason, priority, content, created_at)
         VALUES ($1, $2, $3, $4, $5, $6, 0, $7, $8, $9, $10)",
    )
    .bind(&message.uid[..])
    .bind(id)
    .bind(new.organization.as_str())
    .bind(&message.recipient)
    .bind(&message.channel)
    .bind(message.route as i64)
    .bind(&message.reason)
    .bind(new.priority)
    .bind(sealed)
    .bind(at)
    .execute(c).await.map(drop))?;
    Ok(())
}

/// A notification as it is shown.
#[derive(Debug, Clone)]
pub(crate) struct Notification {
    pub(crate) id: String,
    pub(crate) workflow: String,
    pub(crate) event_id: String,
    pub(crate) event_uid: String,
    pub(crate) priority: i64,
    pub(crate) created_at: Timestamp,
    pub(crate) messages: Vec<Message>,
}

/// A message as it is shown.
#[derive(Debug, Clone)]
pub(crate) struct Message {
    pub(crate) id: String,
    pub(crate) recipient: String,
    pub(crate) channel: String,
    pub(crate) standing: Standing,
    pub(crate) reason: String,
    pub(crate) attempts: u32,
    pub(crate) created_at: Timestamp,
    pub(crate) sent_at: Option<Timestamp>,
}

/// Where a message stands.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Standing {
    Waiting,
    Sending,
    Sent,
    Failed,
    Unknown,
    Cancelled,
    Skipped,
}

/// Which notifications to list; empty texts: all.
#[derive(Debug, Clone, Default)]
pub(crate) struct Filter {
    pub(crate) id: String,
    /// Idempotency key or uid.
    pub(crate) event: String,
    pub(crate) recipient: String,
    /// Only older ones than this id.
    pub(crate) before: String,
}

#[derive(sqlx::FromRow)]
struct Row {
    id: String,
    workflow: String,
    event_id: String,
    event_uid: String,
    priority: i64,
    created_at: i64,
}

/// Up to `limit` notifications of an organization with their messages, newest first.
pub(crate) async fn list(
    store: &Store,
    organization: &OrganizationId,
    filter: &Filter,
    limit: u32,
) -> Result<Vec<Notification>> {
    let rows: Vec<Row> = with!(store.reader(), c => sqlx::query_as(
        "SELECT id, workflow, event_id, event_uid, priority, created_at FROM notifications
         WHERE organization_id = $1 AND ($2 = '' OR id = $2) AND ($3 = '' OR event_id = $3 OR event_uid = $3)
             AND ($4 = '' OR id IN (SELECT notification_id FROM messages WHERE organization_id = $1 AND recipient_id = $4))
             AND ($5 = '' OR id < $5)
         ORDER BY id DESC LIMIT $6",
    )
    .bind(organization.as_str())
    .bind(&filter.id)
    .bind(&filter.event)
    .bind(&filter.recipient)
    .bind(&filter.before)
    .bind(i64::from(limit))
    .fetch_all(c).await)?;
    let mut notifications = Vec::with_capacity(rows.len());
    for row in rows {
        let messages = messages(store, &row.id).await?;
        notifications.push(Notification {
            id: row.id,
            workflow: row.workflow,
            event_id: row.event_id,
            event_uid: row.event_uid,
            priority: row.priority,
            created_at: from_micros(row.created_at),
            messages,
        });
    }
    Ok(notifications)
}

/// One notification.
///
/// # Errors
/// `Error::NotFound` when the organization has none of this id.
pub(crate) async fn get(store: &Store, organization: &OrganizationId, id: &str) -> Result<Notification> {
    let not_found = || Error::NotFound("notification".into());
    if id.is_empty() {
        return Err(not_found());
    }
    let filter = Filter { id: id.to_owned(), ..Filter::default() };
    list(store, organization, &filter, 1).await?.pop().ok_or_else(not_found)
}

#[derive(sqlx::FromRow)]
struct MessageRow {
    uid: Vec<u8>,
    recipient_id: String,
    channel: String,
    fate: i64,
    cancelled: i64,
    reason: String,
    created_at: i64,
    state: Option<i64>,
    attempts: Option<i64>,
    finished_at: Option<i64>,
    why: Option<String>,
}

async fn messages(store: &Store, notification: &str) -> Result<Vec<Message>> {
    let rows: Vec<MessageRow> = with!(store.reader(), c => sqlx::query_as(
        "SELECT m.uid, m.recipient_id, m.channel, m.fate, m.cancelled, m.reason, m.created_at, d.state, d.attempts, d.finished_at,
             d.reason AS why
         FROM messages AS m LEFT JOIN deliveries AS d ON d.event = m.uid
         WHERE m.notification_id = $1 ORDER BY m.recipient_id, m.channel",
    ).bind(notification).fetch_all(c).await)?;
    rows.into_iter().map(shown).collect()
}

fn shown(row: MessageRow) -> Result<Message> {
    let uid = row.uid.try_into().map_err(|_| Error::internal(anyhow::anyhow!("a message has a malformed uid")))?;
    let standing = standing(row.fate, row.cancelled == 1, row.state.and_then(State::from_number));
    let sent_at = match standing {
        Standing::Sent if row.fate == Route::Record as i64 => Some(row.created_at),
        Standing::Sent => row.finished_at,
        _ => None,
    };
    let reason = match (standing, row.why.filter(|why| !why.is_empty())) {
        (Standing::Cancelled, _) => {
            format!("{}; their entry in the directory was removed before it was sent", row.reason)
        }
        (Standing::Sent, _) | (_, None) => row.reason,
        (_, Some(why)) => format!("{}; {why}", row.reason),
    };
    Ok(Message {
        id: uuid_text(uid),
        recipient: row.recipient_id,
        channel: row.channel,
        standing,
        reason,
        attempts: row.attempts.and_then(|attempts| u32::try_from(attempts).ok()).unwrap_or(0),
        created_at: from_micros(row.created_at),
        sent_at: sent_at.map(from_micros),
    })
}

/// `state` is that of the delivery, where a lane has the message already.
fn standing(fate: i64, cancelled: bool, state: Option<State>) -> Standing {
    if fate == Route::Skipped as i64 {
        return Standing::Skipped;
    }
    if fate == Route::Record as i64 {
        return Standing::Sent;
    }
    match state {
        Some(State::Delivered) => Standing::Sent,
        Some(State::Sending) => Standing::Sending,
        Some(State::Unknown) => Standing::Unknown,
        _ if cancelled => Standing::Cancelled,
        None | Some(State::Waiting | State::Blocked) => Standing::Waiting,
        Some(State::Dead) => Standing::Failed,
        Some(State::Cancelled) => Standing::Cancelled,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn uids_tell_every_part_apart() {
        let organization = OrganizationId::parse("o").unwrap();
        let uid = |event, workflow, recipient, channel| message_uid(&organization, event, workflow, recipient, channel);
        let one = uid("e", "w", "r", "email");
        assert_eq!(one, uid("e", "w", "r", "email"));
        for other in [
            uid("e", "w", "r", "in_app"),
            uid("e", "w", "re", "mail"),
            uid("e", "wr", "", "email"),
            uid("f", "w", "r", "email"),
        ] {
            assert_ne!(one, other);
        }
    }

    #[test]
    fn what_was_sent_stays_sent_after_its_recipient_is_removed() {
        let lane = Route::Lane as i64;
        assert_eq!(standing(lane, true, Some(State::Delivered)), Standing::Sent);
        assert_eq!(standing(lane, true, Some(State::Unknown)), Standing::Unknown);
        assert_eq!(standing(lane, true, Some(State::Dead)), Standing::Cancelled);
        assert_eq!(standing(lane, true, None), Standing::Cancelled);
        assert_eq!(standing(lane, false, None), Standing::Waiting);
    }
}
