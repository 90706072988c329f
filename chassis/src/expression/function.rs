//! The functions, filters and tests of the language: all pure, all bounded, none of the engine's own.

use std::cmp::Ordering;

use jiff::{Span, Timestamp, civil, fmt::strtime, tz::TimeZone};
use minijinja::{
    Environment, Error, ErrorKind, Value,
    value::{Rest, ValueKind},
};

use super::{
    convert,
    meter::charge,
    value::{has_member, to_json},
};

/// Functions a source may call, in the order of the alphabet.
pub(super) const FUNCTIONS: &[&str] =
    &["add", "add_days", "concat", "date", "days_between", "mul", "number", "timestamp"];

/// Filters a source may use, in the order of the alphabet.
pub(super) const FILTERS: &[&str] = &[
    "abs",
    "capitalize",
    "count",
    "d",
    "default",
    "first",
    "first_word",
    "float",
    "format_date",
    "format_time",
    "int",
    "items",
    "join",
    "last",
    "length",
    "lookup",
    "lower",
    "md5",
    "nonempty",
    "other_words",
    "parse_date",
    "parse_time",
    "pluck",
    "round",
    "sha256",
    "split",
    "string",
    "sum",
    "tojson",
    "trim",
    "truncate",
    "upper",
];

/// Tests a source may use, in the order of the alphabet.
pub(super) const TESTS: &[&str] = &[
    "boolean",
    "defined",
    "endingwith",
    "false",
    "mapping",
    "none",
    "number",
    "sequence",
    "startingwith",
    "string",
    "true",
    "undefined",
];

/// The longest pattern for a date.
const PATTERN_BYTES: usize = 256;

type Result<T, E = Error> = std::result::Result<T, E>;

/// Adds all of them, and the operators that [`super::syntax`] turns into calls. Functions get a `_` before their names,
/// which no variable has, so that a variable `date` and the function `date()` keep out of each other's way.
pub(super) fn register(engine: &mut Environment<'static>) {
    engine.add_function("_lt", |a: &Value, b: &Value| compare(a, b).map(Ordering::is_lt));
    engine.add_function("_le", |a: &Value, b: &Value| compare(a, b).map(Ordering::is_le));
    engine.add_function("_gt", |a: &Value, b: &Value| compare(a, b).map(Ordering::is_gt));
    engine.add_function("_ge", |a: &Value, b: &Value| compare(a, b).map(Ordering::is_ge));
    engine.add_function("_in", contains);
    engine.add_function("_add", |values: Rest<Value>| calculate(&values, 0, i128::checked_add, |a, b| a + b));
    engine.add_function("_mul", |values: Rest<Value>| calculate(&values, 1, i128::checked_mul, |a, b| a * b));
    engine.add_function("_concat", |values: Rest<Value>| concat(values.iter(), ""));
    engine.add_function("_number", number);
    engine.add_function("_date", |value: &Value| date(value).map(|date| date.to_string()));
    engine.add_function("_timestamp", |value: &Value| timestamp(value).map(|time| format!("{time:.6}")));
    engine.add_function("_add_days", add_days);
    engine.add_function("_days_between", days_between);
    register_filters(engine);
    convert::register(engine);
    register_tests(engine);
}

