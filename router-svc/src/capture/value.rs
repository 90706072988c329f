//! A value as PostgreSQL prints it becomes JSON as PostgreSQL's own `row_to_json` writes it: numbers keep their digits,
//! times are ISO 8601, arrays are arrays. What JSON has no form for is the text that PostgreSQL prints. Pure.

use std::collections::HashMap;

use serde_json::value::RawValue;

/// What is known of a type.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Kind {
    Bool,
    Number,
    Json,
    /// A date, or a timestamp without time zone.
    Time,
    /// A timestamp with time zone; the session's is UTC.
    Instant,
    Text,
}

/// OIDs of built-in types: scalar, its array (pg_type.dat of PostgreSQL).
const BUILT_IN: [(u32, u32, Kind); 26] = [
    (16, 1000, Kind::Bool),
    (17, 1001, Kind::Text),
    (18, 1002, Kind::Text),
    (19, 1003, Kind::Text),
    (20, 1016, Kind::Number),
    (21, 1005, Kind::Number),
    (23, 1007, Kind::Number),
    (25, 1009, Kind::Text),
    (26, 1028, Kind::Number),
    (114, 199, Kind::Json),
    (650, 651, Kind::Text),
    (700, 1021, Kind::Number),
    (701, 1022, Kind::Number),
    (790, 791, Kind::Text),
    (829, 1040, Kind::Text),
    (869, 1041, Kind::Text),
    (1042, 1014, Kind::Text),
    (1043, 1015, Kind::Text),
    (1082, 1182, Kind::Time),
    (1083, 1183, Kind::Text),
    (1114, 1115, Kind::Time),
    (1184, 1185, Kind::Instant),
    (1186, 1187, Kind::Text),
    (1266, 1270, Kind::Text),
    (1700, 1231, Kind::Number),
    (2950, 2951, Kind::Text),
];
const JSONB: (u32, u32) = (3802, 3807);
/// A user's own types have OIDs from here on.
pub(super) const FIRST_OWN: u32 = 16_384;
/// Domains over domains, arrays of them: more steps than that are no type.
const STEPS_MAX: usize = 16;
/// PostgreSQL's arrays have six dimensions at most.
const DIMENSIONS_MAX: usize = 6;

/// What a user's own type stands for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Own {
    /// A domain over another type.
    Domain(u32),
    /// An array of another type.
    Array(u32),
    /// An enumeration, a composite, a range, ...: text.
    Other,
}

/// The types of one database.
#[derive(Clone, Debug, Default)]
pub(super) struct Types(pub(super) HashMap<u32, Own>);

impl Types {
    /// Whether everything is known about a type that can be.
    pub(super) fn knows(&self, type_: u32) -> bool {
        type_ < FIRST_OWN || self.0.contains_key(&type_)
    }

    /// The kind of a type, and whether it is an array.
    fn kind(&self, mut type_: u32) -> (Kind, bool) {
        let mut is_array = false;
        for _ in 0..STEPS_MAX {
            match self.0.get(&type_) {
                Some(Own::Domain(base)) => type_ = *base,
                Some(Own::Array(element)) => (type_, is_array) = (*element, true),
                Some(Own::Other) => return (Kind::Text, is_array),
                None => break,
            }
        }
        let (kind, built_in_array) = built_in(type_);
        (kind, is_array || built_in_array)
    }

    /// Appends a value as JSON.
    ///
    /// # Errors
    /// It isn't UTF-8.
    pub(super) fn write(&self, type_: u32, text: &[u8], json: &mut Vec<u8>) -> Result<(), NotUtf8> {
        let text = std::str::from_utf8(text).map_err(|_| NotUtf8)?;
        let (kind, is_array) = self.kind(type_);
        let start = json.len();
        if !is_array || array(kind, text, json).is_none() {
            json.truncate(start);
            scalar(if is_array { Kind::Text } else { kind }, text, json);
        }
        Ok(())
    }
}

/// The database holds bytes that aren't text.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct NotUtf8;

fn built_in(type_: u32) -> (Kind, bool) {
    if type_ == JSONB.0 || type_ == JSONB.1 {
        return (Kind::Json, type_ == JSONB.1);
    }
    let known = BUILT_IN.iter().find(|(scalar, array, _)| [*scalar, *array].contains(&type_));
    known.map_or((Kind::Text, false), |(_, array, kind)| (*kind, *array == type_))
}

