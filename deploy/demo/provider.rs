//! The providers of messages on loopback, as their own documentation describes them: Slack's Web API, Twilio's messages, Meta's
//! WhatsApp and a Teams workflow. They hold a request to its form, take it, and tell what they took; and they sign what they
//! report as they really do.

use std::{collections::HashMap, net::SocketAddr};

use axum::{
    Json, Router,
    body::Bytes,
    extract::{Path, State},
    http::{HeaderMap, StatusCode, header::AUTHORIZATION},
    response::{IntoResponse as _, Response},
    routing::post,
};
use base64::{Engine as _, prelude::BASE64_STANDARD};
use ring::hmac;
use serde_json::{Value, json};
use tokio::sync::mpsc;

pub(crate) const ACCOUNT: &str = "AC00000000000000000000000000000001";
pub(crate) const AUTH_TOKEN: &str = "twilio-token";
pub(crate) const BOT_TOKEN: &str = "xoxb-demo";
pub(crate) const SIGNING_SECRET: &str = "slack-signing-secret";
pub(crate) const ACCESS_TOKEN: &str = "EAAdemo";
pub(crate) const PHONE_NUMBER_ID: &str = "106540352242922";
pub(crate) const APP_SECRET: &str = "meta-app-secret";
/// Where Twilio was told that the gateway is.
pub(crate) const CALLBACK_URL: &str = "https://rose-and-oak.example/callbacks/twilio";

/// A message that was taken.
#[derive(Clone, Debug)]
pub(crate) struct Taken {
    /// `slack`, `sms`, `whatsapp` or `teams`.
    pub(crate) channel: &'static str,
    /// Number, member, or path of a workflow.
    pub(crate) to: String,
    pub(crate) text: String,
    /// What a button names, where there is one.
    pub(crate) button: String,
}

/// All four, on one port.
pub(crate) struct Providers {
    pub(crate) address: SocketAddr,
    pub(crate) taken: mpsc::Receiver<Taken>,
}

#[derive(Clone)]
struct Counter(mpsc::Sender<Taken>);

/// Messages that wait to be read; whoever sends more is told to come back.
const WAITING_MAX: usize = 1_000;

impl Providers {
    pub(crate) async fn start() -> std::io::Result<Self> {
        let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await?;
        let address = listener.local_addr()?;
        let (sender, taken) = mpsc::channel(WAITING_MAX);
        let app = Router::new()
            .route("/slack/chat.postMessage", post(slack))
            .route("/2010-04-01/Accounts/{account}/Messages.json", post(twilio))
            .route("/{version}/{number}/messages", post(meta))
            .route("/workflows/{name}", post(teams))
            .with_state(Counter(sender));
        #[expect(clippy::disallowed_methods, reason = "peers outside of the system, which no chassis drains")]
        tokio::spawn(async move { axum::serve(listener, app).await });
        Ok(Self { address, taken })
    }

    /// The settings that make a notifier use them, as the environment has them.
    pub(crate) fn settings(&self) -> Vec<(String, String)> {
        let base = format!("http://{}", self.address);
        let slack = format!("{base}/slack");
        let all: [(&str, &str); 13] = [
            ("TWILIO__ACCOUNT_SID", ACCOUNT),
            ("TWILIO__AUTH_TOKEN", AUTH_TOKEN),
            ("TWILIO__FROM", "+15005550006"),
            ("TWILIO__CALLBACK_URL", CALLBACK_URL),
            ("TWILIO__BASE_URL", &base),
            ("SLACK__BOT_TOKEN", BOT_TOKEN),
            ("SLACK__SIGNING_SECRET", SIGNING_SECRET),
            ("SLACK__BASE_URL", &slack),
            ("WHATSAPP__ACCESS_TOKEN", ACCESS_TOKEN),
            ("WHATSAPP__PHONE_NUMBER_ID", PHONE_NUMBER_ID),
            ("WHATSAPP__APP_SECRET", APP_SECRET),
            ("WHATSAPP__BASE_URL", &base),
            ("TEAMS__HOSTS", "127.0.0.1"),
        ];
        all.map(|(name, value)| (format!("WEDSYNC_NOTIFIER__{name}"), value.to_owned())).into()
    }

