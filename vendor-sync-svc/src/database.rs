//! WedSync's own database as a linked system: what others resolved is written to the rows that it came from.
//!
//! One parameterised UPDATE per record in a transaction of its own, of the columns that don't say what stands, but for those
//! that somebody has changed since ([`mod@compare`]): change capture brings that change, and it is merged. The row's new state
//! comes back the same way, and is known by its link as our own. Writing again what is there already changes nothing, so that
//! every failure may be retried.
//!
//! Rows are never deleted: whether a vendor's deletion is the couple's is for people to say.
//!
//! [`mapping`] says which column holds which field, [`table`] what the database has and the statements, [`pool`] connects.
//!
//! Guarantee: no identifier reaches a statement that the database doesn't list and that isn't quoted; no value but as a
//! parameter. Reasons for people name columns and codes, never values.

pub(crate) mod compare;
mod mapping;
mod pool;
mod table;
#[cfg(test)]
mod tests;

use std::collections::{BTreeMap, BTreeSet};

use chassis::outbound::Outbound;
use serde_json::Value;

pub(crate) use self::{compare::Compared, mapping::Mapping};
use self::{
    pool::{Lent, Opened, Pools, Said},
    table::Table,
};
use crate::{
    connector::{CallError, Class},
    credential::{Credential, CredentialError, Credentials},
    integration::Integration,
    record::{Field, RecordKey},
};

/// The setting that holds an integration's own mapping.
const MAPPING: &str = "mapping";
/// The setting that holds the certificate of who signed the database's own, in PEM.
const AUTHORITY: &str = "ca";

/// What a row is to say, and what it is known to have said.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Row<'a> {
    pub(crate) key: &'a RecordKey,
    /// What stands.
    pub(crate) stands: &'a BTreeMap<String, Field>,
    /// What it has as far as we know (its link's `synced`).
    pub(crate) base: &'a BTreeMap<String, Value>,
    /// What its own events said last.
    pub(crate) said: &'a BTreeMap<String, Value>,
}

/// Writes to linked databases. Cheap to clone.
#[derive(Clone)]
pub(crate) struct Database {
    credentials: Credentials,
    outbound: Outbound,
    pools: Pools,
}

impl Database {
    pub(crate) fn new(credentials: Credentials, outbound: Outbound) -> Self {
        Self { credentials, outbound, pools: Pools::default() }
    }

    /// How the record's row compares with what stands. A row that is missing is behind in all, if it may be made.
    ///
    /// # Errors
    /// `Class::Permanent` for what can't be written as it is, `Class::Unauthorized` for a credential that the database
    /// refuses, `Class::Retry` for everything that passes.
    pub(crate) async fn look(&self, integration: &Integration, row: &Row<'_>) -> Result<Compared, CallError> {
        let opened = self.open(integration).await?;
        let Some(table) = opened.tables.get(&row.key.kind) else { return Ok(Compared::default()) };
        let mut connection = opened.connect().await?;
        let looked = async {
            let mut tx = connection.begin().await.map_err(refused)?;
            compare(&mut tx, table, row, false).await
        };
        self.judged(integration, self.pools.in_time(looked).await)
    }

    /// Has the row say what stands in `fields`, but for those that somebody has changed meanwhile. Returns once it is
    /// committed there: what was `behind` is written.
    ///
    /// # Errors
    /// As [`Database::look`].
    pub(crate) async fn write(
        &self,
        integration: &Integration,
        row: &Row<'_>,
        fields: &BTreeSet<String>,
    ) -> Result<Compared, CallError> {
        let opened = self.open(integration).await?;
        let Some(table) = opened.tables.get(&row.key.kind) else { return Ok(Compared::default()) };
        let mut connection = opened.connect().await?;
        self.judged(integration, self.pools.in_time(in_transaction(&mut connection, table, row, fields)).await)
    }

    fn judged<T>(&self, integration: &Integration, result: Result<T, CallError>) -> Result<T, CallError> {
        if result.as_ref().is_err_and(|error| error.class == Class::Permanent) {
            // The database may have been altered: what it has is looked at anew.
            self.pools.forget(&integration.id);
        }
        result
    }

    /// Connects with `credential`, in force or not, and compares the mapping with what is there: what a test of the
    /// connection shows. The connection is closed again.
    ///
    /// # Errors
    /// As [`Database::look`]; a mapping that doesn't fit names each table and column at fault, and a certificate that can't
    /// be believed is `Class::Permanent`: somebody must do something about it.
    pub(crate) async fn check(&self, integration: &Integration, credential: &Credential) -> Result<(), CallError> {
        pool::look(&Said::by(integration, credential)?, &self.outbound).await
    }

    async fn open(&self, integration: &Integration) -> Result<Opened, CallError> {
        let credential = self.credentials.of(integration).await.map_err(|error| match error {
            CredentialError::NeedsReconnect(reason) => CallError::unauthorized(reason),
            CredentialError::Unavailable(reason) => CallError::retry(reason),
        })?;
        self.pools.get(&integration.id, &Said::by(integration, &credential)?, &self.outbound).await
    }
}

