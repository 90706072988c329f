//! What templates can say: a workflow's variables, taken from an event or from an RPC. Pure.
//!
//! Every name that a template uses is there, as null where nothing is known; lists hold maps or texts. No value holds what
//! its reader can't see, whichever channel it goes by.

use jiff::civil;
use serde_json::{Map, Value, json};

use crate::{
    calendar,
    event::{Event, Operation, Record, object, plain, text},
    recipient::Recipient,
    workflow::{COMMON, VendorInstructions, Workflow},
};

/// Variables by name.
pub(crate) type Variables = Map<String, Value>;

/// How many details a generic notification lists.
const DETAILS: usize = 12;

/// What a change of the day is about: column, and what people call it.
const TIMELINE: &[(&str, &str)] = &[
    ("ceremony_time", "Ceremony"),
    ("setup_time", "Set-up"),
    ("reception_time", "Reception"),
    ("venue_name", "Venue"),
    ("venue_id", "Venue"),
];

/// Columns that say nothing to people.
const SILENT: &[&str] =
    &["id", "organization_id", "created_at", "updated_at", "wedding_id", "couple_id", "client_id", "supplier_id"];

/// The variables of `event` for a workflow that was asked for as `asked`.
pub(crate) fn of_event(workflow: &Workflow, asked: &str, event: &Event) -> Variables {
    let mut variables = Variables::new();
    let row = event.row();
    put(&mut variables, "wedding_id", event.wedding.clone());
    put(&mut variables, "couple_id", event.couple.clone());
    put(&mut variables, "event_type", Some(event.name.clone()));
    put(&mut variables, "client_name", client(row));
    put(&mut variables, "supplier_name", text(row, &["supplier_name", "supplierName"]));
    match workflow.name {
        "wedding_date_change" => dates(&mut variables, event),
        "timeline_changed" => put_list(&mut variables, "changes", timeline(event)),
        "client_profile_updated" => {
            put_list(&mut variables, "updated_fields", fields(event).into_iter().map(Value::from).collect())
        }
        "form_response_received" => {
            put(&mut variables, "form_name", text(row, &["form_name", "formName"]));
            put(&mut variables, "response_count", text(row, &["response_count", "responseCount", "question_count"]));
            put(&mut variables, "submitted_at", text(row, &["submitted_at", "submittedAt"]));
        }
        "journey_milestone_completed" => {
            put(&mut variables, "milestone_name", text(row, &["milestone_name", "milestoneName", "milestone"]));
            put(
                &mut variables,
                "completion_percentage",
                text(row, &["completion_percentage", "completionPercentage", "percentage"]),
            );
            put(&mut variables, "completed_at", text(row, &["completed_at", "completedAt"]));
        }
        "vendor_behind" => behind(&mut variables, event),
        _ => put_list(&mut variables, "details", details(event)),
    }
    complete(workflow, asked, variables)
}

/// Variables that a caller gave, with every other name that the templates use.
pub(crate) fn complete(workflow: &Workflow, asked: &str, mut variables: Variables) -> Variables {
    variables.values_mut().for_each(clean_value);
    let asked = &*clean(asked);
    for (date, words) in
        [("old_date", "old_date_text"), ("new_date", "new_date_text"), ("wedding_date", "wedding_date_text")]
    {
        let said = variables.get(date).and_then(plain).map(|date| in_words(&date));
        put(&mut variables, words, said);
    }
    for list in ["changes", "updated_fields", "details", "instructions"] {
        let given = variables.get(list).is_some_and(Value::is_array);
        if !given {
            variables.insert(list.to_owned(), json!([]));
        }
    }
    for name in COMMON.iter().chain(workflow.variables) {
        variables.entry((*name).to_owned()).or_insert(Value::Null);
    }
    variables.insert("notification_type".to_owned(), asked.into());
    if variables["headline"].is_null() {
        let about = variables["event_type"].as_str().filter(|_| workflow.templates == "generic").unwrap_or(asked);
        variables["headline"] = sentence(about).into();
    }
    variables
}

/// The variables as one recipient reads them.
pub(crate) fn for_recipient(
    variables: &Variables,
    recipient: &Recipient,
    vendor_types: &[String],
    instructions: &VendorInstructions,
    public_name: &str,
) -> Variables {
    let mut own = variables.clone();
    own.insert("public_name".to_owned(), clean(public_name).into());
    own.insert("recipient_name".to_owned(), clean(&recipient.name).into());
    own.insert("vendor_type".to_owned(), clean(&vendor_types.join(", ")).into());
    own.insert("instructions".to_owned(), instructions.lines(vendor_types).into());
    own.insert("locale".to_owned(), recipient.locale.clone().into());
    if own["supplier_name"].is_null() {
        own.insert("supplier_name".to_owned(), clean(&recipient.name).into());
    }
    own
}

