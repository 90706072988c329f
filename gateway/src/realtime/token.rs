//! Whether a browser's token is to be believed: JSON Web Tokens (RFC 7519) signed by HS256, RS256 or ES256 (RFC 7518).
//!
//! Invariant: an algorithm only ever meets keys of its own kind. A shared secret comes from the settings alone, public
//! keys from a key set alone, so that no token can have a public key taken for a secret, or do without a signature.

use std::sync::{Arc, PoisonError, RwLock};

use anyhow::{Result, ensure};
use base64::{Engine as _, engine::general_purpose::URL_SAFE_NO_PAD as BASE64};
use chassis::config::Secret;
use jiff::{SignedDuration, Timestamp};
use ring::hmac;
use serde::{Deserialize, de::IgnoredAny};
use serde_json::{Value, json};

use super::{
    claims::{Claims, Stated},
    jwks::{Algorithm, KeySet},
};

/// How far the issuer's clock and ours may be apart.
pub(crate) const LEEWAY: SignedDuration = SignedDuration::from_secs(30);

const TOKEN_BYTES: usize = 8 * 1024;
/// As RFC 7518 asks of HS256's keys.
const SECRET_BYTES: usize = 32;

/// Why a token is refused; what it says may be told to whoever showed it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub(crate) enum TokenError {
    #[error("the token is malformed")]
    Malformed,
    #[error("the token's algorithm is not accepted")]
    Algorithm,
    #[error("the token's signature is wrong")]
    Signature,
    #[error("the token has expired")]
    Expired,
    #[error("the token is not valid yet")]
    NotYet,
    #[error("the token is for another audience")]
    Audience,
    #[error("the token is from another issuer")]
    Issuer,
    #[error("the token's key is unknown")]
    UnknownKey,
    #[error("the token lacks the claim {0}")]
    MissingClaim(&'static str),
}

/// Checks tokens.
pub(crate) struct Verifier {
    secret: Option<hmac::Key>,
    keys: RwLock<Arc<KeySet>>,
    audience: String,
    issuer: String,
}

#[derive(Deserialize)]
struct Header {
    alg: String,
    kid: Option<String>,
    /// Extensions that must be understood: there are none that are.
    crit: Option<IgnoredAny>,
}

/// The claims that say whether a token is good, here and now.
#[derive(Deserialize)]
struct Registered {
    exp: Option<f64>,
    nbf: Option<f64>,
    iat: Option<f64>,
    iss: Option<String>,
    aud: Option<Audience>,
}

#[derive(Deserialize)]
#[serde(untagged)]
enum Audience {
    One(String),
    Some(Vec<String>),
}

impl Verifier {
    /// Tokens must be signed with `secret` (none if it is empty), or by a key of the set in force. An empty audience or
    /// issuer is any.
    ///
    /// # Errors
    /// A secret of less than 32 bytes, or a public key in its place.
    pub(crate) fn new(secret: &Secret, audience: &str, issuer: &str) -> Result<Self> {
        let bytes = secret.expose().as_bytes();
        ensure!(bytes.is_empty() || bytes.len() >= SECRET_BYTES, "jwt_secret must have at least 32 characters");
        ensure!(
            !secret.expose().contains("-----BEGIN"),
            "jwt_secret must be a shared secret: a key belongs into a JWKS"
        );
        let secret = (!bytes.is_empty()).then(|| hmac::Key::new(hmac::HMAC_SHA256, bytes));
        Ok(Self { secret, keys: RwLock::default(), audience: audience.to_owned(), issuer: issuer.to_owned() })
    }

    /// Believes these keys from here on, and no others.
    pub(crate) fn replace_keys(&self, keys: KeySet) {
        *self.keys.write().unwrap_or_else(PoisonError::into_inner) = Arc::new(keys);
    }

