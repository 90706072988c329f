//! The last look at a message, right before each attempt to send it: withdrawn, suppressed, unwanted, untimely?
//!
//! What was resolved minutes ago may have waited for a server that was away: opt-outs hold at once, and quiet hours once
//! more for what is no longer fresh and isn't about a wedding of this day. What a digest holds was wanted when that was closed.

use std::{sync::Arc, time::Duration};

use chassis::{
    clock::{Clock, from_micros},
    error::{Error, Result},
    id::OrganizationId,
    lane::Delivery,
    secret::DataKeys,
    store::{Engine, Store},
    with,
};
use jiff::{SignedDuration, Timestamp};

use crate::{
    category::MARKETING,
    hold::WORKFLOW as DIGEST,
    kept::{self, Kept},
    policy::Urgency,
    preference::Preference,
    recipient::member,
    suppression::Reason,
    wedding,
};

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

#[derive(Clone, sqlx::FromRow)]
struct Row {
    cancelled: i64,
    ended: String,
    organization_id: String,
    recipient_id: String,
    notification_id: String,
    workflow: String,
    /// Empty: the workflow's own.
    category: String,
    priority: i64,
    override_by: String,
    reason: Option<String>,
    time_zone: Option<String>,
    /// Their organization's.
    zone_of_all: Option<String>,
    definition: Option<String>,
}

/// Looks at a message once more. A message that nobody knows is sent: its row is older than the lists.
pub(crate) async fn last_look(store: &Store, keys: &DataKeys, clock: &Clock, delivery: &Arc<Delivery>) -> Result<Look> {
    wait_for_withdrawal(store, &delivery.event).await?;
    let row: Option<Row> = with!(store.reader(), c => sqlx::query_as(
        "SELECT m.cancelled, m.ended, m.organization_id, m.recipient_id, m.notification_id, n.workflow, n.category, m.priority,
             n.override_by, s.reason, r.time_zone, o.time_zone AS zone_of_all, p.definition
         FROM messages AS m JOIN notifications AS n ON n.id = m.notification_id
         LEFT JOIN suppressions AS s ON s.organization_id = m.organization_id AND s.channel = m.channel AND s.hash = m.address
         LEFT JOIN recipients AS r ON r.organization_id = m.organization_id AND r.id = m.recipient_id
         LEFT JOIN preferences AS p ON p.organization_id = m.organization_id AND p.recipient_id = m.recipient_id
         LEFT JOIN organization_settings AS o ON o.organization_id = m.organization_id
         WHERE m.uid = $1",
    ).bind(&delivery.event[..]).fetch_optional(c).await)?;
    let Some(row) = row else { return Ok(Look::Send) };
    let fresh = clock.now() - FRESH < from_micros(delivery.created_at);
    let look = look(&row, fresh, clock.now())?;
    let passes = matches!(look, Look::Wait(_)) && is_their_day(store, keys, &row, clock.now()).await?;
    Ok(if passes { Look::Send } else { look })
}

/// Whether it is about a wedding of theirs that is today: then quiet hours don't hold it back.
async fn is_their_day(store: &Store, keys: &DataKeys, row: &Row, now: Timestamp) -> Result<bool> {
    let wedding = match kept::read(store, keys, &row.notification_id).await {
        Ok(waiting) => waiting.kept.wedding,
        Err(Error::NotFound(_)) => None,
        Err(error) => return Err(error),
    };
    let Some(wedding) = wedding.filter(|_| row.category != MARKETING) else { return Ok(false) };
    let organization = OrganizationId::parse(&row.organization_id)?;
    Ok(wedding::is_its_day(store, &organization, Some(&wedding), now).await?
        && member::belongs(store, &organization, &wedding, &row.recipient_id).await?)
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
    let overridden = !row.override_by.is_empty();
    let kept = Kept { overridden, category: row.category.clone(), ..Kept::default() };
    let urgency = kept.urgency(&row.workflow, row.priority);
    if let Some(reason) = row.reason.as_deref() {
        let yields = Reason::parse(reason).is_some_and(Reason::yields_to_emergency);
        if !(yields && urgency == Urgency::Emergency) {
            return Ok(Look::Drop("suppressed", format!("the address is on the suppression list: {reason}")));
        }
    }
    let preference: Preference = row
        .definition
        .as_deref()
        .map_or_else(|| Ok(Preference::default()), serde_json::from_str)
        .map_err(Error::internal)?;
    if let Some(why) = unwanted(row, kept.category(&row.workflow), &preference, urgency) {
        return Ok(Look::Drop("unwanted", why));
    }
    if fresh || urgency != Urgency::Ordinary {
        return Ok(Look::Send);
    }
    let zone_of_all = row.zone_of_all.as_deref().unwrap_or_default();
    let zone = preference.zone(row.time_zone.as_deref().unwrap_or_default(), zone_of_all);
    let ends = preference.quiet.and_then(|quiet| quiet.ends(now, &zone));
    let wait = ends.and_then(|ends| Duration::try_from(ends.duration_since(now)).ok());
    Ok(wait.map_or(Look::Send, Look::Wait))
}

