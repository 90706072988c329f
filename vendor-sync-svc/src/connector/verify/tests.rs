//! Published vectors of public schemes, each declared and each forged.

use std::collections::BTreeMap;

use proptest::prelude::*;
use serde_json::json;

use super::*;
use crate::connector::{Connector, Inbound, InboundItem, tests::example};

const SLACK_BODY: &str = "token=xyzz0WbapA4vBCDEFasx0q6G&team_id=T1DC2JH3J&team_domain=testteamnow&channel_id=G8PSS9T3V\
    &channel_name=foobar&user_id=U2CERLKJA&user_name=roadrunner&command=%2Fwebhook-collect&text=&response_url=https%3A%2F\
    %2Fhooks.slack.com%2Fcommands%2FT1DC2JH3J%2F397700885554%2F96rGlfmibIGlgcZRskXaIFfN&trigger_id=398738663015.4744562912\
    1.803a0bc887a14d10d2c447fce8b6703c";
const TWILIO_BODY: &str =
    "CallSid=CA1234567890ABCDE&Digits=1234&From=%2B14158675309&To=%2B18005551212&Caller=%2B14158675309";

/// A scheme, and one request that it accepts.
struct Case {
    declared: &'static str,
    secret: &'static str,
    at: i64,
    url: &'static str,
    headers: Vec<(&'static str, &'static str)>,
    body: &'static str,
    proves: Proved,
}

fn cases() -> Vec<Case> {
    vec![
        Case {
            declared: "kind = 'hmac'\nheader = 'X-Slack-Signature'\nprefix = 'v0='\nsigned = 'v0:{timestamp}:{body}'\n\
                timestamp_header = 'X-Slack-Request-Timestamp'",
            secret: "8f742231b10e8888abcd99yyyzzz85a5",
            at: 1_531_420_618,
            url: "",
            headers: vec![
                ("x-slack-signature", "v0=a2114d57b48eac39b9ad189dd8316235a7b4a8d21a10bd27519666489c69b503"),
                ("x-slack-request-timestamp", "1531420618"),
            ],
            body: SLACK_BODY,
            proves: Proved::Body,
        },
        Case {
            declared: "kind = 'hmac'\nheader = 'Stripe-Signature'\nsigned = '{timestamp}.{body}'\n\
                parts = { timestamp = 't', signature = 'v1' }",
            secret: "whsec_test",
            at: 1_492_774_577,
            url: "",
            headers: vec![("stripe-signature", STRIPE)],
            body: "{\"id\":\"evt_1\"}",
            proves: Proved::Body,
        },
        Case {
            declared: "kind = 'hmac'\nheader = 'X-Hub-Signature-256'\nprefix = 'sha256='",
            secret: "It's a Secret to Everybody",
            at: 0,
            url: "",
            headers: vec![(
                "x-hub-signature-256",
                "sha256=757107ea0eb2509fc211221cce984b8a37570b6d7586c22c46f4379c8b043e17",
            )],
            body: "Hello, World!",
            proves: Proved::Body,
        },
        Case {
            declared: "kind = 'hmac'\nalgorithm = 'sha1'\nencoding = 'base64'\nheader = 'X-Twilio-Signature'\nsigned = '{url}{sorted_form}'",
            secret: "12345",
            at: 0,
            url: "https://mycompany.com/myapp.php?foo=1&bar=2",
            headers: vec![("x-twilio-signature", "RSOYDt4T1cUTdK1PDd93/VVr8B8=")],
            body: TWILIO_BODY,
            proves: Proved::Body,
        },
        Case {
            declared: "kind = 'secret'\nin = 'query'\nname = 'secret'",
            secret: "s3cret",
            at: 0,
            url: "https://us.example/webhooks?secret=s3cret",
            headers: vec![],
            body: "type=unsubscribe",
            proves: Proved::Sender,
        },
        Case {
            declared: "kind = 'secret'\nname = 'X-Shared'\nprefix = 'Token '",
            secret: "s3cret",
            at: 0,
            url: "",
            headers: vec![("x-shared", "Token s3cret")],
            body: "{}",
            proves: Proved::Sender,
        },
        Case {
            declared: "kind = 'basic'",
            secret: "s3cret",
            at: 0,
            url: "",
            headers: vec![("authorization", "Basic aTE6czNjcmV0")],
            body: "{}",
            proves: Proved::Sender,
        },
    ]
}

/// By `openssl dgst -sha256 -hmac` over `1492774577.` and the body; the first is of another secret, as in a rotation.
const STRIPE: &str = "t=1492774577,v1=00ff,v1=7656fc2882a7ca0a651666b36bf2f2f22ee204f54f608f227498a2419f2890b2,v0=00";

fn inbound(declared: &str) -> Inbound {
    let (head, _) = example().split_once("[inbound]").expect("it has one");
    let encoding = if declared.contains("sorted_form") { "form" } else { "json" };
    let source = format!("{head}[inbound]\nencoding = '{encoding}'\n[[inbound.verify]]\n{declared}\n");
    super::super::tests::parsed(&source).inbound.expect("it has one")
}

