//! What is asked of the providers, every operation of each, held against the providers' own descriptions (Prism).
//!
//! Two of them are put into a form that Prism holds a JSON body against; nothing of what they say is left out but what has
//! been overtaken, which is said where it is done.

use std::{io::Write as _, sync::Arc};

use chassis::{clock::Clock, outbound::Request};
use http::{HeaderMap, HeaderName, HeaderValue, header};
use serde_json::{Map, Value, json};

use super::{
    Carrier, Channel,
    email::Email,
    peer::{Asked, Peer, Script, delivery, vendor_description, way_out},
    prism,
    push::PushChannel,
    slack::{Rooms, SlackChannel},
    sms::SmsChannel,
    tests::{message_to, reachable},
    twilio::Twilio,
    whatsapp::WhatsappChannel,
};
use crate::{config::Config, recipient::Recipient};

/// Everything that was asked of `peer`, in as many requests; Prism must find nothing wrong with any of them.
async fn assert_all_described(prism: &str, peer: &Peer, expected: &[&str]) {
    let asked = peer.asked();
    let targets: Vec<&str> = asked.iter().map(|asked| asked.target.split('?').next().unwrap()).collect();
    assert_eq!(targets, expected);
    for asked in &asked {
        let (status, said) = judged(prism, asked).await;
        assert!((200..300).contains(&status), "{} {}: {status} {said}\n{:?}", asked.method, asked.target, asked.body);
    }
}

/// What Prism answers to a request.
async fn judged(prism: &str, asked: &Asked) -> (u16, String) {
    let mut headers = HeaderMap::new();
    for (name, value) in &asked.headers {
        let name = HeaderName::try_from(name.as_str()).unwrap();
        if ![header::HOST, header::CONTENT_LENGTH, header::CONNECTION].contains(&name) {
            headers.insert(name, HeaderValue::try_from(value.as_str()).unwrap());
        }
    }
    let (method, url) = (asked.method.parse().unwrap(), format!("{prism}{}", asked.target));
    let timeout = std::time::Duration::from_secs(60);
    let request = Request { method, url, headers, body: asked.body.clone(), timeout };
    let answer = way_out().fetch(request, 64 * 1024).await.unwrap();
    let violations = answer.headers.get("sl-violations").map_or("", |value| value.to_str().unwrap());
    (answer.status.as_u16(), format!("{} {violations}", String::from_utf8_lossy(&answer.body)))
}

/// The same request with another body, which Prism must refuse: it would notice.
async fn assert_refused(prism: &str, asked: &Asked, body: impl Into<String>) {
    let other = Asked { body: body.into().into(), ..asked.clone() };
    let (status, said) = judged(prism, &other).await;
    assert!([400, 415, 422].contains(&status), "{status} {said}\n{:?}", other.body);
}

/// Serves a description that was put into another form.
fn serve(description: &Value) -> Option<String> {
    let mut file = tempfile::Builder::new().suffix(".json").tempfile().unwrap();
    write!(file, "{description}").unwrap();
    prism::serve_file(&file.into_temp_path())
}

async fn carry<C: Channel + Carrier>(channel: &C, person: &Recipient, workflow: &str, attempts: u32) {
    let data = json!({
        "client_name": "Mia & Tom", "old_date": "2026-06-20", "new_date": "2026-06-27",
        "vendor": "Studio Manager", "fields": {"wedding_date": "2026-06-27", "venue_name": "The Barn"},
        "unsubscribe_url": "https://example.org/unsubscribe/token", "acknowledge_url": "https://example.org/a/token",
    });
    let content = message_to(channel, person, workflow, data);
    match attempts {
        0 => channel.carry(&delivery(content, 0)).await,
        _ => channel.resume(&delivery(content, attempts)).await,
    };
}

