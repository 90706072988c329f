//! A webhook receiver on loopback: keeps every request as it came and answers 200.

use std::{collections::BTreeMap, net::SocketAddr};

use axum::{Router, body::Bytes, extract::State, http::HeaderMap, routing::post};
use tokio::{
    net::TcpListener,
    sync::mpsc::{UnboundedReceiver, UnboundedSender, unbounded_channel},
    task::JoinSet,
    time::timeout,
};

use super::PATIENCE;

/// One request, byte for byte.
#[derive(Debug, Clone)]
pub(crate) struct Received {
    /// Names in lower case.
    pub(crate) headers: BTreeMap<String, String>,
    pub(crate) body: Bytes,
}

/// The receiver; it ends when it is dropped.
pub(crate) struct Receiver {
    address: SocketAddr,
    received: UnboundedReceiver<Received>,
    _server: JoinSet<()>,
}

impl Receiver {
    /// Listens on a free port.
    pub(crate) async fn start() -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.expect("a free port");
        let address = listener.local_addr().expect("it is bound");
        let (sender, received) = unbounded_channel();
        let app = Router::new().route("/webhook", post(receive)).with_state(sender);
        let mut server = JoinSet::new();
        server.spawn(async move { axum::serve(listener, app).await.expect("it serves until it is dropped") });
        Self { address, received, _server: server }
    }

    /// What an endpoint is created with.
    pub(crate) fn url(&self) -> String {
        format!("http://{}/webhook", self.address)
    }

    /// The next request.
    pub(crate) async fn next(&mut self) -> Received {
        let next = timeout(PATIENCE, self.received.recv()).await.expect("a webhook arrives in time");
        next.expect("the receiver runs")
    }
}

async fn receive(State(sender): State<UnboundedSender<Received>>, headers: HeaderMap, body: Bytes) {
    let text = |(name, value): (&axum::http::HeaderName, &axum::http::HeaderValue)| {
        (name.to_string(), String::from_utf8_lossy(value.as_bytes()).into_owned())
    };
    // The test may have seen enough and gone.
    let _ = sender.send(Received { headers: headers.iter().map(text).collect(), body });
}
