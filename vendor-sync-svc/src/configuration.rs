//! Rows of WedSync's own configuration tables: what they ask for. Pure; `keep` has endpoints and integrations follow them,
//! `again` tries those that were refused.
//!
//! Tables, columns and names of connectors are a TOML text (`configuration.toml`, or the operator's own). Secrets are
//! [`Secret`]s from here on: they are sealed where they are kept, and no reason that a row is refused for quotes a value.

mod again;
pub(crate) mod keep;
#[cfg(test)]
#[path = "configuration/tests.rs"]
pub(crate) mod kept;
pub(crate) mod rows;

use std::collections::BTreeMap;

use anyhow::{Context as _, Result, ensure};
use chassis::config::Secret;
use serde::Deserialize;
use serde_json::{Map, Value};

/// As which kind of integration the router's plan names what is ours to follow.
pub(crate) const KIND: &str = "configuration";

const COLUMNS: [&str; 11] =
    ["id", "supplier", "connector", "url", "key", "user", "secret", "events", "active", "settings", "description"];
const TEXT_CHARS: usize = 256;

/// Which tables, and what their columns say.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct Tables {
    tables: BTreeMap<String, Table>,
    columns: BTreeMap<String, Vec<String>>,
    #[serde(default)]
    connectors: BTreeMap<String, String>,
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct Table {
    becomes: Becomes,
    /// Where the row names none.
    #[serde(default)]
    connector: String,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "lowercase")]
pub(crate) enum Becomes {
    Endpoint,
    Integration,
}

/// What a row asks for.
#[derive(Debug)]
pub(crate) struct Wanted {
    pub(crate) becomes: Becomes,
    pub(crate) supplier_id: String,
    /// Of an integration.
    pub(crate) connector: String,
    pub(crate) url: String,
    pub(crate) key: Option<Secret>,
    pub(crate) user: String,
    pub(crate) secret: Option<Secret>,
    /// Of an endpoint; empty: all.
    pub(crate) events: Vec<String>,
    pub(crate) is_active: bool,
    pub(crate) parameters: BTreeMap<String, String>,
    pub(crate) description: String,
}

impl Tables {
    /// The one that we ship.
    pub(crate) fn built_in() -> Self {
        Self::parse(include_str!("configuration.toml")).expect("it is tested")
    }

    /// Reads a table of tables.
    ///
    /// # Errors
    /// What can't be read; columns that nobody asks for.
    pub(crate) fn parse(text: &str) -> Result<Self> {
        let tables: Self = toml::from_str(text).context("configuration tables")?;
        if let Some(odd) = tables.columns.keys().find(|name| !COLUMNS.contains(&name.as_str())) {
            anyhow::bail!("columns.{odd} is none of {}", COLUMNS.join(", "));
        }
        ensure!(tables.columns.contains_key("id"), "columns.id is missing: a row must be known again");
        Ok(tables)
    }

    /// The id of a row, if its table is one of ours.
    pub(crate) fn id(&self, table: &str, row: &Map<String, Value>) -> Option<String> {
        self.tables.get(table)?;
        let is_id = |id: &String| (1..=TEXT_CHARS).contains(&id.chars().count()) && !id.chars().any(char::is_control);
        Some(self.text(row, "id")).filter(is_id)
    }

    /// What a row asks for.
    ///
    /// # Errors
    /// Why it can't be followed.
    pub(crate) fn read(&self, table: &str, row: &Map<String, Value>) -> Result<Wanted, String> {
        let table = self.tables.get(table).ok_or("its table is not followed")?;
        let secret = |name| Some(self.text(row, name)).filter(|text| !text.is_empty()).map(Secret::from);
        let wanted = Wanted {
            becomes: table.becomes,
            supplier_id: self.text(row, "supplier"),
            connector: self.connector(table, row),
            url: self.text(row, "url"),
            key: secret("key"),
            user: self.text(row, "user"),
            secret: secret("secret"),
            events: self.events(row)?,
            is_active: !matches!(self.value(row, "active"), Some(Value::Bool(false))),
            parameters: self.parameters(row)?,
            description: self.text(row, "description").chars().take(TEXT_CHARS).collect(),
        };
        match wanted.becomes {
            Becomes::Endpoint if wanted.url.is_empty() => Err("has no URL".to_owned()),
            Becomes::Integration if wanted.connector.is_empty() => Err("names no connector".to_owned()),
            _ => Ok(wanted),
        }
    }

    fn connector(&self, table: &Table, row: &Map<String, Value>) -> String {
        let given = self.text(row, "connector").to_lowercase();
        let words: Vec<&str> =
            given.split(|c: char| !c.is_ascii_alphanumeric()).filter(|word| !word.is_empty()).collect();
        let name = if words.is_empty() { table.connector.clone() } else { words.join("-") };
        self.connectors.get(&name).cloned().unwrap_or(name)
    }

