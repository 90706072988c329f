//! What holds for every channel that asks a provider over HTTP: what each kind of answer means, and that a message whose
//! fate isn't known is never made a second time. Each provider's own codes are tested in its file.

use std::sync::Arc;

use chassis::{
    clock::Clock,
    lane::{Attempted, Blame, Outcome},
};
use serde_json::json;

use super::{
    Carriage, Channel,
    email::Email,
    peer::{Peer, Script, delivery, way_out},
    push::{self, PushChannel},
    slack::SlackChannel,
    sms::SmsChannel,
    teams::TeamsChannel,
    tests::{message_to, reachable},
    twilio::Twilio,
    whatsapp::WhatsappChannel,
};
use crate::{config::Config, recipient::Recipient};

/// A way by which messages go out, alone.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Way {
    Resend,
    Sms,
    WhatsappByMeta,
    WhatsappByTwilio,
    Slack,
    SlackHook,
    Teams,
    Push,
}

use Way::{Push, Resend, Slack, SlackHook, Sms, Teams, WhatsappByMeta, WhatsappByTwilio};

const ALL: [Way; 8] = [Resend, Sms, WhatsappByMeta, WhatsappByTwilio, Slack, SlackHook, Teams, Push];

impl Way {
    /// At a provider that is at `base`.
    fn channel(self, base: &str) -> Box<dyn Channel> {
        let mut config = Config::default();
        let base_url = base.to_owned();
        let local = vec!["127.0.0.1".to_owned()];
        config.twilio.account_sid = format!("AC{}", "0".repeat(32));
        (config.twilio.from, config.twilio.base_url) = ("+15005550006".to_owned(), base_url.clone());
        let twilio =
            |config: &Config| Arc::new(Twilio::new(&config.twilio, way_out(), Clock::System).looking_at_once());
        let (outbound, clock) = (way_out(), Clock::System);
        match self {
            Resend => {
                (config.resend.api_key, config.resend.from) = ("re_1".to_owned().into(), "us@example.org".to_owned());
                (config.resend.base_url, config.resend.per_second) = (base_url, 0);
                Box::new(Email::new(&config, &outbound, &clock).unwrap().at_once())
            }
            Sms => Box::new(SmsChannel::new(&config.twilio, "WedSync", twilio(&config))),
            WhatsappByMeta => {
                config.whatsapp.access_token = "EAA".to_owned().into();
                (config.whatsapp.phone_number_id, config.whatsapp.base_url) = ("1".to_owned(), base_url);
                Box::new(WhatsappChannel::new(&config, twilio(&config), &outbound, &clock))
            }
            WhatsappByTwilio => {
                config.twilio.whatsapp_from = "+15005550006".to_owned();
                config.twilio.whatsapp_content_sid = format!("HX{}", "0".repeat(32));
                Box::new(WhatsappChannel::new(&config, twilio(&config), &outbound, &clock))
            }
            Slack | SlackHook => {
                config.slack.bot_token = if self == Slack { "xoxb-1" } else { "" }.to_owned().into();
                (config.slack.base_url, config.slack.hook_hosts, config.slack.per_second) = (base_url, local, 0);
                Box::new(SlackChannel::new(&config.slack, "WedSync", &outbound, &clock).looking_at_once())
            }
            Teams => {
                config.teams.hosts = local;
                Box::new(TeamsChannel::new(&config.teams, "WedSync", &outbound, &clock))
            }
            Push => {
                config.web_push = push::settings();
                config.web_push.hosts = local;
                Box::new(PushChannel::new(&config, &outbound, &clock, None).unwrap())
            }
        }
    }

    /// Somebody whom this way alone reaches.
    fn person(self, base: &str) -> Recipient {
        let mut person = reachable("Ada");
        if self != Slack {
            person.contact.slack_channel.clear();
        }
        person.contact.slack_webhook = format!("{base}/services/T/B/X");
        person.contact.teams_webhook = format!("{base}/workflows/1?sig=s3cret");
        person.contact.push = vec![push::browser(&format!("{base}/push/1"))];
        person
    }

    /// Carries one message; `again` goes on after an attempt that may have been taken.
    async fn carry(self, base: &str, again: bool) -> Attempted {
        let channel = self.channel(base);
        let content = message_to(&*channel, &self.person(base), "wedding_date_change", json!({"client_name": "Mia"}));
        let Carriage::Carry(carrier) = channel.carriage() else { panic!("{self:?} carries") };
        match again {
            true => carrier.resume(&delivery(content, 1)).await,
            false => carrier.carry(&delivery(content, 0)).await,
        }
    }

