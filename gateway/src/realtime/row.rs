//! A row as its change carried it, and what its values can be compared as. Pure.
//!
//! A change names no types, so a value's form gives its type: a JSON number is a number, exactly; a text that has the
//! form in which PostgreSQL writes a UUID, date, time or timestamp is compared as one with whatever can be read as one,
//! and as a text with everything else. Texts are ordered by their bytes, as under `COLLATE "C"`.

use std::{cmp::Ordering, collections::HashMap, mem::discriminant};

use chassis::id::parse_uuid;
use jiff::{
    Timestamp,
    civil::{Date, DateTime, Time},
    fmt::temporal::Pieces,
    tz::Offset,
};
use serde_json::value::RawValue;

use super::number::Number;

/// Elements of an array that are read; those behind them match nothing.
const ELEMENTS: usize = 1_000;
const UUID_BYTES: usize = 36;

/// A row's values by column.
#[derive(Debug, Default)]
pub(crate) struct Row(HashMap<Box<str>, Value>);

/// One value of a row.
#[derive(Debug, PartialEq)]
pub(crate) enum Value {
    Null,
    /// What it can be compared as, the narrowest first.
    Scalar(Vec<Scalar>),
    /// The scalars among its elements.
    List(Vec<Scalar>),
    /// An object, or what can't be read (half a surrogate pair, an exponent beyond any): it is there, and matches nothing.
    Opaque,
}

/// Something that has an order among its own kind.
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub(crate) enum Scalar {
    Bool(bool),
    Number(Number),
    Uuid([u8; 16]),
    Date(Date),
    Time(Time),
    /// Without a time zone.
    Local(DateTime),
    Instant(Timestamp),
    Text(Box<str>),
}

impl Scalar {
    pub(crate) fn is_like(&self, other: &Self) -> bool {
        discriminant(self) == discriminant(other)
    }
}

/// What a filter or a token compares with: everything that its text can be read as.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub(crate) struct Literal(Box<[Scalar]>);

impl Row {
    /// Takes a JSON object; of members with one name the last counts. What is anything else is a row without columns:
    /// it is nobody's, and only who sees all is told of it.
    pub(crate) fn parse(json: &[u8]) -> Self {
        let members: HashMap<Box<str>, &RawValue> = serde_json::from_slice(json).unwrap_or_default();
        Self(members.into_iter().map(|(name, value)| (name, Value::parse(value.get()))).collect())
    }

    pub(crate) fn of(columns: impl IntoIterator<Item = (&'static str, Value)>) -> Self {
        Self(columns.into_iter().map(|(name, value)| (name.into(), value)).collect())
    }

    pub(crate) fn take(&mut self, column: &str) -> Option<Value> {
        self.0.remove(column)
    }

    /// None where the row doesn't have the column, or didn't carry it.
    pub(crate) fn get(&self, column: &str) -> Option<&Value> {
        self.0.get(column)
    }
}

impl Value {
    fn parse(json: &str) -> Self {
        match json.as_bytes().first() {
            Some(b'n') => Self::Null,
            Some(b'[') => {
                let elements: Vec<&RawValue> = serde_json::from_str(json).unwrap_or_default();
                // Lists inside aren't read: whoever nests them deep enough would end the process.
                let flat = elements.into_iter().take(ELEMENTS).filter(|element| !element.get().starts_with('['));
                let elements = flat.map(|element| Self::parse(element.get()));
                Self::List(elements.flat_map(|element| element.scalars().to_vec()).collect())
            }
            Some(b'"') => serde_json::from_str(json).map_or(Self::Opaque, Self::of_text),
            Some(b't' | b'f') => Self::Scalar(vec![Scalar::Bool(json == "true")]),
            _ => Number::parse(json).map_or(Self::Opaque, |number| Self::Scalar(vec![Scalar::Number(number)])),
        }
    }

    pub(crate) fn of_text(text: String) -> Self {
        Self::Scalar(form(&text).into_iter().chain([Scalar::Text(text.into())]).collect())
    }

    /// What can be looked for in it: none of null and what is opaque, all elements of a list.
    pub(crate) fn scalars(&self) -> &[Scalar] {
        match self {
            Self::Scalar(scalars) | Self::List(scalars) => scalars,
            Self::Null | Self::Opaque => &[],
        }
    }

