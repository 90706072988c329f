//! vendor-sync: everything towards systems. Outbound, signed webhooks to the endpoints that want an event; inbound, what
//! vendors and WedSync's own clients send us. It speaks to no person, and reaches the outside through the guard alone.
//!
//! [`start`] is its table of contents.

mod body;
mod brake;
mod config;
mod configuration;
mod connector;
mod credential;
mod database;
mod deliver;
mod disable;
mod endpoint;
mod event;
mod health;
mod import;
mod inbound;
mod integration;
mod json;
mod letter;
mod manage;
mod matching;
mod notice;
mod oauth;
mod outbox;
mod policy;
mod reconcile;
mod record;
mod replay;
mod resolve;
mod router;
mod rpc;
mod sync;
#[cfg(feature = "testing")]
pub mod testing;
#[cfg(test)]
mod tests;
mod webhook;

use std::{
    collections::BTreeMap,
    net::SocketAddr,
    sync::{Arc, OnceLock},
};

use anyhow::{Context as _, Result};
use chassis::{
    auth::RouterAuthenticator,
    consume,
    grpc::{MESSAGE_LIMIT, Peer, Server},
    lane::{self, Dispatcher},
    outbound::Outbound,
    secret::DataKeys,
    service::Chassis,
    store::{self, Migrations, Store},
};
use proto::vendorsync::v1::{
    connection_service_server::ConnectionServiceServer, delivery_service_server::DeliveryServiceServer,
    endpoint_service_server::EndpointServiceServer, import_service_server::ImportServiceServer,
    integration_health_service_server::IntegrationHealthServiceServer,
    integration_service_server::IntegrationServiceServer, webhook_service_server::WebhookServiceServer,
};
use tokio::sync::{broadcast, mpsc};

pub use self::config::{Config, OAuthClient};
use self::{
    body::Renderer,
    configuration::{Tables, keep::Keeper},
    credential::{App, Connections, Credentials, connect::Connecting, vendor::Declared},
    deliver::Deliver,
    endpoint::book::Book,
    health::{Healths, prober::Prober, view::View},
    import::{store::Imports, work::Worker},
    inbound::Inbound,
    integration::Integrations,
    manage::Endpoints,
    oauth::authorize::Authorizations,
    outbox::Outbox,
    policy::Personal,
    replay::Replays,
    router::Router,
    sync::{Engine, Ground, courier::Couriers},
    webhook::Webhooks,
};

/// Tables of this service.
static MIGRATIONS: Migrations =
    Migrations { sqlite: sqlx::migrate!("./migrations/sqlite"), postgres: sqlx::migrate!("./migrations/postgres") };

/// Changes of integrations that a watcher may be behind by, before it is shown all anew.
const CHANGES: usize = 256;

/// Closings of lanes that wait to be handled.
const CLOSINGS: usize = 256;

/// The running service.
pub struct Service {
    /// Where it listens.
    pub address: SocketAddr,
    /// Its way out: who runs other listeners in this process has them refused here as targets.
    pub outbound: Outbound,
}

