//! Organizations and their API keys. A key's secret is 256 bits from the operating system; only its SHA-256 is stored,
//! and a secret is found by that hash, so that no comparison can leak its bytes.

use std::{path::Path, sync::Arc, time::Duration};

use anyhow::Context as _;
use chassis::{
    auth::{Authenticator, Caller, Role, Scope, Scopes},
    clock::{Clock, from_micros},
    error::{Error, Result},
    id::{self, OrganizationId},
    store::Store,
    with,
};
use futures_util::future::BoxFuture;
use jiff::{Timestamp, tz::TimeZone};
use sha2::{Digest as _, Sha256};

use crate::{remembered::Remembered, wedding::parse_zone};

const SCOPES: [(&str, Scope); 4] =
    [("publish", Scope::Publish), ("consume", Scope::Consume), ("manage", Scope::Manage), ("admin", Scope::Admin)];
/// Zones and keys that are kept in memory.
const CACHED: u64 = 10_000;
/// The oldest that what is known of a key may be, should the store have revoked one without our learning of it.
const KEY_AGE_MAX: Duration = Duration::from_secs(30);
/// Keys of one organization.
const KEYS_MAX: i64 = 100;
const NAME_MAX: usize = 256;

/// A tenant.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Organization {
    pub(crate) id: OrganizationId,
    pub(crate) name: String,
    /// IANA name; empty means UTC.
    pub(crate) time_zone: String,
    pub(crate) created_at: Timestamp,
}

/// An API key, without its secret.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct ApiKey {
    pub(crate) id: String,
    /// None for the operator's.
    pub(crate) organization: Option<OrganizationId>,
    pub(crate) description: String,
    pub(crate) scopes: Vec<Scope>,
    pub(crate) created_at: Timestamp,
    pub(crate) expires_at: Option<Timestamp>,
}

/// All organizations and keys. Cheap to clone.
#[derive(Clone)]
pub(crate) struct Organizations {
    store: Store,
    clock: Clock,
    zones: Remembered<OrganizationId, TimeZone>,
    /// By the hash of their secrets. This process alone changes keys, so that what is cached is what is stored.
    keys: Remembered<[u8; 32], ApiKey>,
    /// Held while keys are counted and one more is made.
    changing: Arc<tokio::sync::Mutex<()>>,
}

#[derive(sqlx::FromRow)]
struct OrganizationRow {
    id: String,
    name: String,
    time_zone: String,
    created_at: i64,
}

#[derive(sqlx::FromRow)]
struct KeyRow {
    id: String,
    organization_id: String,
    description: String,
    scopes: String,
    created_at: i64,
    expires_at: Option<i64>,
}

impl Organizations {
    pub(crate) fn new(store: Store, clock: Clock) -> Self {
        let (zones, keys) = (Remembered::new(CACHED), Remembered::no_older_than(KEY_AGE_MAX, CACHED));
        Self { store, clock, zones, keys, changing: Arc::default() }
    }

    /// Makes the operator's key at the first start and writes it to `file` (mode 0600), once.
    ///
    /// # Errors
    /// Those of the store; a file that can't be written.
    pub(crate) async fn bootstrap(&self, file: &Path) -> anyhow::Result<()> {
        let existing: i64 = with!(self.store.reader(), c => sqlx::query_scalar("SELECT COUNT(*) FROM api_keys WHERE organization_id = ''")
            .fetch_one(c).await)?;
        if existing > 0 {
            return Ok(());
        }
        // The file first: a key that nobody can read would lock everybody out.
        let secret = generate();
        chassis::secret::write_file(file, &secret)
            .with_context(|| format!("write the operator's key to {}", file.display()))?;
        self.insert_key("", "the first key, made at the first start", &[Scope::Admin], None, &secret).await?;
        tracing::info!(file = %file.display(), "made the operator's key");
        Ok(())
    }

    pub(crate) async fn create(&self, id: &str, name: &str, time_zone: &str) -> Result<Organization> {
        let id = if id.is_empty() { id::uuid(self.clock.now()) } else { id.to_owned() };
        let organization = Organization {
            id: OrganizationId::parse(&id).map_err(|_| Error::invalid("id", "must match [A-Za-z0-9_-]{1,64}"))?,
            name: checked("name", name)?.to_owned(),
            time_zone: time_zone.to_owned(),
            created_at: self.clock.now(),
        };
        if !time_zone.is_empty() && parse_zone(time_zone).is_none() {
            return Err(Error::invalid("time_zone", "must be an IANA name: `Europe/London`"));
        }
        let inserted = with!(self.store.writer(), c => sqlx::query(
            "INSERT INTO organizations (id, name, time_zone, created_at) VALUES ($1, $2, $3, $4) ON CONFLICT (id) DO NOTHING",
        ).bind(&id).bind(name).bind(time_zone).bind(organization.created_at.as_microsecond()).execute(c).await.map(|done| done.rows_affected()))?;
        if inserted == 0 {
            return Err(Error::AlreadyExists(format!("organization {id} exists")));
        }
        Ok(organization)
    }

