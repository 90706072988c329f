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
