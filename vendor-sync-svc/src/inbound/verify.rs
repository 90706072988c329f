//! Who sent it: the signature over the bytes as they came, in constant time, with a tolerance of five minutes. Pure.
//!
//! Three schemes, of which the first that a request shows decides alone: Standard Webhooks headers (standardwebhooks.com);
//! `X-WedSync-Signature`, the hex HMAC-SHA256 of the raw body; for client-sync and channel-events a `signature` member,
//! the hex HMAC of `<timestamp>.<raw data or payload>`. Supabase can't sign and sends a secret header.
//! While a secret is being rotated, either one verifies.

use chassis::signature::{self, SignedHeaders, TOLERANCE, WebhookSecret};
use jiff::{SignedDuration, Timestamp};
use serde::Deserialize;
use serde_json::value::RawValue;
use sha2::{Digest as _, Sha256};

use super::{Answer, Headers, json};
use crate::integration::{Kind, Secrets, Settings};

const STANDARD_HEADER: &str = "webhook-signature";
const HEX_HEADER: &str = "x-wedsync-signature";

/// What was proved, and therefore what a repeat is recognised by.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Proof {
    /// The sender's own, signed id.
    Id(String),
    /// The whole body.
    Body,
    /// Some members alone. Blanks around them and other members could be changed, so this hash stands for the body.
    Members([u8; 32]),
    /// The sender, but no message.
    Sender,
}

/// Believes a request, or doesn't.
///
/// # Errors
/// `Answer::Unverified`; `Answer::Invalid` for the `timestamp` of a body that is signed.
pub(super) fn verify(
    settings: &Settings,
    secrets: &Secrets,
    headers: &Headers,
    body: &[u8],
    now: Timestamp,
) -> Result<Proof, Answer> {
    match settings.kind {
        Kind::Supabase => secret_header(settings.secret_header(), secrets, headers),
        _ if headers.has(STANDARD_HEADER) => standard(secrets, headers, body, now),
        _ if headers.has(HEX_HEADER) => hex(secrets, headers, body, now),
        Kind::ClientSync => member(|body| body.data, secrets, body, now),
        Kind::ChannelEvents => member(|body| body.payload, secrets, body, now),
        Kind::SignedWebhook | Kind::Connector => Err(Answer::Unverified),
    }
}

fn secret_header(name: &str, secrets: &Secrets, headers: &Headers) -> Result<Proof, Answer> {
    let candidate = headers.one(name).ok_or(Answer::Unverified)?;
    matches_any(secrets, |secret| signature::equal(secret.as_bytes(), candidate.as_bytes()))?;
    Ok(Proof::Sender)
}

fn standard(secrets: &Secrets, headers: &Headers, body: &[u8], now: Timestamp) -> Result<Proof, Answer> {
    let header = |name| headers.one(name).ok_or(Answer::Unverified);
    let (id, timestamp, signature) = (header("webhook-id")?, header("webhook-timestamp")?, header(STANDARD_HEADER)?);
    let secrets: Vec<WebhookSecret> = secrets.iter().filter_map(standard_secret).collect();
    let signed = SignedHeaders { id, timestamp, signature };
    signature::verify(signed, body, &secrets, now.as_second(), TOLERANCE).map_err(|_| Answer::Unverified)?;
    Ok(Proof::Id(id.to_owned()))
}

/// The prefix may be missing: the public libraries take the base64 alone too.
fn standard_secret(text: &str) -> Option<WebhookSecret> {
    WebhookSecret::parse(text).or_else(|_| WebhookSecret::parse(&format!("whsec_{text}"))).ok()
}

#[derive(Deserialize)]
struct Stamped<'a> {
    #[serde(borrow)]
    timestamp: Option<&'a RawValue>,
}