    pub(crate) async fn get(&self, id: &OrganizationId) -> Result<Organization> {
        let row: Option<OrganizationRow> = with!(self.store.reader(), c => sqlx::query_as(
            "SELECT id, name, time_zone, created_at FROM organizations WHERE id = $1",
        ).bind(id.as_str()).fetch_optional(c).await)?;
        row.ok_or_else(|| Error::NotFound("organization".into()))?.try_into()
    }

    /// Organizations after `after`, by id.
    pub(crate) async fn list(&self, after: &str, limit: u32) -> Result<Vec<Organization>> {
        let rows: Vec<OrganizationRow> = with!(self.store.reader(), c => sqlx::query_as(
            "SELECT id, name, time_zone, created_at FROM organizations WHERE id > $1 ORDER BY id LIMIT $2",
        ).bind(after).bind(i64::from(limit)).fetch_all(c).await)?;
        rows.into_iter().map(TryInto::try_into).collect()
    }

    /// The organization's zone, for weddings that have none of their own.
    ///
    /// # Errors
    /// `Error::NotFound` when there is no such organization.
    pub(crate) async fn zone(&self, id: &OrganizationId) -> Result<TimeZone> {
        if let Some(zone) = self.zones.get(id) {
            return Ok(zone);
        }
        let reading = self.zones.reading(id);
        let zone = parse_zone(&self.get(id).await?.time_zone).unwrap_or(TimeZone::UTC);
        self.zones.keep(id.clone(), zone.clone(), reading);
        Ok(zone)
    }

    /// Makes a key; its secret is in the answer and nowhere else.
    ///
    /// # Errors
    /// `Error::NotFound` for an unknown organization; `Error::Invalid` without scopes or with a time that has passed.
    pub(crate) async fn create_key(
        &self,
        organization: &OrganizationId,
        description: &str,
        scopes: &[Scope],
        expires_at: Option<Timestamp>,
    ) -> Result<(ApiKey, String)> {
        self.get(organization).await?;
        checked("description", description)?;
        if scopes.is_empty() {
            return Err(Error::invalid("scopes", "must name at least one"));
        }
        if expires_at.is_some_and(|at| at <= self.clock.now()) {
            return Err(Error::invalid("expires_at", "must be in the future"));
        }
        let _changing = self.changing.lock().await;
        let keys: i64 = with!(self.store.reader(), c => sqlx::query_scalar("SELECT COUNT(*) FROM api_keys WHERE organization_id = $1")
            .bind(organization.as_str()).fetch_one(c).await)?;
        if keys >= KEYS_MAX {
            return Err(Error::FailedPrecondition(format!(
                "an organization has at most {KEYS_MAX} keys: delete one first"
            )));
        }
        let secret = generate();
        let key = self.insert_key(organization.as_str(), description, scopes, expires_at, &secret).await?;
        Ok((key, secret))
    }

    async fn insert_key(
        &self,
        organization: &str,
        description: &str,
        scopes: &[Scope],
        expires_at: Option<Timestamp>,
        secret: &str,
    ) -> Result<ApiKey> {
        let row = KeyRow {
            id: id::uuid(self.clock.now()),
            organization_id: organization.to_owned(),
            description: description.to_owned(),
            scopes: names(scopes),
            created_at: self.clock.now_micros(),
            expires_at: expires_at.map(Timestamp::as_microsecond),
        };
        with!(self.store.writer(), c => sqlx::query(
            "INSERT INTO api_keys (id, organization_id, hash, description, scopes, created_at, expires_at) VALUES ($1, $2, $3, $4, $5, $6, $7)",
        )
        .bind(&row.id).bind(&row.organization_id).bind(&hash(secret)[..]).bind(&row.description).bind(&row.scopes).bind(row.created_at)
        .bind(row.expires_at).execute(c).await.map(drop))?;
        Ok(row.into())
    }

    pub(crate) async fn list_keys(&self, organization: &OrganizationId) -> Result<Vec<ApiKey>> {
        let rows: Vec<KeyRow> = with!(self.store.reader(), c => sqlx::query_as(
            "SELECT id, organization_id, description, scopes, created_at, expires_at FROM api_keys WHERE organization_id = $1 ORDER BY id",
        ).bind(organization.as_str()).fetch_all(c).await)?;
        Ok(rows.into_iter().map(Into::into).collect())
    }

