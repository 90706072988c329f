//! Every connector that there is: those that are compiled in.

use super::built_in::BUILT_IN;

/// The text of a built-in connector.
pub(super) fn built_in_text(name: &str) -> Option<&'static str> {
    BUILT_IN.iter().find(|(other, _)| *other == name).map(|(_, text)| *text)
}
