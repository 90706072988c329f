//! Clients that are not ours: the public webhook libraries of Python and Node judge our signatures, and a Python client
//! generated from the protos publishes, consumes and asks for health.
//!
//! The interpreters come from `make test`; without them these tests say that they are skipped.

mod payload;

use std::{collections::BTreeMap, process::Stdio, time::Duration};

use base64::{Engine as _, prelude::BASE64_STANDARD};
use chassis::signature::{WebhookSecret, hex_sign, sign};
use jiff::Timestamp;
use proto::{
    router::v1::{Content, Event, PublishRequest, event::Payload, event_service_client::EventServiceClient},
    vendorsync::v1::{
        CreateEndpointRequest, Endpoint, RotateEndpointSecretRequest, endpoint_service_client::EndpointServiceClient,
    },
};
use serde_json::{Value, json};
use tokio::{
    io::{AsyncBufReadExt as _, AsyncWriteExt as _, BufReader},
    process::Command,
    time::timeout,
};
use tonic::{service::interceptor::InterceptedService, transport::Channel};

use self::payload::payloads;
use super::harness::{Engine, Key, Receiver, Wedsync, client, provided, root};

const FOREIGN_PATIENCE: Duration = Duration::from_secs(180);

/// A signed webhook as a receiver has it, and which part of it (if any) was changed on the way.
#[derive(Debug, Clone)]
struct Message {
    secret: String,
    headers: BTreeMap<String, String>,
    body: Vec<u8>,
    altered: &'static str,
}

impl Message {
    /// Signed here and now by the module that signs all our webhooks.
    fn signed(number: usize, body: Vec<u8>) -> Self {
        let (secret, second) = (WebhookSecret::generate(), WebhookSecret::generate());
        let (id, timestamp) = (format!("msg_{number}"), now());
        // Every third one as during a rotation: the receiver may know either secret.
        let secrets = if number.is_multiple_of(3) { vec![second, secret.clone()] } else { vec![secret.clone()] };
        let headers = [
            ("webhook-signature", sign(&id, timestamp, &body, &secrets)),
            ("webhook-id", id),
            ("webhook-timestamp", timestamp.to_string()),
            ("x-wedsync-signature", hex_sign(secret.expose().as_bytes(), &body)),
        ];
        let headers = headers.into_iter().map(|(name, value)| (name.to_owned(), value)).collect();
        Self { secret: secret.expose().to_owned(), headers, body, altered: "" }
    }

    /// The same message with one part changed, for each part that a signature covers.
    fn alterations(&self) -> [Self; 5] {
        let mut all =
            ["body", "id", "timestamp", "signature", "secret"].map(|altered| Self { altered, ..self.clone() });
        let [body, id, timestamp, signature, secret] = &mut all;
        body.body.push(b' ');
        id.set("webhook-id", |id| format!("{id}0"));
        timestamp.set("webhook-timestamp", |seconds| (seconds.parse::<i64>().expect("a number") - 1).to_string());
        signature.set("webhook-signature", |_| format!("v1,{}", BASE64_STANDARD.encode([7; 32])));
        secret.secret = WebhookSecret::generate().expose().to_owned();
        all
    }

    fn set(&mut self, name: &str, change: impl FnOnce(&str) -> String) {
        let value = self.headers.get_mut(name).expect("the header is there");
        *value = change(value);
    }

    fn line(&self) -> String {
        let body = BASE64_STANDARD.encode(&self.body);
        let Self { secret, headers, altered, .. } = self;
        json!({ "secret": secret, "headers": headers, "body_base64": body, "altered": altered }).to_string() + "\n"
    }
}

fn now() -> i64 {
    #[expect(clippy::disallowed_methods, reason = "the public libraries compare with the machine's clock")]
    Timestamp::now().as_second()
}

fn python(script: &str) -> Option<Command> {
    let mut command = Command::new(provided("WEDSYNC_TEST_PYTHON")?);
    command.arg(root().join("tests/foreign").join(script)).env("PYTHONDONTWRITEBYTECODE", "1").kill_on_drop(true);
    Some(command)
}