fn headers(pairs: &[(&str, &str)]) -> Vec<(String, bytes::Bytes)> {
    pairs.iter().map(|(name, value)| ((*name).to_owned(), value.to_string().into())).collect()
}

fn webhook<'a>(url: &'a str, headers: &'a [(String, bytes::Bytes)], body: &'a [u8]) -> Webhook<'a> {
    let query = url.split_once('?').map_or("", |(_, query)| query);
    Webhook { method: "POST", url, query, headers, body, integration_id: "i1" }
}

fn at(seconds: i64) -> Timestamp {
    Timestamp::from_second(seconds).expect("a time")
}

#[test]
fn what_was_signed_is_believed_under_either_secret_of_a_rotation() {
    for case in cases() {
        let (inbound, headers) = (inbound(case.declared), headers(&case.headers));
        let webhook = webhook(case.url, &headers, case.body.as_bytes());
        for secrets in [vec![case.secret], vec!["new one", case.secret]] {
            assert_eq!(
                inbound.verify(&webhook, &secrets[..], at(case.at)),
                Ok(case.proves.clone()),
                "{}",
                case.declared
            );
        }
        assert_eq!(inbound.verify(&webhook, &["another"], at(case.at)), Err(Unverified), "{}", case.declared);
        assert_eq!(inbound.verify(&webhook, &[], at(case.at)), Err(Unverified), "{}", case.declared);
        assert_eq!(inbound.verify(&webhook, &[""], at(case.at)), Err(Unverified), "{}", case.declared);
    }
}

#[test]
fn altered_stripped_and_doubled_requests_are_refused() {
    for case in cases() {
        let inbound = inbound(case.declared);
        let refused = |url: &str, pairs: &[(&str, &str)], body: &str| {
            let headers = headers(pairs);
            inbound.verify(&webhook(url, &headers, body.as_bytes()), &[case.secret], at(case.at)) == Err(Unverified)
        };
        if case.proves == Proved::Body {
            assert!(refused(case.url, &case.headers, &format!("{}&x=1", case.body)), "body: {}", case.declared);
        }
        if case.declared.contains("{url}") || case.declared.contains("query") {
            assert!(refused("https://us.example/else", &case.headers, case.body), "url: {}", case.declared);
        }
        for index in 0..case.headers.len() {
            let mut stripped = case.headers.clone();
            stripped.remove(index);
            assert!(refused(case.url, &stripped, case.body), "stripped: {}", case.declared);
            let mut doubled = case.headers.clone();
            doubled.push(case.headers[index]);
            assert!(refused(case.url, &doubled, case.body), "doubled: {}", case.declared);
        }
    }
}

#[test]
fn a_request_is_believed_within_the_tolerance_of_its_signed_time_alone() {
    for case in cases().into_iter().filter(|case| case.at > 0) {
        let (inbound, headers) = (inbound(case.declared), headers(&case.headers));
        let webhook = webhook(case.url, &headers, case.body.as_bytes());
        for (seconds, believed) in [(300, true), (-300, true), (301, false), (-301, false), (86_400, false)] {
            let verified = inbound.verify(&webhook, &[case.secret], at(case.at + seconds));
            assert_eq!(verified.is_ok(), believed, "{seconds}: {}", case.declared);
        }
    }
}

#[test]
fn an_optional_signature_must_hold_where_it_is_shown() {
    let declared = "kind = 'secret'\nin = 'query'\nname = 'secret'\n[[inbound.verify]]\nkind = 'hmac'\nheader = 'X-Signature'\n\
        signed = '{timestamp}.{body}'\nparts = { timestamp = 't', signature = 'v1' }\noptional = true";
    let inbound = inbound(declared);
    let verify = |url: &str, pairs: &[(&str, &str)]| {
        let headers = headers(pairs);
        inbound.verify(&webhook(url, &headers, b"{}"), &["s3cret"], at(1_000))
    };
    assert_eq!(verify("https://x/?secret=s3cret", &[]), Ok(Proved::Sender));
    assert_eq!(verify("https://x/?secret=s3cret", &[("x-signature", "t=1000,v1=00")]), Err(Unverified));
    assert_eq!(verify("https://x/?secret=s3cret&secret=s3cret", &[]), Err(Unverified));
    assert_eq!(verify("https://x/", &[]), Err(Unverified));
}

#[test]
fn a_vendors_own_signature_must_hold_once_its_secret_is_known() {
    let declared = "kind = 'secret'\nin = 'query'\nname = 'secret'\n[[inbound.verify]]\nkind = 'hmac'\nheader = 'X-Signature'\n\
        signed = '{timestamp}.{body}'\nparts = { timestamp = 't', signature = 'v1' }\nby = 'vendor'";
    let inbound = inbound(declared);
    assert!(inbound.is_signed_by_vendor());
    let signed = |secret: &str| format!("t=1000,v1={}", chassis::signature::hex_sign(secret.as_bytes(), b"1000.{}"));
    let verify = |signing, pairs: &[(&str, &str)]| {
        let headers = headers(pairs);
        inbound.verify(
            &webhook("https://x/?secret=s3cret", &headers, b"{}"),
            Known { secrets: &["s3cret"], signing },
            at(1_000),
        )
    };
    assert_eq!(verify(None, &[]), Ok(Proved::Sender), "the address alone, as long as nobody has told us");
    assert_eq!(verify(Some("theirs"), &[("x-signature", &signed("theirs"))]), Ok(Proved::Body));
    assert_eq!(verify(Some("theirs"), &[]), Err(Unverified));
    assert_eq!(
        verify(Some("theirs"), &[("x-signature", &signed("s3cret"))]),
        Err(Unverified),
        "by the address' secret"
    );
}

