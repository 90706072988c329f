//! Every connector that there is: those that are compiled in, and each organization's own in the store.
//!
//! One name space: an organization's connector can't have a built-in one's name. A connector that integrations use stays
//! one that they can be used with, and can't be deleted.

use std::{
    collections::BTreeMap,
    sync::{Arc, LazyLock},
};

use chassis::{
    clock::{Clock, from_micros},
    error::{Error, Result},
    id::OrganizationId,
    store::Store,
    with,
};
use jiff::Timestamp;
use moka::sync::Cache;

use super::{Connector, Fault, built_in::BUILT_IN, parse::is_connector_name};

/// Connectors of one organization.
const MOST: i64 = 100;
/// Integrations that a new text is held against.
const MOST_USERS: i64 = 10_000;
/// Compiled ones in memory; the least used make room.
const HELD: u64 = 1_024;

static COMPILED: LazyLock<BTreeMap<&str, Arc<Connector>>> = LazyLock::new(|| {
    let compile = |(name, text): &(&'static str, &str)| {
        let connector = Connector::parse(text).expect("a test parses every built-in connector");
        (*name, Arc::new(connector))
    };
    BUILT_IN.iter().map(compile).collect()
});

/// The text of a built-in connector.
pub(crate) fn built_in_text(name: &str) -> Option<&'static str> {
    BUILT_IN.iter().find(|(other, _)| *other == name).map(|(_, text)| *text)
}

/// All connectors. Cheap to clone.
#[derive(Clone, Debug)]
pub(crate) struct Catalogue {
    store: Store,
    clock: Clock,
    held: Cache<(OrganizationId, String, i64), Arc<Connector>>,
}

/// One of them.
#[derive(Clone, Debug)]
pub(crate) struct Entry {
    pub(crate) connector: Arc<Connector>,
    /// Of an organization's own; none: it is built in.
    pub(crate) own: Option<Own>,
}

/// How an organization's own one is kept.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Own {
    pub(crate) version: u64,
    pub(crate) created_at: Timestamp,
    pub(crate) updated_at: Timestamp,
}

#[derive(sqlx::FromRow)]
struct Row {
    name: String,
    source: String,
    version: i64,
    created_at: i64,
    updated_at: i64,
}

/// Why a text is not put.
#[derive(Debug)]
pub(crate) enum Refused {
    Faults(Vec<Fault>),
    Error(Error),
}

impl<E: Into<Error>> From<E> for Refused {
    fn from(error: E) -> Self {
        Self::Error(error.into())
    }
}

impl Catalogue {
    /// Over the tables of `store`.
    pub(crate) fn new(store: Store, clock: Clock) -> Self {
        Self { store, clock, held: Cache::new(HELD) }
    }

    /// One that is compiled in.
    pub(crate) fn built_in(name: &str) -> Option<Arc<Connector>> {
        COMPILED.get(name).cloned()
    }

    /// All that are compiled in, by their names.
    pub(crate) fn all_built_in() -> impl Iterator<Item = Arc<Connector>> {
        COMPILED.values().cloned()
    }

    /// A built-in one, or one of the organization's own.
    ///
    /// # Errors
    /// `Error::NotFound` also for another organization's.
    pub(crate) async fn get(&self, organization: &OrganizationId, name: &str) -> Result<Entry> {
        if let Some(connector) = Self::built_in(name) {
            return Ok(Entry { connector, own: None });
        }
        if !is_connector_name(name) {
            return Err(not_found());
        }
        let row = with!(self.store.reader(), c => {
            sqlx::query_as::<_, Row>("SELECT * FROM connectors WHERE organization_id = $1 AND name = $2")
                .bind(organization.as_str())
                .bind(name)
                .fetch_optional(c)
                .await
        })?;
        self.entry(organization, row.ok_or_else(not_found)?)
    }

    /// The organization's own, by their names, at most 100.
    ///
    /// # Errors
    /// `Error::Unavailable` while the store is away.
    pub(crate) async fn own(&self, organization: &OrganizationId) -> Result<Vec<Entry>> {
        let rows = with!(self.store.reader(), c => {
            sqlx::query_as::<_, Row>("SELECT * FROM connectors WHERE organization_id = $1 ORDER BY name LIMIT $2")
                .bind(organization.as_str())
                .bind(MOST)
                .fetch_all(c)
                .await
        })?;
        rows.into_iter().map(|row| self.entry(organization, row)).collect()
    }

    /// Keeps a new text, if `version` is still the one in force; 0 for a connector that isn't there yet.
    ///
    /// # Errors
    /// What is wrong with the text; `Error::Aborted` if somebody else changed it meanwhile; `Error::FailedPrecondition` if
    /// an integration could no longer be used with it.
    pub(crate) async fn put(
        &self,
        organization: &OrganizationId,
        source: &str,
        version: u64,
    ) -> Result<Entry, Refused> {
        let connector = Connector::parse(source).map_err(Refused::Faults)?;
        let name = connector.name();
        if let Some(fault) = Self::check_name(name) {
            return Err(Refused::Faults(vec![fault]));
        }
        if version == 0 {
            self.insert(organization, &connector).await?;
        } else {
            self.check_users(organization, &connector).await?;
            self.update(organization, &connector, version).await?;
        }
        Ok(self.get(organization, name).await?)
    }

