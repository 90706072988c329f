//! Which fields leave for an endpoint: all but the personal ones, those by its owner's grant. Pure.
//!
//! The table of personal columns is data: `personal.toml`, or a file of the installation's own. The rule holds for the
//! columns of a record and for the members of a domain event's content; personal members inside a structured column are
//! taken out as well, at any depth.
//!
//! Invariant: what leaves is copied byte for byte, so numbers keep every digit.

use std::{
    collections::{BTreeMap, BTreeSet, HashSet},
    sync::Arc,
};

use anyhow::{Context as _, Result, ensure};
use serde_json::value::RawValue;

use crate::json::Object;

const BUILT_IN: &str = include_str!("personal.toml");
/// What is nested deeper isn't sent; the router accepts no deeper nesting.
const DEPTH: usize = 64;

/// The table of personal columns. Cheap to clone.
#[derive(Clone, Debug)]
pub(crate) struct Personal(Arc<Table>);

#[derive(Debug, Default)]
struct Table {
    exact: HashSet<String>,
    prefixes: Vec<String>,
    suffixes: Vec<String>,
}

impl Personal {
    /// The table that we ship.
    pub(crate) fn built_in() -> Self {
        Self::parse(BUILT_IN).expect("the table that we ship is well-formed")
    }

    /// Reads a table: lists of column names, by class.
    ///
    /// # Errors
    /// A text that isn't such a table, or a name that is nothing but a `*`.
    pub(crate) fn parse(text: &str) -> Result<Self> {
        let classes: BTreeMap<String, Vec<String>> = toml::from_str(text).context("table of personal columns")?;
        let mut table = Table::default();
        for name in classes.into_values().flatten() {
            let plain = name.trim_matches('*');
            ensure!(
                !plain.is_empty() && !plain.contains('*'),
                "{name:?} must be a column's name, with `*` at one end at most"
            );
            match (name.starts_with('*'), name.ends_with('*')) {
                (false, false) => drop(table.exact.insert(snake_case(plain))),
                (false, true) => table.prefixes.push(plain.to_lowercase()),
                (true, false) => table.suffixes.push(plain.to_lowercase()),
                (true, true) => anyhow::bail!("{name:?} must have its `*` at one end"),
            }
        }
        Ok(Self(Arc::new(table)))
    }

    fn contains(&self, column: &str) -> bool {
        let Table { exact, prefixes, suffixes } = &*self.0;
        exact.contains(column)
            || suffixes.iter().any(|suffix| column.ends_with(suffix.as_str()))
            || prefixes.iter().any(|prefix| column.starts_with(prefix.as_str()))
    }
}

/// One spelling for one name: `clientName`, `Client-Name` and `client_name` are the same column.
pub(crate) fn snake_case(name: &str) -> String {
    let mut spelt = String::with_capacity(name.len() + 4);
    let mut after_small = false;
    for c in name.chars() {
        if c.is_uppercase() && after_small {
            spelt.push('_');
        }
        after_small = c.is_lowercase() || c.is_ascii_digit();
        match c {
            '-' | ' ' => spelt.push('_'),
            c => spelt.extend(c.to_lowercase()),
        }
    }
    spelt
}

/// What one endpoint may be sent. The names are in snake case.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Policy<'a> {
    pub(crate) personal: &'a Personal,
    pub(crate) granted: &'a BTreeSet<String>,
    /// Empty: all that isn't personal.
    pub(crate) allowed: &'a BTreeSet<String>,
}

/// How much of a member leaves.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Share {
    /// As it is.
    Whole,
    /// Without the personal members inside it.
    Cleared,
    None,
}

