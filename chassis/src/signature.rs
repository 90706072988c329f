//! Webhook signatures: Standard Webhooks (symmetric `v1`) and the plain hexadecimal HMAC-SHA256.
//!
//! Works on raw bytes, so re-spaced or non-UTF-8 bodies are signed as they are. Which scheme holds is the caller's
//! decision and never read from a header. Remembering ids against replay within the tolerance is the caller's as well.
//!
//! Guarantee: comparisons take the same time whatever the candidate holds.
//! Specification: github.com/standard-webhooks/standard-webhooks, spec/standard-webhooks.md; RFC 2104.

use std::{fmt, time::Duration};

use base64::{Engine as _, prelude::BASE64_STANDARD};
use hmac::{Hmac, KeyInit as _, Mac as _};
use sha2::Sha256;
use subtle::ConstantTimeEq as _;

use crate::{config::Secret, error::Error, secret::random};

const PREFIX: &str = "whsec_";
const MAX_SIGNATURES: usize = 16;
const MAX_ID_BYTES: usize = 256;
const TAG_BYTES: usize = 32;

/// How far a signed timestamp may be from now, either way.
pub const TOLERANCE: Duration = Duration::from_secs(300);

/// A signing secret: `whsec_` and the base64 of 24 to 64 bytes.
#[derive(Clone)]
pub struct WebhookSecret {
    text: Secret,
    key: Vec<u8>,
}

impl WebhookSecret {
    /// A new one from 32 random bytes of the operating system.
    #[must_use]
    pub fn generate() -> Self {
        let key: [u8; 32] = random();
        Self { text: Secret::from(format!("{PREFIX}{}", BASE64_STANDARD.encode(key))), key: key.to_vec() }
    }

    /// Takes a secret as it is shown.
    ///
    /// # Errors
    /// `Error::Invalid` without the prefix, with broken base64, or with fewer than 24 or more than 64 bytes.
    pub fn parse(text: &str) -> Result<Self, Error> {
        let invalid = || Error::invalid("secret", "must be `whsec_` and the base64 of 24 to 64 bytes");
        let encoded = text.strip_prefix(PREFIX).ok_or_else(invalid)?;
        let key = BASE64_STANDARD.decode(encoded).map_err(|_| invalid())?;
        if !(24..=64).contains(&key.len()) {
            return Err(invalid());
        }
        Ok(Self { text: Secret::from(text.to_owned()), key })
    }

    /// The secret as it is shown once; its bytes are the key of [`hex_sign`].
    #[must_use]
    pub fn expose(&self) -> &str {
        self.text.expose()
    }
}

impl fmt::Debug for WebhookSecret {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("WebhookSecret")
    }
}

/// The three headers as they came.
#[derive(Debug, Clone, Copy)]
pub struct SignedHeaders<'a> {
    /// `webhook-id`.
    pub id: &'a str,
    /// `webhook-timestamp`, seconds since the Unix epoch.
    pub timestamp: &'a str,
    /// `webhook-signature`, space-separated.
    pub signature: &'a str,
}

/// Why a request is not believed. For logs and counters: the sender learns only that the signature is invalid.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum SignatureError {
    /// The id is empty, overlong, or holds a dot, which would let parts of the signed text change places.
    #[error("webhook-id is malformed")]
    Id,
    /// Not a plain decimal number.
    #[error("webhook-timestamp is malformed")]
    Timestamp,
    /// Further from now than the tolerance: old, replayed, or a clock is wrong.
    #[error("webhook-timestamp is outside the tolerance")]
    Stale,
    /// More signatures than any rotation needs.
    #[error("webhook-signature holds too many signatures")]
    TooMany,
    /// None of the signatures is ours.
    #[error("no signature matches")]
    Mismatch,
}

