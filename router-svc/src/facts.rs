//! What an event says: its records under canonical names, whose it is, what changed, and so its live channels and its
//! ordering key. Pure; made once per event and shared by priority, routes and weddings.
//!
//! An UPDATE need not carry the whole old record (REPLICA IDENTITY DEFAULT sends none). What is missing there is taken
//! from what was last seen of the wedding; what was never seen counts as changed, so that no vendor is missed.

use std::sync::Arc;

use crate::{
    channel::{ChannelName, is_segment},
    event::{Change, Event, Metadata, Operation, Payload, is_json},
    event_type::EventType,
    json::Record,
    table::{Table, Tables},
    wedding::{Learnt, Wedding, learn, parse_date, parse_time},
};

/// What the types of durable broadcasts begin with.
const SAID: &str = "broadcast.";

/// What an event says.
#[derive(Clone, Debug, Default)]
pub(crate) struct Facts {
    table: Option<Arc<Table>>,
    operation: Option<Operation>,
    /// The new record; for a domain event its content. On UPDATE, columns that weren't sent are those of `old`.
    pub(crate) new: Record,
    /// The old record; empty on INSERT and for a domain event.
    pub(crate) old: Record,
    canonical: Option<EventType>,
}

impl Facts {
    /// Reads an event that passed `check`.
    pub(crate) fn read(event: &Event, tables: &Tables) -> Self {
        match &event.payload {
            Payload::Change(change) => Self::of_change(change, tables),
            Payload::Content { content_type, data } if is_json(content_type) => {
                Self { new: Record::parse(data).unwrap_or_default(), ..Self::default() }
            }
            Payload::Content { .. } => Self::default(),
        }
    }

    fn of_change(change: &Change, tables: &Tables) -> Self {
        let table = tables.get(&change.table).cloned();
        let record = |bytes: Option<&bytes::Bytes>| {
            let mut record = bytes.and_then(|bytes| Record::parse(bytes).ok()).unwrap_or_default();
            if let Some(table) = &table {
                record.rename(&table.renamed);
            }
            record
        };
        let (mut new, old) = (record(change.new.as_ref()), record(change.old.as_ref()));
        if change.operation == Operation::Update {
            new.fill(&old);
        }
        let canonical = table.as_ref().map(|table| EventType::of_change(&table.name, change.operation.as_str()));
        Self { table, operation: Some(change.operation), new, old, canonical }
    }

    /// None for a domain event.
    pub(crate) fn operation(&self) -> Option<Operation> {
        self.operation
    }

    /// The canonical name of a table that is known.
    pub(crate) fn table_name(&self) -> Option<&str> {
        self.table.as_ref().map(|table| table.name.as_str())
    }

    /// The type under the table's canonical name, for the built-in routes.
    pub(crate) fn canonical_type(&self) -> Option<&EventType> {
        self.canonical.as_ref()
    }

    /// Subscribers see it; people and external systems never do.
    pub(crate) fn is_live_only(&self) -> bool {
        self.table.as_ref().is_some_and(|table| table.live_only)
    }

    /// The record that stands for the row: the new one, or what a DELETE took away.
    pub(crate) fn row(&self) -> &Record {
        if self.operation == Some(Operation::Delete) { &self.old } else { &self.new }
    }

    /// Whether a column's value changed. An INSERT or DELETE changes each column that has a value.
    pub(crate) fn changed(&self, column: &str) -> bool {
        match self.operation {
            Some(Operation::Update) => !self.new.agrees(&self.old, column),
            Some(Operation::Insert | Operation::Delete) => self.row().raw(column).is_some(),
            None => false,
        }
    }

    /// The columns whose values changed, in alphabetical order.
    pub(crate) fn changed_columns(&self) -> impl Iterator<Item = &str> {
        self.row().names().filter(|column| self.changed(column))
    }

