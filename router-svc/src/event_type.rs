//! Types of events and the patterns that choose among them. Pure.

use std::{borrow::Borrow, fmt, sync::Arc};

use chassis::error::{Error, Result};

const LIMIT: usize = 128;

/// What kind of thing happened: dotted lower-case segments, `wedding.date_changed`. Cheap to clone.
#[derive(Clone, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub(crate) struct EventType(Arc<str>);

impl EventType {
    /// Takes segments of `[a-z0-9_]+` joined by dots, at most 128 characters.
    pub(crate) fn parse(text: &str) -> Result<Self> {
        if is_well_formed(text) {
            Ok(Self(text.into()))
        } else {
            Err(Error::invalid("type", "must be dotted segments of [a-z0-9_], at most 128 characters"))
        }
    }

    /// The type of a change: `<table>.<operation>`, with what a segment can't hold made lower case or `_`.
    pub(crate) fn of_change(table: &str, operation: &str) -> Self {
        let segment = |c: char| if c.is_ascii_alphanumeric() { c.to_ascii_lowercase() } else { '_' };
        let table: String = table.chars().map(segment).collect();
        Self(format!("{table}.{operation}").into())
    }

    pub(crate) fn as_str(&self) -> &str {
        &self.0
    }

    /// The first segment: `wedding` of `wedding.date_changed`.
    pub(crate) fn family(&self) -> &str {
        self.0.split('.').next().unwrap_or_default()
    }

    /// Everything a prefix pattern may be written for, longest first: `a.b` and `a` of `a.b.c`.
    pub(crate) fn prefixes(&self) -> impl Iterator<Item = &str> {
        self.0.rmatch_indices('.').map(|(dot, _)| &self.0[..dot])
    }
}

impl Borrow<str> for EventType {
    fn borrow(&self) -> &str {
        &self.0
    }
}

impl fmt::Display for EventType {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl fmt::Debug for EventType {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

fn is_well_formed(text: &str) -> bool {
    let is_segment = |segment: &str| {
        !segment.is_empty() && segment.bytes().all(|b| b.is_ascii_lowercase() || b.is_ascii_digit() || b == b'_')
    };
    text.len() <= LIMIT && text.split('.').all(is_segment)
}

/// Chooses events by type.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub(crate) enum TypePattern {
    /// This type.
    Exact(EventType),
    /// `wedding.*`: everything below `wedding`, at any depth.
    Below(EventType),
    /// `*`.
    Any,
}

impl TypePattern {
    /// Takes a type, `<prefix>.*` or `*`.
    pub(crate) fn parse(text: &str) -> Result<Self> {
        if text == "*" {
            return Ok(Self::Any);
        }
        let parsed = match text.strip_suffix(".*") {
            Some(prefix) => EventType::parse(prefix).map(Self::Below),
            None => EventType::parse(text).map(Self::Exact),
        };
        parsed.map_err(|_| Error::invalid("types", format!("{text:.160?} must be a type, `<prefix>.*` or `*`")))
    }

    pub(crate) fn matches(&self, type_: &EventType) -> bool {
        match self {
            Self::Exact(exact) => exact == type_,
            Self::Below(prefix) => type_.0.strip_prefix(prefix.as_str()).is_some_and(|rest| rest.starts_with('.')),
            Self::Any => true,
        }
    }
}

impl fmt::Display for TypePattern {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Exact(exact) => f.write_str(exact.as_str()),
            Self::Below(prefix) => write!(f, "{prefix}.*"),
            Self::Any => f.write_str("*"),
        }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn only_dotted_lower_case_segments_are_types() {
        for good in ["ping", "wedding.date_changed", "a.b.c", "form_responses.insert", &"a".repeat(128)] {
            assert!(EventType::parse(good).is_ok(), "{good}");
        }
        for bad in ["", ".", "a.", ".a", "a..b", "Wedding.x", "a b", "a.*", "ä", "a\0", &"a".repeat(129)] {
            assert!(EventType::parse(bad).is_err(), "{bad}");
        }
    }

    #[test]
    fn a_table_with_capitals_still_gives_a_type() {
        let type_ = EventType::of_change("Wedding-Details", "update");
        assert_eq!(EventType::parse(type_.as_str()).expect("well formed"), type_);
    }

    proptest! {
        #[test]
        fn a_prefix_pattern_matches_exactly_what_lies_below_it(prefix in "[ab]{1,2}(\\.[ab]{1,2}){0,2}", type_ in "[ab]{1,2}(\\.[ab]{1,2}){0,3}") {
            let parsed = EventType::parse(&type_).unwrap();
            let below = type_.starts_with(&format!("{prefix}."));
            prop_assert_eq!(TypePattern::parse(&format!("{prefix}.*")).unwrap().matches(&parsed), below);
            prop_assert_eq!(parsed.prefixes().any(|p| p == prefix), below);
        }

        #[test]
        fn a_pattern_prints_as_it_was_written(text in "([a-z_]{1,6}(\\.[a-z_]{1,6}){0,2}(\\.\\*)?)|\\*") {
            prop_assert_eq!(TypePattern::parse(&text).unwrap().to_string(), text);
        }
    }
}
