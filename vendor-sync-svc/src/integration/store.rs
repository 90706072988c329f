//! Integrations in the store: every query but `find` is scoped by the organization.
//!
//! A secret is sealed for its own row and column, so that it opens nowhere else.

use std::{collections::BTreeMap, time::Duration};

use chassis::{
    clock::{Clock, from_micros},
    config::Secret,
    error::{Error, Result},
    id::{self, OrganizationId},
    secret::{DataKeys, place},
    store::Store,
    with,
};
use jiff::{SignedDuration, Timestamp};

use super::{Integration, Kind, Secrets, Settings};

/// All that is an integration's own. What it said stays with the records that it said it of.
const DELETES: [&str; 11] = [
    "DELETE FROM connections WHERE organization_id = $1 AND integration_id = $2",
    "DELETE FROM authorizations WHERE organization_id = $1 AND integration_id = $2",
    "DELETE FROM record_links WHERE organization_id = $1 AND integration_id = $2",
    "DELETE FROM own_writes WHERE organization_id = $1 AND integration_id = $2",
    "DELETE FROM makings WHERE organization_id = $1 AND integration_id = $2",
    "DELETE FROM polls WHERE organization_id = $1 AND integration_id = $2",
    "DELETE FROM rereads WHERE organization_id = $1 AND integration_id = $2",
    "DELETE FROM outbox WHERE organization_id = $1 AND lane_id = $2",
    "DELETE FROM integration_health WHERE organization_id = $1 AND integration_id = $2",
    "DELETE FROM integration_behind WHERE organization_id = $1 AND integration_id = $2",
    "DELETE FROM integrations WHERE organization_id = $1 AND id = $2",
];
const TABLE: &str = "integrations";

/// All integrations. Cheap to clone.
#[derive(Clone, Debug)]
pub(crate) struct Integrations {
    store: Store,
    keys: DataKeys,
    clock: Clock,
}

#[derive(sqlx::FromRow)]
struct Row {
    id: String,
    organization_id: String,
    kind: String,
    vendor: String,
    description: String,
    supplier_id: String,
    rate_limit_per_hour: i64,
    event_type: String,
    transformation: String,
    secret_header: String,
    disabled: i64,
    connector: String,
    parameters: String,
    paused: i64,
    version: i64,
    created_at: i64,
    updated_at: i64,
    last_received_at: Option<i64>,
    secret: Vec<u8>,
    old_secret: Option<Vec<u8>>,
    old_secret_expires_at: Option<i64>,
    signing_secret: Option<Vec<u8>>,
}

impl Row {
    fn integration(&self) -> Result<Integration> {
        let kind = Kind::parse(&self.kind);
        let kind =
            kind.ok_or_else(|| Error::internal(anyhow::anyhow!("integration {} is of an unknown kind", self.id)))?;
        let settings = Settings {
            kind,
            vendor: self.vendor.clone(),
            description: self.description.clone(),
            supplier_id: self.supplier_id.clone(),
            rate_limit_per_hour: u32::try_from(self.rate_limit_per_hour).unwrap_or(0),
            event_type: self.event_type.clone(),
            transformation: self.transformation.clone(),
            secret_header: self.secret_header.clone(),
            disabled: self.disabled != 0,
            connector: self.connector.clone(),
            parameters: serde_json::from_str(&self.parameters).unwrap_or_default(),
            paused: self.paused != 0,
        };
        Ok(Integration {
            id: self.id.clone(),
            organization: OrganizationId::parse(&self.organization_id)?,
            settings,
            version: self.version.unsigned_abs(),
            created_at: from_micros(self.created_at),
            updated_at: from_micros(self.updated_at),
            last_received_at: self.last_received_at.map(from_micros),
        })
    }
}

impl Integrations {
    /// Over the tables of `store`.
    pub(crate) fn new(store: Store, keys: DataKeys, clock: Clock) -> Self {
        Self { store, keys, clock }
    }

    /// Stores a new one.
    ///
    /// # Errors
    /// `Error::Unavailable` while the store is away.
    pub(crate) async fn create(
        &self,
        organization: OrganizationId,
        settings: Settings,
        secret: &Secret,
    ) -> Result<Integration> {
        self.create_as(id::uuid(self.clock.now()), organization, settings, secret).await
    }

    /// The same with an id that the caller chose: a UUID.
    ///
    /// # Errors
    /// `Error::Unavailable` while the store is away.
    pub(crate) async fn create_as(
        &self,
        id: String,
        organization: OrganizationId,
        settings: Settings,
        secret: &Secret,
    ) -> Result<Integration> {
        let now = self.clock.now();
        let sealed = self.seal(&organization, "secret", &id, secret).await?;
        with!(self.store.writer(), c => {
            sqlx::query(
                "INSERT INTO integrations (id, organization_id, kind, vendor, description, supplier_id, rate_limit_per_hour, \
                 event_type, transformation, secret_header, disabled, version, created_at, updated_at, secret, connector, parameters, \
                 paused) VALUES ($1, $2, $3, $4, $5, $6, $7, $8, $9, $10, $11, 1, $12, $12, $13, $14, $15, $16)",
            )
            .bind(&id)
            .bind(organization.as_str())
            .bind(settings.kind.as_str())
            .bind(&settings.vendor)
            .bind(&settings.description)
            .bind(&settings.supplier_id)
            .bind(i64::from(settings.rate_limit_per_hour))
            .bind(&settings.event_type)
            .bind(&settings.transformation)
            .bind(&settings.secret_header)
            .bind(i64::from(settings.disabled))
            .bind(now.as_microsecond())
            .bind(&sealed)
            .bind(&settings.connector)
            .bind(print(&settings.parameters))
            .bind(i64::from(settings.paused))
            .execute(c)
            .await
            .map(drop)
        })?;
        Ok(Integration {
            id,
            organization,
            settings,
            version: 1,
            created_at: now,
            updated_at: now,
            last_received_at: None,
        })
    }

