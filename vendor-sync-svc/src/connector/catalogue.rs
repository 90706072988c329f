//! Every connector that there is: those that are compiled in.

use super::built_in::BUILT_IN;

/// The text of a built-in connector.
pub(crate) fn built_in_text(name: &str) -> Option<&'static str> {
    BUILT_IN.iter().find(|(other, _)| *other == name).map(|(_, text)| *text)
}

/// Names of the built-in connectors, in the order of the alphabet.
pub(crate) fn built_in_names() -> impl Iterator<Item = &'static str> {
    BUILT_IN.iter().map(|(name, _)| *name)
}