/// Without characters that no reader sees and some systems obey: controls other than line ends, and those that turn the
/// direction of what follows.
pub(crate) fn clean(text: &str) -> String {
    let is_unseen = |c: char| {
        (c.is_control() && c != '\n')
            || matches!(c, '\u{202a}'..='\u{202e}' | '\u{2066}'..='\u{2069}' | '\u{feff}' | '\u{fffe}' | '\u{ffff}')
    };
    text.replace("\r\n", "\n").chars().map(|c| if c == '\t' { ' ' } else { c }).filter(|c| !is_unseen(*c)).collect()
}

fn clean_value(value: &mut Value) {
    match value {
        Value::String(text) => *text = clean(text),
        Value::Array(values) => values.iter_mut().for_each(clean_value),
        Value::Object(fields) => fields.values_mut().for_each(clean_value),
        Value::Null | Value::Bool(_) | Value::Number(_) => {}
    }
}

/// The same change, from another old date.
pub(crate) fn since(variables: &Variables, old_date: &str) -> Variables {
    let mut since = variables.clone();
    put(&mut since, "old_date", Some(old_date.to_owned()));
    put(&mut since, "old_date_text", Some(in_words(old_date)));
    since
}

fn put(variables: &mut Variables, name: &str, value: Option<String>) {
    variables.insert(name.to_owned(), value.map_or(Value::Null, Value::from));
}

fn put_list(variables: &mut Variables, name: &str, values: Vec<Value>) {
    variables.insert(name.to_owned(), values.into());
}

fn client(row: &Record) -> Option<String> {
    let couple =
        [text(row, &["bride_name"]), text(row, &["groom_name"])].into_iter().flatten().collect::<Vec<_>>().join(" & ");
    text(row, &["client_name", "clientName"]).or_else(|| Some(couple).filter(|couple| !couple.is_empty()))
}

/// What a domain event says under `changes`.
fn changes(event: &Event) -> Record {
    event.new.get("changes").and_then(object).unwrap_or_default()
}

fn dates(variables: &mut Variables, event: &Event) {
    let said = changes(event).get("wedding_date").and_then(object).unwrap_or_default();
    let old = text(&event.old, &["wedding_date"])
        .or_else(|| text(&event.new, &["old_date", "oldDate", "old_wedding_date", "previous_date"]))
        .or_else(|| text(&said, &["old"]));
    let new = text(&event.new, &["wedding_date", "new_date", "newDate", "date"]).or_else(|| text(&said, &["new"]));
    put(variables, "old_date", old);
    put(variables, "new_date", new);
}

fn timeline(event: &Event) -> Vec<Value> {
    let said = changes(event);
    let is_domain_event = event.change.is_none();
    let mut told: Vec<(&str, Value)> = Vec::new();
    for (column, label) in TIMELINE {
        let pair = said.get(*column).and_then(object).unwrap_or_default();
        let old = text(&event.old, &[column])
            .or_else(|| text(&pair, &["old"]))
            .or_else(|| text(&event.new, &[&format!("old_{column}")]));
        let new = text(&event.new, &[column]).or_else(|| text(&pair, &["new"]));
        let changed = new.is_some() && if is_domain_event { old != new } else { !event.old.is_empty() && old != new };
        // The venue's id is named only where its name doesn't say the same.
        if changed && told.iter().all(|(known, _)| known != label) {
            told.push((label, json!({ "what": label, "old": old, "new": new })));
        }
    }
    told.into_iter().map(|(_, change)| change).collect()
}

/// What an integration that is behind doesn't know yet, and the calendar's entry of it.
fn behind(variables: &mut Variables, event: &Event) {
    let fields = event.new.get("fields").and_then(object).unwrap_or_default();
    for name in ["vendor", "summary", "since"] {
        put(variables, name, text(&event.new, &[name]));
    }
    for name in ["wedding_date", "ceremony_time", "time_zone", "venue_name"] {
        put(variables, name, text(&fields, &[name]));
    }
    if variables["client_name"].is_null() {
        put(variables, "client_name", client(&fields));
    }
    let changed = event.new.get("changed").map(crate::event::list).unwrap_or_default();
    let changed = changed.iter().take(DETAILS).map(|name| words(name).into()).collect();
    put_list(variables, "updated_fields", changed);
    variables.insert("calendar".to_owned(), calendar::entry(event));
}

/// The names of a profile's fields that changed, as people read them.
fn fields(event: &Event) -> Vec<String> {
    let given = event.new.get("updated_fields").or_else(|| event.new.get("updatedFields")).map(crate::event::list);
    let names = match (given, event.change.is_some()) {
        (Some(given), false) => given,
        (None, false) => changes(event).keys().cloned().collect(),
        (_, true) => event.changed().into_iter().map(str::to_owned).collect(),
    };
    names.iter().filter(|name| !SILENT.contains(&name.as_str())).map(|name| words(name)).collect()
}

