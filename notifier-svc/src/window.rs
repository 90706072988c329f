//! Until when free text reaches somebody on WhatsApp: a day after they last wrote.
//!
//! It is counted from when we hear of it: no report of Twilio's says when they wrote. One that is repeated counts once, by its
//! id (`effect.rs`). What they write names no message, so it concerns every organization that wrote to their number: a window is kept by the
//! number's hash, and goes as its day ends.

use chassis::{
    error::Result,
    id::OrganizationId,
    store::{Store, Tx},
    with,
};
use jiff::{SignedDuration, Timestamp};

/// How long it is open.
const OPEN: SignedDuration = SignedDuration::from_hours(24);

/// They wrote just now.
pub(crate) async fn open(tx: &mut Tx, organization: &OrganizationId, hash: &[u8], now: Timestamp) -> Result<()> {
    let until = now.checked_add(OPEN).unwrap_or(Timestamp::MAX).as_microsecond();
    with!(tx.on(), c => sqlx::query(
        "INSERT INTO whatsapp_windows (organization_id, hash, open_until) VALUES ($1, $2, $3)
         ON CONFLICT (organization_id, hash) DO UPDATE SET open_until = excluded.open_until",
    ).bind(organization.as_str()).bind(hash).bind(until).execute(c).await.map(drop))?;
    with!(tx.on(), c => sqlx::query("DELETE FROM whatsapp_windows WHERE open_until < $1")
        .bind(now.as_microsecond()).execute(c).await.map(drop))?;
    Ok(())
}

/// Until when a number's window is open, in microseconds; 0: it isn't.
pub(crate) async fn until(store: &Store, organization: &OrganizationId, hash: &[u8]) -> Result<i64> {
    let until: Option<i64> = with!(store.reader(), c => sqlx::query_scalar(
        "SELECT open_until FROM whatsapp_windows WHERE organization_id = $1 AND hash = $2",
    ).bind(organization.as_str()).bind(hash).fetch_optional(c).await)?;
    Ok(until.unwrap_or(0))
}