    /// Says whose the event is, where its publisher didn't.
    pub(crate) fn identify(&self, metadata: &mut Metadata) {
        let columns: [Vec<&str>; 3] = match (&self.table, self.operation) {
            (Some(table), _) => {
                [&table.wedding, &table.supplier, &table.couple].map(|column| column.as_deref().into_iter().collect())
            }
            (None, Some(_)) => [vec!["wedding_id"], vec!["supplier_id"], vec!["couple_id"]],
            (None, None) => [
                vec!["wedding_id", "weddingId"],
                vec!["supplier_id", "supplierId"],
                vec!["couple_id", "coupleId", "client_id", "clientId"],
            ],
        };
        let ids = [&mut metadata.wedding_id, &mut metadata.supplier_id, &mut metadata.couple_id];
        for (id, columns) in ids.into_iter().zip(columns) {
            if id.is_empty() {
                *id = columns
                    .iter()
                    .find_map(|column| self.row().text(column))
                    .filter(|id| is_id(id))
                    .unwrap_or_default();
            }
        }
    }

    /// Puts in what the publisher left out: ids, ordering key, channels. `wedding` is what was known before this event;
    /// the channels are those of the suppliers that the wedding has after it.
    pub(crate) fn complete(&mut self, event: &mut Event, wedding: Option<&Wedding>) {
        self.identify(&mut event.metadata);
        let wedding = wedding.filter(|wedding| wedding.concerns(&event.metadata));
        if let Some(wedding) = wedding {
            self.recall(wedding);
            for (id, known) in
                [(&mut event.metadata.wedding_id, &wedding.id), (&mut event.metadata.couple_id, &wedding.couple_id)]
            {
                if id.is_empty() {
                    id.clone_from(known);
                }
            }
        }
        if event.ordering_key.is_empty() {
            event.ordering_key = self.ordering_key(event);
        }
        // What is said on a channel stays on it: its sender may name whomever it likes.
        let said = self.operation.is_none() && event.type_.as_str().starts_with(SAID);
        let mut channels = if said { Vec::new() } else { self.channels(&event.metadata, wedding) };
        channels.append(&mut event.channels);
        event.channels = unique(channels);
    }

    /// Fills the old record of an UPDATE from what was last seen of the wedding, in the new record's spelling where
    /// both mean the same.
    fn recall(&mut self, wedding: &Wedding) {
        let is_update = self.operation == Some(Operation::Update) && self.table_name() == Some("wedding_details");
        if !is_update || self.new.text("id").as_deref() != Some(&wedding.id) {
            return;
        }
        for (column, seen) in &wedding.seen {
            if self.new.text(column).is_some_and(|now| is_same(&now, seen)) {
                self.old.fill_from(&self.new, column);
            } else {
                self.old.fill_text(column, seen, self.new.raw(column));
            }
        }
    }

    /// The wedding where it is known, else the row's key, else the subject.
    fn ordering_key(&self, event: &Event) -> String {
        if !event.metadata.wedding_id.is_empty() {
            return event.metadata.wedding_id.clone();
        }
        self.row_key().filter(|key| is_id(key)).unwrap_or_else(|| event.subject.clone())
    }

    /// The key of the row that changed; of a table that isn't known its `id`.
    pub(crate) fn row_key(&self) -> Option<String> {
        match &self.table {
            Some(table) => table.key(self.row()),
            None => self.operation.and_then(|_| self.row().text("id")),
        }
    }

    fn channels(&self, metadata: &Metadata, wedding: Option<&Wedding>) -> Vec<ChannelName> {
        match (&self.table, self.operation) {
            (Some(table), _) => table.channels(self.row(), &self.suppliers(wedding)),
            (None, Some(_)) => Vec::new(),
            (None, None) => related(metadata),
        }
    }

    fn suppliers(&self, known: Option<&Wedding>) -> Vec<String> {
        // The zone moves no supplier.
        let after = match learn(self, known, &jiff::tz::TimeZone::UTC) {
            Some(Learnt::Known(wedding)) => Some(wedding),
            Some(Learnt::Gone(id)) => {
                Some(Wedding::read(&self.old, known.filter(|wedding| wedding.id == id), &jiff::tz::TimeZone::UTC))
            }
            None => known.cloned(),
        };
        after.iter().flat_map(Wedding::supplier_ids).map(str::to_owned).collect()
    }
}

