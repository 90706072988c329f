//! Letters as they are written and carried, by either way.

use chassis::lane::Outcome;
use serde_json::json;

use super::*;
use crate::channel::{
    peer::{Peer, Script, assert_described, delivery, naughty, vendor_description, way_out},
    tests::{link, message_of, rendered_with},
};
use crate::{
    event::tests::content,
    recipient::tests::supplier,
    template::{Templates, Texts},
    variable::{for_recipient, of_event},
    workflow::{VendorInstructions, find},
};

/// A server that nobody runs, on a port that nobody listens at.
fn smtp_alone() -> Config {
    let mut config = Config::default();
    config.smtp.host = "localhost".to_owned();
    config.smtp.port = 1;
    config.smtp.tls = crate::config::Tls::None;
    config.smtp.from = "us@example.org".to_owned();
    config
}

fn channel(config: &Config) -> Email {
    let mut email = Email::new(config, &way_out(), &Clock::System).unwrap();
    if let Some(resend) = &mut email.resend {
        resend.at_once();
    }
    email
}

fn letter(name: &str, data: Value) -> String {
    let workflow = find("wedding_date_change");
    let mut recipient = supplier("s");
    recipient.name = name.to_owned();
    let variables = of_event(workflow, workflow.name, &content("wedding.date_changed", data.clone()));
    let mut variables = for_recipient(&variables, &recipient, &[], &VendorInstructions::load(), "WedSync");
    link(&mut variables, &data);
    let at = jiff::Timestamp::UNIX_EPOCH;
    let templates = Templates::load().unwrap();
    let texts = Texts::shipped(&templates, workflow);
    let message = Message { uid: [7; 16], workflow, texts: &texts, variables: &variables, recipient: &recipient, at };
    let content = channel(&smtp_alone()).render(&message).unwrap();
    serde_json::from_slice::<Letter>(&content).unwrap().text
}

#[test]
fn a_letter_has_the_headers_that_mail_systems_look_at() {
    let letter = letter("Ada", json!({"client_name": "Eve & Bob"}));
    for header in [
        "From: WedSync <us@example.org>\r\n",
        "To: Ada <s@example.org>\r\n",
        "Date: Thu, 01 Jan 1970 00:00:00 +0000\r\n",
        "Message-ID: <07070707-0707-0707-0707-070707070707@example.org>\r\n",
        "Auto-Submitted: auto-generated\r\n",
        "X-WedSync-Template: realtime-wedding-change\r\n",
        "MIME-Version: 1.0\r\n",
    ] {
        assert!(letter.contains(header), "{header} is not in\n{letter}");
    }
    assert!(letter.contains("text/plain; charset=utf-8") && letter.contains("text/html; charset=utf-8"));
}

#[test]
fn no_name_adds_a_header_or_a_line_that_mail_cannot_carry() {
    let hostile = "Ada\r\nBcc: all@example.org\r\n\r\n<script>";
    let letter = letter(hostile, json!({"client_name": hostile.repeat(40)}));
    let (headers, _) = letter.split_once("\r\n\r\n").unwrap();
    assert!(!headers.lines().any(|line| line.to_lowercase().starts_with("bcc:")), "{headers}");
    assert!(letter.is_ascii() && letter.split("\r\n").all(|line| line.len() <= 998 && !line.contains(['\r', '\n'])));
}

/// Where one click ends mail.
const END: &str = "https://example.org/unsubscribe/token";

fn resend(peer: &Peer, with_smtp: bool) -> Config {
    let mut config = if with_smtp { smtp_alone() } else { Config::default() };
    config.resend.api_key = "re_123".to_owned().into();
    config.resend.from = "us@example.org".to_owned();
    config.resend.base_url = peer.base();
    config.resend.per_second = 0;
    config
}

#[tokio::test]
async fn resend_gets_a_mail_as_it_describes_it() {
    let peer = Peer::start([Script::json(200, json!({"id": "49a3999c-0ce1-4ea6-ab68-afcd6dc2e794"}))]).await;
    let channel = channel(&resend(&peer, false));
    let content = message_of(
        &channel,
        "wedding_date_change",
        json!({"new_date": "2026-06-27", "client_name": "Mia & Tom", "unsubscribe_url": END}),
    );
    let attempted = channel.carry(&delivery(content, 0)).await;
    assert_eq!((attempted.outcome, attempted.status_code), (Outcome::Delivered, Some(200)));
    assert!(attempted.response.starts_with(b"49a3"), "Resend's id alone is kept");
    let [asked] = &peer.asked()[..] else { panic!("one request") };
    assert_eq!((asked.target.as_str(), asked.header("authorization")), ("/emails", "Bearer re_123"));
    assert!(asked.header("user-agent").starts_with("WedSync/"), "without one Resend refuses");
    let mail = asked.json();
    assert_eq!((&mail["from"], &mail["to"]), (&json!("WedSync <us@example.org>"), &json!(["s@example.org"])));
    let name = "07070707-0707-0707-0707-070707070707";
    assert_eq!(asked.header("idempotency-key"), name);
    assert_eq!(mail["headers"]["List-Unsubscribe"], format!("<{END}>"));
    assert_eq!(mail["headers"]["List-Unsubscribe-Post"], "List-Unsubscribe=One-Click");
    for tag in mail["tags"].as_array().unwrap() {
        let is_tag =
            |text: &Value| text.as_str().unwrap().bytes().all(|b| b.is_ascii_alphanumeric() || b == b'_' || b == b'-');
        assert!(is_tag(&tag["name"]) && is_tag(&tag["value"]), "{tag}");
    }
    if let Some(description) = vendor_description("resend/resend.json") {
        assert_described(&description, "/components/schemas/SendEmailRequest", &mail);
        let known = description.pointer("/components/schemas/SendEmailRequest/properties").unwrap();
        assert!(mail.as_object().unwrap().keys().all(|name| known.get(name).is_some()));
    }
}

