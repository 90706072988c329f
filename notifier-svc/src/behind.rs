//! Integrations that are behind with a wedding, and that caught up: what told of it is over then.
//!
//! Guarantee: what caught up, or was given up, is marked as resolved in every inbox that was told, whatever still waits to be
//! said of it is withdrawn, for its time or for a server that is away, and nobody is told anything else.

use chassis::{error::Result, with};

use crate::{
    event::{Event, text},
    fact::still_waits,
    inbox::Changed,
    tell::Notifier,
};

/// Who is told that one is behind, and what marks that it caught up.
pub(crate) const BEHIND: &str = "vendor_behind";
pub(crate) const CAUGHT_UP: &str = "vendor_caught_up";

/// An integration and a wedding, as one text.
fn about(event: &Event) -> Option<String> {
    let integration = text(&event.new, &["integration_id"])?;
    Some(format!("{}:{integration}:{}", integration.len(), event.wedding.as_deref().unwrap_or_default()))
}

/// Why what still waits isn't said.
fn ended(event: &Event) -> &'static str {
    match text(&event.new, &["outcome"]).as_deref() {
        Some("given_up") => "it was given up before this was sent",
        _ => "it caught up before this was sent",
    }
}

impl Notifier {
    /// Notes that people were told of it: the event is acknowledged after this.
    pub(crate) async fn is_behind(&self, event: &Event) -> Result<()> {
        let Some(about) = about(event) else { return Ok(()) };
        with!(self.store.writer(), c => sqlx::query(
            "INSERT INTO behinds (organization_id, about, event_uid) VALUES ($1, $2, $3) ON CONFLICT DO NOTHING",
        ).bind(event.organization.as_str()).bind(about).bind(&event.uid).execute(c).await.map(drop))?;
        Ok(())
    }

    /// Ends everything that told of it.
    pub(crate) async fn caught_up(&self, event: &Event) -> Result<()> {
        let Some(about) = about(event) else { return Ok(()) };
        let (organization, now) = (&event.organization, self.clock.now_micros());
        let mut tx = self.store.begin().await?;
        let resolved: Vec<(String, String)> = with!(tx.on(), c => sqlx::query_as(
            "UPDATE notices SET resolved_at = $3, read_at = COALESCE(read_at, $3)
             WHERE organization_id = $1 AND resolved_at IS NULL AND workflow = $4
                 AND event_uid IN (SELECT event_uid FROM behinds WHERE organization_id = $1 AND about = $2)
             RETURNING recipient_id, id",
        ).bind(organization.as_str()).bind(&about).bind(now).bind(BEHIND).fetch_all(c).await)?;
        with!(tx.on(), c => sqlx::query(concat!(
            "UPDATE messages SET cancelled = 1, content = NULL, due_at = NULL, ended = $4
             WHERE organization_id = $1 AND notification_id IN (SELECT n.id FROM notifications AS n
                 JOIN behinds AS b ON b.organization_id = n.organization_id AND b.event_uid = n.event_uid
                 WHERE n.organization_id = $1 AND n.workflow = $3 AND b.about = $2) AND ", still_waits!(),
        )).bind(organization.as_str()).bind(&about).bind(BEHIND).bind(ended(event)).execute(c).await.map(drop))?;
        with!(tx.on(), c => sqlx::query("DELETE FROM behinds WHERE organization_id = $1 AND about = $2")
            .bind(organization.as_str()).bind(&about).execute(c).await.map(drop))?;
        tx.commit().await?;
        for (recipient, notice) in resolved {
            self.inbox.publish(&Changed::of(organization.clone(), recipient, &notice));
        }
        Ok(())
    }
}
