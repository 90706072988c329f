//! One mapped table as the database has it, and the three statements: look, update, insert.
//!
//! Of what a database says it has no more than [`MOST_COLUMNS`] are taken: it may be anybody's, and say anything.
//!
//! Values travel as one JSON parameter, which the database itself turns into the columns' types
//! (`jsonb_populate_record`, PostgreSQL's JSON functions): a date stays a date whatever we know of it.

use std::collections::{BTreeMap, HashMap};

use futures_util::{StreamExt as _, TryStreamExt as _};
use serde_json::{Map, Value};
use sqlx::{AssertSqlSafe, PgConnection, Postgres, Transaction};

use super::{Row, mapping::TableMapping, refused};
use crate::connector::CallError;

/// What is there, as far as the user may see it.
const COLUMNS: &str = "SELECT table_schema::text, column_name::text, udt_schema::text, udt_name::text, data_type::text, \
     is_generated = 'ALWAYS' OR is_updatable = 'NO' FROM information_schema.columns \
     WHERE table_name = $1 AND table_schema = COALESCE(NULLIF($2, ''), (SELECT table_schema FROM information_schema.tables \
     WHERE table_name = $1 AND table_schema = ANY (current_schemas(false)) \
     ORDER BY array_position(current_schemas(false), table_schema::name) LIMIT 1))";
/// PostgreSQL allows a table 1,600.
const MOST_COLUMNS: usize = 2_000;

/// In front of each statement, so that each parameter has its type whether the statement uses it or not: the row's id,
/// whose it is, what it is to say, when that was said, what it was last known to have.
const GIVEN: &str = "WITH p AS (SELECT $1::text AS id, $2::text AS organization, $3::text::jsonb AS wanted, \
     $4::timestamptz AS at, $5::text::jsonb AS base)";

/// A table that fits its mapping.
#[derive(Clone, Debug)]
pub(super) struct Table {
    name: String,
    /// Quoted, with its schema.
    quoted: String,
    key: Column,
    organization: Option<Column>,
    version: Option<Column>,
    insert: bool,
    columns: BTreeMap<String, String>,
}

/// A quoted name with its quoted type.
#[derive(Clone, Debug)]
struct Column {
    name: String,
    type_: String,
}

/// How a row compares with what it is to say.
#[derive(Clone, Copy, Debug, PartialEq, Eq, sqlx::FromRow)]
pub(super) struct Seen {
    /// It says so already.
    pub(super) equal: bool,
    /// It was changed after what it is to say was said.
    pub(super) newer: bool,
    /// Its columns are as they were last known.
    pub(super) untouched: bool,
}

#[derive(sqlx::FromRow)]
struct Found(String, String, String, String, String, bool);

type Tx<'a> = Transaction<'a, Postgres>;

impl Table {
    /// The table, if it is there; where not all of the mapping is, that is a fault if `strict`, else left out.
    pub(super) async fn check(
        connection: &mut PgConnection,
        mapping: &TableMapping,
        strict: bool,
    ) -> Result<Result<Option<Self>, Vec<String>>, CallError> {
        let rows = sqlx::query_as(COLUMNS).bind(&mapping.table).bind(&mapping.schema).persistent(false);
        let found: Vec<Found> = rows.fetch(connection).take(MOST_COLUMNS + 1).try_collect().await.map_err(refused)?;
        if found.len() > MOST_COLUMNS {
            return Err(CallError::permanent(format!("table {} has more than {MOST_COLUMNS} columns", mapping.table)));
        }
        Ok(Self::compare(mapping, strict, &found))
    }

    fn compare(mapping: &TableMapping, strict: bool, found: &[Found]) -> Result<Option<Self>, Vec<String>> {
        let table = &mapping.table;
        let Some(first) = found.first() else {
            let missing = vec![format!("there is no table {table}, or the user may not see it")];
            return if strict { Err(missing) } else { Ok(None) };
        };
        let there: HashMap<&str, &Found> = found.iter().map(|found| (found.1.as_str(), found)).collect();
        let mut faults = Vec::new();
        let mut need = |name: &String| {
            let found = there.get(name.as_str());
            if found.is_none() {
                faults.push(format!("table {table} has no column {name}"));
            }
            found.map(|found| Column { name: quote(name), type_: format!("{}.{}", quote(&found.2), quote(&found.3)) })
        };
        let key = need(&mapping.key);
        // Whose a row is must be known: without it another organization's could be written.
        let organization = mapping.organization.as_ref().map(&mut need);
        let version =
            mapping.version.as_ref().filter(|name| strict || there.contains_key(name.as_str())).map(&mut need);
        let mut columns = mapping.columns.clone();
        columns.retain(|_, column| match there.get(column.as_str()) {
            Some(found) if !found.5 => true,
            found if strict => {
                let fault = if found.is_some() { "can't write column" } else { "has no column" };
                faults.push(format!("table {table} {fault} {column}"));
                false
            }
            _ => false,
        });
        if let Some(found) = mapping.version.as_ref().and_then(|name| there.get(name.as_str()))
            && !found.4.starts_with("timestamp")
        {
            faults.push(format!("column {} of table {table} must be a timestamp, and is {}", found.1, found.4));
        }
        match key {
            Some(key) if faults.is_empty() => Ok(Some(Self {
                name: table.clone(),
                quoted: format!("{}.{}", quote(&first.0), quote(table)),
                key,
                organization: organization.flatten(),
                version: version.flatten(),
                insert: mapping.insert,
                columns,
            })),
            _ => Err(faults),
        }
    }