#[test]
fn a_verification_that_anybody_passes_is_refused_when_it_is_declared() {
    let (head, _) = example().split_once("[inbound]").expect("it has one");
    for (declared, says) in [
        ("", "must hold at least one"),
        ("[[inbound.verify]]\nkind = 'hmac'\nheader = 'x'\noptional = true", "must hold at least one"),
        ("[[inbound.verify]]\nkind = 'hmac'\nheader = 'x'\nby = 'vendor'", "must hold at least one"),
        ("[[inbound.verify]]\nkind = 'hmac'\nheader = 'x'\ntimestamp_header = 't'", "leaves the timestamp out"),
        ("[[inbound.verify]]\nkind = 'hmac'\nheader = 'x'\nsigned = '{timestamp}{body}'", "names a timestamp"),
        ("[[inbound.verify]]\nkind = 'hmac'\nheader = 'x'\nsigned = 'nothing'", "must hold {body}"),
        ("[[inbound.verify]]\nkind = 'hmac'\nheader = 'x'\nsigned = '{url}{sorted_form}'", "must be form"),
    ] {
        let faults = Connector::parse(&format!("{head}[inbound]\n{declared}\n")).expect_err(declared);
        assert!(faults.iter().any(|fault| fault.reason.contains(says)), "{declared}: {faults:?}");
    }
}

#[test]
fn bodies_become_items_and_what_no_rule_holds_for_is_ignored() {
    let inbound = super::super::tests::parsed(example()).inbound.expect("it has one");
    let events = |body: &str| {
        let headers = headers(&[]);
        inbound.events(&webhook("", &headers, body.as_bytes()), &BTreeMap::new())
    };
    let body =
        json!({"event": "job.updated", "job": {"id": 7, "modified": "2026-05-01T10:00:00Z", "date": "2026-06-20"}});
    let [item] = &events(&body.to_string()).expect("it can be read")[..] else { panic!("one item") };
    let InboundItem { event_type, external_id, fields, .. } = item;
    assert_eq!((event_type.as_str(), external_id.as_str()), ("booking.updated", "7"));
    assert_eq!(fields["wedding_date"], "2026-06-20");
    assert_eq!(events(r#"{"event": "else"}"#), Ok(Vec::new()));
    assert!(events(r#"{"event": "job.updated", "job": {}}"#).expect_err("no id").contains("external_id"));
    assert!(events("<html>").is_err());
}

#[test]
fn a_challenge_is_echoed_and_an_event_is_none() {
    let declared = "kind = 'secret'\nin = 'query'\nname = 'secret'\n[[inbound.handshakes]]\nmethod = 'GET'\necho = 'query.challenge'\n\
        verified = true\n[[inbound.handshakes]]\nmethod = 'POST'\nwhen = \"body.type == 'url_verification'\"\necho = 'body.challenge'";
    let inbound = inbound(declared);
    let ask = |method: &'static str, url: &str, body: &str| {
        let headers = headers(&[]);
        let webhook = Webhook { method, ..webhook(url, &headers, body.as_bytes()) };
        let echo = inbound.handshake(&webhook, &["s3cret"], &BTreeMap::new(), at(0));
        echo.map(|echo| echo.map(|echo| echo.body))
    };
    assert_eq!(ask("GET", "https://x/?secret=s3cret&challenge=abc", ""), Ok(Some("abc".to_owned())));
    assert_eq!(ask("GET", "https://x/?challenge=abc", ""), Err(Unverified));
    assert_eq!(ask("POST", "", r#"{"type":"url_verification","challenge":"c"}"#), Ok(Some("c".to_owned())));
    assert_eq!(ask("POST", "", r#"{"type":"event"}"#), Ok(None));
}

proptest! {
    #[test]
    fn nothing_made_up_is_believed(value in "[ -~]{0,120}", body in any::<Vec<u8>>(), time in "[0-9]{0,20}") {
        for case in cases() {
            let pairs = case.headers.iter().map(|(name, _)| {
                let made_up = if name.contains("timestamp") { time.clone() } else { value.clone() };
                ((*name).to_owned(), made_up.into())
            });
            let headers: Vec<(String, bytes::Bytes)> = pairs.collect();
            let verified = inbound(case.declared).verify(&webhook("https://x/?secret=", &headers, &body), &[case.secret], at(case.at));
            prop_assert_eq!(verified, Err(Unverified));
        }
    }
}
