//! Addresses that must not be used any more, per organization and channel: bounces, complaints, opt-outs.
//!
//! Invariant: the list is asked when a message is resolved, and once more right before each attempt to send it. An address
//! is looked up by its hash, which outlives the erasure of the person, so that an opt-out still holds afterwards.

use std::collections::HashMap;

use chassis::{
    clock::{Clock, from_micros},
    error::{Error, Result},
    id::OrganizationId,
    secret::{DataKey, DataKeys, place},
    store::{Store, Tx},
    with,
};
use jiff::Timestamp;
use sha2::{Digest as _, Sha256};

use crate::{
    audit,
    recipient::{e164, is_channel},
};

/// Addresses of one person that are looked up at once.
const AT_ONCE: usize = 8;

/// Why an address is on the list.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Reason {
    /// It doesn't exist, or takes nothing.
    Bounced,
    /// Its owner called a message spam.
    Complained,
    /// Its owner said STOP, or the like.
    Stopped,
    /// Its owner wants nothing more but in an emergency.
    Unsubscribed,
    /// Somebody of the organization put it there.
    Manual,
}

impl Reason {
    const ALL: [Self; 5] = [Self::Bounced, Self::Complained, Self::Stopped, Self::Unsubscribed, Self::Manual];

    pub(crate) fn as_str(self) -> &'static str {
        match self {
            Self::Bounced => "bounced",
            Self::Complained => "complained",
            Self::Stopped => "stopped",
            Self::Unsubscribed => "unsubscribed",
            Self::Manual => "manual",
        }
    }

    pub(crate) fn parse(text: &str) -> Option<Self> {
        Self::ALL.into_iter().find(|reason| reason.as_str() == text)
    }

    /// Whether an address on the list for this reason may still be used in an emergency.
    pub(crate) fn yields_to_emergency(self) -> bool {
        self == Self::Unsubscribed
    }
}

/// An address on the list.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Suppression {
    pub(crate) channel: String,
    /// None once its owner was erased.
    pub(crate) address: Option<String>,
    pub(crate) reason: Reason,
    /// Who or what put it there.
    pub(crate) source: String,
    pub(crate) created_at: Timestamp,
    /// For pages.
    pub(crate) cursor: String,
}

/// What an address is looked up by: the same for all spellings that reach the same place.
pub(crate) fn hash(organization: &OrganizationId, address: &str) -> Vec<u8> {
    let mut hash = Sha256::new();
    hash.update((organization.as_str().len() as u64).to_be_bytes());
    hash.update(organization.as_str());
    let number = e164(address);
    hash.update(if number.is_empty() { address.trim().to_lowercase() } else { number });
    hash.finalize().to_vec()
}

/// The lists of all organizations. Cheap to clone.
#[derive(Clone)]
pub(crate) struct Suppressions {
    store: Store,
    keys: DataKeys,
    clock: Clock,
}

#[derive(sqlx::FromRow)]
struct Row {
    channel: String,
    hash: Vec<u8>,
    address: Option<Vec<u8>>,
    reason: String,
    source: String,
    created_at: i64,
}

fn address_place(channel: &str, hash: &[u8]) -> Vec<u8> {
    place("suppressions", "address", &cursor(channel, hash))
}

/// What an address is named by where nobody is to read it.
fn cursor(channel: &str, hash: &[u8]) -> String {
    format!("{channel}:{}", hex::encode(hash))
}

/// An address as the list holds it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Listed {
    pub(crate) organization: OrganizationId,
    pub(crate) channel: String,
    pub(crate) hash: Vec<u8>,
    pub(crate) sealed: Vec<u8>,
}

/// An address, sealed for its place on the list.
pub(crate) fn seal(key: &DataKey, channel: &str, hash: &[u8], address: &str) -> Vec<u8> {
    key.seal(&address_place(channel, hash), address.trim().as_bytes())
}

