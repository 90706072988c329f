//! The whole engine against a real HTTP peer on loopback: the peer, and an organization's account at it.

mod answers;
mod lists;
mod quotas;

use std::{
    net::SocketAddr,
    sync::{
        Mutex,
        atomic::{AtomicUsize, Ordering},
    },
    time::Duration,
};

use axum::{Router as Http, body::Body, extract::State as Shared, http::Request as HttpRequest, response::Response};
use bytes::Bytes;
use chassis::{
    config::Secret, id::OrganizationId, outbound::OutboundSettings, secret::DataKeys, service::Chassis, store::Store,
    tasks::Tasks, testing::on_each_engine,
};
use http::HeaderMap;
use serde_json::json;
use tokio::net::TcpListener;

use super::*;
use crate::{
    connector::Class,
    credential::{App, Connections, Kept, Tokens},
    integration::{Kind, tests::settings as settings_of},
};

/// What arrived.
#[derive(Clone, Debug)]
struct Arrived {
    target: String,
    headers: HeaderMap,
    body: Bytes,
}

/// Status, headers, body.
type Said = (u16, Vec<(&'static str, String)>, String);
type Script = dyn Fn(&Arrived) -> Said + Send + Sync;

#[derive(Clone)]
struct Peer {
    address: SocketAddr,
    script: Arc<Script>,
    arrived: Arc<Mutex<Vec<Arrived>>>,
    under_way: Arc<AtomicUsize>,
    most_under_way: Arc<AtomicUsize>,
}

impl Peer {
    async fn start(script: impl Fn(&Arrived) -> Said + Send + Sync + 'static) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.expect("a port");
        let peer = Self {
            address: listener.local_addr().expect("bound"),
            script: Arc::new(script),
            arrived: Arc::default(),
            under_way: Arc::default(),
            most_under_way: Arc::default(),
        };
        let app = Http::new().fallback(answer).with_state(peer.clone());
        Tasks::default().spawn("peer", async move { axum::serve(listener, app).await.expect("it serves") });
        peer
    }

    fn arrived(&self) -> Vec<Arrived> {
        self.arrived.lock().expect("no panic").clone()
    }

    fn last(&self) -> Arrived {
        self.arrived().pop().expect("something arrived")
    }
}

async fn answer(Shared(peer): Shared<Peer>, request: HttpRequest<Body>) -> Response<Body> {
    let under_way = peer.under_way.fetch_add(1, Ordering::SeqCst) + 1;
    peer.most_under_way.fetch_max(under_way, Ordering::SeqCst);
    let (parts, body) = request.into_parts();
    let body = axum::body::to_bytes(body, 1 << 20).await.expect("it is short");
    let arrived = Arrived { target: parts.uri.to_string(), headers: parts.headers, body };
    let (status, headers, body) = (peer.script)(&arrived);
    peer.arrived.lock().expect("no panic").push(arrived);
    // Long enough that calls at the same time meet here.
    tokio::time::sleep(Duration::from_millis(5)).await;
    peer.under_way.fetch_sub(1, Ordering::SeqCst);
    let mut response = Response::builder().status(status);
    for (name, value) in headers {
        response = response.header(name, value);
    }
    response.body(Body::from(body)).expect("well-formed")
}

fn said(status: u16, body: &str) -> Said {
    (status, Vec::new(), body.to_owned())
}

fn loopback() -> OutboundSettings {
    OutboundSettings { allow_networks: vec!["127.0.0.0/8".to_owned()], allow_http: true }
}

/// A caller over a store, with an organization's connector.
struct World {
    caller: Caller,
    catalogue: Catalogue,
    connections: Connections,
    integrations: Integrations,
}

impl World {
    async fn open(store: &Store) -> Self {
        Self::with(store, &loopback(), &Chassis::for_test()).await
    }

    async fn with(store: &Store, settings: &OutboundSettings, chassis: &Chassis) -> Self {
        let keys = DataKeys::new(store.clone(), chassis.keyring().expect("keys"), Clock::System);
        let integrations = Integrations::new(store.clone(), keys.clone(), Clock::System);
        let credentials = crate::sync::tests::with_keys(store, &keys).await.credentials;
        let connections = credentials.connections.clone();
        let catalogue = Catalogue::new(store.clone(), Clock::System);
        let caller = Caller::new(
            catalogue.clone(),
            credentials,
            integrations.clone(),
            Outbound::new(settings).expect("a client"),
            Limits::new(store.clone(), chassis.clock.clone()),
            chassis.clock.clone(),
        );
        Self { caller, catalogue, connections, integrations }
    }

    /// An account of a new connector.
    async fn account(&self, organization: &str, source: &str, kept: &Kept) -> Integration {
        let organization = OrganizationId::parse(organization).expect("an organization");
        if let Err(refused) = self.catalogue.put(&organization, source, 0).await {
            assert!(format!("{refused:?}").contains("Aborted"), "{refused:?}");
        }
        let settings = crate::integration::Settings {
            connector: "test".to_owned(),
            vendor: "test".to_owned(),
            ..settings_of(Kind::Connector)
        };
        let secret = WebhookSecret::generate().expose().to_owned();
        let integration =
            self.integrations.create(organization, settings, &Secret::from(secret)).await.expect("created");
        self.connections.connect(&integration, kept, &BTreeMap::new(), None).await.expect("connected");
        integration
    }
}

async fn on_each_store<F: Future<Output = ()>>(test: impl Fn(Store) -> F) {
    let migrations = &[&chassis::store::MIGRATIONS, &chassis::lane::MIGRATIONS, &crate::MIGRATIONS];
    on_each_engine(migrations, test).await;
}

fn source(peer: &Peer, rest: &str) -> String {
    format!("name = 'test'\ntitle = 'Test'\nkind = 'photography_crm'\nbase_url = 'http://{}/v1'\n{rest}", peer.address)
}

fn key() -> Kept {
    Kept::Key(Secret::from("k 3y&".to_owned()))
}

const SEND: &str = "[operations.send]\nmethod = 'POST'\npath = '/things'\nbody = { name = 'given.name' }\n";

fn given() -> Json {
    json!({"given": {"name": "Ada"}})
}
