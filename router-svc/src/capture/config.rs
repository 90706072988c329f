//! `[router.capture.<name>]`: a PostgreSQL database whose changes become events. Checked whole before anything starts.

use std::{
    collections::{BTreeMap, HashMap},
    path::PathBuf,
    sync::Arc,
};

use anyhow::{Context as _, Result, bail, ensure};
use chassis::{config::Secret, id::OrganizationId};
use serde::{Deserialize, Serialize};

use super::{live::Live, wire::Address};

/// Tables that one source names.
const TABLES_MAX: usize = 1_000;

/// One source of changes.
#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct SourceSettings {
    /// `postgres://user:password@host:port/database`, with a user that may replicate. No default. `url = ""` in the file lets
    /// the environment give it.
    pub url: Secret,
    /// Certificates (PEM) that the server's is verified with; empty for the public ones. Default: empty.
    pub ca_file: PathBuf,
    /// Whether the way beyond loopback may be without TLS. Default: false.
    pub allow_plaintext: bool,
    /// The replication slot. Default: wedsync.
    pub slot: String,
    /// The publication. Default: wedsync.
    pub publication: String,
    /// Whether publication and slot are made where they are missing, and a slot that was lost is made anew. Default: true.
    pub manage: bool,
    /// Whose the tables' rows are; `schema.table`, or a table of the schema `public`.
    pub tables: BTreeMap<String, OwnerSettings>,
    /// What becomes of changes of other tables in the publication. Default: refuse.
    pub unlisted: Unlisted,
    /// Tables whose rows are published as they are when the slot is made. Default: none.
    pub snapshot: Vec<String>,
}

/// Whose a table's rows are: exactly one is given.
#[derive(Clone, Debug, Default, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct OwnerSettings {
    /// The column that names the organization.
    pub column: String,
    /// The organization itself.
    pub organization: String,
}

/// What becomes of changes of tables that aren't listed.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Unlisted {
    /// Logged, counted and kept among the refusals.
    #[default]
    Refuse,
    /// Counted.
    Ignore,
}

impl Default for SourceSettings {
    fn default() -> Self {
        Self {
            url: Secret::default(),
            ca_file: PathBuf::new(),
            allow_plaintext: false,
            slot: "wedsync".to_owned(),
            publication: "wedsync".to_owned(),
            manage: true,
            tables: BTreeMap::new(),
            unlisted: Unlisted::Refuse,
            snapshot: Vec::new(),
        }
    }
}

/// A source whose settings hold.
pub(crate) struct Source {
    pub(super) name: String,
    pub(super) address: Address,
    pub(super) slot: String,
    pub(super) publication: String,
    pub(super) manage: bool,
    pub(super) owners: HashMap<Table, Owner>,
    pub(super) unlisted: Unlisted,
    pub(super) snapshot: Vec<Table>,
    pub(super) live: Arc<Live>,
}

/// A table's name.
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub(super) struct Table {
    pub(super) schema: String,
    pub(super) name: String,
}

/// Whose a table's rows are.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Owner {
    Organization(OrganizationId),
    Column(String),
}

/// All sources, checked.
///
/// # Errors
/// What can't hold, with the source's name and without its password.
pub(crate) fn sources(settings: &BTreeMap<String, SourceSettings>) -> Result<Vec<Source>> {
    let source = |(name, settings): (&String, &SourceSettings)| {
        Source::new(name, settings).with_context(|| format!("[router.capture.{name:.40}]"))
    };
    settings.iter().map(source).collect()
}

impl Source {
    fn new(name: &str, settings: &SourceSettings) -> Result<Self> {
        ensure!(is_plain(name, 32), "a source's name must match [a-z0-9_]{{1,32}}");
        ensure!(is_plain(&settings.slot, 63), "slot must match [a-z0-9_]{{1,63}}");
        ensure!(is_identifier(&settings.publication), "publication must be a name without control characters");
        let address = Address::parse(&settings.url, settings.allow_plaintext, settings.ca_file.clone())?;
        ensure!(
            (1..=TABLES_MAX).contains(&settings.tables.len()),
            "tables must be 1 to {TABLES_MAX}: whose rows are they?"
        );
        let owners = settings.tables.iter().map(|(table, owner)| Ok((Table::parse(table)?, Owner::new(table, owner)?)));
        let owners: HashMap<Table, Owner> = owners.collect::<Result<_>>()?;
        ensure!(owners.len() == settings.tables.len(), "tables names a table twice");
        let snapshot = settings.snapshot.iter().map(|table| Table::parse(table)).collect::<Result<Vec<_>>>()?;
        if let Some(unlisted) = snapshot.iter().find(|table| !owners.contains_key(table)) {
            bail!("snapshot names {unlisted}, which isn't among the tables");
        }
        ensure!(settings.manage || snapshot.is_empty(), "a snapshot needs a slot that is made here: manage = true");
        Ok(Self {
            name: name.to_owned(),
            address,
            slot: settings.slot.clone(),
            publication: settings.publication.clone(),
            manage: settings.manage,
            owners,
            unlisted: settings.unlisted,
            snapshot,
            live: Arc::new(Live::new(name)),
        })
    }

