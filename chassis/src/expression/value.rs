//! The data that expressions see, and their results on the way back.

use std::{cmp::Ordering, collections::BTreeMap, fmt, sync::Arc};

use minijinja::{
    Error, ErrorKind, Value as Engine,
    value::{DynObject, Enumerator, Object, ObjectExt as _, ObjectRepr, ValueKind},
};
use serde::{
    Deserialize, Deserializer,
    de::{DeserializeSeed, MapAccess, SeqAccess, Visitor},
};

use super::meter;

/// What a step to a name that isn't there gives.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Missing {
    /// For records: columns that are not sent are none.
    IsNone,
    /// For templates: a misspelt name is an error.
    IsUndefined,
}

/// Data in the form that expressions read. Cheap to clone.
#[derive(Debug, Clone)]
pub struct Value(pub(super) Engine);

impl Value {
    /// Reads JSON; nesting is limited to 128. A name that is missing from an object is none.
    ///
    /// # Errors
    /// What is wrong with the JSON.
    pub fn from_json(bytes: &[u8]) -> Result<Self, serde_json::Error> {
        Self::read(bytes, Missing::IsNone)
    }

    /// What a JSON value holds, read as [`Value::from_json`] does.
    #[must_use]
    pub fn of(json: &serde_json::Value) -> Self {
        Self(Reader(Missing::IsNone).deserialize(json).expect("JSON deserializes into what holds JSON"))
    }

    pub(super) fn read(bytes: &[u8], missing: Missing) -> Result<Self, serde_json::Error> {
        let mut reader = serde_json::Deserializer::from_slice(bytes);
        let value = Reader(missing).deserialize(&mut reader)?;
        reader.end()?;
        Ok(Self(value))
    }

    /// A text.
    #[must_use]
    pub fn text(text: &str) -> Self {
        Self(Engine::from(text))
    }

    /// An object without members: what `old` is on an INSERT and `new` on a DELETE.
    #[must_use]
    pub fn empty() -> Self {
        Self::map([])
    }

    /// An object whose missing names are none.
    #[must_use]
    pub fn map<'a>(members: impl IntoIterator<Item = (&'a str, Value)>) -> Self {
        let members = members.into_iter().map(|(name, value)| (Arc::from(name), value.0)).collect();
        Self(Engine::from_object(Record { members, missing: Missing::IsNone }))
    }

    /// The variables of an evaluation.
    #[must_use]
    pub fn scope<const N: usize>(variables: [(&'static str, Value); N]) -> Self {
        Self(Engine::from_object(Variables(variables.map(|(name, value)| (name, value.0)).into())))
    }
}

/// A handful of names, searched from the first. A name that isn't there is left to the functions.
#[derive(Debug)]
struct Variables(Box<[(&'static str, Engine)]>);

impl Object for Variables {
    fn get_value(self: &Arc<Self>, key: &Engine) -> Option<Engine> {
        self.get_value_by_str(key.as_str()?)
    }

    fn get_value_by_str(self: &Arc<Self>, key: &str) -> Option<Engine> {
        self.0.iter().find(|(name, _)| *name == key).map(|(_, value)| value.clone())
    }
}

/// A JSON object.
#[derive(Debug)]
struct Record {
    members: BTreeMap<Arc<str>, Engine>,
    missing: Missing,
}

impl Object for Record {
    fn get_value(self: &Arc<Self>, key: &Engine) -> Option<Engine> {
        self.get_value_by_str(key.as_str()?)
    }

    fn get_value_by_str(self: &Arc<Self>, key: &str) -> Option<Engine> {
        match (self.members.get(key), self.missing) {
            (Some(value), _) => Some(value.clone()),
            (None, Missing::IsNone) => Some(Engine::from(())),
            (None, Missing::IsUndefined) => None,
        }
    }

    fn enumerate(self: &Arc<Self>) -> Enumerator {
        self.mapped_key_value_enumerator(|this| {
            Box::new(this.members.iter().map(|(name, value)| (Engine::from(&**name), value.clone())))
        })
    }

    fn enumerator_len(self: &Arc<Self>) -> Option<usize> {
        Some(self.members.len())
    }

    /// Pays for what it compares. Missing and none differ here: records are the same when they were sent the same.
    fn custom_cmp(self: &Arc<Self>, other: &DynObject) -> Option<Ordering> {
        let other = other.downcast_ref::<Self>()?;
        if !meter::spend(1 + self.members.len()) {
            return Some(Ordering::Less);
        }
        Some(self.members.iter().cmp(other.members.iter()))
    }
}

/// A JSON array.
#[derive(Debug)]
struct List(Vec<Engine>);

impl Object for List {
    fn repr(self: &Arc<Self>) -> ObjectRepr {
        ObjectRepr::Seq
    }

    fn get_value(self: &Arc<Self>, key: &Engine) -> Option<Engine> {
        self.0.get(key.as_usize()?).cloned()
    }

    fn enumerate(self: &Arc<Self>) -> Enumerator {
        Enumerator::Seq(self.0.len())
    }

    /// Pays for what it compares.
    fn custom_cmp(self: &Arc<Self>, other: &DynObject) -> Option<Ordering> {
        let other = other.downcast_ref::<Self>()?;
        if !meter::spend(1 + self.0.len()) {
            return Some(Ordering::Less);
        }
        Some(self.0.cmp(&other.0))
    }
}

/// Whether `name` is there, although a step to it would give none.
pub(super) fn has_member(map: &Engine, name: &Engine) -> bool {
    match map.downcast_object_ref::<Record>() {
        Some(record) => name.as_str().is_some_and(|name| record.members.contains_key(name)),
        None => map.get_item(name).is_ok_and(|member| !member.is_undefined()),
    }
}

/// Builds the engine's values straight from JSON, without a tree in between.
struct Reader(Missing);

impl<'de> DeserializeSeed<'de> for Reader {
    type Value = Engine;

    fn deserialize<D: Deserializer<'de>>(self, deserializer: D) -> Result<Engine, D::Error> {
        deserializer.deserialize_any(self)
    }
}

impl<'de> Visitor<'de> for Reader {
    type Value = Engine;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("JSON")
    }

    fn visit_unit<E>(self) -> Result<Engine, E> {
        Ok(Engine::from(()))
    }

    fn visit_bool<E>(self, value: bool) -> Result<Engine, E> {
        Ok(Engine::from(value))
    }

    fn visit_i64<E>(self, value: i64) -> Result<Engine, E> {
        Ok(Engine::from(value))
    }

    fn visit_u64<E>(self, value: u64) -> Result<Engine, E> {
        Ok(Engine::from(value))
    }

    fn visit_f64<E>(self, value: f64) -> Result<Engine, E> {
        Ok(Engine::from(value))
    }

    fn visit_str<E>(self, value: &str) -> Result<Engine, E> {
        Ok(Engine::from(value))
    }

    fn visit_seq<A: SeqAccess<'de>>(self, mut items: A) -> Result<Engine, A::Error> {
        let mut list = Vec::new();
        while let Some(item) = items.next_element_seed(Reader(self.0))? {
            list.push(item);
        }
        Ok(Engine::from_object(List(list)))
    }

    fn visit_map<A: MapAccess<'de>>(self, mut entries: A) -> Result<Engine, A::Error> {
        let mut members = BTreeMap::new();
        while let Some(Name(name)) = entries.next_key()? {
            members.insert(name, entries.next_value_seed(Reader(self.0))?);
        }
        Ok(Engine::from_object(Record { members, missing: self.0 }))
    }
}

