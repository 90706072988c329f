//! gRPC and HTTP on one port, and calls to other services.
//!
//! Every call passes [`rpc`]: a span in the caller's trace, credentials, a deadline, a net for panics, metrics. Nothing
//! is served that the access table doesn't mention, but for health and reflection. `GET /healthz`, `/readyz` and
//! `/metrics` stand beside it, with what a service adds by [`Server::http`] (WebSockets included, which is why the
//! connections are served here and not by tonic, whose server can't upgrade them).
//!
//! On a stop the listener closes, connections get GOAWAY, calls finish, and streams end with UNAVAILABLE.

mod client;
mod connection;
mod local;
mod reflection;
mod rpc;

use std::{collections::HashMap, net::SocketAddr, sync::Arc};

use anyhow::{Context as _, Result, bail, ensure};
use axum::{Router, extract::State, http::StatusCode, middleware, response::IntoResponse, routing::get};
use prost::Message as _;
use tokio::net::TcpListener;
use tonic::{server::NamedService, service::Routes};

pub use self::client::{Connection, Credentials, Peer, is_loopback};
pub(crate) use self::local::Local;
use self::local::Serving;
use crate::{
    auth::{Access, AccessTable, Authenticator, Gate},
    health::Health,
    service::Chassis,
    telemetry,
};

/// How large a message may be in either direction: 4 MiB and what it is wrapped in. Servers and clients set it with
/// `max_decoding_message_size` and `max_encoding_message_size`.
pub const MESSAGE_LIMIT: usize = 4 * 1024 * 1024 + 64 * 1024;

/// Open to everybody.
const OPEN: AccessTable = &[
    ("/grpc.health.v1.Health/Check", Access::Open),
    ("/grpc.health.v1.Health/Watch", Access::Open),
    (reflection::V1, Access::Open),
    (reflection::V1ALPHA, Access::Open),
];

/// One listening port of one service, while it is put together.
pub struct Server {
    name: &'static str,
    listener: TcpListener,
    local: Serving,
    address: SocketAddr,
    chassis: Chassis,
    health: Health,
    authenticator: Option<Arc<dyn Authenticator>>,
    access: HashMap<&'static str, Access>,
    services: Vec<&'static str>,
    routes: Routes,
    http: Router,
}

/// A server that answers, until the chassis drains.
#[derive(Debug, Clone)]
pub struct Running {
    /// Where it listens; the port is a real one even if 0 was asked for.
    pub address: SocketAddr,
    /// Where its services and what they depend on are reported.
    pub health: Health,
}

impl Server {
    /// Takes the port. Callers wait in its queue until [`Server::serve`].
    ///
    /// # Errors
    /// The port is in use or not ours to take; plaintext beyond loopback without `[server] allow_plaintext`.
    pub async fn bind(name: &'static str, listen: SocketAddr, chassis: &Chassis) -> Result<Self> {
        let section = name.replace('-', "_");
        ensure!(
            listen.ip().is_loopback() || chassis.shared.server.allow_plaintext,
            "{listen} of {name} is beyond loopback and not encrypted: set [{section}] listen, or [server] allow_plaintext \
             if a mesh or an ingress encrypts"
        );
        let listener = match TcpListener::bind(listen).await {
            Ok(listener) => listener,
            Err(error) if error.kind() == std::io::ErrorKind::AddrInUse => {
                bail!("port {} of {name} is in use: set [{section}] listen", listen.port())
            }
            Err(error) => return Err(error).with_context(|| format!("listen on {listen}: set [{section}] listen")),
        };
        let address = listener.local_addr()?;
        let (health, access) = (chassis.health(), OPEN.iter().copied().collect());
        let (routes, http) = (Routes::from(Router::new()), Router::new());
        Ok(Self {
            name,
            listener,
            local: chassis.local().serves(address),
            address,
            chassis: chassis.clone(),
            health,
            authenticator: None,
            access,
            services: Vec::new(),
            routes,
            http,
        })
    }

    /// Where it listens.
    #[must_use]
    pub fn address(&self) -> SocketAddr {
        self.address
    }

    /// Where the service reports what it depends on.
    #[must_use]
    pub fn health(&self) -> &Health {
        &self.health
    }

    /// Asks `authenticator` about credentials that aren't a service's.
    #[must_use]
    pub fn authenticator(mut self, authenticator: Arc<dyn Authenticator>) -> Self {
        self.authenticator = Some(authenticator);
        self
    }

