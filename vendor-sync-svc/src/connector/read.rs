//! Reads a declaration member by member: whoever takes a member says what it must be, what nobody takes is a fault.
//!
//! Faults are gathered with their places instead of ending at the first; there are at most [`MOST_FAULTS`] of them.

use std::cell::RefCell;

use chassis::expression::{Expression, ExpressionError, Mapping};
use toml::{Table, Value};

use super::text::Text;

pub(crate) const MOST_FAULTS: usize = 20;
const TEXT_BYTES: usize = 4 * 1024;
const PLACE_CHARS: usize = 256;

/// One thing that is wrong, and where.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Fault {
    /// Path of the member from the root: `operations.update_job.body.$.name`; empty for the text as a whole.
    pub(crate) at: String,
    pub(crate) reason: String,
}

impl std::fmt::Display for Fault {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        if self.at.is_empty() { f.write_str(&self.reason) } else { write!(f, "{}: {}", self.at, self.reason) }
    }
}

/// What is wrong so far.
#[derive(Debug, Default)]
pub(super) struct Faults(RefCell<Vec<Fault>>);

impl Faults {
    pub(super) fn add(&self, at: impl Into<String>, reason: impl Into<String>) {
        let mut faults = self.0.borrow_mut();
        if faults.len() < MOST_FAULTS {
            let at = at.into().chars().take(PLACE_CHARS).collect();
            faults.push(Fault { at, reason: reason.into() });
        }
    }

    pub(super) fn into_inner(self) -> Vec<Fault> {
        self.0.into_inner()
    }
}

/// The members of one table that nobody has taken yet.
pub(super) struct Reader<'f> {
    at: String,
    members: Table,
    faults: &'f Faults,
}

impl<'f> Reader<'f> {
    pub(super) fn new(at: impl Into<String>, members: Table, faults: &'f Faults) -> Self {
        Self { at: at.into(), members, faults }
    }

    /// The path of a member.
    pub(super) fn at(&self, name: &str) -> String {
        if self.at.is_empty() { name.to_owned() } else { format!("{}.{name}", self.at) }
    }

    pub(super) fn fault(&self, name: &str, reason: impl Into<String>) {
        self.faults.add(self.at(name), reason);
    }

    pub(super) fn has(&self, name: &str) -> bool {
        self.members.contains_key(name)
    }

    /// What nobody took is nothing that a connector has.
    pub(super) fn end(self) {
        for name in self.members.keys() {
            self.faults.add(self.at(name), "is nothing that a connector has here");
        }
    }

    fn take<T>(&mut self, name: &str, wanted: &str, read: impl FnOnce(Value) -> Option<T>) -> Option<T> {
        let value = self.members.remove(name)?;
        let read = read(value);
        if read.is_none() {
            self.fault(name, format!("must be {wanted}"));
        }
        read
    }

    /// A text of at most 4 KiB.
    pub(super) fn text(&mut self, name: &str) -> Option<String> {
        self.take(name, "a text of at most 4 KiB", |value| match value {
            Value::String(text) if text.len() <= TEXT_BYTES => Some(text),
            _ => None,
        })
    }

    /// A text that must be there.
    pub(super) fn required(&mut self, name: &str) -> String {
        self.must(name);
        self.text(name).unwrap_or_default()
    }

    fn must(&self, name: &str) {
        if !self.has(name) {
            self.fault(name, "is missing");
        }
    }

    /// A word like `update_job`.
    pub(super) fn name(&mut self, name: &str) -> Option<String> {
        let text = self.text(name)?;
        if is_name(&text) {
            return Some(text);
        }
        self.fault(name, "must match [a-z0-9_]{1,64}");
        None
    }

    pub(super) fn flag(&mut self, name: &str) -> bool {
        self.flag_or(name, false)
    }

    pub(super) fn flag_or(&mut self, name: &str, default: bool) -> bool {
        self.take(name, "true or false", |value| value.as_bool()).unwrap_or(default)
    }

    /// A whole number within `range`.
    pub(super) fn number(&mut self, name: &str, range: std::ops::RangeInclusive<u64>) -> Option<u64> {
        let wanted = format!("a whole number from {} to {}", range.start(), range.end());
        self.take(name, &wanted, |value| {
            value.as_integer().and_then(|number| u64::try_from(number).ok()).filter(|number| range.contains(number))
        })
    }

    /// One of a few words.
    pub(super) fn choice<T: Copy>(&mut self, name: &str, all: &[(&str, T)]) -> Option<T> {
        let words: Vec<&str> = all.iter().map(|(word, _)| *word).collect();
        let text = self.text(name)?;
        let found = all.iter().find(|(word, _)| *word == text).map(|(_, choice)| *choice);
        if found.is_none() {
            self.fault(name, format!("must be one of {}", words.join(", ")));
        }
        found
    }

    /// A list of texts.
    pub(super) fn texts(&mut self, name: &str, most: usize) -> Vec<String> {
        let texts = |value: Value| {
            let Value::Array(items) = value else { return None };
            let text = |item: Value| match item {
                Value::String(text) if text.len() <= TEXT_BYTES => Some(text),
                _ => None,
            };
            (items.len() <= most).then(|| items.into_iter().map(text).collect()).flatten()
        };
        self.take(name, &format!("a list of at most {most} texts"), texts).unwrap_or_default()
    }