    /// The workflow of this name.
    pub(crate) fn workflow(&self, name: &str) -> String {
        format!("http://{}/workflows/{name}", self.address)
    }
}

impl Counter {
    fn take(&self, taken: Taken, answer: Response) -> Response {
        match self.0.try_send(taken) {
            Ok(()) => answer,
            Err(_) => StatusCode::SERVICE_UNAVAILABLE.into_response(),
        }
    }
}

fn shows(headers: &HeaderMap, credential: &str) -> bool {
    headers.get(AUTHORIZATION).is_some_and(|shown| shown == credential)
}

/// Slack answers 200 to whatever it understands, and says in the body what it thinks of it.
async fn slack(State(counter): State<Counter>, headers: HeaderMap, body: Bytes) -> Response {
    let refuse = |error: &str| Json(json!({ "ok": false, "error": error })).into_response();
    if !shows(&headers, &format!("Bearer {BOT_TOKEN}")) {
        return refuse("invalid_auth");
    }
    let Ok(message) = serde_json::from_slice::<Value>(&body) else { return refuse("invalid_json") };
    let (Some(to), Some(text)) = (message["channel"].as_str(), message["text"].as_str()) else {
        return refuse("no_text");
    };
    let elements = message["blocks"].as_array().into_iter().flatten().filter(|block| block["type"] == "actions");
    let mut buttons = elements.filter_map(|block| block["elements"][0]["value"].as_str());
    let button = buttons.next().unwrap_or_default().to_owned();
    // As Slack shows it: https://docs.slack.dev/messaging/formatting-message-text#escaping
    let text = text.replace("&lt;", "<").replace("&gt;", ">").replace("&amp;", "&");
    let taken = Taken { channel: "slack", to: to.to_owned(), text, button };
    counter.take(taken, Json(json!({ "ok": true, "channel": "D1", "ts": "1503435956.000247" })).into_response())
}

async fn twilio(
    State(counter): State<Counter>,
    Path(account): Path<String>,
    headers: HeaderMap,
    body: Bytes,
) -> Response {
    let login = BASE64_STANDARD.encode(format!("{ACCOUNT}:{AUTH_TOKEN}"));
    if account != ACCOUNT || !shows(&headers, &format!("Basic {login}")) {
        return (StatusCode::UNAUTHORIZED, Json(json!({ "code": 20003, "status": 401 }))).into_response();
    }
    let form: HashMap<String, String> = url::form_urlencoded::parse(&body).into_owned().collect();
    let field = |name: &str| form.get(name).cloned().unwrap_or_default();
    if field("To").is_empty() || field("Body").is_empty() || field("From").is_empty() {
        return (StatusCode::BAD_REQUEST, Json(json!({ "code": 21604, "status": 400 }))).into_response();
    }
    let answer = json!({ "sid": "SM00000000000000000000000000000001", "status": "queued" });
    let taken = Taken { channel: "sms", to: field("To"), text: field("Body"), button: String::new() };
    counter.take(taken, (StatusCode::CREATED, Json(answer)).into_response())
}

async fn meta(
    State(counter): State<Counter>,
    Path((_, number)): Path<(String, String)>,
    headers: HeaderMap,
    body: Bytes,
) -> Response {
    let refuse = |code: u32| (StatusCode::BAD_REQUEST, Json(json!({ "error": { "code": code } }))).into_response();
    if number != PHONE_NUMBER_ID || !shows(&headers, &format!("Bearer {ACCESS_TOKEN}")) {
        return refuse(190);
    }
    let message: Value = serde_json::from_slice(&body).unwrap_or_default();
    let Some(to) = message["to"].as_str().filter(|_| message["messaging_product"] == "whatsapp") else {
        return refuse(100);
    };
    let parameters = message["template"]["components"][0]["parameters"].as_array().cloned().unwrap_or_default();
    let words: Vec<&str> = parameters.iter().filter_map(|parameter| parameter["text"].as_str()).collect();
    let answer = json!({ "messaging_product": "whatsapp", "messages": [{ "id": "wamid.1" }] });
    let to = format!("+{}", to.trim_start_matches('+'));
    let taken = Taken { channel: "whatsapp", to, text: words.join(" "), button: String::new() };
    counter.take(taken, Json(answer).into_response())
}

