//! Slack as a whole: whom it reaches, what is posted, and that no text is more than text.

use chassis::lane::Outcome;
use serde_json::json;

use super::*;
use crate::channel::{
    peer::{Peer, Script, assert_described, delivery, naughty, vendor_description, way_out},
    tests::{message_of, message_to, reachable, rendered_with},
};

fn channel(peer: &Peer, token: &str) -> SlackChannel {
    let settings = Settings {
        bot_token: token.to_owned().into(),
        base_url: peer.base(),
        hook_hosts: vec!["127.0.0.1".to_owned()],
        per_second: 0,
        ..Settings::default()
    };
    let mut channel = SlackChannel::new(&settings, "WedSync", &way_out(), &Clock::System);
    channel.api.look_at_once();
    channel
}

#[tokio::test]
async fn a_date_change_is_posted_with_both_dates_and_a_button_that_names_the_message() {
    let peer =
        Peer::start([Script::json(200, json!({"ok": true, "channel": "C012AB3CD", "ts": "1503435956.000247"}))]).await;
    let channel = channel(&peer, "xoxb-1");
    let data = json!({"old_date": "2026-06-20", "new_date": "2026-06-27", "client_name": "Mia & Tom"});
    let content = message_of(&channel, "wedding_date_change", data);
    let attempted = channel.carry(&delivery(content, 0)).await;
    assert_eq!(attempted.outcome, Outcome::Delivered);
    assert!(attempted.response == "1503435956.000247", "Slack's id alone is kept");
    let [asked] = &peer.asked()[..] else { panic!("one request") };
    assert_eq!((asked.target.as_str(), asked.header("authorization")), ("/chat.postMessage", "Bearer xoxb-1"));
    assert_eq!(asked.header("content-type"), "application/json; charset=utf-8");
    let message = asked.json();
    block::assert_within_limits(&message);
    let name = "07070707-0707-0707-0707-070707070707";
    assert_eq!(
        (&message["channel"], &message["metadata"]["event_payload"]["message"]),
        (&json!("C012AB3CD"), &json!(name))
    );
    let button = &message["blocks"].as_array().unwrap().last().unwrap()["elements"][0];
    assert_eq!((&button["action_id"], &button["value"]), (&json!("acknowledge"), &json!(name)));
    let fields: Vec<_> =
        message["blocks"][2]["fields"].as_array().unwrap().iter().map(|field| field["text"].clone()).collect();
    assert_eq!(fields, ["Old date\nSaturday 20 June 2026", "New date\nSaturday 27 June 2026"]);
    if let Some(description) = vendor_description("slack/slack_web_openapi_v2.messaging.json") {
        let parameters = description.pointer("/paths/~1chat.postMessage/post/parameters").unwrap().as_array().unwrap();
        // The description is of 2021: metadata came later.
        for (name, value) in message.as_object().unwrap().iter().filter(|(name, _)| *name != "metadata") {
            let known = parameters.iter().find(|parameter| parameter["name"] == name.as_str());
            let known = known.unwrap_or_else(|| panic!("{name} is no parameter"));
            assert!(known["type"] == "string" || value.is_boolean(), "{name}");
        }
        let faults = "/paths/~1chat.postMessage/post/responses/default/schema";
        assert_described(&description, faults, &json!({"ok": false, "error": "channel_not_found"}));
    }
}

#[tokio::test]
async fn a_person_is_reached_as_a_member_then_in_a_channel_then_by_a_webhook_of_slacks() {
    let peer = Peer::start([]).await;
    let (with_bot, without) = (channel(&peer, "xoxb-1"), channel(&peer, ""));
    let mut person = reachable("Ada");
    assert_eq!(with_bot.address(&person), Ok("C012AB3CD".to_owned()));
    assert_eq!(without.address(&person), Err("there is no Slack member, channel or webhook"));
    person.contact.slack_user_id = "U012AB3CD".to_owned();
    person.contact.slack_webhook = peer.url("/services/T/B/X");
    assert_eq!(with_bot.address(&person), Ok("U012AB3CD".to_owned()));
    assert_eq!(without.address(&person), Ok(peer.url("/services/T/B/X")));
    peer.then([Script::text(200, "ok")]);
    let content = message_to(&without, &person, "wedding_date_change", json!({}));
    assert_eq!(without.carry(&delivery(content, 0)).await.outcome, Outcome::Delivered);
    let posted = peer.asked()[0].json();
    block::assert_within_limits(&posted);
    assert!(posted.get("metadata").is_none() && !posted.to_string().contains("button"));
    person.contact.slack_webhook = "https://hooks.slack.com.evil.example/services/T/B/X".to_owned();
    assert_eq!(without.address(&person), Err("the Slack webhook is none of Slack's"));
}

#[tokio::test]
async fn no_text_mentions_links_or_marks_anything_up() {
    let peer = Peer::start([]).await;
    let channel = channel(&peer, "xoxb-1");
    for text in naughty() {
        for (_, content) in rendered_with(&channel, &text) {
            let Post::Api { to, message } = serde_json::from_slice(&content).unwrap() else { panic!("by the API") };
            assert_eq!(to, "C012AB3CD");
            block::assert_within_limits(&message);
        }
    }
}
