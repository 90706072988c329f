//! What an organization's own text is held to before it is stored. Pure.
//!
//! It parses; it uses nothing but what its workflow gives; it renders with everything known, with each variable missing
//! and with all of them missing; and with the sample every channel can say what comes of it without cutting it.

use chassis::error::{Error, Result};

use super::{Texts, own::Key, sample};
use crate::{
    channel::preview::{Limits, Said, preview},
    settings::check_locale,
    variable::Variables,
    workflow::{self, COMMON, Workflow},
};

/// Every part that a workflow may have.
pub(crate) const PARTS: &[&str] = &[
    "email.subject",
    "email.text",
    "email.html",
    "in_app.title",
    "in_app.body",
    "sms.text",
    "whatsapp.title",
    "whatsapp.body",
    "slack.title",
    "slack.body",
    "teams.title",
    "teams.body",
    "push.title",
    "push.body",
];

/// The lists that every workflow has, empty where it has nothing to list.
const LISTS: &[&str] = &["changes", "updated_fields"];

/// What the texts of a workflow may use.
pub(crate) fn names(workflow: &Workflow) -> Vec<&'static str> {
    let own = workflow.variables.iter().filter(|name| !COMMON.contains(name));
    let lists = LISTS.iter().filter(|name| !workflow.variables.contains(name));
    COMMON.iter().chain(own).chain(lists).copied().collect()
}

/// Whether there can be such a text.
///
/// # Errors
/// `Error::Invalid` for the field at fault.
pub(crate) fn check_key(key: &Key) -> Result<()> {
    if workflow::all().all(|workflow| workflow.name != key.workflow) {
        let known: Vec<_> = workflow::all().map(|workflow| workflow.name).collect();
        return Err(Error::invalid("workflow", format!("must be one of {}", known.join(", "))));
    }
    if !PARTS.contains(&&*key.part) {
        return Err(Error::invalid("part", format!("must be one of {}", PARTS.join(", "))));
    }
    if key.locale.is_empty() {
        return Err(Error::invalid("locale", "must be a BCP 47 tag, for example en"));
    }
    check_locale("locale", &key.locale)
}

/// Holds `texts`, among which is the new one, to everything.
///
/// # Errors
/// `Error::Invalid` with what fails, in which case.
pub(crate) fn check(texts: &Texts<'_>, locale: &str, limits: &Limits<'_>) -> Result<()> {
    let workflow = texts.workflow;
    let all = sample::all(workflow, &Variables::new(), locale, limits.public_name);
    for said in try_with(texts, &all, limits, "with the sample")? {
        said.fits().map_err(|reason| Error::invalid("source", reason))?;
    }
    for name in names(workflow).into_iter().filter(|name| !sample::CERTAIN.contains(name)) {
        try_with(texts, &sample::without(&all, name), limits, &format!("without `{name}`"))?;
    }
    let nothing = sample::nothing(workflow, locale, limits.public_name);
    for said in try_with(texts, &nothing, limits, "with nothing known")? {
        said.says_something().map_err(|reason| Error::invalid("source", reason))?;
    }
    Ok(())
}

fn try_with(texts: &Texts<'_>, variables: &Variables, limits: &Limits<'_>, case: &str) -> Result<Vec<Said>> {
    preview(texts, variables, limits).map_err(|error| Error::invalid("source", format!("{case}: {error}")))
}

#[cfg(test)]
mod tests {
    use super::{
        super::{Templates, Wording, own::compile},
        *,
    };

    fn put(workflow: &str, part: &str, source: &str) -> Result<()> {
        let key = Key { workflow: workflow.to_owned(), part: part.to_owned(), locale: "en".to_owned() };
        check_key(&key)?;
        let template = compile(&key, source).map_err(|error| Error::invalid("source", error.to_string()))?;
        let (templates, wording) = (Templates::load().unwrap(), Wording::default().with(key, template));
        let texts = Texts::new(&templates, &wording, workflow::find(workflow), "en").strict();
        check(&texts, "en", &Limits { public_name: "WedSync", max_segments: 4 })
    }

