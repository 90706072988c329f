//! The HTTP edge: vendors' webhooks in, what people's browsers and scripts ask for over HTTP, and what happens, live.
//!
//! It holds no rule and no database. Requests are bounded here and turned into calls; the services behind decide, in the
//! caller's own name where it shows an API key. `routes` is the whole surface, `edge` what happens around each request.

mod address;
mod body;
mod callbacks;
mod channel_config;
mod delivery_status;
mod edge;
mod health;
mod integration_health;
mod key;
mod limit;
mod links;
mod oauth;
mod openapi;
mod peers;
mod problem;
mod realtime;
mod routes;
mod slots;
mod webhooks;
mod wire;

use std::{net::SocketAddr, sync::Arc};

use anyhow::{Result, ensure};
use chassis::{
    grpc::{MESSAGE_LIMIT, Server},
    health::Health,
    service::Chassis,
};
use serde::{Deserialize, Serialize};

pub use self::realtime::RealtimeConfig;
use self::{callbacks::Callbacks, edge::Edge, oauth::Dashboard, peers::Peers, realtime::Realtime, webhooks::Webhooks};

/// `[gateway]`
#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Config {
    /// Where HTTP, and gRPC's health, is served; default `127.0.0.1:7400`.
    pub listen: SocketAddr,
    /// Where the router is; default `http://127.0.0.1:7410`.
    pub router: String,
    /// Where vendor-sync is; default `http://127.0.0.1:7420`.
    pub vendor_sync: String,
    /// Where the notifier is; default `http://127.0.0.1:7430`.
    pub notifier: String,
    /// Where a browser goes once an account was connected, with `integration` and `result`; default empty: a plain page.
    pub dashboard_url: String,
    /// Networks in CIDR notation whose `X-Forwarded-For` is believed. Default: none.
    pub trusted_proxies: Vec<String>,
    /// How many requests one address (an IPv6 /64) may send a minute, whoever it is; at most 60,000,000, default 6,000.
    pub requests_per_minute: u32,
    /// How many of them may come at once; default 1,000.
    pub request_burst: u32,
    /// How many requests are worked on at a time, from all addresses; more are answered 503. One address has an eighth of
    /// them, and is answered 429 beyond it. Default 512.
    pub max_requests_in_flight: u32,
    /// How long a request may take, in milliseconds; default 10,000.
    pub request_timeout_ms: u64,
    /// How long a request's body may take to arrive, in milliseconds; default 5,000.
    pub body_timeout_ms: u64,
    /// Live subscriptions of browsers.
    pub realtime: RealtimeConfig,
}

impl Default for Config {
    fn default() -> Self {
        Self {
            listen: SocketAddr::from(([127, 0, 0, 1], 7400)),
            router: "http://127.0.0.1:7410".to_owned(),
            vendor_sync: "http://127.0.0.1:7420".to_owned(),
            notifier: "http://127.0.0.1:7430".to_owned(),
            dashboard_url: String::new(),
            trusted_proxies: Vec::new(),
            requests_per_minute: 6_000,
            request_burst: 1_000,
            max_requests_in_flight: 512,
            request_timeout_ms: 10_000,
            body_timeout_ms: 5_000,
            realtime: RealtimeConfig::default(),
        }
    }
}

/// The gateway, while it runs.
#[derive(Debug)]
pub struct Service {
    /// Where it listens; the port is a real one even if 0 was asked for.
    pub address: SocketAddr,
    /// Whether it serves; the services behind it are parts of it.
    pub health: Health,
}

/// What the handlers of all routes share. Cheap to clone.
#[derive(Clone)]
pub(crate) struct Gateway {
    edge: Arc<Edge>,
    peers: Peers,
    webhooks: Webhooks,
    callbacks: Callbacks,
    realtime: Arc<Realtime>,
    /// Where browsers are sent once they have connected an account.
    dashboard: Option<Dashboard>,
}

/// Starts the gateway: it answers when this returns, and is ready once the services behind it serve.
///
/// # Errors
/// Settings that can't hold, or a port that can't be taken.
pub async fn start(config: Config, chassis: &Chassis) -> Result<Service> {
    ensure!(
        !config.realtime.inspector || config.listen.ip().is_loopback(),
        "[gateway.realtime] inspector is for development: [gateway] listen must be on loopback"
    );
    let edge = Arc::new(Edge::new(&config, chassis)?);
    let dashboard = Dashboard::parse(&config.dashboard_url)?;
    let peers = Peers::new(&config, chassis)?;
    let webhooks = Webhooks::new(peers.vendor_sync.separate().channel()).max_decoding_message_size(MESSAGE_LIMIT);
    let callbacks = Callbacks::new(peers.notifier.separate().channel()).max_encoding_message_size(MESSAGE_LIMIT);
    let realtime = Realtime::start(&config.realtime, &peers.router, chassis).await?;
    let server = Server::bind("gateway", config.listen, chassis).await?;
    peers.watch(server.health(), chassis);
    let running =
        server.http(routes::router(Gateway { edge, peers, webhooks, callbacks, realtime, dashboard })).serve();
    Ok(Service { address: running.address, health: running.health })
}
