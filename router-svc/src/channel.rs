//! Live channels: their names, the patterns that choose among them, and an index of patterns. Pure.
//!
//! Which channels an event is on is said by `table.rs` and `facts.rs`; who listens is the business of `live.rs`.

use std::{borrow::Cow, collections::HashMap, fmt, sync::Arc};

use chassis::error::{Error, Result};

const LIMIT: usize = 256;
const SEGMENTS: usize = 8;

/// Where an event can be heard: segments joined by colons, `supplier:dashboard:{id}`. Cheap to clone.
#[derive(Clone, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub(crate) struct ChannelName(Arc<str>);

impl ChannelName {
    /// Takes one to eight segments, at most 256 bytes, without blanks, control characters or `*`.
    pub(crate) fn parse(text: &str) -> Result<Self> {
        if text.len() <= LIMIT && text.split(':').all(is_segment) && text.split(':').count() <= SEGMENTS {
            Ok(Self(text.into()))
        } else {
            Err(Error::invalid(
                "channels",
                format!("{text:.300?} must be 1 to 8 segments joined by `:`, without blanks or `*`"),
            ))
        }
    }

    fn segments(&self) -> std::str::Split<'_, char> {
        self.0.split(':')
    }

    #[cfg(test)]
    pub(crate) fn as_str(&self) -> &str {
        &self.0
    }
}

impl fmt::Display for ChannelName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl fmt::Debug for ChannelName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

/// Whether a text can stand between two colons; an id that can't is never put into a name.
pub(crate) fn is_segment(text: &str) -> bool {
    !text.is_empty() && !text.chars().any(|c| c.is_control() || c.is_whitespace() || c == ':' || c == '*')
}

/// Every couple's channel, and a room of its own.
pub(crate) const CLIENT_UPDATES: &str = "client-updates";

/// The channel behind a name that browser clients use, where the name stands for one; else the name itself.
pub(crate) fn resolve_alias(name: &str) -> Cow<'_, str> {
    for (alias, channel) in [("client-list-", "client-list:"), ("supplier_", "supplier:dashboard:")] {
        if let Some(id) = name.strip_prefix(alias).filter(|id| is_segment(id)) {
            return format!("{channel}{id}").into();
        }
    }
    name.into()
}

/// Chooses channels: `*` stands for one segment, a final `**` for one or more.
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub(crate) struct ChannelPattern(Vec<Segment>);

#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
enum Segment {
    Text(String),
    One,
    Rest,
}

impl ChannelPattern {
    /// Takes a channel's name in which segments may be `*`, and the last one `**`.
    pub(crate) fn parse(text: &str) -> Result<Self> {
        let invalid = || {
            let reason = "must be a channel's name in which whole segments may be `*`, and the last one `**`";
            Error::invalid("pattern", format!("{text:.300?} {reason}"))
        };
        let count = text.split(':').count();
        if text.len() > LIMIT || count > SEGMENTS {
            return Err(invalid());
        }
        let segment = |(index, segment): (usize, &str)| match segment {
            "*" => Ok(Segment::One),
            "**" if index + 1 == count => Ok(Segment::Rest),
            text if is_segment(text) => Ok(Segment::Text(text.to_owned())),
            _ => Err(invalid()),
        };
        text.split(':').enumerate().map(segment).collect::<Result<_>>().map(Self)
    }

    /// Like `parse`, and knows the names that browser clients use: `client-list-<id>` is `client-list:<id>`,
    /// `supplier_<id>` is `supplier:dashboard:<id>`, `client-updates` is every couple's channel.
    pub(crate) fn parse_alias(text: &str) -> Result<Self> {
        if text == CLIENT_UPDATES { Self::parse("couple:*") } else { Self::parse(&resolve_alias(text)) }
    }

    pub(crate) fn matches(&self, channel: &ChannelName) -> bool {
        let mut names = channel.segments();
        for segment in &self.0 {
            let Some(name) = names.next() else { return false };
            match segment {
                Segment::Rest => return true,
                Segment::One => {}
                Segment::Text(text) if text == name => {}
                Segment::Text(_) => return false,
            }
        }
        names.next().is_none()
    }
}

impl fmt::Display for ChannelPattern {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (index, segment) in self.0.iter().enumerate() {
            let colon = if index == 0 { "" } else { ":" };
            let text = match segment {
                Segment::Text(text) => text,
                Segment::One => "*",
                Segment::Rest => "**",
            };
            write!(f, "{colon}{text}")?;
        }
        Ok(())
    }
}

/// Values by pattern: finding those of a channel costs its segments, however many patterns there are.
#[derive(Clone, Debug)]
pub(crate) struct ChannelIndex<T> {
    root: Node<T>,
}

#[derive(Clone, Debug)]
struct Node<T> {
    /// Of patterns that end here.
    here: Vec<T>,
    /// Of patterns that end here with `**`.
    rest: Vec<T>,
    one: Option<Box<Node<T>>>,
    text: HashMap<String, Node<T>>,
}

impl<T> Default for Node<T> {
    fn default() -> Self {
        Self { here: Vec::new(), rest: Vec::new(), one: None, text: HashMap::new() }
    }
}

