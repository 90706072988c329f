//! The public keys that tokens are signed with: a JSON Web Key Set (RFC 7517), from an address or a file, kept fresh.
//!
//! It is read again every five minutes, and at once when a token names a key that isn't in it, but then at most every
//! 30 s. While it can't be read, the keys of the last time count. Keys of other kinds are passed over, shared secrets
//! above all: what is published is no secret.

use std::{path::PathBuf, sync::Arc, time::Duration};

use anyhow::{Context as _, Result, bail, ensure};
use base64::{Engine as _, engine::general_purpose::URL_SAFE_NO_PAD as BASE64};
use bytes::Bytes;
use chassis::{
    clock::Clock,
    outbound::{Outbound, Request},
    tasks::Tasks,
};
use http::{HeaderMap, Method, StatusCode};
use jiff::{SignedDuration, Timestamp};
use ring::signature::{ECDSA_P256_SHA256_FIXED, RSA_PKCS1_2048_8192_SHA256, RsaPublicKeyComponents, UnparsedPublicKey};
use serde::Deserialize;
use tokio::{io::AsyncReadExt as _, sync::Mutex};

use super::{
    claims::Claims,
    token::{TokenError, Verifier},
};

const REFRESH_EVERY: Duration = Duration::from_secs(300);
/// For tokens with unknown keys, which anybody can make.
const REFRESH_APART: SignedDuration = SignedDuration::from_secs(30);
const FETCH_WITHIN: Duration = Duration::from_secs(5);
/// As much as the guarded client reads.
const SET_BYTES: u64 = 16 * 1024;
const KEYS: usize = 32;
/// Of one coordinate of P-256.
const COORDINATE_BYTES: usize = 32;

/// Signatures by a public key.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Algorithm {
    Rs256,
    Es256,
}

/// Public keys. The empty set believes nobody.
#[derive(Debug, Default)]
pub(crate) struct KeySet(Vec<Key>);

#[derive(Debug)]
struct Key {
    id: Option<String>,
    public: PublicKey,
}

#[derive(Debug)]
enum PublicKey {
    Rsa(RsaPublicKeyComponents<Vec<u8>>),
    /// The uncompressed point.
    P256(Vec<u8>),
}

#[derive(Deserialize)]
struct Published {
    keys: Vec<serde_json::Value>,
}

/// A key's members, as far as they are read.
#[derive(Deserialize)]
struct Jwk {
    kty: String,
    kid: Option<String>,
    #[serde(rename = "use")]
    purpose: Option<String>,
    alg: Option<String>,
    crv: Option<String>,
    n: Option<String>,
    e: Option<String>,
    x: Option<String>,
    y: Option<String>,
}

impl KeySet {
    /// Takes a JWKS; of keys that can't be used nothing is said but that there is none that can.
    pub(crate) fn parse(json: &[u8]) -> Result<Self> {
        let published: Published = serde_json::from_slice(json).context("it is no JWKS")?;
        ensure!(published.keys.len() <= KEYS, "it has more than {KEYS} keys");
        let keys: Vec<_> = published.keys.into_iter().filter_map(Key::parse).collect();
        ensure!(!keys.is_empty(), "it has no key for RS256 or ES256");
        Ok(Self(keys))
    }

    /// Whether `signature` is right. A token without `kid` may be signed by the only key of its kind.
    pub(super) fn verify(
        &self,
        algorithm: Algorithm,
        kid: Option<&str>,
        signed: &[u8],
        signature: &[u8],
    ) -> Result<bool, TokenError> {
        let of_kind = || self.0.iter().filter(|key| key.public.algorithm() == algorithm);
        let key = match kid {
            Some(kid) => of_kind().find(|key| key.id.as_deref() == Some(kid)),
            None => of_kind().next().filter(|_| of_kind().count() == 1),
        };
        Ok(key.ok_or(TokenError::UnknownKey)?.public.verify(signed, signature))
    }
}

impl Key {
    fn parse(value: serde_json::Value) -> Option<Self> {
        let jwk: Jwk = serde_json::from_value(value).ok()?;
        let is_for = |algorithm: &str| jwk.alg.as_deref().is_none_or(|alg| alg == algorithm);
        let decode = |part: &Option<String>| BASE64.decode(part.as_deref()?).ok();
        let coordinate = |part| decode(part).filter(|bytes| bytes.len() == COORDINATE_BYTES);
        let public = match (jwk.kty.as_str(), jwk.crv.as_deref()) {
            _ if jwk.purpose.as_deref().is_some_and(|purpose| purpose != "sig") => return None,
            ("RSA", _) if is_for("RS256") => {
                PublicKey::Rsa(RsaPublicKeyComponents { n: decode(&jwk.n)?, e: decode(&jwk.e)? })
            }
            ("EC", Some("P-256")) if is_for("ES256") => {
                PublicKey::P256([vec![4], coordinate(&jwk.x)?, coordinate(&jwk.y)?].concat())
            }
            _ => return None,
        };
        Some(Self { id: jwk.kid, public })
    }
}

