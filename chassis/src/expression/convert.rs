//! Filters for mappings between systems, which write the same thing differently: dates and times by a pattern, names in
//! one piece or two, codes, hashes as keys. All pure and bounded. What turns one form into another gives none for none,
//! so that a field that isn't there needs no test.

use jiff::{civil, fmt::strtime};
use md5::{Digest as _, Md5};
use minijinja::{Environment, Error, ErrorKind, Value, value::ValueKind};
use sha2::Sha256;

use super::meter::charge;

/// The longest pattern, and the longest text that one is applied to.
const PATTERN_BYTES: usize = 256;

type Result<T, E = Error> = std::result::Result<T, E>;

pub(super) fn register(engine: &mut Environment<'static>) {
    engine.add_filter("md5", |text: &str| charge(text.len()).map(|()| hex::encode(Md5::digest(text))));
    engine.add_filter("sha256", |text: &str| charge(text.len()).map(|()| hex::encode(Sha256::digest(text))));
    engine
        .add_filter("parse_date", |value: &Value, pattern: &str| unless_none(value, |text| parse_date(text, pattern)));
    engine
        .add_filter("parse_time", |value: &Value, pattern: &str| unless_none(value, |text| parse_time(text, pattern)));
    engine.add_filter("format_time", |value: &Value, pattern: &str| {
        unless_none(value, |text| format_time(text, pattern))
    });
    engine.add_filter("first_word", |value: &Value| unless_none(value, |text| Ok(words(text).0.to_owned())));
    engine.add_filter("other_words", |value: &Value| unless_none(value, |text| Ok(words(text).1.to_owned())));
    engine.add_filter("lookup", lookup);
    engine.add_filter("nonempty", nonempty);
}

fn impossible(reason: impl Into<String>) -> Error {
    Error::new(ErrorKind::InvalidOperation, reason.into())
}

fn unless_none(value: &Value, convert: impl FnOnce(&str) -> Result<String>) -> Result<Value> {
    if value.is_none() || value.is_undefined() {
        return Ok(Value::from(()));
    }
    let text = value.as_str().ok_or_else(|| impossible(format!("this {} is not a text", value.kind())))?;
    charge(text.len())?;
    convert(text).map(Value::from)
}

/// Text and pattern are short, since a directive may look at all of the text.
fn parsed(text: &str, pattern: &str) -> Result<strtime::BrokenDownTime> {
    if text.len().max(pattern.len()) > PATTERN_BYTES {
        return Err(impossible("the date or its pattern is too long"));
    }
    strtime::parse(pattern, text.trim()).map_err(|_| impossible("the text doesn't follow the pattern of the date"))
}

fn parse_date(text: &str, pattern: &str) -> Result<String> {
    let date = parsed(text, pattern)?.to_date().ok().filter(|date| date.year() >= 0);
    date.map(|date| date.to_string()).ok_or_else(|| impossible("the pattern gives no date"))
}

fn parse_time(text: &str, pattern: &str) -> Result<String> {
    let time = parsed(text, pattern)?.to_time().map_err(|_| impossible("the pattern gives no time"))?;
    Ok(time.strftime("%H:%M").to_string())
}

fn format_time(text: &str, pattern: &str) -> Result<String> {
    let wanted = || impossible("this is not a time like 15:00");
    let time: civil::Time = text.trim().parse().map_err(|_| wanted())?;
    if pattern.len() > PATTERN_BYTES {
        return Err(impossible("the pattern of the time is too long"));
    }
    // The widest directive pads to 255 characters.
    charge(256 * pattern.len())?;
    strtime::format(pattern, time).map_err(|_| impossible("the pattern of the time is not understood"))
}

/// Up to the first blank, and what follows it.
fn words(text: &str) -> (&str, &str) {
    let text = text.trim();
    text.split_once(char::is_whitespace).map_or((text, ""), |(first, others)| (first, others.trim_start()))
}

fn lookup(value: &Value, table: &Value, other: Option<Value>) -> Result<Value> {
    let other = || other.clone().unwrap_or_else(|| Value::from(()));
    if table.kind() != ValueKind::Map {
        return Err(impossible("lookup needs a map"));
    }
    if value.is_none() || value.is_undefined() {
        return Ok(other());
    }
    // Keys of maps in JSON are texts.
    let key = if value.kind() == ValueKind::String { value.clone() } else { Value::from(value.to_string()) };
    let found = table.get_item(&key)?;
    Ok(if found.is_none() || found.is_undefined() { other() } else { found })
}

fn nonempty(value: &Value) -> Value {
    let empty = match value.kind() {
        ValueKind::Undefined | ValueKind::None => true,
        ValueKind::String => value.as_str().is_some_and(|text| text.trim().is_empty()),
        ValueKind::Seq | ValueKind::Map | ValueKind::Iterable => value.len() == Some(0),
        _ => false,
    };
    if empty { Value::from(()) } else { value.clone() }
}