    fn refused(workflow: &str, part: &str, source: &str) -> String {
        put(workflow, part, source).expect_err("it is refused").to_string()
    }

    #[test]
    fn what_is_shipped_passes_as_its_own_replacement() {
        for workflow in workflow::all() {
            for part in PARTS {
                if let Some(source) = Templates::source(workflow.templates, part) {
                    put(workflow.name, part, source)
                        .unwrap_or_else(|error| panic!("{} {part}: {error}", workflow.name));
                }
            }
        }
    }

    #[test]
    fn a_text_is_refused_with_the_line_of_what_is_wrong() {
        let said = refused("timeline_changed", "email.text", "Hello\n{{ recipient_name }}\n{{ bride }}");
        assert!(said.contains("email.text: line 3: `bride` is not a variable"), "{said}");
        let said =
            refused("timeline_changed", "email.text", "{% for c in changes %}{{ c.what }}{% endfor %}\n{{ c.new }}");
        assert!(said.contains("line 2: `c` is not a variable"), "{said}");
        let said = refused("generic", "email.text", "{% include 'other' %}");
        assert!(said.contains("line 1: `include` is not part of the language"), "{said}");
        let said = refused("generic", "email.text", "{{ headline");
        assert!(said.contains("line 1: a tag is not closed"), "{said}");
    }

    #[test]
    fn a_text_that_counts_on_what_may_be_missing_is_refused() {
        let said = refused("client_profile_updated", "in_app.body", "{{ client_name | upper }}");
        assert!(said.contains("without `client_name`: "), "{said}");
        let said = refused("client_profile_updated", "email.subject", "{{ client_name }}");
        assert!(said.contains("email: the subject is empty with nothing known"), "{said}");
    }

    #[test]
    fn every_channels_limits_hold_for_what_they_say() {
        let long = |length: usize| "a".repeat(length);
        for (part, length, said) in [
            ("email.subject", 201, "email: subject: 201 of at most 200 characters"),
            ("sms.text", 613, "sms: text: 5 of at most 4 parts"),
            ("slack.title", 151, "slack: title: 151 of at most 150 characters"),
            ("slack.body", 3_001, "slack: body: 3001 of at most 3000 characters"),
            ("teams.body", 8_001, "teams: body: 8001 of at most 8000 characters"),
            ("push.body", 1_001, "push: body: 1001 of at most 1000 bytes"),
            ("whatsapp.body", 701, "whatsapp: body: 701 of at most 700 characters"),
            // Whoever has no text of its own for a channel has it say the inbox's.
            ("in_app.body", 701, "of at most"),
        ] {
            let refused = refused("timeline_changed", part, &long(length));
            assert!(refused.contains(said), "{part}: {refused}");
        }
        assert!(put("timeline_changed", "email.subject", &long(200)).is_ok());
        assert!(put("timeline_changed", "sms.text", &long(612)).is_ok());
        let rings = format!("{{% for change in changes %}}{}{{% endfor %}}", "\u{1F492}".repeat(3_500));
        let card = refused("timeline_changed", "teams.body", &rings);
        assert!(card.contains("teams: card: ") && card.contains("of at most 27000 bytes"), "{card}");
    }

    #[test]
    fn no_text_goes_on_for_ever_or_grows_without_end() {
        let nested = "{% for a in range(1000) %}{% for b in range(1000) %}x{% endfor %}{% endfor %}";
        let said = refused("generic", "email.text", nested);
        assert!(said.contains("source"), "{said}");
    }

    #[test]
    fn only_texts_that_something_says_can_be_put() {
        let refused = |workflow: &str, part: &str| put(workflow, part, "x").expect_err("it is refused").to_string();
        assert!(refused("moon_phase", "email.text").starts_with("workflow: must be one of"));
        assert!(refused("generic", "email.body").starts_with("part: must be one of"));
    }
}