impl PublicKey {
    fn algorithm(&self) -> Algorithm {
        match self {
            Self::Rsa(_) => Algorithm::Rs256,
            Self::P256(_) => Algorithm::Es256,
        }
    }

    fn verify(&self, signed: &[u8], signature: &[u8]) -> bool {
        match self {
            Self::Rsa(key) => key.verify(&RSA_PKCS1_2048_8192_SHA256, signed, signature),
            Self::P256(point) => UnparsedPublicKey::new(&ECDSA_P256_SHA256_FIXED, point).verify(signed, signature),
        }
        .is_ok()
    }
}

/// Where a key set is published.
#[derive(Debug)]
pub(crate) enum Source {
    Nowhere,
    Url(String, Outbound),
    File(PathBuf),
}

impl Source {
    async fn read(&self) -> Result<KeySet> {
        let json = match self {
            Self::Nowhere => bail!("it is published nowhere"),
            Self::Url(url, outbound) => fetch(url, outbound).await?,
            Self::File(path) => {
                let mut json = Vec::new();
                let file = tokio::fs::File::open(path).await?;
                file.take(SET_BYTES + 1).read_to_end(&mut json).await?;
                ensure!(json.len() as u64 <= SET_BYTES, "it is larger than 16 KiB");
                json.into()
            }
        };
        KeySet::parse(&json)
    }
}

async fn fetch(url: &str, outbound: &Outbound) -> Result<Bytes> {
    let request = Request {
        method: Method::GET,
        url: url.to_owned(),
        headers: HeaderMap::new(),
        body: Bytes::new(),
        timeout: FETCH_WITHIN,
    };
    let answer = outbound.send(request).await?;
    ensure!(answer.status == StatusCode::OK, "it answers {}", answer.status);
    ensure!(answer.complete, "it is larger than 16 KiB, or broke off");
    Ok(answer.body)
}

/// Tokens, checked with keys that are kept fresh.
pub(crate) struct Tokens {
    verifier: Verifier,
    source: Source,
    /// When the source was last asked.
    asked: Mutex<Option<Timestamp>>,
    clock: Clock,
}

impl Tokens {
    /// Reads the keys for the first time, and again from time to time until the process stops.
    ///
    /// # Errors
    /// A file that holds no key set. An address that doesn't answer is asked again later.
    pub(crate) async fn start(verifier: Verifier, source: Source, clock: Clock, tasks: &Tasks) -> Result<Arc<Self>> {
        let tokens = Arc::new(Self { verifier, source, asked: Mutex::new(None), clock });
        match tokens.read().await {
            Err(error) if matches!(tokens.source, Source::File(_)) => return Err(error),
            _ => {}
        }
        if !matches!(tokens.source, Source::Nowhere) {
            let (fresh, stopping) = (Arc::clone(&tokens), tasks.stopping());
            tasks.spawn("jwks", async move {
                stopping.run_until_cancelled(fresh.keep_fresh()).await;
            });
        }
        Ok(tokens)
    }

    async fn keep_fresh(&self) {
        loop {
            self.clock.sleep(REFRESH_EVERY).await;
            drop(self.read().await);
        }
    }

    /// Who holds `token`, if it is good now.
    ///
    /// # Errors
    /// Why it isn't.
    pub(crate) async fn verify(&self, token: &str) -> Result<Claims, TokenError> {
        match self.verifier.verify(token, self.clock.now()) {
            Err(TokenError::UnknownKey) => {
                self.look_again().await;
                self.verifier.verify(token, self.clock.now())
            }
            verified => verified,
        }
    }

    /// A token with these claims, where there is a secret to sign it with.
    pub(crate) fn issue(&self, claims: &serde_json::Value) -> Option<String> {
        self.verifier.issue(claims)
    }

    /// Whoever comes while another asks waits for that answer.
    async fn look_again(&self) {
        let mut asked = self.asked.lock().await;
        let now = self.clock.now();
        if asked.is_none_or(|asked| now.duration_since(asked).abs() >= REFRESH_APART) {
            drop(self.read_into(&mut asked).await);
        }
    }

    async fn read(&self) -> Result<()> {
        self.read_into(&mut *self.asked.lock().await).await
    }

    async fn read_into(&self, asked: &mut Option<Timestamp>) -> Result<()> {
        if matches!(self.source, Source::Nowhere) {
            return Ok(());
        }
        *asked = Some(self.clock.now());
        let read = self.source.read().await.context("the key set of [gateway.realtime] can't be read");
        match &read {
            Ok(_) => metrics::counter!("jwks_reads_total", "outcome" => "ok").increment(1),
            Err(error) => {
                metrics::counter!("jwks_reads_total", "outcome" => "failed").increment(1);
                tracing::warn!(reason = format!("{error:#}"), "the last keys stay in force");
            }
        }
        self.verifier.replace_keys(read?);
        Ok(())
    }
}

#[cfg(test)]
mod tests;