/// Starts the service, in the order in which data meets its parts.
///
/// # Errors
/// Settings that can't hold, a port in use, a store that can't be opened.
pub async fn start(config: Config, chassis: &Chassis) -> Result<Service> {
    config.check()?;
    let (clock, tasks) = (chassis.clock.clone(), chassis.tasks.clone());
    let renderer = Renderer::new(personal(&config.personal_columns_file)?);
    let server = Server::bind("vendor-sync", config.listen, chassis).await?;
    let address = server.address();
    let peer = Peer::new("vendor-sync", &config.router, chassis)?;
    let outbound = Outbound::new(&chassis.shared.outbound)?;
    outbound.refuse_own(address);

    let store = Store::open(&config.store, &[&store::MIGRATIONS, &lane::MIGRATIONS, &MIGRATIONS]).await?;
    store.maintain(&tasks);
    store.report(server.health(), &clock, &tasks);
    let keys = DataKeys::new(store.clone(), chassis.keyring()?, clock.clone());

    // Outbound: the courier and its lanes, then the endpoints, whose lanes must be open before the first event comes.
    let (router, book) = (Router::new(&peer), Book::default());
    let (closing, closings) = mpsc::channel(CLOSINGS);
    let webhooks = Webhooks::new(book.clone(), outbound.clone(), clock.clone(), closing);
    let told = Arc::new(OnceLock::new());
    let courier = Arc::new(Couriers { webhooks: webhooks.clone(), vendors: told.clone() });
    let dispatcher =
        Dispatcher::start(store.clone(), keys.clone(), courier, config.slots(), clock.clone(), &tasks).await?;
    let endpoints =
        Endpoints::open(store.clone(), keys.clone(), book.clone(), dispatcher.clone(), outbound.clone(), clock.clone())
            .await?;
    let endpoints = Arc::new(endpoints);
    tasks.spawn("endpoints.disable", disable::run(endpoints.clone(), router.clone(), closings, tasks.stopping()));
    let outbox = Outbox::new(store.clone(), keys.clone(), dispatcher.clone(), clock.clone());
    tasks.spawn("outbox", outbox.clone().run(router.clone(), tasks.clone()));

    // Vendors: how each integration is connected, and how it is.
    let integrations = Integrations::new(store.clone(), keys.clone(), clock.clone());
    let changed = broadcast::Sender::new(CHANGES);
    let connections = Connections::new(store.clone(), keys.clone(), outbox.clone(), clock.clone(), changed.clone());
    let healths = Healths::new(store.clone(), keys.clone(), outbox.clone(), clock.clone(), changed.clone());
    let oauth = oauth::Client::new(outbound.clone(), clock.clone());
    let vendors = Arc::new(Declared);
    let credentials =
        Credentials::new(connections, vendors.clone(), apps(&config), oauth, tasks.clone(), clock.clone());
    tasks.spawn("credential.refresh", credentials.clone().run(integrations.clone()));
    let connecting = Connecting {
        credentials,
        integrations: integrations.clone(),
        authorizations: Authorizations::new(store.clone(), keys.clone(), clock.clone()),
        probe: vendors.clone(),
        public_url: config.public_url()?,
    };
    let prober = Prober {
        healths: healths.clone(),
        credentials: connecting.credentials.clone(),
        integrations: integrations.clone(),
        probe: vendors,
        clock: clock.clone(),
    };
    tasks.spawn("health.probe", prober.run(tasks.stopping()));
    let view = View {
        store: store.clone(),
        dispatcher: dispatcher.clone(),
        integrations: integrations.clone(),
        connections: connecting.credentials.connections.clone(),
        healths,
        changed: changed.clone(),
        clock: clock.clone(),
    };
    let health_rpc = rpc::health::Service::new(view, tasks.clone(), chassis.draining());

    // What vendors are told and what they say; events may come once their lanes are open.
    let ground = Ground {
        store: store.clone(),
        keys: keys.clone(),
        clock: clock.clone(),
        outbox,
        dispatcher: dispatcher.clone(),
        integrations: integrations.clone(),
        credentials: connecting.credentials.clone(),
        outbound: outbound.clone(),
    };
    let engine = Engine::open(ground, &told).await?;
    engine.start(changed.subscribe(), &tasks);
    let (sought, offers) = (renderer.clone(), engine.offers.clone());
    let configuration = Keeper::new(endpoints.clone(), tables(&config.configuration_tables_file)?, &engine);
    let rows = configuration.rows.clone();
    let deliver = Deliver { book, renderer: sought, offers, configuration, dispatcher, store: store.clone() };
    tasks.spawn("deliver", consume::run(peer.separate(), "vendor-sync", deliver, tasks.stopping()));

    // Bulk: imports, and comparisons once a day.
    let imports = Imports::new(store.clone(), keys.clone(), clock.clone());
    let worker = Worker::new(imports.clone(), integrations.clone(), &engine);
    tasks.spawn("imports", worker.clone().run(tasks.clone()));
    tasks.spawn("reconcile", worker.reconcile().run(tasks.clone()));

    // Inbound: the seven steps of each webhook.
    let inbound =
        Inbound::new(integrations.clone(), &store, &keys, &peer, clock.clone()).with_vendors(engine.vendors());
    inbound.start(&tasks);

    let import_rpc = rpc::imports::Service::new(imports, integrations, rows, tasks.clone());
    let replays = Replays { endpoints: endpoints.clone(), router: router.clone(), renderer, tasks };
    let endpoint_rpc = rpc::endpoints::EndpointRpc { endpoints, webhooks, router };
    let running = server
        .authenticator(Arc::new(RouterAuthenticator::new(&peer, clock)))
        .access(rpc::ACCESS)
        .add(EndpointServiceServer::new(endpoint_rpc))
        .add(
            DeliveryServiceServer::new(rpc::deliveries::DeliveryRpc { replays })
                .max_encoding_message_size(MESSAGE_LIMIT),
        )
        .add(IntegrationServiceServer::new(rpc::integrations::Service::new(connecting.clone(), engine.accounts)))
        .add(IntegrationHealthServiceServer::new(health_rpc))
        .add(ConnectionServiceServer::new(rpc::connections::Service(connecting)))
        .add(ImportServiceServer::new(import_rpc).max_decoding_message_size(MESSAGE_LIMIT))
        .add(WebhookServiceServer::new(rpc::webhooks::Service::new(inbound)).max_decoding_message_size(MESSAGE_LIMIT))
        .serve()?;
    Ok(Service { address: running.address, outbound })
}

/// Our OAuth clients, by connector.
fn apps(config: &Config) -> BTreeMap<String, App> {
    let app = |client: &OAuthClient| App { id: client.client_id.clone(), secret: client.client_secret.clone() };
    config.oauth.iter().map(|(connector, client)| (connector.clone(), app(client))).collect()
}

/// The table in `file`; the one that we ship if none is named.
fn personal(file: &str) -> Result<Personal> {
    if file.is_empty() {
        return Ok(Personal::built_in());
    }
    let text = std::fs::read_to_string(file).with_context(|| format!("[vendor_sync] personal_columns_file {file}"))?;
    Personal::parse(&text).with_context(|| format!("[vendor_sync] personal_columns_file {file}"))
}

/// The configuration tables in `file`; those that we ship if none is named.
fn tables(file: &str) -> Result<Tables> {
    if file.is_empty() {
        return Ok(Tables::built_in());
    }
    let text = std::fs::read_to_string(file);
    let text = text.with_context(|| format!("[vendor_sync] configuration_tables_file {file}"))?;
    Tables::parse(&text).with_context(|| format!("[vendor_sync] configuration_tables_file {file}"))
}
