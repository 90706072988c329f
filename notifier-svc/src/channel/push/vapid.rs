//! How a push service knows us: a signed statement for each of them (VAPID, RFC 8292).

use anyhow::{Context as _, Result};
use base64::{Engine as _, prelude::BASE64_URL_SAFE_NO_PAD};
use jiff::Timestamp;
use ring::{
    rand::SystemRandom,
    signature::{ECDSA_P256_SHA256_FIXED_SIGNING, EcdsaKeyPair},
};
use serde_json::json;

use crate::config::WebPush as Settings;

/// How long a statement holds, in seconds; at most a day.
const HOLDS: i64 = 12 * 3600;

pub(super) struct Vapid {
    key: EcdsaKeyPair,
    public: String,
    subject: String,
}

impl Vapid {
    /// # Errors
    /// Keys that are none of P-256, or don't belong together.
    pub(super) fn new(settings: &Settings) -> Result<Self> {
        let decode = |text: &str| BASE64_URL_SAFE_NO_PAD.decode(text.trim_end_matches('='));
        let public = decode(&settings.public_key).context("[notifier.web_push] public_key must be base64url")?;
        let private =
            decode(settings.private_key.expose()).context("[notifier.web_push] private_key must be base64url")?;
        let key = EcdsaKeyPair::from_private_key_and_public_key(
            &ECDSA_P256_SHA256_FIXED_SIGNING,
            &private,
            &public,
            &SystemRandom::new(),
        );
        let key = key.map_err(|_| {
            anyhow::anyhow!("[notifier.web_push] public_key and private_key must be a pair of P-256: 65 and 32 bytes")
        })?;
        Ok(Self { key, public: BASE64_URL_SAFE_NO_PAD.encode(public), subject: settings.subject.clone() })
    }

    /// The value of `Authorization` for a push service, named by its origin.
    pub(super) fn authorization(&self, origin: &str, now: Timestamp) -> String {
        let part = |json: serde_json::Value| BASE64_URL_SAFE_NO_PAD.encode(json.to_string());
        let head = part(json!({"typ": "JWT", "alg": "ES256"}));
        let claims = part(json!({"aud": origin, "exp": now.as_second() + HOLDS, "sub": self.subject}));
        let signed = format!("{head}.{claims}");
        let signature = self
            .key
            .sign(&SystemRandom::new(), signed.as_bytes())
            .expect("the key was made of the system's randomness");
        format!("vapid t={signed}.{}, k={}", BASE64_URL_SAFE_NO_PAD.encode(signature), self.public)
    }
}

#[cfg(test)]
pub(super) mod tests {
    use ring::signature::{ECDSA_P256_SHA256_FIXED, UnparsedPublicKey};
    use serde_json::Value;

    use super::*;

    /// A pair of our own.
    pub(in super::super) fn settings() -> Settings {
        Settings {
            public_key: "BP4z9KsN6nGRTbVYI_c7VJSPQTBtkgcy27mlmlMoZIIgDll6e3vCYLocInmYWAmS6TlzAC8wEqKK6PBru3jl7A8"
                .to_owned(),
            private_key: "yfWPiYE-n46HLnH0KqZOF1fJJU3MYrct3AELtAQ-oRw".to_owned().into(),
            subject: "mailto:push@example.org".to_owned(),
            ..Settings::default()
        }
    }

    /// The claims of a statement, if it is signed by the key that it names.
    pub(in super::super) fn read(authorization: &str) -> Value {
        let (token, key) = authorization.strip_prefix("vapid t=").unwrap().split_once(", k=").unwrap();
        let (signed, signature) = token.rsplit_once('.').unwrap();
        let decode = |text: &str| BASE64_URL_SAFE_NO_PAD.decode(text).unwrap();
        UnparsedPublicKey::new(&ECDSA_P256_SHA256_FIXED, decode(key))
            .verify(signed.as_bytes(), &decode(signature))
            .unwrap();
        let (head, claims) = signed.split_once('.').unwrap();
        assert_eq!(serde_json::from_slice::<Value>(&decode(head)).unwrap()["alg"], "ES256");
        serde_json::from_slice(&decode(claims)).unwrap()
    }

    #[test]
    fn a_statement_says_for_whom_until_when_and_by_whom() {
        let now = Timestamp::from_second(1_453_480_568).unwrap();
        let claims = read(&Vapid::new(&settings()).unwrap().authorization("https://push.example.net", now));
        assert_eq!(
            claims,
            json!({"aud": "https://push.example.net", "exp": 1_453_523_768, "sub": "mailto:push@example.org"})
        );
    }

    #[test]
    fn the_example_of_rfc_8292_is_read() {
        let claims = read(
            "vapid t=eyJ0eXAiOiJKV1QiLCJhbGciOiJFUzI1NiJ9.eyJhdWQiOiJodHRwczovL3B1c2guZXhhbXBsZS5uZXQiLCJleHAiOjE0NTM1MjM3NjgsInN1YiI6Im1haWx0bzpwdXNoQGV4YW1wbGUuY29tIn0.i3CYb7t4xfxCDquptFOepC9GAu_HLGkMlMuCGSK2rpiUfnK9ojFwDXb1JrErtmysazNjjvW2L9OkSSHzvoD1oA, k=BA1Hxzyi1RUM1b5wjxsn7nGxAszw2u61m164i3MrAIxHF6YK5h4SDYic-dRuU_RCPCfA5aq9ojSwk5Y2EmClBPs",
        );
        assert_eq!(claims["sub"], "mailto:push@example.com");
    }

    #[test]
    fn keys_that_do_not_belong_together_are_none() {
        let other = Settings {
            public_key: "BA1Hxzyi1RUM1b5wjxsn7nGxAszw2u61m164i3MrAIxHF6YK5h4SDYic-dRuU_RCPCfA5aq9ojSwk5Y2EmClBPs"
                .to_owned(),
            ..settings()
        };
        assert!(Vapid::new(&other).is_err());
        assert!(Vapid::new(&Settings { public_key: "x".to_owned(), ..settings() }).is_err());
    }
}
