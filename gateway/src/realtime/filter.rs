//! The filter of a subscription, `column=operator.value[,column=operator.value...]`, and whether a row matches it. Pure.
//!
//! It means what PostgreSQL means by it: NULL matches nothing but `is` and `isdistinct`, and a column that a row
//! doesn't carry matches nothing at all, negated or not. `row.rs` says what values are compared as.

mod parse;
mod pattern;
#[cfg(test)]
mod postgres;

use std::{
    cmp::Ordering,
    hash::{Hash, Hasher},
    sync::Arc,
};

use regex::Regex;

use self::pattern::Pattern;
use super::row::{Literal, Row, Value};

/// A longer text is compared, but not searched: no pattern or expression says anything of it.
const SEARCHED_BYTES: usize = 16 << 10;

/// What a row must be; equal to another with the same text. Cheap to clone.
#[derive(Clone, Debug)]
pub(crate) struct Filter {
    text: Arc<str>,
    clauses: Arc<[Clause]>,
}

/// Why a text is no filter; for the client's eyes.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("filter: {0}")]
pub(crate) struct FilterError(String);

#[derive(Debug)]
struct Clause {
    column: Box<str>,
    negated: bool,
    test: Test,
}

#[derive(Debug)]
enum Test {
    Compare(Comparison, Literal),
    In(Box<[Literal]>),
    Is(Truth),
    Distinct(Literal),
    Like(Pattern),
    Match(Regex),
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Comparison {
    Equal,
    Unequal,
    Less,
    AtMost,
    Greater,
    AtLeast,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Truth {
    Null,
    True,
    False,
    Unknown,
}

/// What an index can find a filter by: a part of it that every matching row fulfils.
#[derive(Debug)]
pub(crate) enum Handhold<'a> {
    /// The column is one of these.
    Equal(&'a str, &'a [Literal]),
    /// The column is this or more.
    From(&'a str, &'a Literal),
    /// The column is this or less.
    UpTo(&'a str, &'a Literal),
}

impl Filter {
    /// Takes at most 8 KiB and 16 conditions, `in` at most 100 values, a pattern or regular expression at most 256 bytes.
    /// Empty: no condition.
    pub(crate) fn parse(text: &str) -> Result<Self, FilterError> {
        Ok(Self { text: text.into(), clauses: parse::clauses(text)?.into() })
    }

    /// Whether `row` fulfils all conditions.
    pub(crate) fn matches(&self, row: &Row) -> bool {
        self.clauses.iter().all(|clause| clause.matches(row))
    }

    /// How many regular expressions are in it: each may take 128 KiB, and whoever keeps many filters bounds them.
    pub(crate) fn expressions(&self) -> usize {
        self.clauses.iter().filter(|clause| matches!(clause.test, Test::Match(_))).count()
    }

    /// How many patterns are in it: a hostile one looks at each character of a text 256 times.
    pub(crate) fn patterns(&self) -> usize {
        self.clauses.iter().filter(|clause| matches!(clause.test, Test::Like(_))).count()
    }

    pub(crate) fn bytes(&self) -> usize {
        self.text.len()
    }

    pub(crate) fn handholds(&self) -> impl Iterator<Item = Handhold<'_>> {
        self.clauses.iter().filter(|clause| !clause.negated).filter_map(|clause| match &clause.test {
            Test::Compare(Comparison::Equal, literal) => {
                Some(Handhold::Equal(&clause.column, std::slice::from_ref(literal)))
            }
            Test::In(literals) => Some(Handhold::Equal(&clause.column, literals)),
            Test::Compare(Comparison::Greater | Comparison::AtLeast, literal) => {
                Some(Handhold::From(&clause.column, literal))
            }
            Test::Compare(Comparison::Less | Comparison::AtMost, literal) => {
                Some(Handhold::UpTo(&clause.column, literal))
            }
            _ => None,
        })
    }
}

impl PartialEq for Filter {
    fn eq(&self, other: &Self) -> bool {
        self.text == other.text
    }
}

impl Eq for Filter {}

impl Hash for Filter {
    fn hash<H: Hasher>(&self, state: &mut H) {
        self.text.hash(state);
    }
}

impl Clause {
    fn matches(&self, row: &Row) -> bool {
        let holds = row.get(&self.column).and_then(|value| self.test.holds(value));
        holds.is_some_and(|holds| holds != self.negated)
    }
}

