//! When people were told of anything within the last hour: what the hourly limit looks at, across restarts.

use chassis::{
    clock::from_micros,
    error::Result,
    id::OrganizationId,
    store::{Store, Tx},
    with,
};
use jiff::Timestamp;

use crate::{policy::WINDOW, resolve::How};

/// More than this is not read; the limit is far below.
const READ: i64 = 100;

/// When a person was told within the window that ends now, earliest first.
pub(crate) async fn told(
    store: &Store,
    organization: &OrganizationId,
    recipient: &str,
    now: Timestamp,
) -> Result<Vec<Timestamp>> {
    let mut told: Vec<i64> = with!(store.reader(), c => sqlx::query_scalar(
        "SELECT told_at FROM tellings WHERE organization_id = $1 AND recipient_id = $2 AND told_at > $3 ORDER BY told_at DESC LIMIT $4",
    ).bind(organization.as_str()).bind(recipient).bind((now - WINDOW).as_microsecond()).bind(READ).fetch_all(c).await)?;
    told.reverse();
    Ok(told.into_iter().map(from_micros).collect())
}

/// When what waits for a person's limit comes; none if nothing does.
pub(crate) async fn waits(store: &Store, organization: &OrganizationId, recipient: &str) -> Result<Option<Timestamp>> {
    let due: Option<i64> = with!(store.reader(), c => sqlx::query_scalar(
        "SELECT MAX(due_at) FROM messages WHERE organization_id = $1 AND recipient_id = $2 AND fate = 3 AND cancelled = 0 AND how = $3",
    ).bind(organization.as_str()).bind(recipient).bind(How::Overflow as i64).fetch_one(c).await)?;
    Ok(due.map(from_micros))
}

/// Notes that a person is told now, and forgets what no window holds any more.
pub(crate) async fn note(
    tx: &mut Tx,
    organization: &OrganizationId,
    recipient: &str,
    notification: &str,
    now: Timestamp,
) -> Result<()> {
    with!(tx.on(), c => sqlx::query("DELETE FROM tellings WHERE organization_id = $1 AND recipient_id = $2 AND told_at <= $3")
        .bind(organization.as_str()).bind(recipient).bind((now - WINDOW).as_microsecond()).execute(c).await.map(drop))?;
    with!(tx.on(), c => sqlx::query(
        "INSERT INTO tellings (organization_id, recipient_id, told_at, notification_id) VALUES ($1, $2, $3, $4)
         ON CONFLICT (organization_id, recipient_id, told_at, notification_id) DO NOTHING",
    ).bind(organization.as_str()).bind(recipient).bind(now.as_microsecond()).bind(notification).execute(c).await.map(drop))?;
    Ok(())
}