    /// What a message is whose fate isn't known: to be settled where there is a way, else unknown for good.
    fn left_open(self) -> &'static str {
        match self {
            Resend | Sms | WhatsappByTwilio | Slack | Push => "unsettled",
            WhatsappByMeta | SlackHook | Teams => "unknown",
        }
    }

    /// Whether the provider drops or replaces a repeat.
    fn drops_repeats(self) -> bool {
        matches!(self, Resend | Push)
    }
}

/// How often each was asked to make a message.
fn made(peer: &Peer) -> usize {
    peer.asked().iter().filter(|asked| asked.method == "POST" && !asked.target.contains("/conversations.")).count()
}

#[tokio::test]
async fn every_kind_of_answer_has_its_class_by_every_way() {
    let barred = |way| match way {
        SlackHook => "refused",
        Teams => "address",
        _ => "auth",
    };
    for way in ALL {
        for (status, class) in [
            (400, "refused"),
            (401, barred(way)),
            (403, barred(way)),
            (408, "throttled"),
            (422, "refused"),
            (429, "throttled"),
            (500, way.left_open()),
            (502, way.left_open()),
            (503, way.left_open()),
            (504, way.left_open()),
        ] {
            let peer = Peer::start([Script::text(status, "<html>no code of the provider's own</html>")]).await;
            let attempted = way.carry(&peer.base(), false).await;
            assert_eq!(attempted.class, class, "{way:?}: {status}: {attempted:?}");
            assert!(!attempted.error.contains("s3cret") && !attempted.error.contains("html"), "{way:?}: {attempted:?}");
        }
    }
}

#[tokio::test]
async fn what_a_provider_asks_for_is_kept_to_by_every_way() {
    for way in ALL {
        let peer = Peer::start([Script::status(429).header("Retry-After: 7")]).await;
        let attempted = way.carry(&peer.base(), false).await;
        let after = Some(std::time::Duration::from_secs(7));
        assert_eq!(attempted.outcome, Outcome::Retry { after, blame: Blame::Destination }, "{way:?}");
        assert_eq!(made(&peer), 1, "{way:?}");
    }
}

#[tokio::test]
async fn a_message_that_was_cut_after_it_was_sent_is_unknown_and_never_made_twice() {
    for way in ALL {
        for cut in [Script::HangUp, Script::Garbage] {
            // Nobody says afterwards what became of it.
            let peer = Peer::start([cut.clone()]).await;
            let attempted = way.carry(&peer.base(), false).await;
            assert_eq!(attempted.class, way.left_open(), "{way:?}: {cut:?}: {attempted:?}");
            assert!(way.drops_repeats() || made(&peer) == 1, "{way:?}: {cut:?}: {:?}", peer.asked());
        }
    }
}

#[tokio::test]
async fn what_may_have_been_made_before_is_made_only_once_it_is_known_that_it_was_not() {
    for way in [Sms, WhatsappByTwilio, Slack] {
        let peer = Peer::start([]).await;
        let attempted = way.carry(&peer.base(), true).await;
        assert!(matches!(attempted.outcome, Outcome::Retry { .. }), "{way:?}: {attempted:?}");
        assert_eq!(made(&peer), 0, "{way:?}: nobody says what became of the first");
        let nothing = json!({"ok": true, "messages": [], "has_more": false});
        let peer =
            Peer::start([Script::json(200, nothing), Script::json(201, json!({"ok": true, "sid": "SM1"}))]).await;
        let attempted = way.carry(&peer.base(), true).await;
        assert_eq!((attempted.outcome, made(&peer)), (Outcome::Delivered, 1), "{way:?}");
    }
}

#[tokio::test]
async fn a_provider_that_cannot_be_reached_has_taken_nothing() {
    let nobody = "http://127.0.0.1:1";
    for way in ALL {
        assert_eq!(way.carry(nobody, false).await.class, "down", "{way:?}");
    }
}

#[tokio::test]
async fn what_waits_and_cannot_be_read_ends_and_asks_nobody() {
    for way in ALL {
        let peer = Peer::start([]).await;
        let channel = way.channel(&peer.base());
        let Carriage::Carry(carrier) = channel.carriage() else { panic!("{way:?} carries") };
        for content in ["", "{}", "[1]", "\u{feff}{\"to\": 1}"] {
            let attempted = carrier.carry(&delivery(content.into(), 0)).await;
            assert_eq!(attempted.class, "refused", "{way:?}: {content:?}");
        }
        assert!(peer.asked().is_empty(), "{way:?}");
    }
}
