//! Which channels there are; and what their tests share: a person with every address, and messages to them.

use bytes::Bytes;
use chassis::{
    clock::Clock,
    outbound::{Outbound, OutboundSettings},
};
use serde_json::Value;

use super::{
    Channel, Channels, Message,
    naughty::{INSTRUCTIONS, TEMPLATES},
};
use crate::{
    config::Config,
    event::tests::content,
    recipient::{Contact, PushTarget, Recipient, tests::supplier},
    template::Texts,
    variable::{Variables, for_recipient, of_event},
    workflow::find,
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
    let variables = of_event(workflow, workflow.name, &content("something.happened", data.clone()));
    let types = ["florist".to_owned()];
    let mut variables = for_recipient(&variables, recipient, &types, &INSTRUCTIONS, "WedSync");
    link(&mut variables, &data);
    let texts = Texts::shipped(&TEMPLATES, workflow);
    let message =
        Message { uid: [7; 16], workflow, texts: &texts, variables: &variables, recipient, at: Clock::System.now() };
    channel.render(&message).expect("it renders")
}

/// Links, which no event has: those of `data`, as they are made for a message.
pub(super) fn link(variables: &mut Variables, data: &Value) {
    for name in ["acknowledge_url", "unsubscribe_url"] {
        variables.insert(name.to_owned(), data[name].clone());
    }
}

pub(super) fn message_of(channel: &dyn Channel, workflow: &str, data: Value) -> Bytes {
    message_to(channel, &reachable("Ada"), workflow, data)
}

fn channels(change: impl FnOnce(&mut Config)) -> Result<Vec<&'static str>, String> {
    let mut config = Config::default();
    change(&mut config);
    let outbound = Outbound::new(&OutboundSettings::default()).unwrap();
    let channels = Channels::new(&config, &outbound, &Clock::System, None);
    channels
        .map(|channels| channels.0.iter().map(|channel| channel.name()).collect())
        .map_err(|error| format!("{error:#}"))
}

#[test]
fn a_channel_is_there_once_its_provider_is_set_up() {
    assert_eq!(channels(|_| ()).unwrap(), ["in_app", "teams", "slack"]);
    let all = channels(|config| {
        (config.resend.api_key, config.resend.from) = ("re_1".to_owned().into(), "us@example.org".to_owned());
        config.twilio.account_sid = format!("AC{}", "0".repeat(32));
        (config.twilio.from, config.twilio.whatsapp_from) = ("+15005550006".to_owned(), "+15005550006".to_owned());
        config.fcm.service_account_file =
            concat!(env!("CARGO_MANIFEST_DIR"), "/src/channel/push/test-account.json").to_owned();
    });
    assert_eq!(all.unwrap(), ["in_app", "email", "sms", "whatsapp", "teams", "slack", "push"]);
    let none = channels(|config| {
        config.slack.hook_hosts.clear();
        config.teams.hosts.clear();
    });
    assert_eq!(none.unwrap(), ["in_app"]);
}

#[test]
fn a_provider_that_the_guard_would_refuse_is_found_at_the_start() {
    let said = channels(|config| config.twilio.base_url = "http://api.twilio.com".to_owned()).unwrap_err();
    assert_eq!(said, "[notifier.twilio] base_url: the URL must begin with https://");
    let said = channels(|config| config.fcm.token_url = "https://10.0.0.1/token".to_owned()).unwrap_err();
    assert_eq!(said, "[notifier.fcm] token_url: 10.0.0.1:443 is not a public address that requests may go to");
    let said = channels(|config| config.fcm.service_account_file = "/nowhere".to_owned()).unwrap_err();
    assert!(said.starts_with("[notifier.fcm] service_account_file /nowhere: "), "{said}");
}
