//! The workflows: for each, whom it is for, which templates say it, and which variables those may count on. One line each.
//!
//! A workflow that isn't in the table uses the generic templates and tells whom the event names.

use serde::Deserialize;

/// For whom a workflow is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Audience {
    /// The supplier whom the event names.
    Supplier,
    /// Every vendor of the wedding, and its planner.
    Wedding,
    /// The supplier whom the event names, and every vendor of the wedding.
    SuppliersOfCouple,
    /// The supplier whom the event names, and the wedding's planner.
    SupplierAndPlanner,
    /// The couple, and the wedding's caterer.
    CoupleAndCaterer,
    /// Every vendor of the wedding, its planner, and the operators.
    Everybody,
    /// The supplier whom the event names, and the operators.
    Owner,
    /// The supplier whom the event names, else every vendor of the wedding and its planner.
    Named,
}

/// One way of telling people something.
#[derive(Debug)]
pub(crate) struct Workflow {
    /// As routes name it.
    pub(crate) name: &'static str,
    pub(crate) audience: Audience,
    /// Folder of its templates.
    pub(crate) templates: &'static str,
    /// What its e-mail is called.
    pub(crate) email_template: &'static str,
    /// Names that its templates use beside those that every workflow has.
    pub(crate) variables: &'static [&'static str],
}

/// Variables of every workflow; those about the recipient are filled in for each.
pub(crate) const COMMON: &[&str] = &[
    "notification_type",
    "public_name",
    "recipient_name",
    "vendor_type",
    "instructions",
    "supplier_name",
    "client_name",
    "wedding_id",
    "event_type",
    "headline",
    "details",
    "acknowledge_url",
    "unsubscribe_url",
    "postal_address",
    "locale",
];

const GENERIC: &str = "realtime-generic-notification";

#[rustfmt::skip]
static WORKFLOWS: &[Workflow] = &[
    Workflow { name: "wedding_date_change", audience: Audience::Wedding, templates: "wedding_date_change", email_template: "realtime-wedding-change", variables: &["old_date", "new_date", "old_date_text", "new_date_text"] },
    Workflow { name: "timeline_changed", audience: Audience::Wedding, templates: "timeline_changed", email_template: "realtime-wedding-change", variables: &["changes"] },
    Workflow { name: "form_response_received", audience: Audience::Supplier, templates: "form_response_received", email_template: "realtime-form-response", variables: &["form_name", "response_count", "submitted_at"] },
    Workflow { name: "journey_milestone_completed", audience: Audience::Supplier, templates: "journey_milestone_completed", email_template: "realtime-journey-progress", variables: &["milestone_name", "completion_percentage", "completed_at"] },
    Workflow { name: "client_profile_updated", audience: Audience::SuppliersOfCouple, templates: "client_profile_updated", email_template: "realtime-client-update", variables: &["couple_id", "updated_fields"] },
    Workflow { name: "guest_count_changed", audience: Audience::Wedding, templates: "generic", email_template: GENERIC, variables: &[] },
    Workflow { name: "capacity_alert", audience: Audience::CoupleAndCaterer, templates: "generic", email_template: GENERIC, variables: &[] },
    Workflow { name: "payment_received", audience: Audience::SupplierAndPlanner, templates: "generic", email_template: GENERIC, variables: &[] },
    Workflow { name: "payment_failed", audience: Audience::SupplierAndPlanner, templates: "generic", email_template: GENERIC, variables: &[] },
    Workflow { name: "emergency", audience: Audience::Everybody, templates: "generic", email_template: GENERIC, variables: &[] },
    Workflow { name: "integration_failing", audience: Audience::Owner, templates: "generic", email_template: GENERIC, variables: &[] },
    Workflow { name: "vendor_behind", audience: Audience::Supplier, templates: "vendor_behind", email_template: "realtime-vendor-behind", variables: &["vendor", "summary", "since", "wedding_date", "wedding_date_text", "ceremony_time", "time_zone", "venue_name", "updated_fields"] },
    Workflow { name: "calendar_conflict", audience: Audience::Owner, templates: "generic", email_template: GENERIC, variables: &[] },
];