/// The channels of a domain event: its wedding's, its supplier's, its couple's.
fn related(metadata: &Metadata) -> Vec<ChannelName> {
    let ids = [
        ("wedding:", &metadata.wedding_id),
        ("supplier:dashboard:", &metadata.supplier_id),
        ("couple:", &metadata.couple_id),
    ];
    let named = ids.into_iter().filter(|(_, id)| is_segment(id));
    named.filter_map(|(prefix, id)| ChannelName::parse(&format!("{prefix}{id}")).ok()).collect()
}

/// An id out of a row is taken where one that is given would be.
pub(crate) fn is_id(id: &str) -> bool {
    crate::event::check_text("id", id).is_ok()
}

fn is_same(now: &str, seen: &str) -> bool {
    let same_date = || parse_date(now).is_some_and(|date| Some(date) == parse_date(seen));
    let same_time = || parse_time(now).is_some_and(|time| Some(time) == parse_time(seen));
    now == seen || same_date() || same_time()
}

/// Each channel once, at its first place.
fn unique(channels: Vec<ChannelName>) -> Vec<ChannelName> {
    let mut seen = std::collections::HashSet::new();
    channels.into_iter().filter(|channel| seen.insert(channel.clone())).collect()
}

#[cfg(test)]
pub(crate) mod tests {
    use jiff::tz::TimeZone;
    use proptest::prelude::*;

    use super::*;
    use crate::event::tests::{change, content};

    /// The event and what it says, completed.
    pub(crate) fn completed(mut event: Event, wedding: Option<&Wedding>) -> (Event, Facts) {
        let mut facts = Facts::read(&event, &Tables::built_in());
        facts.complete(&mut event, wedding);
        (event, facts)
    }

    fn names(event: &Event) -> Vec<&str> {
        event.channels.iter().map(ChannelName::as_str).collect()
    }

    fn wedding(row: &str) -> Wedding {
        Wedding::read(&Record::parse(row.as_bytes()).unwrap(), None, &TimeZone::UTC)
    }

