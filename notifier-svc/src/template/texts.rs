//! The texts of one message: for each part the organization's own in the reader's language, else ours. Pure.
//!
//! `de-CH` is looked for as `de-CH`, `de`, then in the organization's language, then in English. Guarantee: an own text that
//! fails with what an event says is replaced by the shipped one, so that nobody goes untold because of it.

use chassis::expression::{ExpressionError, Template};

use super::{Templates, Wording};
use crate::{variable::Variables, workflow::Workflow};

/// The language of what is shipped.
const SHIPPED: &str = "en";

/// What is said to somebody, part by part.
pub(crate) struct Texts<'a> {
    pub(crate) workflow: &'a Workflow,
    shipped: &'a Templates,
    wording: Option<&'a Wording>,
    locales: Vec<String>,
    /// A text that fails is an error: it is being checked.
    strict: bool,
}

impl<'a> Texts<'a> {
    pub(crate) fn new(shipped: &'a Templates, wording: &'a Wording, workflow: &'a Workflow, locale: &str) -> Self {
        let locales = chain(locale, &wording.settings.locale);
        Self { workflow, shipped, wording: Some(wording), locales, strict: false }
    }

    /// Of which each has to render.
    pub(crate) fn strict(self) -> Self {
        Self { strict: true, ..self }
    }

    /// What is shipped, and nothing else.
    #[cfg(test)]
    pub(crate) fn shipped(shipped: &'a Templates, workflow: &'a Workflow) -> Self {
        Self { workflow, shipped, wording: None, locales: Vec::new(), strict: true }
    }

    /// The organization's own, and its language.
    fn of_organization(&self, part: &str) -> Option<(&Template, &str)> {
        let wording = self.wording?;
        self.locales.iter().find_map(|locale| Some((wording.get(self.workflow.name, part, locale)?, locale.as_str())))
    }

    /// A part with its blank ends trimmed, and its language; none if nobody has a text for it.
    fn find(&self, part: &str, variables: &Variables) -> Result<Option<(String, &str)>, ExpressionError> {
        if let Some((template, locale)) = self.of_organization(part) {
            match template.render(variables) {
                Ok(text) => return Ok(Some((text.trim().to_owned(), locale))),
                Err(error) if self.strict => return Err(error),
                Err(error) => {
                    metrics::counter!("notifier_own_template_failures_total").increment(1);
                    tracing::warn!(%error, "an organization's own text fails; the shipped one is used");
                }
            }
        }
        let shipped = self.shipped.get(self.workflow.templates, part);
        shipped.map(|template| Ok((template.render(variables)?.trim().to_owned(), SHIPPED))).transpose()
    }

    /// A part that not every workflow has.
    ///
    /// # Errors
    /// What the variables made impossible.
    pub(crate) fn own(&self, part: &str, variables: &Variables) -> Result<Option<String>, ExpressionError> {
        Ok(self.find(part, variables)?.map(|(text, _)| text))
    }

    /// A part that every workflow has.
    ///
    /// # Errors
    /// Likewise.
    pub(crate) fn render(&self, part: &str, variables: &Variables) -> Result<String, ExpressionError> {
        Ok(self.own(part, variables)?.expect("workflows name folders that are shipped, which is tested"))
    }

    /// As [`Texts::render`], on one line.
    ///
    /// # Errors
    /// Likewise.
    pub(crate) fn line(&self, part: &str, variables: &Variables) -> Result<String, ExpressionError> {
        let text = self.render(part, variables)?;
        let words = text.split(|c: char| c.is_control() || c.is_whitespace()).filter(|word| !word.is_empty());
        Ok(words.collect::<Vec<_>>().join(" "))
    }

    /// A part that is HTML, as a whole document in its language.
    ///
    /// # Errors
    /// Likewise.
    pub(crate) fn document(&self, part: &str, variables: &Variables) -> Result<String, ExpressionError> {
        let found = self.find(part, variables)?;
        let (content, locale) = found.expect("workflows name folders that are shipped, which is tested");
        let mut variables = variables.clone();
        variables.insert("locale".to_owned(), locale.into());
        self.shipped.around(&content, &variables)
    }
}

/// The languages that are looked for, in order, in one spelling.
fn chain(locale: &str, default: &str) -> Vec<String> {
    let mut chain: Vec<String> = Vec::new();
    for wished in [locale, default, SHIPPED] {
        let mut tag = normal(wished);
        while !tag.is_empty() {
            if !chain.contains(&tag) {
                chain.push(tag.clone());
            }
            tag.truncate(tag.rfind('-').unwrap_or(0));
        }
    }
    chain
}

/// A language in one spelling: `de_CH` is `de-ch`.
pub(crate) fn normal(locale: &str) -> String {
    locale.trim().replace('_', "-").to_lowercase()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_language_falls_back_to_its_own_then_the_organizations_then_english() {
        assert_eq!(chain("de-CH", "fr-BE"), ["de-ch", "de", "fr-be", "fr", "en"]);
        assert_eq!(chain("zh_Hant_TW", ""), ["zh-hant-tw", "zh-hant", "zh", "en"]);
        assert_eq!(chain("", "de"), ["de", "en"]);
        assert_eq!(chain("en-GB", "en"), ["en-gb", "en"]);
    }
}
