//! Facts that change more than once: each person is told, on each channel, from what they were last told there.
//!
//! A date that moves from A to B to C is told to a vendor as "from A to C" where B was not sent yet: what still waits is
//! withdrawn in the same transaction. Where it comes back to what they know, nothing is sent, and the reason recorded.

use std::collections::HashMap;

use chassis::{
    error::Result,
    id::OrganizationId,
    lane::State,
    store::{Store, Tx},
    with,
};

use crate::{event::plain, notification::Route, variable::Variables};

/// A fact and its change.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Fact {
    /// What it is about: `wedding_date:<wedding>`.
    pub(crate) key: String,
    pub(crate) old: Option<String>,
    pub(crate) new: String,
}

/// The fact that a workflow's variables tell; none for most.
pub(crate) fn of(workflow: &str, variables: &Variables) -> Option<Fact> {
    let text = |name: &str| variables.get(name).and_then(plain);
    let day = |date: String| date.get(..10).unwrap_or(&date).to_owned();
    (workflow == "wedding_date_change").then_some(())?;
    Some(Fact {
        key: format!("wedding_date:{}", text("wedding_id")?),
        old: text("old_date").map(day),
        new: text("new_date").map(day)?,
    })
}

/// What somebody believes, by what they were told on one channel.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Belief {
    /// None: nothing is known of it.
    pub(crate) value: Option<String>,
    /// A message that says otherwise and still waits.
    pub(crate) stale: Option<[u8; 16]>,
}

#[derive(sqlx::FromRow)]
struct Row {
    channel: String,
    value: String,
    before: Option<String>,
    message: Vec<u8>,
    fate: Option<i64>,
    cancelled: Option<i64>,
    state: Option<i64>,
}

/// What a person believes of a fact, by channel; `except` is the message that is being decided about.
pub(crate) async fn beliefs(
    store: &Store,
    organization: &OrganizationId,
    recipient: &str,
    fact: &str,
    except: Option<&[u8; 16]>,
) -> Result<HashMap<String, Belief>> {
    let rows: Vec<Row> = with!(store.reader(), c => sqlx::query_as(
        "SELECT f.channel, f.value, f.before, f.message, m.fate, COALESCE(k.cancelled, m.cancelled) AS cancelled, d.state
         FROM known_facts AS f LEFT JOIN messages AS m ON m.uid = f.message
         LEFT JOIN messages AS k ON k.uid = m.carried_by LEFT JOIN deliveries AS d ON d.event = COALESCE(m.carried_by, m.uid)
         WHERE f.organization_id = $1 AND f.recipient_id = $2 AND f.fact = $3",
    ).bind(organization.as_str()).bind(recipient).bind(fact).fetch_all(c).await)?;
    Ok(rows.into_iter().map(|row| (row.channel.clone(), belief(row, except))).collect())
}

fn belief(row: Row, except: Option<&[u8; 16]>) -> Belief {
    let uid: Option<[u8; 16]> = row.message.try_into().ok();
    let state = row.state.and_then(State::from_number);
    let was_told = match (row.fate, row.cancelled) {
        _ if uid.as_ref() == except && except.is_some() => Said::Never,
        (None, _) => Said::Yes,
        (_, Some(1)) => Said::Never,
        (Some(fate), _) if fate == Route::Skipped as i64 => Said::Never,
        (Some(fate), _) if fate == Route::Held as i64 => Said::Waits,
        (Some(fate), _) if fate == Route::Lane as i64 => match state {
            None | Some(State::Waiting | State::Blocked) => Said::Waits,
            Some(State::Dead | State::Cancelled) => Said::Never,
            Some(State::Sending | State::Delivered | State::Unknown) => Said::Yes,
        },
        // One of several in a digest can't be withdrawn; where that failed, it told nothing.
        (Some(fate), _) if fate == Route::Carried as i64 && state == Some(State::Dead) => Said::Never,
        _ => Said::Yes,
    };
    match was_told {
        Said::Yes => Belief { value: Some(row.value), stale: None },
        Said::Never => Belief { value: row.before, stale: None },
        Said::Waits => Belief { value: row.before, stale: uid },
    }
}

enum Said {
    Yes,
    Never,
    Waits,
}

/// Holds of a message that still waits: for its time, for its lane, or in it.
macro_rules! still_waits {
    () => {
        "messages.cancelled = 0 AND (messages.fate = 3 OR messages.fate = 0 AND NOT EXISTS
             (SELECT 1 FROM deliveries WHERE deliveries.event = messages.uid AND deliveries.state NOT IN (0, 2)))"
    };
}
pub(crate) use still_waits;

/// What somebody believed of a fact before a notification told them of it; none if that isn't known.
pub(crate) async fn before(store: &Store, notification: &str, recipient: &str, fact: &str) -> Result<Option<String>> {
    let before: Option<Option<String>> = with!(store.reader(), c => sqlx::query_scalar(
        "SELECT f.before FROM known_facts AS f JOIN messages AS m ON m.uid = f.message
         WHERE m.notification_id = $1 AND f.recipient_id = $2 AND f.organization_id = m.organization_id AND f.fact = $3
             AND f.before IS NOT NULL ORDER BY f.told_at, f.channel LIMIT 1",
    ).bind(notification).bind(recipient).bind(fact).fetch_optional(c).await)?;
    Ok(before.flatten())
}

/// Withdraws a message that still waits; false if it was sent, or is being sent, meanwhile.
pub(crate) async fn withdraw(tx: &mut Tx, uid: &[u8; 16], why: &str) -> Result<bool> {
    // This holds the row, so that what follows sees whether its lane sends it already: the last look waits for us.
    with!(tx.on(), c => sqlx::query("UPDATE messages SET cancelled = cancelled WHERE uid = $1").bind(&uid[..]).execute(c).await.map(drop))?;
    let withdrawn = with!(tx.on(), c => sqlx::query(concat!(
        "UPDATE messages SET cancelled = 1, content = NULL, due_at = NULL, ended = $2 WHERE uid = $1 AND ", still_waits!(),
    )).bind(&uid[..]).bind(why).execute(c).await.map(|done| done.rows_affected()))?;
    Ok(withdrawn > 0)
}

/// What a message changes in its reader's mind.
pub(crate) struct Change<'a> {
    pub(crate) uid: &'a [u8; 16],
    pub(crate) fact: &'a Fact,
    pub(crate) before: Option<&'a str>,
}

/// Notes what a message tells, and what its reader believed before.
pub(crate) async fn note(
    tx: &mut Tx,
    organization: &OrganizationId,
    recipient: &str,
    channel: &str,
    change: &Change<'_>,
    now: i64,
) -> Result<()> {
    with!(tx.on(), c => sqlx::query(
        "INSERT INTO known_facts (organization_id, recipient_id, channel, fact, value, before, message, told_at)
         VALUES ($1, $2, $3, $4, $5, $6, $7, $8)
         ON CONFLICT (organization_id, recipient_id, channel, fact) DO UPDATE SET value = excluded.value,
             before = excluded.before, message = excluded.message, told_at = excluded.told_at",
    )
    .bind(organization.as_str())
    .bind(recipient)
    .bind(channel)
    .bind(&change.fact.key)
    .bind(&change.fact.new)
    .bind(change.before)
    .bind(&change.uid[..])
    .bind(now)
    .execute(c).await.map(drop))?;
    Ok(())
}
