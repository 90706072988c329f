//! Push as a whole: browsers and devices, what they get, and what their services' answers mean.

use base64::{Engine as _, prelude::BASE64_URL_SAFE_NO_PAD};
use chassis::{
    id::OrganizationId,
    lane::{self, Outcome},
    secret::{DataKeys, Keyring, KeyringSettings, generate_master_key},
    store,
    testing::on_each_engine,
};
use ring::signature::{RSA_PKCS1_2048_8192_SHA256, UnparsedPublicKey};
use serde_json::{Value, json};

use super::{encrypt::tests::Browser, *};
use crate::{
    MIGRATIONS,
    channel::{
        naughty::{LINK, Rendered, naughty, rendered_to},
        peer::{Peer, Script, delivery, vendor_description, way_out},
        tests::{message_to, reachable},
        words::clean,
    },
};

/// Browsers' services and Google, all at one peer.
fn channel(peer: &Peer) -> PushChannel {
    let mut config = Config { web_push: vapid::tests::settings(), ..Config::default() };
    config.web_push.hosts = vec!["127.0.0.1".to_owned()];
    config.fcm.service_account_file =
        concat!(env!("CARGO_MANIFEST_DIR"), "/src/channel/push/test-account.json").to_owned();
    (config.fcm.base_url, config.fcm.token_url) = (peer.base(), peer.url("/token"));
    PushChannel::new(&config, &way_out(), &Clock::System, None).unwrap()
}

fn target(peer: &Peer, browser: &Browser) -> PushTarget {
    let encode = |bytes: &[u8]| BASE64_URL_SAFE_NO_PAD.encode(bytes);
    PushTarget::Web { endpoint: peer.url("/push/1"), p256dh: encode(&browser.public), auth: encode(&browser.secret) }
}

/// Keys that push services know us by.
pub(in super::super) fn settings() -> crate::config::WebPush {
    vapid::tests::settings()
}

/// Somebody's browser, at this address.
pub(in super::super) fn browser(endpoint: &str) -> PushTarget {
    let encode = |bytes: &[u8]| BASE64_URL_SAFE_NO_PAD.encode(bytes);
    let browser = Browser::new();
    PushTarget::Web { endpoint: endpoint.to_owned(), p256dh: encode(&browser.public), auth: encode(&browser.secret) }
}

fn person(targets: Vec<PushTarget>) -> Recipient {
    let mut person = reachable("Ada");
    person.contact.push = targets;
    person
}

fn device() -> PushTarget {
    PushTarget::Fcm { token: "device-1".to_owned() }
}

async fn carry(channel: &PushChannel, person: &Recipient) -> Attempted {
    let data = json!({"old_date": "2026-06-20", "new_date": "2026-06-27", "client_name": "Mia & Tom"});
    let content = message_to(channel, person, "wedding_date_change", data);
    channel.carry(&delivery(content, 0)).await
}

fn granted() -> Script {
    Script::json(200, json!({"access_token": "ya29.1", "expires_in": 3599, "token_type": "Bearer"}))
}

#[tokio::test]
async fn a_browser_reads_its_message_and_its_service_knows_us() {
    let peer = Peer::start([Script::status(201).header("Location: /m/1")]).await;
    let (channel, browser) = (channel(&peer), Browser::new());
    assert_eq!(carry(&channel, &person(vec![target(&peer, &browser)])).await.outcome, Outcome::Delivered);
    let [asked] = &peer.asked()[..] else { panic!("one request") };
    for (name, value) in [
        ("ttl", "86400"),
        ("urgency", "high"),
        ("topic", "BwcHBwcHBwcHBwcHBwcHBw"),
        ("content-encoding", "aes128gcm"),
        ("content-type", "application/octet-stream"),
    ] {
        assert_eq!(asked.header(name), value, "{name}");
    }
    let claims = vapid::tests::read(asked.header("authorization"));
    assert_eq!((&claims["aud"], &claims["sub"]), (&json!(peer.base()), &json!("mailto:push@example.org")));
    let read: Value = serde_json::from_slice(&browser.open(&asked.body)).unwrap();
    assert_eq!(read["title"], "Action required: the wedding of Mia & Tom has a new date");
    assert_eq!(read["body"], "Saturday 20 June 2026 becomes Saturday 27 June 2026. Update your calendar.");
    assert_eq!(read["tag"], "07070707-0707-0707-0707-070707070707");
}

