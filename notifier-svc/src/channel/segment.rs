//! How a text travels as SMS (3GPP TS 23.038): in the GSM 7-bit alphabet if all of it fits there, else in UCS-2, in one part
//! or several. Pure.
//!
//! A part alone has room for 160 septets or 70 UTF-16 units, one of several for 153 or 67; neither an escaped character nor
//! a surrogate pair is split between two.

use super::words::cut_by;

/// The basic alphabet; an escape to the second table is not a character.
const BASIC: &str = "@£$¥èéùìòÇ\nØø\rÅåΔ_ΦΓΛΩΠΨΣΘΞÆæßÉ !\"#¤%&'()*+,-./0123456789:;<=>?¡ABCDEFGHIJKLMNOPQRSTUVWXYZÄÖÑÜ§¿abcdefghijklmnopqrstuvwxyzäöñüà";
/// Those that take an escape, and so two septets.
const ESCAPED: &str = "\u{c}^{}\\[~]|€";

/// How a text is written.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Alphabet {
    Gsm7,
    Ucs2,
}

impl Alphabet {
    fn of(text: &str) -> Self {
        if text.chars().all(|c| BASIC.contains(c) || ESCAPED.contains(c)) { Self::Gsm7 } else { Self::Ucs2 }
    }

    fn weight(self, c: char) -> usize {
        match self {
            Self::Gsm7 => 1 + usize::from(ESCAPED.contains(c)),
            Self::Ucs2 => c.len_utf16(),
        }
    }

    /// Room in a part alone, and in one of several.
    fn room(self) -> (usize, usize) {
        match self {
            Self::Gsm7 => (160, 153),
            Self::Ucs2 => (70, 67),
        }
    }
}

/// In which alphabet a text travels, and in how many parts.
pub(super) fn segments(text: &str) -> (Alphabet, usize) {
    let alphabet = Alphabet::of(text);
    let (alone, of_several) = alphabet.room();
    if text.chars().map(|c| alphabet.weight(c)).sum::<usize>() <= alone {
        return (alphabet, 1);
    }
    let (mut parts, mut used) = (1, 0);
    for weight in text.chars().map(|c| alphabet.weight(c)) {
        if used + weight > of_several {
            (parts, used) = (parts + 1, 0);
        }
        used += weight;
    }
    (alphabet, parts)
}

/// The text, cut to so many parts and so many characters.
pub(super) fn fit(text: &str, parts: usize, characters: usize) -> String {
    let mut text = cut_by(&plain(text), characters, |_| 1);
    let (alphabet, needed) = segments(&text);
    if needed <= parts {
        return text;
    }
    let (alone, of_several) = alphabet.room();
    // A character that doesn't fit into the rest of a part leaves at most one septet or unit empty there.
    let room = if parts == 1 { alone } else { parts * (of_several - 1) };
    text = cut_by(&text, room, |c| alphabet.weight(c).max(ellipsis(c, alphabet)));
    if alphabet == Alphabet::Gsm7 { text.replace('…', "...") } else { text }
}

/// In the basic alphabet an ellipsis is three dots.
fn ellipsis(c: char, alphabet: Alphabet) -> usize {
    if c == '…' && alphabet == Alphabet::Gsm7 { 3 } else { 0 }
}

/// Typographic marks as the basic alphabet has them: one of them would make a text more than twice as long.
fn plain(text: &str) -> String {
    let mut plain = String::with_capacity(text.len());
    for c in text.chars() {
        match c {
            '\u{2018}' | '\u{2019}' | '\u{201b}' | '\u{2032}' => plain.push('\''),
            '\u{201c}' | '\u{201d}' | '\u{201e}' | '\u{2033}' => plain.push('"'),
            '\u{2010}'..='\u{2015}' | '\u{2212}' => plain.push('-'),
            '\u{2026}' => plain.push_str("..."),
            '\u{a0}' | '\u{2009}' | '\u{202f}' => plain.push(' '),
            c => plain.push(c),
        }
    }
    plain
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn parts_are_counted_as_networks_count_them() {
        assert_eq!(BASIC.chars().count(), 127);
        for (text, expected) in [
            ("a".repeat(160), (Alphabet::Gsm7, 1)),
            ("a".repeat(161), (Alphabet::Gsm7, 2)),
            ("a".repeat(306), (Alphabet::Gsm7, 2)),
            ("a".repeat(307), (Alphabet::Gsm7, 3)),
            ("€".repeat(80), (Alphabet::Gsm7, 1)),
            ("€".repeat(81), (Alphabet::Gsm7, 2)),
            // 76 in each part: 153 is odd.
            ("€".repeat(152), (Alphabet::Gsm7, 2)),
            ("€".repeat(153), (Alphabet::Gsm7, 3)),
            ("ж".repeat(70), (Alphabet::Ucs2, 1)),
            ("ж".repeat(71), (Alphabet::Ucs2, 2)),
            ("ж".repeat(134), (Alphabet::Ucs2, 2)),
            ("👍".repeat(35), (Alphabet::Ucs2, 1)),
            ("👍".repeat(66), (Alphabet::Ucs2, 2)),
            ("👍".repeat(67), (Alphabet::Ucs2, 3)),
            (String::new(), (Alphabet::Gsm7, 1)),
        ] {
            assert_eq!(segments(&text), expected, "{text}");
        }
    }

    #[test]
    fn typography_does_not_make_a_text_dearer() {
        assert_eq!(fit("Mia’s “day” – at 3 pm…", 1, 1600), "Mia's \"day\" - at 3 pm...");
        assert_eq!(segments(&fit(&"Mia’s ".repeat(100), 2, 1600)).1, 2);
    }

    proptest! {
        #[test]
        fn what_was_fitted_fits_and_what_fits_is_left_alone(text in "[a€ж👍…^ ]{0,900}", parts in 1..6usize) {
            let fitted = fit(&text, parts, 1600);
            prop_assert!(segments(&fitted).1 <= parts, "{fitted}");
            prop_assert!(fitted.chars().count() <= 1600);
            let (_, needed) = segments(&plain(&text));
            prop_assert!(needed > parts || fitted == plain(&text));
        }
    }
}