impl Test {
    /// None for SQL's unknown, and for what PostgreSQL wouldn't compare.
    fn holds(&self, value: &Value) -> Option<bool> {
        match self {
            Self::Is(truth) => truth.holds(value),
            Self::Distinct(_) if *value == Value::Null => Some(true),
            Self::Distinct(literal) => value.compare(literal).map(Ordering::is_ne),
            Self::Compare(comparison, literal) => value.compare(literal).map(|ordering| comparison.holds(ordering)),
            Self::In(literals) => one_of(value, literals),
            Self::Like(pattern) => searched(value).map(|text| pattern.matches(text)),
            Self::Match(expression) => searched(value).map(|text| expression.is_match(text)),
        }
    }
}

fn searched(value: &Value) -> Option<&str> {
    value.text().filter(|text| text.len() <= SEARCHED_BYTES)
}

fn one_of(value: &Value, literals: &[Literal]) -> Option<bool> {
    let equal = |literal| value.compare(literal).map(Ordering::is_eq);
    literals.iter().filter_map(equal).reduce(|one, other| one || other)
}

impl Comparison {
    fn holds(self, ordering: Ordering) -> bool {
        match self {
            Self::Equal => ordering.is_eq(),
            Self::Unequal => ordering.is_ne(),
            Self::Less => ordering.is_lt(),
            Self::AtMost => ordering.is_le(),
            Self::Greater => ordering.is_gt(),
            Self::AtLeast => ordering.is_ge(),
        }
    }
}

impl Truth {
    fn holds(self, value: &Value) -> Option<bool> {
        let is = |bool: bool| value.compare(&Literal::new(if bool { "true" } else { "false" })).map(Ordering::is_eq);
        match (self, value) {
            (Self::Null, value) => Some(*value == Value::Null),
            (Self::Unknown, Value::Null) => Some(true),
            (_, Value::Null) => Some(false),
            (Self::True, _) => is(true),
            (Self::False, _) => is(false),
            (Self::Unknown, _) => is(true).map(|_| false),
        }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn matches(filter: &str, row: &str) -> bool {
        Filter::parse(filter).expect("a filter").matches(&Row::parse(row.as_bytes()))
    }

    #[test]
    fn all_conditions_must_hold() {
        let row = r#"{"id":7,"status":"open, or not","name":null}"#;
        assert!(matches("", row) && matches("id=eq.7", row));
        assert!(matches(r#"id=gt.6,status=eq."open, or not",name=is.null"#, row));
        assert!(matches(r"status=eq.open\, or not", row));
        assert!(!matches("id=eq.7,id=eq.8", row));
    }

    #[test]
    fn null_and_what_the_row_does_not_carry_match_nothing() {
        let row = r#"{"gone":null}"#;
        for test in ["eq.1", "neq.1", "not.eq.1", "in.(1)", "not.in.(1)", "like.%", "not.like.%", "match.a", "lt.1"] {
            assert!(!matches(&format!("gone={test}"), row) && !matches(&format!("absent={test}"), row), "{test}");
        }
        assert!(matches("gone=is.null", row) && matches("gone=isdistinct.1", row) && matches("gone=is.unknown", row));
        for test in ["is.null", "not.is.null", "isdistinct.1", "not.isdistinct.1", "is.unknown"] {
            assert!(!matches(&format!("absent={test}"), row), "{test}");
        }
    }

    #[test]
    fn objects_lists_and_what_can_not_be_compared_match_nothing() {
        let row = r#"{"o":{},"l":[1],"n":1}"#;
        for column in ["o", "l"] {
            for test in ["eq.1", "neq.1", "not.eq.1", "in.(1)", "isdistinct.1", "is.true", "not.like.a"] {
                assert!(!matches(&format!("{column}={test}"), row), "{column} {test}");
            }
        }
        assert!(!matches("n=eq.one", row) && !matches("n=neq.one", row) && !matches("n=not.is.true", row));
    }

    #[test]
    fn a_text_that_is_too_long_to_search_is_compared_all_the_same() {
        let row = |length: usize| format!(r#"{{"a":"{}"}}"#, "x".repeat(length));
        for test in ["like.%x", "not.like.%y", "match.x$", "not.match.y"] {
            assert!(matches(&format!("a={test}"), &row(SEARCHED_BYTES)), "{test}");
            assert!(!matches(&format!("a={test}"), &row(SEARCHED_BYTES + 1)), "{test}");
        }
        assert!(matches("a=gt.x", &row(SEARCHED_BYTES + 1)));
    }

    proptest! {
        #[test]
        fn no_text_makes_parsing_or_matching_panic(text in "(a|b)=(not\\.)?(eq|in|is|like|ilike|match|imatch)\\.\\PC{0,20}", any: String, value: String) {
            let row = format!(r#"{{"a":{},"b":1}}"#, serde_json::Value::from(value));
            let row = Row::parse(row.as_bytes());
            for text in [text, any] {
                if let Ok(filter) = Filter::parse(&text) {
                    filter.matches(&row);
                }
            }
        }
    }
}
