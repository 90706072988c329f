//! Reports signed by the providers' own libraries: each is believed, and none that was changed on the way.

use chassis::signature::{SignedHeaders, WebhookSecret};
use serde_json::{Value, json};
use url::form_urlencoded::Serializer;

use super::{Refused, resend, slack, twilio};
use crate::channel::{
    foreign::{node, python},
    naughty,
};

const NOW: i64 = 1_780_000_000;
const TOKEN: &str = "12345";
const URL: &str = "https://gate.example/callbacks/twilio?message=07070707-0707-0707-0707-070707070707";
const SLACK: &str = "8f742231b10e8888abcd99yyyzzz85a5";
const RESEND: &str = "whsec_MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaSw";

fn form(fields: &[(&str, &str)]) -> String {
    Serializer::new(String::new()).extend_pairs(fields).finish()
}

fn fields(text: &str) -> [(&'static str, &str); 3] {
    [("MessageSid", "SM1"), ("From", "+15005550009"), ("Body", text)]
}

#[test]
fn what_twilios_library_signs_is_believed_and_nothing_near_it() {
    let texts = naughty();
    let mut questions: Vec<Value> = texts
        .iter()
        .map(|text| {
            let fields = serde_json::Map::from_iter(fields(text).map(|(name, value)| (name.to_owned(), json!(value))));
            json!({"token": TOKEN, "url": URL, "fields": fields})
        })
        .collect();
    questions.extend(texts.iter().map(|text| json!({"token": TOKEN, "url": URL, "body": text})));
    let Some(signed) = node("sign.mjs", &questions) else { return };
    let (forms, bodies) = signed.split_at(texts.len());
    let refused = Err(Refused::Signature);
    for (text, signed) in texts.iter().zip(forms) {
        let (url, signature) = (signed["url"].as_str().unwrap(), signed["signature"].as_str().unwrap());
        let body = form(&fields(text));
        assert_eq!(twilio::verify(url, body.as_bytes(), signature, TOKEN), Ok(()), "{text:?}");
        let other = format!("{text}.");
        let other = form(&fields(&other));
        assert_eq!(twilio::verify(url, other.as_bytes(), signature, TOKEN), refused, "{text:?}");
        assert_eq!(twilio::verify(url, body.as_bytes(), signature, "12346"), refused, "{text:?}");
    }
    for (text, signed) in texts.iter().zip(bodies) {
        let (url, signature) = (signed["url"].as_str().unwrap(), signed["signature"].as_str().unwrap());
        assert_eq!(twilio::verify(url, text.as_bytes(), signature, TOKEN), Ok(()), "{text:?}");
        assert_eq!(twilio::verify(url, format!("{text}.").as_bytes(), signature, TOKEN), refused, "{text:?}");
    }
}

#[test]
fn what_slacks_and_resends_libraries_sign_is_believed_and_nothing_near_it() {
    let texts = naughty();
    let question = |by: &str, secret: &str, body: &str| json!({"by": by, "secret": secret, "timestamp": NOW, "body": body, "id": "msg_1"});
    let bodies: Vec<String> = texts.iter().map(|text| form(&[("payload", text)])).collect();
    let mut questions: Vec<Value> = bodies.iter().map(|body| question("slack", SLACK, body)).collect();
    questions.extend(texts.iter().map(|text| question("resend", RESEND, text)));
    let Some(signed) = python("sign.py", &questions) else { return };
    let (by_slack, by_resend) = signed.split_at(texts.len());
    for (body, signature) in bodies.iter().zip(by_slack) {
        let verify = |body: &str, secret, now| {
            slack::verify(body.as_bytes(), &NOW.to_string(), signature.as_str().unwrap(), secret, now)
        };
        assert_eq!(verify(body, SLACK, NOW + 300), Ok(()), "{body}");
        assert_eq!(verify(body, SLACK, NOW + 301), Err(Refused::Stale), "{body}");
        assert_eq!(verify(&format!("{body}&x"), SLACK, NOW), Err(Refused::Signature), "{body}");
        assert_eq!(verify(body, TOKEN, NOW), Err(Refused::Signature), "{body}");
    }
    let secrets = [WebhookSecret::parse(RESEND).unwrap()];
    for (text, signature) in texts.iter().zip(by_resend) {
        let (timestamp, signature) = (NOW.to_string(), signature.as_str().unwrap());
        let verify = |body: &str, id| {
            let headers = SignedHeaders { id, timestamp: &timestamp, signature };
            resend::verify(headers, body.as_bytes(), &secrets, NOW)
        };
        assert_eq!(verify(text, "msg_1"), Ok(()), "{text:?}");
        assert_eq!(verify(&format!("{text}."), "msg_1"), Err(Refused::Signature), "{text:?}");
        assert_eq!(verify(text, "msg_2"), Err(Refused::Signature), "{text:?}");
    }
}