    /// Revokes a key. To be seen through: what is revoked must be forgotten.
    ///
    /// # Errors
    /// `Error::NotFound` when the organization has no such key.
    pub(crate) async fn delete_key(&self, organization: &OrganizationId, id: &str) -> Result<()> {
        let hash: Option<Vec<u8>> = with!(self.store.reader(), c => sqlx::query_scalar(
            "SELECT hash FROM api_keys WHERE id = $1 AND organization_id = $2",
        ).bind(id).bind(organization.as_str()).fetch_optional(c).await)?;
        let hash = hash.and_then(|hash| hash.try_into().ok()).ok_or_else(|| Error::NotFound("API key".into()))?;
        let deleted = with!(self.store.writer(), c => sqlx::query("DELETE FROM api_keys WHERE id = $1 AND organization_id = $2")
            .bind(id).bind(organization.as_str()).execute(c).await.map(|done| done.rows_affected()));
        // Even where the store's answer was lost.
        self.keys.forget(&hash);
        if deleted? == 0 { Err(Error::NotFound("API key".into())) } else { Ok(()) }
    }

    /// Whose a secret is.
    ///
    /// # Errors
    /// `Error::Unauthenticated` for one that is unknown, revoked or expired.
    pub(crate) async fn find_key(&self, secret: &str) -> Result<ApiKey> {
        let unknown = || Error::Unauthenticated("the API key is unknown, revoked or expired".into());
        if !is_well_formed(secret) {
            return Err(unknown());
        }
        let hash = hash(secret);
        let key = match self.keys.get(&hash) {
            Some(key) => key,
            None => self.read_key(hash).await?.ok_or_else(unknown)?,
        };
        let now = self.clock.now();
        if key.expires_at.is_none_or(|at| at > now) { Ok(key) } else { Err(unknown()) }
    }

    async fn read_key(&self, hash: [u8; 32]) -> Result<Option<ApiKey>> {
        let reading = self.keys.reading(&hash);
        let row: Option<KeyRow> = with!(self.store.reader(), c => sqlx::query_as(
            "SELECT id, organization_id, description, scopes, created_at, expires_at FROM api_keys WHERE hash = $1",
        ).bind(&hash[..]).fetch_optional(c).await)?;
        let key = row.map(ApiKey::from);
        if let Some(key) = &key {
            self.keys.keep(hash, key.clone(), reading);
        }
        Ok(key)
    }
}

impl Authenticator for Organizations {
    fn authenticate<'a>(&'a self, secret: &'a str) -> BoxFuture<'a, Result<Caller>> {
        Box::pin(async move {
            let key = self.find_key(secret).await?;
            Ok(Caller {
                role: if key.organization.is_some() { Role::Member } else { Role::Operator },
                organization: key.organization,
                scopes: key.scopes.into_iter().collect::<Scopes>(),
                name: key.id,
            })
        })
    }
}

impl TryFrom<OrganizationRow> for Organization {
    type Error = Error;

    fn try_from(row: OrganizationRow) -> Result<Self> {
        let OrganizationRow { id, name, time_zone, created_at } = row;
        Ok(Self { id: OrganizationId::parse(&id)?, name, time_zone, created_at: from_micros(created_at) })
    }
}

impl From<KeyRow> for ApiKey {
    fn from(row: KeyRow) -> Self {
        Self {
            organization: OrganizationId::parse(&row.organization_id).ok(),
            scopes: row.scopes.split_whitespace().filter_map(scope).collect(),
            id: row.id,
            description: row.description,
            created_at: from_micros(row.created_at),
            expires_at: row.expires_at.map(from_micros),
        }
    }
}

fn scope(name: &str) -> Option<Scope> {
    SCOPES.iter().find(|(known, _)| *known == name).map(|(_, scope)| *scope)
}

fn names(scopes: &[Scope]) -> String {
    let held = SCOPES.iter().filter(|(_, scope)| scopes.contains(scope));
    held.map(|(name, _)| *name).collect::<Vec<_>>().join(" ")
}

fn checked<'a>(field: &'static str, text: &'a str) -> Result<&'a str> {
    let plain = text.len() <= NAME_MAX && !text.chars().any(char::is_control);
    plain
        .then_some(text)
        .ok_or_else(|| Error::invalid(field, format!("must be at most {NAME_MAX} bytes without control characters")))
}

/// `wsk_` and 32 random bytes in hex.
fn generate() -> String {
    format!("wsk_{}", hex::encode(chassis::secret::random::<32>()))
}

/// What no key looks like isn't looked for.
fn is_well_formed(secret: &str) -> bool {
    secret.strip_prefix("wsk_").is_some_and(|hex| hex.len() == 64 && hex.bytes().all(|b| b.is_ascii_hexdigit()))
}

fn hash(secret: &str) -> [u8; 32] {
    Sha256::digest(secret).into()
}

/// For the server: who a key's holder is.
pub(crate) fn authenticator(organizations: &Organizations) -> Arc<dyn Authenticator> {
    Arc::new(organizations.clone())
}
