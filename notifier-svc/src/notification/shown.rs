//! Notifications as they are shown: each message with where it stands, read from its delivery or its digest's, and from what
//! its provider reported since.

use chassis::{
    clock::from_micros,
    error::{Error, Result},
    id::{OrganizationId, uuid_text},
    lane::State,
    store::Store,
    with,
};
use jiff::Timestamp;

use super::Route;
use crate::callback::Stage;

/// A notification as it is shown.
#[derive(Debug, Clone)]
pub(crate) struct Notification {
    pub(crate) id: String,
    pub(crate) workflow: String,
    pub(crate) event_id: String,
    pub(crate) event_uid: String,
    pub(crate) priority: i64,
    pub(crate) created_at: Timestamp,
    pub(crate) override_by: String,
    pub(crate) override_reason: String,
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
    /// What the provider that took it calls it; empty until [`super::provider_id::name`] was asked.
    pub(crate) provider_id: String,
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
    Delivered,
    Read,
    Bounced,
}

impl Standing {
    /// As its provider reported it since; what was never sent stays as it is.
    pub(crate) fn after(self, reported: Stage) -> Self {
        match (self, reported) {
            (Self::Sent | Self::Sending | Self::Unknown, reported) => match reported {
                Stage::Unreported => self,
                Stage::Sent => Self::Sent,
                Stage::Delivered => Self::Delivered,
                Stage::Failed => Self::Failed,
                Stage::Bounced => Self::Bounced,
                Stage::Read | Stage::Complained | Stage::Acknowledged => Self::Read,
            },
            _ => self,
        }
    }

    /// Whether it left.
    fn is_sent(self) -> bool {
        matches!(self, Self::Sent | Self::Delivered | Self::Read | Self::Bounced)
    }
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
    override_by: String,
    override_reason: String,
}

/// Up to `limit` notifications of an organization with their messages, newest first.
pub(crate) async fn list(
    store: &Store,
    organization: &OrganizationId,
    filter: &Filter,
    limit: u32,
) -> Result<Vec<Notification>> {
    let rows: Vec<Row> = with!(store.reader(), c => sqlx::query_as(
        "SELECT id, workflow, event_id, event_uid, priority, created_at, override_by, override_reason FROM notifications
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
            override_by: row.override_by,
            override_reason: row.override_reason,
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
    stage: Option<i64>,
    code: Option<String>,
}

async fn messages(store: &Store, notification: &str) -> Result<Vec<Message>> {
    let rows: Vec<MessageRow> = with!(store.reader(), c => sqlx::query_as(
        "SELECT m.uid, m.recipient_id, m.channel, COALESCE(c.fate, m.fate) AS fate, COALESCE(c.cancelled, m.cancelled) AS cancelled,
             m.reason, m.created_at, COALESCE(c.handed_at, m.handed_at) AS handed_at, m.due_at, COALESCE(c.ended, m.ended) AS ended,
             m.trail, d.state, d.attempts, d.finished_at, d.reason AS why, r.stage, r.code
         FROM messages AS m LEFT JOIN messages AS c ON c.uid = m.carried_by
         LEFT JOIN deliveries AS d ON d.event = COALESCE(m.carried_by, m.uid)
         LEFT JOIN receipts AS r ON r.uid = COALESCE(m.carried_by, m.uid)
         WHERE m.notification_id = $1 ORDER BY m.recipient_id, m.channel",
    ).bind(notification).fetch_all(c).await)?;
    rows.into_iter().map(shown).collect()
}

fn shown(row: MessageRow) -> Result<Message> {
    let uid = row.uid.try_into().map_err(|_| Error::internal(anyhow::anyhow!("a message has a malformed uid")))?;
    let standing = standing(row.fate, row.cancelled == 1, row.state.and_then(State::from_number))
        .after(Stage::from_number(row.stage.unwrap_or_default()));
    let sent_at = match standing {
        Standing::Sent if row.fate == Route::Record as i64 => row.handed_at.or(Some(row.created_at)),
        standing if standing.is_sent() => row.finished_at,
        _ => None,
    };
    let reason = match (standing, row.why.filter(|why| !why.is_empty())) {
        (Standing::Cancelled, _) if !row.ended.is_empty() => format!("{}; {}", row.reason, row.ended),
        (Standing::Cancelled, _) => {
            format!("{}; their entry in the directory was removed before it was sent", row.reason)
        }
        (Standing::Failed, None) => match row.code.filter(|code| !code.is_empty()) {
            Some(code) => format!("{}; its provider reported {code}", row.reason),
            None => row.reason,
        },
        (standing, _) if standing.is_sent() => row.reason,
        (_, None) => row.reason,
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
        provider_id: String::new(),
    })
}

/// `state` is that of the delivery, where a lane has the message already.
pub(crate) fn standing(fate: i64, cancelled: bool, state: Option<State>) -> Standing {
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
    fn what_was_sent_stays_sent_after_its_recipient_is_removed() {
        let lane = Route::Lane as i64;
        assert_eq!(standing(lane, true, Some(State::Delivered)), Standing::Sent);
        assert_eq!(standing(lane, true, Some(State::Unknown)), Standing::Unknown);
        assert_eq!(standing(lane, true, Some(State::Dead)), Standing::Cancelled);
        assert_eq!(standing(lane, true, None), Standing::Cancelled);
        assert_eq!(standing(lane, false, None), Standing::Waiting);
    }

    #[test]
    fn a_report_moves_what_was_sent_and_settles_what_nobody_knew() {
        assert_eq!(Standing::Sent.after(Stage::Delivered), Standing::Delivered);
        assert_eq!(Standing::Sent.after(Stage::Failed), Standing::Failed);
        assert_eq!(Standing::Unknown.after(Stage::Sent), Standing::Sent);
        assert_eq!(Standing::Sending.after(Stage::Read), Standing::Read, "early");
        assert_eq!(Standing::Unknown.after(Stage::Unreported), Standing::Unknown);
        assert_eq!(Standing::Cancelled.after(Stage::Delivered), Standing::Cancelled);
    }
}