struct Name(Arc<str>);

impl<'de> Deserialize<'de> for Name {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let text = std::borrow::Cow::<'de, str>::deserialize(deserializer)?;
        Ok(Self(text.as_ref().into()))
    }
}

/// A result as JSON. Pays for every node and every byte, so that a short source can't multiply a long record.
pub(super) fn to_json(value: &Engine) -> Result<serde_json::Value, Error> {
    meter::charge(16)?;
    Ok(match value.kind() {
        ValueKind::None => serde_json::Value::Null,
        ValueKind::Bool => value.is_true().into(),
        ValueKind::Number => number_to_json(value)?,
        ValueKind::String => {
            let text = value.as_str().unwrap_or_default();
            meter::charge(4 * text.len())?;
            text.into()
        }
        ValueKind::Seq | ValueKind::Iterable => {
            value.try_iter()?.map(|item| to_json(&item)).collect::<Result<_, _>>()?
        }
        ValueKind::Map => {
            let member = |key: Engine| {
                let name = key.as_str().map_or_else(|| key.to_string(), str::to_owned);
                meter::charge(4 * name.len())?;
                Ok((name, to_json(&value.get_item(&key)?)?))
            };
            serde_json::Value::Object(value.try_iter()?.map(member).collect::<Result<_, Error>>()?)
        }
        ValueKind::Undefined => return Err(Error::new(ErrorKind::UndefinedError, "the result is undefined")),
        kind => return Err(Error::new(ErrorKind::InvalidOperation, format!("{kind} is not a result"))),
    })
}

fn number_to_json(value: &Engine) -> Result<serde_json::Value, Error> {
    let out_of_range = || Error::new(ErrorKind::InvalidOperation, "the number is out of range");
    if !value.is_integer() {
        let float = serde_json::Number::from_f64(f64::try_from(value.clone())?);
        return float.map(Into::into).ok_or_else(out_of_range);
    }
    let signed = i64::try_from(value.clone()).map(serde_json::Value::from);
    signed.or_else(|_| u64::try_from(value.clone()).map(Into::into)).map_err(|_| out_of_range())
}