    /// How it stands to `literal`; none where they can't be compared.
    pub(crate) fn compare(&self, literal: &Literal) -> Option<Ordering> {
        let Self::Scalar(scalars) = self else { return None };
        scalars.iter().find_map(|scalar| Some(scalar.cmp(literal.like(scalar)?)))
    }

    /// Whether it is `literal`, or a list that has it as an element.
    pub(crate) fn holds(&self, literal: &Literal) -> bool {
        match self {
            Self::List(elements) => elements.iter().any(|element| literal.like(element) == Some(element)),
            value => value.compare(literal) == Some(Ordering::Equal),
        }
    }

    pub(crate) fn text(&self) -> Option<&str> {
        let Self::Scalar(scalars) = self else { return None };
        scalars.iter().find_map(|scalar| if let Scalar::Text(text) = scalar { Some(&**text) } else { None })
    }
}

/// What a text is besides a text, by the form in which PostgreSQL writes it.
fn form(text: &str) -> Option<Scalar> {
    let bytes = text.as_bytes();
    let at = |index: usize, byte: u8| bytes.get(index) == Some(&byte);
    if bytes.len() == UUID_BYTES && at(8, b'-') && !bytes.iter().any(u8::is_ascii_uppercase) {
        return parse_uuid(text).map(Scalar::Uuid);
    }
    if bytes.len() >= 8 && at(2, b':') && at(5, b':') {
        return read_time(text).map(Scalar::Time);
    }
    let moment = Moment::parse(text)?;
    Some(match (moment.time, moment.offset) {
        (None, _) => Scalar::Date(moment.date),
        (Some(_), None) => Scalar::Local(moment.local()),
        (Some(_), Some(_)) => Scalar::Instant(moment.instant()?),
    })
}

impl Literal {
    pub(crate) fn new(text: &str) -> Self {
        let moment = Moment::parse(text);
        let readings = [
            parse_bool(text).map(Scalar::Bool),
            Number::parse(text).map(Scalar::Number),
            parse_uuid(text).map(Scalar::Uuid),
            moment.as_ref().map(|moment| Scalar::Date(moment.date)),
            read_time(text).map(Scalar::Time),
            moment.as_ref().map(|moment| Scalar::Local(moment.local())),
            moment.as_ref().and_then(Moment::instant).map(Scalar::Instant),
            Some(Scalar::Text(text.into())),
        ];
        Self(readings.into_iter().flatten().collect())
    }

    /// All of its readings, each of another kind.
    pub(crate) fn readings(&self) -> &[Scalar] {
        &self.0
    }

    fn like(&self, scalar: &Scalar) -> Option<&Scalar> {
        self.0.iter().find(|reading| reading.is_like(scalar))
    }
}

/// As PostgreSQL reads a boolean: any beginning of the words that tells them apart.
fn parse_bool(text: &str) -> Option<bool> {
    let text = text.to_ascii_lowercase();
    let begins =
        |words: &[(&str, usize)]| words.iter().any(|(word, least)| text.len() >= *least && word.starts_with(&*text));
    match () {
        () if begins(&[("true", 1), ("yes", 1), ("on", 2), ("1", 1)]) => Some(true),
        () if begins(&[("false", 1), ("no", 1), ("off", 2), ("0", 1)]) => Some(false),
        () => None,
    }
}

/// `15:00`, `15:00:30.5`
fn read_time(text: &str) -> Option<Time> {
    let plain = text.len() >= 5 && text.bytes().all(|byte| byte.is_ascii_digit() || byte == b':' || byte == b'.');
    if plain && text.as_bytes()[2] == b':' { text.parse().ok() } else { None }
}

/// A date, with a time and an offset where they are said.
struct Moment {
    date: Date,
    time: Option<Time>,
    offset: Option<Offset>,
}

impl Moment {
    /// `2026-05-01`, `2026-05-01 15:00`, `2026-05-01T15:00:00.5+02`
    fn parse(text: &str) -> Option<Self> {
        let bytes = text.as_bytes();
        let is_date = bytes.len() >= 10 && bytes[4] == b'-' && bytes[7] == b'-';
        if !is_date || (10 < bytes.len() && bytes.len() < 16) {
            return None;
        }
        let pieces = Pieces::parse(text).ok().filter(|pieces| pieces.time_zone_annotation().is_none())?;
        Some(Self { date: pieces.date(), time: pieces.time(), offset: pieces.to_numeric_offset() })
    }