    /// What the methods ask for; those that no table mentions are denied to all.
    #[must_use]
    pub fn access(mut self, table: AccessTable) -> Self {
        self.access.extend(table.iter().copied());
        self
    }

    /// Serves one gRPC service.
    #[expect(clippy::should_implement_trait, reason = "it adds a service, no number")]
    #[must_use]
    pub fn add<S>(mut self, service: S) -> Self
    where
        S: tower::Service<http::Request<tonic::body::Body>, Error = std::convert::Infallible>
            + NamedService
            + Clone
            + Send
            + Sync
            + 'static,
        S::Response: IntoResponse,
        S::Future: Send + 'static,
    {
        self.services.push(S::NAME);
        self.routes = self.routes.add_service(service);
        self
    }

    /// Serves plain HTTP beside gRPC. These routes look after their own credentials; the peer's address is in
    /// `ConnectInfo<SocketAddr>`.
    #[must_use]
    pub fn http(mut self, routes: Router) -> Self {
        self.http = self.http.merge(routes);
        self
    }

    /// Answers calls from here on.
    #[must_use]
    pub fn serve(self) -> Running {
        let mut routes = self.routes.add_service(self.health.server()).into_axum_router();
        if self.chassis.shared.server.reflection {
            routes = routes.merge(reflection::routes(self.services.clone()));
        }
        let gate = Gate { tokens: self.chassis.tokens.clone(), authenticator: self.authenticator };
        let calls = rpc::Calls::new(gate, &self.access, &self.chassis);
        let grpc = routes.route_layer(middleware::from_fn_with_state(Arc::new(calls), rpc::rpc));
        let app = self.http.merge(operations(self.health.clone())).merge(grpc);
        for service in &self.services {
            self.health.set_serving(service, true);
        }
        connection::accept(self.listener, self.local, app, &self.chassis);
        tracing::info!(service = self.name, address = %self.address, "listening");
        Running { address: self.address, health: self.health }
    }
}

fn operations(health: Health) -> Router {
    Router::new()
        .route("/healthz", get(async || "ok\n"))
        .route("/readyz", get(readyz))
        .route("/metrics", get(async || ([("content-type", "text/plain; version=0.0.4")], telemetry::render())))
        .with_state(health)
}

async fn readyz(State(health): State<Health>) -> (StatusCode, String) {
    match health.ready() {
        Ok(()) => (StatusCode::OK, "ready\n".to_owned()),
        Err(reasons) => (StatusCode::SERVICE_UNAVAILABLE, reasons.join("\n") + "\n"),
    }
}

/// One method of a service that some descriptors describe.
pub(crate) struct Rpc {
    pub(crate) path: String,
    pub(crate) streams: bool,
}

/// Every method in an encoded `FileDescriptorSet`.
pub(crate) fn rpcs(descriptors: &[u8]) -> Vec<Rpc> {
    let set = described::Files::decode(descriptors).expect("descriptors are compiled in");
    let mut rpcs = Vec::new();
    for file in &set.file {
        for service in &file.service {
            rpcs.extend(service.method.iter().map(|method| Rpc {
                path: format!("/{}.{}/{}", file.package, service.name, method.name),
                streams: method.server_streaming,
            }));
        }
    }
    rpcs
}

/// What names methods in google/protobuf/descriptor.proto: all of it, comments included, would be megabytes.
mod described {
    #[derive(prost::Message)]
    pub(super) struct Files {
        #[prost(message, repeated, tag = "1")]
        pub(super) file: Vec<File>,
    }

    #[derive(prost::Message)]
    pub(super) struct File {
        #[prost(string, tag = "2")]
        pub(super) package: String,
        #[prost(message, repeated, tag = "6")]
        pub(super) service: Vec<Service>,
    }

    #[derive(prost::Message)]
    pub(super) struct Service {
        #[prost(string, tag = "1")]
        pub(super) name: String,
        #[prost(message, repeated, tag = "2")]
        pub(super) method: Vec<Method>,
    }

    #[derive(prost::Message)]
    pub(super) struct Method {
        #[prost(string, tag = "1")]
        pub(super) name: String,
        #[prost(bool, tag = "6")]
        pub(super) server_streaming: bool,
    }
}

#[cfg(test)]
pub(crate) mod tests;
