//! Connections to linked databases: at most four each, closed when idle, and only to addresses that the guard lets through.
//!
//! Guarantees: a connection goes to the address that was judged, not to what a name means a moment later; where the URL asks
//! for a verified certificate it goes to the name, which the certificate then proves. Without TLS only where plain http is
//! allowed too. What is said there comes from the URL alone, never from our own environment. Whatever the server does, a
//! caller is answered within [`ACQUIRE_WITHIN`] and [`ANSWER_WITHIN`].

use std::{
    borrow::Cow,
    collections::BTreeMap,
    hash::Hasher as _,
    ops::{Deref, DerefMut},
    str::FromStr as _,
    sync::Arc,
    time::Duration,
};

use chassis::{config::Secret, outbound::Outbound};
use moka::sync::Cache;
use percent_encoding::percent_decode_str;
use rustls::{
    CertificateError as Untrusted,
    pki_types::{CertificateDer, pem::PemObject as _},
};
use sqlx::{
    Connection as _, PgConnection, PgPool, Postgres, Transaction,
    pool::PoolConnection,
    postgres::{PgConnectOptions, PgPoolOptions, PgSslMode},
};
use tokio::time::timeout;

use super::{mapping::Mapping, refused, table::Table};
use crate::{connector::CallError, record::RecordKind};

const CONNECTIONS: u32 = 4;
/// Databases that are open at once; the least used is closed.
const OPEN: u64 = 256;
const ACQUIRE_WITHIN: Duration = Duration::from_secs(5);
/// Connecting, and reading what it has.
const LOOK_WITHIN: Duration = Duration::from_secs(10);
/// All that is said on a connection for one record, or to learn what the database has.
const ANSWER_WITHIN: Duration = Duration::from_secs(20);
/// After which a connection that is given back, and says nothing, is cut.
const RETURN_WITHIN: Duration = Duration::from_secs(5);
const IDLE: Duration = Duration::from_secs(60);
const LIFETIME: Duration = Duration::from_secs(30 * 60);
/// After which what a database has is looked at anew, and a name resolved.
const TRUSTED_FOR: Duration = Duration::from_secs(15 * 60);
const PORT: u16 = 5432;
/// Set per transaction: poolers refuse settings at the start of a connection.
/// A server may ignore them: that is what the bounds above are for.
const LIMITS: &str = "SELECT set_config('statement_timeout', '10s', true), set_config('lock_timeout', '3s', true), \
     set_config('idle_in_transaction_session_timeout', '15s', true), set_config('TimeZone', 'UTC', true)";

/// A database that fits its mapping.
#[derive(Clone, Debug)]
pub(super) struct Opened {
    pool: PgPool,
    pub(super) tables: Arc<BTreeMap<RecordKind, Table>>,
    /// Of all that was said.
    said: u64,
}

impl Opened {
    pub(super) async fn connect(&self) -> Result<Lent, CallError> {
        Lent::of(&self.pool).await
    }
}

/// A connection for a while. Given back as it is, be it in the middle of something: what it still has to say is heard out
/// for [`RETURN_WITHIN`], where sqlx alone would wait for ever.
#[derive(Debug)]
pub(super) struct Lent(PoolConnection<Postgres>);

impl Lent {
    async fn of(pool: &PgPool) -> Result<Self, CallError> {
        pool.acquire().await.map(Self).map_err(refused)
    }

    pub(super) async fn begin(&mut self) -> sqlx::Result<Transaction<'_, Postgres>> {
        let mut tx = self.0.begin().await?;
        sqlx::query(LIMITS).persistent(false).execute(&mut *tx).await?;
        Ok(tx)
    }
}

impl Deref for Lent {
    type Target = PgConnection;

    fn deref(&self) -> &PgConnection {
        &self.0
    }
}

impl DerefMut for Lent {
    fn deref_mut(&mut self) -> &mut PgConnection {
        &mut self.0
    }
}

impl Drop for Lent {
    #[expect(
        clippy::disallowed_methods,
        reason = "what sqlx does at this place, but with a bound; it has nothing to drain"
    )]
    fn drop(&mut self) {
        tokio::spawn(timeout(RETURN_WITHIN, self.0.return_to_pool()));
    }
}