fn register_filters(engine: &mut Environment<'static>) {
    engine.add_filter("lower", |text: &str| charge(text.len()).map(|()| text.to_lowercase()));
    engine.add_filter("upper", |text: &str| charge(text.len()).map(|()| text.to_uppercase()));
    engine.add_filter("capitalize", capitalize);
    engine.add_filter("trim", |text: &str| charge(text.len()).map(|()| text.trim().to_owned()));
    engine.add_filter("truncate", truncate);
    engine.add_filter("length", length);
    engine.add_filter("count", length);
    engine.add_filter("default", default);
    engine.add_filter("d", default);
    engine.add_filter("first", |value: &Value| {
        Ok::<_, Error>(value.try_iter()?.next().unwrap_or_else(|| Value::from(())))
    });
    engine.add_filter("last", last);
    engine.add_filter("join", |value: &Value, separator: Option<&str>| join(value, separator.unwrap_or_default()));
    engine.add_filter("split", split);
    engine.add_filter("pluck", pluck);
    engine.add_filter("items", items);
    engine.add_filter("sum", |value: &Value| {
        let values = value.try_iter()?.collect::<Vec<_>>();
        charge(values.len())?;
        calculate(&values, 0, i128::checked_add, |a, b| a + b)
    });
    engine.add_filter("abs", abs);
    engine.add_filter("int", int);
    engine.add_filter("float", |value: &Value| f64::try_from(number(value)?));
    engine.add_filter("round", round);
    engine.add_filter("string", |value: &Value| concat([value].into_iter(), ""));
    engine.add_filter("tojson", |value: &Value| to_json(value).map(|json| json.to_string()));
    engine.add_filter("format_date", format_date);
}

fn register_tests(engine: &mut Environment<'static>) {
    let is_none = |value: &Value| value.is_none() || value.is_undefined();
    engine.add_test("none", is_none);
    engine.add_test("undefined", is_none);
    engine.add_test("defined", move |value: &Value| !is_none(value));
    engine.add_test("string", |value: &Value| value.kind() == ValueKind::String);
    engine.add_test("number", |value: &Value| value.kind() == ValueKind::Number);
    engine.add_test("boolean", |value: &Value| value.kind() == ValueKind::Bool);
    engine.add_test("mapping", |value: &Value| value.kind() == ValueKind::Map);
    engine.add_test("sequence", |value: &Value| value.kind() == ValueKind::Seq);
    engine.add_test("true", |value: &Value| value.kind() == ValueKind::Bool && value.is_true());
    engine.add_test("false", |value: &Value| value.kind() == ValueKind::Bool && !value.is_true());
    engine.add_test("startingwith", |text: &str, start: &str| text.starts_with(start));
    engine.add_test("endingwith", |text: &str, end: &str| text.ends_with(end));
}

fn impossible(reason: impl Into<String>) -> Error {
    Error::new(ErrorKind::InvalidOperation, reason.into())
}

/// Orders two numbers or two texts; everything else has no order.
fn compare(a: &Value, b: &Value) -> Result<Ordering> {
    match (a.kind(), b.kind()) {
        (ValueKind::Undefined, _) | (_, ValueKind::Undefined) => Err(Error::from(ErrorKind::UndefinedError)),
        (ValueKind::Number, ValueKind::Number) | (ValueKind::String, ValueKind::String) => Ok(a.cmp(b)),
        (a, b) => Err(impossible(format!("{a} and {b} can't be ordered: use number() or date() on both sides"))),
    }
}

fn contains(needle: &Value, all: &Value) -> Result<bool> {
    if needle.is_undefined() || all.is_undefined() {
        return Err(Error::from(ErrorKind::UndefinedError));
    }
    match all.kind() {
        ValueKind::String => {
            let (all, needle) = (all.as_str().unwrap_or_default(), needle.as_str());
            charge(all.len())?;
            needle.map(|needle| all.contains(needle)).ok_or_else(|| impossible("only a text can be in a text"))
        }
        ValueKind::Map => Ok(has_member(all, needle)),
        ValueKind::Seq | ValueKind::Iterable => {
            charge(all.len().unwrap_or(0))?;
            Ok(all.try_iter()?.any(|item| item == *needle))
        }
        kind => Err(impossible(format!("nothing can be in {kind}"))),
    }
}

