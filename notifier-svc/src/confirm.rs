//! Confirmations: asked for with a message, given by whom it was for, and escalated while they aren't.
//!
//! Guarantee: a confirmation ends everything that is still pending for it, on every channel and with everybody whom it was
//! escalated to, in the transaction that records it; it counts once, however often it is given.

use std::time::Duration;

use chassis::{
    clock::from_micros,
    error::{Error, Result},
    id::OrganizationId,
    store::{Store, Tx},
    with,
};
use jiff::Timestamp;

use crate::{audit, fact::Fact, token::Owner};

/// What somebody is asked to confirm.
pub(crate) struct Asked<'a> {
    pub(crate) organization: &'a OrganizationId,
    pub(crate) notification: &'a str,
    pub(crate) recipient: &'a str,
    /// Empty: none.
    pub(crate) fact: &'a str,
    pub(crate) wait: Duration,
}

/// Asks for a confirmation, unless it is asked for already; what was asked before of the same fact is moot.
pub(crate) async fn ask(tx: &mut Tx, asked: &Asked<'_>, now: Timestamp) -> Result<()> {
    let wait = i64::try_from(asked.wait.as_micros()).unwrap_or(i64::MAX);
    with!(tx.on(), c => sqlx::query(
        "UPDATE confirmations SET due_at = NULL, how = 'it changed again' WHERE organization_id = $1 AND recipient_id = $2
             AND fact = $3 AND fact <> '' AND notification_id <> $4 AND due_at IS NOT NULL",
    )
    .bind(asked.organization.as_str())
    .bind(asked.recipient)
    .bind(asked.fact)
    .bind(asked.notification)
    .execute(c).await.map(drop))?;
    with!(tx.on(), c => sqlx::query(
        "INSERT INTO confirmations (notification_id, recipient_id, organization_id, fact, asked_at, step, wait, due_at,
             acknowledged_by, how)
         VALUES ($1, $2, $3, $4, $5, 0, $6, $7, '', '') ON CONFLICT (notification_id, recipient_id) DO NOTHING",
    )
    .bind(asked.notification)
    .bind(asked.recipient)
    .bind(asked.organization.as_str())
    .bind(asked.fact)
    .bind(now.as_microsecond())
    .bind(wait)
    .bind(now.as_microsecond().saturating_add(wait))
    .execute(c).await.map(drop))?;
    Ok(())
}

/// Ends what somebody is asked to confirm of an older value that nothing told them: it was withdrawn, or failed.
pub(crate) async fn outdate(tx: &mut Tx, organization: &OrganizationId, recipient: &str, fact: &Fact) -> Result<()> {
    with!(tx.on(), c => sqlx::query(
        "UPDATE confirmations SET due_at = NULL, how = 'it changed again'
         WHERE organization_id = $1 AND recipient_id = $2 AND fact = $3 AND due_at IS NOT NULL
             AND EXISTS (SELECT 1 FROM known_facts AS f JOIN messages AS m ON m.uid = f.message
                 WHERE f.organization_id = $1 AND f.recipient_id = $2 AND f.fact = $3 AND f.value <> $4
                     AND m.notification_id = confirmations.notification_id)
             AND NOT EXISTS (SELECT 1 FROM messages AS m LEFT JOIN deliveries AS d ON d.event = COALESCE(m.carried_by, m.uid)
                 WHERE m.notification_id = confirmations.notification_id AND m.recipient_id = $2 AND m.cancelled = 0
                     AND m.fate IN (0, 1, 4) AND COALESCE(d.state, 0) NOT IN (4, 5))",
    )
    .bind(organization.as_str())
    .bind(recipient)
    .bind(&fact.key)
    .bind(&fact.new)
    .execute(c).await.map(drop))?;
    Ok(())
}

/// Until when a later value waits to be told of what is to be confirmed; none if none does.
pub(crate) async fn news_waits(store: &Store, due: &Due) -> Result<Option<Timestamp>> {
    let until: Option<i64> = with!(store.reader(), c => sqlx::query_scalar(
        "SELECT MAX(m.due_at) FROM confirmations AS c
         JOIN known_facts AS f ON f.organization_id = c.organization_id AND f.recipient_id = c.recipient_id AND f.fact = c.fact
         JOIN messages AS m ON m.uid = f.message
         WHERE c.notification_id = $1 AND c.recipient_id = $2 AND c.fact <> '' AND m.notification_id <> $1
             AND m.fate = 3 AND m.cancelled = 0",
    ).bind(&due.notification_id).bind(&due.recipient_id).fetch_one(c).await)?;
    Ok(until.map(from_micros))
}

