//! Tokens of Google's for a service account (RFC 7523; developers.google.com, "Using OAuth 2.0 for Server to Server
//! Applications"): asked for when they are needed, and kept until shortly before they end.

use std::{fs, path::Path, time::Duration};

use anyhow::{Context as _, Result};
use base64::{
    Engine as _,
    prelude::{BASE64_STANDARD, BASE64_URL_SAFE_NO_PAD},
};
use chassis::clock::Clock;
use jiff::Timestamp;
use ring::{rand::SystemRandom, rsa::KeyPair, signature::RSA_PKCS1_SHA256};
use serde::Deserialize;
use serde_json::json;
use tokio::sync::Mutex;

use super::super::provider::{Ask, Class, Provider, Verdict};

const SCOPE: &str = "https://www.googleapis.com/auth/firebase.messaging";
const GRANT: &str = "urn:ietf:params:oauth:grant-type:jwt-bearer";
/// How long what we sign holds, in seconds; an hour at most.
const HOLDS: i64 = 3600;
/// A token is not used in its last minute.
const EARLY: Duration = Duration::from_secs(60);

/// What a service account's key file says, of which more is never read.
#[derive(Deserialize)]
struct KeyFile {
    project_id: String,
    client_email: String,
    private_key: String,
}

pub(super) struct Account {
    pub(super) project: String,
    email: String,
    key: KeyPair,
    token_url: String,
    clock: Clock,
    token: Mutex<Option<Token>>,
}

struct Token {
    text: String,
    until: Timestamp,
}

#[derive(Deserialize)]
struct Granted {
    access_token: String,
    expires_in: i64,
}

impl Account {
    /// # Errors
    /// A file that can't be read, or that holds no account's key.
    pub(super) fn read(file: &Path, token_url: &str, clock: Clock) -> Result<Self> {
        let section = || format!("[notifier.fcm] service_account_file {}", file.display());
        let text = fs::read(file).with_context(section)?;
        let read = serde_json::from_slice::<KeyFile>(&text);
        let KeyFile { project_id, client_email, private_key } = read.with_context(section)?;
        let der = pem(&private_key).with_context(|| format!("{}: private_key is no PEM", section()))?;
        let key = KeyPair::from_pkcs8(&der).map_err(|error| anyhow::anyhow!("{}: private_key: {error}", section()))?;
        let token_url = token_url.to_owned();
        Ok(Self { project: project_id, email: client_email, key, token_url, clock, token: Mutex::default() })
    }

    /// A token that holds, and was not `refused`.
    pub(super) async fn token(&self, provider: &Provider, refused: Option<&str>) -> Result<String, Verdict> {
        // Held while one is asked for: the others wait for that one.
        let mut kept = self.token.lock().await;
        let now = self.clock.now();
        if let Some(token) = kept.as_ref().filter(|token| token.until > now && Some(&*token.text) != refused) {
            return Ok(token.text.clone());
        }
        let assertion = self.assertion(now);
        let ask = Ask::form(self.token_url.clone(), &[("grant_type", GRANT), ("assertion", &assertion)]);
        // Nothing is sent by this: what was cut is simply asked for again.
        let answer = provider.answer(ask).await.map_err(|verdict| Verdict { class: Class::Down, ..verdict })?;
        match serde_json::from_slice::<Granted>(&answer.body) {
            Ok(granted) if answer.status.is_success() => {
                let holds = Duration::from_secs(granted.expires_in.try_into().unwrap_or(0)).saturating_sub(EARLY);
                *kept = Some(Token { text: granted.access_token.clone(), until: now + holds });
                Ok(granted.access_token)
            }
            _ if answer.status.is_server_error() || answer.status == 429 => {
                Err(Verdict::new(Class::Down, format!("Google's tokens: {}", answer.status.as_u16())))
            }
            _ => Err(Verdict::new(Class::Barred, format!("Google's tokens: {}", answer.status.as_u16()))),
        }
    }

    fn assertion(&self, now: Timestamp) -> String {
        let part = |json: serde_json::Value| BASE64_URL_SAFE_NO_PAD.encode(json.to_string());
        let now = now.as_second();
        let claims = json!({"iss": self.email, "scope": SCOPE, "aud": self.token_url, "iat": now, "exp": now + HOLDS});
        let signed = format!("{}.{}", part(json!({"alg": "RS256", "typ": "JWT"})), part(claims));
        let mut signature = vec![0; self.key.public().modulus_len()];
        self.key
            .sign(&RSA_PKCS1_SHA256, &SystemRandom::new(), signed.as_bytes(), &mut signature)
            .expect("a signature is as long as the modulus");
        format!("{signed}.{}", BASE64_URL_SAFE_NO_PAD.encode(signature))
    }
}

/// What is between the lines of dashes.
pub(super) fn pem(text: &str) -> Option<Vec<u8>> {
    let inside = text.split_once("-----BEGIN PRIVATE KEY-----")?.1.split_once("-----END PRIVATE KEY-----")?.0;
    BASE64_STANDARD.decode(inside.split_whitespace().collect::<String>()).ok()
}
