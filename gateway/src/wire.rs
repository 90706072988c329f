//! Small things of the wire in JSON's dress: names of enums, times, durations.

use jiff::Timestamp;

/// `DELIVERY_STATE_WAITING` without `DELIVERY_STATE_`, in lower case.
pub(crate) fn name(wire: &str, prefix: &str) -> String {
    wire.strip_prefix(prefix).unwrap_or(wire).to_ascii_lowercase()
}

/// `waiting` as `DELIVERY_STATE_WAITING`. Only lower case is taken: one value has one spelling.
pub(crate) fn wire_name(name: &str, prefix: &str) -> Option<String> {
    let lower = name.bytes().all(|b| b.is_ascii_lowercase() || b == b'_');
    (lower && name != "unspecified").then(|| format!("{prefix}{}", name.to_ascii_uppercase()))
}

/// RFC 3339; none if there is none, or none that exists.
pub(crate) fn time(wire: Option<prost_types::Timestamp>) -> Option<Timestamp> {
    wire.and_then(|wire| Timestamp::new(wire.seconds, wire.nanos).ok())
}

/// In milliseconds.
pub(crate) fn millis(wire: Option<prost_types::Duration>) -> Option<f64> {
    wire.map(|wire| wire.seconds as f64 * 1e3 + f64::from(wire.nanos) / 1e6)
}

/// None for 0, which stands for "no answer came".
pub(crate) fn status_code(wire: i32) -> Option<i32> {
    (wire != 0).then_some(wire)
}

/// None for empty.
pub(crate) fn text(wire: String) -> Option<String> {
    Some(wire).filter(|text| !text.is_empty())
}
