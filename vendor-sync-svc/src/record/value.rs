//! Values in one form, so that two systems that mean the same also say the same. Pure.
//!
//! What would otherwise go around as a change: blanks at the ends, decomposed letters (macOS's `e` + acute), the line ends of
//! Windows, a date with a time of midnight, seconds that nobody set, a number sent as text, an address in capitals. A text
//! of nothing is none (null): forms can't send any other. What can't be read as its field's form stays as it is: a vendor's
//! "to be agreed" is told on rather than lost.

use jiff::{
    Timestamp,
    civil::{Date, DateTime, Time},
};
use serde_json::{Map, Number, Value};
use unicode_normalization::UnicodeNormalization as _;

/// How a field's text is read.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Form {
    Text,
    /// `YYYY-MM-DD`.
    Date,
    /// `HH:MM`.
    Time,
    /// RFC 3339 in UTC.
    Instant,
    Number,
    Flag,
    /// In small letters: no provider in use tells `Anna@` from `anna@`.
    Email,
    /// A list without order or repeats.
    Set,
}

/// By the field's name, so that a column that isn't known yet has a form too.
fn form(field: &str) -> Form {
    let ends = |tail: &str| field.strip_suffix(tail).is_some_and(|head| head.is_empty() || head.ends_with('_'));
    match field {
        _ if ends("date") => Form::Date,
        _ if ends("time") => Form::Time,
        _ if ends("at") => Form::Instant,
        _ if ends("count") => Form::Number,
        _ if ends("email") => Form::Email,
        _ if field.starts_with("consent_") => Form::Flag,
        _ if ends("tags") || ends("ids") => Form::Set,
        _ => Form::Text,
    }
}

/// The value in its field's form.
pub(crate) fn normalize(field: &str, value: &Value) -> Value {
    let form = form(field);
    match value {
        Value::String(text) => read(form, tidy(text)),
        Value::Number(number) => Value::Number(whole(number)),
        Value::Array(items) if form == Form::Set => set(items),
        other => tidied(other),
    }
}

/// The value as text that is equal for equal values: the last word where nothing else decides.
pub(crate) fn canonical(value: &Value) -> String {
    value.to_string()
}

fn read(form: Form, text: String) -> Value {
    if text.is_empty() {
        return Value::Null;
    }
    let read = match form {
        Form::Text | Form::Set => None,
        Form::Date => date(&text),
        Form::Time => text.parse::<Time>().ok().map(|time| time.strftime("%H:%M").to_string().into()),
        Form::Instant => text.parse::<Timestamp>().ok().map(|at| at.to_string().into()),
        Form::Number => text.parse::<Number>().ok().map(|number| Value::Number(whole(&number))),
        Form::Flag => match text.to_ascii_lowercase().as_str() {
            "true" => Some(true.into()),
            "false" => Some(false.into()),
            _ => None,
        },
        Form::Email => Some(text.to_lowercase().into()),
    };
    read.unwrap_or(Value::String(text))
}

/// The day that is written, wherever its time is: a wedding's date has no zone.
fn date(text: &str) -> Option<Value> {
    let (day, rest) = text.split_at_checked(10)?;
    let is_day = rest.is_empty() || (rest.starts_with(['T', 't', ' ']) && is_time_of_day(text));
    let day = day.parse::<Date>().ok().filter(|_| is_day)?;
    Some(day.to_string().into())
}

fn is_time_of_day(text: &str) -> bool {
    text.parse::<DateTime>().is_ok() || text.parse::<Timestamp>().is_ok()
}

/// Composed, without blanks at its ends, lines ended by a line feed, and no other control characters.
fn tidy(text: &str) -> String {
    let lines = text.replace("\r\n", "\n");
    let kept = |c: &char| !c.is_control() || matches!(c, '\n' | '\t');
    lines.nfc().filter(kept).collect::<String>().trim().to_owned()
}

