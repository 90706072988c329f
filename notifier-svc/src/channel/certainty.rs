//! What every provider's answers prove: a table each of those that say that a message was not taken, those that leave it open,
//! and what then becomes of it. All on loopback, at the rim that a lane sees.

use std::sync::Arc;

use chassis::{
    clock::Clock,
    lane::{Attempted, Outcome},
};
use serde_json::{Value, json};

use super::{
    Carriage, Channel,
    peer::{Peer, Script, delivery, way_out},
    provider::Class,
    resend::Resend,
    slack::SlackChannel,
    sms::SmsChannel,
    teams::TeamsChannel,
    tests::{message_to, reachable},
    twilio::Twilio,
    whatsapp::WhatsappChannel,
};
use crate::{config, recipient::Recipient};

/// What an answer leaves: the message certainly isn't there, may be there and is settled later, or may be there for ever.
const NOT_TAKEN: &[Class] =
    &[Class::Refused, Class::Dead, Class::Stopped, Class::Later, Class::Down, Class::Busy, Class::Barred];
const SETTLED_LATER: &[Class] = &[Class::Unsettled];
const OPEN: &[Class] = &[Class::Unsure];

fn fault(status: u16, body: Value) -> Script {
    Script::json(status, body)
}

/// What no provider has in its own words, and what a connection can do.
fn everywhere() -> Vec<Script> {
    let gateways = [500, 502, 503, 504, 520, 599].map(|status| Script::text(status, "<html>"));
    gateways.into_iter().chain([Script::HangUp, Script::Garbage]).collect()
}

async fn carried(channel: &dyn Channel, person: &Recipient, attempts: u32) -> Attempted {
    let data = json!({"old_date": "2026-06-20", "new_date": "2026-06-27", "client_name": "Mia & Tom"});
    let content = message_to(channel, person, "wedding_date_change", data);
    let Carriage::Carry(carrier) = channel.carriage() else { panic!("it is carried") };
    let delivery = delivery(content, attempts);
    if attempts == 0 { carrier.carry(&delivery).await } else { carrier.resume(&delivery).await }
}

/// Whether it is of one of these classes, and ends as they do.
fn assert_is(attempted: &Attempted, classes: &[Class], script: &Script) {
    assert!(classes.iter().any(|class| class.name() == attempted.class), "{script:?}: {attempted:?}");
    let expected = attempted.class == "unknown";
    assert_eq!(attempted.outcome == Outcome::Unknown, expected, "{script:?}: {attempted:?}");
}

fn twilio(peer: &Peer) -> config::Twilio {
    config::Twilio {
        account_sid: format!("AC{}", "0".repeat(32)),
        auth_token: "t".to_owned().into(),
        from: "+15005550006".to_owned(),
        whatsapp_from: "+15005550006".to_owned(),
        whatsapp_content_sid: format!("HX{}", "0".repeat(32)),
        base_url: peer.base(),
        ..config::Twilio::default()
    }
}

fn by_twilio(peer: &Peer) -> Arc<Twilio> {
    Arc::new(Twilio::new(&twilio(peer), way_out(), Clock::System).looking_at_once())
}

#[tokio::test]
async fn resend_is_asked_again_by_the_same_key_and_no_second_way_is_tried_meanwhile() {
    let settings = |peer: &Peer| config::Resend {
        api_key: "re_1".to_owned().into(),
        base_url: peer.base(),
        per_second: 0,
        ..config::Resend::default()
    };
    let send = async |peer: &Peer| {
        let mut resend = Resend::new(&settings(peer), way_out(), Clock::System);
        resend.at_once();
        resend.send([7; 16], &json!({"subject": "hi"})).await
    };
    let named = |status, name: &str| fault(status, json!({"statusCode": status, "name": name, "message": "m"}));
    for script in [
        named(403, "invalid_api_key"),
        named(422, "invalid_parameter"),
        named(429, "rate_limit_exceeded"),
        named(429, "daily_quota_exceeded"),
        Script::status(408),
    ] {
        let peer = Peer::start([script.clone()]).await;
        assert_is(&send(&peer).await.attempted(), NOT_TAKEN, &script);
    }
    let broken = [named(500, "application_error"), named(500, "internal_server_error")];
    for script in everywhere().into_iter().chain(broken) {
        let peer = Peer::start([script.clone(), script.clone(), script.clone()]).await;
        let verdict = send(&peer).await;
        assert!(!verdict.class.may_fail_over(), "{script:?}");
        assert_is(&verdict.attempted(), SETTLED_LATER, &script);
        // Whatever is said of a later attempt, but of the mail itself, leaves it as it is.
        for later in [named(429, "rate_limit_exceeded"), named(401, "missing_api_key"), script.clone()] {
            peer.then([later.clone()]);
            let resend = Resend::new(&settings(&peer), way_out(), Clock::System);
            let again = resend.again([7; 16], &json!({"subject": "hi"})).await;
            assert_is(&again.attempted(), SETTLED_LATER, &later);
        }
        let keys: Vec<_> = peer.asked().iter().map(|asked| asked.header("idempotency-key").to_owned()).collect();
        assert_eq!(keys, vec!["07070707-0707-0707-0707-070707070707"; 6], "one key, however often");
    }
    let other = named(409, "invalid_idempotent_request");
    let peer = Peer::start([other.clone(), other.clone(), other.clone()]).await;
    let resend = Resend::new(&settings(&peer), way_out(), Clock::System);
    let verdict = resend.again([7; 16], &json!({"subject": "hi"})).await;
    assert_is(&verdict.attempted(), OPEN, &other);
}

