//! Slack's requests: a button that was pressed, and events (docs.slack.dev, "Verifying requests from Slack").

use chassis::signature::hex_verify;
use serde::Deserialize;
use serde_json::Value;
use url::form_urlencoded;

use super::{Meaning, Refused, Report, is_fresh, message, text};
use crate::channel::ACKNOWLEDGE;

/// What a request wants.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Wanted {
    /// The address is being tried out: this is to be answered.
    Challenge(String),
    Reports(Vec<Report>),
}

/// Believes a body that was signed with the app's secret within five minutes.
///
/// # Errors
/// Why not.
pub(crate) fn verify(
    body: &[u8],
    timestamp: &str,
    signature: &str,
    secret: &str,
    now_seconds: i64,
) -> Result<(), Refused> {
    let signed_at: i64 = timestamp.parse().map_err(|_| Refused::Signature)?;
    let signature = signature.strip_prefix("v0=").ok_or(Refused::Signature)?;
    let signed = [b"v0:", timestamp.as_bytes(), b":", body].concat();
    if !hex_verify(secret.as_bytes(), &signed, signature) {
        return Err(Refused::Signature);
    }
    if is_fresh(signed_at, now_seconds) { Ok(()) } else { Err(Refused::Stale) }
}

#[derive(Deserialize)]
struct Event {
    #[serde(rename = "type")]
    kind: String,
    #[serde(default)]
    challenge: String,
    #[serde(default)]
    event_id: String,
    #[serde(default)]
    event: Value,
}

/// What a verified request of the Events API wants.
///
/// # Errors
/// A body that is none of Slack's.
pub(crate) fn read_event(body: &[u8]) -> Result<Wanted, Refused> {
    let Event { kind, challenge, event_id, event } = serde_json::from_slice(body).map_err(|_| Refused::Malformed)?;
    match kind.as_str() {
        "url_verification" if !challenge.is_empty() && challenge.len() <= 1_024 => Ok(Wanted::Challenge(challenge)),
        "event_callback" if !event_id.is_empty() => {
            // What is written to us alone: in a channel people answer each other.
            let by_person = event["type"] == "message"
                && event["channel_type"] == "im"
                && event.get("bot_id").is_none()
                && event.get("subtype").is_none();
            let said = event["user"].as_str().zip(event["text"].as_str()).filter(|_| by_person);
            let report = said.map(|(from, said)| Report {
                id: event_id,
                message: None,
                meaning: Meaning::Replied { from: from.to_owned(), text: text(said) },
            });
            Ok(Wanted::Reports(report.into_iter().collect()))
        }
        _ => Err(Refused::Malformed),
    }
}

#[derive(Deserialize)]
struct Interaction {
    #[serde(rename = "type")]
    kind: String,
    user: User,
    #[serde(default)]
    actions: Vec<Action>,
}

#[derive(Deserialize)]
struct User {
    id: String,
}

#[derive(Deserialize)]
struct Action {
    action_id: String,
    #[serde(default)]
    value: String,
    #[serde(default)]
    action_ts: String,
}

