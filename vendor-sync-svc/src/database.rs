//! WedSync's own database as a linked system: what others resolved is written to the rows that it came from.
//!
//! One parameterised UPDATE per record in a transaction of its own, only if the row has something else and nobody changed
//! it since: then change capture brings that change, and it is merged. The row's new state comes back the same way, and is
//! known by its link as our own. Writing again what is there already changes nothing, so that every failure may be retried.
//! Rows are never deleted: whether a vendor's deletion is the couple's is for people to say.
//!
//! [`mapping`] says which column holds which field, [`table`] what the database has and the statements, [`pool`] connects.
//!
//! Guarantee: no identifier reaches a statement that the database doesn't list and that isn't quoted; no value but as a
//! parameter. Reasons for people name columns and codes, never values.

mod mapping;
mod pool;
mod table;
#[cfg(test)]
mod tests;

use std::collections::BTreeMap;

use chassis::outbound::Outbound;
use jiff::Timestamp;
use serde_json::{Map, Value};

pub(crate) use self::mapping::Mapping;
use self::{
    pool::{Lent, Opened, Pools, Said},
    table::{Seen, Table},
};
use crate::{
    connector::{CallError, Class},
    credential::{Credential, CredentialError, Credentials},
    integration::Integration,
    record::RecordKey,
};

/// The setting that holds an integration's own mapping.
const MAPPING: &str = "mapping";
/// The setting that holds the certificate of who signed the database's own, in PEM.
const AUTHORITY: &str = "ca";

/// What a row is to say.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Row<'a> {
    pub(crate) key: &'a RecordKey,
    /// All that stands.
    pub(crate) fields: &'a BTreeMap<String, Value>,
    /// Those to write; empty: all.
    pub(crate) changed: &'a [String],
    /// What the row was last known to have (its link's `synced`).
    pub(crate) base: &'a BTreeMap<String, Value>,
    /// When the newest of the changes was made.
    pub(crate) at: Timestamp,
}

/// What came of it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Written {
    Updated,
    Inserted,
    /// The row says so already.
    Unchanged,
    /// Somebody changed the row since: what they said comes by itself.
    Newer,
    /// None of it has a column.
    NotMapped,
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

    /// Has the record's row say what stands. Returns once it is committed there.
    ///
    /// # Errors
    /// `Class::Permanent` for what can't be written as it is, `Class::Unauthorized` for a credential that the database
    /// refuses, `Class::Retry` for everything that passes.
    pub(crate) async fn write(&self, integration: &Integration, row: &Row<'_>) -> Result<Written, CallError> {
        let opened = self.open(integration).await?;
        let Some(table) = opened.tables.get(&row.key.kind) else { return Ok(Written::NotMapped) };
        let mut connection = opened.connect().await?;
        let written = self.pools.in_time(in_transaction(&mut connection, table, row)).await;
        if let Err(error) = &written
            && error.class == Class::Permanent
        {
            // The database may have been altered: what it has is looked at anew.
            self.pools.forget(&integration.id);
        }
        written
    }

    /// Connects with `credential`, in force or not, and compares the mapping with what is there: what a test of the
    /// connection shows. The connection is closed again.
    ///
    /// # Errors
    /// As [`Database::write`]; a mapping that doesn't fit names each table and column at fault, and a certificate that can't
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

async fn in_transaction(connection: &mut Lent, table: &Table, row: &Row<'_>) -> Result<Written, CallError> {
    let organization = row.key.organization.as_str();
    let said = |fields: &BTreeMap<String, Value>, names: &[String]| -> Map<String, Value> {
        let mapped = names.iter().filter_map(|name| Some((table.column(name)?, name)));
        mapped.map(|(column, name)| (column.to_owned(), fields.get(name).cloned().unwrap_or_default())).collect()
    };
    let all: Vec<String> = row.fields.keys().cloned().collect();
    let names = if row.changed.is_empty() { &all } else { row.changed };
    let (wanted, base) = (said(row.fields, names), said(row.base, names));
    if wanted.is_empty() {
        return Ok(Written::NotMapped);
    }
    let mut tx = connection.begin().await.map_err(refused)?;
    let seen = table.see(&mut tx, organization, row, &wanted, &base).await.map_err(refused)?;
    let written = match seen {
        Some(Seen { equal: true, .. }) => return Ok(Written::Unchanged),
        Some(Seen { newer: true, untouched: false, .. }) => return Ok(Written::Newer),
        Some(_) => {
            table.update(&mut tx, organization, row, &wanted).await.map_err(refused)?;
            Written::Updated
        }
        None if table.inserts() => {
            let inserted = table.insert(&mut tx, organization, row, &said(row.fields, &all)).await.map_err(refused)?;
            // Somebody made it meanwhile, or it is another organization's.
            if !inserted {
                return Err(CallError::retry(format!(
                    "a row of table {} with this key was made meanwhile",
                    table.name()
                )));
            }
            Written::Inserted
        }
        None => {
            return Err(CallError::permanent(format!(
                "table {} has no row of this organization with this id",
                table.name()
            )));
        }
    };
    tx.commit().await.map_err(refused)?;
    Ok(written)
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
