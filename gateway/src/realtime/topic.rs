//! Topics of the protocol, and the channels that they stand for. Pure.
//!
//! A topic is `realtime:` and a name. Some names of browser clients are aliases of channels: whoever is on either side
//! reaches the other. `client-updates` is a room of its own, and hears every couple's channel as well.

use std::{borrow::Cow, sync::Arc};

/// Where heartbeats go.
pub(crate) const PHOENIX: &str = "phoenix";
/// The room that hears every couple's channel.
pub(crate) const CLIENT_UPDATES: &str = "client-updates";
/// What begins a couple's channel.
pub(crate) const COUPLE: &str = "couple:";

const PREFIX: &str = "realtime:";
/// Of a whole topic: a byte counts them in a binary frame.
const TOPIC_BYTES: usize = 255;

/// One topic, as its client writes it. Cheap to clone.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub(crate) struct Topic {
    text: Arc<str>,
    channel: Arc<str>,
}

impl Topic {
    /// Takes `realtime:` and 1 to 246 bytes without control characters.
    pub(crate) fn parse(text: &str) -> Option<Self> {
        let name = text.strip_prefix(PREFIX)?;
        let usable = !name.is_empty() && text.len() <= TOPIC_BYTES && !name.chars().any(char::is_control);
        usable.then(|| Self { text: text.into(), channel: resolve_alias(name).into() })
    }

    /// The topic of a channel's name, or its alias.
    pub(crate) fn of_name(name: &str) -> Option<Self> {
        Self::parse(&format!("{PREFIX}{name}"))
    }

    /// As the client writes it.
    pub(crate) fn text(&self) -> &Arc<str> {
        &self.text
    }

    /// Without what all of them begin with.
    pub(crate) fn name(&self) -> &str {
        &self.text[PREFIX.len()..]
    }

    /// The channel that it stands for, an alias resolved.
    pub(crate) fn channel(&self) -> &Arc<str> {
        &self.channel
    }
}

/// `client-list-<id>` is `client-list:<id>`, `supplier_<id>` is `supplier:dashboard:<id>`; the router resolves the same.
fn resolve_alias(name: &str) -> Cow<'_, str> {
    for (alias, channel) in [("client-list-", "client-list:"), ("supplier_", "supplier:dashboard:")] {
        if let Some(id) = name.strip_prefix(alias).filter(|id| is_segment(id)) {
            return format!("{channel}{id}").into();
        }
    }
    name.into()
}

fn is_segment(text: &str) -> bool {
    !text.is_empty() && !text.chars().any(|c| c.is_control() || c.is_whitespace() || c == ':' || c == '*')
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn aliases_stand_for_their_channel_and_other_names_for_themselves() {
        for (name, channel) in [
            ("supplier_42", "supplier:dashboard:42"),
            ("supplier:dashboard:42", "supplier:dashboard:42"),
            ("client-list-a-b", "client-list:a-b"),
            ("client-updates", "client-updates"),
            ("supplier_", "supplier_"),
            ("supplier_a b", "supplier_a b"),
            ("a room, with blanks", "a room, with blanks"),
        ] {
            let topic = Topic::of_name(name).expect(name);
            assert_eq!((topic.name(), &**topic.channel()), (name, channel));
            assert_eq!(&**topic.text(), format!("realtime:{name}"));
        }
    }

    #[test]
    fn what_is_no_topic_is_refused() {
        for bad in ["", "room", "realtime:", "phoenix", "realtime:a\nb", &format!("realtime:{}", "a".repeat(247))] {
            assert_eq!(Topic::parse(bad), None, "{bad:?}");
        }
    }
}