#[tokio::test]
async fn what_is_asked_of_resend_is_as_it_describes_it() {
    let Some(prism) = prism::serve("resend/resend.json") else { return };
    let taken = Script::json(200, json!({"id": "re_1"}));
    let peer = Peer::start([taken.clone(), taken]).await;
    let mut config = Config::default();
    (config.resend.api_key, config.resend.from) = ("re_1".to_owned().into(), "us@example.org".to_owned());
    config.resend.base_url = peer.base();
    let channel = Email::new(&config, &way_out(), &Clock::System).unwrap();
    for workflow in ["wedding_date_change", "vendor_behind"] {
        carry(&channel, &reachable("Ada"), workflow, 0).await;
    }
    assert!(peer.asked()[1].json()["attachments"].is_array(), "a mail with something attached");
    assert_all_described(&prism, &peer, &["/emails", "/emails"]).await;
    assert_refused(&prism, &peer.asked()[0], r#"{"from": "us@example.org", "to": 7, "subject": "x"}"#).await;
}

#[tokio::test]
async fn what_is_asked_of_twilio_is_as_it_describes_it() {
    let Some(prism) = prism::serve("twilio/twilio_api_v2010.messages.json") else { return };
    let peer = Peer::start([]).await;
    let mut config = Config::default();
    config.twilio.account_sid = format!("AC{}", "a1".repeat(16));
    config.twilio.auth_token = "token".to_owned().into();
    config.twilio.callback_url = "https://example.org/callbacks/twilio".to_owned();
    (config.twilio.from, config.twilio.whatsapp_from) = ("+15005550006".to_owned(), "+15005550006".to_owned());
    config.twilio.whatsapp_content_sid = format!("HX{}", "0a".repeat(16));
    config.twilio.base_url = peer.base();
    let twilio = || Arc::new(Twilio::new(&config.twilio, way_out(), Clock::System));
    let sms = SmsChannel::new(&config.twilio, "WedSync", twilio());
    let mut by_service = config.twilio.clone();
    by_service.messaging_service_sid = format!("MG{}", "0a".repeat(16));
    let by_service = SmsChannel::new(&by_service, "WedSync", twilio());
    let whatsapp = WhatsappChannel::new(&config, twilio(), &way_out(), &Clock::System);
    let (ada, mut open) = (reachable("Ada"), reachable("Ada"));
    open.contact.whatsapp_open_until = i64::MAX;
    peer.then([Script::json(200, json!({"messages": []}))]);
    peer.then((0..4).map(|_| Script::json(201, json!({"sid": "SM1"}))));
    carry(&sms, &ada, "wedding_date_change", 1).await;
    carry(&by_service, &ada, "wedding_date_change", 0).await;
    carry(&whatsapp, &ada, "wedding_date_change", 0).await;
    carry(&whatsapp, &open, "wedding_date_change", 0).await;
    let messages = format!("/2010-04-01/Accounts/{}/Messages.json", config.twilio.account_sid);
    assert_all_described(&prism, &peer, &[&*messages; 5]).await;
    let methods: Vec<String> = peer.asked().into_iter().map(|asked| asked.method).collect();
    assert_eq!(methods, ["GET", "POST", "POST", "POST", "POST"]);
    for wrong in ["Body=hi", "To=%2B15005550009&Body=hi&MessagingServiceSid=none"] {
        assert_refused(&prism, &peer.asked()[1], wrong).await;
    }
}

/// In Meta's description no text can hold what it asks of every message: that is let in.
fn meta_mended(mut description: Value) -> Value {
    let text = description.pointer_mut("/components/schemas/TextMessage/allOf/1").unwrap();
    text.as_object_mut().unwrap().remove("additionalProperties").unwrap();
    description
}

#[tokio::test]
async fn what_is_asked_of_meta_is_as_it_describes_it() {
    let description = vendor_description("meta-whatsapp/business-messaging-api_v23.0.messaging.json");
    let Some(prism) = description.and_then(|description| serve(&meta_mended(description))) else { return };
    let peer = Peer::start([]).await;
    let mut config = Config::default();
    config.whatsapp.access_token = "EAA".to_owned().into();
    config.whatsapp.phone_number_id = "106540352242922".to_owned();
    config.whatsapp.base_url = peer.base();
    let twilio = Arc::new(Twilio::new(&config.twilio, way_out(), Clock::System));
    let channel = WhatsappChannel::new(&config, twilio, &way_out(), &Clock::System);
    let (ada, mut open) = (reachable("Ada"), reachable("Ada"));
    open.contact.whatsapp_open_until = i64::MAX;
    carry(&channel, &ada, "wedding_date_change", 0).await;
    carry(&channel, &open, "wedding_date_change", 0).await;
    assert_all_described(&prism, &peer, &["/v23.0/106540352242922/messages"; 2]).await;
    assert_refused(&prism, &peer.asked()[0], r#"{"messaging_product": "whatsapp", "type": "template"}"#).await;
}

/// Slack's description of 2021 knows forms alone, and asks for the token as a header of its own: both have been overtaken
/// (docs.slack.dev). What it says of each method's arguments is held against a JSON body, where lists stand as they are.
fn slack_as_json(description: &Value) -> Value {
    let mut paths = Map::new();
    for (path, methods) in description["paths"].as_object().unwrap() {
        let (method, operation) = methods.as_object().unwrap().iter().next().unwrap();
        let arguments = operation["parameters"].as_array().unwrap().iter().filter(|it| it["name"] != "token");
        let mut described = json!({"responses": {"200": {"description": "an answer"}}});
        let (forms, queries): (Vec<_>, Vec<_>) = arguments.partition(|it| it["in"] == "formData");
        let is_read = method == "get" && path != "/auth.test";
        if is_read {
            let parameter = |it: &&Value| json!({"name": it["name"], "in": "query", "schema": {"type": it["type"]}});
            described["parameters"] = queries.iter().map(parameter).collect();
        } else {
            let content = json!({"schema": arguments_as_schema(&forms)});
            described["requestBody"] = json!({"required": true, "content": {"application/json": content}});
        }
        described["security"] = json!([{"bot": []}]);
        paths.insert(path.clone(), json!({(if is_read { "get" } else { "post" }): described}));
    }
    json!({
        "openapi": "3.0.3",
        "info": description["info"],
        "paths": paths,
        "components": {"securitySchemes": {"bot": {"type": "http", "scheme": "bearer"}}},
    })
}

fn arguments_as_schema(arguments: &[&Value]) -> Value {
    let mut properties = Map::new();
    for argument in arguments {
        let name = argument["name"].as_str().unwrap();
        let kind = if ["blocks", "attachments"].contains(&name) { json!("array") } else { argument["type"].clone() };
        let schema = if kind == "array" { json!({"type": kind, "items": {}}) } else { json!({"type": kind}) };
        properties.insert(name.to_owned(), schema);
    }
    if properties.contains_key("blocks") {
        // Of later years.
        properties
            .insert("metadata".to_owned(), json!({"type": "object", "required": ["event_type", "event_payload"]}));
    }
    let required: Vec<&Value> = arguments.iter().filter(|it| it["required"] == true).map(|it| &it["name"]).collect();
    let mut schema = json!({"type": "object", "properties": properties, "additionalProperties": false});
    if !required.is_empty() {
        schema["required"] = json!(required);
    }
    schema
}

#[tokio::test]
async fn what_is_asked_of_slack_is_as_it_describes_it() {
    let description = vendor_description("slack/slack_web_openapi_v2.messaging.json");
    let Some(prism) = description.and_then(|description| serve(&slack_as_json(&description))) else { return };
    let ok = |more: Value| {
        let mut answer = json!({"ok": true});
        answer.as_object_mut().unwrap().extend(more.as_object().unwrap().clone());
        Script::json(200, answer)
    };
    let peer = Peer::start([
        ok(json!({"channel": {"id": "D1"}})),
        ok(json!({"messages": []})),
        Script::json(200, json!({"ok": false, "error": "not_in_channel"})),
        ok(json!({})),
        ok(json!({"ts": "1.2"})),
        ok(json!({"user_id": "UB"})),
        ok(json!({"channel": {"id": "G1"}})),
        ok(json!({"channels": [], "response_metadata": {"next_cursor": "x="}})),
        ok(json!({"channels": []})),
    ])
    .await;
    let mut config = Config::default();
    config.slack.bot_token = "xoxb-1".to_owned().into();
    config.slack.base_url = peer.base();
    config.slack.per_second = 0;
    let channel = SlackChannel::new(&config.slack, "WedSync", &way_out(), &Clock::System);
    let mut member = reachable("Ada");
    member.contact.slack_user_id = "U012AB3CD".to_owned();
    carry(&channel, &member, "wedding_date_change", 1).await;
    let rooms = Rooms::new(&config.slack, way_out(), Clock::System);
    rooms.whoami().await.unwrap();
    rooms.create("wedding-1").await.unwrap();
    assert_eq!(rooms.find("wedding-1").await, Ok(None));
    peer.then((0..4).map(|_| ok(json!({}))));
    rooms.set_purpose("G1", "The vendors of one wedding").await.unwrap();
    rooms.invite("G1", "U1").await.unwrap();
    rooms.remove("G1", "U1").await.unwrap();
    rooms.archive("G1").await.unwrap();
    let expected = [
        "/conversations.open",
        "/conversations.history",
        "/chat.postMessage",
        "/conversations.join",
        "/chat.postMessage",
        "/auth.test",
        "/conversations.create",
        "/conversations.list",
        "/conversations.list",
        "/conversations.setPurpose",
        "/conversations.invite",
        "/conversations.kick",
        "/conversations.archive",
    ];
    assert_all_described(&prism, &peer, &expected).await;
    for wrong in
        [r#"{"text": "to nobody"}"#, r#"{"channel": "C1", "mrkdwn": "no"}"#, r#"{"channel": "C1", "texts": "x"}"#]
    {
        assert_refused(&prism, &peer.asked()[2], wrong).await;
    }
}

/// Google's discovery document as OpenAPI: no field but those that it knows.
fn discovered(description: &Value) -> Value {
    let mut schemas = description["schemas"].clone();
    for schema in schemas.as_object_mut().unwrap().values_mut() {
        referring(schema);
    }
    let send = &description["resources"]["projects"]["resources"]["messages"]["methods"]["send"];
    let path = format!("/{}", send["flatPath"].as_str().unwrap());
    let body = json!({"$ref": format!("#/components/schemas/{}", send["request"]["$ref"].as_str().unwrap())});
    let parameter = json!({"name": "projectsId", "in": "path", "required": true, "schema": {"type": "string"}});
    let operation = json!({
        "parameters": [parameter],
        "security": [{"account": []}],
        "requestBody": {"required": true, "content": {"application/json": {"schema": body}}},
        "responses": {"200": {"description": "a name"}},
    });
    json!({
        "openapi": "3.0.3",
        "info": {"title": description["title"], "version": description["version"]},
        "paths": {path: {"post": operation}},
        "components": {"schemas": schemas, "securitySchemes": {"account": {"type": "http", "scheme": "bearer"}}},
    })
}

fn referring(schema: &mut Value) {
    if let Some(name) = schema.get("$ref").and_then(Value::as_str) {
        *schema = json!({"$ref": format!("#/components/schemas/{name}")});
        return;
    }
    let Some(fields) = schema.as_object_mut() else { return };
    // OpenAPI says that by saying nothing.
    if fields.get("type").is_some_and(|kind| kind == "any") {
        fields.remove("type");
    }
    for name in ["id", "annotations", "enumDescriptions", "enumDeprecated", "readOnly", "deprecated", "format"] {
        fields.remove(name);
    }
    for name in ["additionalProperties", "items"] {
        fields.get_mut(name).map(referring);
    }
    if let Some(properties) = fields.get_mut("properties").and_then(Value::as_object_mut) {
        properties.values_mut().for_each(referring);
        fields.insert("additionalProperties".to_owned(), false.into());
    }
}

#[tokio::test]
async fn what_is_asked_of_fcm_is_as_it_describes_it() {
    let description = vendor_description("fcm/fcm.v1.discovery.json");
    let Some(prism) = description.and_then(|description| serve(&discovered(&description))) else { return };
    let (google, peer) = (
        Peer::start([Script::json(200, json!({"access_token": "ya29", "expires_in": 3599}))]).await,
        Peer::start([]).await,
    );
    let mut config = Config::default();
    config.fcm.service_account_file =
        concat!(env!("CARGO_MANIFEST_DIR"), "/src/channel/push/test-account.json").to_owned();
    (config.fcm.base_url, config.fcm.token_url) = (peer.base(), google.url("/token"));
    let channel = PushChannel::new(&config, &way_out(), &Clock::System, None).unwrap();
    carry(&channel, &reachable("Ada"), "wedding_date_change", 0).await;
    assert_all_described(&prism, &peer, &["/v1/projects/wedsync-test/messages:send"]).await;
    for wrong in [
        r#"{"message": {"token": 7}}"#,
        r#"{"message": {"android": {"priority": "URGENT"}}}"#,
        r#"{"message": {"tokens": "x"}}"#,
    ] {
        assert_refused(&prism, &peer.asked()[0], wrong).await;
    }
}