fn node(script: &str) -> Option<Command> {
    provided("WEDSYNC_TEST_NODE_MODULES")?;
    let mut command = Command::new("node");
    command.arg(root().join("tests/foreign").join(script)).kill_on_drop(true);
    Some(command)
}

/// Runs a program on `input`, which must end well, and gives the JSON that it prints.
async fn report(mut command: Command, input: String) -> Value {
    command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped());
    let mut child = command.spawn().expect("the program is there");
    let mut stdin = child.stdin.take().expect("it was asked for");
    let write = async move { stdin.write_all(input.as_bytes()).await };
    let both = timeout(FOREIGN_PATIENCE, async { tokio::join!(write, child.wait_with_output()) });
    let (written, output) = both.await.expect("it ends in time");
    let output = output.expect("it ran");
    let (out, err) = (String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr));
    assert!(output.status.success() && written.is_ok(), "{command:?}: {}\n{out}\n{err}", output.status);
    serde_json::from_str(&out).unwrap_or_else(|_| panic!("it printed no JSON: {out}"))
}

/// Has every public library verify `messages`, and refuse each of their alterations.
async fn verify_everywhere(messages: &[Message]) {
    let all = messages.iter().flat_map(|message| [message.clone()].into_iter().chain(message.alterations()));
    let input: String = all.map(|message| message.line()).collect();
    for command in [python("verify.py"), node("verify.mjs")].into_iter().flatten() {
        let counts = report(command, input.clone()).await;
        println!("{counts}");
        for library in ["standardwebhooks", "svix"] {
            assert_eq!(counts[library]["verified"], messages.len(), "{library}");
            assert_eq!(counts[library]["refused"], messages.len() * 5, "{library}");
        }
    }
}

#[tokio::test]
async fn the_public_libraries_verify_what_we_sign_and_refuse_what_was_changed() {
    let messages = payloads(500).into_iter().enumerate();
    let messages: Vec<_> = messages.map(|(number, body)| Message::signed(number, body.into_bytes())).collect();
    verify_everywhere(&messages).await;
}

/// An organization's endpoint that listens to everything, and what its owner can do with it.
struct Subscription {
    receiver: Receiver,
    events: EventServiceClient<InterceptedService<Channel, Key>>,
    endpoints: EndpointServiceClient<InterceptedService<Channel, Key>>,
    id: String,
    secret: String,
}

impl Subscription {
    async fn start(system: &Wedsync) -> Self {
        let key = system.tenant("Foreign").await;
        let receiver = Receiver::start().await;
        let mut endpoints = EndpointServiceClient::new(client(system.addresses.vendor_sync, &key));
        let endpoint = Endpoint {
            url: receiver.url(),
            event_types: vec!["*".to_owned()],
            rate_limit_per_minute: 100_000,
            ..Endpoint::default()
        };
        let request = CreateEndpointRequest { endpoint: Some(endpoint) };
        let created = endpoints.create_endpoint(request).await.expect("an endpoint").into_inner();
        let id = created.endpoint.expect("the answer holds it").id;
        let events = EventServiceClient::new(client(system.addresses.router, &key));
        Self { receiver, events, endpoints, id, secret: created.secret }
    }

    async fn publish(&mut self, id: &str, data: &str) {
        let event = Event {
            id: id.to_owned(),
            r#type: "contact.bounced".to_owned(),
            source: "foreign".to_owned(),
            payload: Some(Payload::Content(Content {
                content_type: String::new(),
                data: data.as_bytes().to_vec().into(),
            })),
            ..Event::default()
        };
        self.events.publish(PublishRequest { event: Some(event) }).await.expect("it is stored");
    }

    /// The next delivery, as a receiver has it that knows `secret`.
    async fn next(&mut self, secret: &str) -> Message {
        let received = self.receiver.next().await;
        Message { secret: secret.to_owned(), headers: received.headers, body: received.body.to_vec(), altered: "" }
    }

    async fn rotate(&mut self) -> String {
        let request = RotateEndpointSecretRequest { id: self.id.clone(), overlap: None };
        self.endpoints.rotate_endpoint_secret(request).await.expect("a new secret").into_inner().secret
    }
}

