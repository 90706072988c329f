//! Who did what that touches other people: written in the transaction that does it, kept for a year.
//!
//! Subjects are ids, which are nobody's name; what people wrote or where they are reached doesn't stand here.

use chassis::{
    clock::{earlier, from_micros},
    error::Result,
    id::{OrganizationId, uuid},
    store::{Store, Tx},
    with,
};
use jiff::{SignedDuration, Timestamp};

/// How long an entry is kept. Each new one takes a few of those with it that are older.
const KEPT: SignedDuration = SignedDuration::from_hours(365 * 24);

/// What was done.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Action {
    /// Limits, digests and quiet hours were passed over; the subject is the notification.
    Override,
    /// A person was erased.
    Erase,
    /// Somebody's preferences were changed.
    Preference,
    /// A notification was confirmed for somebody.
    Acknowledge,
    /// A text of the organization's own was put or taken back; the subject is its workflow, part and language.
    Template,
    /// What holds for the whole organization was changed.
    Settings,
    /// An address was put on the list or taken off it; the subject is its channel and hash.
    Suppression,
}

impl Action {
    fn as_str(self) -> &'static str {
        match self {
            Self::Override => "override",
            Self::Erase => "erase",
            Self::Preference => "preference",
            Self::Acknowledge => "acknowledge",
            Self::Template => "template",
            Self::Settings => "settings",
            Self::Suppression => "suppression",
        }
    }
}

/// What is written down.
pub(crate) struct Entry<'a> {
    pub(crate) action: Action,
    /// The key that did it.
    pub(crate) by: &'a str,
    /// The id of what it was done to.
    pub(crate) subject: &'a str,
    /// Why, or of what.
    pub(crate) detail: &'a str,
}

/// What stands there.
#[derive(Debug, Clone, PartialEq, Eq, sqlx::FromRow)]
pub(crate) struct Audited {
    pub(crate) id: String,
    pub(crate) action: String,
    pub(crate) by_key: String,
    pub(crate) subject: String,
    pub(crate) detail: String,
    created_at: i64,
}

impl Audited {
    pub(crate) fn created_at(&self) -> Timestamp {
        from_micros(self.created_at)
    }
}

/// Writes an entry.
pub(crate) async fn note(tx: &mut Tx, organization: &OrganizationId, entry: &Entry<'_>, now: Timestamp) -> Result<()> {
    with!(tx.on(), c => sqlx::query(
        "INSERT INTO audits (id, organization_id, action, by_key, subject, detail, created_at) VALUES ($1, $2, $3, $4, $5, $6, $7)",
    )
    .bind(uuid(now))
    .bind(organization.as_str())
    .bind(entry.action.as_str())
    .bind(entry.by)
    .bind(entry.subject)
    .bind(entry.detail)
    .bind(now.as_microsecond())
    .execute(c).await.map(drop))?;
    let before = earlier(now, KEPT).as_microsecond();
    with!(tx.on(), c => sqlx::query(
        "DELETE FROM audits WHERE id IN (SELECT id FROM audits WHERE created_at < $1 ORDER BY created_at LIMIT 4)",
    ).bind(before).execute(c).await.map(drop))?;
    Ok(())
}

/// Up to `limit` entries of an organization, newest first, older than `before` unless that is empty; about one subject, if
/// any is given. What is too old isn't shown, whether it is still there or not.
pub(crate) async fn list(
    store: &Store,
    organization: &OrganizationId,
    subject: &str,
    before: &str,
    limit: i64,
    now: Timestamp,
) -> Result<Vec<Audited>> {
    let since = earlier(now, KEPT).as_microsecond();
    let rows = with!(store.reader(), c => sqlx::query_as(
        "SELECT id, action, by_key, subject, detail, created_at FROM audits
         WHERE organization_id = $1 AND ($2 = '' OR subject = $2) AND ($3 = '' OR id < $3) AND created_at >= $4
         ORDER BY id DESC LIMIT $5",
    )
    .bind(organization.as_str())
    .bind(subject)
    .bind(before)
    .bind(since)
    .bind(limit)
    .fetch_all(c).await)?;
    Ok(rows)
}