/// A confirmation that is due.
#[derive(Debug, Clone, sqlx::FromRow)]
pub(crate) struct Due {
    pub(crate) notification_id: String,
    pub(crate) recipient_id: String,
    pub(crate) organization_id: String,
    pub(crate) step: i64,
    pub(crate) wait: i64,
}

/// Up to `limit` confirmations that are due.
pub(crate) async fn due(store: &Store, now: Timestamp, limit: i64) -> Result<Vec<Due>> {
    let due = with!(store.reader(), c => sqlx::query_as(
        "SELECT notification_id, recipient_id, organization_id, step, wait FROM confirmations WHERE due_at <= $1
         ORDER BY due_at LIMIT $2",
    ).bind(now.as_microsecond()).bind(limit).fetch_all(c).await)?;
    Ok(due)
}

/// When the next is due.
pub(crate) async fn next_due(store: &Store) -> Result<Option<Timestamp>> {
    let next: Option<i64> = with!(store.reader(), c => sqlx::query_scalar(
        "SELECT MIN(due_at) FROM confirmations WHERE due_at IS NOT NULL",
    ).fetch_one(c).await)?;
    Ok(next.map(from_micros))
}

/// Notes that one step was made, and when the next is; false if it was confirmed meanwhile.
pub(crate) async fn advance(tx: &mut Tx, due: &Due, next: Option<Timestamp>, why: &str) -> Result<bool> {
    let advanced = with!(tx.on(), c => sqlx::query(
        "UPDATE confirmations SET step = step + 1, due_at = $4, how = $5
         WHERE notification_id = $1 AND recipient_id = $2 AND step = $3 AND due_at IS NOT NULL",
    )
    .bind(&due.notification_id)
    .bind(&due.recipient_id)
    .bind(due.step)
    .bind(next.map(Timestamp::as_microsecond))
    .bind(why)
    .execute(c).await.map(|done| done.rows_affected()))?;
    Ok(advanced > 0)
}

/// Puts a step off, without making it.
pub(crate) async fn put_off(store: &Store, due: &Due, until: Timestamp) -> Result<()> {
    with!(store.writer(), c => sqlx::query(
        "UPDATE confirmations SET due_at = $4 WHERE notification_id = $1 AND recipient_id = $2 AND step = $3 AND due_at IS NOT NULL",
    )
    .bind(&due.notification_id)
    .bind(&due.recipient_id)
    .bind(due.step)
    .bind(until.as_microsecond())
    .execute(c).await.map(drop))?;
    Ok(())
}

/// A confirmation as it is shown.
#[derive(Debug, Clone, sqlx::FromRow)]
pub(crate) struct Confirmation {
    pub(crate) notification_id: String,
    pub(crate) recipient_id: String,
    pub(crate) asked_at: i64,
    pub(crate) step: i64,
    pub(crate) due_at: Option<i64>,
    pub(crate) acknowledged_at: Option<i64>,
    pub(crate) acknowledged_by: String,
    pub(crate) how: String,
}

/// Of one notification.
pub(crate) async fn of_notification(store: &Store, notification: &str) -> Result<Vec<Confirmation>> {
    let all = with!(store.reader(), c => sqlx::query_as(
        "SELECT notification_id, recipient_id, asked_at, step, due_at, acknowledged_at, acknowledged_by, how FROM confirmations
         WHERE notification_id = $1 ORDER BY recipient_id",
    ).bind(notification).fetch_all(c).await)?;
    Ok(all)
}

/// That somebody confirms something.
#[derive(Debug, Clone)]
pub(crate) struct Confirms {
    pub(crate) organization: OrganizationId,
    pub(crate) notification: String,
    pub(crate) recipient: String,
    /// A recipient: they themselves, or who stands in for them.
    pub(crate) by: String,
    /// `link`, `call`, `button` or `reply`.
    pub(crate) how: &'static str,
}

impl Confirms {
    /// What the reader of a message confirms: for themselves, or for the one for whom they stand in.
    pub(crate) fn of(organization: OrganizationId, owner: Owner, how: &'static str) -> Self {
        let by = owner.recipient_id.clone();
        let (notification, recipient) = match &*owner.confirms_id {
            "" => (owner.notification_id, owner.recipient_id),
            _ => (owner.confirms_id, owner.confirms_recipient),
        };
        Self { organization, notification, recipient, by, how }
    }
}