/// What is said of a database, by whoever connected it.
#[derive(Clone, Copy, Debug)]
pub(super) struct Said<'a> {
    pub(super) url: &'a Secret,
    pub(super) mapping: &'a str,
    /// Certificates in PEM; empty: the public authorities alone are trusted.
    pub(super) authority: &'a str,
}

impl Said<'_> {
    async fn read(&self, outbound: &Outbound) -> Result<(Mapping, PgConnectOptions), CallError> {
        let mapping = Mapping::parse(self.mapping);
        let mapping = mapping.map_err(|reason| CallError::permanent(format!("the mapping: {reason}")))?;
        let options = options(self.url, outbound).await?;
        Ok(match self.authority {
            "" => (mapping, options),
            authority => (mapping, options.ssl_root_cert_from_pem(authority.as_bytes().to_vec())),
        })
    }

    fn digest(&self) -> u64 {
        let mut hasher = std::hash::DefaultHasher::new();
        for text in [self.url.expose(), self.mapping, self.authority] {
            hasher.write(text.as_bytes());
            hasher.write_u8(0xff);
        }
        hasher.finish()
    }
}

/// Open databases by integration. Cheap to clone.
#[derive(Clone, Debug)]
pub(super) struct Pools {
    open: Cache<String, Opened>,
    patience: Duration,
}

impl Default for Pools {
    fn default() -> Self {
        Self::patient(ANSWER_WITHIN)
    }
}

impl Pools {
    /// Which waits as long for what a database answers.
    pub(super) fn patient(patience: Duration) -> Self {
        Self { open: Cache::builder().max_capacity(OPEN).time_to_live(TRUSTED_FOR).build(), patience }
    }

    /// What comes of it in time.
    pub(super) async fn in_time<T>(&self, work: impl Future<Output = Result<T, CallError>>) -> Result<T, CallError> {
        let late = |_| Err(CallError::retry("the database didn't answer in time"));
        timeout(self.patience, work).await.unwrap_or_else(late)
    }

    /// The one that is open, if the same is still said of it; else a new one.
    pub(super) async fn get(
        &self,
        integration: &str,
        said: &Said<'_>,
        outbound: &Outbound,
    ) -> Result<Opened, CallError> {
        let digest = said.digest();
        if let Some(opened) = self.open.get(integration).filter(|opened| opened.said == digest) {
            return Ok(opened);
        }
        let (mapping, options) = said.read(outbound).await?;
        let pool = PgPoolOptions::new()
            .max_connections(CONNECTIONS)
            .min_connections(0)
            .acquire_timeout(ACQUIRE_WITHIN)
            .idle_timeout(IDLE)
            .max_lifetime(LIFETIME)
            .connect_lazy_with(options);
        let mut connection = Lent::of(&pool).await?;
        let tables = self.in_time(tables(&mut connection, &mapping)).await?;
        drop(connection);
        let opened = Opened { pool, tables: Arc::new(tables), said: digest };
        self.open.insert(integration.to_owned(), opened.clone());
        Ok(opened)
    }

    pub(super) fn forget(&self, integration: &str) {
        self.open.invalidate(integration);
    }
}

/// Whether a database can be connected to and fits its mapping.
///
/// # Errors
/// Why not.
pub(super) async fn look(said: &Said<'_>, outbound: &Outbound) -> Result<(), CallError> {
    let (mapping, options) = said.read(outbound).await?;
    let looked = async {
        let connected = PgConnection::connect_with(&options).await;
        let mut connection =
            connected.map_err(|error| insecure(&error).map_or_else(|| refused(error), CallError::permanent))?;
        tables(&mut connection, &mapping).await?;
        // What matters was seen.
        drop(connection.close().await);
        Ok(())
    };
    let looked = tokio::time::timeout(LOOK_WITHIN, looked).await;
    looked.unwrap_or_else(|_| Err(CallError::retry("the database doesn't answer")))
}