fn hex(secrets: &Secrets, headers: &Headers, body: &[u8], now: Timestamp) -> Result<Proof, Answer> {
    let candidate = headers.one(HEX_HEADER).ok_or(Answer::Unverified)?;
    matches_any(secrets, |secret| signature::hex_verify(secret.as_bytes(), body, candidate))?;
    let stamped: Stamped<'_> = json::members("body", json::check(body)?)?;
    check_fresh(json::timestamp(stamped.timestamp)?, now)?;
    Ok(Proof::Body)
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct SelfSigned<'a> {
    #[serde(borrow)]
    signature: Option<&'a RawValue>,
    #[serde(borrow)]
    timestamp: Option<&'a RawValue>,
    #[serde(borrow)]
    data: Option<&'a RawValue>,
    #[serde(borrow)]
    payload: Option<&'a RawValue>,
    #[serde(borrow)]
    event: Option<&'a RawValue>,
    #[serde(borrow)]
    channel_name: Option<&'a RawValue>,
    #[serde(borrow)]
    event_type: Option<&'a RawValue>,
}

/// `signed` gives the member that the kind reads: a signature over another one proves nothing.
fn member(
    signed: for<'a> fn(&SelfSigned<'a>) -> Option<&'a RawValue>,
    secrets: &Secrets,
    body: &[u8],
    now: Timestamp,
) -> Result<Proof, Answer> {
    let unverified = |_| Answer::Unverified;
    let body: SelfSigned<'_> = json::members("body", json::check(body).map_err(unverified)?).map_err(unverified)?;
    let candidate = json::text("signature", body.signature, 64).map_err(unverified)?;
    let timestamp = json::text("timestamp", body.timestamp, 64).map_err(unverified)?;
    let signed = signed(&body).ok_or(Answer::Unverified)?;
    let message = format!("{timestamp}.{}", signed.get());
    matches_any(secrets, |secret| signature::hex_verify(secret.as_bytes(), message.as_bytes(), &candidate))?;
    check_fresh(json::timestamp(body.timestamp)?, now)?;
    Ok(Proof::Members(body.identity()))
}

impl SelfSigned<'_> {
    /// Tells messages apart by the values of what we read of them, each with its length.
    fn identity(&self) -> [u8; 32] {
        let mut hash = Sha256::new();
        for member in [self.timestamp, self.event, self.channel_name, self.event_type, self.data, self.payload] {
            // A text has one value and several spellings.
            let text =
                member.map(|raw| serde_json::from_str::<String>(raw.get()).unwrap_or_else(|_| raw.get().to_owned()));
            let text = text.unwrap_or_default();
            hash.update((text.len() as u64).to_be_bytes());
            hash.update(text);
        }
        hash.finalize().into()
    }
}

/// Looks at every secret, whichever matches.
fn matches_any(secrets: &Secrets, matches: impl Fn(&str) -> bool) -> Result<(), Answer> {
    let matched = secrets.iter().fold(false, |matched, secret| matches(secret) | matched);
    if matched { Ok(()) } else { Err(Answer::Unverified) }
}

fn check_fresh(timestamp: Timestamp, now: Timestamp) -> Result<(), Answer> {
    let tolerance = SignedDuration::try_from(TOLERANCE).unwrap_or(SignedDuration::ZERO);
    if now.duration_since(timestamp).abs() <= tolerance { Ok(()) } else { Err(Answer::Unverified) }
}

#[cfg(test)]
mod tests {
    use bytes::Bytes;
    use chassis::config::Secret;
    use proptest::prelude::*;

    use super::*;
    use crate::integration::tests::settings;

    const SECRET: &str = "whsec_MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaSw";
    const AT: i64 = 1_777_636_800;
    const BODY: &str =
        r#"{"event":"client.updated","data":{"clientId":"x","changes":{}},"timestamp":"2026-05-01T12:00:00Z"}"#;

    fn secrets() -> Secrets {
        Secrets { newest: Secret::from(SECRET.to_owned()), old: None, signing: None }
    }

    fn headers(pairs: &[(&str, &str)]) -> Headers {
        Headers(
            pairs.iter().map(|(name, value)| ((*name).to_owned(), Bytes::copy_from_slice(value.as_bytes()))).collect(),
        )
    }

    fn at(seconds: i64) -> Timestamp {
        Timestamp::from_second(AT + seconds).unwrap()
    }

