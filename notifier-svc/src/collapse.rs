//! A domain event and the table change that says the same tell people once.
//!
//! The router gives both the same key: tokens with blanks between, each `<route>:<what it is about>:<what it says>`. Of
//! each thing what was said of it is kept for a day, with the kind of event that it came by; an event is redundant if each of
//! its tokens stands there from the *other* kind, and the pair is then done with. So a date that is moved back and forth within
//! an hour is told each time, and one kind may lag behind the other by several changes.

use chassis::{
    error::Result,
    id::OrganizationId,
    store::{Store, Tx},
    with,
};

/// How long the other kind is waited for, in microseconds: a day.
const WINDOW: i64 = 24 * 3_600 * 1_000_000;

/// What an event says, to be recognised in its other kind.
pub(crate) struct Said<'a> {
    pub(crate) organization: &'a OrganizationId,
    pub(crate) workflow: &'a str,
    /// Empty: never collapsed.
    pub(crate) key: &'a str,
    /// A table change, not a domain event.
    pub(crate) is_change: bool,
}

impl Said<'_> {
    /// What each token is about, and what it says.
    fn tokens(&self) -> impl Iterator<Item = (&str, &str)> {
        self.key.split_whitespace().map(|token| token.rsplit_once(':').unwrap_or((token, "")))
    }

    /// The id of the event of the other kind that told people the same.
    pub(crate) async fn told_by(&self, store: &Store, now: i64) -> Result<Option<String>> {
        let mut by = None;
        for (about, says) in self.tokens() {
            let found: Option<String> = with!(store.reader(), c => sqlx::query_scalar(
                "SELECT event_id FROM said WHERE organization_id = $1 AND workflow = $2 AND about = $3 AND says = $4
                     AND is_change <> $5 AND told_at > $6",
            )
            .bind(self.organization.as_str())
            .bind(self.workflow)
            .bind(about)
            .bind(says)
            .bind(i64::from(self.is_change))
            .bind(now - WINDOW)
            .fetch_optional(c).await)?;
            let Some(event) = found else { return Ok(None) };
            by = Some(event);
        }
        Ok(by)
    }

    /// Notes that people were told by event `event_id`, or, where it was `redundant`, that the pair is done with; and forgets
    /// what the other kind isn't waited for any more.
    pub(crate) async fn note(&self, tx: &mut Tx, event_id: &str, redundant: bool, now: i64) -> Result<()> {
        for (about, says) in self.tokens() {
            if redundant {
                self.forget(tx, about, says).await?;
            } else {
                self.keep(tx, about, says, event_id, now).await?;
            }
        }
        with!(tx.on(), c => sqlx::query("DELETE FROM said WHERE organization_id = $1 AND told_at <= $2")
            .bind(self.organization.as_str()).bind(now - WINDOW).execute(c).await.map(drop))?;
        Ok(())
    }

    /// The other kind said it, and this one now.
    async fn forget(&self, tx: &mut Tx, about: &str, says: &str) -> Result<()> {
        with!(tx.on(), c => sqlx::query(
            "DELETE FROM said WHERE organization_id = $1 AND workflow = $2 AND about = $3 AND says = $4 AND is_change <> $5",
        )
        .bind(self.organization.as_str())
        .bind(self.workflow)
        .bind(about)
        .bind(says)
        .bind(i64::from(self.is_change))
        .execute(c).await.map(drop))?;
        Ok(())
    }

    async fn keep(&self, tx: &mut Tx, about: &str, says: &str, event_id: &str, now: i64) -> Result<()> {
        with!(tx.on(), c => sqlx::query(
            "INSERT INTO said (organization_id, workflow, about, says, is_change, event_id, told_at) VALUES ($1, $2, $3, $4, $5, $6, $7)
             ON CONFLICT (organization_id, workflow, about, says, is_change) DO UPDATE SET event_id = excluded.event_id,
                 told_at = excluded.told_at",
        )
        .bind(self.organization.as_str())
        .bind(self.workflow)
        .bind(about)
        .bind(says)
        .bind(i64::from(self.is_change))
        .bind(event_id)
        .bind(now)
        .execute(c).await.map(drop))?;
        Ok(())
    }
}