#[tokio::test]
async fn the_mail_server_is_tried_only_if_resend_certainly_has_not_taken_it() {
    let cases = [
        (vec![Script::json(429, json!({"name": "monthly_quota_exceeded"}))], true),
        (vec![Script::json(401, json!({"name": "missing_api_key"}))], true),
        (vec![Script::json(422, json!({"name": "invalid_parameter"}))], false),
        (vec![Script::HangUp, Script::HangUp, Script::HangUp], false),
        (vec![Script::HangUp, Script::status(503), Script::status(503)], false),
        (vec![Script::status(503), Script::status(503), Script::status(503)], false),
        (vec![Script::json(200, json!({"id": "1"}))], false),
    ];
    for (number, (script, expected)) in cases.into_iter().enumerate() {
        let peer = Peer::start(script).await;
        let channel = channel(&resend(&peer, true));
        let content = message_of(&channel, "wedding_date_change", json!({}));
        let attempted = channel.carry(&delivery(content, 0)).await;
        // Nobody listens there: whoever tries it says so.
        let tried = attempted.error.contains("the mail server");
        assert_eq!(tried, expected, "case {number}: {attempted:?}");
    }
    // What Resend may have from an earlier attempt isn't the server's, however Resend turns the next one away.
    for status in [401, 429, 503] {
        let peer = Peer::start([Script::status(status)]).await;
        let channel = channel(&resend(&peer, true));
        let content = message_of(&channel, "wedding_date_change", json!({}));
        let attempted = channel.resume(&delivery(content, 1)).await;
        assert_eq!((attempted.class, peer.asked().len()), ("unsettled", 1), "{status}");
    }
}

#[test]
fn mail_that_can_be_ended_says_where_one_click_does() {
    let letter = |variables| letter("Ada", variables);
    let unfolded = letter(json!({"unsubscribe_url": END})).replace("\r\n ", " ");
    assert!(unfolded.contains(&format!("List-Unsubscribe: <{END}>\r\n")), "{unfolded}");
    assert!(unfolded.contains("List-Unsubscribe-Post: List-Unsubscribe=One-Click\r\n"), "{unfolded}");
    assert!(!letter(json!({})).contains("List-Unsubscribe"));
    // One click takes https (RFC 8058, section 3.1).
    assert!(!letter(json!({"unsubscribe_url": "http://example.org/"})).contains("List-Unsubscribe"));
}

#[tokio::test]
async fn no_text_adds_a_header_a_receiver_or_markup() {
    let peer = Peer::start([]).await;
    let channel = channel(&resend(&peer, true));
    for text in naughty() {
        for (workflow, content) in rendered_with(&channel, &text) {
            let Letter { to, text: mime, api } = serde_json::from_slice(&content).unwrap();
            assert_eq!((to.as_str(), &api["to"]), ("s@example.org", &json!(["s@example.org"])));
            let subject = api["subject"].as_str().unwrap();
            assert!(!subject.contains(['\r', '\n', '\0']), "{workflow}: {subject:?}");
            let html = api["html"].as_str().unwrap();
            assert!(!html.contains("<script") && !html.contains("<img"), "{workflow}: {html}");
            let (head, _) = mime.split_once("\r\n\r\n").unwrap();
            let names: Vec<_> = head
                .lines()
                .filter(|line| !line.starts_with([' ', '\t']))
                .map(|line| line.split(':').next().unwrap())
                .collect();
            for name in &names {
                let known = [
                    "From",
                    "To",
                    "Subject",
                    "Date",
                    "Message-ID",
                    "Auto-Submitted",
                    "X-WedSync-Template",
                    "List-Unsubscribe",
                    "List-Unsubscribe-Post",
                    "MIME-Version",
                    "Content-Type",
                ];
                assert!(known.contains(name), "{name} from {text:?}");
            }
            assert!(mime.is_ascii() && mime.split("\r\n").all(|line| line.len() <= 998), "{text:?}");
        }
    }
}
