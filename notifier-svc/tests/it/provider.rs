//! Twilio and Slack on loopback, as far as messages go: whatever is posted is taken and kept. And their reports, signed as
//! they sign them, by the way that the gateway brings them.

use std::{
    collections::HashMap,
    net::SocketAddr,
    sync::{Arc, Mutex},
};

use base64::{Engine as _, prelude::BASE64_STANDARD};
use chassis::{
    grpc::Peer,
    signature::{WebhookSecret, hex_sign, sign},
    tasks::Tasks,
};
use notifier_svc::Config;
use proto::notifier::v1::{
    CallbackHeader, CallbackResult, ReceiveCallbackRequest, callback_service_client::CallbackServiceClient,
};
use serde_json::{Value, json};
use tokio::{
    io::{AsyncBufReadExt as _, AsyncReadExt as _, AsyncWriteExt as _, BufReader},
    net::{TcpListener, TcpStream},
};

use crate::world::World;

const TOKEN: &str = "12345";
const CALLBACK_URL: &str = "https://gate.example/callbacks/twilio";
const SIGNING_SECRET: &str = "8f742231b10e8888abcd99yyyzzz85a5";
const WEBHOOK_SECRET: &str = "whsec_MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaSw";

/// Both, on one port.
#[derive(Clone)]
pub(crate) struct Providers {
    pub(crate) address: SocketAddr,
    asked: Arc<Mutex<Vec<(String, String)>>>,
    twilio: Arc<Mutex<Mood>>,
}

/// What Twilio does with what it is asked.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(crate) enum Mood {
    #[default]
    Takes,
    /// Says that it takes nothing now.
    Away,
    /// Says that the number is none, or that its owner said STOP: its code.
    Refuses(u32),
    /// Takes a message and hangs up; and says nothing of what it has.
    Cuts,
}

impl Providers {
    pub(crate) async fn start(tasks: &Tasks) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let providers = Self { address: listener.local_addr().unwrap(), asked: Arc::default(), twilio: Arc::default() };
        let (serving, spawning) = (providers.clone(), tasks.clone());
        let stopping = tasks.stopping();
        tasks.spawn("test.providers", async move {
            while let Some(Ok((stream, _))) = stopping.run_until_cancelled(listener.accept()).await {
                let (serving, stopping) = (serving.clone(), stopping.clone());
                spawning.spawn("test.provider", async move {
                    drop(stopping.run_until_cancelled(serving.serve(stream)).await);
                });
            }
        });
        providers
    }

    /// Points a notifier at them.
    pub(crate) fn configure(&self, config: &mut Config) {
        let base = format!("http://{}", self.address);
        config.twilio.account_sid = format!("AC{}", "0".repeat(32));
        config.twilio.auth_token = TOKEN.to_owned().into();
        config.twilio.from = "+15005550006".to_owned();
        config.twilio.whatsapp_from = "+15005550006".to_owned();
        config.twilio.whatsapp_content_sid = format!("HX{}", "0".repeat(32));
        config.twilio.callback_url = CALLBACK_URL.to_owned();
        config.twilio.base_url.clone_from(&base);
        config.slack.bot_token = "xoxb-1".to_owned().into();
        config.slack.signing_secret = SIGNING_SECRET.to_owned().into();
        config.slack.base_url = base;
        config.resend.webhook_secret = WEBHOOK_SECRET.to_owned().into();
    }

    pub(crate) fn twilio_is(&self, mood: Mood) {
        *self.twilio.lock().unwrap() = mood;
    }

    /// The texts that numbers and members were sent, oldest first.
    pub(crate) fn told(&self, to: &str) -> Vec<String> {
        self.asked.lock().unwrap().iter().filter(|(known, _)| known == to).map(|(_, text)| text.clone()).collect()
    }

    async fn serve(&self, stream: TcpStream) -> std::io::Result<()> {
        let mut stream = BufReader::new(stream);
        loop {
            let (mut line, mut length) = (String::new(), 0);
            if stream.read_line(&mut line).await? == 0 {
                return Ok(());
            }
            loop {
                let mut header = String::new();
                stream.read_line(&mut header).await?;
                let Some((name, value)) = header.trim_end().split_once(": ") else { break };
                if name.eq_ignore_ascii_case("content-length") {
                    length = value.parse().unwrap_or(0);
                }
            }
            let mut body = vec![0; length];
            stream.read_exact(&mut body).await?;
            let mood = *self.twilio.lock().unwrap();
            match mood {
                Mood::Away if line.contains("/Messages.json") => {
                    stream.write_all(b"HTTP/1.1 429 Too Many Requests\r\nContent-Length: 0\r\n\r\n").await?;
                    continue;
                }
                Mood::Refuses(code) if line.contains("/Messages.json") => {
                    let fault = json!({"code": code, "message": "m", "status": 400}).to_string();
                    let head = format!("HTTP/1.1 400 Bad Request\r\nContent-Length: {}\r\n\r\n{fault}", fault.len());
                    stream.write_all(head.as_bytes()).await?;
                    continue;
                }
                Mood::Cuts if line.contains("/Messages.json") => {
                    if line.starts_with("POST") {
                        self.take(&line, &body);
                    }
                    return Ok(());
                }
                _ => {}
            }
            let answer = self.take(&line, &body);
            let head = format!(
                "HTTP/1.1 201 Created\r\nContent-Type: application/json\r\nContent-Length: {}\r\n\r\n",
                answer.len()
            );
            stream.write_all(format!("{head}{answer}").as_bytes()).await?;
        }
    }

    fn take(&self, line: &str, body: &[u8]) -> String {
        let (to, text, answer) = if line.contains("/Messages.json") {
            let form: HashMap<_, _> = url::form_urlencoded::parse(body).into_owned().collect();
            (form["To"].clone(), said(&form), json!({"sid": "SM1", "status": "queued"}))
        } else {
            let post: Value = serde_json::from_slice(body).unwrap();
            let to = post["channel"].as_str().unwrap_or_default().to_owned();
            (to, post["text"].to_string(), json!({"ok": true, "channel": "C1", "ts": "1.2"}))
        };
        self.asked.lock().unwrap().push((to, text));
        answer.to_string()
    }
}