    fn check(kind: Kind, headers: &Headers, body: &[u8]) -> Result<Proof, Answer> {
        verify(&settings(kind), &secrets(), headers, body, at(0))
    }

    fn hex_headers(body: &[u8]) -> Headers {
        headers(&[(HEX_HEADER, &signature::hex_sign(SECRET.as_bytes(), body))])
    }

    fn standard_headers(id: &str, body: &[u8]) -> Headers {
        let secret = WebhookSecret::parse(SECRET).unwrap();
        let signature = signature::sign(id, AT, body, &[secret]);
        headers(&[("webhook-id", id), ("webhook-timestamp", &AT.to_string()), (STANDARD_HEADER, &signature)])
    }

    fn self_signed(timestamp: &str, data: &str) -> String {
        let signature = signature::hex_sign(SECRET.as_bytes(), format!("{timestamp}.{data}").as_bytes());
        format!(r#"{{"event":"client.updated","data":{data},"timestamp":"{timestamp}","signature":"{signature}"}}"#)
    }

    #[test]
    fn each_scheme_says_what_it_proved() {
        let body = BODY.as_bytes();
        assert_eq!(check(Kind::ClientSync, &standard_headers("msg_1", body), body), Ok(Proof::Id("msg_1".to_owned())));
        assert_eq!(check(Kind::SignedWebhook, &hex_headers(body), body), Ok(Proof::Body));
        assert_eq!(check(Kind::Supabase, &headers(&[("x-wedsync-secret", SECRET)]), b"anything"), Ok(Proof::Sender));
        let own = self_signed("2026-05-01T12:00:00Z", r#"{"clientId": "x"}"#);
        assert!(matches!(check(Kind::ClientSync, &Headers::default(), own.as_bytes()), Ok(Proof::Members(_))));
    }

    #[test]
    fn a_request_is_held_to_the_scheme_it_shows_and_to_its_kind() {
        let body = BODY.as_bytes();
        let (good_hex, wrong) = (hex_headers(body), headers(&[(STANDARD_HEADER, "v1,AAAA")]));
        let both = Headers([good_hex.0.clone(), wrong.0].concat());
        let twice = Headers([good_hex.0.clone(), good_hex.0.clone()].concat());
        let prefixed = headers(&[(HEX_HEADER, &format!("sha256={}", signature::hex_sign(SECRET.as_bytes(), body)))]);
        for headers in [both, twice, prefixed, Headers::default()] {
            assert_eq!(check(Kind::ClientSync, &headers, body), Err(Answer::Unverified), "{headers:?}");
        }
        let own = self_signed("2026-05-01T12:00:00Z", "{}");
        assert_eq!(check(Kind::SignedWebhook, &Headers::default(), own.as_bytes()), Err(Answer::Unverified));
        assert_eq!(check(Kind::Supabase, &good_hex, body), Err(Answer::Unverified));
        assert_eq!(check(Kind::ClientSync, &headers(&[("x-wedsync-secret", SECRET)]), body), Err(Answer::Unverified));
    }

    #[test]
    fn the_tolerance_is_five_minutes_either_way() {
        let body = BODY.as_bytes();
        let own = self_signed("2026-05-01T12:00:00Z", "{}");
        let cases =
            [(standard_headers("m", body), body), (hex_headers(body), body), (Headers::default(), own.as_bytes())];
        for (headers, body) in cases {
            for (seconds, good) in [(-301, false), (-300, true), (300, true), (301, false)] {
                let verified = verify(&settings(Kind::ClientSync), &secrets(), &headers, body, at(seconds));
                assert_eq!(verified.is_ok(), good, "{seconds} {headers:?}");
            }
        }
    }

    #[test]
    fn a_signed_body_without_a_readable_timestamp_is_told_which_field() {
        for body in [
            r#"{"event":"x"}"#,
            r#"{"timestamp":1777636800}"#,
            r#"{"timestamp":"yesterday"}"#,
            r#"{"timestamp":"2026-05-01T12:00:00"}"#,
        ] {
            let answer = check(Kind::ClientSync, &hex_headers(body.as_bytes()), body.as_bytes());
            assert!(
                matches!(answer, Err(Answer::Invalid { ref field, .. }) if field == "timestamp"),
                "{body}: {answer:?}"
            );
        }
    }

    #[test]
    fn either_secret_verifies_while_one_replaces_the_other() {
        let body = BODY.as_bytes();
        let old = Secrets {
            newest: Secret::from("another-secret-of-enough-bytes".to_owned()),
            old: Some(Secret::from(SECRET.to_owned())),
            signing: None,
        };
        for headers in [standard_headers("m", body), hex_headers(body)] {
            assert!(verify(&settings(Kind::ClientSync), &old, &headers, body, at(0)).is_ok());
            let gone = Secrets { old: None, ..old.clone() };
            assert_eq!(verify(&settings(Kind::ClientSync), &gone, &headers, body, at(0)), Err(Answer::Unverified));
        }
    }

    #[test]
    fn blanks_and_other_members_make_no_new_message_of_a_self_signed_one() {
        let proof = |body: &str| check(Kind::ClientSync, &Headers::default(), body.as_bytes()).expect("verifies");
        let one = self_signed("2026-05-01T12:00:00Z", r#"{"clientId":"x"}"#);
        let respaced = one.replace(",\"timestamp\":", " , \"more\": 1, \"timestamp\" : ");
        let respelt = one.replace("client.updated", "client\\u002eupdated");
        assert!(one != respaced && one != respelt);
        assert_eq!(proof(&one), proof(&respaced));
        assert_eq!(proof(&one), proof(&respelt));
        assert_ne!(proof(&one), proof(&one.replace("client.updated", "client.deleted")));
    }

    #[test]
    fn a_signature_counts_for_the_member_that_the_kind_reads() {
        let own = self_signed("2026-05-01T12:00:00Z", r#"{"clientId":"x"}"#);
        let moved = own.replace("\"data\":", "\"payload\":\"forged\",\"data\":");
        assert!(
            check(Kind::ClientSync, &Headers::default(), moved.as_bytes()).is_ok(),
            "client-sync reads `data` alone"
        );
        assert_eq!(check(Kind::ChannelEvents, &Headers::default(), moved.as_bytes()), Err(Answer::Unverified));
    }

    proptest! {
        #[test]
        fn altering_any_byte_of_a_signed_body_refuses(at in any::<prop::sample::Index>(), flip in 1u8..) {
            for headers in [hex_headers(BODY.as_bytes()), standard_headers("msg_1", BODY.as_bytes())] {
                let mut body = BODY.as_bytes().to_vec();
                let at = at.index(body.len());
                body[at] ^= flip;
                prop_assert_eq!(check(Kind::ClientSync, &headers, &body), Err(Answer::Unverified));
            }
        }

        #[test]
        fn altering_any_byte_of_the_proof_refuses(which in 0usize..3, at in any::<prop::sample::Index>(), flip in 1u8..) {
            let mut headers = standard_headers("msg_1", BODY.as_bytes());
            let mut value = headers.0[which].1.to_vec();
            let at = at.index(value.len());
            value[at] ^= flip;
            headers.0[which].1 = Bytes::from(value);
            prop_assert_eq!(check(Kind::ClientSync, &headers, BODY.as_bytes()), Err(Answer::Unverified));
        }

        #[test]
        fn altering_any_byte_that_a_member_signs_refuses(at in any::<prop::sample::Index>(), to in "[a-z0-9]") {
            let data = r#"{"clientId":"3f2504e0","changes":{"email":"new"}}"#;
            let own = self_signed("2026-05-01T12:00:00Z", data);
            let start = own.find(data).expect("it is there");
            let at = start + at.index(data.len());
            prop_assume!(own.as_bytes()[at] != to.as_bytes()[0]);
            let mut altered = own.into_bytes();
            altered[at] = to.as_bytes()[0];
            prop_assert_eq!(check(Kind::ClientSync, &Headers::default(), &altered), Err(Answer::Unverified));
        }
    }
}
