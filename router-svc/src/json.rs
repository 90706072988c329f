//! JSON as it was sent: checked, and opened one level deep, so that a record costs what is asked of it. Pure.
//!
//! Numbers keep their digits: a value is read only when somebody wants it. Depth is bounded before anything recursive
//! sees the text.

use std::collections::BTreeMap;

use chassis::expression::Value;
use serde_json::value::RawValue;

/// Deepest nesting that is taken; what reads values later recurses at most this far.
const DEPTH_LIMIT: usize = 64;

/// Whether the bytes are one JSON value, nested no deeper than 64.
///
/// # Errors
/// Why not, for the caller's eyes.
pub(crate) fn check(bytes: &[u8]) -> Result<(), String> {
    parse::<&RawValue>(bytes).map(drop)
}

fn parse<'a, T: serde::Deserialize<'a>>(bytes: &'a [u8]) -> Result<T, String> {
    let text = std::str::from_utf8(bytes).map_err(|_| "must be UTF-8".to_owned())?;
    if is_deeper_than(text, DEPTH_LIMIT) {
        return Err(format!("must be JSON nested at most {DEPTH_LIMIT} deep"));
    }
    // The parser's own texts name line and column, never content.
    serde_json::from_str(text).map_err(|error| format!("must be JSON: {error}"))
}

fn is_deeper_than(text: &str, limit: usize) -> bool {
    // Few have so many brackets at all, and to count them takes a tenth of following them.
    if text.bytes().filter(|byte| matches!(byte, b'{' | b'[')).count() <= limit {
        return false;
    }
    let (mut depth, mut quoted, mut escaped) = (0_usize, false, false);
    for byte in text.bytes() {
        match byte {
            _ if escaped => escaped = false,
            b'\\' if quoted => escaped = true,
            b'"' => quoted = !quoted,
            _ if quoted => {}
            b'{' | b'[' => depth += 1,
            b'}' | b']' => depth = depth.saturating_sub(1),
            _ => {}
        }
        if depth > limit {
            return true;
        }
    }
    false
}

/// A JSON object: its members by name, each as it was sent.
#[derive(Clone, Debug, Default)]
pub(crate) struct Record(BTreeMap<String, Box<RawValue>>);

impl Record {
    /// Takes a JSON object; of members with one name the last counts.
    ///
    /// # Errors
    /// Why it isn't one, for the caller's eyes.
    pub(crate) fn parse(bytes: &[u8]) -> Result<Self, String> {
        if bytes.trim_ascii_start().first() != Some(&b'{') {
            return Err("must be a JSON object".to_owned());
        }
        parse(bytes).map(Self)
    }

    pub(crate) fn names(&self) -> impl Iterator<Item = &str> {
        self.0.keys().map(String::as_str)
    }

    pub(crate) fn holds(&self, name: &str) -> bool {
        self.0.contains_key(name)
    }

    /// The member as it was sent; null counts as none.
    pub(crate) fn raw(&self, name: &str) -> Option<&str> {
        self.0.get(name).map(|raw| raw.get()).filter(|raw| *raw != "null")
    }

    /// The member as text: a string's characters, a number's digits. Null, an empty string, lists and objects are none.
    pub(crate) fn text(&self, name: &str) -> Option<String> {
        let raw = self.raw(name)?;
        match raw.as_bytes().first()? {
            b'"' => serde_json::from_str::<String>(raw).ok().filter(|text| !text.is_empty()),
            b'{' | b'[' => None,
            _ => Some(raw.to_owned()),
        }
    }

    /// The member as a list of texts: a JSON array, or PostgreSQL's own form `{a,b}`.
    pub(crate) fn list(&self, name: &str) -> Vec<String> {
        let Some(raw) = self.raw(name) else { return Vec::new() };
        if let Ok(list) = serde_json::from_str::<Vec<serde_json::Value>>(raw) {
            return list.iter().filter_map(scalar).collect();
        }
        let text = self.text(name).unwrap_or_default();
        let Some(inner) = text.strip_prefix('{').and_then(|rest| rest.strip_suffix('}')) else { return Vec::new() };
        let items = inner.split(',').map(|item| item.trim().trim_matches('"'));
        items.filter(|item| !item.is_empty()).map(str::to_owned).collect()
    }

    /// The member as an object of its own.
    pub(crate) fn object(&self, name: &str) -> Option<Record> {
        serde_json::from_str(self.raw(name)?).ok().map(Self)
    }

    /// Whether a member says the same in both, in whatever spelling; a missing one is null.
    pub(crate) fn agrees(&self, other: &Self, name: &str) -> bool {
        let parsed = |raw: &str| serde_json::from_str::<serde_json::Value>(raw).ok();
        match (self.raw(name), other.raw(name)) {
            (None, None) => true,
            (Some(one), Some(two)) => one == two || parsed(one).is_some_and(|value| Some(value) == parsed(two)),
            _ => false,
        }
    }