    /// A list, or texts between commas.
    fn events(&self, row: &Map<String, Value>) -> Result<Vec<String>, String> {
        match self.value(row, "events") {
            None => Ok(Vec::new()),
            Some(Value::Array(events)) => {
                let texts = events.iter().map(|event| event.as_str().map(str::to_owned));
                texts.collect::<Option<_>>().ok_or_else(|| "its event types are no texts".to_owned())
            }
            Some(Value::String(text)) => Ok(text
                .trim_matches(['{', '}'])
                .split(',')
                .map(|text| text.trim().trim_matches('"').to_owned())
                .filter(|text| !text.is_empty())
                .collect()),
            Some(_) => Err("its event types are no list".to_owned()),
        }
    }

    /// Texts, numbers and truths of the settings; JSON within a text too.
    fn parameters(&self, row: &Map<String, Value>) -> Result<BTreeMap<String, String>, String> {
        let settings = match self.value(row, "settings") {
            None => return Ok(BTreeMap::new()),
            Some(Value::Object(settings)) => settings.clone(),
            Some(Value::String(text)) => serde_json::from_str(text).map_err(|_| "its settings are no JSON object")?,
            Some(_) => return Err("its settings are no JSON object".to_owned()),
        };
        let text = |value: Value| match value {
            Value::String(text) => Some(text),
            Value::Number(number) => Some(number.to_string()),
            Value::Bool(truth) => Some(truth.to_string()),
            _ => None,
        };
        Ok(settings.into_iter().filter_map(|(name, value)| Some((name, text(value)?))).collect())
    }

    fn value<'a>(&self, row: &'a Map<String, Value>, name: &str) -> Option<&'a Value> {
        let names = self.columns.get(name)?;
        names.iter().find_map(|name| row.get(name).filter(|value| !value.is_null()))
    }

    fn text(&self, row: &Map<String, Value>, name: &str) -> String {
        match self.value(row, name) {
            Some(Value::String(text)) => text.trim().to_owned(),
            Some(Value::Number(number)) => number.to_string(),
            _ => String::new(),
        }
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn read(table: &str, row: Value) -> Result<Wanted, String> {
        let Value::Object(row) = row else { panic!("a row") };
        Tables::built_in().read(table, &row)
    }

    #[test]
    fn a_row_says_which_connector_with_what_and_its_secrets_are_not_printed() {
        let row = json!({"id": 7, "supplier_id": "s1", "provider": "Tave", "api_key": "hush-hush", "webhook_secret": "shh",
            "settings": "{\"studio\":\"Ann\",\"n\":3}", "is_active": false});
        let wanted = read("supplier_integrations", row).expect("understood");
        assert_eq!(
            (wanted.becomes, wanted.connector.as_str(), wanted.is_active),
            (Becomes::Integration, "vsco-workspace", false)
        );
        assert_eq!(
            wanted.parameters,
            BTreeMap::from([("n".to_owned(), "3".to_owned()), ("studio".to_owned(), "Ann".to_owned())])
        );
        assert_eq!(wanted.key.as_ref().map(Secret::expose), Some("hush-hush"));
        let printed = format!("{wanted:?}");
        assert!(!printed.contains("hush") && !printed.contains("shh"), "{printed}");
    }

    #[test]
    fn a_venues_row_may_name_none_and_an_endpoint_needs_its_url() {
        assert_eq!(read("venue_integrations", json!({"id": "1"})).expect("understood").connector, "venue");
        assert_eq!(read("email_integrations", json!({"id": "1"})).expect_err("refused"), "names no connector");
        assert_eq!(read("webhook_endpoints", json!({"id": "1"})).expect_err("refused"), "has no URL");
        let row = json!({"id": "1", "url": "https://x.test/", "events": "{wedding.*,payment.failed}"});
        assert_eq!(read("webhook_endpoints", row).expect("understood").events, ["wedding.*", "payment.failed"]);
    }

    #[test]
    fn other_tables_are_none_of_ours_and_a_row_needs_an_id() {
        let tables = Tables::built_in();
        let Value::Object(row) = json!({"id": "1"}) else { panic!("a row") };
        assert_eq!(tables.id("weddings", &row), None);
        assert_eq!(tables.id("webhook_endpoints", &row).as_deref(), Some("1"));
        assert_eq!(tables.id("webhook_endpoints", &Map::new()), None);
        assert!(Tables::parse("[tables]\n[columns]\nid = [\"id\"]\nshoe = [\"size\"]").is_err());
    }
}
