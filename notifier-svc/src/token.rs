//! Signed links: each stands for one message and one purpose, and ends.
//!
//! A token is the base64url of message, expiry, and an HMAC-SHA256 over purpose, message and expiry with the
//! organization's own key. Nothing else is in it; what it allows is looked up.

use base64::{Engine as _, engine::general_purpose::URL_SAFE_NO_PAD as BASE64};
use chassis::{
    clock::from_micros,
    error::{Error, Result},
    id::OrganizationId,
    secret::DataKey,
    signature::equal,
    store::Store,
    with,
};
use jiff::{SignedDuration, Timestamp};

/// How long a link is good.
const GOOD: SignedDuration = SignedDuration::from_hours(30 * 24);
const UID_BYTES: usize = 16;
const EXPIRY_BYTES: usize = 8;
const MAC_BYTES: usize = 32;

/// What a link is for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Purpose {
    Acknowledge,
    Unsubscribe,
}

impl Purpose {
    fn as_str(self) -> &'static str {
        match self {
            Self::Acknowledge => "acknowledge",
            Self::Unsubscribe => "unsubscribe",
        }
    }
}

/// The token of a message.
pub(crate) fn sign(key: &DataKey, purpose: Purpose, uid: &[u8; UID_BYTES], now: Timestamp) -> String {
    let expires = now.checked_add(GOOD).unwrap_or(Timestamp::MAX).as_microsecond();
    let said = [&uid[..], &expires.to_be_bytes()].concat();
    BASE64.encode([&said[..], &key.mac(purpose.as_str(), &said)].concat())
}

/// The message that a token names, and when it ends; nothing is believed of it yet.
pub(crate) fn read(token: &str) -> Option<([u8; UID_BYTES], Timestamp)> {
    let bytes = BASE64.decode(Some(token).filter(|token| token.len() <= 128)?).ok()?;
    (bytes.len() == UID_BYTES + EXPIRY_BYTES + MAC_BYTES).then_some(())?;
    let (uid, rest) = bytes.split_first_chunk::<UID_BYTES>()?;
    let (expires, _) = rest.split_first_chunk::<EXPIRY_BYTES>()?;
    Some((*uid, from_micros(i64::from_be_bytes(*expires))))
}

/// Whether `key` signed the token for this purpose, and it is still good.
pub(crate) fn verify(key: &DataKey, purpose: Purpose, token: &str, now: Timestamp) -> bool {
    let Some((uid, expires)) = read(token) else { return false };
    let said = [&uid[..], &expires.as_microsecond().to_be_bytes()].concat();
    let signed = BASE64.decode(token).unwrap_or_default();
    let signed = signed.get(said.len()..).unwrap_or_default();
    equal(&key.mac(purpose.as_str(), &said), signed) && now < expires
}

/// Whose message a token names.
#[derive(Debug, Clone, sqlx::FromRow)]
pub(crate) struct Owner {
    pub(crate) organization_id: String,
    pub(crate) notification_id: String,
    pub(crate) recipient_id: String,
    pub(crate) workflow: String,
    pub(crate) category: String,
    pub(crate) confirms_id: String,
    pub(crate) confirms_recipient: String,
}

/// Whose message it is.
///
/// # Errors
/// `Error::NotFound` for a message that nobody knows.
pub(crate) async fn owner(store: &Store, uid: &[u8; UID_BYTES]) -> Result<(OrganizationId, Owner)> {
    let owner: Option<Owner> = with!(store.reader(), c => sqlx::query_as(
        "SELECT m.organization_id, m.notification_id, m.recipient_id, n.workflow, n.category, n.confirms_id, n.confirms_recipient
         FROM messages AS m JOIN notifications AS n ON n.id = m.notification_id WHERE m.uid = $1",
    ).bind(&uid[..]).fetch_optional(c).await)?;
    let owner = owner.ok_or_else(unknown)?;
    Ok((OrganizationId::parse(&owner.organization_id)?, owner))
}

/// The one answer to every token that isn't good: it says nothing of why.
pub(crate) fn unknown() -> Error {
    Error::NotFound("link".into())
}