    /// At midnight where no time is said; an offset is passed over, as PostgreSQL does for `timestamp`.
    fn local(&self) -> DateTime {
        self.date.to_datetime(self.time.unwrap_or(Time::midnight()))
    }

    /// In UTC where no offset is said.
    fn instant(&self) -> Option<Timestamp> {
        self.offset.unwrap_or(Offset::UTC).to_timestamp(self.local()).ok()
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn value(json: &str) -> Value {
        Value::parse(json)
    }

    #[test]
    fn a_values_form_decides_what_it_is_compared_as() {
        for (json, literal, expected) in [
            ("9007199254740993", "9007199254740992", Some(Ordering::Greater)),
            ("1.50", "1.5", Some(Ordering::Equal)),
            ("5", "five", None),
            ("true", "t", Some(Ordering::Equal)),
            ("true", "2", None),
            (r#""10""#, "9", Some(Ordering::Less)),
            (r#""2026-05-01""#, "2026-05-01T12:00:00", Some(Ordering::Equal)),
            (r#""2026-05-01T12:00:00""#, "2026-05-01", Some(Ordering::Greater)),
            (r#""2026-05-01 12:00:00+00""#, "2026-05-01T14:00:00+02:00", Some(Ordering::Equal)),
            (r#""2026-05-01T12:00:00+00:00""#, "2026-05-01 12:00", Some(Ordering::Equal)),
            (r#""15:00:00""#, "15:00", Some(Ordering::Equal)),
            (
                r#""0199e1f0-0000-7000-8000-00000000000a""#,
                "0199E1F0-0000-7000-8000-00000000000A",
                Some(Ordering::Equal),
            ),
            (r#""2026-05-01""#, "m", Some(Ordering::Less)),
            ("null", "null", None),
            ("{}", "{}", None),
            ("[1]", "1", None),
        ] {
            assert_eq!(value(json).compare(&Literal::new(literal)), expected, "{json} {literal}");
        }
    }

    #[test]
    fn a_list_holds_its_elements() {
        let list = value(r#"["a", 7, null, {"b": 1}, ["c"]]"#);
        assert!(["a", "7"].iter().all(|text| list.holds(&Literal::new(text))));
        assert!(!["b", "null", "1", "c"].iter().any(|text| list.holds(&Literal::new(text))));
    }

    #[test]
    fn what_is_no_object_has_no_columns() {
        for json in ["", "null", "[]", "{", r#"{"a":}"#, r#"{"a":1} 2"#, r#"{"\ud800":1,"a":1}"#] {
            assert!(Row::parse(json.as_bytes()).0.is_empty(), "{json}");
        }
        assert!(Row::parse(b"\xff").0.is_empty());
        assert_eq!(Row::parse(br#"{"a":1,"a":2}"#).get("a"), Some(&value("2")), "as JSON.parse and jsonb have it");
    }

    #[test]
    fn lists_in_lists_are_passed_over_however_deep() {
        let deep = format!(r#"{{"a":["x",{}1{}]}}"#, "[".repeat(100_000), "]".repeat(100_000));
        assert_eq!(Row::parse(deep.as_bytes()).get("a"), Some(&value(r#"["x"]"#)));
    }

    #[test]
    fn a_value_that_cannot_be_read_takes_no_other_with_it() {
        let row = Row::parse(br#"{"a":"\ud800","b":1e9999999,"c":["\ud800","x"],"id":7}"#);
        assert_eq!((row.get("a"), row.get("b")), (Some(&Value::Opaque), Some(&Value::Opaque)));
        assert_eq!((row.get("c"), row.get("id")), (Some(&value(r#"["x"]"#)), Some(&value("7"))));
    }

    proptest! {
        #[test]
        fn no_bytes_make_reading_panic(bytes: Vec<u8>, text: String, shaped in "[0-9]{4}-[0-9]{2}-[0-9]{2}[ T0-9:.+Z-]{0,16}") {
            Row::parse(&bytes);
            for text in [text, shaped] {
                let literal = Literal::new(&text);
                prop_assert_eq!(Value::of_text(text).compare(&literal), Some(Ordering::Equal));
            }
        }
    }
}