/// Folds numbers: exactly as long as all are integers, as floating point from the first that isn't.
fn calculate(
    values: &[Value],
    neutral: i128,
    exact: impl Fn(i128, i128) -> Option<i128>,
    float: impl Fn(f64, f64) -> f64,
) -> Result<Value> {
    let mut total = Value::from(neutral);
    for value in values {
        if value.kind() != ValueKind::Number {
            let hint = "only numbers can be calculated with; use number() for numbers and concat() for texts";
            return Err(impossible(format!("{}: {hint}", value.kind())));
        }
        total = if total.is_integer() && value.is_integer() {
            let sum = exact(i128::try_from(total)?, i128::try_from(value.clone())?);
            sum.map(Value::from).ok_or_else(|| impossible("the number is out of range"))?
        } else {
            Value::from(float(f64::try_from(total)?, f64::try_from(value.clone())?))
        };
    }
    Ok(total)
}

/// Texts, numbers and booleans as one text; none is empty.
fn concat<'a>(values: impl Iterator<Item = &'a Value>, separator: &str) -> Result<String> {
    let mut text = String::new();
    for (index, value) in values.enumerate() {
        let piece = match value.kind() {
            ValueKind::String => value.as_str().unwrap_or_default(),
            ValueKind::None => "",
            ValueKind::Bool if value.is_true() => "true",
            ValueKind::Bool => "false",
            ValueKind::Number => &value.to_string(),
            ValueKind::Undefined => return Err(Error::from(ErrorKind::UndefinedError)),
            kind => return Err(impossible(format!("{kind} is not a text: name its parts, or use tojson"))),
        };
        charge(1 + separator.len() + piece.len())?;
        if index > 0 {
            text.push_str(separator);
        }
        text.push_str(piece);
    }
    Ok(text)
}

fn join(value: &Value, separator: &str) -> Result<String> {
    let mut values = Vec::new();
    for item in value.try_iter()? {
        charge(1)?;
        values.push(item);
    }
    concat(values.iter(), separator)
}

fn number(value: &Value) -> Result<Value> {
    let parsed = match value.kind() {
        ValueKind::Number => Some(value.clone()),
        ValueKind::String => value.as_str().and_then(|text| {
            let text = text.trim();
            let float = || text.parse().ok().filter(|float: &f64| float.is_finite()).map(Value::from);
            text.parse::<i64>().ok().map(Value::from).or_else(float)
        }),
        _ => None,
    };
    parsed.ok_or_else(|| impossible(format!("this {} is not a number", value.kind())))
}

fn int(value: &Value) -> Result<i64> {
    let number = number(value)?;
    let out_of_range = || impossible("the number is out of range");
    if number.is_integer() {
        return i64::try_from(number).map_err(|_| out_of_range());
    }
    let whole = f64::try_from(number)?.trunc();
    // 2^63 is the first that doesn't fit, and floating point holds it exactly.
    if whole.abs() < 9_223_372_036_854_775_808.0 {
        #[expect(clippy::cast_possible_truncation, reason = "whole and in range")]
        return Ok(whole as i64);
    }
    Err(out_of_range())
}

fn round(value: &Value, digits: Option<i32>) -> Result<Value> {
    let digits = digits.unwrap_or(0).clamp(0, 15);
    if value.is_integer() {
        return Ok(value.clone());
    }
    let scale = 10f64.powi(digits);
    let float = f64::try_from(number(value)?)?;
    let rounded = (float * scale).round() / scale;
    Ok(Value::from(if rounded.is_finite() { rounded } else { float }))
}

fn abs(value: &Value) -> Result<Value> {
    if compare(value, &Value::from(0))?.is_ge() {
        return Ok(value.clone());
    }
    calculate(&[value.clone(), Value::from(-1)], 1, i128::checked_mul, |a, b| a * b)
}

fn capitalize(text: &str) -> Result<String> {
    charge(text.len())?;
    let mut chars = text.chars();
    let first = chars.next().map(|first| first.to_uppercase().to_string()).unwrap_or_default();
    Ok(first + &chars.as_str().to_lowercase())
}

fn truncate(text: &str, characters: usize) -> Result<String> {
    charge(text.len())?;
    let end = text.char_indices().nth(characters).map_or(text.len(), |(end, _)| end);
    Ok(text[..end].to_owned())
}