#[tokio::test]
async fn every_answer_of_a_push_service_has_its_class() {
    let peer = Peer::start([]).await;
    let (channel, browser) = (channel(&peer), Browser::new());
    let person = person(vec![target(&peer, &browser)]);
    for (script, expected) in [
        (Script::status(201), Class::Taken),
        (Script::status(202), Class::Taken),
        (Script::status(400), Class::Refused),
        (Script::status(401), Class::Barred),
        (Script::status(403), Class::Barred),
        (Script::status(404), Class::Dead),
        (Script::status(410), Class::Dead),
        (Script::status(413), Class::Refused),
        (Script::status(429), Class::Busy),
    ] {
        peer.then([script.clone()]);
        assert_eq!(carry(&channel, &person).await.class, expected.name(), "{script:?}");
    }
}

#[tokio::test]
async fn a_device_gets_what_google_describes_with_a_token_that_is_asked_for_once() {
    let sent = || Script::json(200, json!({"name": "projects/wedsync-test/messages/0:1"}));
    let peer = Peer::start([granted(), sent(), sent()]).await;
    let channel = channel(&peer);
    for _ in 0..2 {
        assert_eq!(carry(&channel, &person(vec![device()])).await.outcome, Outcome::Delivered);
    }
    let [token, first, second] = &peer.asked()[..] else { panic!("one token and two messages: {:?}", peer.asked()) };
    let form = token.form();
    assert_eq!(
        (token.target.as_str(), &form["grant_type"]),
        ("/token", &json!("urn:ietf:params:oauth:grant-type:jwt-bearer"))
    );
    let claims = signed_by_the_account(form["assertion"].as_str().unwrap());
    assert_eq!(claims["iss"], "push@wedsync-test.iam.gserviceaccount.com");
    assert_eq!(
        (&claims["aud"], &claims["scope"]),
        (&json!(peer.url("/token")), &json!("https://www.googleapis.com/auth/firebase.messaging"))
    );
    assert!(claims["exp"].as_i64().unwrap() - claims["iat"].as_i64().unwrap() <= 3600);
    assert_eq!(
        (first.target.as_str(), first.header("authorization")),
        ("/v1/projects/wedsync-test/messages:send", "Bearer ya29.1")
    );
    assert_eq!(first.body, second.body);
    assert_eq!(first.json()["message"]["android"]["collapseKey"], "07070707-0707-0707-0707-070707070707");
    if let Some(description) = vendor_description("fcm/fcm.v1.discovery.json") {
        assert_discovered(&description, "SendMessageRequest", &first.json());
    }
}

/// The claims of a statement that the test's account signed.
fn signed_by_the_account(assertion: &str) -> Value {
    let (signed, signature) = assertion.rsplit_once('.').unwrap();
    let file: Value = serde_json::from_str(include_str!("test-account.json")).unwrap();
    let der = google::pem(file["private_key"].as_str().unwrap()).unwrap();
    let key = ring::rsa::KeyPair::from_pkcs8(&der).unwrap();
    let public = UnparsedPublicKey::new(&RSA_PKCS1_2048_8192_SHA256, key.public().as_ref());
    public.verify(signed.as_bytes(), &BASE64_URL_SAFE_NO_PAD.decode(signature).unwrap()).unwrap();
    serde_json::from_slice(&BASE64_URL_SAFE_NO_PAD.decode(signed.split('.').nth(1).unwrap()).unwrap()).unwrap()
}

/// Holds a message against Google's own kind of schema: every field is known, and of its type.
fn assert_discovered(description: &Value, name: &str, value: &Value) {
    let fields = value.as_object().unwrap_or_else(|| panic!("{name} is an object"));
    for (field, value) in fields {
        let schema = &description["schemas"][name]["properties"][field];
        match (schema["$ref"].as_str(), schema["type"].as_str()) {
            (Some(other), _) => assert_discovered(description, other, value),
            (None, Some("object")) => {
                assert!(value.as_object().unwrap().values().all(Value::is_string), "{name}.{field}")
            }
            (None, Some("string")) => {
                let known = schema["enum"].as_array();
                assert!(
                    value.is_string() && known.is_none_or(|known| known.contains(value)),
                    "{name}.{field}: {value}"
                );
            }
            _ => panic!("{name} has no {field}"),
        }
    }
}

