//! WhatsApp's webhooks by Meta: the handshake, and reports of messages and replies (developers.facebook.com, Webhooks).
//!
//! The signature is over the raw bytes: Meta escapes characters before it signs, so that nothing written anew would match.

use chassis::signature::{equal, hex_verify};
use serde::Deserialize;
use serde_json::Value;

use super::{Meaning, REPORTS, Refused, Report, message, written};

/// What to answer to a handshake, which carries no signature: the challenge, if the token is ours.
pub(crate) fn handshake<'c>(mode: &str, token: &str, challenge: &'c str, ours: &str) -> Option<&'c str> {
    let is_ours = !ours.is_empty() && equal(token.as_bytes(), ours.as_bytes());
    (mode == "subscribe" && is_ours).then_some(challenge)
}

/// Believes a body that was signed with the app's secret.
///
/// # Errors
/// Why not.
pub(crate) fn verify(body: &[u8], signature: &str, secret: &str) -> Result<(), Refused> {
    let signature = signature.strip_prefix("sha256=").ok_or(Refused::Signature)?;
    if hex_verify(secret.as_bytes(), body, signature) { Ok(()) } else { Err(Refused::Signature) }
}

#[derive(Deserialize)]
struct Body {
    object: String,
    #[serde(default)]
    entry: Vec<Entry>,
}

#[derive(Deserialize)]
struct Entry {
    #[serde(default)]
    changes: Vec<Change>,
}

#[derive(Deserialize)]
struct Change {
    value: Said,
}

#[derive(Deserialize)]
struct Said {
    #[serde(default)]
    statuses: Vec<Status>,
    #[serde(default)]
    messages: Vec<Incoming>,
}

#[derive(Deserialize)]
struct Status {
    id: String,
    status: String,
    #[serde(default)]
    biz_opaque_callback_data: String,
    #[serde(default)]
    errors: Vec<Value>,
}

#[derive(Deserialize)]
struct Incoming {
    id: String,
    from: String,
    #[serde(default)]
    text: Value,
    #[serde(default)]
    button: Value,
    #[serde(default)]
    interactive: Value,
}

/// What a verified body reports.
///
/// # Errors
/// A body that is none of WhatsApp's.
pub(crate) fn read(body: &[u8]) -> Result<Vec<Report>, Refused> {
    let body: Body = serde_json::from_slice(body).map_err(|_| Refused::Malformed)?;
    if body.object != "whatsapp_business_account" {
        return Err(Refused::Malformed);
    }
    let said = body.entry.into_iter().flat_map(|entry| entry.changes).map(|change| change.value);
    let reports = said.flat_map(|said| {
        let statuses = said.statuses.into_iter().filter_map(reported);
        statuses.chain(said.messages.into_iter().map(received)).collect::<Vec<_>>()
    });
    Ok(reports.take(REPORTS).collect())
}

fn reported(status: Status) -> Option<Report> {
    let code = status.errors.first().map(|error| error["code"].to_string()).unwrap_or_default();
    let meaning = match status.status.as_str() {
        "sent" => Meaning::Sent,
        "delivered" => Meaning::Delivered,
        "read" => Meaning::Read,
        "failed" => Meaning::Failed { code },
        _ => return None,
    };
    let id = format!("{}:{}", status.id, status.status);
    Some(Report { id, message: message(&status.biz_opaque_callback_data), meaning })
}

fn received(incoming: Incoming) -> Report {
    let said = [&incoming.text["body"], &incoming.button["text"], &incoming.interactive["button_reply"]["title"]];
    let said = said.into_iter().find_map(Value::as_str).unwrap_or_default();
    let from = format!("+{}", incoming.from.trim_start_matches('+'));
    Report { id: incoming.id, message: None, meaning: written(from, said) }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;
    use crate::callback::tests::{of, vectors};

    #[test]
    fn the_published_examples_are_believed_and_nothing_near_them() {
        let vectors = vectors();
        for case in ["/hub_sha256/cases/0", "/hub_sha256/cases/1"] {
            let part = |name: &str| of(&vectors, &format!("{case}/{name}"));
            assert_eq!(verify(part("body").as_bytes(), &part("signature"), &part("secret")), Ok(()));
            assert_eq!(verify(b"other", &part("signature"), &part("secret")), Err(Refused::Signature));
            assert_eq!(verify(part("body").as_bytes(), &part("signature"), ""), Err(Refused::Signature));
            let bare = part("signature").replace("sha256=", "");
            assert_eq!(verify(part("body").as_bytes(), &bare, &part("secret")), Err(Refused::Signature));
        }
    }

    #[test]
    fn a_handshake_is_answered_for_our_token_alone() {
        assert_eq!(handshake("subscribe", "ours", "1158201444", "ours"), Some("1158201444"));
        assert_eq!(handshake("subscribe", "other", "1158201444", "ours"), None);
        assert_eq!(handshake("unsubscribe", "ours", "1158201444", "ours"), None);
        assert_eq!(handshake("subscribe", "", "1158201444", ""), None, "without a token of ours there is none");
    }

    #[test]
    fn a_batch_is_read_in_its_order() {
        let status = |status: &str, more: Value| {
            let mut status = json!({"id": "wamid.1", "status": status, "timestamp": "1", "recipient_id": "1", "biz_opaque_callback_data": "07070707-0707-0707-0707-070707070707"});
            status.as_object_mut().unwrap().extend(more.as_object().unwrap().clone());
            status
        };
        let statuses = [
            status("sent", json!({})),
            status("delivered", json!({})),
            status("failed", json!({"errors": [{"code": 131049, "title": "x"}]})),
            status("something_new", json!({})),
        ];
        let messages = [
            json!({"id": "wamid.2", "from": "15005550010", "type": "text", "text": {"body": "See you at 4"}}),
            json!({"id": "wamid.3", "from": "15005550010", "type": "button", "button": {"text": "Stop"}}),
        ];
        let body_of = |text: &str| json!({"object": "whatsapp_business_account", "entry": [{"changes": [{"value": {"messages": [{"id": "w", "from": "1", "text": {"body": text}}]}}]}]});
        let said = |text: &str| read(body_of(text).to_string().as_bytes()).unwrap().remove(0).meaning;
        for word in ["STOPALL", "cancel", "End", "QUIT", "revoke", "OptOut", "unsubscribe "] {
            assert_eq!(said(word), Meaning::OptedOut { address: "+1".to_owned() }, "nobody but us obeys {word}");
        }
        assert_eq!(said("unstop"), Meaning::OptedIn { address: "+1".to_owned() });
        let change = |value: Value| json!({"object": "whatsapp_business_account", "entry": [{"id": "1", "changes": [{"field": "messages", "value": value}]}]});
        let body = change(json!({"messaging_product": "whatsapp", "statuses": statuses, "messages": messages}));
        let reports = read(body.to_string().as_bytes()).unwrap();
        let from = "+15005550010".to_owned();
        let meanings: Vec<Meaning> = reports.iter().map(|report| report.meaning.clone()).collect();
        assert_eq!(
            meanings,
            [
                Meaning::Sent,
                Meaning::Delivered,
                Meaning::Failed { code: "131049".to_owned() },
                Meaning::Replied { from: from.clone(), text: "See you at 4".to_owned() },
                Meaning::OptedOut { address: from },
            ]
        );
        assert_eq!((reports[1].id.as_str(), reports[1].message), ("wamid.1:delivered", Some([7; 16])));
        assert_eq!(read(br#"{"object":"page","entry":[]}"#), Err(Refused::Malformed));
    }
}