    /// Gives members their canonical names; `renamed` maps canonical to stored.
    pub(crate) fn rename(&mut self, renamed: &BTreeMap<String, String>) {
        for (canonical, stored) in renamed {
            if let Some(value) = self.0.remove(stored) {
                self.0.insert(canonical.clone(), value);
            }
        }
    }

    /// Takes from `other` what isn't here at all.
    pub(crate) fn fill(&mut self, other: &Self) {
        for (name, value) in &other.0 {
            if !self.0.contains_key(name) {
                self.0.insert(name.clone(), value.clone());
            }
        }
    }

    /// Puts a text where nothing was; as a number if it is one and `like` is no string.
    pub(crate) fn fill_text(&mut self, name: &str, text: &str, like: Option<&str>) {
        let number = || {
            serde_json::from_str::<serde_json::Number>(text)
                .ok()
                .and_then(|_| RawValue::from_string(text.to_owned()).ok())
        };
        let is_string = like.is_some_and(|like| like.starts_with('"'));
        let number = if is_string { None } else { number() };
        let value = number.unwrap_or_else(|| serde_json::value::to_raw_value(text).expect("a string is JSON"));
        self.0.entry(name.to_owned()).or_insert(value);
    }

    /// Copies one member from `other` where nothing was.
    pub(crate) fn fill_from(&mut self, other: &Self, name: &str) {
        if let (false, Some(value)) = (self.0.contains_key(name), other.0.get(name)) {
            self.0.insert(name.to_owned(), value.clone());
        }
    }

    /// What conditions see: an object whose missing members are none.
    pub(crate) fn value(&self) -> Value {
        Value::map(self.0.iter().map(|(name, raw)| (name.as_str(), value(raw.get()))))
    }
}

/// A value that the engine has no type for (a number out of range) stays text rather than losing its digits.
fn value(raw: &str) -> Value {
    Value::from_json(raw.as_bytes()).unwrap_or_else(|_| Value::text(raw))
}

fn scalar(value: &serde_json::Value) -> Option<String> {
    match value {
        serde_json::Value::String(text) => Some(text.clone()).filter(|text| !text.is_empty()),
        serde_json::Value::Number(number) => Some(number.to_string()),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn record(text: &str) -> Record {
        Record::parse(text.as_bytes()).unwrap()
    }

    #[test]
    fn digits_survive_and_kinds_are_told_apart() {
        let record = record(r#"{"big":12345678901234567890123,"f":1.10,"s":"a\"b","n":null,"o":{},"e":""}"#);
        assert_eq!(record.text("big").unwrap(), "12345678901234567890123");
        assert_eq!(record.text("f").unwrap(), "1.10");
        assert_eq!(record.text("s").unwrap(), "a\"b");
        assert!(["n", "o", "e", "missing"].iter().all(|name| record.text(name).is_none()));
    }

    #[test]
    fn lists_come_as_json_or_as_postgres_writes_them() {
        let record = record(r#"{"json":["a",1,null],"pg":"{a,\"b c\"}","none":null,"text":"a"}"#);
        assert_eq!(record.list("json"), ["a", "1"]);
        assert_eq!(record.list("pg"), ["a", "b c"]);
        assert!(record.list("none").is_empty() && record.list("text").is_empty());
    }

    #[test]
    fn nesting_is_bounded_and_brackets_in_strings_do_not_count() {
        let nested = |depth: usize| format!("{}{}", "[".repeat(depth), "]".repeat(depth));
        assert!(check(nested(64).as_bytes()).is_ok());
        assert!(check(nested(65).as_bytes()).is_err());
        assert!(check(format!("\"{}\\\"[\"", "[".repeat(1000)).as_bytes()).is_ok());
        assert!(check(b"\"\xff\"").is_err());
    }

    #[test]
    fn spelling_is_no_difference_and_null_is_the_same_as_missing() {
        let (one, two) = (record(r#"{"a":1.0,"b":"\u0061","c":null}"#), record(r#"{"a":1.00,"b":"a"}"#));
        assert!(["a", "b", "c"].iter().all(|name| one.agrees(&two, name)));
        assert!(!one.agrees(&record(r#"{"a":2}"#), "a"));
    }

    proptest! {
        #[test]
        fn whatever_is_accepted_can_be_read(text in "[\\[\\]{}\",:a0-9.\\\\eE+-]{0,40}") {
            if let Ok(record) = Record::parse(text.as_bytes()) {
                let _ = record.value();
                record.names().for_each(|name| drop((record.text(name), record.list(name), record.object(name))));
            }
        }
    }
}