fn scalar(kind: Kind, text: &str, json: &mut Vec<u8>) {
    match kind {
        Kind::Bool if text == "t" => json.extend(b"true"),
        Kind::Bool if text == "f" => json.extend(b"false"),
        Kind::Number if is_number(text) => json.extend(text.as_bytes()),
        Kind::Json if serde_json::from_str::<&RawValue>(text).is_ok() => json.extend(text.as_bytes()),
        Kind::Time => quoted(&moment(text), json),
        Kind::Instant => quoted(&instant(text), json),
        _ => quoted(text, json),
    }
}

/// A `T` before a time. A date alone may have a space as well, before its era: `0044-03-15 BC`.
fn moment(text: &str) -> String {
    match text.split_once(' ') {
        Some((date, rest)) if rest.starts_with(|c: char| c.is_ascii_digit()) => format!("{date}T{rest}"),
        _ => text.to_owned(),
    }
}

/// `2026-05-01 12:00:00.5+00` as `2026-05-01T12:00:00.5+00:00`; `infinity` has no space and stays.
fn instant(text: &str) -> String {
    let Some((date, rest)) = text.split_once(' ') else { return text.to_owned() };
    let (time, era) = rest.split_once(' ').map_or((rest, None), |(time, era)| (time, Some(era)));
    let minutes = if matches!(time.as_bytes(), [.., b'+' | b'-', _, _]) { ":00" } else { "" };
    let era = era.map(|era| format!(" {era}")).unwrap_or_default();
    format!("{date}T{time}{minutes}{era}")
}

pub(super) fn quoted(text: &str, json: &mut Vec<u8>) {
    serde_json::to_writer(json, text).expect("a string is JSON, and memory takes it");
}

/// JSON's grammar of a number: PostgreSQL's `NaN` and `Infinity` are none.
fn is_number(text: &str) -> bool {
    let text = text.strip_prefix('-').unwrap_or(text);
    text.starts_with(|c: char| c.is_ascii_digit()) && serde_json::from_str::<&RawValue>(text).is_ok()
}

/// An array's text, `{1,NULL,"a b"}`; none if it isn't one. Leaves the JSON half written then.
fn array(kind: Kind, text: &str, json: &mut Vec<u8>) -> Option<()> {
    // `[0:1]={...}` where indices don't begin at 1.
    let text = if text.starts_with('[') { text.split_once('=')?.1 } else { text };
    let mut rest = text;
    let mut depth = 0_usize;
    loop {
        if let Some(inner) = rest.strip_prefix('{') {
            depth += 1;
            json.push(b'[');
            if depth > DIMENSIONS_MAX {
                return None;
            }
            rest = inner;
            if !rest.starts_with('}') {
                continue;
            }
        } else {
            rest = element(kind, rest, json)?;
        }
        while let Some(outer) = rest.strip_prefix('}') {
            depth = depth.checked_sub(1)?;
            json.push(b']');
            rest = outer;
        }
        if depth == 0 {
            return rest.is_empty().then_some(());
        }
        rest = rest.strip_prefix(',')?;
        json.push(b',');
    }
}