/// What a generic notification lists: of a domain event what it says, of a row the names of the columns that changed,
/// since a row may hold more than its reader should see.
fn details(event: &Event) -> Vec<Value> {
    let is_said = |name: &str| !SILENT.contains(&name);
    let said: Vec<Value> = match &event.change {
        None => event
            .new
            .iter()
            .filter(|(name, _)| is_said(name))
            .filter_map(|(name, value)| Some(json!({ "name": sentence(name), "value": plain(value)? })))
            .collect(),
        Some(change) if change.operation == Operation::Update => event
            .changed()
            .into_iter()
            .filter(|name| is_said(name))
            .map(|name| json!({ "name": sentence(name), "value": "changed" }))
            .collect(),
        Some(_) => Vec::new(),
    };
    said.into_iter().take(DETAILS).collect()
}

/// `ceremonyTime`, `ceremony_time` and `ceremony.time` are "ceremony time".
fn words(name: &str) -> String {
    let mut words = String::with_capacity(name.len() + 4);
    for c in name.chars() {
        match c {
            '_' | '.' | '-' => words.push(' '),
            c if c.is_uppercase() && words.ends_with(char::is_lowercase) => {
                words.push(' ');
                words.extend(c.to_lowercase());
            }
            c => words.extend(c.to_lowercase()),
        }
    }
    words
}

fn sentence(name: &str) -> String {
    let words = words(name);
    let mut chars = words.chars();
    chars.next().map(|first| first.to_uppercase().chain(chars).collect()).unwrap_or_default()
}

/// `2026-06-20` is "Saturday 20 June 2026"; what isn't a date stays as it is.
fn in_words(date: &str) -> String {
    let day = date.get(..10).and_then(|day| day.parse::<civil::Date>().ok());
    day.map_or_else(|| date.to_owned(), |day| day.strftime("%A %-d %B %Y").to_string())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{
        event::tests::{change, content},
        workflow::find,
    };

    fn of(workflow: &str, event: &Event) -> Variables {
        of_event(find(workflow), workflow, event)
    }

    #[test]
    fn a_row_and_a_domain_event_say_the_same_dates() {
        let row = change(
            "wedding_details",
            Operation::Update,
            json!({"wedding_date": "2026-06-20"}),
            json!({"wedding_date": "2026-06-27"}),
        );
        let told = content(
            "wedding.date_changed",
            json!({"wedding_id": "w", "old_date": "2026-06-20", "new_date": "2026-06-27"}),
        );
        let nested = content(
            "wedding.date_changed",
            json!({"changes": {"wedding_date": {"old": "2026-06-20", "new": "2026-06-27"}}}),
        );
        for event in [row, told, nested] {
            let variables = of("wedding_date_change", &event);
            assert_eq!((&variables["old_date"], &variables["new_date"]), (&json!("2026-06-20"), &json!("2026-06-27")));
            assert_eq!(variables["new_date_text"], "Saturday 27 June 2026");
        }
    }

    #[test]
    fn a_timeline_names_what_moved_and_nothing_else() {
        let old = json!({"ceremony_time": "15:00", "setup_time": "09:00", "venue_id": "a", "venue_name": "Hall"});
        let new = json!({"ceremony_time": "16:00", "setup_time": "09:00", "venue_id": "b", "venue_name": "Barn"});
        let variables = of("timeline_changed", &change("wedding_details", Operation::Update, old, new));
        assert_eq!(
            variables["changes"],
            json!([
                {"what": "Ceremony", "old": "15:00", "new": "16:00"},
                {"what": "Venue", "old": "Hall", "new": "Barn"},
            ])
        );
    }

    #[test]
    fn a_profile_lists_its_fields_without_their_values() {
        let event = change(
            "core_fields",
            Operation::Update,
            json!({"couple_id": "c", "dietaryRequirements": "none", "updated_at": 1}),
            json!({"couple_id": "c", "dietaryRequirements": "no nuts", "updated_at": 2}),
        );
        assert_eq!(of("client_profile_updated", &event)["updated_fields"], json!(["dietary requirements"]));
        let told = content("client.updated", json!({"changes": {"phone": {"old": "1", "new": "2"}}}));
        assert_eq!(of("client_profile_updated", &told)["updated_fields"], json!(["phone"]));
    }

    #[test]
    fn a_generic_notification_never_shows_a_rows_values() {
        let event = change("venues", Operation::Update, json!({"door_code": "1"}), json!({"door_code": "4711"}));
        assert!(!serde_json::to_string(&of("venue_changed", &event)).unwrap().contains("4711"));
    }

    #[test]
    fn every_name_is_there_whatever_the_event_says() {
        for workflow in crate::workflow::all() {
            let variables =
                of_event(workflow, workflow.name, &content("x.y", json!({"changes": 3, "details": "no list"})));
            for name in COMMON.iter().chain(workflow.variables) {
                assert!(variables.contains_key(*name), "{} lacks {name}", workflow.name);
            }
        }
    }
}