    #[test]
    fn the_wedding_gives_the_ordering_key_where_it_is_known_else_the_row_else_the_subject() {
        let key = |event: Event, wedding| completed(event, wedding).0.ordering_key;
        let form = || change("form_responses", Operation::Insert, "", r#"{"id":"r1","couple_id":"c1"}"#);
        let known = wedding(r#"{"id":"w1","couple_id":"c1"}"#);
        assert_eq!(key(form(), Some(&known)), "w1");
        assert_eq!(key(form(), None), "r1");
        assert_eq!(key(change("unknown", Operation::Insert, "", r#"{"id":7}"#), None), "7");
        assert_eq!(key(Event { subject: "s".to_owned(), ..content("a.b", "[]") }, None), "s");
        assert_eq!(key(Event { ordering_key: "mine".to_owned(), ..form() }, Some(&known)), "mine");
    }

    #[test]
    fn what_the_publisher_says_about_whose_it_is_stands() {
        let mut event = content("payment.received", r#"{"wedding_id":"w1","supplierId":"s1","clientId":"c1"}"#);
        event.metadata.wedding_id = "w2".to_owned();
        let (event, _) = completed(event, None);
        let ids = (&*event.metadata.wedding_id, &*event.metadata.supplier_id, &*event.metadata.couple_id);
        assert_eq!(ids, ("w2", "s1", "c1"));
        assert_eq!(names(&event), ["wedding:w2", "supplier:dashboard:s1", "couple:c1"]);
    }

    #[test]
    fn what_is_said_on_a_channel_reaches_no_other_whomever_it_names() {
        let mut said = content("broadcast.chat", r#"{"wedding_id":"w1","supplier_id":"s1","couple_id":"c1"}"#);
        said.channels = vec![ChannelName::parse("room:a").unwrap()];
        assert_eq!(names(&completed(said, None).0), ["room:a"]);
    }

    #[test]
    fn a_venues_capacity_alert_reaches_the_couple_of_the_wedding() {
        let known = wedding(r#"{"id":"w1","couple_id":"c1"}"#);
        let (event, _) = completed(content("capacity.alert", r#"{"wedding_id":"w1"}"#), Some(&known));
        assert!(names(&event).contains(&"couple:c1"));
    }

    #[test]
    fn a_wedding_is_heard_by_the_suppliers_that_it_has_after_the_change() {
        let known = wedding(r#"{"id":"w1","vendor_ids":["a","b"]}"#);
        let row = r#"{"id":"w1","vendor_ids":["b","c"]}"#;
        let (event, _) = completed(change("wedding_details", Operation::Update, "", row), Some(&known));
        assert_eq!(names(&event), ["wedding:w1", "supplier:dashboard:b", "supplier:dashboard:c"]);
        let (event, _) = completed(change("wedding_details", Operation::Delete, r#"{"id":"w1"}"#, ""), Some(&known));
        assert_eq!(names(&event), ["wedding:w1", "supplier:dashboard:a", "supplier:dashboard:b"]);
    }

    #[test]
    fn an_update_without_its_old_record_is_compared_with_what_was_last_seen() {
        let known = wedding(r#"{"id":"w1","wedding_date":"2026-06-20","ceremony_time":"15:00","guest_count":80}"#);
        let row = r#"{"id":"w1","wedding_date":"2026-06-20","ceremony_time":"15:00:00","guest_count":90}"#;
        let (_, facts) = completed(change("wedding_details", Operation::Update, "", row), Some(&known));
        assert!(!facts.changed("wedding_date") && !facts.changed("ceremony_time") && facts.changed("guest_count"));
        let (_, facts) = completed(change("wedding_details", Operation::Update, "", row), None);
        assert!(facts.changed("wedding_date"), "what was never seen counts as changed");
    }

    #[test]
    fn another_wedding_of_the_same_couple_lends_nothing() {
        let other = wedding(r#"{"id":"w1","couple_id":"c1","vendor_ids":["a"]}"#);
        let second = change("wedding_details", Operation::Insert, "", r#"{"id":"w2","couple_id":"c1"}"#);
        assert_eq!(names(&completed(second, Some(&other)).0), ["wedding:w2"]);
    }

    #[test]
    fn a_column_that_an_update_did_not_send_is_unchanged() {
        let old = r#"{"id":"w1","venue_notes":"long","guest_count":1}"#;
        let (_, facts) =
            completed(change("wedding_details", Operation::Update, old, r#"{"id":"w1","guest_count":2}"#), None);
        assert_eq!(facts.changed_columns().collect::<Vec<_>>(), ["guest_count"]);
    }

    #[test]
    fn renamed_tables_and_columns_read_like_the_canonical_ones() {
        let names = crate::table::TableNames {
            table: "weddings".to_owned(),
            columns: [("wedding_date".to_owned(), "day".to_owned())].into(),
        };
        let tables = Tables::new(&[("wedding_details".to_owned(), names)].into()).unwrap();
        let event = change(
            "weddings",
            Operation::Update,
            r#"{"id":"w","day":"2026-01-01"}"#,
            r#"{"id":"w","day":"2026-01-02"}"#,
        );
        let facts = Facts::read(&event, &tables);
        assert!(facts.changed("wedding_date"));
        assert_eq!(facts.canonical_type().unwrap().as_str(), "wedding_details.update");
    }

    proptest! {
        #[test]
        fn completing_twice_changes_nothing(id in "[a-z:*]{1,4}", supplier in "[a-z]{0,3}", added in prop::collection::vec("[a-z]{1,3}", 0..3)) {
            let mut event = change("form_responses", Operation::Insert, "", &format!(r#"{{"id":"{id}","form_id":"{id}","supplier_id":"{supplier}"}}"#));
            event.channels = added.iter().map(|name| ChannelName::parse(name).unwrap()).collect();
            let (once, _) = completed(event, None);
            let (twice, _) = completed(once.clone(), None);
            prop_assert_eq!(once, twice);
        }
    }
}
