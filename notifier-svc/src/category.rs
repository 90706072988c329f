//! What kind of thing a workflow tells: the subjects beside single workflows that a preference can be about. Pure.

/// Commercial mail: it goes to those alone who agreed to it, and its opt-out is never passed over.
pub(crate) const MARKETING: &str = "marketing";

/// All of them.
pub(crate) const ALL: &[&str] = &["weddings", "clients", "payments", "emergencies", "operations", "general", MARKETING];

/// The category of the workflow of this name.
pub(crate) fn of(workflow: &str) -> &'static str {
    match workflow {
        "wedding_date_change" | "timeline_changed" | "guest_count_changed" | "capacity_alert" => "weddings",
        "form_response_received" | "journey_milestone_completed" | "client_profile_updated" => "clients",
        "payment_received" | "payment_failed" => "payments",
        "emergency" => "emergencies",
        "integration_failing" | "calendar_conflict" | "vendor_behind" => "operations",
        MARKETING => MARKETING,
        _ => "general",
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_workflow_has_a_category_that_preferences_may_name() {
        for workflow in crate::workflow::all().map(|workflow| workflow.name).chain(["moon_phase", MARKETING]) {
            assert!(ALL.contains(&of(workflow)), "{workflow}");
        }
    }
}