impl Policy<'_> {
    fn share(&self, name: &str, is_column: bool) -> Share {
        let name = snake_case(name);
        if self.granted.contains(&name) {
            return Share::Whole;
        }
        let is_allowed = !is_column || self.allowed.is_empty() || self.allowed.contains(&name);
        if is_allowed && !self.personal.contains(&name) { Share::Cleared } else { Share::None }
    }

    /// The part of a JSON text that leaves. A text that isn't an object is cleared like a column's content.
    ///
    /// # Errors
    /// What is wrong with the JSON.
    pub(crate) fn apply(&self, json: &[u8]) -> Result<Box<RawValue>, serde_json::Error> {
        let whole: &RawValue = serde_json::from_slice(json)?;
        let mut kept = String::with_capacity(json.len());
        self.copy(whole.get(), 0, &mut kept)?;
        RawValue::from_string(kept)
    }

    fn copy(&self, json: &str, depth: usize, kept: &mut String) -> Result<(), serde_json::Error> {
        match json.as_bytes().first() {
            Some(b'{' | b'[') if depth >= DEPTH => Err(serde::de::Error::custom("is nested too deeply")),
            Some(b'{') => self.copy_object(json, depth, kept),
            Some(b'[') => self.copy_list(json, depth, kept),
            _ => {
                kept.push_str(json);
                Ok(())
            }
        }
    }

    fn copy_object(&self, json: &str, depth: usize, kept: &mut String) -> Result<(), serde_json::Error> {
        let Object(members) = serde_json::from_str(json)?;
        kept.push('{');
        let mut first = true;
        for (name, value) in members {
            let share = self.share(&name, depth == 0);
            if share == Share::None {
                continue;
            }
            if !std::mem::take(&mut first) {
                kept.push(',');
            }
            kept.push_str(&serde_json::to_string(&name)?);
            kept.push(':');
            match share {
                Share::Whole => kept.push_str(value.get()),
                _ => self.copy(value.get(), depth + 1, kept)?,
            }
        }
        kept.push('}');
        Ok(())
    }

    fn copy_list(&self, json: &str, depth: usize, kept: &mut String) -> Result<(), serde_json::Error> {
        let items: Vec<&RawValue> = serde_json::from_str(json)?;
        kept.push('[');
        for (index, item) in items.into_iter().enumerate() {
            if index > 0 {
                kept.push(',');
            }
            // Depth 0 is for columns: what stands in a list isn't one.
            self.copy(item.get(), depth + 1, kept)?;
        }
        kept.push(']');
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn names(list: &[&str]) -> BTreeSet<String> {
        list.iter().map(|name| snake_case(name)).collect()
    }

    fn applied(json: &str, granted: &[&str], allowed: &[&str]) -> String {
        let (personal, granted, allowed) = (Personal::built_in(), names(granted), names(allowed));
        let policy = Policy { personal: &personal, granted: &granted, allowed: &allowed };
        policy.apply(json.as_bytes()).expect("it is JSON").get().to_owned()
    }

    #[test]
    fn personal_columns_stay_whatever_their_spelling_and_the_others_leave() {
        let row = r#"{"id":"w1","bride_name":"Ana","clientEmail":"a@b","E-Mail":"x","venue_name":"Hall","Notes":"n","guest_count":120,"special_requests":"r"}"#;
        assert_eq!(applied(row, &[], &[]), r#"{"id":"w1","venue_name":"Hall","guest_count":120}"#);
    }

    #[test]
    fn a_granted_column_leaves_whole_and_only_that_one() {
        let row = r#"{"id":1,"address":{"street":"x","zip":"1"},"email":"a@b"}"#;
        assert_eq!(applied(row, &["address"], &[]), r#"{"id":1,"address":{"street":"x","zip":"1"}}"#);
    }

    #[test]
    fn allowed_columns_shut_the_others_out_but_grant_nothing_personal() {
        let row = r#"{"id":1,"email":"a@b","guest_count":2,"venue_name":"Hall"}"#;
        assert_eq!(applied(row, &[], &["id", "email"]), r#"{"id":1}"#);
        assert_eq!(applied(row, &["email"], &["id"]), r#"{"id":1,"email":"a@b"}"#);
    }

    #[test]
    fn personal_members_inside_structured_columns_stay_too() {
        let row = r#"{"client":{"id":7,"phone":"1","tags":[{"name":"n","k":1.50}]},"list":[{"email":"e"}]}"#;
        assert_eq!(applied(row, &[], &[]), r#"{"client":{"id":7,"tags":[{"k":1.50}]},"list":[{}]}"#);
        assert_eq!(applied(row, &[], &["client"]), r#"{"client":{"id":7,"tags":[{"k":1.50}]}}"#);
    }

    #[test]
    fn a_personal_name_hidden_by_escapes_is_found() {
        assert_eq!(applied(r#"{"em\u0061il":"a@b","id":1}"#, &[], &[]), r#"{"id":1}"#);
    }

    #[test]
    fn numbers_keep_every_digit() {
        let row = r#"{"a":12345678901234567890123,"b":1.10,"c":1E400,"d":-0.0}"#;
        assert_eq!(applied(row, &[], &[]), row);
    }

    #[test]
    fn a_bottomless_text_is_an_error_and_no_overflow() {
        let (personal, none) = (Personal::built_in(), BTreeSet::new());
        let policy = Policy { personal: &personal, granted: &none, allowed: &none };
        assert!(policy.apply("[".repeat(100_000).as_bytes()).is_err());
        assert!(policy.apply(format!("{}{}", "[".repeat(100), "]".repeat(100)).as_bytes()).is_err());
    }

    #[test]
    fn a_table_of_ones_own_replaces_ours() {
        let personal = Personal::parse("mine = [\"shoeSize\", \"x_*\"]").expect("a table");
        assert!(personal.contains("shoe_size") && personal.contains("x_ray") && !personal.contains("email"));
        for bad in ["mine = [\"*\"]", "mine = [\"a*b\"]", "mine = [\"*a*\"]", "mine = 1", "["] {
            assert!(Personal::parse(bad).is_err(), "{bad}");
        }
    }

    proptest! {
        #[test]
        fn whatever_is_not_personal_is_copied_to_the_byte(numbers in prop::collection::vec("-?(0|[1-9][0-9]{0,30})(\\.[0-9]{1,20})?([eE][+-]?[0-9]{1,3})?", 0..8)) {
            let members: Vec<String> = numbers.iter().enumerate().map(|(index, number)| format!("\"k{index}\":{number}")).collect();
            let row = format!("{{{}}}", members.join(","));
            prop_assert_eq!(applied(&row, &[], &[]), row);
        }
    }
}
