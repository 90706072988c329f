//! One mapped table as the database has it, and the three statements: look, update, insert.
//!
//! What a look finds is compared in `compare`. Of what a database says it has no more than [`MOST_COLUMNS`] are taken: it may
//! be anybody's, and say anything.
//!
//! Values travel as one JSON parameter, which the database itself turns into the columns' types
//! (`jsonb_populate_record`, PostgreSQL's JSON functions): a date stays a date whatever we know of it.

use std::collections::{BTreeMap, HashMap};

use futures_util::{StreamExt as _, TryStreamExt as _};
use jiff::Timestamp;
use serde_json::{Map, Value};
use sqlx::{AssertSqlSafe, PgConnection, Postgres, Transaction};

use super::{Row, compare::Seen, mapping::TableMapping, refused};
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
/// whose it is, what it is to say, when that was said, what it is known to have said.
const GIVEN: &str = "WITH p AS (SELECT $1::text AS id, $2::text AS organization, $3::text::jsonb AS wanted, \
     $4::text[] AS times, $5::text::jsonb AS known)";

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

#[derive(sqlx::FromRow)]
struct Found(String, String, String, String, String, bool);

pub(super) type Tx<'a> = Transaction<'a, Postgres>;

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

    /// The fields that have a column, each with its column.
    pub(super) fn mapped<'a>(&'a self, names: impl Iterator<Item = &'a String>) -> Vec<(&'a String, &'a str)> {
        names.filter_map(|name| Some((name, self.column(name)?))).collect()
    }

    /// How each column compares; none if there is no such row. With `lock` it stays so until the transaction ends.
    pub(super) async fn see(
        &self,
        tx: &mut Tx<'_>,
        row: &Row<'_>,
        columns: &[(&String, &str)],
        lock: bool,
    ) -> sqlx::Result<Option<Vec<Seen>>> {
        let times: Vec<String> = columns.iter().map(|(name, _)| row.stands[*name].at.to_string()).collect();
        let text: Option<String> = sqlx::query_scalar(AssertSqlSafe(self.look(columns, lock)))
            .bind(&row.key.id)
            .bind(row.key.organization.as_str())
            .bind(Value::Object(said(columns, |name| row.stands.get(name).map(|field| &field.value))).to_string())
            .bind(times)
            .bind(Value::Array(row.known(columns)).to_string())
            .persistent(false)
            .fetch_optional(&mut **tx)
            .await?;
        text.map(|text| serde_json::from_str(&text).map_err(|error| sqlx::Error::Decode(error.into()))).transpose()
    }

    fn look(&self, columns: &[(&String, &str)], lock: bool) -> String {
        let of = |(index, (_, column)): (usize, &(&String, &str))| {
            let c = quote(column);
            let newer = self.version.as_ref().map_or_else(
                || "false".to_owned(),
                |Column { name, .. }| {
                    format!("COALESCE(t.{name}::timestamptz > p.times[{}]::timestamptz, false)", index + 1)
                },
            );
            format!(
                "jsonb_build_object('now', to_jsonb(t.{c}), 'same', to_jsonb(t.{c}) IS NOT DISTINCT FROM to_jsonb(w.{c}), \
                 'known', EXISTS (SELECT 1 FROM jsonb_populate_recordset(NULL::{table}, p.known) k \
                 WHERE to_jsonb(k.{c}) IS NOT DISTINCT FROM to_jsonb(t.{c})), 'newer', {newer})",
                table = self.quoted
            )
        };
        let all: Vec<_> = columns.iter().enumerate().map(of).collect();
        format!(
            "{GIVEN} SELECT to_jsonb(ARRAY[{all}]::jsonb[])::text FROM p, {table} t, \
             jsonb_populate_record(NULL::{table}, p.wanted) w WHERE {row}{lock}",
            all = all.join(", "),
            table = self.quoted,
            row = self.row(),
            lock = if lock { " FOR UPDATE OF t" } else { "" },
        )
    }

    /// The one statement that changes a row. Its version says when the newest of these was said, and never goes back.
    pub(super) async fn update(&self, tx: &mut Tx<'_>, row: &Row<'_>, columns: &[(&String, &str)]) -> sqlx::Result<()> {
        let wanted = said(columns, |name| row.stands.get(name).map(|field| &field.value));
        let mut set: Vec<_> = wanted.keys().map(|column| quote(column)).map(|c| format!("{c} = w.{c}")).collect();
        set.extend(self.version.as_ref().map(|version| {
            let Column { name, type_ } = version;
            format!("{name} = GREATEST(t.{name}, CAST(p.times[1]::timestamptz AS {type_}))")
        }));
        let text = format!(
            "{GIVEN} UPDATE {table} t SET {set} FROM p, jsonb_populate_record(NULL::{table}, p.wanted) w WHERE {row}",
            table = self.quoted,
            set = set.join(", "),
            row = self.row(),
        );
        sqlx::query(AssertSqlSafe(text))
            .bind(&row.key.id)
            .bind(row.key.organization.as_str())
            .bind(Value::Object(wanted).to_string())
            .bind(vec![newest(row, columns).to_string()])
            .bind("[]")
            .persistent(false)
            .execute(&mut **tx)
            .await
            .map(drop)
    }

    /// Whether it was made: not if there is such a row after all.
    pub(super) async fn insert(&self, tx: &mut Tx<'_>, row: &Row<'_>, all: &[(&String, &str)]) -> sqlx::Result<bool> {
        let (at, all) = (newest(row, all), said(all, |name| row.stands.get(name).map(|field| &field.value)));
        let cast = |column: &Column, given: &str| format!("CAST({given} AS {})", column.type_);
        let mut columns: Vec<_> = all.keys().map(|column| quote(column)).collect();
        let mut values: Vec<_> = columns.iter().map(|column| format!("w.{column}")).collect();
        columns.push(self.key.name.clone());
        values.push(cast(&self.key, "p.id"));
        for (column, given) in [(&self.organization, "p.organization"), (&self.version, "p.times[1]")] {
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
            .bind(row.key.organization.as_str())
            .bind(Value::Object(all).to_string())
            .bind(vec![at.to_string()])
            .bind("[]")
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

/// Columns with these fields' values; null where there is none.
pub(super) fn said<'a>(columns: &[(&String, &str)], value: impl Fn(&str) -> Option<&'a Value>) -> Map<String, Value> {
    columns.iter().map(|(name, column)| ((*column).to_owned(), value(name).cloned().unwrap_or_default())).collect()
}

fn newest(row: &Row<'_>, columns: &[(&String, &str)]) -> Timestamp {
    let times = columns.iter().filter_map(|(name, _)| row.stands.get(*name)).map(|field| field.at);
    times.max().unwrap_or(Timestamp::UNIX_EPOCH)
}

/// As an identifier: only names that the database lists come here.
fn quote(name: &str) -> String {
    format!("\"{}\"", name.replace('"', "\"\""))
}
