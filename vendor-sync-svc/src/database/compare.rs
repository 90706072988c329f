//! Which fields of a row are written: those that don't say what stands, where what they do say is known. Pure.
//!
//! A row has one time for all of its columns, and our own writes move it: it can't tell whose a value is. So a value that
//! the row is known to have had, by an event of its own or a write of ours, may be replaced, whatever the row's time. One
//! that isn't known was said since by somebody whose event is on its way: it stays, unless it is older than what stands. That
//! event is merged when it comes, and what loses then is written over (`resolve::observe`).

use std::collections::BTreeSet;

use serde::Deserialize;
use serde_json::Value;

use super::{Row, table::said};
use crate::record::value::normalize;

/// One column of a row beside what its field is to say, as the database compares them: in the column's own type.
#[derive(Clone, Debug, Deserialize)]
pub(super) struct Seen {
    now: Value,
    same: bool,
    known: bool,
    /// The row was changed after what stands was said.
    newer: bool,
}

/// How a row compares with what stands, by the fields that have a column.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct Compared {
    pub(crate) same: BTreeSet<String>,
    /// It says something else, which is known: it may be written.
    pub(crate) behind: BTreeSet<String>,
    /// Somebody has said something else since, which comes by itself.
    pub(crate) newer: BTreeSet<String>,
    /// There is no row yet.
    pub(super) is_missing: bool,
}

impl Compared {
    pub(super) fn of(row: &Row<'_>, columns: &[(&String, &str)], seen: &[Seen]) -> Self {
        let mut compared = Self::default();
        for ((name, _), seen) in columns.iter().zip(seen) {
            let field = (*name).clone();
            match row.fate(name, seen) {
                Fate::Same => compared.same.insert(field),
                Fate::Behind => compared.behind.insert(field),
                Fate::Newer => compared.newer.insert(field),
            };
        }
        compared
    }
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Fate {
    Same,
    Behind,
    Newer,
}

impl Row<'_> {
    /// What a field is to say.
    pub(crate) fn value(&self, name: &str) -> Value {
        self.stands.get(name).map(|field| field.value.clone()).unwrap_or_default()
    }

    /// What the row is known to have had, as rows of these columns.
    pub(super) fn known(&self, columns: &[(&String, &str)]) -> Vec<Value> {
        let base = |name: &str| self.base.get(name).or_else(|| self.said.get(name));
        let said_last = |name: &str| self.said.get(name).or_else(|| self.base.get(name));
        vec![Value::Object(said(columns, base)), Value::Object(said(columns, said_last))]
    }

    fn fate(&self, name: &str, seen: &Seen) -> Fate {
        let now = normalize(name, &seen.now);
        let stands = &self.stands[name].value;
        let (base, said) = (self.base.get(name), self.said.get(name));
        // In a form of the application's own, it still says the same.
        if seen.same || now == *stands {
            return Fate::Same;
        }
        let is_known = seen.known || [base, said].contains(&Some(&now));
        // Where it should say so already, somebody has just changed it.
        let is_news = base != Some(stands);
        if is_known || (is_news && !seen.newer) { Fate::Behind } else { Fate::Newer }
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use chassis::{id::OrganizationId, testing::noon};
    use serde_json::json;

    use super::*;
    use crate::record::{Field, RecordKey, RecordKind, Source};

    fn fate(stands: &Value, base: Option<&Value>, said: Option<&Value>, (now, newer): (&Value, bool)) -> Fate {
        let organization = OrganizationId::parse("acme").expect("well-formed");
        let key = RecordKey::new(organization, RecordKind::Wedding, "w1").expect("well-formed");
        let field = Field { value: stands.clone(), at: noon(), source: Source::integration("i1"), over: None };
        let one = |value: Option<&Value>| value.map(|v| ("email".to_owned(), v.clone())).into_iter().collect();
        let (stands, base, said): (_, BTreeMap<_, _>, BTreeMap<_, _>) =
            (BTreeMap::from([("email".to_owned(), field)]), one(base), one(said));
        let row = Row { key: &key, stands: &stands, base: &base, said: &said };
        row.fate("email", &Seen { now: now.clone(), same: false, known: false, newer })
    }

    #[test]
    fn a_value_that_is_known_is_replaced_and_one_that_isnt_stays_unless_it_is_older() {
        let (a, b, c) = (json!("a@x.org"), json!("b@x.org"), json!("c@x.org"));
        for (stands, base, said, now, expected) in [
            (&b, Some(&a), None, (&b, true), Fate::Same),
            (&b, Some(&a), None, (&json!(" B@x.org"), true), Fate::Same),
            (&b, Some(&a), None, (&a, true), Fate::Behind),
            (&b, Some(&b), Some(&a), (&a, true), Fate::Behind),
            (&b, Some(&a), None, (&c, true), Fate::Newer),
            (&b, Some(&a), None, (&c, false), Fate::Behind),
            (&b, Some(&b), Some(&a), (&c, false), Fate::Newer),
            (&b, None, None, (&c, true), Fate::Newer),
            (&b, Some(&a), None, (&json!(null), true), Fate::Newer),
        ] {
            assert_eq!(fate(stands, base, said, now), expected, "{stands} {base:?} {said:?} {now:?}");
        }
    }
}
