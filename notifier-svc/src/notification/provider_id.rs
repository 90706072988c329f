//! How a message is called by the provider that took it: read from its answer, of which nothing else is kept.
//!
//! An answer that was kept earlier may be cut, so it is searched, not parsed.

use std::collections::HashMap;

use chassis::{
    error::{Error, Result},
    id::{OrganizationId, uuid_text},
    lane::rows::open_response,
    secret::DataKeys,
    store::Store,
    with,
};

use super::Notification;

/// The names of ids: Twilio's, Slack's, Resend's and Meta's, Google's.
const NAMES: &[&str] = &["\"sid\"", "\"ts\"", "\"id\"", "\"name\""];
/// The longest that is shown.
const LONGEST: usize = 200;

/// Fills in what providers call the messages that they took.
pub(crate) async fn name(
    store: &Store,
    keys: &DataKeys,
    organization: &OrganizationId,
    notifications: &mut [Notification],
) -> Result<()> {
    let key = keys.of(organization).await?;
    for notification in notifications {
        let rows: Vec<(Vec<u8>, i64, Vec<u8>)> = with!(store.reader(), c => sqlx::query_as(
            "SELECT m.uid, d.id, a.response FROM messages AS m JOIN deliveries AS d ON d.event = COALESCE(m.carried_by, m.uid)
             JOIN attempts AS a ON a.delivery = d.id AND a.number = d.attempts
             WHERE m.notification_id = $1 AND a.outcome = 'delivered' AND a.response IS NOT NULL",
        ).bind(&notification.id).fetch_all(c).await)?;
        let mut names = HashMap::with_capacity(rows.len());
        for (uid, delivery, sealed) in rows {
            let uid = uid.try_into().map_err(|_| Error::internal(anyhow::anyhow!("a message has a malformed uid")))?;
            names.insert(uuid_text(uid), read(&open_response(&key, delivery, &sealed)?));
        }
        for message in &mut notification.messages {
            message.provider_id = names.remove(&message.id).unwrap_or_default();
        }
    }
    Ok(())
}

/// The id in an answer; empty if it names none.
pub(crate) fn read(answer: &[u8]) -> String {
    let answer = String::from_utf8_lossy(answer);
    let found = match answer.trim_start().starts_with('{') {
        true => NAMES.iter().find_map(|name| value(&answer, name)).unwrap_or_default(),
        // What was looked up is kept as it is called.
        false => answer.trim(),
    };
    let is_id = found.len() <= LONGEST && found.chars().all(|c| c.is_ascii_graphic());
    if is_id { found.to_owned() } else { String::new() }
}

/// The text that follows a name.
fn value<'a>(json: &'a str, name: &str) -> Option<&'a str> {
    let (_, rest) = json.split_once(name)?;
    let rest = rest.trim_start().strip_prefix(':')?.trim_start().strip_prefix('"')?;
    rest.split_once('"').map(|(value, _)| value)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_providers_answer_names_the_message_even_if_it_was_cut() {
        for (answer, id) in [
            (r#"{"account_sid": "AC1", "sid": "SM1", "status": "queued", "to""#, "SM1"),
            (r#"{"ok":true,"channel":"C1","ts":"1503435956.000247","message":{"te"#, "1503435956.000247"),
            (r#"{"id":"49a3999c-0ce1-4ea6-ab68-afcd6dc2e794"}"#, "49a3999c-0ce1-4ea6-ab68-afcd6dc2e794"),
            (r#"{"contacts":[{"wa_id":"1500"}],"messages":[{"id":"wamid.HBg="}]}"#, "wamid.HBg="),
            (r#"{"name":"projects/p/messages/0:1"}"#, "projects/p/messages/0:1"),
            ("1503435956.000247", "1503435956.000247"),
            ("250 2.0.0 Ok: queued as 1", ""),
            ("", ""),
            (r#"{"ok":true"#, ""),
        ] {
            assert_eq!(read(answer.as_bytes()), id, "{answer}");
        }
    }
}
