//! JSON from strangers: bounded before anything recursive sees it, and opened member by member, so that a fault has a
//! name and numbers keep their digits. Pure.

use jiff::Timestamp;
use serde_json::value::RawValue;

use super::Answer;

/// The largest body, in bytes.
pub(super) const BODY_LIMIT: usize = 1 << 20;
/// The deepest nesting.
const DEPTH_LIMIT: usize = 64;

/// The body as text, if it is one JSON value within the limits.
///
/// # Errors
/// `Answer::Invalid` for `body`.
pub(super) fn check(body: &[u8]) -> Result<&str, Answer> {
    let invalid = |reason: &str| Answer::invalid("body", reason);
    if body.len() > BODY_LIMIT {
        return Err(invalid("must be at most 1 MiB"));
    }
    let text = std::str::from_utf8(body).map_err(|_| invalid("must be UTF-8"))?;
    check_structure(text).map_err(invalid)?;
    match serde_json::from_str::<&RawValue>(text) {
        Ok(_) => Ok(text),
        Err(error) => Err(invalid(&format!("must be JSON (line {}, column {})", error.line(), error.column()))),
    }
}

/// What the parser lets pass because it keeps texts as they are: depth, NUL and halves of surrogate pairs.
fn check_structure(text: &str) -> Result<(), &'static str> {
    let (mut depth, mut quoted, mut bytes) = (0_usize, false, text.as_bytes());
    while let [byte, rest @ ..] = bytes {
        bytes = rest;
        match byte {
            b'\\' if quoted => bytes = rest.get(escape_bytes(rest)?..).unwrap_or_default(),
            b'"' => quoted = !quoted,
            b'{' | b'[' if !quoted => depth += 1,
            b'}' | b']' if !quoted => depth = depth.saturating_sub(1),
            _ => {}
        }
        if depth > DEPTH_LIMIT {
            return Err("must be nested at most 64 deep");
        }
    }
    Ok(())
}

/// How long the escape is whose backslash came before `rest`. NUL is what PostgreSQL can't store, wherever the data ends
/// up; half a surrogate pair is no character. What is malformed otherwise is left to the parser.
fn escape_bytes(rest: &[u8]) -> Result<usize, &'static str> {
    match unit(rest) {
        None => Ok(1),
        Some(0) => Err("must not hold NUL"),
        Some(0xD800..=0xDBFF) => match rest.get(5..).and_then(|next| unit(next.strip_prefix(b"\\")?)) {
            Some(0xDC00..=0xDFFF) => Ok(11),
            _ => Err("must hold no half of a surrogate pair"),
        },
        Some(0xDC00..=0xDFFF) => Err("must hold no half of a surrogate pair"),
        Some(_) => Ok(5),
    }
}

/// The UTF-16 unit that `uXXXX` stands for.
fn unit(escape: &[u8]) -> Option<u16> {
    let digits = escape.strip_prefix(b"u")?.get(..4).filter(|digits| digits.iter().all(u8::is_ascii_hexdigit))?;
    u16::from_str_radix(std::str::from_utf8(digits).ok()?, 16).ok()
}

/// The members that `T` knows of the object `text`, each as it was sent. A member that stands twice is refused: which of
/// the two counts would depend on the reader.
///
/// # Errors
/// `Answer::Invalid` for `field`.
pub(super) fn members<'a, T: serde::Deserialize<'a>>(field: &'static str, text: &'a str) -> Result<T, Answer> {
    if !text.trim_ascii_start().starts_with('{') {
        return Err(Answer::invalid(field, "must be a JSON object"));
    }
    // All members of `T` are raw, so the parser's text can name nothing but a member that stands twice.
    serde_json::from_str(text).map_err(|error| Answer::invalid(field, format!("must be a JSON object: {error}")))
}

/// A member that must be there.
///
/// # Errors
/// `Answer::Invalid` for `field`.
pub(super) fn required<'a>(field: &'static str, member: Option<&'a RawValue>) -> Result<&'a RawValue, Answer> {
    member.ok_or_else(|| Answer::invalid(field, "must be there"))
}