    pub(super) fn name(&self) -> &str {
        &self.name
    }

    pub(super) fn inserts(&self) -> bool {
        self.insert
    }

    pub(super) fn column(&self, field: &str) -> Option<&str> {
        self.columns.get(field).map(String::as_str)
    }

    /// Looks at the row, and locks it.
    pub(super) async fn see(
        &self,
        tx: &mut Tx<'_>,
        organization: &str,
        row: &Row<'_>,
        wanted: &Map<String, Value>,
        base: &Map<String, Value>,
    ) -> sqlx::Result<Option<Seen>> {
        let same = |with: &str| {
            let columns = wanted.keys().map(|column| quote(column));
            let same = columns.map(|c| format!("to_jsonb(t.{c}) IS NOT DISTINCT FROM to_jsonb({with}.{c})"));
            same.collect::<Vec<_>>().join(" AND ")
        };
        let newer = self.version.as_ref().map_or_else(
            || "false".to_owned(),
            |version| format!("COALESCE(t.{}::timestamptz > p.at, false)", version.name),
        );
        let text = format!(
            "{GIVEN} SELECT {equal} AS equal, {newer} AS newer, {untouched} AS untouched FROM p, {table} t, \
             jsonb_populate_record(NULL::{table}, p.wanted) w, jsonb_populate_record(NULL::{table}, p.base) b \
             WHERE {row} FOR UPDATE OF t",
            equal = same("w"),
            untouched = same("b"),
            table = self.quoted,
            row = self.row(),
        );
        sqlx::query_as(AssertSqlSafe(text))
            .bind(&row.key.id)
            .bind(organization)
            .bind(Value::Object(wanted.clone()).to_string())
            .bind(row.at.to_string())
            .bind(Value::Object(base.clone()).to_string())
            .persistent(false)
            .fetch_optional(&mut **tx)
            .await
    }

    /// The one statement that changes a row.
    pub(super) async fn update(
        &self,
        tx: &mut Tx<'_>,
        organization: &str,
        row: &Row<'_>,
        wanted: &Map<String, Value>,
    ) -> sqlx::Result<()> {
        let mut set: Vec<_> = wanted.keys().map(|column| quote(column)).map(|c| format!("{c} = w.{c}")).collect();
        set.extend(self.version.as_ref().map(|version| {
            let Column { name, type_ } = version;
            format!("{name} = GREATEST(t.{name}, CAST(p.at AS {type_}))")
        }));
        let text = format!(
            "{GIVEN} UPDATE {table} t SET {set} FROM p, jsonb_populate_record(NULL::{table}, p.wanted) w WHERE {row}",
            table = self.quoted,
            set = set.join(", "),
            row = self.row(),
        );
        sqlx::query(AssertSqlSafe(text))
            .bind(&row.key.id)
            .bind(organization)
            .bind(Value::Object(wanted.clone()).to_string())
            .bind(row.at.to_string())
            .bind("{}")
            .persistent(false)
            .execute(&mut **tx)
            .await
            .map(drop)
    }

    /// Whether it was made: not if there is such a row after all.
    pub(super) async fn insert(
        &self,
        tx: &mut Tx<'_>,
        organization: &str,
        row: &Row<'_>,
        all: &Map<String, Value>,
    ) -> sqlx::Result<bool> {
        let cast = |column: &Column, given: &str| format!("CAST({given} AS {})", column.type_);
        let mut columns: Vec<_> = all.keys().map(|column| quote(column)).collect();
        let mut values: Vec<_> = columns.iter().map(|column| format!("w.{column}")).collect();
        columns.push(self.key.name.clone());
        values.push(cast(&self.key, "p.id"));
        for (column, given) in [(&self.organization, "p.organization"), (&self.version, "p.at")] {
            if let Some(column) = column {
                columns.push(column.name.clone());
                values.push(cast(column, given));
            }
        }
        let text = format!(
            "{GIVEN} INSERT INTO {table} ({columns}) SELECT {values} \
             FROM p, jsonb_populate_record(NULL::{table}, p.wanted) w ON CONFLICT DO NOTHING",
            table = self.quoted,
            columns = columns.join(", "),
            values = values.join(", "),
        );
        let done = sqlx::query(AssertSqlSafe(text))
            .bind(&row.key.id)
            .bind(organization)
            .bind(Value::Object(all.clone()).to_string())
            .bind(row.at.to_string())
            .bind("{}")
            .persistent(false)
            .execute(&mut **tx)
            .await?;
        Ok(done.rows_affected() == 1)
    }

    /// The record's row, of its organization alone where the table says whose it is.
    fn row(&self) -> String {
        let of = |column: &Column, given: &str| format!("t.{} = CAST({given} AS {})", column.name, column.type_);
        let organization = self.organization.as_ref().map(|column| format!(" AND {}", of(column, "p.organization")));
        of(&self.key, "p.id") + &organization.unwrap_or_default()
    }
}

/// As an identifier: only names that the database lists come here.
fn quote(name: &str) -> String {
    format!("\"{}\"", name.replace('"', "\"\""))
}