/// What a verified interaction reports: whose button was pressed.
///
/// # Errors
/// A form that is none of Slack's.
pub(crate) fn read_interaction(body: &[u8]) -> Result<Vec<Report>, Refused> {
    let payload = form_urlencoded::parse(body).find(|(name, _)| name == "payload").ok_or(Refused::Malformed)?.1;
    let Interaction { kind, user, actions } = serde_json::from_str(&payload).map_err(|_| Refused::Malformed)?;
    if kind != "block_actions" {
        return Ok(Vec::new());
    }
    let pressed = actions.into_iter().filter(|action| action.action_id == ACKNOWLEDGE);
    let reports = pressed.map(|action| Report {
        id: format!("{}:{}:{}", user.id, action.value, action.action_ts),
        message: message(&action.value),
        meaning: Meaning::Acknowledged { by: user.id.clone() },
    });
    Ok(reports.filter(|report| report.message.is_some()).collect())
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;
    use crate::callback::tests::{of, vectors};

    #[test]
    fn the_published_example_is_believed_and_nothing_near_it() {
        let vectors = vectors();
        let part = |name: &str| of(&vectors, &format!("/slack_v0/{name}"));
        let (secret, timestamp, body, signature) =
            (part("signing_secret"), part("timestamp"), part("body"), part("signature"));
        let now: i64 = timestamp.parse().unwrap();
        let verify = |body: &str, timestamp: &str, secret: &str, now| {
            super::verify(body.as_bytes(), timestamp, &signature, secret, now)
        };
        assert_eq!(verify(&body, &timestamp, &secret, now + 300), Ok(()));
        assert_eq!(verify(&body, &timestamp, &secret, now + 301), Err(Refused::Stale));
        assert_eq!(verify(&body, &timestamp, &secret, now - 301), Err(Refused::Stale));
        assert_eq!(verify(&format!("{body}&x=1"), &timestamp, &secret, now), Err(Refused::Signature));
        assert_eq!(verify(&body, "1531420619", &secret, now), Err(Refused::Signature));
        assert_eq!(verify(&body, &timestamp, "", now), Err(Refused::Signature));
    }

    #[test]
    fn a_button_acknowledges_the_message_that_it_names() {
        let action = |id: &str, value: &str| json!({"action_id": id, "block_id": "b", "type": "button", "value": value, "action_ts": "1548426417.840180"});
        let payload = |actions: Value| {
            let payload = json!({"type": "block_actions", "user": {"id": "U1", "name": "ada"}, "actions": actions});
            form_urlencoded::Serializer::new(String::new()).append_pair("payload", &payload.to_string()).finish()
        };
        let ours = action("acknowledge", "07070707-0707-0707-0707-070707070707");
        let body = payload(json!([ours, action("other", "x"), action("acknowledge", "not ours")]));
        let reports = read_interaction(body.as_bytes()).unwrap();
        let [report] = &reports[..] else { panic!("one of three: {reports:?}") };
        assert_eq!((report.message, &report.meaning), (Some([7; 16]), &Meaning::Acknowledged { by: "U1".to_owned() }));
        assert_eq!(read_interaction(b"payload=no"), Err(Refused::Malformed));
        assert_eq!(read_interaction(b""), Err(Refused::Malformed));
    }

    #[test]
    fn an_address_that_is_tried_out_is_answered_and_only_people_reply() {
        let read = |body: Value| read_event(body.to_string().as_bytes());
        assert_eq!(
            read(json!({"type": "url_verification", "token": "t", "challenge": "3eZb"})),
            Ok(Wanted::Challenge("3eZb".to_owned()))
        );
        let event =
            |event: Value| json!({"type": "event_callback", "event_id": "Ev1", "team_id": "T1", "event": event});
        let Ok(Wanted::Reports(said)) =
            read(event(json!({"type": "message", "channel_type": "im", "user": "U1", "text": "ok", "ts": "1.2"})))
        else {
            panic!("reports")
        };
        assert_eq!(
            (said[0].id.as_str(), &said[0].meaning),
            ("Ev1", &Meaning::Replied { from: "U1".to_owned(), text: "ok".to_owned() })
        );
        for silent in [
            json!({"type": "message", "channel_type": "channel", "user": "U1", "text": "ok"}),
            json!({"type": "message", "channel_type": "group", "user": "U1", "text": "ok"}),
            json!({"type": "message", "user": "U1", "text": "ok"}),
            json!({"type": "message", "channel_type": "im", "user": "U1", "bot_id": "B1", "text": "ok"}),
            json!({"type": "message", "subtype": "message_changed"}),
            json!({"type": "app_mention"}),
        ] {
            assert_eq!(read(event(silent)), Ok(Wanted::Reports(Vec::new())));
        }
        assert_eq!(read(json!({"type": "something"})), Err(Refused::Malformed));
    }
}