    /// One of the organization's own.
    ///
    /// # Errors
    /// `Error::NotFound` also for another organization's.
    pub(crate) async fn get(&self, organization: &OrganizationId, id: &str) -> Result<Integration> {
        self.row(organization, id).await?.integration()
    }

    /// At most `limit`, oldest first, after the one with the id `after`.
    ///
    /// # Errors
    /// `Error::Unavailable` while the store is away.
    pub(crate) async fn list(
        &self,
        organization: &OrganizationId,
        after: &str,
        limit: i64,
    ) -> Result<Vec<Integration>> {
        let rows = with!(self.store.reader(), c => {
            sqlx::query_as::<_, Row>("SELECT * FROM integrations WHERE organization_id = $1 AND id > $2 ORDER BY id LIMIT $3")
                .bind(organization.as_str())
                .bind(after)
                .bind(limit)
                .fetch_all(c)
                .await
        })?;
        rows.iter().map(Row::integration).collect()
    }

    /// At most `limit` of all organizations' that have a connector, by id, after `after`.
    ///
    /// # Errors
    /// `Error::Unavailable` while the store is away.
    pub(crate) async fn linked(&self, after: &str, limit: i64) -> Result<Vec<Integration>> {
        let rows = with!(self.store.reader(), c => {
            sqlx::query_as::<_, Row>("SELECT * FROM integrations WHERE kind = $1 AND id > $2 ORDER BY id LIMIT $3")
                .bind(Kind::Connector.as_str())
                .bind(after)
                .bind(limit)
                .fetch_all(c)
                .await
        })?;
        rows.iter().map(Row::integration).collect()
    }

    /// Replaces the settings, if `version` is still the one in force. Kind, vendor and connector stay: the URL holds them, and links are the connector's.
    ///
    /// # Errors
    /// `Error::NotFound`, `Error::Aborted` if somebody else changed it meanwhile, `Error::Invalid` for another kind or vendor.
    pub(crate) async fn update(
        &self,
        organization: &OrganizationId,
        id: &str,
        version: u64,
        settings: &Settings,
    ) -> Result<Integration> {
        let current = self.get(organization, id).await?;
        if settings.kind != current.settings.kind {
            return Err(Error::invalid("kind", "can't be changed: create another integration"));
        }
        if settings.vendor != current.settings.vendor {
            return Err(Error::invalid("vendor", "can't be changed: create another integration"));
        }
        if settings.connector != current.settings.connector {
            return Err(Error::invalid("connector", "can't be changed: create another integration"));
        }
        let changed = with!(self.store.writer(), c => {
            sqlx::query(
                "UPDATE integrations SET description = $4, supplier_id = $5, rate_limit_per_hour = $6, event_type = $7, \
                 transformation = $8, secret_header = $9, disabled = $10, version = version + 1, updated_at = $11, \
                 parameters = $12, paused = $13 \
                 WHERE organization_id = $1 AND id = $2 AND version = $3",
            )
            .bind(organization.as_str())
            .bind(id)
            .bind(version.cast_signed())
            .bind(&settings.description)
            .bind(&settings.supplier_id)
            .bind(i64::from(settings.rate_limit_per_hour))
            .bind(&settings.event_type)
            .bind(&settings.transformation)
            .bind(&settings.secret_header)
            .bind(i64::from(settings.disabled))
            .bind(self.clock.now_micros())
            .bind(print(&settings.parameters))
            .bind(i64::from(settings.paused))
            .execute(c)
            .await
            .map(|done| done.rows_affected())
        })?;
        if changed == 0 {
            return Err(Error::Aborted(format!("integration {id} is not at version {version}: read it again")));
        }
        self.get(organization, id).await
    }