/// Records that somebody confirmed, and ends what is pending. Gives when; the first time counts.
///
/// # Errors
/// `Error::NotFound` if that person was never to be told of it.
pub(crate) async fn acknowledge(
    store: &Store,
    confirms: &Confirms,
    caller: Option<&str>,
    now: Timestamp,
) -> Result<Timestamp> {
    let mut tx = store.begin().await?;
    let at = acknowledge_in(&mut tx, confirms, now).await?;
    if let (Some(by), Some(_)) = (caller, at) {
        let (subject, detail) = (&*confirms.recipient, &*confirms.notification);
        let entry = audit::Entry { action: audit::Action::Acknowledge, by, subject, detail };
        audit::note(&mut tx, &confirms.organization, &entry, now).await?;
    }
    tx.commit().await?;
    at.ok_or_else(|| Error::NotFound("notification".into()))
}

/// As [`acknowledge`], in a transaction; none if that person was never to be told of it.
pub(crate) async fn acknowledge_in(tx: &mut Tx, confirms: &Confirms, now: Timestamp) -> Result<Option<Timestamp>> {
    let Confirms { organization, notification, recipient, by, how } = confirms;
    let told: i64 = with!(tx.on(), c => sqlx::query_scalar(
        "SELECT COUNT(*) FROM messages WHERE organization_id = $1 AND notification_id = $2 AND recipient_id = $3",
    ).bind(organization.as_str()).bind(notification).bind(recipient).fetch_one(c).await)?;
    if told == 0 {
        return Ok(None);
    }
    with!(tx.on(), c => sqlx::query(
        "INSERT INTO confirmations (notification_id, recipient_id, organization_id, fact, asked_at, step, wait, acknowledged_at,
             acknowledged_by, how)
         VALUES ($1, $2, $3, '', $4, 0, 0, $4, $5, $6)
         ON CONFLICT (notification_id, recipient_id) DO UPDATE SET due_at = NULL, acknowledged_at = excluded.acknowledged_at,
             acknowledged_by = excluded.acknowledged_by, how = excluded.how WHERE confirmations.acknowledged_at IS NULL",
    )
    .bind(notification)
    .bind(recipient)
    .bind(organization.as_str())
    .bind(now.as_microsecond())
    .bind(by)
    .bind(*how)
    .execute(c).await.map(drop))?;
    forget_failures(tx, notification, recipient).await?;
    end_pending(tx, notification, recipient).await?;
    let at: Option<i64> = with!(tx.on(), c => sqlx::query_scalar(
        "SELECT acknowledged_at FROM confirmations WHERE notification_id = $1 AND recipient_id = $2",
    ).bind(notification).bind(recipient).fetch_one(c).await)?;
    Ok(Some(at.map_or(now, from_micros)))
}

/// What failed needn't go on by another channel. It comes before what is pending ends: it waits for a failover that is under way,
/// so that what that began is seen.
async fn forget_failures(tx: &mut Tx, notification: &str, recipient: &str) -> Result<()> {
    with!(tx.on(), c => sqlx::query(
        "UPDATE messages SET failed_at = NULL WHERE failed_at IS NOT NULL
             AND (notification_id = $1 AND recipient_id = $2 OR notification_id IN
                 (SELECT id FROM notifications WHERE confirms_id = $1 AND confirms_recipient = $2))",
    ).bind(notification).bind(recipient).execute(c).await.map(drop))?;
    Ok(())
}

async fn end_pending(tx: &mut Tx, notification: &str, recipient: &str) -> Result<()> {
    // This holds the rows, so that what follows sees what is being sent already: the last look waits for us.
    with!(tx.on(), c => sqlx::query(
        "UPDATE messages SET cancelled = cancelled WHERE cancelled = 0 AND fate IN (0, 3)
             AND (notification_id = $1 AND recipient_id = $2 OR notification_id IN
                 (SELECT id FROM notifications WHERE confirms_id = $1 AND confirms_recipient = $2))",
    ).bind(notification).bind(recipient).execute(c).await.map(drop))?;
    with!(tx.on(), c => sqlx::query(
        "UPDATE messages SET cancelled = 1, content = NULL, due_at = NULL, ended = 'it was confirmed before this was sent'
         WHERE cancelled = 0
             AND (notification_id = $1 AND recipient_id = $2 OR notification_id IN
                 (SELECT id FROM notifications WHERE confirms_id = $1 AND confirms_recipient = $2))
             AND (fate = 3 OR fate = 0 AND NOT EXISTS
                 (SELECT 1 FROM deliveries WHERE deliveries.event = messages.uid AND deliveries.state NOT IN (0, 2)))",
    ).bind(notification).bind(recipient).execute(c).await.map(drop))?;
    Ok(())
}
