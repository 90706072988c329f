//! A webhook receiver on loopback that answers as it is told and keeps every request as it came.

use std::{
    collections::VecDeque,
    net::SocketAddr,
    sync::{Arc, Mutex},
};

use axum::{
    Router,
    body::Bytes,
    extract::State,
    http::{HeaderMap, StatusCode, header::RETRY_AFTER},
    response::{IntoResponse as _, Response},
    routing::post,
};
use chassis::signature::hex_verify;
use serde_json::Value;
use standardwebhooks::Webhook;
use tokio::{
    net::TcpListener,
    sync::mpsc::{UnboundedReceiver, UnboundedSender, unbounded_channel},
    task::JoinSet,
    time::timeout,
};

use crate::harness::PATIENCE;

/// One request, byte for byte.
#[derive(Debug, Clone)]
pub(super) struct Received {
    pub(super) headers: HeaderMap,
    pub(super) body: Bytes,
}

impl Received {
    /// A header that every webhook has.
    pub(super) fn header(&self, name: &str) -> &str {
        let value = self.headers.get(name).unwrap_or_else(|| panic!("the header {name} is there: {self:?}"));
        value.to_str().expect("our headers are ASCII")
    }

    pub(super) fn webhook_id(&self) -> &str {
        self.header("webhook-id")
    }

    pub(super) fn source(&self) -> &str {
        self.header("x-wedsync-source")
    }

    pub(super) fn json(&self) -> Value {
        serde_json::from_slice(&self.body).expect("a JSON body")
    }

    /// The idempotency key of the event that it tells of.
    pub(super) fn event_id(&self) -> String {
        self.json()["metadata"]["eventId"].as_str().expect("every standard body names its event").to_owned()
    }

    /// Whether a receiver that knows only `secret` believes it, by the public library.
    pub(super) fn verifies_with(&self, secret: &str) -> bool {
        let webhook = Webhook::new(secret).expect("a secret as it is shown");
        webhook.verify(&self.body, &self.headers).is_ok()
    }

    /// Whether its one hex signature is by `secret`.
    pub(super) fn is_hex_signed_with(&self, secret: &str) -> bool {
        hex_verify(secret.as_bytes(), &self.body, self.header("x-wedsync-signature"))
    }
}

/// The receiver; it ends when it is dropped.
pub(super) struct Receiver {
    address: SocketAddr,
    received: UnboundedReceiver<Received>,
    script: Arc<Mutex<Script>>,
    _server: JoinSet<()>,
}

/// What it answers: first these, one each, and from then on the last one.
struct Script {
    first: VecDeque<u16>,
    then: u16,
}

struct Shared {
    sender: UnboundedSender<Received>,
    script: Arc<Mutex<Script>>,
}

impl Receiver {
    /// Listens on a free port, and answers 200.
    pub(super) async fn start() -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.expect("a free port");
        let address = listener.local_addr().expect("it is bound");
        let (sender, received) = unbounded_channel();
        let script = Arc::new(Mutex::new(Script { first: VecDeque::new(), then: 200 }));
        let shared = Arc::new(Shared { sender, script: script.clone() });
        let app = Router::new().route("/webhook", post(receive)).with_state(shared);
        let mut server = JoinSet::new();
        server.spawn(async move { axum::serve(listener, app).await.expect("it serves until it is dropped") });
        Self { address, received, script, _server: server }
    }

    /// What an endpoint is created with.
    pub(super) fn url(&self) -> String {
        format!("http://{}/webhook", self.address)
    }

    /// From now on answers `first`, one each, and then always `then`.
    pub(super) fn answer(&self, first: &[u16], then: u16) {
        *self.script.lock().expect("no holder panics") = Script { first: first.iter().copied().collect(), then };
    }

    /// The next request.
    pub(super) async fn next(&mut self) -> Received {
        let next = timeout(PATIENCE, self.received.recv()).await.expect("a webhook arrives in time");
        next.expect("the receiver runs")
    }

    /// The next `count` requests.
    pub(super) async fn several(&mut self, count: usize) -> Vec<Received> {
        let mut several = Vec::with_capacity(count);
        for _ in 0..count {
            several.push(self.next().await);
        }
        several
    }

    /// Fails if a request has come that wasn't taken by [`Receiver::next`].
    pub(super) fn has_nothing_more(&mut self) {
        if let Ok(received) = self.received.try_recv() {
            panic!("nothing more was due, but this came: {received:?}");
        }
    }
}

async fn receive(State(shared): State<Arc<Shared>>, headers: HeaderMap, body: Bytes) -> Response {
    let status = {
        let mut script = shared.script.lock().expect("no holder panics");
        script.first.pop_front().unwrap_or(script.then)
    };
    // The test may have seen enough and gone.
    let _ = shared.sender.send(Received { headers, body });
    let said = format!("answered {status}");
    let status = StatusCode::from_u16(status).expect("a status");
    match status {
        StatusCode::TOO_MANY_REQUESTS => (status, [(RETRY_AFTER, "1")], said).into_response(),
        status => (status, said).into_response(),
    }
}