    /// Puts `secret` in force; the one before it verifies too for `overlap`, and the one before that no longer.
    ///
    /// Returns when the overlap ends.
    ///
    /// # Errors
    /// `Error::NotFound`; `Error::Aborted` if somebody else rotated meanwhile.
    pub(crate) async fn rotate(
        &self,
        organization: &OrganizationId,
        id: &str,
        secret: &Secret,
        overlap: Duration,
    ) -> Result<Timestamp> {
        let row = self.row(organization, id).await?;
        let current = self.open(organization, "secret", id, &row.secret).await?;
        let old = self.seal(organization, "old_secret", id, &current).await?;
        let new = self.seal(organization, "secret", id, secret).await?;
        let now = self.clock.now();
        let expires_at = now + SignedDuration::try_from(overlap).unwrap_or(SignedDuration::ZERO);
        let changed = with!(self.store.writer(), c => {
            sqlx::query(
                "UPDATE integrations SET secret = $4, old_secret = $5, old_secret_expires_at = $6, updated_at = $7 \
                 WHERE organization_id = $1 AND id = $2 AND secret = $3",
            )
            .bind(organization.as_str())
            .bind(id)
            .bind(&row.secret)
            .bind(&new)
            .bind(&old)
            .bind(expires_at.as_microsecond())
            .bind(now.as_microsecond())
            .execute(c)
            .await
            .map(|done| done.rows_affected())
        })?;
        if changed == 0 {
            return Err(Error::Aborted(format!("the secret of integration {id} was rotated meanwhile")));
        }
        Ok(expires_at)
    }

    /// Keeps what the vendor made for itself to sign with; none: it is forgotten, and nothing signed is asked for any more.
    ///
    /// # Errors
    /// `Error::NotFound`.
    pub(crate) async fn set_signing(
        &self,
        organization: &OrganizationId,
        id: &str,
        secret: Option<&Secret>,
    ) -> Result<()> {
        self.row(organization, id).await?;
        let sealed = match secret {
            Some(secret) => Some(self.seal(organization, "signing_secret", id, secret).await?),
            None => None,
        };
        with!(self.store.writer(), c => {
            sqlx::query("UPDATE integrations SET signing_secret = $3, updated_at = $4 WHERE organization_id = $1 AND id = $2")
                .bind(organization.as_str())
                .bind(id)
                .bind(&sealed)
                .bind(self.clock.now_micros())
                .execute(c)
                .await
                .map(drop)
        })?;
        Ok(())
    }

    /// Forgets it. Requests that are spooled were accepted: they are still published. Receipts go with their age.
    ///
    /// # Errors
    /// `Error::NotFound`.
    pub(crate) async fn delete(&self, organization: &OrganizationId, id: &str) -> Result<()> {
        self.row(organization, id).await?;
        let mut tx = self.store.begin().await?;
        for text in DELETES {
            with!(tx.on(), c => sqlx::query(text).bind(organization.as_str()).bind(id).execute(c).await.map(drop))?;
        }
        tx.commit().await
    }

    /// An enabled integration and the secrets that verify now, by id alone: the sender has no credentials yet.
    ///
    /// # Errors
    /// `Error::Unavailable` while the store is away.
    pub(crate) async fn find(&self, id: &str) -> Result<Option<(Integration, Secrets)>> {
        let row = with!(self.store.reader(), c => {
            sqlx::query_as::<_, Row>("SELECT * FROM integrations WHERE id = $1 AND disabled = 0").bind(id).fetch_optional(c).await
        })?;
        let Some(row) = row else { return Ok(None) };
        let integration = row.integration()?;
        let newest = self.open(&integration.organization, "secret", id, &row.secret).await?;
        let expires_at = row.old_secret_expires_at.unwrap_or(i64::MIN);
        let old = match row.old_secret {
            Some(sealed) if expires_at > self.clock.now_micros() => {
                Some(self.open(&integration.organization, "old_secret", id, &sealed).await?)
            }
            _ => None,
        };
        let signing = match row.signing_secret {
            Some(sealed) => Some(self.open(&integration.organization, "signing_secret", id, &sealed).await?),
            None => None,
        };
        Ok(Some((integration, Secrets { newest, old, signing })))
    }

    async fn row(&self, organization: &OrganizationId, id: &str) -> Result<Row> {
        // What is no UUID is nobody's id, and PostgreSQL refuses NUL in a text.
        if id::parse_uuid(id).is_none() {
            return Err(not_found());
        }
        let row = with!(self.store.reader(), c => {
            sqlx::query_as::<_, Row>("SELECT * FROM integrations WHERE organization_id = $1 AND id = $2")
                .bind(organization.as_str())
                .bind(id)
                .fetch_optional(c)
                .await
        })?;
        row.ok_or_else(not_found)
    }

    async fn seal(
        &self,
        organization: &OrganizationId,
        column: &'static str,
        id: &str,
        secret: &Secret,
    ) -> Result<Vec<u8>> {
        let key = self.keys.of(organization).await?;
        Ok(key.seal(&place(TABLE, column, id), secret.expose().as_bytes()))
    }

    async fn open(
        &self,
        organization: &OrganizationId,
        column: &'static str,
        id: &str,
        sealed: &[u8],
    ) -> Result<Secret> {
        let key = self.keys.of(organization).await?;
        let plain = String::from_utf8(key.open(&place(TABLE, column, id), sealed)?);
        Ok(Secret::from(
            plain.map_err(|_| Error::internal(anyhow::anyhow!("a secret of integration {id} is no text")))?,
        ))
    }
}

fn print(parameters: &BTreeMap<String, String>) -> String {
    serde_json::to_string(parameters).expect("a map of texts is JSON")
}

fn not_found() -> Error {
    Error::NotFound("integration".into())
}