    /// What is wrong with the name of an organization's own.
    pub(crate) fn check_name(name: &str) -> Option<Fault> {
        let reason = "is a built-in connector: choose another name".to_owned();
        built_in_text(name).map(|_| Fault { at: "name".to_owned(), reason })
    }

    async fn insert(&self, organization: &OrganizationId, connector: &Connector) -> Result<()> {
        let now = self.clock.now_micros();
        let inserted = with!(self.store.writer(), c => {
            sqlx::query(
                "INSERT INTO connectors (organization_id, name, source, version, created_at, updated_at) \
                 SELECT $1, $2, $3, 1, $4, $4 WHERE (SELECT count(*) FROM connectors WHERE organization_id = $1) < $5 \
                 ON CONFLICT (organization_id, name) DO NOTHING",
            )
            .bind(organization.as_str())
            .bind(connector.name())
            .bind(connector.source())
            .bind(now)
            .bind(MOST)
            .execute(c)
            .await
            .map(|done| done.rows_affected())
        })?;
        if inserted > 0 {
            return Ok(());
        }
        match self.get(organization, connector.name()).await {
            Ok(_) => Err(aborted(connector.name(), 0)),
            Err(Error::NotFound(_)) => Err(Error::FailedPrecondition(format!("there are {MOST} connectors already"))),
            Err(error) => Err(error),
        }
    }

    async fn update(&self, organization: &OrganizationId, connector: &Connector, version: u64) -> Result<()> {
        let changed = with!(self.store.writer(), c => {
            sqlx::query(
                "UPDATE connectors SET source = $4, version = version + 1, updated_at = $5 \
                 WHERE organization_id = $1 AND name = $2 AND version = $3",
            )
            .bind(organization.as_str())
            .bind(connector.name())
            .bind(version.cast_signed())
            .bind(connector.source())
            .bind(self.clock.now_micros())
            .execute(c)
            .await
            .map(|done| done.rows_affected())
        })?;
        if changed > 0 { Ok(()) } else { Err(aborted(connector.name(), version)) }
    }

    /// Forgets it, if no integration uses it.
    ///
    /// # Errors
    /// `Error::NotFound`; `Error::FailedPrecondition` naming an integration that uses it.
    pub(crate) async fn delete(&self, organization: &OrganizationId, name: &str) -> Result<()> {
        if built_in_text(name).is_some() {
            return Err(Error::FailedPrecondition(format!("{name} is built in and can't be deleted")));
        }
        self.get(organization, name).await?;
        if let Some((integration, _)) = self.users(organization, name, 1).await?.first() {
            return Err(Error::FailedPrecondition(format!("integration {integration} uses {name}: delete it first")));
        }
        with!(self.store.writer(), c => {
            sqlx::query(
                "DELETE FROM connectors WHERE organization_id = $1 AND name = $2 AND NOT EXISTS \
                 (SELECT 1 FROM integrations WHERE organization_id = $1 AND connector = $2)",
            )
            .bind(organization.as_str())
            .bind(name)
            .execute(c)
            .await
            .map(drop)
        })?;
        Ok(())
    }

    /// Integrations that use it, with their parameters.
    async fn users(&self, organization: &OrganizationId, name: &str, limit: i64) -> Result<Vec<(String, String)>> {
        with!(self.store.reader(), c => {
            sqlx::query_as::<_, (String, String)>(
                "SELECT id, parameters FROM integrations WHERE organization_id = $1 AND connector = $2 ORDER BY id LIMIT $3",
            )
            .bind(organization.as_str())
            .bind(name)
            .bind(limit)
            .fetch_all(c)
            .await
        })
        .map_err(Error::from)
    }

    /// What is used must stay of its kind, and take the settings that its users gave.
    async fn check_users(&self, organization: &OrganizationId, connector: &Connector) -> Result<()> {
        let name = connector.name();
        let users = self.users(organization, name, MOST_USERS).await?;
        if users.is_empty() {
            return Ok(());
        }
        let current = self.get(organization, name).await?.connector;
        if current.kind() != connector.kind() {
            return Err(Error::FailedPrecondition(format!("kind: integrations use {name} as {}", current.kind())));
        }
        for (integration, parameters) in users {
            let parameters: BTreeMap<String, String> = serde_json::from_str(&parameters).map_err(Error::internal)?;
            connector.check_settings(&parameters).map_err(|(setting, reason)| {
                Error::FailedPrecondition(format!("settings.{setting}: of integration {integration} {reason}"))
            })?;
        }
        Ok(())
    }

    fn entry(&self, organization: &OrganizationId, row: Row) -> Result<Entry> {
        let key = (organization.clone(), row.name.clone(), row.version);
        let compile = || {
            let faults = |faults: Vec<Fault>| {
                let faults: Vec<String> = faults.iter().map(Fault::to_string).collect();
                anyhow::anyhow!("connector {} no longer parses: {}", row.name, faults.join("; "))
            };
            Connector::parse(&row.source).map(Arc::new).map_err(faults)
        };
        let connector =
            self.held.try_get_with(key, compile).map_err(|error| Error::internal(anyhow::anyhow!("{error}")))?;
        let own = Own {
            version: row.version.unsigned_abs(),
            created_at: from_micros(row.created_at),
            updated_at: from_micros(row.updated_at),
        };
        Ok(Entry { connector, own: Some(own) })
    }
}

fn aborted(name: &str, version: u64) -> Error {
    Error::Aborted(format!("connector {name} is not at version {version}: read it again"))
}

fn not_found() -> Error {
    Error::NotFound("connector".into())
}
