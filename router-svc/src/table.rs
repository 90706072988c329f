//! What the router reads of each table, as data: `tables.toml`, and the names that an installation gives them. Pure.
//!
//! An unknown table is fine: its events get a type, no channel and no built-in route.

use std::{
    collections::{BTreeMap, HashMap},
    sync::Arc,
};

use chassis::error::{Error, Result};
use serde::{Deserialize, Serialize};

use crate::{
    channel::{ChannelName, is_segment},
    json::Record,
};

const BUILT_IN: &str = include_str!("tables.toml");
/// Stands for each supplier of the wedding in a channel's template.
const SUPPLIERS: &str = "suppliers";

/// One table by its canonical name.
#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct Table {
    pub(crate) name: String,
    pub(crate) key: Vec<String>,
    #[serde(default)]
    pub(crate) wedding: Option<String>,
    #[serde(default)]
    pub(crate) supplier: Option<String>,
    #[serde(default)]
    pub(crate) couple: Option<String>,
    #[serde(default)]
    columns: Vec<String>,
    #[serde(default)]
    channels: Vec<String>,
    /// Subscribers see it; people and external systems never do.
    #[serde(default)]
    pub(crate) live_only: bool,
    /// Canonical column to the stored one.
    #[serde(skip)]
    pub(crate) renamed: BTreeMap<String, String>,
}

/// What an installation calls a table and its columns.
#[derive(Clone, Debug, Default, PartialEq, Eq, Deserialize, Serialize)]
#[serde(default, deny_unknown_fields)]
pub struct TableNames {
    /// Name of the table in the database; empty: the canonical one.
    pub(crate) table: String,
    /// Canonical column to the name in the database.
    pub(crate) columns: BTreeMap<String, String>,
}

/// All tables that are known, by the name they have in the database.
#[derive(Clone, Debug)]
pub(crate) struct Tables(HashMap<String, Arc<Table>>);

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct File {
    table: Vec<Table>,
}

impl Tables {
    /// The shipped tables under the names of an installation, keyed by canonical table.
    ///
    /// # Errors
    /// `Error::Invalid` for a table or column that the router doesn't read, or two tables that would share a name.
    pub(crate) fn new(names: &BTreeMap<String, TableNames>) -> Result<Self> {
        let file: File = toml::from_str(BUILT_IN).expect("tables.toml is tested");
        if let Some(unknown) = names.keys().find(|name| !file.table.iter().any(|table| table.name == **name)) {
            return Err(Error::invalid("tables", format!("{unknown:.100?} is no table that the router reads")));
        }
        let mut tables = HashMap::new();
        for mut table in file.table {
            let mut stored = table.name.clone();
            if let Some(names) = names.get(&table.name) {
                table.check_columns(names)?;
                table.renamed.clone_from(&names.columns);
                stored = Some(names.table.clone()).filter(|name| !name.is_empty()).unwrap_or(stored);
            }
            if tables.insert(stored.clone(), Arc::new(table)).is_some() {
                return Err(Error::invalid("tables", format!("two tables are called {stored:.100?}")));
            }
        }
        Ok(Self(tables))
    }

    /// The shipped tables under their own names.
    #[cfg(test)]
    pub(crate) fn built_in() -> Self {
        Self::new(&BTreeMap::new()).expect("no names can't clash")
    }

    /// The table that the database calls `stored`.
    pub(crate) fn get(&self, stored: &str) -> Option<&Arc<Table>> {
        self.0.get(stored)
    }
}

impl Table {
    fn check_columns(&self, names: &TableNames) -> Result<()> {
        let owners = [&self.wedding, &self.supplier, &self.couple].into_iter().flatten();
        let read: Vec<&String> = self.key.iter().chain(owners).chain(&self.columns).collect();
        match names.columns.keys().find(|column| !read.contains(column)) {
            Some(unknown) => Err(Error::invalid(
                "tables",
                format!("{unknown:.100?} is no column of {} that the router reads", self.name),
            )),
            None => Ok(()),
        }
    }