#[tokio::test]
async fn twilio_is_looked_at_before_anything_is_sent_again() {
    let of = |status, code: u32| fault(status, json!({"code": code, "message": "m", "status": status}));
    for script in [of(400, 21211), of(429, 20429), of(401, 20003), of(400, 21610), of(429, 21611), Script::status(408)]
    {
        let peer = Peer::start([script.clone()]).await;
        let sms = SmsChannel::new(&twilio(&peer), "WedSync", by_twilio(&peer));
        assert_is(&carried(&sms, &reachable("Ada"), 0).await, NOT_TAKEN, &script);
        assert_eq!(peer.asked().len(), 1, "there is nothing to look up: {script:?}");
    }
    for script in everywhere().into_iter().chain([of(500, 20500), of(503, 20503)]) {
        let nothing = || Script::json(200, json!({"messages": []}));
        for (looks, posts) in [([nothing(), nothing()], 1), ([Script::status(503), Script::HangUp], 1)] {
            let peer = Peer::start([script.clone()].into_iter().chain(looks)).await;
            let sms = SmsChannel::new(&twilio(&peer), "WedSync", by_twilio(&peer));
            assert_is(&carried(&sms, &reachable("Ada"), 0).await, SETTLED_LATER, &script);
            peer.then([Script::status(503)]);
            assert_is(&carried(&sms, &reachable("Ada"), 1).await, SETTLED_LATER, &script);
            let posted = peer.asked().iter().filter(|asked| asked.method == "POST").count();
            assert_eq!(posted, posts, "while it can't be looked up, it isn't sent again: {script:?}");
        }
    }
}

fn slack(peer: &Peer) -> SlackChannel {
    let settings = config::Slack {
        bot_token: "xoxb-1".to_owned().into(),
        base_url: peer.base(),
        hook_hosts: vec!["127.0.0.1".to_owned()],
        per_second: 0,
        ..config::Slack::default()
    };
    let mut channel = SlackChannel::new(&settings, "WedSync", &way_out(), &Clock::System);
    channel.look_at_once();
    channel
}

#[tokio::test]
async fn slack_is_looked_at_by_the_messages_own_name_and_its_webhooks_are_written_to_once() {
    let mut person = reachable("Ada");
    (person.contact.slack_user_id, person.contact.slack_channel) = (String::new(), "C1".to_owned());
    let no = |error: &str| Script::json(200, json!({"ok": false, "error": error}));
    for script in
        [no("ratelimited"), no("request_timeout"), no("channel_not_found"), no("msg_too_long"), no("invalid_auth")]
    {
        let peer = Peer::start([script.clone()]).await;
        assert_is(&carried(&slack(&peer), &person, 0).await, NOT_TAKEN, &script);
        assert_eq!(peer.asked().len(), 1, "{script:?}");
    }
    let vague = [no("internal_error"), no("fatal_error"), no("service_unavailable"), Script::text(200, "{\"ok\": tr")];
    for script in everywhere().into_iter().chain(vague) {
        let peer =
            Peer::start([script.clone(), Script::json(200, json!({"ok": true, "messages": []})), no("ratelimited")])
                .await;
        let channel = slack(&peer);
        assert_is(&carried(&channel, &person, 0).await, SETTLED_LATER, &script);
        peer.then([no("internal_error")]);
        assert_is(&carried(&channel, &person, 1).await, SETTLED_LATER, &script);
        let posted = peer.asked().iter().filter(|asked| asked.target == "/chat.postMessage").count();
        assert_eq!(posted, 1, "{script:?}");
    }
    for script in everywhere().into_iter().chain([Script::text(500, "rollup_error")]) {
        let peer = Peer::start([script.clone()]).await;
        let (mut hooked, channel) = (reachable("Ada"), slack(&peer));
        (hooked.contact.slack_user_id, hooked.contact.slack_channel) = (String::new(), String::new());
        hooked.contact.slack_webhook = peer.url("/services/T/B/X");
        assert_is(&carried(&channel, &hooked, 0).await, OPEN, &script);
        assert_is(&carried(&channel, &hooked, 1).await, OPEN, &script);
        assert_eq!(peer.asked().len(), 1, "{script:?}");
    }
}

