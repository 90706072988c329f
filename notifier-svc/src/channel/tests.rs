//! What the channels' tests share: a person with every address, and messages to them.

use bytes::Bytes;
use chassis::clock::Clock;
use serde_json::Value;

use super::{Channel, Message, peer::filled_with};
use crate::{
    event::tests::content,
    recipient::{Contact, PushTarget, Recipient, tests::supplier},
    variable::{for_recipient, of_event},
    workflow::{VendorInstructions, all, find},
};

/// Somebody whom every channel reaches.
pub(super) fn reachable(name: &str) -> Recipient {
    let push = PushTarget::Fcm { token: "token".to_owned() };
    let contact = Contact {
        email: "s@example.org".to_owned(),
        phone: "+15005550009".to_owned(),
        whatsapp: "+15005550010".to_owned(),
        slack_channel: "C012AB3CD".to_owned(),
        push: vec![push],
        ..Contact::default()
    };
    Recipient { name: name.to_owned(), contact, ..supplier("s") }
}

/// What `channel` makes of this event for `recipient`.
pub(super) fn message_to(channel: &dyn Channel, recipient: &Recipient, workflow: &str, data: Value) -> Bytes {
    let workflow = find(workflow);
    let variables = of_event(workflow, workflow.name, &content("something.happened", data));
    let types = ["florist".to_owned()];
    let variables = for_recipient(&variables, recipient, &types, &VendorInstructions::load(), "WedSync");
    let message = Message { uid: [7; 16], workflow, variables: &variables, recipient, at: Clock::System.now() };
    channel.render(&message).expect("it renders")
}

pub(super) fn message_of(channel: &dyn Channel, workflow: &str, data: Value) -> Bytes {
    message_to(channel, &reachable("Ada"), workflow, data)
}

/// What `channel` makes of every kind of workflow when every text in it is `text`.
pub(super) fn rendered_with(channel: &dyn Channel, text: &str) -> Vec<(&'static str, Bytes)> {
    let mut folders = std::collections::HashSet::new();
    let of_each = all().filter(|workflow| folders.insert(workflow.templates));
    of_each
        .map(|workflow| (workflow.name, message_to(channel, &reachable(text), workflow.name, filled_with(text))))
        .collect()
}
