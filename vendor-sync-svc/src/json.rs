//! JSON objects whose values stay the bytes that they were: members in their order, numbers with every digit. Pure.

use std::fmt;

use chassis::expression::Value;
use serde::{
    Deserialize, Deserializer,
    de::{MapAccess, Visitor},
};
use serde_json::value::RawValue;

/// An object's members, as they stood.
#[derive(Debug, Default)]
pub(crate) struct Object<'a>(pub(crate) Vec<(String, &'a RawValue)>);

impl Object<'_> {
    /// What expressions see: a missing member is none.
    pub(crate) fn value(&self) -> Value {
        Value::map(self.0.iter().map(|(name, raw)| (name.as_str(), value(raw.get()))))
    }
}

/// A number that the engine has no type for stays text rather than losing its digits.
fn value(raw: &str) -> Value {
    Value::from_json(raw.as_bytes()).unwrap_or_else(|_| Value::text(raw))
}

impl<'de> Deserialize<'de> for Object<'de> {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        deserializer.deserialize_map(Members)
    }
}

struct Members;

impl<'de> Visitor<'de> for Members {
    type Value = Object<'de>;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("a JSON object")
    }

    fn visit_map<A: MapAccess<'de>>(self, mut entries: A) -> Result<Object<'de>, A::Error> {
        let mut members = Vec::with_capacity(entries.size_hint().unwrap_or(16));
        while let Some(entry) = entries.next_entry()? {
            members.push(entry);
        }
        Ok(Object(members))
    }
}
