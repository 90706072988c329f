//! Notifications and their messages as the store holds them.
//!
//! Who is told and how is fixed when a notification is recorded, in one transaction with the notices it puts into
//! inboxes. How a message in a lane stands is read from its delivery.
//!
//! Invariant: one notification per (organization, event, workflow), so that nobody is told twice of one event.

use std::collections::{BTreeSet, HashMap};

use chassis::{
    clock::from_micros,
    error::{Error, Result},
    id::{OrganizationId, uuid, uuid_text},
    lane::State,
    secret::{DataKey, DataKeys, place},
    store::{Store, Tx},
    with,
};
use jiff::Timestamp;
use sha2::{Digest as _, Sha256};

use crate::{
    collapse::Said,
    fact::{self, Belief, Change, Fact},
    inbox::{self, NewNotice},
    kept::Kept,
    limit,
    resolve::How,
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
    /// It waits for its time.
    Held = 3,
    /// It is in a digest.
    Carried = 4,
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
    /// Who had limits and quiet hours passed over, and why.
    pub(crate) override_by: String,
    pub(crate) override_reason: String,
}

/// A message to be recorded.
#[derive(Debug, Clone)]
pub(crate) struct NewMessage {
    pub(crate) uid: [u8; 16],
    pub(crate) recipient: String,
    pub(crate) channel: String,
    pub(crate) route: Route,
    pub(crate) reason: String,
    /// Rendered; empty if it was skipped or waits.
    pub(crate) content: bytes::Bytes,
    /// What was looked at, in order.
    pub(crate) trail: Vec<String>,
    /// The hash of where it goes; none if nowhere.
    pub(crate) address: Option<Vec<u8>>,
    /// Until when it waits, and why.
    pub(crate) hold: Option<(Timestamp, How)>,
}

impl NewMessage {
    /// Whether its person is told by it now.
    pub(crate) fn is_told(&self) -> bool {
        matches!(self.route, Route::Lane | Route::Record)
    }
}

/// What is recorded beside the messages, in the same transaction.
pub(crate) struct Beside<'a> {
    pub(crate) said: &'a Said<'a>,
    pub(crate) told_by: Option<&'a str>,
    pub(crate) kept: &'a Kept,
    pub(crate) fact: Option<&'a Fact>,
    /// By recipient, what they believed of the fact, by channel.
    pub(crate) beliefs: &'a HashMap<String, HashMap<String, Belief>>,
}

/// How a recording came out.
pub(crate) enum Recorded {
    /// The notification's id, and the notices that inboxes now hold.
    New(String, Vec<inbox::Changed>),
    /// Another call was faster by a moment.
    Known,
    /// What was to be withdrawn is being sent meanwhile: decide anew.
    Moved,
}

