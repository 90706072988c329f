//! The shipped texts: `templates/<workflow>/<channel>.<part>[.html].j2`, compiled once and rendered for each recipient.
//!
//! Values are escaped in what becomes HTML and nowhere else. A text is what its variables make of it; one-line parts
//! (subjects, titles) are made one line whatever a name holds. Organizations may put [`own`] texts before these, by part and
//! language; [`texts`] chooses.

pub(crate) mod check;
pub(crate) mod own;
pub(crate) mod sample;
pub(crate) mod texts;

use std::collections::HashMap;

use anyhow::{Context as _, Result};
use chassis::expression::{ExpressionError, Template};

pub(crate) use self::{
    own::{Wording, Wordings},
    texts::Texts,
};
use crate::variable::Variables;

macro_rules! sources {
    ($($workflow:literal),* $(,)?) => {
        &[$(
            ($workflow, "email.subject", concat!($workflow, "/email.subject.j2"), include_str!(concat!("../templates/", $workflow, "/email.subject.j2"))),
            ($workflow, "email.text", concat!($workflow, "/email.text.j2"), include_str!(concat!("../templates/", $workflow, "/email.text.j2"))),
            ($workflow, "email.html", concat!($workflow, "/email.html.j2"), include_str!(concat!("../templates/", $workflow, "/email.html.j2"))),
            ($workflow, "in_app.title", concat!($workflow, "/in_app.title.j2"), include_str!(concat!("../templates/", $workflow, "/in_app.title.j2"))),
            ($workflow, "in_app.body", concat!($workflow, "/in_app.body.j2"), include_str!(concat!("../templates/", $workflow, "/in_app.body.j2"))),
        )*]
    };
}

/// Folder, part, name and source of each.
static SOURCES: &[(&str, &str, &str, &str)] = sources![
    "wedding_date_change",
    "timeline_changed",
    "form_response_received",
    "journey_milestone_completed",
    "client_profile_updated",
    "vendor_behind",
    "generic",
];

/// Texts that only some workflows have; the others are told in the words of their inbox.
static OWN: &[(&str, &str, &str, &str)] = &[
    (
        "wedding_date_change",
        "sms.text",
        "wedding_date_change/sms.text.j2",
        include_str!("../templates/wedding_date_change/sms.text.j2"),
    ),
    (
        "wedding_date_change",
        "push.body",
        "wedding_date_change/push.body.j2",
        include_str!("../templates/wedding_date_change/push.body.j2"),
    ),
];

/// What stands around the HTML of every e-mail.
const LAYOUT: &str = include_str!("../templates/layout/email.html");
const CONTENT: &str = "<!-- content -->\n";

/// Every template, compiled.
pub(crate) struct Templates {
    parts: HashMap<(&'static str, &'static str), Template>,
    before: Template,
    after: Template,
}

impl Templates {
    /// Compiles what is shipped.
    ///
    /// # Errors
    /// A template that isn't in the language.
    pub(crate) fn load() -> Result<Self> {
        let (before, after) = LAYOUT.split_once(CONTENT).context("the layout has a place for its content")?;
        let mut parts = HashMap::new();
        for (folder, part, name, source) in SOURCES.iter().chain(OWN) {
            parts.insert((*folder, *part), Template::compile(name, source)?);
        }
        Ok(Self {
            parts,
            before: Template::compile("before.html", before)?,
            after: Template::compile("after.html", after)?,
        })
    }

    /// The shipped text of a part, if the folder has it.
    fn get(&self, folder: &str, part: &str) -> Option<&Template> {
        self.parts.iter().find(|((f, p), _)| *f == folder && *p == part).map(|(_, template)| template)
    }

    /// The shipped source of a part, if the folder has it.
    pub(crate) fn source(folder: &str, part: &str) -> Option<&'static str> {
        SOURCES.iter().chain(OWN).find(|(f, p, ..)| *f == folder && *p == part).map(|(.., source)| *source)
    }

    /// What is HTML, as a whole document.
    fn around(&self, content: &str, variables: &Variables) -> Result<String, ExpressionError> {
        Ok([&*self.before.render(variables)?, content, &*self.after.render(variables)?].join("\n"))
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;
    use crate::{
        event::tests::content,
        recipient::tests::supplier,
        variable::{for_recipient, of_event},
        workflow::{VendorInstructions, Workflow, all, find},
    };

    fn variables(workflow: &Workflow, data: serde_json::Value) -> Variables {
        let variables = of_event(workflow, workflow.name, &content("x.happened", data));
        for_recipient(&variables, &supplier("s"), &["florist".to_owned()], &VendorInstructions::load(), "WedSync")
    }

    #[test]
    fn every_workflow_has_every_part_and_each_renders_with_nothing_known() {
        let templates = Templates::load().unwrap();
        for workflow in all() {
            for part in ["email.subject", "email.text", "email.html", "in_app.title", "in_app.body"] {
                let text = Texts::shipped(&templates, workflow).render(part, &variables(workflow, json!({})));
                let text = text.unwrap_or_else(|error| panic!("{}: {error}", workflow.name));
                let may_be_empty = workflow.templates == "generic" && part == "in_app.body";
                assert!(may_be_empty || !text.is_empty(), "{} {part}", workflow.name);
                assert!(!text.contains("None") && !text.contains("null"), "{text}");
            }
        }
    }

    #[test]
    fn a_date_change_asks_for_action_and_gives_the_vendor_types_line() {
        let templates = Templates::load().unwrap();
        let workflow = find("wedding_date_change");
        let variables =
            variables(workflow, json!({"wedding_id": "w", "old_date": "2026-06-20", "new_date": "2026-06-27"}));
        for part in ["email.text", "email.html", "in_app.body"] {
            let text = Texts::shipped(&templates, workflow).render(part, &variables).unwrap();
            assert!(text.to_lowercase().contains("action required: update your calendar"), "{text}");
            assert!(text.contains("flowers") && text.contains("Saturday 27 June 2026"), "{text}");
        }
    }

    #[test]
    fn a_hostile_name_is_text_in_html_and_stays_on_one_line_elsewhere() {
        let templates = Templates::load().unwrap();
        let hostile = "<script>alert(1)</script>\r\nBcc: all@example.org";
        let workflow = find("form_response_received");
        let variables = variables(workflow, json!({"client_name": hostile, "form_name": "\" onload=\"x"}));
        let html = Texts::shipped(&templates, workflow).document("email.html", &variables).unwrap();
        assert!(!html.contains("<script>") && html.contains("&lt;script&gt;"), "{html}");
        assert!(html.starts_with("<!doctype html>") && html.contains("</html>"));
        let subject = Texts::shipped(&templates, workflow).line("email.subject", &variables).unwrap();
        assert!(!subject.contains(['\r', '\n']) && subject.contains("<script>"), "{subject}");
    }
}