#[tokio::test]
async fn every_error_of_fcm_has_its_class() {
    let peer = Peer::start([granted()]).await;
    let channel = channel(&peer);
    let fault = |status: u16, name: &str, code: &str| {
        let details = json!([{"@type": "type.googleapis.com/google.firebase.fcm.v1.FcmError", "errorCode": code}]);
        Script::json(
            status,
            json!({"error": {"code": status, "message": "device-1", "status": name, "details": details}}),
        )
    };
    let field = json!({"error": {"code": 400, "status": "INVALID_ARGUMENT", "details": [{"@type": "type.googleapis.com/google.rpc.BadRequest", "fieldViolations": [{"field": "message.android.ttl"}]}]}});
    for (script, expected) in [
        (fault(404, "NOT_FOUND", "UNREGISTERED"), Class::Dead),
        (fault(403, "PERMISSION_DENIED", "SENDER_ID_MISMATCH"), Class::Dead),
        (fault(400, "INVALID_ARGUMENT", "INVALID_ARGUMENT"), Class::Dead),
        (Script::json(400, field), Class::Refused),
        (fault(429, "RESOURCE_EXHAUSTED", "QUOTA_EXCEEDED"), Class::Busy),
        (fault(401, "UNAUTHENTICATED", "THIRD_PARTY_AUTH_ERROR"), Class::Barred),
        (Script::json(403, json!({"error": {"status": "PERMISSION_DENIED"}})), Class::Barred),
    ] {
        peer.then([script.clone()]);
        assert_eq!(carry(&channel, &person(vec![device()])).await.class, expected.name(), "{script:?}");
    }
}

#[tokio::test]
async fn a_token_that_was_withdrawn_is_asked_for_once_more() {
    let out = || Script::json(401, json!({"error": {"status": "UNAUTHENTICATED"}}));
    let other = Script::json(200, json!({"access_token": "ya29.2", "expires_in": 3599}));
    let peer = Peer::start([granted(), out(), other, Script::json(200, json!({"name": "x"}))]).await;
    assert_eq!(carry(&channel(&peer), &person(vec![device()])).await.outcome, Outcome::Delivered);
    assert_eq!(peer.asked()[3].header("authorization"), "Bearer ya29.2");
    let peer = Peer::start([granted(), out(), granted(), out()]).await;
    assert_eq!(carry(&channel(&peer), &person(vec![device()])).await.class, Class::Barred.name());
    let peer = Peer::start([Script::json(400, json!({"error": "invalid_grant"}))]).await;
    assert_eq!(carry(&channel(&peer), &person(vec![device()])).await.class, Class::Barred.name());
    let peer = Peer::start([Script::HangUp]).await;
    assert_eq!(
        carry(&channel(&peer), &person(vec![device()])).await.class,
        Class::Down.name(),
        "no message was under way"
    );
}

#[tokio::test]
async fn what_firebase_may_have_stays_unknown_and_what_a_browsers_service_may_have_is_tried_again() {
    let broken = [500, 502, 503, 504, 599].map(Script::status);
    for script in broken.into_iter().chain([Script::HangUp, Script::Garbage]) {
        let (peer, browser) = (Peer::start([script.clone(), granted(), script.clone()]).await, Browser::new());
        let channel = channel(&peer);
        let attempted = carry(&channel, &person(vec![target(&peer, &browser)])).await;
        assert_eq!(attempted.class, Class::Unsettled.name(), "{script:?}");
        assert!(matches!(attempted.outcome, Outcome::Retry { .. }));
        let attempted = carry(&channel, &person(vec![device()])).await;
        assert_eq!((attempted.class, attempted.outcome), (Class::Unsure.name(), Outcome::Unknown), "{script:?}");
    }
    for (status, name) in [(503, "UNAVAILABLE"), (500, "INTERNAL")] {
        let peer = Peer::start([granted(), Script::json(status, json!({"error": {"status": name}}))]).await;
        assert_eq!(carry(&channel(&peer), &person(vec![device()])).await.outcome, Outcome::Unknown, "{name}");
    }
}