    /// A token with these claims, signed with the secret; none without one.
    pub(super) fn issue(&self, claims: &Value) -> Option<String> {
        let secret = self.secret.as_ref()?;
        let header = json!({ "alg": "HS256", "typ": "JWT" });
        let signed = [&header, claims].map(|part| BASE64.encode(part.to_string())).join(".");
        let signature = BASE64.encode(hmac::sign(secret, signed.as_bytes()));
        Some(format!("{signed}.{signature}"))
    }

    /// Who holds `token`, if it is good at `now`.
    pub(crate) fn verify(&self, token: &str, now: Timestamp) -> Result<Claims, TokenError> {
        let payload = self.signed(token)?;
        let registered: Registered = serde_json::from_slice(&payload).map_err(|_| TokenError::Malformed)?;
        let stated: Stated = serde_json::from_slice(&payload).map_err(|_| TokenError::Malformed)?;
        stated.claims(self.check(&registered, now)?)
    }

    /// The payload, if its signature is right.
    fn signed(&self, token: &str) -> Result<Vec<u8>, TokenError> {
        if token.len() > TOKEN_BYTES {
            return Err(TokenError::Malformed);
        }
        let (signed, signature) = token.rsplit_once('.').ok_or(TokenError::Malformed)?;
        let (header, payload) = signed.split_once('.').ok_or(TokenError::Malformed)?;
        let (header, payload, signature) = (decode(header)?, decode(payload)?, decode(signature)?);
        let header: Header = serde_json::from_slice(&header).map_err(|_| TokenError::Malformed)?;
        if header.crit.is_some() {
            return Err(TokenError::Malformed);
        }
        self.check_signature(&header, signed.as_bytes(), &signature)?;
        Ok(payload)
    }

    fn check_signature(&self, header: &Header, signed: &[u8], signature: &[u8]) -> Result<(), TokenError> {
        let right = match header.alg.as_str() {
            "HS256" => {
                let secret = self.secret.as_ref().ok_or(TokenError::Algorithm)?;
                hmac::verify(secret, signed, signature).is_ok()
            }
            "RS256" => self.keys().verify(Algorithm::Rs256, header.kid.as_deref(), signed, signature)?,
            "ES256" => self.keys().verify(Algorithm::Es256, header.kid.as_deref(), signed, signature)?,
            _ => return Err(TokenError::Algorithm),
        };
        if right { Ok(()) } else { Err(TokenError::Signature) }
    }

    fn keys(&self) -> Arc<KeySet> {
        Arc::clone(&self.keys.read().unwrap_or_else(PoisonError::into_inner))
    }

    /// When the token expires, if it is good at `now`.
    fn check(&self, claims: &Registered, now: Timestamp) -> Result<Timestamp, TokenError> {
        let expires = claims.exp.ok_or(TokenError::MissingClaim("exp"))?;
        let begins = claims.nbf.into_iter().chain(claims.iat).fold(f64::MIN, f64::max);
        let (seconds, leeway) = (now.as_second() as f64, LEEWAY.as_secs() as f64);
        if expires + leeway <= seconds {
            return Err(TokenError::Expired);
        }
        if begins - leeway > seconds {
            return Err(TokenError::NotYet);
        }
        if !self.issuer.is_empty() && claims.iss.as_ref() != Some(&self.issuer) {
            return Err(TokenError::Issuer);
        }
        if !self.audience.is_empty() && !claims.aud.as_ref().is_some_and(|audience| audience.has(&self.audience)) {
            return Err(TokenError::Audience);
        }
        // Beyond what a timestamp holds, which is longer than anybody's connection.
        Ok(Timestamp::from_second(expires as i64).unwrap_or(Timestamp::MAX))
    }
}

impl Audience {
    fn has(&self, wanted: &str) -> bool {
        match self {
            Self::One(audience) => audience == wanted,
            Self::Some(all) => all.iter().any(|audience| audience == wanted),
        }
    }
}

fn decode(part: &str) -> Result<Vec<u8>, TokenError> {
    BASE64.decode(part).map_err(|_| TokenError::Malformed)
}

#[cfg(test)]
pub(super) mod tests;