/// A workflow accepts, and says no more.
async fn teams(State(counter): State<Counter>, Path(name): Path<String>, body: Bytes) -> Response {
    let message: Value = serde_json::from_slice(&body).unwrap_or_default();
    let card = &message["attachments"][0]["content"];
    if card["type"] != "AdaptiveCard" {
        return StatusCode::BAD_REQUEST.into_response();
    }
    let text = card["body"][0]["inlines"][0]["text"].as_str().unwrap_or_default().to_owned();
    let taken = Taken { channel: "teams", to: name, text, button: String::new() };
    counter.take(taken, StatusCode::ACCEPTED.into_response())
}

/// A request of a provider's to the gateway.
pub(crate) struct Report {
    pub(crate) path: &'static str,
    pub(crate) headers: Vec<(&'static str, String)>,
    pub(crate) body: String,
}

fn signed(algorithm: hmac::Algorithm, secret: &str, text: &str) -> hmac::Tag {
    hmac::sign(&hmac::Key::new(algorithm, secret.as_bytes()), text.as_bytes())
}

const FORM: (&str, &str) = ("content-type", "application/x-www-form-urlencoded");

/// Somebody pressed a button in Slack, at this time in seconds.
pub(crate) fn button(member: &str, value: &str, now: i64) -> Report {
    let action = json!({ "type": "button", "action_id": "acknowledge", "value": value, "action_ts": now.to_string() });
    let payload = json!({ "type": "block_actions", "user": { "id": member }, "actions": [action] }).to_string();
    let body = url::form_urlencoded::Serializer::new(String::new()).append_pair("payload", &payload).finish();
    let signature =
        format!("v0={}", hex::encode(signed(hmac::HMAC_SHA256, SIGNING_SECRET, &format!("v0:{now}:{body}"))));
    let (name, form) = FORM;
    let headers =
        vec![(name, form.to_owned()), ("x-slack-request-timestamp", now.to_string()), ("x-slack-signature", signature)];
    Report { path: "/callbacks/slack", headers, body }
}

/// Somebody answered a text.
pub(crate) fn text_reply(from: &str, text: &str) -> Report {
    let sid = format!("SM{:0>32}", from.trim_start_matches('+'));
    let fields = [("Body", text), ("From", from), ("MessageSid", &*sid)];
    let said: String = fields.iter().flat_map(|(name, value)| [*name, *value]).collect();
    let signature = BASE64_STANDARD.encode(signed(
        hmac::HMAC_SHA1_FOR_LEGACY_USE_ONLY,
        AUTH_TOKEN,
        &format!("{CALLBACK_URL}{said}"),
    ));
    let body = url::form_urlencoded::Serializer::new(String::new()).extend_pairs(fields).finish();
    let (name, form) = FORM;
    let headers = vec![(name, form.to_owned()), ("x-twilio-signature", signature)];
    Report { path: "/callbacks/twilio", headers, body }
}

/// Somebody answered on WhatsApp.
pub(crate) fn chat_reply(from: &str, text: &str) -> Report {
    let message = json!({ "id": format!("wamid.{from}"), "from": from.trim_start_matches('+'), "type": "text", "text": { "body": text } });
    let change = json!({ "field": "messages", "value": { "messaging_product": "whatsapp", "messages": [message] } });
    let body =
        json!({ "object": "whatsapp_business_account", "entry": [{ "id": "1", "changes": [change] }] }).to_string();
    let signature = format!("sha256={}", hex::encode(signed(hmac::HMAC_SHA256, APP_SECRET, &body)));
    let headers = vec![("content-type", "application/json".to_owned()), ("x-hub-signature-256", signature)];
    Report { path: "/callbacks/whatsapp", headers, body }
}
