//! Made-up variables, for looking at a text before anybody reads it: everything known, or something missing. Pure.

use serde_json::{Value, json};

use crate::{
    recipient::{Contact, Kind, Recipient},
    variable::{Variables, complete, for_recipient},
    workflow::{VendorInstructions, Workflow},
};

/// Whoever reads the sample.
fn reader(locale: &str) -> Recipient {
    Recipient {
        id: "sample".to_owned(),
        kind: Kind::Supplier,
        contact: Contact::default(),
        name: "Ada Lens Photography".to_owned(),
        vendor_type: "photographer".to_owned(),
        time_zone: String::new(),
        locale: locale.to_owned(),
        channels: Vec::new(),
        updated_at: 0,
    }
}

/// What is known of an event at best; what a caller gives goes before it.
pub(crate) fn all(workflow: &Workflow, given: &Variables, locale: &str, public_name: &str) -> Variables {
    let Value::Object(mut known) = json!({
        "supplier_name": "Ada Lens Photography",
        "client_name": "Mia Fielding & Tom Archer",
        "wedding_id": "9f1c2f60-7f2b-4f0e-9f7c-1d2e3f4a5b6c",
        "couple_id": "couple-1",
        "event_type": "wedding.date_changed",
        "old_date": "2026-06-20",
        "new_date": "2026-09-26",
        "changes": [
            {"what": "Ceremony", "old": "15:00", "new": "16:00"},
            {"what": "Venue", "old": null, "new": "The Old Barn"},
        ],
        "form_name": "Photography questionnaire",
        "response_count": "24",
        "submitted_at": "2026-05-01T10:00:00Z",
        "milestone_name": "Menu chosen",
        "completion_percentage": "75",
        "completed_at": "2026-05-01T10:00:00Z",
        "updated_fields": ["dietary requirements", "phone"],
        "details": [
            {"name": "Amount", "value": "GBP 1,200.00"},
            {"name": "Due", "value": "Saturday 20 June 2026"},
        ],
        "vendor": "Studio Manager",
        "summary": "The wedding moves to 26 September 2026.",
        "since": "2026-05-01T10:00:00Z",
        "wedding_date": "2026-09-26",
        "ceremony_time": "15:00",
        "time_zone": "Europe/London",
        "venue_name": "The Old Barn",
        "acknowledge_url": "https://wedsync.example/acknowledge/AAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAA",
        "unsubscribe_url": "https://wedsync.example/unsubscribe/AAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAA",
        "postal_address": "1 Garden Lane, York YO1 7HH",
    }) else {
        unreachable!("it is written as a map")
    };
    known.extend(given.clone());
    own(workflow, known, given, locale, public_name)
}

/// What is known of an event at worst.
pub(crate) fn nothing(workflow: &Workflow, locale: &str, public_name: &str) -> Variables {
    own(workflow, Variables::new(), &Variables::new(), locale, public_name)
}

fn own(workflow: &Workflow, known: Variables, given: &Variables, locale: &str, public_name: &str) -> Variables {
    let variables = complete(workflow, workflow.name, known);
    let types = ["photographer".to_owned()];
    let mut own = for_recipient(&variables, &reader(locale), &types, &VendorInstructions::load(), public_name);
    own.extend(given.clone());
    own
}

/// The variables without one of them, as where it isn't known.
pub(crate) fn without(variables: &Variables, name: &str) -> Variables {
    let mut without = variables.clone();
    let missing = if without.get(name).is_some_and(Value::is_array) { json!([]) } else { Value::Null };
    without.insert(name.to_owned(), missing);
    without
}

/// Always known, whatever an event says.
pub(crate) const CERTAIN: &[&str] = &["notification_type", "public_name", "recipient_name", "headline"];