/// One element, to the comma or bracket behind it; gives what follows.
fn element<'a>(kind: Kind, text: &'a str, json: &mut Vec<u8>) -> Option<&'a str> {
    let Some(inner) = text.strip_prefix('"') else {
        let end = text.find([',', '}', '{', '"'])?;
        let (value, rest) = text.split_at(end);
        match value {
            "" => return None,
            "NULL" => json.extend(b"null"),
            value => scalar(kind, value, json),
        }
        return Some(rest);
    };
    let mut value = String::new();
    let mut characters = inner.char_indices();
    loop {
        match characters.next()? {
            (_, '\\') => value.push(characters.next()?.1),
            (end, '"') => {
                scalar(kind, &value, json);
                return inner.get(end + 1..);
            }
            (_, other) => value.push(other),
        }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn json_of(type_: u32, text: &str) -> String {
        let types = Types(
            [
                (20_000, Own::Domain(23)),
                (20_001, Own::Array(20_000)),
                (20_002, Own::Other),
                (20_003, Own::Array(20_002)),
            ]
            .into(),
        );
        let mut json = Vec::new();
        types.write(type_, text.as_bytes(), &mut json).unwrap();
        String::from_utf8(json).unwrap()
    }

    #[test]
    fn values_are_as_row_to_json_writes_them() {
        for (type_, text, json) in [
            (16, "t", "true"),
            (20, "-9223372036854775808", "-9223372036854775808"),
            (1700, "12345678901234567890.1234567890", "12345678901234567890.1234567890"),
            (1700, "NaN", r#""NaN""#),
            (701, "1e+20", "1e+20"),
            (701, "-Infinity", r#""-Infinity""#),
            (114, r#"{"b": 1,  "a":1.0}"#, r#"{"b": 1,  "a":1.0}"#),
            (3802, "null", "null"),
            (17, r"\x6869", r#""\\x6869""#),
            (1082, "2026-05-01", r#""2026-05-01""#),
            (1082, "infinity", r#""infinity""#),
            (1082, "0044-03-15 BC", r#""0044-03-15 BC""#),
            (1114, "2026-05-01 12:00:00.5", r#""2026-05-01T12:00:00.5""#),
            (1114, "0044-03-15 12:00:00 BC", r#""0044-03-15T12:00:00 BC""#),
            (1184, "2026-05-01 12:00:00+00", r#""2026-05-01T12:00:00+00:00""#),
            (1184, "2026-05-01 12:00:00.123+05:30", r#""2026-05-01T12:00:00.123+05:30""#),
            (1184, "0044-03-15 12:00:00+00 BC", r#""0044-03-15T12:00:00+00:00 BC""#),
            (1184, "-infinity", r#""-infinity""#),
            (1184, "2026-05-01 12:\u{1F3E9}W", "\"2026-05-01T12:\u{1F3E9}W\""),
            (25, "a\"\n\u{1F600}", "\"a\\\"\\n\u{1F600}\""),
            (2950, "0b7f", r#""0b7f""#),
            (20_000, "7", "7"),
            (20_002, "happy", r#""happy""#),
        ] {
            assert_eq!(json_of(type_, text), json, "{type_} {text}");
        }
    }

    #[test]
    fn arrays_are_arrays() {
        for (type_, text, json) in [
            (1007, "{}", "[]"),
            (1007, "{1,NULL,-3}", "[1,null,-3]"),
            (1007, "{{1,2},{3,4}}", "[[1,2],[3,4]]"),
            (1007, "[0:1]={1,2}", "[1,2]"),
            (1009, r#"{a,"b c","NULL",NULL,"d\"e\\f","","{x}"}"#, r#"["a","b c","NULL",null,"d\"e\\f","","{x}"]"#),
            (1000, "{t,f}", "[true,false]"),
            (3807, r#"{"{\"a\": [1, 2]}",null}"#, r#"[{"a": [1, 2]},null]"#),
            (1185, r#"{"2026-05-01 12:00:00+00"}"#, r#"["2026-05-01T12:00:00+00:00"]"#),
            (20_001, "{1,2}", "[1,2]"),
            (20_003, "{happy,sad}", r#"["happy","sad"]"#),
        ] {
            assert_eq!(json_of(type_, text), json, "{type_} {text}");
        }
    }

    #[test]
    fn what_is_no_array_stays_text_and_what_is_no_text_is_refused() {
        for text in ["", "{", "{1", "{1,}", "{1}}", "{,1}", "1", "{\"a", "{{{{{{{1}}}}}}}", "{}{}", "{1}{2}"] {
            assert_eq!(json_of(1007, text), serde_json::to_string(text).unwrap());
        }
        assert_eq!(Types::default().write(25, b"\xff", &mut Vec::new()), Err(NotUtf8));
    }

    proptest! {
        #[test]
        fn whatever_the_text_is_the_result_is_json(type_ in proptest::sample::select(vec![16, 20, 701, 1700, 114, 3802, 1082, 1184, 25, 1007, 1009, 3807, 1185, 20_003]), text in "[\\[\\]{}\",:a0-9.\\\\eE+ nulN-]{0,30}|\\PC{0,12}") {
            let json = json_of(type_, &text);
            prop_assert!(serde_json::from_str::<&RawValue>(&json).is_ok(), "{}", json);
        }

        #[test]
        fn an_array_of_texts_reads_as_it_was(texts in proptest::collection::vec("\\PC{0,8}", 0..6)) {
            let quoted: Vec<String> = texts.iter().map(|text| format!("\"{}\"", text.replace('\\', "\\\\").replace('"', "\\\""))).collect();
            let json = json_of(1009, &format!("{{{}}}", quoted.join(",")));
            prop_assert_eq!(serde_json::from_str::<Vec<String>>(&json).unwrap(), texts);
        }
    }
}