/// Puts an address on the list; what stands there already keeps its time and takes the newer reason. But a STOP, which its
/// owner may take back, replaces neither a complaint nor what somebody of the organization put there.
pub(crate) async fn list_in(tx: &mut Tx, listed: &Listed, reason: Reason, source: &str, now: Timestamp) -> Result<()> {
    with!(tx.on(), c => sqlx::query(
        "INSERT INTO suppressions (organization_id, channel, hash, address, reason, source, created_at)
         VALUES ($1, $2, $3, $4, $5, $6, $7)
         ON CONFLICT (organization_id, channel, hash) DO UPDATE SET address = excluded.address, reason = excluded.reason,
             source = excluded.source
         WHERE excluded.reason <> 'stopped' OR suppressions.reason NOT IN ('manual', 'complained')",
    )
    .bind(listed.organization.as_str())
    .bind(&listed.channel)
    .bind(&listed.hash)
    .bind(&listed.sealed)
    .bind(reason.as_str())
    .bind(source)
    .bind(now.as_microsecond())
    .execute(c).await.map(drop))?;
    Ok(())
}

/// Takes an address off the list if its owner had put it there by STOP.
pub(crate) async fn admit_in(tx: &mut Tx, listed: &Listed) -> Result<()> {
    with!(tx.on(), c => sqlx::query(
        "DELETE FROM suppressions WHERE organization_id = $1 AND channel = $2 AND hash = $3 AND reason = 'stopped'",
    )
    .bind(listed.organization.as_str())
    .bind(&listed.channel)
    .bind(&listed.hash)
    .execute(c).await.map(drop))?;
    Ok(())
}

impl Suppressions {
    pub(crate) fn new(store: Store, keys: DataKeys, clock: Clock) -> Self {
        Self { store, keys, clock }
    }

    /// Puts an address on the list for whoever holds the key `by`; what stands there already keeps its time and takes the
    /// newer reason.
    ///
    /// # Errors
    /// `Error::Invalid` for a field at fault.
    pub(crate) async fn add(
        &self,
        organization: &OrganizationId,
        channel: &str,
        address: &str,
        reason: Reason,
        source: &str,
        by: &str,
    ) -> Result<()> {
        check(channel, address)?;
        if source.len() > 200 || source.chars().any(char::is_control) {
            return Err(Error::invalid("source", "must have at most 200 bytes, without control characters"));
        }
        let hash = hash(organization, address);
        let sealed = seal(&*self.keys.of(organization).await?, channel, &hash, address);
        let listed = Listed { organization: organization.clone(), channel: channel.to_owned(), hash, sealed };
        let (now, named) = (self.clock.now(), cursor(channel, &listed.hash));
        let mut tx = self.store.begin().await?;
        list_in(&mut tx, &listed, reason, source, now).await?;
        note(&mut tx, organization, &named, &format!("listed: {}", reason.as_str()), by, now).await?;
        tx.commit().await?;
        tracing::info!(channel, reason = reason.as_str(), source, "an address is not used any more");
        Ok(())
    }

    /// Takes an address off the list for whoever holds the key `by`.
    ///
    /// # Errors
    /// `Error::NotFound` if it isn't there.
    pub(crate) async fn remove(
        &self,
        organization: &OrganizationId,
        channel: &str,
        address: &str,
        by: &str,
    ) -> Result<()> {
        check(channel, address)?;
        let hash = hash(organization, address);
        let mut tx = self.store.begin().await?;
        let removed = with!(tx.on(), c => sqlx::query(
            "DELETE FROM suppressions WHERE organization_id = $1 AND channel = $2 AND hash = $3",
        ).bind(organization.as_str()).bind(channel).bind(&hash).execute(c).await.map(|done| done.rows_affected()))?;
        if removed == 0 {
            return Err(Error::NotFound("suppressed address".into()));
        }
        note(&mut tx, organization, &cursor(channel, &hash), "taken off", by, self.clock.now()).await?;
        tx.commit().await
    }