/// The value of `webhook-signature`: one `v1,` signature per secret, the newest secret first, separated by spaces.
#[must_use]
pub fn sign(id: &str, timestamp_seconds: i64, body: &[u8], secrets: &[WebhookSecret]) -> String {
    let timestamp = timestamp_seconds.to_string();
    let sign = |secret: &WebhookSecret| format!("v1,{}", BASE64_STANDARD.encode(tag(secret, id, &timestamp, body)));
    secrets.iter().map(sign).collect::<Vec<_>>().join(" ")
}

/// Accepts a body that one of `secrets` signed with this id, at most `tolerance` from `now_seconds`.
///
/// # Errors
/// The first thing that is wrong.
pub fn verify(
    headers: SignedHeaders<'_>,
    body: &[u8],
    secrets: &[WebhookSecret],
    now_seconds: i64,
    tolerance: Duration,
) -> Result<(), SignatureError> {
    let SignedHeaders { id, timestamp, signature } = headers;
    if id.is_empty() || id.len() > MAX_ID_BYTES || id.contains('.') {
        return Err(SignatureError::Id);
    }
    let signed_at = parse_timestamp(timestamp).ok_or(SignatureError::Timestamp)?;
    if signed_at.abs_diff(now_seconds) > tolerance.as_secs() {
        return Err(SignatureError::Stale);
    }
    if signature.split(' ').nth(MAX_SIGNATURES).is_some() {
        return Err(SignatureError::TooMany);
    }
    let candidates: Vec<[u8; TAG_BYTES]> = signature.split(' ').filter_map(parse_signature).collect();
    let mut matches = subtle::Choice::from(0);
    for secret in secrets {
        let expected = tag(secret, id, timestamp, body);
        for candidate in &candidates {
            matches |= expected.ct_eq(candidate);
        }
    }
    if bool::from(matches) { Ok(()) } else { Err(SignatureError::Mismatch) }
}

/// The lower-case hexadecimal HMAC-SHA256 of `body`; `key` is used as it is.
#[must_use]
pub fn hex_sign(key: &[u8], body: &[u8]) -> String {
    hex::encode(mac(key).chain_update(body).finalize().into_bytes())
}

/// Whether `candidate` is exactly what [`hex_sign`] gives. An empty key signs nothing.
#[must_use]
pub fn hex_verify(key: &[u8], body: &[u8], candidate: &str) -> bool {
    !key.is_empty() && equal(hex_sign(key, body).as_bytes(), candidate.as_bytes())
}

/// Whether two secrets are the same, in a time that tells only their lengths.
#[must_use]
pub fn equal(expected: &[u8], candidate: &[u8]) -> bool {
    expected.ct_eq(candidate).into()
}

fn mac(key: &[u8]) -> Hmac<Sha256> {
    Hmac::new_from_slice(key).expect("HMAC takes keys of any length")
}

fn tag(secret: &WebhookSecret, id: &str, timestamp: &str, body: &[u8]) -> [u8; TAG_BYTES] {
    let mac = mac(&secret.key).chain_update(id).chain_update(".").chain_update(timestamp).chain_update(".");
    mac.chain_update(body).finalize().into_bytes().into()
}

/// Digits only: no sign, fraction, space or leading zero, so that one time has one text.
fn parse_timestamp(text: &str) -> Option<i64> {
    let plain = text.bytes().all(|b| b.is_ascii_digit()) && (text == "0" || !text.starts_with('0'));
    if plain { text.parse().ok() } else { None }
}