    pub(super) fn table(&mut self, name: &str) -> Option<Reader<'f>> {
        let table = self.take(name, "a table", |value| match value {
            Value::Table(table) => Some(table),
            _ => None,
        })?;
        Some(Reader::new(self.at(name), table, self.faults))
    }

    /// A list of tables.
    pub(super) fn tables(&mut self, name: &str, most: usize) -> Vec<Reader<'f>> {
        let tables = |value: Value| {
            let Value::Array(items) = value else { return None };
            let table = |item: Value| match item {
                Value::Table(table) => Some(table),
                _ => None,
            };
            (items.len() <= most).then(|| items.into_iter().map(table).collect::<Option<Vec<_>>>()).flatten()
        };
        let tables = self.take(name, &format!("a list of at most {most} tables"), tables).unwrap_or_default();
        let at = self.at(name);
        let reader = |(index, table)| Reader::new(format!("{at}[{index}]"), table, self.faults);
        tables.into_iter().enumerate().map(reader).collect()
    }

    /// A table of tables, each with its name.
    pub(super) fn named(&mut self, name: &str, most: usize) -> Vec<(String, Reader<'f>)> {
        let Some(mut all) = self.table(name) else { return Vec::new() };
        let names: Vec<String> = all.members.keys().cloned().collect();
        if names.len() > most {
            self.fault(name, format!("must be at most {most}"));
            return Vec::new();
        }
        let named = names.into_iter().filter_map(|name| {
            if !is_name(&name) {
                all.fault(&name, "a name must match [a-z0-9_]{1,64}");
                return None;
            }
            all.table(&name).map(|table| (name, table))
        });
        named.collect()
    }

    /// A table whose members are texts.
    pub(super) fn pairs(&mut self, name: &str, most: usize) -> Vec<(String, String)> {
        let Some(mut all) = self.table(name) else { return Vec::new() };
        let names: Vec<String> = all.members.keys().cloned().collect();
        if names.len() > most {
            self.fault(name, format!("must be at most {most}"));
            return Vec::new();
        }
        names.into_iter().filter_map(|name| all.text(&name).map(|text| (name, text))).collect()
    }

    pub(super) fn expression(&mut self, name: &str, names: &[&str]) -> Option<Expression> {
        let source = self.text(name)?;
        self.compiled(name, Expression::compile(&source, names))
    }

    pub(super) fn required_expression(&mut self, name: &str, names: &[&str]) -> Option<Expression> {
        self.must(name);
        self.expression(name, names)
    }

    pub(super) fn template(&mut self, name: &str, names: &[&str]) -> Option<Text> {
        let source = self.text(name)?;
        self.compiled(name, Text::compile(&source, names))
    }

    /// A table of texts with expressions in them.
    pub(super) fn templates(&mut self, name: &str, names: &[&str], most: usize) -> Vec<(String, Text)> {
        let (pairs, at) = (self.pairs(name, most), self.at(name));
        let compile = |(member, source): (String, String)| match Text::compile(&source, names) {
            Ok(text) => Some((member, text)),
            Err(error) => {
                self.faults.add(format!("{at}.{member}"), error.to_string());
                None
            }
        };
        pairs.into_iter().filter_map(compile).collect()
    }

    /// A structure whose strings are expressions, or one expression.
    pub(super) fn mapping(&mut self, name: &str, names: &[&str]) -> Option<Mapping> {
        let value = self.members.remove(name)?;
        let before = self.faults.0.borrow().len();
        let json = self.leaves(value, &format!("{}.$", self.at(name)), names)?;
        if self.faults.0.borrow().len() > before {
            return None;
        }
        self.compiled(name, Mapping::compile(&json.to_string(), names))
    }

    /// As JSON; every leaf that doesn't compile is a fault of its own.
    fn leaves(&self, value: Value, at: &str, names: &[&str]) -> Option<serde_json::Value> {
        Some(match value {
            Value::String(source) => {
                if let Err(error) = Expression::compile(&source, names) {
                    self.faults.add(at, error.to_string());
                }
                source.into()
            }
            Value::Integer(number) => number.into(),
            Value::Boolean(flag) => flag.into(),
            Value::Float(number) => number.into(),
            Value::Datetime(_) => {
                self.faults.add(at, "must be a text: dates have no form of their own in a mapping");
                return None;
            }
            Value::Array(items) => {
                let leaf = |(index, item)| self.leaves(item, &format!("{at}[{index}]"), names);
                items.into_iter().enumerate().map(leaf).collect::<Option<_>>()?
            }
            Value::Table(members) => {
                let leaf = |(name, member): (String, Value)| {
                    let member = self.leaves(member, &format!("{at}.{name}"), names);
                    member.map(|member| (name, member))
                };
                serde_json::Value::Object(members.into_iter().map(leaf).collect::<Option<_>>()?)
            }
        })
    }

    fn compiled<T>(&self, name: &str, compiled: Result<T, ExpressionError>) -> Option<T> {
        compiled.map_err(|error| self.fault(name, error.to_string())).ok()
    }
}

/// `[a-z0-9_]{1,64}`.
pub(super) fn is_name(text: &str) -> bool {
    let allowed = |b: u8| b.is_ascii_lowercase() || b.is_ascii_digit() || b == b'_';
    (1..=64).contains(&text.len()) && text.bytes().all(allowed)
}