impl<'a> Said<'a> {
    fn by(integration: &'a Integration, credential: &'a Credential) -> Result<Self, CallError> {
        let Credential::Key(url) = credential else {
            return Err(CallError::unauthorized("the credential must be a PostgreSQL URL, as a key"));
        };
        let given = |name: &str| integration.settings.parameters.get(name).map(String::as_str).unwrap_or_default();
        Ok(Self { url, mapping: given(MAPPING), authority: given(AUTHORITY) })
    }
}

/// Holds an integration's settings to what is read of them here.
///
/// # Errors
/// Name and reason of the first that doesn't hold.
pub(crate) fn check_parameters(given: &BTreeMap<String, String>) -> Result<(), (String, String)> {
    for (name, value) in given {
        let checked = match name.as_str() {
            MAPPING => Mapping::parse(value).map(drop),
            AUTHORITY if value.is_empty() || pool::is_certificate(value) => Ok(()),
            AUTHORITY => Err("must be a certificate in PEM, or several".to_owned()),
            _ => Err("is no setting of it".to_owned()),
        };
        checked.map_err(|reason| (name.clone(), reason))?;
    }
    Ok(())
}

async fn compare(tx: &mut table::Tx<'_>, table: &Table, row: &Row<'_>, lock: bool) -> Result<Compared, CallError> {
    let columns = table.mapped(row.stands.keys());
    if columns.is_empty() {
        return Ok(Compared::default());
    }
    match table.see(tx, row, &columns, lock).await.map_err(refused)? {
        Some(seen) => Ok(Compared::of(row, &columns, &seen)),
        None if table.inserts() => {
            let behind = columns.iter().map(|(name, _)| (*name).clone()).collect();
            Ok(Compared { behind, is_missing: true, ..Compared::default() })
        }
        None => {
            let reason = format!("table {} has no row of this organization with this id", table.name());
            Err(CallError::permanent(reason))
        }
    }
}

async fn in_transaction(
    connection: &mut Lent,
    table: &Table,
    row: &Row<'_>,
    fields: &BTreeSet<String>,
) -> Result<Compared, CallError> {
    let mut tx = connection.begin().await.map_err(refused)?;
    let mut compared = compare(&mut tx, table, row, true).await?;
    compared.behind.retain(|name| fields.contains(name));
    let columns = table.mapped(compared.behind.iter());
    if columns.is_empty() {
        return Ok(compared);
    }
    if !compared.is_missing {
        table.update(&mut tx, row, &columns).await.map_err(refused)?;
    } else if !table.insert(&mut tx, row, &columns).await.map_err(refused)? {
        // Somebody made it meanwhile, or it is another organization's.
        let reason = format!("a row of table {} with this key was made meanwhile", table.name());
        return Err(CallError::retry(reason));
    }
    tx.commit().await.map_err(refused)?;
    Ok(compared)
}

/// What a failure means. Of the database's own message nothing is told on: it may quote a value.
fn refused(error: sqlx::Error) -> CallError {
    let sqlx::Error::Database(cause) = &error else {
        // A certificate is renewed, and the change must still be there then.
        if let Some(reason) = pool::insecure(&error) {
            return CallError::retry(reason);
        }
        return match error {
            sqlx::Error::Configuration(_) => CallError::permanent("the database's URL can't be used"),
            sqlx::Error::PoolTimedOut => CallError::retry("the database has no connection free"),
            _ => CallError::retry("the database can't be reached, or the connection broke"),
        };
    };
    let code = cause.code().unwrap_or_default();
    let at = cause.constraint().map(|name| format!(", by its rule {name}")).unwrap_or_default();
    let at = cause.table().map(|name| format!(", table {name}")).unwrap_or_default() + &at;
    let reason = format!("the database refused it: {} ({code}){at}", condition(&code));
    // PostgreSQL, appendix A: the first two characters are the class.
    match code.get(..2).unwrap_or_default() {
        "28" => CallError::unauthorized(reason),
        "08" | "40" | "53" | "57" | "58" | "XX" => CallError::retry(reason),
        _ if matches!(code.as_ref(), "55P03" | "25006") => CallError::retry(reason),
        _ => CallError::permanent(reason),
    }
}

fn condition(code: &str) -> &'static str {
    match code {
        "22P02" | "22007" | "22008" => "a value isn't of its column's type",
        "22001" => "a text is too long for its column",
        "22003" => "a number is too large for its column",
        "23502" => "a column needs a value",
        "23503" => "a row that it refers to isn't there",
        "23505" => "another row has this value",
        "23514" => "a check failed",
        "25006" => "it takes no writes now",
        "28P01" | "28000" => "the user or the password is wrong",
        "3D000" => "there is no such database",
        "42501" => "the user may not do this",
        "42703" => "a column is gone",
        "42P01" => "a table is gone",
        "55P03" => "somebody holds the row",
        "57014" => "it took too long",
        _ => "see its log",
    }
}
