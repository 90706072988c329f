//! Notifications and their messages as the store holds them.
//!
//! Who is told and how is fixed when a notification is recorded, in one transaction with the notices it puts into
//! inboxes. How a message in a lane stands is read from its delivery.
//!
//! Invariant: one notification per (organization, event, workflow), so that nobody is told twice of one event.

pub(crate) mod provider_id;
mod shown;

use std::{
    collections::{BTreeSet, HashMap},
    time::Duration,
};

use chassis::{
    error::Result,
    id::{OrganizationId, uuid, uuid_text},
    secret::{DataKey, DataKeys, place},
    store::{Store, Tx},
    with,
};
use jiff::Timestamp;
use sha2::{Digest as _, Sha256};

pub(crate) use self::shown::{Filter, Message, Notification, Standing, get, list, standing};
use crate::{
    audit,
    collapse::Said,
    confirm::{self, Asked, Due},
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
    /// Another message says it: a digest, or the one to the wedding's room.
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
    /// Whose confirmation of which notification is asked for, where it isn't its own reader's: id, recipient.
    pub(crate) confirms: Option<(String, String)>,
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
    /// The message that says it, where another does.
    pub(crate) carried_by: Option<[u8; 16]>,
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
    /// It goes on to another channel where one fails.
    pub(crate) urgent: bool,
    /// How long a confirmation is waited for, where one is asked for.
    pub(crate) asks: Option<Duration>,
    /// The step of an escalation that this is, and when the next is.
    pub(crate) escalates: Option<(&'a Due, Timestamp)>,
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
    let is_held = messages.iter().any(|message| message.route == Route::Held);
    // Its provider may not take it: then another channel has to say it.
    let is_carried = messages.iter().any(|message| message.route == Route::Lane);
    let waits = is_held || is_carried || beside.asks.is_some() || beside.urgent;
    let kept = if waits { Some(beside.kept.seal(&key, &id)?) } else { None };
    let mut tx = store.begin().await?;
    if !insert(&mut tx, &id, new, kept, &beside.kept.category, at).await? {
        return Ok(Recorded::Known);
    }
    if let Some((due, next)) = beside.escalates
        && !confirm::advance(&mut tx, due, Some(next), "").await?
    {
        return Ok(Recorded::Moved);
    }
    if let Some(fact) = beside.fact.filter(|_| beside.told_by.is_none()) {
        for beliefs in beside.beliefs.values() {
            if !withdraw_stale(&mut tx, fact, beliefs).await? {
                return Ok(Recorded::Moved);
            }
        }
        for recipient in beside.beliefs.keys() {
            confirm::outdate(&mut tx, &new.organization, recipient, fact).await?;
        }
    }
    let mut changed = Vec::new();
    for message in messages {
        let sealed = (message.route == Route::Lane).then(|| key.seal(&content_place(&message.uid), &message.content));
        insert_or_revive(&mut tx, &id, new, message, sealed, now).await?;
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
        if let Some(wait) = beside.asks {
            let fact = beside.fact.map_or("", |fact| &fact.key);
            let asked = Asked { organization: &new.organization, notification: &id, recipient, fact, wait };
            confirm::ask(&mut tx, &asked, now).await?;
        }
    }
    if !new.override_by.is_empty() {
        let (by, detail) = (&*new.override_by, &*new.override_reason);
        let entry = audit::Entry { action: audit::Action::Override, by, subject: &id, detail };
        audit::note(&mut tx, &new.organization, &entry, now).await?;
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
    category: &str,
    at: i64,
) -> Result<bool> {
    let (confirms_id, confirms_recipient) = new.confirms.clone().unwrap_or_default();
    let inserted = with!(tx.on(), c => sqlx::query(
        "INSERT INTO notifications (id, organization_id, workflow, event_id, event_uid, priority, collapse_key, request, created_at,
             kept, override_by, override_reason, confirms_id, confirms_recipient, category)
         VALUES ($1, $2, $3, $4, $5, $6, $7, $8, $9, $10, $11, $12, $13, $14, $15)
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
    .bind(confirms_id)
    .bind(confirms_recipient)
    .bind(category)
    .execute(c).await.map(|done| done.rows_affected()))?;
    Ok(inserted > 0)
}

/// Records a message; one of the same uid that was skipped is told after all.
pub(crate) async fn insert_or_revive(
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
             created_at, trail, address, how, due_at, handed_at, fact, carried_by)
         VALUES ($1, $2, $3, $4, $5, $6, 0, $7, $8, $9, $10, $11, $12, $13, $14, $15, $16, $17)
         ON CONFLICT (uid) DO UPDATE SET fate = excluded.fate, reason = excluded.reason, content = excluded.content,
             trail = messages.trail || excluded.trail, address = excluded.address, handed_at = excluded.handed_at
         WHERE messages.fate = 2 AND messages.cancelled = 0",
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
    .bind(message.carried_by.map(|uid| uid.to_vec()))
    .execute(c).await.map(drop))?;
    Ok(())
}

/// What a notification is about, of which a digest holds the latest; empty where it is about nothing else than itself.
fn about(new: &NewNotification) -> String {
    let about = |token: &str| token.rsplit_once(':').map_or(token, |(about, _)| about).to_owned();
    new.collapse_key.split_whitespace().map(about).collect::<Vec<_>>().join(" ")
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
}
