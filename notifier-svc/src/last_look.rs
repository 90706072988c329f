//! The last look at a message, right before each attempt to send it: withdrawn, suppressed, unwanted, untimely?
//!
//! What was resolved minutes ago may have waited for a server that was away: opt-outs hold at once, and quiet hours once
//! more for what is no longer fresh.

use std::{sync::Arc, time::Duration};

use chassis::{
    clock::{Clock, from_micros},
    error::{Error, Result},
    lane::Delivery,
    store::{Engine, Store},
    with,
};
use jiff::{SignedDuration, Timestamp, tz::TimeZone};

use crate::{kept::Kept, policy::Urgency, preference::Preference, suppression::Reason};

/// Younger than this, it was held against the person's wishes just now.
const FRESH: SignedDuration = SignedDuration::from_mins(5);

/// What becomes of a message.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Look {
    Send,
    /// In one word, and in plain words.
    Drop(&'static str, String),
    Wait(Duration),
}

#[derive(sqlx::FromRow)]
struct Row {
    cancelled: i64,
    ended: String,
    workflow: String,
    priority: i64,
    override_by: String,
    reason: Option<String>,
    time_zone: Option<String>,
    definition: Option<String>,
}

/// Looks at a message once more. A message that nobody knows is sent: its row is older than the lists.
pub(crate) async fn last_look(store: &Store, clock: &Clock, delivery: &Arc<Delivery>) -> Result<Look> {
    wait_for_withdrawal(store, &delivery.event).await?;
    let row: Option<Row> = with!(store.reader(), c => sqlx::query_as(
        "SELECT m.cancelled, m.ended, n.workflow, m.priority, n.override_by, s.reason, r.time_zone, p.definition
         FROM messages AS m JOIN notifications AS n ON n.id = m.notification_id
         LEFT JOIN suppressions AS s ON s.organization_id = m.organization_id AND s.channel = m.channel AND s.hash = m.address
         LEFT JOIN recipients AS r ON r.organization_id = m.organization_id AND r.id = m.recipient_id
         LEFT JOIN preferences AS p ON p.organization_id = m.organization_id AND p.recipient_id = m.recipient_id
         WHERE m.uid = $1",
    ).bind(&delivery.event[..]).fetch_optional(c).await)?;
    let Some(row) = row else { return Ok(Look::Send) };
    let fresh = clock.now() - FRESH < from_micros(delivery.created_at);
    look(&row, fresh, clock.now())
}

/// Whoever withdraws it right now either saw that it is being sent, or is seen by what is asked next. On SQLite there is one
/// writer, and the lane's word that it is being sent came after theirs.
async fn wait_for_withdrawal(store: &Store, uid: &[u8; 16]) -> Result<()> {
    if let Engine::Postgres(pool) = store.reader() {
        sqlx::query("SELECT 1 FROM messages WHERE uid = $1 FOR SHARE").bind(&uid[..]).fetch_optional(pool).await?;
    }
    Ok(())
}

fn look(row: &Row, fresh: bool, now: Timestamp) -> Result<Look> {
    if row.cancelled == 1 {
        let why = if row.ended.is_empty() { "the recipient was removed" } else { &row.ended };
        return Ok(Look::Drop("cancelled", why.to_owned()));
    }
    let kept = Kept { overridden: !row.override_by.is_empty(), ..Kept::default() };
    let urgency = kept.urgency(&row.workflow, row.priority);
    if let Some(reason) = row.reason.as_deref() {
        let yields = Reason::parse(reason).is_some_and(Reason::yields_to_emergency);
        if !(yields && urgency == Urgency::Emergency) {
            return Ok(Look::Drop("suppressed", format!("the address is on the suppression list: {reason}")));
        }
    }
    if fresh || urgency != Urgency::Ordinary {
        return Ok(Look::Send);
    }
    let Some(definition) = row.definition.as_deref() else { return Ok(Look::Send) };
    let preference: Preference = serde_json::from_str(definition).map_err(Error::internal)?;
    let category = kept.category(&row.workflow);
    if preference.rule(&row.workflow, category).is_some_and(|rule| rule.off) {
        return Ok(Look::Drop("unwanted", format!("they turned {category} off")));
    }
    let directory = row.time_zone.as_deref().unwrap_or_default();
    let zone = if preference.time_zone.is_empty() { directory } else { &preference.time_zone };
    let zone = TimeZone::get(zone).unwrap_or(TimeZone::UTC);
    let ends = preference.quiet.and_then(|quiet| quiet.ends(now, &zone));
    let wait = ends.and_then(|ends| Duration::try_from(ends.duration_since(now)).ok());
    Ok(wait.map_or(Look::Send, Look::Wait))
}

#[cfg(test)]
mod withdrawn;

#[cfg(test)]
mod tests {
    use jiff::civil::time;

    use super::*;
    use crate::{preference::Rule, when::Quiet};

    fn row() -> Row {
        Row {
            cancelled: 0,
            ended: String::new(),
            workflow: "timeline_changed".to_owned(),
            priority: 3,
            override_by: String::new(),
            reason: None,
            time_zone: Some("Europe/Berlin".to_owned()),
            definition: None,
        }
    }

    fn at(row: &Row, fresh: bool) -> Look {
        look(row, fresh, "2026-05-01T21:00:00Z".parse().unwrap()).unwrap()
    }

    #[test]
    fn what_was_withdrawn_or_suppressed_is_dropped_and_an_emergency_passes_an_unsubscription_alone() {
        assert_eq!(at(&row(), true), Look::Send);
        assert!(matches!(at(&Row { cancelled: 1, ..row() }, true), Look::Drop("cancelled", _)));
        let of = |reason: &str, workflow: &str| {
            let row = Row { reason: Some(reason.to_owned()), workflow: workflow.to_owned(), ..row() };
            at(&row, true)
        };
        assert!(matches!(of("bounced", "emergency"), Look::Drop("suppressed", _)));
        assert!(matches!(of("stopped", "emergency"), Look::Drop("suppressed", _)));
        assert!(matches!(of("unsubscribed", "timeline_changed"), Look::Drop("suppressed", _)));
        assert_eq!(of("unsubscribed", "emergency"), Look::Send);
    }

    #[test]
    fn what_is_no_longer_fresh_waits_for_the_end_of_quiet_hours_unless_it_is_urgent() {
        let quiet = Quiet { from: time(22, 0, 0, 0), until: time(7, 0, 0, 0) };
        let rule = Rule { subject: "payments".to_owned(), off: true, ..Rule::default() };
        let preference = Preference { quiet: Some(quiet), rules: vec![rule], ..Preference::default() };
        let definition = Some(serde_json::to_string(&preference).unwrap());
        let of = |priority, workflow: &str| Row {
            definition: definition.clone(),
            priority,
            workflow: workflow.to_owned(),
            ..row()
        };
        assert_eq!(at(&of(3, "timeline_changed"), false), Look::Wait(Duration::from_secs(8 * 3_600)));
        assert_eq!(at(&of(3, "timeline_changed"), true), Look::Send);
        assert_eq!(at(&of(1, "timeline_changed"), false), Look::Send);
        assert!(matches!(at(&of(3, "payment_failed"), false), Look::Drop("unwanted", _)));
    }
}
