//! Where an event can go: webhooks, people by a workflow, external systems by kind. Pure.

use std::fmt;

use chassis::error::{Error, Result};

use crate::priority::Priority;

/// Channels that a notification can be offered on.
const CHANNELS: [&str; 7] = ["email", "in_app", "slack", "whatsapp", "sms", "teams", "push"];
/// Channels that one notification names: each may stand there with more than one priority.
const OFFERS_MAX: usize = 16;
const NAME_LIMIT: usize = 64;

/// One way in which an event leaves. Ordered, so that a plan always lists its destinations alike.
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub(crate) enum Target {
    /// Every webhook endpoint that subscribes to it.
    Webhooks,
    /// People. In a channel configuration an empty workflow stands for those that routes begin.
    Notification { workflow: String },
    /// Connected external systems of one kind.
    Integration { kind: String },
}

impl Target {
    /// Whether it follows the rows that say how systems are reached.
    pub(crate) fn is_configuration(&self) -> bool {
        matches!(self, Self::Integration { kind } if kind == "configuration")
    }
}

/// A channel that a route offers, from a priority on.
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub(crate) struct Offer {
    pub(crate) channel: String,
    /// None: at every priority.
    pub(crate) from: Option<Priority>,
}

/// A destination as a route or a channel configuration names it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Wish {
    pub(crate) target: Target,
    /// Of a notification.
    pub(crate) offers: Vec<Offer>,
    /// At most this priority; none: the event's.
    pub(crate) at_most: Option<Priority>,
}

impl Wish {
    pub(crate) fn webhooks() -> Self {
        Self { target: Target::Webhooks, offers: Vec::new(), at_most: None }
    }

    /// An integration of a kind, `[a-z0-9_]{1,64}`.
    pub(crate) fn integration(kind: &str) -> Result<Self> {
        check_name("integration.kind", kind)?;
        Ok(Self { target: Target::Integration { kind: kind.to_owned() }, offers: Vec::new(), at_most: None })
    }

    /// A workflow, `[a-z0-9_]{0,64}`, with the channels it is offered on: `email`, or `sms@high` from a priority on.
    pub(crate) fn notification<T: AsRef<str>>(workflow: &str, channels: &[T]) -> Result<Self> {
        if !workflow.is_empty() {
            check_name("notification.workflow", workflow)?;
        }
        if channels.len() > OFFERS_MAX {
            return Err(Error::invalid("notification.channels", format!("must be at most {OFFERS_MAX}")));
        }
        let offers = channels.iter().map(|text| Offer::parse(text.as_ref())).collect::<Result<_>>()?;
        Ok(Self { target: Target::Notification { workflow: workflow.to_owned() }, offers, at_most: None })
    }

    /// Whether it adds channels to whatever is begun elsewhere.
    pub(crate) fn joins_any_workflow(&self) -> bool {
        matches!(&self.target, Target::Notification { workflow } if workflow.is_empty())
    }
}

impl Offer {
    fn parse(text: &str) -> Result<Self> {
        let (channel, from) = match text.split_once('@') {
            Some((channel, priority)) => {
                (channel, Some(Priority::parse(priority).ok_or_else(|| unknown_channel(text))?))
            }
            None => (text, None),
        };
        if !CHANNELS.contains(&channel) {
            return Err(unknown_channel(text));
        }
        Ok(Self { channel: channel.to_owned(), from })
    }

    pub(crate) fn holds_at(&self, priority: Priority) -> bool {
        self.from.is_none_or(|from| priority >= from)
    }
}

impl fmt::Display for Offer {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.from {
            Some(from) => write!(f, "{}@{from}", self.channel),
            None => f.write_str(&self.channel),
        }
    }
}

fn unknown_channel(text: &str) -> Error {
    let known = CHANNELS.join(", ");
    Error::invalid(
        "notification.channels",
        format!("{text:.80?} must be one of {known}, or one of them `@` a priority"),
    )
}

fn check_name(field: &'static str, name: &str) -> Result<()> {
    let allowed = |b: u8| b.is_ascii_lowercase() || b.is_ascii_digit() || b == b'_';
    if (1..=NAME_LIMIT).contains(&name.len()) && name.bytes().all(allowed) {
        Ok(())
    } else {
        Err(Error::invalid(field, "must match [a-z0-9_]{1,64}"))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_channel_may_ask_for_a_priority_and_prints_as_it_was_written() {
        for text in ["email", "sms@high", "sms@critical"] {
            assert_eq!(Offer::parse(text).unwrap().to_string(), text);
        }
        for bad in ["fax", "sms@", "sms@urgent", "@high", ""] {
            assert!(Offer::parse(bad).is_err(), "{bad:?}");
        }
        let sms = Offer::parse("sms@high").unwrap();
        assert!(sms.holds_at(Priority::Critical) && sms.holds_at(Priority::High) && !sms.holds_at(Priority::Normal));
    }

    #[test]
    fn kinds_and_workflows_are_names() {
        assert!(Wish::integration("photography_crm").is_ok());
        assert!(Wish::integration("").is_err() && Wish::integration("a b").is_err());
        assert!(Wish::notification::<&str>("", &[]).unwrap().joins_any_workflow());
    }

    #[test]
    fn a_notification_names_no_more_channels_than_there_are_reasons_to() {
        assert!(Wish::notification("w", &["sms@high"; OFFERS_MAX]).is_ok());
        assert!(Wish::notification("w", &["sms@high"; OFFERS_MAX + 1]).is_err());
    }
}