/// A text, or a template with its variables.
fn said(form: &HashMap<String, String>) -> String {
    form.get("Body").cloned().unwrap_or_else(|| format!("template {}", form["ContentVariables"]))
}

impl World {
    /// A provider's report, which must be taken.
    async fn report(&self, provider: &str, query: &str, headers: &[(&str, String)], body: String) {
        let header = |(name, value): &(&str, String)| CallbackHeader {
            name: (*name).to_owned(),
            value: value.clone().into_bytes().into(),
        };
        let request = ReceiveCallbackRequest {
            provider: provider.to_owned(),
            query: query.to_owned(),
            handshake: false,
            headers: headers.iter().map(header).collect(),
            body: body.into(),
        };
        let gateway = Peer::new("gateway", &format!("http://{}", self.address), &self.chassis).unwrap();
        let answer = CallbackServiceClient::new(gateway.channel()).receive_callback(request).await.unwrap();
        assert_eq!(answer.into_inner().result(), CallbackResult::Taken, "{provider}");
    }

    /// What became of a mail, as Resend says it; `id` names the report.
    pub(crate) async fn resend_reports(&self, id: &str, kind: &str, message: &str) {
        let data = json!({
            "email_id": "1", "to": ["somebody@example.org"], "tags": {"message": message}, "bounce": {"type": "Permanent"},
        });
        let body = json!({"type": kind, "created_at": "2026-05-01T12:00:00Z", "data": data}).to_string();
        let now = self.chassis.clock.now().as_second();
        let signature = sign(id, now, body.as_bytes(), &[WebhookSecret::parse(WEBHOOK_SECRET).unwrap()]);
        let headers = [("svix-id", id.to_owned()), ("svix-timestamp", now.to_string()), ("svix-signature", signature)];
        self.report("resend", "", &headers, body).await;
    }

    /// What became of a text, or what somebody wrote, as Twilio says it.
    pub(crate) async fn twilio_reports(&self, message: &str, fields: &[(&str, &str)]) {
        let query = if message.is_empty() { String::new() } else { format!("message={message}") };
        let mut sorted = fields.to_vec();
        sorted.sort_unstable();
        let said: String = sorted.iter().flat_map(|(name, value)| [*name, *value]).collect();
        let mark = if query.is_empty() { "" } else { "?" };
        let key = ring::hmac::Key::new(ring::hmac::HMAC_SHA1_FOR_LEGACY_USE_ONLY, TOKEN.as_bytes());
        let signature = ring::hmac::sign(&key, format!("{CALLBACK_URL}{mark}{query}{said}").as_bytes());
        let headers = [("x-twilio-signature", BASE64_STANDARD.encode(signature))];
        let body = url::form_urlencoded::Serializer::new(String::new()).extend_pairs(fields).finish();
        self.report("twilio", &query, &headers, body).await;
    }

    /// A button that was pressed, as Slack says it.
    pub(crate) async fn slack_button(&self, by: &str, message: &str) {
        let action = json!({"action_id": "acknowledge", "type": "button", "value": message, "action_ts": "1.2"});
        let payload = json!({"type": "block_actions", "user": {"id": by}, "actions": [action]}).to_string();
        let body = url::form_urlencoded::Serializer::new(String::new()).append_pair("payload", &payload).finish();
        let now = self.chassis.clock.now().as_second();
        let signature = hex_sign(SIGNING_SECRET.as_bytes(), format!("v0:{now}:{body}").as_bytes());
        let headers =
            [("x-slack-request-timestamp", now.to_string()), ("x-slack-signature", format!("v0={signature}"))];
        self.report("slack", "", &headers, body).await;
    }
}
