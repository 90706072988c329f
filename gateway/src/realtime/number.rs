//! Decimal numbers of any size, exact: what `numeric`, `bigint` and JSON hold and floating point doesn't. Pure.

use std::cmp::Ordering;

/// Digits of an exponent that are read; PostgreSQL's `numeric` ends far below.
const EXPONENT_DIGITS: usize = 6;

/// A number, in the one form that equal numbers share: no zero at either end of its digits.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub(crate) struct Number {
    negative: bool,
    /// It is 0.`digits` times ten to this power; 0 for zero.
    exponent: i64,
    /// Empty for zero.
    digits: Box<str>,
}

impl Number {
    /// Takes `-12`, `+1.50`, `.5`, `1e-3`; none for anything else.
    pub(crate) fn parse(text: &str) -> Option<Self> {
        let (negative, unsigned) = match text.as_bytes().first()? {
            b'-' => (true, &text[1..]),
            b'+' => (false, &text[1..]),
            _ => (false, text),
        };
        let (mantissa, exponent) = unsigned.split_once(['e', 'E']).unwrap_or((unsigned, "0"));
        let (whole, fraction) = mantissa.split_once('.').unwrap_or((mantissa, ""));
        let all_digits = |text: &str| text.bytes().all(|byte| byte.is_ascii_digit());
        if (whole.is_empty() && fraction.is_empty()) || !all_digits(whole) || !all_digits(fraction) {
            return None;
        }
        let exponent = parse_exponent(exponent)? + i64::try_from(whole.len()).ok()?;
        Some(Self::normal(negative, &[whole, fraction].concat(), exponent))
    }

    fn normal(negative: bool, digits: &str, exponent: i64) -> Self {
        let significant = digits.trim_start_matches('0');
        let leading = i64::try_from(digits.len() - significant.len()).unwrap_or(i64::MAX);
        match significant.trim_end_matches('0') {
            "" => Self { negative: false, exponent: 0, digits: "".into() },
            digits => Self { negative, exponent: exponent.saturating_sub(leading), digits: digits.into() },
        }
    }

    fn sign(&self) -> i8 {
        match (self.digits.is_empty(), self.negative) {
            (true, _) => 0,
            (false, true) => -1,
            (false, false) => 1,
        }
    }
}

fn parse_exponent(text: &str) -> Option<i64> {
    let digits = text.strip_prefix(['-', '+']).unwrap_or(text);
    let readable = (1..=EXPONENT_DIGITS).contains(&digits.len()) && digits.bytes().all(|byte| byte.is_ascii_digit());
    if readable { text.parse().ok() } else { None }
}

impl Ord for Number {
    fn cmp(&self, other: &Self) -> Ordering {
        let by_size = || self.exponent.cmp(&other.exponent).then_with(|| self.digits.cmp(&other.digits));
        self.sign().cmp(&other.sign()).then_with(|| if self.negative { by_size().reverse() } else { by_size() })
    }
}

impl PartialOrd for Number {
    fn partial_cmp(&self, other: &Self) -> Option<Ordering> {
        Some(self.cmp(other))
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn number(text: &str) -> Number {
        Number::parse(text).unwrap_or_else(|| panic!("{text} is a number"))
    }

    #[test]
    fn equal_numbers_are_one_however_they_are_written() {
        for (one, other) in
            [("1", "1.000"), ("-0", "0"), ("100", "1e2"), ("0.5", ".50"), ("+7", "0007"), ("12e-1", "1.2")]
        {
            assert_eq!(number(one), number(other), "{one} {other}");
        }
    }

    #[test]
    fn numbers_that_floating_point_confuses_differ() {
        let sorted = [
            "-9007199254740993",
            "-9007199254740992",
            "-1e-3",
            "0",
            "0.1",
            "0.10000000000000000001",
            "9",
            "10",
            "9007199254740992",
            "9007199254740993",
            "1e400",
        ];
        assert!(sorted.is_sorted_by(|one, other| number(one) < number(other)));
    }

    #[test]
    fn what_is_no_number_is_refused() {
        for text in ["", "-", ".", "1.2.3", "1e", "e5", "0x10", "1_000", " 1", "NaN", "1e9999999", "--1", "१"] {
            assert_eq!(Number::parse(text), None, "{text}");
        }
    }

    proptest! {
        #[test]
        fn whole_numbers_are_ordered_as_whole_numbers_are(one: i128, other: i128) {
            prop_assert_eq!(number(&one.to_string()).cmp(&number(&other.to_string())), one.cmp(&other));
        }

        #[test]
        fn fractions_are_ordered_as_their_scaled_numbers_are(one: i32, other: i32) {
            let scaled = |value: i32| number(&format!("{value}e-4"));
            prop_assert_eq!(scaled(one).cmp(&scaled(other)), one.cmp(&other));
        }

        #[test]
        fn no_text_makes_reading_panic(text: String) {
            Number::parse(&text);
        }
    }
}