impl<T> Default for ChannelIndex<T> {
    fn default() -> Self {
        Self { root: Node::default() }
    }
}

impl<T> ChannelIndex<T> {
    pub(crate) fn insert(&mut self, pattern: &ChannelPattern, value: T) {
        let mut node = &mut self.root;
        for segment in &pattern.0 {
            node = match segment {
                Segment::Text(text) => node.text.entry(text.clone()).or_default(),
                Segment::One => node.one.get_or_insert_default(),
                Segment::Rest => return node.rest.push(value),
            };
        }
        node.here.push(value);
    }

    /// Calls `found` for each value whose pattern matches, in no order that means anything.
    pub(crate) fn find<'a>(&'a self, channel: &ChannelName, mut found: impl FnMut(&'a T)) {
        self.root.find(channel.segments(), &mut found);
    }
}

impl<T> Node<T> {
    fn find<'a>(&'a self, mut names: std::str::Split<'_, char>, found: &mut impl FnMut(&'a T)) {
        let Some(name) = names.next() else { return self.here.iter().for_each(found) };
        self.rest.iter().for_each(&mut *found);
        if let Some(one) = &self.one {
            one.find(names.clone(), found);
        }
        if let Some(node) = self.text.get(name) {
            node.find(names, found);
        }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    /// The rule as one would say it, without loops that leave early.
    fn matches_naively(pattern: &[&str], channel: &[&str]) -> bool {
        match (pattern, channel) {
            ([], []) => true,
            (["**"], [_, ..]) => true,
            (["*", pattern @ ..], [_, channel @ ..]) => matches_naively(pattern, channel),
            ([text, pattern @ ..], [name, channel @ ..]) => text == name && matches_naively(pattern, channel),
            _ => false,
        }
    }

    fn pattern() -> impl Strategy<Value = String> {
        let segment = prop_oneof![Just("a"), Just("b"), Just("*")];
        (prop::collection::vec(segment, 0..4), any::<bool>()).prop_filter_map("not empty", |(mut segments, rest)| {
            segments.extend(rest.then_some("**"));
            (!segments.is_empty()).then(|| segments.join(":"))
        })
    }

    proptest! {
        #[test]
        fn a_pattern_matches_what_the_plain_rule_matches(pattern in pattern(), channel in "[ab](:[ab]){0,4}") {
            let naive = matches_naively(&pattern.split(':').collect::<Vec<_>>(), &channel.split(':').collect::<Vec<_>>());
            let channel = ChannelName::parse(&channel).unwrap();
            prop_assert_eq!(ChannelPattern::parse(&pattern).unwrap().matches(&channel), naive);
        }

        #[test]
        fn the_index_finds_each_matching_pattern_once(patterns in prop::collection::vec(pattern(), 0..20), channel in "[ab](:[ab]){0,4}") {
            let channel = ChannelName::parse(&channel).unwrap();
            let patterns: Vec<_> = patterns.iter().map(|text| ChannelPattern::parse(text).unwrap()).collect();
            let mut index = ChannelIndex::default();
            patterns.iter().enumerate().for_each(|(at, pattern)| index.insert(pattern, at));
            let mut found = Vec::new();
            index.find(&channel, |at| found.push(*at));
            found.sort_unstable();
            let expected: Vec<_> = (0..patterns.len()).filter(|at| patterns[*at].matches(&channel)).collect();
            prop_assert_eq!(found, expected);
        }

        #[test]
        fn a_pattern_prints_as_it_was_written(pattern in pattern()) {
            prop_assert_eq!(ChannelPattern::parse(&pattern).unwrap().to_string(), pattern);
        }

        #[test]
        fn parsing_never_panics_and_a_name_is_a_pattern_of_itself(text in "\\PC{0,20}") {
            if let Ok(name) = ChannelName::parse(&text) {
                prop_assert!(ChannelPattern::parse(&text).unwrap().matches(&name));
            }
        }
    }

    #[test]
    fn aliases_of_browser_clients_are_the_channels_they_stand_for() {
        for (alias, channel) in [
            ("client-list-s1", "client-list:s1"),
            ("supplier_s1", "supplier:dashboard:s1"),
            ("client-updates", "couple:c9"),
            ("wedding:w1", "wedding:w1"),
        ] {
            let pattern = ChannelPattern::parse_alias(alias).unwrap();
            assert!(pattern.matches(&ChannelName::parse(channel).unwrap()), "{alias}");
        }
        assert!(ChannelPattern::parse_alias("client-list-*").is_err(), "an alias names one supplier");
    }

    #[test]
    fn names_without_segments_or_with_wildcards_are_refused() {
        for bad in ["", ":", "a:", ":a", "a::b", "a:*", "a b", "a:\0", "a:b:c:d:e:f:g:h:i"] {
            assert!(ChannelName::parse(bad).is_err(), "{bad:?}");
        }
        for bad in ["", "**:a", "a*", "a:**:b", "*a:b"] {
            assert!(ChannelPattern::parse(bad).is_err(), "{bad:?}");
        }
    }
}