#[tokio::test]
async fn the_public_libraries_verify_what_really_arrives() {
    let system = Wedsync::start().await;
    let mut subscription = Subscription::start(&system).await;
    let bodies = payloads(100);
    for (number, body) in bodies.iter().enumerate() {
        subscription.publish(&format!("noted-{number}"), body).await;
    }
    let secret = subscription.secret.clone();
    let mut messages = Vec::new();
    for _ in &bodies {
        messages.push(subscription.next(&secret).await);
    }
    let ids: std::collections::BTreeSet<_> = messages.iter().map(|message| &message.headers["webhook-id"]).collect();
    assert_eq!(ids.len(), bodies.len(), "each event has an id of its own");
    assert!(ids.iter().all(|id| id.starts_with("msg_")), "{ids:?}");
    let sent: Vec<Value> = sorted(bodies.iter().map(|body| serde_json::from_str(body).expect("JSON")));
    let arrived = messages.iter().map(|message| serde_json::from_slice::<Value>(&message.body).expect("JSON"));
    assert_eq!(sorted(arrived.map(|mut body| body["data"].take())), sent, "the data arrived as it was published");
    verify_everywhere(&messages).await;
}

fn sorted(values: impl Iterator<Item = Value>) -> Vec<Value> {
    let mut values: Vec<_> = values.collect();
    values.sort_by_cached_key(Value::to_string);
    values
}

#[tokio::test]
async fn while_a_secret_rotates_receivers_with_either_one_believe_us() {
    let system = Wedsync::start().await;
    let mut subscription = Subscription::start(&system).await;
    let (old, new) = (subscription.secret.clone(), subscription.rotate().await);
    subscription.publish("after-the-rotation", "{}").await;
    let with_new = subscription.next(&new).await;
    assert_eq!(with_new.headers["webhook-signature"].split(' ').count(), 2);
    let mut with_old = Message { secret: old, ..with_new.clone() };
    // It has one signature only, and that is the newest secret's.
    with_old.headers.remove("x-wedsync-signature");
    verify_everywhere(&[with_new, with_old]).await;
}

#[tokio::test]
async fn a_generated_python_client_misses_nothing_and_gets_nothing_again_that_it_acknowledged() {
    for engine in Engine::all() {
        let Some(mut command) = python("client.py") else { return };
        let system = Wedsync::start_on(&engine, &[]).await;
        let key = system.tenant("Python").await;
        let address = system.addresses.router.to_string();
        command.args(["events", "--events", "300", "--address", &address, "--token", &key.0]);
        let result = report(command, String::new()).await;
        println!("{engine:?}: {result}");
        assert_eq!(result["published"], 300);
    }
}

#[tokio::test]
async fn a_python_client_finds_every_service_healthy_by_name() {
    let system = Wedsync::start().await;
    let all = system.addresses;
    for (address, package) in [(all.router, "router"), (all.vendor_sync, "vendorsync"), (all.notifier, "notifier")] {
        let Some(mut command) = python("client.py") else { return };
        command.args(["health", "--address", &address.to_string(), "--package", package]);
        println!("{}", report(command, String::new()).await);
    }
}

#[tokio::test]
async fn whoever_watches_health_sees_the_drain_before_the_end() {
    let mut system = Wedsync::start().await;
    let Some(mut command) = python("client.py") else { return };
    command.args(["health", "--watch", "--address", &system.addresses.router.to_string()]).stdout(Stdio::piped());
    let mut watcher = command.spawn().expect("the program is there");
    let mut lines = BufReader::new(watcher.stdout.take().expect("it was asked for")).lines();
    let mut next = async || timeout(FOREIGN_PATIENCE, lines.next_line()).await.expect("in time").expect("a pipe");
    assert_eq!(next().await.as_deref(), Some("SERVING"));
    let status = system.stop().await;
    assert!(status.success(), "{status}: the stop was not clean:\n{}", system.log());
    assert_eq!(next().await.as_deref(), Some("NOT_SERVING"));
    assert!(next().await.is_some_and(|line| line.starts_with("ENDED")), "the stream ends with the process");
}