fn parse_signature(text: &str) -> Option<[u8; TAG_BYTES]> {
    BASE64_STANDARD.decode(text.strip_prefix("v1,")?).ok()?.try_into().ok()
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const PUBLISHED: &str = "whsec_MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaSw";
    const ID: &str = "msg_p5jXN8AQM9LWM0D4loKWxJek";
    const AT: i64 = 1_614_265_330;
    const BODY: &[u8] = br#"{"test": 2432232314}"#;
    const SIGNATURE: &str = "v1,g0hM9SsE+OTPJTGt/tmIKtSyZlE3uFJELVlNIOLJ1OE=";

    fn published() -> Vec<WebhookSecret> {
        vec![WebhookSecret::parse(PUBLISHED).expect("the published secret")]
    }

    fn check(id: &str, timestamp: &str, signature: &str, now: i64) -> Result<(), SignatureError> {
        verify(SignedHeaders { id, timestamp, signature }, BODY, &published(), now, TOLERANCE)
    }

    #[test]
    fn the_published_example_is_signed_and_verified() {
        assert_eq!(sign(ID, AT, BODY, &published()), SIGNATURE);
        assert_eq!(check(ID, "1614265330", SIGNATURE, AT), Ok(()));
    }

    /// RFC 4231, test cases 1 and 2.
    #[test]
    fn the_published_hmac_vectors_hold() {
        let vectors: [(&[u8], &[u8], &str); 2] = [
            (&[0x0b; 20], b"Hi There", "b0344c61d8db38535ca8afceaf0bf12b881dc200c9833da726e9376c2e32cff7"),
            (
                b"Jefe",
                b"what do ya want for nothing?",
                "5bdcc146bf60754e6a042426089575c75a003f089d2739839dec58b964ec3843",
            ),
        ];
        for (key, body, expected) in vectors {
            assert_eq!(hex_sign(key, body), expected);
            assert!(hex_verify(key, body, expected));
        }
    }

    #[test]
    fn the_tolerance_is_five_minutes_either_way_and_not_a_second_more() {
        for (now, expected) in
            [(-300, Ok(())), (300, Ok(())), (-301, Err(SignatureError::Stale)), (301, Err(SignatureError::Stale))]
        {
            assert_eq!(check(ID, "1614265330", SIGNATURE, AT + now), expected, "{now}");
        }
    }

    #[test]
    fn odd_timestamps_are_refused() {
        for text in [
            "",
            " 1614265330",
            "1614265330 ",
            "+1614265330",
            "-1",
            "1614265330.0",
            "0x60378a72",
            "01614265330",
            "1e9",
            "9223372036854775808",
        ] {
            assert_eq!(check(ID, text, SIGNATURE, AT), Err(SignatureError::Timestamp), "{text:?}");
        }
        assert_eq!(check(ID, "1614265330000", SIGNATURE, AT), Err(SignatureError::Stale), "milliseconds");
        assert_eq!(check(ID, "9223372036854775807", SIGNATURE, AT), Err(SignatureError::Stale));
        assert_eq!(check(ID, "0", SIGNATURE, AT), Err(SignatureError::Stale));
    }

    #[test]
    fn ids_that_could_swap_places_with_the_timestamp_are_refused() {
        for id in ["", "msg.1614265330", &"x".repeat(257)] {
            assert_eq!(check(id, "1614265330", SIGNATURE, AT), Err(SignatureError::Id));
        }
    }

    #[test]
    fn other_schemes_encodings_and_lengths_are_refused() {
        let tag = SIGNATURE.strip_prefix("v1,").expect("a v1 signature");
        let url_safe = tag.replace('+', "-").replace('/', "_");
        let bytes = BASE64_STANDARD.decode(tag).expect("base64");
        let mut odd: Vec<String> =
            ["v0,", "v1a,", "V1,", "sha256=", "none,", "", "v1", "v1, "].map(|scheme| format!("{scheme}{tag}")).into();
        odd.extend([String::new(), "v1,".to_owned(), format!("v1,{url_safe}"), format!("v1,{}", hex::encode(&bytes))]);
        odd.push(format!("v1,{}", BASE64_STANDARD.encode(&bytes[..31])));
        odd.push(format!("v1,{}", BASE64_STANDARD.encode(&bytes[..1])));
        odd.push(format!("v1,{}", BASE64_STANDARD.encode([&bytes[..], &[0]].concat())));
        for signature in odd {
            assert_eq!(check(ID, "1614265330", &signature, AT), Err(SignatureError::Mismatch), "{signature}");
        }
    }

    #[test]
    fn at_most_sixteen_signatures_are_looked_at() {
        let header = |others: usize| format!("{}{SIGNATURE}", "v1,AAAA ".repeat(others));
        assert_eq!(check(ID, "1614265330", &header(15), AT), Ok(()));
        assert_eq!(check(ID, "1614265330", &header(16), AT), Err(SignatureError::TooMany));
        assert_eq!(check(ID, "1614265330", &header(10_000), AT), Err(SignatureError::TooMany));
    }

    #[test]
    fn while_a_secret_rotates_either_one_verifies() {
        let (old, new) = (WebhookSecret::generate(), WebhookSecret::generate());
        let signature = sign(ID, AT, BODY, &[new.clone(), old.clone()]);
        assert_eq!(signature.split(' ').count(), 2);
        let headers = SignedHeaders { id: ID, timestamp: "1614265330", signature: &signature };
        for secret in [old, new] {
            assert_eq!(verify(headers, BODY, &[secret], AT, TOLERANCE), Ok(()));
        }
        assert_eq!(verify(headers, BODY, &[WebhookSecret::generate()], AT, TOLERANCE), Err(SignatureError::Mismatch));
        assert_eq!(verify(headers, BODY, &[], AT, TOLERANCE), Err(SignatureError::Mismatch));
    }

    #[test]
    fn weak_and_malformed_secrets_are_refused() {
        let of = |bytes: usize| format!("{PREFIX}{}", BASE64_STANDARD.encode(vec![1; bytes]));
        for text in ["", "whsec_", "MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaSw", "whsec_!", &of(23), &of(65)] {
            assert!(WebhookSecret::parse(text).is_err(), "{text}");
        }
        assert!(WebhookSecret::parse(&of(24)).is_ok() && WebhookSecret::parse(&of(64)).is_ok());
        let generated = WebhookSecret::generate();
        assert_eq!(WebhookSecret::parse(generated.expose()).expect("reads back").key, generated.key);
        assert!(!format!("{generated:?}").contains(generated.expose()));
    }

    #[test]
    fn hexadecimal_signatures_match_in_one_spelling_only() {
        let good = hex_sign(b"key", BODY);
        assert!(hex_verify(b"key", BODY, &good));
        for candidate in
            [good.to_uppercase(), format!("sha256={good}"), good[..62].to_owned(), format!("{good}00"), String::new()]
        {
            assert!(!hex_verify(b"key", BODY, &candidate), "{candidate}");
        }
        assert!(!hex_verify(b"", BODY, &hex_sign(b"", BODY)), "an empty key");
    }

    #[test]
    fn the_public_library_verifies_what_we_sign() {
        let secret = WebhookSecret::generate();
        let theirs = standardwebhooks::Webhook::new(secret.expose()).expect("their reader takes our secret");
        for body in ["", "{}", "{\"a\":\"é\"}", &"x".repeat(70_000)] {
            let ours = sign(ID, AT, body.as_bytes(), std::slice::from_ref(&secret));
            assert_eq!(ours, theirs.sign(ID, AT, body.as_bytes()).expect("they sign"));
        }
    }

    proptest! {
        #[test]
        fn altering_any_byte_refuses(
            body in proptest::collection::vec(any::<u8>(), 1..300),
            at in any::<prop::sample::Index>(),
            flip in 1u8..,
        ) {
            let secrets = published();
            let signature = sign(ID, AT, &body, &secrets);
            let headers = SignedHeaders { id: ID, timestamp: "1614265330", signature: &signature };
            prop_assert_eq!(verify(headers, &body, &secrets, AT, TOLERANCE), Ok(()));
            let hex = hex_sign(PUBLISHED.as_bytes(), &body);
            let mut altered = body;
            let at = at.index(altered.len());
            altered[at] ^= flip;
            prop_assert_eq!(verify(headers, &altered, &secrets, AT, TOLERANCE), Err(SignatureError::Mismatch));
            prop_assert!(!hex_verify(PUBLISHED.as_bytes(), &altered, &hex));
        }
    }
}