#[test]
fn one_that_takes_it_is_enough_and_only_all_that_are_gone_end_it() {
    let of = |classes: &[Class]| together(classes.iter().map(|class| Verdict::new(*class, "")).collect()).class;
    assert_eq!(of(&[Class::Dead, Class::Taken, Class::Down]), Class::Taken);
    assert_eq!(of(&[Class::Dead, Class::Down]), Class::Down);
    assert_eq!(of(&[Class::Dead, Class::Unsettled, Class::Busy]), Class::Unsettled);
    assert_eq!(of(&[Class::Unsettled, Class::Unsure, Class::Down]), Class::Unsure, "another try would go there too");
    assert_eq!(of(&[Class::Dead, Class::Refused]), Class::Refused);
    assert_eq!(of(&[Class::Dead, Class::Dead]), Class::Dead);
    assert_eq!(of(&[]), Class::Dead);
}

#[tokio::test]
async fn a_browser_that_is_gone_is_forgotten_and_no_other() {
    on_each_engine(&[&store::MIGRATIONS, &lane::MIGRATIONS, &MIGRATIONS], async |store| {
        let settings = KeyringSettings { master_keys: vec![generate_master_key(&Clock::System)] };
        let keys = DataKeys::new(store.clone(), Keyring::new(&settings).unwrap(), Clock::System);
        let (directory, organization) =
            (Directory::new(store, keys, Clock::System), OrganizationId::parse("o").unwrap());
        let (peer, browser) = (Peer::start([Script::status(410)]).await, Browser::new());
        let channel = PushChannel { directory: Some(directory.clone()), ..channel(&peer) };
        let known = Recipient { id: "r".to_owned(), ..person(vec![device(), target(&peer, &browser)]) };
        directory.upsert(&organization, known).await.unwrap();
        assert_eq!(carry(&channel, &person(vec![target(&peer, &browser)])).await.class, Class::Dead.name());
        assert_eq!(directory.get(&organization, "r").await.unwrap().contact.push, [device()]);
    })
    .await;
}

#[tokio::test]
async fn only_push_services_are_written_to() {
    let peer = Peer::start([]).await;
    let (channel, browser) = (channel(&peer), Browser::new());
    let PushTarget::Web { p256dh, auth, .. } = target(&peer, &browser) else { panic!("a browser") };
    let foreign = PushTarget::Web { endpoint: "http://localhost:1/push".to_owned(), p256dh, auth };
    assert_eq!(channel.address(&person(vec![foreign])), Err("there is no browser or device to push to"));
    assert!(channel.address(&person(vec![device()])).is_ok());
}

#[tokio::test]
async fn no_text_is_longer_than_a_push_may_be_or_changes_more_than_its_words() {
    let peer = Peer::start([granted()]).await;
    let channel = channel(&peer);
    let mut texts = naughty();
    texts.extend(["\"".repeat(5_000), "\\".repeat(5_000), "田".repeat(5_000), "👍".repeat(5_000)]);
    for text in texts {
        let browser = Browser::new();
        let person = person(vec![device(), target(&peer, &browser)]);
        for Rendered { workflow, case, content } in rendered_to(&channel, &person, &text) {
            let of = format!("{workflow}, {case}: {text:?}");
            let Push { notice, targets } = serde_json::from_slice(&content).unwrap();
            assert_eq!(targets, person.contact.push, "{of}");
            assert!(serde_json::to_vec(&notice).unwrap().len() < 1_800, "{of}");
            for said in [&notice.title, &notice.body] {
                assert_eq!(*said, one_line(&clean(said)), "{of}");
            }
            assert!(["", LINK].contains(&&*notice.url), "{of}");
            // One of each text goes all the way.
            if workflow == "wedding_date_change" && case == "everything" {
                goes_all_the_way(&channel, &peer, &notice, content).await;
                break;
            }
        }
    }
}

/// To a device and to a browser, both of which take it.
async fn goes_all_the_way(channel: &PushChannel, peer: &Peer, notice: &Notice, content: Bytes) {
    let before = peer.asked().len();
    peer.then([Script::json(200, json!({"name": "x"})), Script::status(201)]);
    assert_eq!(channel.carry(&delivery(content, 0)).await.outcome, Outcome::Delivered);
    let asked = peer.asked().split_off(before);
    let sent = asked.iter().find(|asked| asked.target.ends_with("messages:send")).unwrap();
    assert!(sent.body.len() <= 4_096 && asked.iter().all(|asked| asked.body.len() <= 4_096));
    assert_eq!(sent.json()["message"]["notification"], json!({"title": notice.title, "body": notice.body}));
}