fn length(value: &Value) -> Result<usize> {
    if let Some(text) = value.as_str() {
        charge(text.len())?;
        return Ok(text.chars().count());
    }
    value.len().ok_or_else(|| impossible(format!("{} has no length", value.kind())))
}

fn default(value: &Value, other: Option<Value>) -> Value {
    if value.is_undefined() || value.is_none() { other.unwrap_or_else(|| Value::from("")) } else { value.clone() }
}

fn last(value: &Value) -> Result<Value> {
    charge(value.len().unwrap_or(0))?;
    Ok(value.try_iter()?.last().unwrap_or_else(|| Value::from(())))
}

fn split(text: &str, separator: &str) -> Result<Value> {
    charge(text.len())?;
    if separator.is_empty() {
        return Err(impossible("split needs something to split at"));
    }
    // Each piece costs more memory than its bytes.
    charge(text.matches(separator).count() * 16)?;
    Ok(text.split(separator).map(Value::from).collect())
}

fn pluck(value: &Value, name: &str) -> Result<Value> {
    let mut plucked = Vec::new();
    for item in value.try_iter()? {
        charge(16)?;
        plucked.push(item.get_attr(name)?);
    }
    Ok(Value::from(plucked))
}

fn items(value: &Value) -> Result<Value> {
    if value.kind() != ValueKind::Map {
        return Err(impossible(format!("{} has no items", value.kind())));
    }
    let mut pairs = Vec::new();
    for name in value.try_iter()? {
        charge(16)?;
        let member = value.get_item(&name)?;
        pairs.push(Value::from(vec![name, member]));
    }
    Ok(Value::from(pairs))
}

/// What a text like `2026-06-20` or `2026-06-20T15:00:00+02:00` shows, whatever its zone.
fn shown(value: &Value) -> Result<civil::DateTime> {
    let parse = |text: &str| {
        let text = text.trim();
        // With a `Z` it names a moment only, which is shown in UTC.
        let moment = || text.parse::<Timestamp>().map(|time| time.to_zoned(TimeZone::UTC).datetime());
        text.parse().or_else(|_| moment()).ok()
    };
    let shown = value.as_str().and_then(parse).filter(|shown: &civil::DateTime| shown.year() >= 0);
    shown.ok_or_else(|| impossible(format!("this {} is not a date like 2026-06-20", value.kind())))
}

fn date(value: &Value) -> Result<civil::Date> {
    shown(value).map(civil::DateTime::date)
}

/// The moment of a text like `2026-06-20T15:00:00+02:00`.
fn timestamp(value: &Value) -> Result<Timestamp> {
    let time = value.as_str().and_then(|text| text.trim().parse::<Timestamp>().ok());
    let wanted = "a time with a zone like 2026-06-20T15:00:00Z";
    time.filter(|time| time.to_string().starts_with(|c: char| c.is_ascii_digit()))
        .ok_or_else(|| impossible(format!("this {} is not {wanted}", value.kind())))
}

fn add_days(value: &Value, days: i64) -> Result<String> {
    let out_of_range = || impossible("the date is out of range");
    let days = Span::new().try_days(days).map_err(|_| out_of_range())?;
    let sum = date(value)?.checked_add(days).ok().filter(|date| date.year() >= 0);
    sum.map(|date| date.to_string()).ok_or_else(out_of_range)
}

fn days_between(from: &Value, to: &Value) -> Result<i64> {
    let days = date(from)?.until(date(to)?).map_err(|_| impossible("the dates are too far apart"))?;
    Ok(i64::from(days.get_days()))
}

/// A date or a time (as it is written, in its own zone) by a pattern of strftime: `%-d %B %Y`.
fn format_date(value: &Value, pattern: &str) -> Result<String> {
    if pattern.len() > PATTERN_BYTES {
        return Err(impossible("the pattern of the date is too long"));
    }
    // The widest directive pads to 255 characters.
    charge(256 * pattern.len())?;
    strtime::format(pattern, shown(value)?).map_err(|_| impossible("the pattern of the date is not understood"))
}
