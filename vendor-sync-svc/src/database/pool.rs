//! Connections to linked databases: at most four each, closed when idle, and only to addresses that the guard lets through.
//!
//! Guarantee: a connection goes to the address that was judged, not to what a name means a moment later; where the URL asks
//! for a verified certificate it goes to the name, which the certificate then proves. Without TLS only where plain http is
//! allowed too.

use std::{collections::BTreeMap, hash::Hasher as _, str::FromStr as _, sync::Arc, time::Duration};

use chassis::{config::Secret, outbound::Outbound};
use moka::sync::Cache;
use sqlx::{
    PgPool, Postgres, Transaction,
    postgres::{PgConnectOptions, PgPoolOptions, PgSslMode},
};

use super::{mapping::Mapping, refused, table::Table};
use crate::{connector::CallError, record::RecordKind};

const CONNECTIONS: u32 = 4;
/// Databases that are open at once; the least used is closed.
const OPEN: u64 = 256;
const ACQUIRE_WITHIN: Duration = Duration::from_secs(5);
const IDLE: Duration = Duration::from_secs(60);
const LIFETIME: Duration = Duration::from_secs(30 * 60);
/// After which what a database has is looked at anew, and a name resolved.
const TRUSTED_FOR: Duration = Duration::from_secs(15 * 60);
/// Set per transaction: poolers refuse settings at the start of a connection.
const LIMITS: &str = "SELECT set_config('statement_timeout', '10s', true), set_config('lock_timeout', '3s', true), \
     set_config('idle_in_transaction_session_timeout', '15s', true), set_config('TimeZone', 'UTC', true)";

/// A database that fits its mapping.
#[derive(Clone, Debug)]
pub(super) struct Opened {
    pool: PgPool,
    pub(super) tables: Arc<BTreeMap<RecordKind, Table>>,
    /// Of URL and mapping.
    said: u64,
}

impl Opened {
    pub(super) async fn begin(&self) -> sqlx::Result<Transaction<'static, Postgres>> {
        let mut tx = self.pool.begin().await?;
        sqlx::query(LIMITS).persistent(false).execute(&mut *tx).await?;
        Ok(tx)
    }
}

/// Open databases by integration. Cheap to clone.
#[derive(Clone, Debug)]
pub(super) struct Pools(Cache<String, Opened>);

impl Default for Pools {
    fn default() -> Self {
        Self(Cache::builder().max_capacity(OPEN).time_to_live(TRUSTED_FOR).build())
    }
}

impl Pools {
    /// The one that is open, if it is still of this URL and mapping; else a new one.
    pub(super) async fn get(
        &self,
        integration: &str,
        url: &Secret,
        mapping: &str,
        outbound: &Outbound,
    ) -> Result<Opened, CallError> {
        let said = digest(url.expose(), mapping);
        if let Some(opened) = self.0.get(integration).filter(|opened| opened.said == said) {
            return Ok(opened);
        }
        let mapping =
            Mapping::parse(mapping).map_err(|reason| CallError::permanent(format!("the mapping: {reason}")))?;
        let options = options(url, outbound).await?;
        let pool = PgPoolOptions::new()
            .max_connections(CONNECTIONS)
            .min_connections(0)
            .acquire_timeout(ACQUIRE_WITHIN)
            .idle_timeout(IDLE)
            .max_lifetime(LIFETIME)
            .connect_lazy_with(options);
        let tables = tables(&pool, &mapping).await?;
        let opened = Opened { pool, tables: Arc::new(tables), said };
        self.0.insert(integration.to_owned(), opened.clone());
        Ok(opened)
    }

    pub(super) fn forget(&self, integration: &str) {
        self.0.invalidate(integration);
    }
}

async fn tables(pool: &PgPool, mapping: &Mapping) -> Result<BTreeMap<RecordKind, Table>, CallError> {
    let mut connection = pool.acquire().await.map_err(refused)?;
    let (mut tables, mut faults) = (BTreeMap::new(), Vec::new());
    for (kind, mapped) in &mapping.tables {
        match Table::check(&mut connection, mapped, mapping.strict).await.map_err(refused)? {
            Ok(Some(table)) => drop(tables.insert(*kind, table)),
            Ok(None) => {}
            Err(reasons) => faults.extend(reasons),
        }
    }
    if faults.is_empty() { Ok(tables) } else { Err(CallError::permanent(faults.join("; "))) }
}

async fn options(url: &Secret, outbound: &Outbound) -> Result<PgConnectOptions, CallError> {
    let invalid =
        || CallError::unauthorized("the credential must be a URL like postgres://user:password@host/database");
    let text = url.expose();
    let parsed = url::Url::parse(text).map_err(|_| invalid())?;
    let (is_postgres, host) = (matches!(parsed.scheme(), "postgres" | "postgresql"), parsed.host_str());
    let host = host.filter(|host| is_postgres && !host.is_empty()).ok_or_else(invalid)?;
    let allowed = |(name, _): &(std::borrow::Cow<'_, str>, _)| matches!(&**name, "sslmode" | "application_name");
    if let Some((name, _)) = parsed.query_pairs().find(|pair| !allowed(pair)) {
        // Files of ours, sockets and other hosts can be named there.
        return Err(CallError::permanent(format!("the database's URL may not set {name}")));
    }
    let mode = parsed.query_pairs().find(|(name, _)| name == "sslmode").map_or("require".into(), |(_, mode)| mode);
    let mode =
        PgSslMode::from_str(&mode).map_err(|_| CallError::permanent("the database's URL has an unknown sslmode"))?;
    let is_secure = matches!(mode, PgSslMode::Require | PgSslMode::VerifyCa | PgSslMode::VerifyFull);
    if !is_secure && !outbound.allows_plain() {
        return Err(CallError::permanent("connections without TLS are not allowed: leave sslmode out of the URL"));
    }
    let addresses = outbound.resolve(host).await.map_err(|error| match error {
        chassis::outbound::AddressError::Unresolved(_) => CallError::retry(error.to_string()),
        other => CallError::permanent(other.to_string()),
    })?;
    let options = PgConnectOptions::from_str(text).map_err(|_| invalid())?;
    let options = options.ssl_mode(mode).application_name("wedsync").statement_cache_capacity(0);
    Ok(match (mode, addresses.first()) {
        (PgSslMode::VerifyFull, _) | (_, None) => options,
        (_, Some(address)) => options.host(&address.to_string()),
    })
}

fn digest(url: &str, mapping: &str) -> u64 {
    let mut hasher = std::hash::DefaultHasher::new();
    hasher.write(url.as_bytes());
    hasher.write_u8(0xff);
    hasher.write(mapping.as_bytes());
    hasher.finish()
}