/// 120.0 is 120.
fn whole(number: &Number) -> Number {
    let float = number.as_f64().filter(|_| number.is_f64());
    #[expect(clippy::cast_possible_truncation, reason = "whole and far below 2^63")]
    let whole =
        float.filter(|float| float.fract() == 0.0 && float.abs() < 9e15).map(|float| Number::from(float as i64));
    whole.unwrap_or_else(|| number.clone())
}

fn set(items: &[Value]) -> Value {
    let mut items: Vec<_> = items.iter().map(tidied).filter(|item| !item.is_null()).collect();
    items.sort_by_key(canonical);
    items.dedup();
    if items.is_empty() { Value::Null } else { Value::Array(items) }
}

/// Every text and number within it, its members in the order of their names.
fn tidied(value: &Value) -> Value {
    match value {
        Value::String(text) => read(Form::Text, tidy(text)),
        Value::Number(number) => Value::Number(whole(number)),
        Value::Array(items) if items.is_empty() => Value::Null,
        Value::Array(items) => items.iter().map(tidied).collect(),
        Value::Object(members) => {
            let mut members: Vec<_> = members.iter().map(|(name, value)| (name.clone(), tidied(value))).collect();
            members.sort_by(|a, b| a.0.cmp(&b.0));
            if members.is_empty() { Value::Null } else { Value::Object(members.into_iter().collect::<Map<_, _>>()) }
        }
        other => other.clone(),
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;
    use serde_json::json;

    use super::*;

    #[test]
    fn what_means_the_same_is_the_same() {
        for (field, said, meant) in [
            ("venue_name", json!("  The Old Mill\r\n "), json!("The Old Mill")),
            ("first_name", json!("Zoe\u{301}"), json!("Zo\u{e9}")),
            ("first_name", json!("a\u{0}b"), json!("ab")),
            ("venue_notes", json!("   "), json!(null)),
            ("wedding_date", json!("2026-06-20T00:00:00Z"), json!("2026-06-20")),
            ("wedding_date", json!("2026-06-20 00:00:00"), json!("2026-06-20")),
            ("date", json!(" 2026-06-20"), json!("2026-06-20")),
            ("ceremony_time", json!("15:00:00"), json!("15:00")),
            ("updated_at", json!("2026-06-20T17:00:00+02:00"), json!("2026-06-20T15:00:00Z")),
            ("guest_count", json!("120"), json!(120)),
            ("guest_count", json!(120.0), json!(120)),
            ("partner_email", json!("Anna@Example.COM"), json!("anna@example.com")),
            ("consent_marketing", json!("True"), json!(true)),
            ("tags", json!(["b", "a ", "b", ""]), json!(["a", "b"])),
            ("address", json!({"zip": " 1 ", "city": "Bath"}), json!({"city": "Bath", "zip": "1"})),
            ("dietary_requirements", json!([]), json!(null)),
        ] {
            assert_eq!(normalize(field, &said), meant, "{field}: {said}");
        }
    }

    #[test]
    fn what_isnt_of_its_fields_form_stays_as_it_was_said() {
        for (field, said) in [
            ("wedding_date", json!("to be agreed")),
            ("wedding_date", json!("2026-06-31")),
            ("wedding_date", json!("2026-06-20 or 27")),
            ("ceremony_time", json!("after lunch")),
            ("guest_count", json!("about 120")),
            ("phone", json!("0044123")),
            ("time_zone", json!("Europe/London")),
            ("dietary_requirements", json!(["vegan", "nuts"])),
        ] {
            assert_eq!(normalize(field, &said), said, "{field}");
        }
    }

    proptest! {
        #[test]
        fn a_value_in_its_form_stays_so(field in "(a_)?(name|date|time|at|count|email|tags)", text in "\\PC{0,12}|[0-9T:. -]{0,20}") {
            let once = normalize(&field, &json!(text));
            prop_assert_eq!(normalize(&field, &once), once);
        }
    }
}
