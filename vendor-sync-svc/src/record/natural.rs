//! By what a record can be recognised that no link names: an address, or a day with two names. Pure but for the hash.
//!
//! A natural key may lead to several records; then it tells nothing, and whoever asks makes a new one.

use std::collections::BTreeMap;

use chassis::secret::DataKey;
use serde_json::Value;

use super::{RecordKind, value};

/// The natural keys that these fields make, hashed with the organization's key: they tell nothing to who reads the store.
pub(super) fn hashes(key: &DataKey, kind: RecordKind, fields: &BTreeMap<String, Value>) -> Vec<Vec<u8>> {
    let mut texts = texts(kind, fields);
    texts.sort();
    texts.dedup();
    texts.iter().map(|text| key.mac("record natural key", text.as_bytes()).to_vec()).collect()
}

fn texts(kind: RecordKind, fields: &BTreeMap<String, Value>) -> Vec<String> {
    let text = |name: &str| match value::normalize(name, fields.get(name)?) {
        Value::String(text) => Some(text.to_lowercase().split_whitespace().collect::<Vec<_>>().join(" ")),
        _ => None,
    };
    let emails = ["email", "partner_email"].into_iter().filter_map(text).filter(|email| email.contains('@'));
    let day = text("wedding_date").or_else(|| text("date"));
    let couple = text("bride_name").zip(text("groom_name"));
    // Which of the two is named first is chance.
    let couple = couple.map(|(a, b)| if a <= b { format!("{a}\0{b}") } else { format!("{b}\0{a}") });
    let dated = day.as_ref().zip(couple).map(|(day, couple)| format!("names\0{day}\0{couple}"));
    match kind {
        RecordKind::Client => emails.map(|email| format!("email\0{email}")).collect(),
        RecordKind::Wedding => dated.into_iter().collect(),
        RecordKind::Booking => {
            let mailed = day.iter().flat_map(|day| emails.clone().map(move |email| format!("email\0{day}\0{email}")));
            mailed.chain(dated.clone()).collect()
        }
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn of(kind: RecordKind, fields: &Value) -> Vec<String> {
        texts(kind, &serde_json::from_value(fields.clone()).expect("an object"))
    }

    #[test]
    fn capitals_blanks_and_who_is_named_first_make_no_difference() {
        let one = json!({"wedding_date": "2026-06-20", "bride_name": "Anna  Bell", "groom_name": "Ben Cole"});
        let other =
            json!({"wedding_date": "2026-06-20T00:00:00Z", "bride_name": "ben cole", "groom_name": " Anna Bell"});
        assert_eq!(of(RecordKind::Wedding, &one), of(RecordKind::Wedding, &other));
        assert_eq!(of(RecordKind::Client, &json!({"email": " ANNA@x.org"})), ["email\0anna@x.org"]);
    }

    #[test]
    fn half_of_a_key_is_none() {
        assert!(of(RecordKind::Wedding, &json!({"wedding_date": "2026-06-20", "bride_name": "Anna"})).is_empty());
        assert!(of(RecordKind::Booking, &json!({"email": "a@x.org"})).is_empty());
        assert!(of(RecordKind::Client, &json!({"email": "none yet", "wedding_date": "2026-06-20"})).is_empty());
    }
}
