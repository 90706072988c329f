//! Whose an event without a row is, put as a row would say it: so what says who may see a row says who is told of an
//! event as well. Pure.

use proto::router::v1::{Event, event::Payload};

use super::{
    notice::is_json,
    row::{Row, Value},
};

/// The types of durable broadcasts: what somebody said on a channel is for all who are on it, whomever it names.
const SAID: &str = "broadcast.";
const SUPPLIER: &str = "supplier_id";
const COUPLE: &str = "couple_id";
const WEDDING: &str = "wedding_id";

/// None where it names neither a supplier nor a couple. What the metadata says stands, else what the content does.
pub(crate) fn row(event: &Event) -> Option<Row> {
    let mut said = match &event.payload {
        Some(Payload::Change(_)) => return None,
        _ if event.r#type.starts_with(SAID) => return None,
        Some(Payload::Content(content)) if is_json(&content.content_type) => Row::parse(&content.data),
        _ => Row::default(),
    };
    let stated = event.metadata.clone().unwrap_or_default();
    let columns = [
        (SUPPLIER, stated.supplier_id, &[SUPPLIER, "supplierId"][..]),
        (COUPLE, stated.couple_id, &[COUPLE, "coupleId", "client_id", "clientId"]),
        (WEDDING, stated.wedding_id, &[WEDDING, "weddingId"]),
    ];
    let named = columns.into_iter().filter_map(|(column, stated, names)| {
        let said = names.iter().find_map(|name| said.take(name).filter(|value| *value != Value::Null));
        let value = if stated.is_empty() { said } else { Some(Value::of_text(stated)) };
        value.map(|value| (column, value))
    });
    let row = Row::of(named);
    [SUPPLIER, COUPLE].iter().any(|column| row.get(column).is_some()).then_some(row)
}

#[cfg(test)]
mod tests {
    use proto::router::v1::{Metadata, Operation};

    use super::*;
    use crate::realtime::notice::tests::{change, content};

    #[test]
    fn the_metadata_says_whose_an_event_is_else_its_content() {
        let of = |type_: &str, data: &str, supplier: &str| {
            let metadata = Metadata { supplier_id: supplier.to_owned(), ..Metadata::default() };
            row(&Event { metadata: Some(metadata), ..content(type_, data) })
        };
        let text = |row: &Option<Row>, column| Some(row.as_ref()?.get(column)?.text()?.to_owned());
        let named = of("payment.received", r#"{"supplierId":"s2","clientId":"c1","weddingId":"w1"}"#, "s1");
        let all = ["supplier_id", "couple_id", "wedding_id"].map(|column| text(&named, column));
        assert_eq!(all.map(Option::unwrap_or_default), ["s1", "c1", "w1"]);
        assert_eq!(text(&of("a.b", r#"{"supplier_id":null,"supplierId":"s2"}"#, ""), "supplier_id").unwrap(), "s2");
        assert!(of("a.b", r#"{"supplier_id":"\ud800"}"#, "").is_some(), "somebody's, though nobody can say whose");
    }

    #[test]
    fn an_event_that_names_no_owner_and_what_was_said_are_nobodys() {
        assert!(row(&content("wedding.date_changed", r#"{"wedding_id":"w1"}"#)).is_none());
        assert!(row(&content("broadcast.chat", r#"{"supplier_id":"s1"}"#)).is_none());
        assert!(row(&change("orders", Operation::Insert, "", r#"{"supplier_id":"s1"}"#)).is_none(), "its row says it");
    }
}
