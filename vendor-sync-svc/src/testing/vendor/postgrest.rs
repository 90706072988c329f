//! PostgREST over WedSync's own tables, as Supabase serves it: `PATCH /table?key=eq.value` with `Prefer: return=representation`.
//!
//! A PATCH that finds no row answers an empty list; one without a filter would change the whole table, and is a failure
//! here. Unknown columns are refused with PostgreSQL's code.

use std::collections::{BTreeMap, BTreeSet};

use jiff::Timestamp;
use serde_json::{Value, json};

use super::{Asked, Said, Vendor};

/// A database's API.
pub struct Postgrest {
    key: String,
    /// Rows by table.
    pub tables: BTreeMap<String, Vec<Value>>,
    /// Columns by table; a table without an entry takes any.
    pub columns: BTreeMap<String, BTreeSet<String>>,
}

impl Postgrest {
    /// One that knows its callers by `key`.
    #[must_use]
    pub fn new(key: &str) -> Self {
        Self { key: key.to_owned(), tables: BTreeMap::new(), columns: BTreeMap::new() }
    }
}

impl Vendor for Postgrest {
    fn answer(&mut self, asked: &Asked, _: Timestamp) -> Said {
        if asked.header("authorization") != format!("Bearer {}", self.key) {
            return Said::json(401, &json!({"message": "JWT invalid", "code": "PGRST301"}));
        }
        let parts = asked.parts();
        let parts: Vec<&str> =
            parts.iter().map(String::as_str).skip_while(|part| ["rest", "v1"].contains(part)).collect();
        let [table] = parts.as_slice() else { return Said::json(404, &json!({"message": "not found"})) };
        let filters: Vec<(&str, &str)> = asked
            .query
            .iter()
            .filter_map(|(name, value)| value.strip_prefix("eq.").map(|value| (name.as_str(), value)))
            .collect();
        let given = asked.json();
        let columns = self.columns.get(*table);
        let unknown =
            given.as_object().into_iter().flatten().find(|(name, _)| columns.is_some_and(|all| !all.contains(*name)));
        if let Some((name, _)) = unknown {
            return Said::json(
                400,
                &json!({"code": "PGRST204", "message": format!("Could not find the '{name}' column")}),
            );
        }
        let Some(rows) = self.tables.get_mut(*table) else {
            return Said::json(404, &json!({"code": "42P01", "message": "relation does not exist"}));
        };
        let is_found = |row: &Value| filters.iter().all(|(name, value)| text(&row[*name]) == **value);
        match asked.method.as_str() {
            "GET" => Said::json(200, &rows.iter().filter(|row| is_found(row)).cloned().collect()),
            "PATCH" if filters.is_empty() => {
                Said::json(400, &json!({"code": "21000", "message": "UPDATE requires a WHERE clause"}))
            }
            "PATCH" => {
                let mut found = Vec::new();
                for row in rows.iter_mut().filter(|row| is_found(row)) {
                    given.as_object().into_iter().flatten().for_each(|(name, value)| row[name] = value.clone());
                    found.push(row.clone());
                }
                Said::json(200, &found.into())
            }
            _ => Said::json(405, &json!({"message": "method not allowed"})),
        }
    }
}

fn text(value: &Value) -> String {
    value.as_str().map_or_else(|| value.to_string(), str::to_owned)
}
