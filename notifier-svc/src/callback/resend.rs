//! Resend's webhooks: signed as Standard Webhooks are, by its own (Svix') header names or the standard's (resend-openapi,
//! `webhooks`).

use chassis::signature::{SignatureError, SignedHeaders, TOLERANCE, WebhookSecret, verify as verify_standard};
use serde::Deserialize;
use serde_json::Value;

use super::{Meaning, Refused, Report, message};

/// Believes a body that was signed with one of the secrets within five minutes.
///
/// # Errors
/// Why not.
pub(crate) fn verify(
    headers: SignedHeaders<'_>,
    body: &[u8],
    secrets: &[WebhookSecret],
    now_seconds: i64,
) -> Result<(), Refused> {
    verify_standard(headers, body, secrets, now_seconds, TOLERANCE).map_err(|error| match error {
        SignatureError::Stale => Refused::Stale,
        _ => Refused::Signature,
    })
}

#[derive(Deserialize)]
struct Event {
    #[serde(rename = "type")]
    kind: String,
    data: Data,
}

#[derive(Deserialize)]
struct Data {
    #[serde(default)]
    email_id: String,
    #[serde(default)]
    to: Vec<String>,
    #[serde(default)]
    tags: Value,
    #[serde(default)]
    bounce: Value,
    #[serde(default)]
    failed: Value,
    #[serde(default)]
    suppressed: Value,
}

impl Data {
    /// Tags come as a map, or as they went, as a list of pairs.
    fn message(&self) -> Option<[u8; 16]> {
        let name = match &self.tags {
            Value::Array(tags) => tags.iter().find(|tag| tag["name"] == "message").map(|tag| &tag["value"]),
            tags => tags.get("message"),
        };
        message(name?.as_str()?)
    }
}

/// What a verified body reports; nothing for kinds that say nothing about a message's fate. `id` is the header's.
///
/// # Errors
/// A body that is none of Resend's.
pub(crate) fn read(id: &str, body: &[u8]) -> Result<Vec<Report>, Refused> {
    let Event { kind, data } = serde_json::from_slice(body).map_err(|_| Refused::Malformed)?;
    let address = data.to.first().cloned().unwrap_or_default();
    let said = |value: &Value, name: &str| value[name].as_str().unwrap_or_default().to_owned();
    let meaning = match kind.as_str() {
        "email.sent" | "email.delivery_delayed" | "email.scheduled" => Meaning::Sent,
        "email.delivered" => Meaning::Delivered,
        "email.opened" | "email.clicked" => Meaning::Read,
        "email.bounced" => Meaning::Bounced { address, for_good: data.bounce["type"] == "Permanent" },
        "email.complained" => Meaning::Complained { address },
        "email.failed" => Meaning::Failed { code: said(&data.failed, "reason") },
        // It was never sent: the address had bounced or complained before.
        "email.suppressed" if said(&data.suppressed, "reason") == "previous_complaint" => {
            Meaning::Complained { address }
        }
        "email.suppressed" => Meaning::Bounced { address, for_good: true },
        _ => return Ok(Vec::new()),
    };
    let id = if id.is_empty() { format!("{}:{kind}", data.email_id) } else { id.to_owned() };
    Ok(vec![Report { id, message: data.message(), meaning }])
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;
    use crate::callback::tests::{of, vectors};

    #[test]
    fn the_published_example_is_believed_and_nothing_near_it() {
        let vectors = vectors();
        let part = |name: &str| of(&vectors, &format!("/svix_resend/{name}"));
        let secrets = [WebhookSecret::parse(&part("secret")).unwrap()];
        let (id, timestamp, signature, body) =
            (part("svix_id"), part("svix_timestamp"), part("signature"), part("body"));
        let headers = SignedHeaders { id: &id, timestamp: &timestamp, signature: &signature };
        let now: i64 = timestamp.parse().unwrap();
        assert_eq!(verify(headers, body.as_bytes(), &secrets, now), Ok(()));
        assert_eq!(verify(headers, body.as_bytes(), &secrets, now + 301), Err(Refused::Stale));
        assert_eq!(verify(headers, br#"{"test":2432232314}"#, &secrets, now), Err(Refused::Signature), "spaces count");
        assert_eq!(verify(headers, body.as_bytes(), &[WebhookSecret::generate()], now), Err(Refused::Signature));
    }

    fn meaning(kind: &str, data: Value) -> Option<Meaning> {
        let body = json!({"type": kind, "created_at": "2026-05-01T12:00:00Z", "data": data});
        read("msg_1", body.to_string().as_bytes()).unwrap().pop().map(|report| report.meaning)
    }

    #[test]
    fn every_kind_has_its_meaning() {
        let address = "ada@example.org".to_owned();
        let data = |more: Value| {
            let mut data = json!({"email_id": "49a3999c", "to": ["ada@example.org"], "tags": {"message": "07070707-0707-0707-0707-070707070707"}});
            data.as_object_mut().unwrap().extend(more.as_object().unwrap().clone());
            data
        };
        assert_eq!(meaning("email.sent", data(json!({}))), Some(Meaning::Sent));
        assert_eq!(meaning("email.delivery_delayed", data(json!({}))), Some(Meaning::Sent));
        assert_eq!(meaning("email.delivered", data(json!({}))), Some(Meaning::Delivered));
        assert_eq!(meaning("email.opened", data(json!({}))), Some(Meaning::Read));
        for (kind, for_good) in [("Permanent", true), ("Transient", false), ("Undetermined", false)] {
            let bounced = meaning("email.bounced", data(json!({"bounce": {"type": kind, "subType": "General"}})));
            assert_eq!(bounced, Some(Meaning::Bounced { address: address.clone(), for_good }));
        }
        assert_eq!(
            meaning("email.complained", data(json!({}))),
            Some(Meaning::Complained { address: address.clone() })
        );
        let failed = meaning("email.failed", data(json!({"failed": {"reason": "reached_daily_quota"}})));
        assert_eq!(failed, Some(Meaning::Failed { code: "reached_daily_quota".to_owned() }));
        let suppressed = meaning("email.suppressed", data(json!({"suppressed": {"reason": "previous_complaint"}})));
        assert_eq!(suppressed, Some(Meaning::Complained { address }));
        assert_eq!(meaning("contact.created", json!({"id": "x"})), None);
        assert_eq!(read("x", b"[]"), Err(Refused::Malformed));
    }

    #[test]
    fn a_report_names_the_message_in_either_form_of_tags() {
        let list = json!([{"name": "workflow", "value": "x"}, {"name": "message", "value": "07070707-0707-0707-0707-070707070707"}]);
        for tags in [json!({"message": "07070707-0707-0707-0707-070707070707"}), list] {
            let body = json!({"type": "email.delivered", "data": {"tags": tags, "to": []}});
            let report = read("msg_1", body.to_string().as_bytes()).unwrap().pop().unwrap();
            assert_eq!((report.message, report.id.as_str()), (Some([7; 16]), "msg_1"));
        }
        let foreign = json!({"type": "email.delivered", "data": {"tags": {"message": "x"}}});
        assert_eq!(read("msg_1", foreign.to_string().as_bytes()).unwrap()[0].message, None);
    }
}
