//! The ways to reach people: one file each, one line in [`Channels::new`].
//!
//! A channel says whether it reaches a person, renders a message and carries it. What it carries goes through the lanes:
//! its row is durable before the first attempt, and an attempt that a crash interrupted is never repeated, since no
//! person is to be told twice. The inbox needs no carrying: its record is the delivery.

#[cfg(test)]
mod certainty;
pub(crate) mod email;
pub(crate) mod in_app;
pub(crate) mod meta;
#[cfg(test)]
pub(crate) mod peer;
pub(crate) mod preview;
pub(crate) mod provider;
mod push;
mod resend;
mod segment;
mod slack;
mod sms;
mod smtp;
mod teams;
#[cfg(test)]
mod tests;
pub(crate) mod twilio;
mod whatsapp;
mod words;

use std::sync::Arc;

use anyhow::{Context as _, Result};
use bytes::Bytes;
use chassis::{
    clock::Clock,
    expression::ExpressionError,
    lane::{Attempted, Delivery},
    outbound::Outbound,
};
use futures_util::future::{BoxFuture, ready};
use jiff::Timestamp;

pub(crate) use self::slack::{ACKNOWLEDGE, Fault as RoomFault, Found as FoundRoom, Rooms};
use self::{
    email::Email,
    in_app::InApp,
    provider::{Class, Verdict},
    push::PushChannel,
    slack::SlackChannel,
    sms::SmsChannel,
    teams::TeamsChannel,
    twilio::Twilio,
    whatsapp::WhatsappChannel,
};
use crate::{
    config::Config,
    recipient::{Directory, Recipient},
    template::Texts,
    variable::Variables,
    workflow::Workflow,
};

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

/// What makes an attempt, within a bound of its own, to deliver what [`Channel::render`] gave.
pub(crate) trait Carrier: Send + Sync {
    /// Tries once, where no earlier attempt can have been taken.
    fn carry<'a>(&'a self, delivery: &'a Delivery) -> BoxFuture<'a, Attempted>;

    /// Where a message goes, as [`Channel::address`] named it; none where it isn't one address, or can't be read.
    fn goes_to(&self, _: &Delivery) -> Option<String> {
        None
    }

    /// Tries again where an earlier attempt may have been taken: in a way that tells nobody twice, and by no other provider.
    /// Where there is no such way, it stays unknown.
    fn resume<'a>(&'a self, _: &'a Delivery) -> BoxFuture<'a, Attempted> {
        Box::pin(ready(Verdict::new(Class::Unsure, "its provider can't be asked about an earlier attempt").attempted()))
    }
}

/// What is to be said, and to whom.
pub(crate) struct Message<'a> {
    /// Names the message everywhere, for a receiver that can drop a repeat.
    pub(crate) uid: [u8; 16],
    pub(crate) workflow: &'a Workflow,
    /// In the words and the language for this recipient.
    pub(crate) texts: &'a Texts<'a>,
    /// Those of this recipient.
    pub(crate) variables: &'a Variables,
    pub(crate) recipient: &'a Recipient,
    pub(crate) at: Timestamp,
}

/// The channels that are set up here.
pub(crate) struct Channels(Vec<Box<dyn Channel>>);

impl Channels {
    /// Sets up what the configuration asks for. What goes over HTTP goes by `outbound`; addresses that are found to be
    /// dead are taken out of `directory`.
    ///
    /// # Errors
    /// Settings that can't hold.
    pub(crate) fn new(
        config: &Config,
        outbound: &Outbound,
        clock: &Clock,
        directory: Option<Directory>,
    ) -> Result<Self> {
        vet(config, outbound)?;
        let mut channels: Vec<Box<dyn Channel>> = vec![Box::new(InApp)];
        if config.smtp.is_configured() || config.resend.is_configured() {
            channels.push(Box::new(Email::new(config, outbound, clock)?));
        }
        let twilio = Arc::new(Twilio::new(&config.twilio, outbound.clone(), clock.clone()));
        if config.twilio.sends_sms() {
            let twilio = Arc::clone(&twilio);
            channels.push(Box::new(SmsChannel::new(&config.twilio, &config.public_name, twilio)));
        }
        if config.whatsapp.is_configured() || config.twilio.sends_whatsapp() {
            channels.push(Box::new(WhatsappChannel::new(config, twilio, outbound, clock)));
        }
        if !config.teams.hosts.is_empty() {
            channels.push(Box::new(TeamsChannel::new(&config.teams, &config.public_name, outbound, clock)));
        }
        if !config.slack.bot_token.is_empty() || !config.slack.hook_hosts.is_empty() {
            channels.push(Box::new(SlackChannel::new(&config.slack, &config.public_name, outbound, clock)));
        }
        if config.web_push.is_configured() || config.fcm.is_configured() {
            channels.push(Box::new(PushChannel::new(config, outbound, clock, directory)?));
        }
        Ok(Self(channels))
    }

    /// The inbox and e-mail, by a server that isn't there.
    #[cfg(test)]
    pub(crate) fn for_test() -> Self {
        Self::for_test_with(|_| ())
    }

    /// And Slack, by a bot.
    #[cfg(test)]
    pub(crate) fn with_slack() -> Self {
        Self::for_test_with(|config| config.slack.bot_token = "xoxb-1".to_owned().into())
    }

    #[cfg(test)]
    fn for_test_with(change: impl FnOnce(&mut Config)) -> Self {
        static OUTBOUND: std::sync::LazyLock<Outbound> =
            std::sync::LazyLock::new(|| Outbound::new(&Default::default()).expect("settings that hold"));
        let mut config = Config::default();
        config.smtp.host = "localhost".to_owned();
        config.smtp.from = "us@example.org".to_owned();
        config.slack.hook_hosts.clear();
        config.teams.hosts.clear();
        change(&mut config);
        Self::new(&config, &OUTBOUND, &Clock::System, None).expect("settings that hold")
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

/// Judges where the providers are said to be: a guard that would refuse every request is better known at the start.
fn vet(config: &Config, outbound: &Outbound) -> Result<()> {
    for (place, url) in [
        ("[notifier.resend] base_url", &config.resend.base_url),
        ("[notifier.twilio] base_url", &config.twilio.base_url),
        ("[notifier.slack] base_url", &config.slack.base_url),
        ("[notifier.whatsapp] base_url", &config.whatsapp.base_url),
        ("[notifier.fcm] base_url", &config.fcm.base_url),
        ("[notifier.fcm] token_url", &config.fcm.token_url),
    ] {
        outbound.vet(url).context(place)?;
    }
    Ok(())
}