/// Why a connection is not secure, and what to do about it; none: what failed is something else.
pub(super) fn insecure(error: &sqlx::Error) -> Option<&'static str> {
    let cause = match error {
        sqlx::Error::Tls(_) => return Some("no secure connection to the database: it offers no TLS"),
        sqlx::Error::Io(cause) => cause.get_ref()?.downcast_ref::<rustls::Error>()?,
        _ => return None,
    };
    let rustls::Error::InvalidCertificate(cause) = cause else {
        return Some("no secure connection to the database: they speak no common TLS");
    };
    Some(match cause {
        Untrusted::NotValidForName | Untrusted::NotValidForNameContext { .. } => {
            "the database's certificate is for another host: say the one in the URL that it is for"
        }
        Untrusted::UnknownIssuer | Untrusted::BadSignature => {
            "nobody who is trusted signed the database's certificate: give who did as the parameter `ca`"
        }
        Untrusted::Expired | Untrusted::ExpiredContext { .. } => {
            "the database's certificate has expired: renew it there"
        }
        _ => "the database's certificate can't be believed",
    })
}

/// Whether a text is one certificate in PEM or several, and nothing else.
pub(super) fn is_certificate(text: &str) -> bool {
    let certificates: Result<Vec<_>, _> = CertificateDer::pem_slice_iter(text.as_bytes()).collect();
    let mut roots = rustls::RootCertStore::empty();
    certificates.is_ok_and(|all| !all.is_empty() && all.into_iter().all(|one| roots.add(one).is_ok()))
}

async fn tables(connection: &mut PgConnection, mapping: &Mapping) -> Result<BTreeMap<RecordKind, Table>, CallError> {
    let (mut tables, mut faults) = (BTreeMap::new(), Vec::new());
    for (kind, mapped) in &mapping.tables {
        match Table::check(connection, mapped, mapping.strict).await? {
            Ok(Some(table)) => drop(tables.insert(*kind, table)),
            Ok(None) => {}
            Err(reasons) => faults.extend(reasons),
        }
    }
    if faults.is_empty() { Ok(tables) } else { Err(CallError::permanent(faults.join("; "))) }
}

/// What sqlx takes from our environment, sends to any server, and can't be told to leave out.
const INHERITED: [&str; 3] = ["PGOPTIONS", "PGSSLCERT", "PGSSLKEY"];

/// Where to, and who we are there: by the URL alone. What the URL leaves out sqlx would take from our own environment.
pub(super) async fn options(url: &Secret, outbound: &Outbound) -> Result<PgConnectOptions, CallError> {
    if let Some(name) = INHERITED.into_iter().find(|name| std::env::var_os(name).is_some()) {
        return Err(CallError::retry(format!(
            "linked databases are not connected to while our environment sets {name}"
        )));
    }
    let invalid =
        || CallError::unauthorized("the credential must be a URL like postgres://user:password@host/database");
    let parsed = url::Url::parse(url.expose()).map_err(|_| invalid())?;
    let (is_postgres, host) = (matches!(parsed.scheme(), "postgres" | "postgresql"), parsed.host_str());
    let host = host.filter(|host| is_postgres && !host.is_empty()).ok_or_else(invalid)?;
    let said = |text| percent_decode_str(text).decode_utf8().map_err(|_| invalid());
    let (user, password) = (said(parsed.username())?, said(parsed.password().unwrap_or_default())?);
    let database = said(parsed.path().trim_start_matches('/'))?;
    if user.is_empty() || database.is_empty() {
        return Err(invalid());
    }
    let allowed = |(name, _): &(Cow<'_, str>, _)| matches!(&**name, "sslmode" | "application_name");
    if let Some((name, _)) = parsed.query_pairs().find(|pair| !allowed(pair)) {
        // Files of ours, sockets and other hosts can be named there.
        return Err(CallError::permanent(format!("the database's URL may not set {name}")));
    }
    let mode =
        parsed.query_pairs().find(|(name, _)| name == "sslmode").map_or_else(|| "require".into(), |(_, mode)| mode);
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
    let host = match (mode, addresses.first()) {
        (PgSslMode::VerifyFull, _) | (_, None) => host.to_owned(),
        (_, Some(address)) => address.to_string(),
    };
    let options = PgConnectOptions::new_without_pgpass().host(&host).port(parsed.port().unwrap_or(PORT));
    let options = options.username(&user).password(&password).database(&database).ssl_mode(mode);
    Ok(options.application_name("wedsync").statement_cache_capacity(0))
}
