//! Which column of which table holds which field, as an organization says it in TOML. Pure.
//!
//! ```toml
//! [wedding]
//! table = "wedding_details"            # or "schema.table"
//! key = "id"                           # holds the record's id
//! organization = "organization_id"     # must hold the organization's id; may be left out
//! version = "updated_at"               # a timestamp of the row's last change; may be left out
//! insert = false                       # whether a row that is missing is made
//! fields = ["wedding_date", "guest_count"]
//! columns = { venue_notes = "notes" }  # where a column is named otherwise
//! ```

use std::collections::BTreeMap;

use serde::Deserialize;

use crate::record::{RecordKind, merge::is_name};

/// PostgreSQL's own limit.
const NAME_BYTES: usize = 63;
const MOST_COLUMNS: usize = 128;

/// Tables by kind.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Mapping {
    pub(super) tables: BTreeMap<RecordKind, TableMapping>,
    /// Whether a table or column that isn't there is a fault, or left out: the built-in mapping can't know.
    pub(super) strict: bool,
}

/// One table.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct TableMapping {
    /// Empty: the first of the search path that has it.
    pub(super) schema: String,
    pub(super) table: String,
    pub(super) key: String,
    pub(super) organization: Option<String>,
    pub(super) version: Option<String>,
    pub(super) insert: bool,
    /// Column by field.
    pub(super) columns: BTreeMap<String, String>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Declared {
    wedding: Option<DeclaredTable>,
    client: Option<DeclaredTable>,
    booking: Option<DeclaredTable>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct DeclaredTable {
    table: String,
    key: String,
    organization: Option<String>,
    version: Option<String>,
    #[serde(default)]
    insert: bool,
    #[serde(default)]
    fields: Vec<String>,
    #[serde(default)]
    columns: BTreeMap<String, String>,
}

impl Mapping {
    /// Reads an organization's own; the built-in one for an empty text.
    ///
    /// # Errors
    /// What is wrong with it, and where.
    pub(crate) fn parse(text: &str) -> Result<Self, String> {
        let strict = !text.trim().is_empty();
        let text = if strict { text } else { include_str!("tables.toml") };
        let declared: Declared = toml::from_str(text).map_err(|error| error.message().to_owned())?;
        let all = [
            (RecordKind::Wedding, declared.wedding),
            (RecordKind::Client, declared.client),
            (RecordKind::Booking, declared.booking),
        ];
        let tables = all.into_iter().filter_map(|(kind, table)| Some((kind, table?)));
        let tables = tables.map(|(kind, table)| {
            let read = table.read().map_err(|reason| format!("{}: {reason}", kind.as_str()))?;
            Ok((kind, read))
        });
        Ok(Self { tables: tables.collect::<Result<_, String>>()?, strict })
    }
}

impl DeclaredTable {
    fn read(self) -> Result<TableMapping, String> {
        let mut columns: BTreeMap<_, _> = self.fields.iter().cloned().map(|field| (field.clone(), field)).collect();
        columns.extend(self.columns.clone());
        if columns.is_empty() || columns.len() > MOST_COLUMNS {
            return Err(format!("fields and columns must be 1 to {MOST_COLUMNS}"));
        }
        if let Some(field) = columns.keys().find(|field| !is_name(field)) {
            return Err(format!("{field}: a field's name must match [a-z0-9_]{{1,64}}"));
        }
        let (schema, table) = self.table.split_once('.').unwrap_or(("", &self.table));
        let (schema, table) = (schema.to_owned(), table.to_owned());
        let Self { key, organization, version, insert, .. } = self;
        let read = TableMapping { schema, table, key, organization, version, insert, columns };
        read.check_names()?;
        Ok(read)
    }
}

impl TableMapping {
    fn check_names(&self) -> Result<(), String> {
        let own = [Some(&self.key), self.organization.as_ref(), self.version.as_ref()];
        let mut columns: Vec<_> = self.columns.values().chain(own.into_iter().flatten()).collect();
        let schema = Some(&self.schema).filter(|schema| !schema.is_empty());
        let mut names = columns.iter().copied().chain([&self.table]).chain(schema);
        if let Some(name) = names.find(|name| !is_identifier(name)) {
            return Err(format!("{name:?} must match [A-Za-z_][A-Za-z0-9_]{{0,62}}"));
        }
        columns.sort();
        let twice = columns.windows(2).find(|pair| pair[0] == pair[1]);
        twice.map_or(Ok(()), |pair| Err(format!("column {} is named twice", pair[0])))
    }
}

fn is_identifier(name: &str) -> bool {
    let begins = name.starts_with(|c: char| c.is_ascii_alphabetic() || c == '_');
    begins && name.len() <= NAME_BYTES && name.bytes().all(|b| b.is_ascii_alphanumeric() || b == b'_')
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_built_in_mapping_names_the_tables_that_routes_read() {
        let mapping = Mapping::parse(" ").expect("it is well-formed");
        let wedding = &mapping.tables[&RecordKind::Wedding];
        assert_eq!((wedding.table.as_str(), wedding.key.as_str(), mapping.strict), ("wedding_details", "id", false));
        assert_eq!(mapping.tables[&RecordKind::Client].key, "couple_id");
    }

    #[test]
    fn each_fault_says_where_it_is() {
        for (text, reason) in [
            ("[wedding]\ntable = \"w\"\nkey = \"id\"", "wedding: fields and columns must be 1 to 128"),
            (
                "[wedding]\ntable = \"w\"\nkey = \"id\"\nfields = [\"a\"]\nversion = \"a\"",
                "wedding: column a is named twice",
            ),
            (
                "[client]\ntable = \"w; drop\"\nkey = \"id\"\nfields = [\"a\"]",
                "client: \"w; drop\" must match [A-Za-z_][A-Za-z0-9_]{0,62}",
            ),
            (
                "[client]\ntable = \"w\"\nkey = \"id\"\ncolumns = { \"A b\" = \"a\" }",
                "client: A b: a field's name must match [a-z0-9_]{1,64}",
            ),
            ("[venue]\ntable = \"w\"", "unknown field `venue`, expected one of `wedding`, `client`, `booking`"),
        ] {
            assert_eq!(Mapping::parse(text).expect_err(text), reason);
        }
    }
}
