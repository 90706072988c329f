//! What short channels say, made of the texts of the inbox and of the variables: a title, a body, and facts as pairs. Pure.
//!
//! A workflow may have a text of its own for a channel (`sms.text`, `push.body`, `slack.title`); without one, the inbox's serve.

use chassis::expression::ExpressionError;
use serde_json::Value;

use super::Message;
pub(super) use crate::variable::clean;
use crate::{event::plain, template::Texts, variable::Variables};

/// How many facts are shown, and how many characters of each are.
const FACTS: usize = 10;
const FACT_CHARS: usize = 300;

/// What is said.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Words {
    /// One line.
    pub(super) title: String,
    pub(super) body: String,
    /// Name and value.
    pub(super) facts: Vec<(String, String)>,
    /// Whoever reads it is asked to say so.
    pub(super) asks: bool,
    /// Where they can, if a link was made for them.
    pub(super) link: Option<String>,
}

impl Words {
    pub(super) fn of(channel: &str, message: &Message<'_>) -> Result<Self, ExpressionError> {
        Self::said(channel, message.texts, message.variables)
    }

    /// What `channel` says with these texts.
    pub(super) fn said(channel: &str, texts: &Texts<'_>, variables: &Variables) -> Result<Self, ExpressionError> {
        let own = |part: &str| texts.own(&format!("{channel}.{part}"), variables);
        let title = own("title")?.map_or_else(|| texts.render("in_app.title", variables), Ok)?;
        let body = own("body")?.map_or_else(|| texts.render("in_app.body", variables), Ok)?;
        Ok(Self {
            title: clean(&one_line(&title)),
            body: clean(&body),
            facts: facts(variables),
            asks: asks(texts.workflow.name),
            link: variables.get("acknowledge_url").and_then(plain).filter(|url| url.starts_with("https://")),
        })
    }

    /// Title and body on one line.
    pub(super) fn line(&self) -> String {
        let end = if self.title.is_empty() || self.title.ends_with(['.', '!', '?']) { "" } else { "." };
        one_line(&format!("{}{end} {}", self.title, self.body))
    }
}

/// Workflows whose reader is asked to confirm.
pub(super) fn asks(workflow: &str) -> bool {
    matches!(workflow, "wedding_date_change" | "emergency")
}

/// What changed, or what an event says, by name.
fn facts(variables: &Variables) -> Vec<(String, String)> {
    let text = |value: &Value| plain(value).filter(|text| !text.trim().is_empty());
    let known = |name: &str| variables.get(name).and_then(text);
    let listed = |name: &str| variables.get(name).and_then(Value::as_array).cloned().unwrap_or_default();
    let mut facts: Vec<(String, String)> = Vec::new();
    for (name, label) in [("old_date_text", "Old date"), ("new_date_text", "New date")] {
        facts.extend(known(name).map(|value| (label.to_owned(), value)));
    }
    for change in listed("changes") {
        if let (Some(what), Some(new)) = (text(&change["what"]), text(&change["new"])) {
            let old = text(&change["old"]).map_or_else(String::new, |old| format!("{old} → "));
            facts.push((what, format!("{old}{new}")));
        }
    }
    for detail in listed("details") {
        facts.extend(text(&detail["name"]).zip(text(&detail["value"])));
    }
    let short = |text: String| cut(&one_line(&clean(&text)), FACT_CHARS);
    let facts = facts.into_iter().map(|(name, value)| (short(name), short(value)));
    facts.filter(|(name, value)| !name.is_empty() && !value.is_empty()).take(FACTS).collect()
}

/// On one line, with one space between words.
pub(super) fn one_line(text: &str) -> String {
    text.split(|c: char| c.is_control() || c.is_whitespace())
        .filter(|word| !word.is_empty())
        .collect::<Vec<_>>()
        .join(" ")
}

/// At most `limit` characters; what is cut ends in an ellipsis.
pub(super) fn cut(text: &str, limit: usize) -> String {
    cut_by(text, limit, |_| 1)
}

/// As much as weighs at most `limit`, where an ellipsis weighs as its character does.
pub(super) fn cut_by(text: &str, limit: usize, weight: impl Fn(char) -> usize) -> String {
    if text.chars().map(&weight).sum::<usize>() <= limit {
        return text.to_owned();
    }
    let Some(mut room) = limit.checked_sub(weight('…')) else { return String::new() };
    let mut kept = String::new();
    for c in text.chars() {
        let Some(rest) = room.checked_sub(weight(c)) else { break };
        room = rest;
        kept.push(c);
    }
    kept.truncate(kept.trim_end().len());
    kept.push('…');
    kept
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;
    use serde_json::json;

    use super::*;

    fn variables(value: Value) -> Variables {
        value.as_object().expect("a map").clone()
    }

    #[test]
    fn facts_are_what_changed_and_what_is_known() {
        let of_date = variables(
            json!({"old_date_text": "Saturday 20 June 2026", "new_date_text": null, "changes": [], "details": []}),
        );
        assert_eq!(facts(&of_date), [("Old date".to_owned(), "Saturday 20 June 2026".to_owned())]);
        let of_times = variables(
            json!({"changes": [{"what": "Ceremony", "old": "15:00", "new": "16:00"}, {"what": "Venue", "old": null, "new": "Barn"}]}),
        );
        assert_eq!(
            facts(&of_times),
            [("Ceremony".to_owned(), "15:00 → 16:00".to_owned()), ("Venue".to_owned(), "Barn".to_owned())]
        );
        let many: Vec<Value> = (0..20).map(|n| json!({"name": format!("n{n}"), "value": "v".repeat(1_000)})).collect();
        let facts = facts(&variables(json!({"details": many})));
        assert_eq!((facts.len(), facts[0].1.chars().count()), (FACTS, FACT_CHARS));
    }

    proptest! {
        #[test]
        fn a_cut_text_keeps_its_limit_and_a_short_one_is_untouched(text in ".{0,80}", limit in 0..100usize) {
            let kept = cut_by(&text, limit, char::len_utf8);
            prop_assert!(kept.len() <= limit);
            prop_assert!(text.len() > limit || kept == text);
            let kept = cut(&text, limit);
            prop_assert!(kept.chars().count() <= limit);
        }

        #[test]
        fn a_line_is_a_line_and_nothing_unseen_is_left(text in any::<String>()) {
            let line = one_line(&clean(&text));
            let is_unseen = |c: char| c.is_control() || ('\u{202a}'..='\u{202e}').contains(&c);
            prop_assert!(!line.chars().any(is_unseen));
        }
    }
}
