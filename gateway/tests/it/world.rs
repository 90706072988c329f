//! A gateway, its peers, and clients that speak to it.

use std::{net::SocketAddr, time::Duration};

use chassis::service::Chassis;
use gateway::{Config, Service};
use reqwest::{Client, Method, RequestBuilder, Response};
use serde_json::Value;
use tokio::{
    io::{AsyncReadExt as _, AsyncWriteExt as _},
    net::TcpStream,
    time::timeout,
};

use crate::peers::Peers;

/// Long enough for any machine; nothing waits for it unless it fails.
pub(crate) const PATIENCE: Duration = Duration::from_secs(20);

pub(crate) struct World {
    pub(crate) peers: Peers,
    pub(crate) gateway: Service,
    pub(crate) client: Client,
}

impl World {
    pub(crate) async fn start() -> Self {
        Self::with(|_| {}).await
    }

    pub(crate) async fn with(change: impl FnOnce(&mut Config)) -> Self {
        Self::on(Chassis::for_test(), change).await
    }

    pub(crate) async fn on(chassis: Chassis, change: impl FnOnce(&mut Config)) -> Self {
        let peers = Peers::start().await;
        let mut config = Config {
            listen: SocketAddr::from(([127, 0, 0, 1], 0)),
            router: format!("http://{}", peers.router_address),
            vendor_sync: format!("http://{}", peers.vendor_sync_address),
            notifier: format!("http://{}", peers.notifier_address),
            ..Config::default()
        };
        change(&mut config);
        let gateway = gateway::start(config, &chassis).await.expect("test settings hold");
        Self { peers, gateway, client: client() }
    }

    pub(crate) fn request(&self, method: Method, path: &str) -> RequestBuilder {
        self.client.request(method, format!("http://{}{path}", self.gateway.address))
    }

    pub(crate) fn get(&self, path: &str) -> RequestBuilder {
        self.request(Method::GET, path)
    }

    pub(crate) fn post(&self, path: &str) -> RequestBuilder {
        self.request(Method::POST, path)
    }

    /// Writes `text` on a new connection and reads until the gateway closes it.
    pub(crate) async fn raw(&self, text: &[u8]) -> String {
        let mut stream = TcpStream::connect(self.gateway.address).await.expect("it listens");
        let mut answer = Vec::new();
        let exchange = async {
            // The gateway may answer and close before it has read all.
            drop(stream.write_all(text).await);
            drop(stream.read_to_end(&mut answer).await);
        };
        timeout(PATIENCE, exchange).await.expect("an answer in time");
        String::from_utf8(answer).expect("text")
    }

    /// Waits until `/readyz` has this status.
    pub(crate) async fn until_ready(&self, status: u16) -> String {
        let asking = async {
            loop {
                let answer = self.get("/readyz").send().await.expect("an answer");
                if answer.status() == status {
                    return answer.text().await.expect("text");
                }
                tokio::task::yield_now().await;
            }
        };
        timeout(PATIENCE, asking).await.expect("the state is reached")
    }
}

fn client() -> Client {
    // Fails where another test was first, which is as good.
    drop(rustls::crypto::ring::default_provider().install_default());
    #[expect(clippy::disallowed_methods, reason = "it is the sender here, not a way out of ours")]
    Client::builder()
        .no_proxy()
        .redirect(reqwest::redirect::Policy::none())
        .timeout(PATIENCE)
        .build()
        .expect("a client")
}

/// The problem in an answer, which must be one of this status, in the form that RFC 9457 gives it.
pub(crate) async fn problem(answer: Response, status: u16) -> Value {
    assert_eq!(answer.status(), status);
    assert_eq!(answer.headers()["content-type"], "application/problem+json");
    assert_eq!(answer.headers()["cache-control"], "no-store");
    assert_eq!(answer.headers()["x-content-type-options"], "nosniff");
    let problem: Value = answer.json().await.expect("JSON");
    assert_eq!((&problem["type"], &problem["status"]), (&"about:blank".into(), &status.into()));
    assert!(problem["title"].is_string() && problem["error"].is_string(), "{problem}");
    problem
}