/// A line of the trail, with its time.
pub(crate) fn trail(lines: &[String], now: Timestamp) -> String {
    lines.iter().map(|line| format!("{now} {}\n", line.replace('\n', " "))).collect()
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

/// Records a notification with everything it comes to.
pub(crate) async fn record(
    store: &Store,
    keys: &DataKeys,
    new: &NewNotification,
    messages: &[NewMessage],
    beside: &Beside<'_>,
    now: Timestamp,
) -> Result<Recorded> {
    let (id, at) = (uuid(now), now.as_microsecond());
    // Making an organization's key is a commit of its own: it comes before ours begins.
    let key = keys.of(&new.organization).await?;
    let waits = messages.iter().any(|message| message.route == Route::Held);
    let kept = if waits { Some(beside.kept.seal(&key, &id)?) } else { None };
    let mut tx = store.begin().await?;
    if !insert(&mut tx, &id, new, kept, at).await? {
        return Ok(Recorded::Known);
    }
    if let Some(fact) = beside.fact.filter(|_| beside.told_by.is_none()) {
        for beliefs in beside.beliefs.values() {
            if !withdraw_stale(&mut tx, fact, beliefs).await? {
                return Ok(Recorded::Moved);
            }
        }
    }
    let mut changed = Vec::new();
    for message in messages {
        let sealed = (message.route == Route::Lane).then(|| key.seal(&content_place(&message.uid), &message.content));
        insert_message(&mut tx, &id, new, message, sealed, now).await?;
        if message.route == Route::Record {
            changed.push(notice(&mut tx, &key, new, message, now).await?);
        }
        if let Some(fact) = beside.fact.filter(|_| message.is_told() || message.route == Route::Held) {
            let belief = beside.beliefs.get(&message.recipient).and_then(|beliefs| beliefs.get(&message.channel));
            let before = belief.map_or(fact.old.as_deref(), |belief| belief.value.as_deref());
            let change = Change { uid: &message.uid, fact, before };
            fact::note(&mut tx, &new.organization, &message.recipient, &message.channel, &change, at).await?;
        }
    }
    let told: BTreeSet<&str> =
        messages.iter().filter(|message| message.is_told()).map(|message| &*message.recipient).collect();
    for recipient in told {
        limit::note(&mut tx, &new.organization, recipient, &id, now).await?;
    }
    beside.said.note(&mut tx, &new.event_id, beside.told_by.is_some(), at).await?;
    tx.commit().await?;
    Ok(Recorded::New(id, changed))
}

/// Withdraws what one person would still be told of an older value; false if that is being sent meanwhile.
async fn withdraw_stale(tx: &mut Tx, fact: &Fact, beliefs: &HashMap<String, Belief>) -> Result<bool> {
    let why = format!("withdrawn: it became {} before this was sent", fact.new);
    for uid in beliefs.values().filter_map(|belief| belief.stale) {
        if !fact::withdraw(tx, &uid, &why).await? {
            return Ok(false);
        }
    }
    Ok(true)
}

/// Puts a message into its recipient's inbox.
pub(crate) async fn notice(
    tx: &mut Tx,
    key: &DataKey,
    new: &NewNotification,
    message: &NewMessage,
    now: Timestamp,
) -> Result<inbox::Changed> {
    let notice = NewNotice {
        organization: &new.organization,
        recipient: &message.recipient,
        workflow: &new.workflow,
        event_uid: &new.event_uid,
        priority: new.priority,
        content: &message.content,
    };
    inbox::insert(tx, key, &notice, now).await
}

/// Records a notification alone; false if it stands already.
pub(crate) async fn insert(
    tx: &mut Tx,
    id: &str,
    new: &NewNotification,
    kept: Option<Vec<u8>>,
    at: i64,
) -> Result<bool> {
    let inserted = with!(tx.on(), c => sqlx::query(
        "INSERT INTO notifications (id, organization_id, workflow, event_id, event_uid, priority, collapse_key, request, created_at,
             kept, override_by, override_reason)
         VALUES ($1, $2, $3, $4, $5, $6, $7, $8, $9, $10, $11, $12)
         ON CONFLICT (organization_id, event_uid, workflow) DO NOTHING",
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
    .bind(kept)
    .bind(&new.override_by)
    .bind(&new.override_reason)
    .execute(c).await.map(|done| done.rows_affected()))?;
    Ok(inserted > 0)
}

pub(crate) async fn insert_message(
    tx: &mut Tx,
    id: &str,
    new: &NewNotification,
    message: &NewMessage,
    sealed: Option<Vec<u8>>,
    now: Timestamp,
) -> Result<()> {
    let at = now.as_microsecond();
    with!(tx.on(), c => sqlx::query(
        "INSERT INTO messages (uid, notification_id, organization_id, recipient_id, channel, fate, cancelled, reason, priority, content,
             created_at, trail, address, how, due_at, handed_at, fact)
         VALUES ($1, $2, $3, $4, $5, $6, 0, $7, $8, $9, $10, $11, $12, $13, $14, $15, $16)",
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
    .bind(trail(&message.trail, now))
    .bind(&message.address)
    .bind(message.hold.map_or(0, |(_, how)| how as i64))
    .bind(message.hold.map(|(until, _)| until.as_microsecond()))
    .bind(message.is_told().then_some(at))
    .bind(about(new))
    .execute(c).await.map(drop))?;
    Ok(())
}

/// What a notification is about, of which a digest holds the latest; empty where it is about nothing else than itself.
fn about(new: &NewNotification) -> String {
    let about = |token: &str| token.rsplit_once(':').map_or(token, |(about, _)| about).to_owned();
    new.collapse_key.split_whitespace().map(about).collect::<Vec<_>>().join(" ")
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
    /// When it is decided anew, while it waits for that.
    pub(crate) due_at: Option<Timestamp>,
    /// What was looked at, a line each, with its time.
    pub(crate) trail: String,
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
    handed_at: Option<i64>,
    due_at: Option<i64>,
    ended: String,
    trail: String,
    state: Option<i64>,
    attempts: Option<i64>,
    finished_at: Option<i64>,
    why: Option<String>,
}

async fn messages(store: &Store, notification: &str) -> Result<Vec<Message>> {
    let rows: Vec<MessageRow> = with!(store.reader(), c => sqlx::query_as(
        "SELECT m.uid, m.recipient_id, m.channel, COALESCE(c.fate, m.fate) AS fate, COALESCE(c.cancelled, m.cancelled) AS cancelled,
             m.reason, m.created_at, COALESCE(c.handed_at, m.handed_at) AS handed_at, m.due_at, COALESCE(c.ended, m.ended) AS ended,
             m.trail, d.state, d.attempts, d.finished_at, d.reason AS why
         FROM messages AS m LEFT JOIN messages AS c ON c.uid = m.carried_by
         LEFT JOIN deliveries AS d ON d.event = COALESCE(m.carried_by, m.uid)
         WHERE m.notification_id = $1 ORDER BY m.recipient_id, m.channel",
    ).bind(notification).fetch_all(c).await)?;
    rows.into_iter().map(shown).collect()
}

fn shown(row: MessageRow) -> Result<Message> {
    let uid = row.uid.try_into().map_err(|_| Error::internal(anyhow::anyhow!("a message has a malformed uid")))?;
    let standing = standing(row.fate, row.cancelled == 1, row.state.and_then(State::from_number));
    let sent_at = match standing {
        Standing::Sent if row.fate == Route::Record as i64 => row.handed_at.or(Some(row.created_at)),
        Standing::Sent => row.finished_at,
        _ => None,
    };
    let reason = match (standing, row.why.filter(|why| !why.is_empty())) {
        (Standing::Cancelled, _) if !row.ended.is_empty() => format!("{}; {}", row.reason, row.ended),
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
        due_at: row.due_at.filter(|_| standing == Standing::Waiting).map(from_micros),
        trail: row.trail,
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
    if fate == Route::Held as i64 {
        return if cancelled { Standing::Cancelled } else { Standing::Waiting };
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
