//! What each channel would say with some texts, and how much of its room that takes. Pure.

use chassis::expression::ExpressionError;
use serde_json::json;

use super::{
    push,
    segment::segments,
    slack::block,
    sms, teams, whatsapp,
    words::{Words, one_line},
};
use crate::{template::Texts, variable::Variables};

/// A subject beyond this is cut by whatever shows it; a letter beyond this is cut by some who show it.
const SUBJECT: usize = 200;
const LETTER_BYTES: usize = 100 * 1024;
const NOTICE_TITLE: usize = 200;
const NOTICE_BODY: usize = 8_000;

/// What the limits depend on.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Limits<'a> {
    pub(crate) public_name: &'a str,
    /// Of an SMS.
    pub(crate) max_segments: usize,
}

/// What a channel would say.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(crate) struct Said {
    pub(crate) channel: &'static str,
    /// Subject or title; an SMS has none.
    pub(crate) title: String,
    pub(crate) text: String,
    /// Of e-mail alone.
    pub(crate) html: String,
    /// As the provider gets it: JSON, where that isn't the text.
    pub(crate) payload: String,
    pub(crate) measures: Vec<Measure>,
}

/// How much of its room something takes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Measure {
    pub(crate) what: &'static str,
    pub(crate) size: usize,
    pub(crate) limit: usize,
    pub(crate) unit: &'static str,
}

impl Said {
    fn new(channel: &'static str, title: &str, text: &str) -> Self {
        Self { channel, title: title.to_owned(), text: text.to_owned(), ..Self::default() }
    }

    fn measured(mut self, what: &'static str, size: usize, limit: usize, unit: &'static str) -> Self {
        self.measures.push(Measure { what, size, limit, unit });
        self
    }

    /// # Errors
    /// What doesn't fit.
    pub(crate) fn fits(&self) -> Result<(), String> {
        let over = self.measures.iter().find(|measure| measure.size > measure.limit);
        over.map_or(Ok(()), |Measure { what, size, limit, unit }| {
            Err(format!("{}: {what}: {size} of at most {limit} {unit}", self.channel))
        })
    }

    /// # Errors
    /// What would be sent with nothing in it.
    pub(crate) fn says_something(&self) -> Result<(), String> {
        let empty = match self.channel {
            "email" if self.title.is_empty() => "subject",
            "in_app" if self.title.is_empty() => "title",
            "email" | "sms" if self.text.is_empty() => "text",
            _ => return Ok(()),
        };
        Err(format!("{}: the {empty} is empty with nothing known", self.channel))
    }
}

/// What every channel would say.
///
/// # Errors
/// A text that the variables make impossible.
pub(crate) fn preview(
    texts: &Texts<'_>,
    variables: &Variables,
    limits: &Limits<'_>,
) -> Result<Vec<Said>, ExpressionError> {
    let words = |channel: &str| Words::said(channel, texts, variables);
    Ok(vec![
        in_app(texts, variables)?,
        email(texts, variables)?,
        by_sms(&sms::whole(texts, variables, limits.public_name)?, limits),
        by_whatsapp(&words("whatsapp")?),
        by_slack(&words("slack")?, limits.public_name),
        by_teams(&words("teams")?, limits.public_name),
        by_push(&words("push")?),
    ])
}

fn characters(text: &str) -> usize {
    text.chars().count()
}

fn in_app(texts: &Texts<'_>, variables: &Variables) -> Result<Said, ExpressionError> {
    let (title, body) = (texts.line("in_app.title", variables)?, texts.render("in_app.body", variables)?);
    Ok(Said::new("in_app", &title, &body).measured("title", characters(&title), NOTICE_TITLE, "characters").measured(
        "body",
        characters(&body),
        NOTICE_BODY,
        "characters",
    ))
}

fn email(texts: &Texts<'_>, variables: &Variables) -> Result<Said, ExpressionError> {
    let (subject, text) = (texts.line("email.subject", variables)?, texts.render("email.text", variables)?);
    let html = texts.document("email.html", variables)?;
    let said = Said { html, ..Said::new("email", &subject, &text) }
        .measured("subject", characters(&subject), SUBJECT, "characters")
        .measured("text", text.len(), LETTER_BYTES, "bytes");
    let bytes = said.html.len();
    Ok(said.measured("html", bytes, LETTER_BYTES, "bytes"))
}

fn by_sms(text: &str, limits: &Limits<'_>) -> Said {
    Said::new("sms", "", text).measured("text", segments(text).1, limits.max_segments, "parts").measured(
        "text",
        characters(text),
        sms::CHARACTERS,
        "characters",
    )
}

fn by_whatsapp(words: &Words) -> Said {
    let (title, body) = (one_line(&words.title), one_line(&words.body));
    Said::new("whatsapp", &title, &body).measured("title", characters(&title), whatsapp::TITLE, "characters").measured(
        "body",
        characters(&body),
        whatsapp::BODY,
        "characters",
    )
}

fn by_slack(words: &Words, public_name: &str) -> Said {
    let utf16 = |text: &str| text.encode_utf16().count();
    let payload = block::plain(words, public_name).to_string();
    Said { payload, ..Said::new("slack", &words.title, &words.body) }
        .measured("title", utf16(&words.title), block::HEADER, "characters")
        .measured("body", utf16(&words.body), block::SECTION, "characters")
}

fn by_teams(words: &Words, public_name: &str) -> Said {
    let (body, facts) = teams::BUDGETS[0];
    let whole = teams::around(teams::card(words, public_name, body, facts)).to_string().len();
    let payload = teams::envelope(words, public_name).to_string();
    Said { payload, ..Said::new("teams", &words.title, &words.body) }
        .measured("title", characters(&words.title), teams::TITLE, "characters")
        .measured("body", characters(&words.body), body, "characters")
        .measured("card", whole, teams::BYTES, "bytes")
}

fn by_push(words: &Words) -> Said {
    let (title, body) = (one_line(&words.title), one_line(&words.body));
    let bytes = |text: &str| text.chars().map(push::escaped_bytes).sum::<usize>();
    let payload = json!({"title": title, "body": body}).to_string();
    let (title_bytes, body_bytes) = (bytes(&title), bytes(&body));
    Said { payload, ..Said::new("push", &title, &body) }
        .measured("title", title_bytes, push::TITLE_BYTES, "bytes")
        .measured("body", body_bytes, push::BODY_BYTES, "bytes")
}