static FALLBACK: Workflow = Workflow {
    name: "generic",
    audience: Audience::Named,
    templates: "generic",
    email_template: GENERIC,
    variables: &[],
};

/// The workflow of this name, or the fallback.
pub(crate) fn find(name: &str) -> &'static Workflow {
    WORKFLOWS.iter().find(|workflow| workflow.name == name).unwrap_or(&FALLBACK)
}

/// Whether a later notification about the same thing says all that an earlier one did: it tells a single value.
pub(crate) fn replaces(name: &str) -> bool {
    matches!(name, "wedding_date_change" | "guest_count_changed" | "journey_milestone_completed")
}

/// All that are in the table, and the fallback.
pub(crate) fn all() -> impl Iterator<Item = &'static Workflow> {
    WORKFLOWS.iter().chain([&FALLBACK])
}

#[derive(Deserialize)]
struct Instructions {
    /// For those of no known type.
    other: String,
    lines: Vec<Line>,
}

#[derive(Deserialize)]
struct Line {
    types: Vec<String>,
    line: String,
}

/// What vendors of each type are asked to do when a wedding moves.
pub(crate) struct VendorInstructions(Instructions);

impl VendorInstructions {
    /// Reads what is shipped.
    pub(crate) fn load() -> Self {
        let text = include_str!("../templates/wedding_date_change/instructions.toml");
        Self(toml::from_str(text).expect("the shipped instructions are tested"))
    }

    /// One line for each of `types`, each line once; the general one where none is known.
    pub(crate) fn lines(&self, types: &[String]) -> Vec<&str> {
        let mut lines: Vec<&str> = Vec::new();
        for vendor_type in types {
            let known = normal(vendor_type);
            let line =
                self.0.lines.iter().find(|line| line.types.contains(&known)).map_or(&*self.0.other, |line| &line.line);
            if !lines.contains(&line) {
                lines.push(line);
            }
        }
        if lines.is_empty() { vec![&self.0.other] } else { lines }
    }
}

/// A vendor type in one spelling: `Hair & Make-up` is `hair_make_up`.
pub(crate) fn normal(vendor_type: &str) -> String {
    let lower = vendor_type.to_lowercase();
    let words = lower.split(|c: char| !c.is_alphanumeric()).filter(|word| !word.is_empty());
    words.collect::<Vec<_>>().join("_")
}

#[cfg(test)]
mod tests {
    use std::collections::HashSet;

    use super::*;

    #[test]
    fn every_vendor_type_has_one_line_of_its_own() {
        let instructions = VendorInstructions::load();
        let types: Vec<_> = instructions.0.lines.iter().flat_map(|line| &line.types).collect();
        assert_eq!(types.iter().collect::<HashSet<_>>().len(), types.len(), "a type stands twice");
        assert!(types.iter().all(|name| normal(name) == **name), "types stand in their normal spelling");
        let lines: HashSet<_> = instructions.0.lines.iter().map(|line| &line.line).collect();
        assert_eq!(lines.len(), instructions.0.lines.len());
    }

    #[test]
    fn a_vendor_of_two_types_reads_both_lines_and_an_unknown_one_the_general() {
        let instructions = VendorInstructions::load();
        let lines =
            |types: &[&str]| instructions.lines(&types.iter().map(|name| (*name).to_owned()).collect::<Vec<_>>()).len();
        assert_eq!(lines(&["photographer", "florist"]), 2);
        assert_eq!(lines(&["Photographer", "photography"]), 1);
        assert_eq!(instructions.lines(&[]), instructions.lines(&["falconer".to_owned()]));
    }

    #[test]
    fn an_unknown_workflow_is_the_generic_one() {
        assert_eq!(find("moon_phase").templates, "generic");
        assert_eq!(find("wedding_date_change").email_template, "realtime-wedding-change");
    }
}