    /// Up to `limit` addresses after the cursor, by channel and hash.
    ///
    /// # Errors
    /// `Error::Invalid` for a malformed cursor.
    pub(crate) async fn list(
        &self,
        organization: &OrganizationId,
        channel: &str,
        after: &str,
        limit: u32,
    ) -> Result<Vec<Suppression>> {
        let (after_channel, after_hash) = after.split_once(':').unwrap_or_default();
        let rows: Vec<Row> = with!(self.store.reader(), c => sqlx::query_as(
            "SELECT channel, hash, address, reason, source, created_at FROM suppressions
             WHERE organization_id = $1 AND ($2 = '' OR channel = $2) AND (channel > $3 OR channel = $3 AND hash > $4)
             ORDER BY channel, hash LIMIT $5",
        )
        .bind(organization.as_str())
        .bind(channel)
        .bind(after_channel)
        .bind(hex::decode(after_hash).map_err(|_| Error::invalid("page_token", "is not one of ours"))?)
        .bind(i64::from(limit))
        .fetch_all(c).await)?;
        let key = self.keys.of(organization).await?;
        let shown = |row: Row| {
            let open = |sealed: Vec<u8>| key.open(&address_place(&row.channel, &row.hash), &sealed);
            let address = row.address.clone().map(open).transpose()?;
            Ok(Suppression {
                address: address.map(|address| String::from_utf8_lossy(&address).into_owned()),
                cursor: cursor(&row.channel, &row.hash),
                reason: Reason::parse(&row.reason).unwrap_or(Reason::Manual),
                channel: row.channel,
                source: row.source,
                created_at: from_micros(row.created_at),
            })
        };
        rows.into_iter().map(shown).collect()
    }

    /// Of a person's addresses, by channel, those on the list, with the reason.
    pub(crate) async fn among(
        &self,
        organization: &OrganizationId,
        addresses: &HashMap<String, String>,
    ) -> Result<HashMap<String, Reason>> {
        let hashes: Vec<(&String, Vec<u8>)> =
            addresses.iter().map(|(channel, address)| (channel, hash(organization, address))).collect();
        let mut found = HashMap::new();
        for part in hashes.chunks(AT_ONCE) {
            let hash = |number: usize| part.get(number).map_or_else(Vec::new, |(_, hash)| hash.clone());
            let rows: Vec<(String, Vec<u8>, String)> = with!(self.store.reader(), c => sqlx::query_as(
                "SELECT channel, hash, reason FROM suppressions WHERE organization_id = $1 AND hash IN ($2, $3, $4, $5, $6, $7, $8, $9)",
            )
            .bind(organization.as_str())
            .bind(hash(0)).bind(hash(1)).bind(hash(2)).bind(hash(3)).bind(hash(4)).bind(hash(5)).bind(hash(6)).bind(hash(7))
            .fetch_all(c).await)?;
            for (channel, hash, reason) in rows {
                if part.iter().any(|(name, known)| **name == channel && *known == hash) {
                    found.insert(channel, Reason::parse(&reason).unwrap_or(Reason::Manual));
                }
            }
        }
        Ok(found)
    }
}

async fn note(
    tx: &mut Tx,
    organization: &OrganizationId,
    subject: &str,
    detail: &str,
    by: &str,
    now: Timestamp,
) -> Result<()> {
    let entry = audit::Entry { action: audit::Action::Suppression, by, subject, detail };
    audit::note(tx, organization, &entry, now).await
}

fn check(channel: &str, address: &str) -> Result<()> {
    if !is_channel(channel) {
        return Err(Error::invalid("channel", "must be a name like `email` or `sms`"));
    }
    if !(1..=512).contains(&address.trim().len()) || address.chars().any(char::is_control) {
        return Err(Error::invalid("address", "must have 1 to 512 bytes, without control characters"));
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_address_has_one_hash_in_every_spelling_and_another_in_every_organization() {
        let (a, b) = (OrganizationId::parse("a").unwrap(), OrganizationId::parse("b").unwrap());
        assert_eq!(hash(&a, "Ada@Example.org "), hash(&a, "ada@example.org"));
        assert_eq!(hash(&a, "+49 (0)30 123-4567"), hash(&a, "+49301234567"));
        assert_ne!(hash(&a, "ada@example.org"), hash(&b, "ada@example.org"));
        assert_eq!(hex::decode(hex::encode([0, 255, 16])).unwrap(), [0, 255, 16]);
        assert!(hex::decode("zz").is_err() && hex::decode("é1").is_err() && hex::decode("abc").is_err());
    }
}