/// A member that must be a text of 1 to `most` characters, none of them a control character.
///
/// # Errors
/// `Answer::Invalid` for `field`.
pub(super) fn text(field: &'static str, member: Option<&RawValue>, most: usize) -> Result<String, Answer> {
    let text: Option<String> = serde_json::from_str(required(field, member)?.get()).ok();
    let fits = |text: &String| (1..=most).contains(&text.chars().count()) && !text.chars().any(char::is_control);
    let reason =
        || Answer::invalid(field, format!("must be a text of 1 to {most} characters, without control characters"));
    text.filter(fits).ok_or_else(reason)
}

/// A time in ISO 8601 with its offset from UTC.
///
/// # Errors
/// `Answer::Invalid` for `timestamp`.
pub(super) fn timestamp(member: Option<&RawValue>) -> Result<Timestamp, Answer> {
    let text = text("timestamp", member, 64)?;
    text.parse().map_err(|_| Answer::invalid("timestamp", "must be ISO 8601 with an offset: 2026-05-01T12:00:00Z"))
}

/// A member that must be an object.
///
/// # Errors
/// `Answer::Invalid` for `field`.
pub(super) fn object<'a>(field: &'static str, member: Option<&'a RawValue>) -> Result<&'a RawValue, Answer> {
    let member = required(field, member)?;
    if member.get().starts_with('{') { Ok(member) } else { Err(Answer::invalid(field, "must be an object")) }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const ESCAPES: &[&str] = &["\\ud83d", "\\uDE00", "\\u0041", "\\u0000", "\\\\", "\\n", "\\\"", "\\u00", "a", "{"];

    fn reason(body: &[u8]) -> String {
        match check(body) {
            Err(Answer::Invalid { field, reason }) if field == "body" => reason,
            other => panic!("accepted, or refused in another way: {other:?}"),
        }
    }

    #[test]
    fn what_is_not_bounded_json_is_refused_and_its_text_is_not_repeated() {
        let long = format!("\"{}\"", "x".repeat(BODY_LIMIT));
        let deep = "[".repeat(100_000);
        for body in ["", "{", "{} {}", "\u{feff}{}", "{\"a\": 01}", "<script>", &long, &deep, r#"{"a":"\u0000"}"#] {
            assert!(!reason(body.as_bytes()).contains("script"));
        }
        assert_eq!(reason(b"\xff"), "must be UTF-8");
    }

    #[test]
    fn brackets_and_escapes_inside_texts_are_no_structure() {
        let nested = format!("{}{}", "[".repeat(64), "]".repeat(64));
        for body in [r#"{"a":"[[[{{{\"[["}"#, r#"{"a":"\\u0000"}"#, &format!("\"{}\"", "[".repeat(500)), &nested] {
            assert!(check(body.as_bytes()).is_ok(), "{body}");
        }
    }

    proptest! {
        #[test]
        fn any_bytes_are_answered_and_what_passes_is_json(body in proptest::collection::vec(any::<u8>(), 0..200)) {
            if let Ok(text) = check(&body) {
                prop_assert!(serde_json::from_str::<serde_json::Value>(text).is_ok());
            }
        }

        #[test]
        fn texts_that_pass_have_a_value(parts in proptest::collection::vec(prop::sample::select(ESCAPES), 0..8)) {
            let body = format!("\"{}\"", parts.concat());
            let readable = serde_json::from_str::<String>(&body).is_ok_and(|text| !text.contains('\0'));
            prop_assert_eq!(check(body.as_bytes()).is_ok(), readable, "{}", body);
        }

        #[test]
        fn an_escaped_nul_never_passes(before in "[a-z\\\\]{0,8}", after in "[a-z]{0,8}") {
            let body = serde_json::to_string(&format!("{before}\0{after}")).unwrap();
            prop_assert!(check(body.as_bytes()).is_err());
        }
    }
}
