//! The inbox inside the product: a notice that is recorded with its notification, and so delivered.

use bytes::Bytes;
use chassis::expression::ExpressionError;
use serde::{Deserialize, Serialize};

use super::{Carriage, Channel, Message};
use crate::recipient::Recipient;

/// What a notice says.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Words {
    pub(crate) title: String,
    pub(crate) body: String,
}

/// The inbox.
pub(crate) struct InApp;

impl Channel for InApp {
    fn name(&self) -> &'static str {
        "in_app"
    }

    /// Everybody in the directory has an inbox.
    fn address(&self, recipient: &Recipient) -> Result<String, &'static str> {
        Ok(recipient.id.clone())
    }

    fn render(&self, message: &Message<'_>) -> Result<Bytes, ExpressionError> {
        let words = Words {
            title: message.texts.line("in_app.title", message.variables)?,
            body: message.texts.render("in_app.body", message.variables)?,
        };
        Ok(serde_json::to_vec(&words).expect("texts have a JSON form").into())
    }

    fn carriage(&self) -> Carriage<'_> {
        Carriage::Record
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::channel::{
        naughty::{Rendered, naughty, rendered_with},
        words::{clean, one_line},
    };

    #[test]
    fn no_text_breaks_a_notice_holds_what_nobody_sees_or_is_left_out() {
        for text in naughty() {
            for Rendered { workflow, case, content } in rendered_with(&InApp, &text) {
                let words: Words = serde_json::from_slice(&content).unwrap();
                let of = format!("{workflow}, {case}: {text:?}\n{words:?}");
                assert_eq!(words.title, one_line(&clean(&words.title)), "{of}");
                assert_eq!(words.body, clean(&words.body), "{of}");
                let plain = !text.contains(|c: char| c.is_control() || c.is_whitespace()) && text == clean(&text);
                assert!(!plain || case != "own words" || words.body.contains(&text), "{of}");
            }
        }
    }
}