#[tokio::test]
async fn teams_and_meta_cant_be_asked_so_what_may_be_there_is_never_sent_again() {
    let throttled = Script::text(200, "Microsoft Teams endpoint returned HTTP error 429");
    let mut person = reachable("Ada");
    for (script, classes) in
        [(throttled, NOT_TAKEN), (Script::status(429), NOT_TAKEN), (Script::status(404), NOT_TAKEN)]
            .into_iter()
            .chain(everywhere().into_iter().map(|script| (script, OPEN)))
    {
        let peer = Peer::start([script.clone()]).await;
        person.contact.teams_webhook = peer.url("/workflows/1");
        let settings = config::Teams { hosts: vec!["127.0.0.1".to_owned()] };
        let teams = TeamsChannel::new(&settings, "WedSync", &way_out(), &Clock::System);
        assert_is(&carried(&teams, &person, 0).await, classes, &script);
        assert_is(&carried(&teams, &person, 1).await, OPEN, &script);
        assert_eq!(peer.asked().len(), 1, "{script:?}");
    }
    let of = |status, code: u32| fault(status, json!({"error": {"code": code, "message": "m"}}));
    let vague = [of(500, 1), of(503, 2), of(500, 131016), of(503, 133004)];
    for (script, is_open) in [(of(429, 130429), false), (of(500, 131000), false), (of(401, 190), false)]
        .into_iter()
        .chain(everywhere().into_iter().chain(vague).map(|script| (script, true)))
    {
        let peer = Peer::start([script.clone(), Script::json(201, json!({"sid": "SM1"}))]).await;
        let mut config = config::Config { twilio: twilio(&peer), ..config::Config::default() };
        config.whatsapp.access_token = "EAA".to_owned().into();
        config.whatsapp.phone_number_id = "1".to_owned();
        config.whatsapp.template = "notice".to_owned();
        (config.whatsapp.base_url, config.whatsapp.per_second) = (peer.base(), 0);
        let channel = WhatsappChannel::new(&config, by_twilio(&peer), &way_out(), &Clock::System);
        let attempted = carried(&channel, &reachable("Ada"), 0).await;
        // Twilio is the second way, for what Meta certainly hasn't taken.
        let (classes, asked) = if is_open { (OPEN, 1) } else { (&[Class::Taken][..], 2) };
        assert_is(&attempted, classes, &script);
        assert_eq!(peer.asked().len(), asked, "{script:?}");
    }
}

#[tokio::test]
async fn what_twilio_may_have_by_whatsapp_isnt_given_to_meta() {
    let peer =
        Peer::start([Script::json(200, json!({"messages": []})), Script::json(201, json!({"sid": "SM1"}))]).await;
    let mut config = config::Config { twilio: twilio(&peer), ..config::Config::default() };
    config.whatsapp.access_token = "EAA".to_owned().into();
    config.whatsapp.phone_number_id = "1".to_owned();
    config.whatsapp.template = "notice".to_owned();
    (config.whatsapp.base_url, config.whatsapp.per_second) = (peer.base(), 0);
    let channel = WhatsappChannel::new(&config, by_twilio(&peer), &way_out(), &Clock::System);
    assert_eq!(carried(&channel, &reachable("Ada"), 1).await.outcome, Outcome::Delivered);
    let asked = peer.asked();
    assert!(asked.iter().all(|asked| asked.target.starts_with("/2010-04-01/")), "{asked:?}");
    assert_eq!(asked[0].method, "GET", "it is looked up first");
}