    /// The row's key, its columns joined by a colon; none where one is missing.
    pub(crate) fn key(&self, row: &Record) -> Option<String> {
        let parts: Option<Vec<String>> = self.key.iter().map(|column| row.text(column)).collect();
        parts.map(|parts| parts.join(":"))
    }

    /// The live channels of a row. One whose column is missing, or can't stand in a name, is left out.
    pub(crate) fn channels(&self, row: &Record, suppliers: &[String]) -> Vec<ChannelName> {
        self.channels.iter().flat_map(|template| expand(template, row, suppliers)).collect()
    }
}

fn expand(template: &str, row: &Record, suppliers: &[String]) -> Vec<ChannelName> {
    let Some((before, placeholder)) = template.strip_suffix('}').and_then(|rest| rest.split_once('{')) else {
        return ChannelName::parse(template).into_iter().collect();
    };
    let values =
        if placeholder == SUPPLIERS { suppliers.to_vec() } else { row.text(placeholder).into_iter().collect() };
    let named = values.iter().filter(|value| is_segment(value));
    named.filter_map(|value| ChannelName::parse(&format!("{before}{value}")).ok()).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn channels(table: &str, row: &str, suppliers: &[&str]) -> Vec<String> {
        let suppliers: Vec<String> = suppliers.iter().map(|id| (*id).to_owned()).collect();
        let row = Record::parse(row.as_bytes()).unwrap();
        let channels = Tables::built_in().get(table).unwrap().channels(&row, &suppliers);
        channels.iter().map(|channel| channel.as_str().to_owned()).collect()
    }

    #[test]
    fn each_table_is_on_the_channels_of_the_specification() {
        let row = r#"{"id":"i","form_id":"f","supplier_id":"s","couple_id":"c","wedding_id":"w"}"#;
        for (table, expected) in [
            ("form_responses", vec!["form:response:f", "supplier:dashboard:s"]),
            ("journey_progress", vec!["journey:milestone:c", "supplier:dashboard:s"]),
            ("wedding_details", vec!["wedding:i", "supplier:dashboard:x", "supplier:dashboard:y"]),
            ("core_fields", vec!["couple:c", "wedding:w", "supplier:dashboard:x", "supplier:dashboard:y"]),
            ("client_list_cache", vec!["client-list:s"]),
            ("supplier_kpis", vec!["supplier:dashboard:s"]),
            ("suppliers", vec![]),
            ("wedding_vendors", vec![]),
        ] {
            assert_eq!(channels(table, row, &["x", "y"]), expected, "{table}");
        }
    }

    #[test]
    fn an_id_can_not_reach_into_another_channel() {
        assert!(channels("supplier_kpis", r#"{"supplier_id":"a:b"}"#, &[]).is_empty());
        assert!(channels("supplier_kpis", r#"{"supplier_id":"*"}"#, &[]).is_empty());
        assert!(channels("supplier_kpis", "{}", &[]).is_empty());
    }

    #[test]
    fn a_table_is_found_by_the_name_it_has_in_the_database() {
        let names = |table: &str| TableNames { table: table.to_owned(), ..TableNames::default() };
        let tables = Tables::new(&BTreeMap::from([("wedding_details".to_owned(), names("weddings"))])).unwrap();
        assert_eq!(tables.get("weddings").unwrap().name, "wedding_details");
        assert!(tables.get("wedding_details").is_none());
        let column = TableNames { columns: [("no_such".to_owned(), "x".to_owned())].into(), ..TableNames::default() };
        assert!(Tables::new(&BTreeMap::from([("suppliers".to_owned(), column)])).is_err());
        assert!(Tables::new(&BTreeMap::from([("nonsense".to_owned(), names("x"))])).is_err());
        assert!(Tables::new(&BTreeMap::from([("suppliers".to_owned(), names("core_fields"))])).is_err());
    }
}
