//! The ways to reach people: one file each, one line in [`Channels::new`].
//!
//! A channel says whether it reaches a person, renders a message and carries it. What it carries goes through the lanes:
//! its row is durable before the first attempt, and an attempt that a crash interrupted is never repeated, since no
//! person is to be told twice. The inbox needs no carrying: its record is the delivery.

pub(crate) mod email;
pub(crate) mod in_app;
mod smtp;

use std::sync::Arc;

use anyhow::Result;
use bytes::Bytes;
use chassis::{expression::ExpressionError, lane::Attempted};
use futures_util::future::BoxFuture;
use jiff::Timestamp;

use self::{email::Email, in_app::InApp};
use crate::{config::Config, recipient::Recipient, template::Templates, variable::Variables, workflow::Workflow};

/// A way to reach people.
pub(crate) trait Channel: Send + Sync {
    /// As routes and preferences name it.
    fn name(&self) -> &'static str;

    /// Where a person is reached, in a form that tells addresses apart.
    ///
    /// # Errors
    /// Why they aren't reached, to follow "but".
    fn address(&self, recipient: &Recipient) -> Result<String, &'static str>;

    /// The message as it is carried, or as it is recorded.
    ///
    /// # Errors
    /// What the variables made impossible.
    fn render(&self, message: &Message<'_>) -> Result<Bytes, ExpressionError>;

    /// How it gets there.
    fn carriage(&self) -> Carriage<'_>;
}

/// How a channel's messages get where they go.
pub(crate) enum Carriage<'a> {
    /// The record in the inbox is the delivery.
    Record,
    /// Somebody carries them, one attempt at a time.
    Carry(&'a dyn Carrier),
}

/// What makes an attempt.
pub(crate) trait Carrier: Send + Sync {
    /// Tries once, within a bound of its own. `content` is what [`Channel::render`] gave.
    fn carry<'a>(&'a self, content: &'a [u8]) -> BoxFuture<'a, Attempted>;
}

/// What is to be said, and to whom.
pub(crate) struct Message<'a> {
    /// Names the message everywhere, for a receiver that can drop a repeat.
    pub(crate) uid: [u8; 16],
    pub(crate) workflow: &'a Workflow,
    /// Those of this recipient.
    pub(crate) variables: &'a Variables,
    pub(crate) recipient: &'a Recipient,
    pub(crate) at: Timestamp,
}

/// The channels that are set up here.
pub(crate) struct Channels(Vec<Box<dyn Channel>>);

impl Channels {
    /// Sets up what the configuration asks for.
    ///
    /// # Errors
    /// Settings that can't hold.
    pub(crate) fn new(config: &Config, templates: &Arc<Templates>) -> Result<Self> {
        let mut channels: Vec<Box<dyn Channel>> = vec![Box::new(InApp::new(Arc::clone(templates)))];
        if config.smtp.is_configured() {
            channels.push(Box::new(Email::new(config, Arc::clone(templates))?));
        }
        Ok(Self(channels))
    }

    /// The inbox and e-mail, by a server that isn't there.
    #[cfg(test)]
    pub(crate) fn for_test() -> Self {
        let mut config = Config::default();
        config.smtp.host = "localhost".to_owned();
        config.smtp.from = "us@example.org".to_owned();
        Self::new(&config, &Arc::new(Templates::load().expect("shipped templates"))).expect("settings that hold")
    }

    /// The channel of this name, if it is set up.
    pub(crate) fn get(&self, name: &str) -> Option<&dyn Channel> {
        self.0.iter().find(|channel| channel.name() == name).map(|channel| &**channel)
    }

    /// Where a person is reached by the channel of this name.
    ///
    /// # Errors
    /// Why they aren't, to follow "but".
    pub(crate) fn address(&self, name: &str, recipient: &Recipient) -> Result<String, String> {
        let channel = self.get(name).ok_or_else(|| format!("the channel {name} is not set up here"))?;
        channel.address(recipient).map_err(str::to_owned)
    }
}