    /// What its events say they are from.
    pub(super) fn label(&self) -> String {
        format!("postgres:{}", self.name)
    }
}

impl Owner {
    fn new(table: &str, settings: &OwnerSettings) -> Result<Self> {
        match (settings.column.as_str(), settings.organization.as_str()) {
            ("", "") => bail!("tables.{table:.130} needs a column or an organization"),
            ("", organization) => Ok(Self::Organization(OrganizationId::parse(organization)?)),
            (column, "") => Ok(Self::Column(column.to_owned())),
            _ => bail!("tables.{table:.130} takes a column or an organization, not both"),
        }
    }
}

impl Table {
    fn parse(text: &str) -> Result<Self> {
        let (schema, name) = text.split_once('.').unwrap_or(("public", text));
        let fits = is_identifier(schema) && is_identifier(name);
        ensure!(fits, "{text:.130?} must be `table` or `schema.table`");
        Ok(Self { schema: schema.to_owned(), name: name.to_owned() })
    }

    /// For a statement.
    pub(super) fn quoted(&self) -> String {
        format!("{}.{}", identifier(&self.schema), identifier(&self.name))
    }
}

impl std::fmt::Display for Table {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{}.{}", self.schema, self.name)
    }
}

/// A name for a statement.
pub(super) fn identifier(name: &str) -> String {
    format!("\"{}\"", name.replace('"', "\"\""))
}

/// A text for a statement.
pub(super) fn literal(text: &str) -> String {
    format!("'{}'", text.replace('\'', "''"))
}

fn is_plain(name: &str, longest: usize) -> bool {
    let plain = |b: u8| b.is_ascii_lowercase() || b.is_ascii_digit() || b == b'_';
    (1..=longest).contains(&name.len()) && name.bytes().all(plain)
}

fn is_identifier(name: &str) -> bool {
    (1..=63).contains(&name.len()) && !name.chars().any(char::is_control)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn check(text: &str) -> Result<Vec<Source>, String> {
        let settings = toml::from_str(text).map_err(|error| error.to_string())?;
        sources(&settings).map_err(|error| format!("{error:#}"))
    }

    const GOOD: &str = "[main]\nurl = 'postgres://u:hunter2@db.example.com/app'\ntables = { weddings = { column = 'org' }, 'sales.kpis' = { organization = 'acme' } }\n";

    #[test]
    fn a_table_is_of_the_schema_public_unless_it_says_otherwise() {
        let sources = check(GOOD).unwrap();
        let table = |schema: &str, name: &str| Table { schema: schema.to_owned(), name: name.to_owned() };
        assert_eq!(sources[0].owners[&table("public", "weddings")], Owner::Column("org".to_owned()));
        let acme = Owner::Organization(OrganizationId::parse("acme").unwrap());
        assert_eq!(sources[0].owners[&table("sales", "kpis")], acme);
    }

    #[test]
    fn what_can_not_hold_is_refused_and_no_password_is_shown() {
        for (line, named) in [
            ("slot = 'My-Slot'", "slot must match"),
            ("publication = ''", "publication must be"),
            ("snapshot = ['nobody']", "isn't among the tables"),
            ("snapshot = ['weddings']\nmanage = false", "manage = true"),
            ("unlisted = 'maybe'", "unlisted"),
            ("ulr = 'x'", "unknown field"),
        ] {
            let error = check(&format!("{GOOD}{line}\n")).map(drop).expect_err(line);
            assert!(error.contains(named) && !error.contains("hunter2"), "{error}");
        }
        for (tables, named) in [
            ("{}", "whose rows"),
            ("{ a = {} }", "needs a column or an organization"),
            ("{ a = { column = 'x', organization = 'y' } }", "not both"),
            ("{ a = { column = 'x' }, 'public.a' = { column = 'x' } }", "twice"),
            ("{ a = { organization = 'a b' } }", "organization_id"),
        ] {
            let error =
                check(&format!("[main]\nurl = 'postgres://u@h/d'\ntables = {tables}\n")).map(drop).expect_err(tables);
            assert!(error.contains(named) && error.contains("[router.capture.main]"), "{error}");
        }
    }

    #[test]
    fn names_are_quoted_for_statements() {
        assert_eq!(Table::parse("a\"b.c'd").unwrap().quoted(), r#""a""b"."c'd""#);
        assert_eq!(literal("c'd"), "'c''d'");
    }
}