/// Why its reader doesn't want it any more; none if they do.
fn unwanted(row: &Row, category: &str, preference: &Preference, urgency: Urgency) -> Option<String> {
    let off = || preference.rule(&row.workflow, category).is_some_and(|rule| rule.off);
    match category {
        _ if row.workflow == DIGEST => None,
        MARKETING if preference.consent.is_none() => Some("they don't agree to commercial mail any more".to_owned()),
        MARKETING if off() => Some("they turned marketing off".to_owned()),
        _ if urgency == Urgency::Ordinary && off() => Some(format!("they turned {category} off")),
        _ => None,
    }
}

#[cfg(test)]
mod withdrawn;

#[cfg(test)]
mod tests {
    use jiff::civil::time;

    use super::*;
    use crate::{
        preference::{Consent, Rule},
        when::Quiet,
    };

    fn row() -> Row {
        Row {
            cancelled: 0,
            ended: String::new(),
            organization_id: "o".to_owned(),
            recipient_id: "r".to_owned(),
            notification_id: "n".to_owned(),
            category: String::new(),
            workflow: "timeline_changed".to_owned(),
            priority: 3,
            override_by: String::new(),
            reason: None,
            time_zone: Some("Europe/Berlin".to_owned()),
            zone_of_all: None,
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

    fn wishing(preference: &Preference, workflow: &str, category: &str) -> Row {
        let definition = Some(serde_json::to_string(preference).unwrap());
        Row { definition, workflow: workflow.to_owned(), category: category.to_owned(), ..row() }
    }

    #[test]
    fn it_is_judged_as_what_it_was_sent_as_and_a_digest_was_judged_when_it_was_closed() {
        let off = |subject: &str, off| Rule { subject: subject.to_owned(), off, ..Rule::default() };
        let preference = Preference { rules: vec![off("", true), off("weddings", false)], ..Preference::default() };
        for fresh in [true, false] {
            assert_eq!(at(&wishing(&preference, DIGEST, ""), fresh), Look::Send);
            assert_eq!(at(&wishing(&preference, "unconfirmed", "weddings"), fresh), Look::Send);
            assert!(matches!(at(&wishing(&preference, "unconfirmed", "clients"), fresh), Look::Drop("unwanted", _)));
        }
    }

    #[test]
    fn commercial_mail_is_dropped_once_consent_is_gone_however_fresh_and_urgent() {
        let consent = Consent { given_at: Timestamp::UNIX_EPOCH, source: "form".to_owned() };
        let mut preference = Preference { consent: Some(consent), ..Preference::default() };
        let offer = |preference: &Preference| Row { priority: 1, ..wishing(preference, "spring_offer", MARKETING) };
        assert_eq!(at(&offer(&preference), true), Look::Send);
        preference.unsubscribe(MARKETING);
        for fresh in [true, false] {
            assert!(matches!(at(&offer(&preference), fresh), Look::Drop("unwanted", _)));
            assert!(matches!(at(&Row { definition: None, ..offer(&preference) }, fresh), Look::Drop("unwanted", _)));
        }
    }

    #[test]
    fn whoever_has_no_clock_of_their_own_lives_by_their_organizations() {
        let quiet = Quiet { from: time(22, 0, 0, 0), until: time(7, 0, 0, 0) };
        let preference = Preference { quiet: Some(quiet), ..Preference::default() };
        let row = Row { time_zone: None, ..wishing(&preference, "timeline_changed", "") };
        // It is 21:00 in London and 14:00 in Los Angeles.
        assert_eq!(at(&Row { zone_of_all: Some("America/Los_Angeles".to_owned()), ..row.clone() }, false), Look::Send);
        let tokyo = Row { zone_of_all: Some("Asia/Tokyo".to_owned()), ..row.clone() };
        assert_eq!(at(&tokyo, false), Look::Wait(Duration::from_secs(3_600)));
        let own = Row { time_zone: Some("Europe/Berlin".to_owned()), ..tokyo };
        assert_eq!(at(&own, false), Look::Wait(Duration::from_secs(8 * 3_600)));
    }
}
