//! vendor-sync: everything towards systems. Outbound, signed webhooks to the endpoints that want an event; inbound, what
//! vendors and WedSync's own clients send us. It speaks to no person, and reaches the outside through the guard alone.
//!
//! [`start`] is its table of contents.

mod body;
mod brake;
mod campaign;
mod config;
mod configuration;
mod connector;
mod credential;
mod database;
mod deliver;
mod disable;
mod endpoint;
mod erase;
mod event;
mod health;
mod hourly;
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
mod rounds;
mod router;
mod rpc;
mod sync;
#[cfg(any(test, feature = "testing"))]
pub mod testing;
#[cfg(test)]
mod tests;
mod tried;
#[cfg(test)]
mod vendors;
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
    lane::{self, Dispatcher, retention::Retention},
    outbound::Outbound,
    purge,
    secret::DataKeys,
    service::Chassis,
    store::{self, Migrations, Store},
};
use jiff::SignedDuration;
use proto::vendorsync::v1::{
    campaign_service_server::CampaignServiceServer, connection_service_server::ConnectionServiceServer,
    connector_service_server::ConnectorServiceServer, delivery_service_server::DeliveryServiceServer,
    endpoint_service_server::EndpointServiceServer, import_service_server::ImportServiceServer,
    integration_health_service_server::IntegrationHealthServiceServer,
    integration_service_server::IntegrationServiceServer, record_service_server::RecordServiceServer,
    sync_service_server::SyncServiceServer, webhook_service_server::WebhookServiceServer,
};
use tokio::sync::{broadcast, mpsc};

pub use self::config::{Config, OAuthClient};
use self::{
    body::Renderer,
    campaign::{Campaigns, Maker, Poller},
    configuration::{Tables, keep::Keeper},
    connector::catalogue::Catalogue,
    credential::{
        App, Connections, Credentials,
        connect::Connecting,
        vendor::{Declared, Probing},
    },
    database::Database,
    deliver::Deliver,
    endpoint::book::Book,
    health::{Healths, behind::Behind, prober::Prober, view::View},
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
    tried::Tried,
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
    let retention = Retention::new(store.clone(), config.periods());
    tasks.spawn("lanes.retention", purge::run(retention, clock.clone(), tasks.stopping()));
    tasks.spawn("endpoints.disable", disable::run(endpoints.clone(), router.clone(), closings, tasks.stopping()));

    // Vendors: what integrations authenticate with, what they are told, and what they say.
    let integrations = Integrations::new(store.clone(), keys.clone(), clock.clone());
    let outbox = Outbox::new(store.clone(), keys.clone(), dispatcher.clone(), clock.clone());
    let changed = broadcast::Sender::new(CHANGES);
    let connections = Connections::new(store.clone(), keys.clone(), outbox.clone(), clock.clone(), changed.clone());
    let catalogue = Catalogue::new(store.clone(), clock.clone());
    let declared = Arc::new(Declared(catalogue.clone()));
    let oauth = oauth::Client::new(outbound.clone(), clock.clone());
    let credentials =
        Credentials::new(connections.clone(), declared, apps(&config), oauth, tasks.clone(), clock.clone());
    tasks.spawn("credential.refresh", credentials.clone().run(integrations.clone()));
    let ground = Ground {
        store: store.clone(),
        keys: keys.clone(),
        clock: clock.clone(),
        dispatcher: dispatcher.clone(),
        integrations: integrations.clone(),
        outbound: outbound.clone(),
        outbox: outbox.clone(),
        catalogue: catalogue.clone(),
        credentials: credentials.clone(),
    };
    let engine = Engine::open(ground, &told).await?;
    engine.start(changed.subscribe(), router.clone(), &tasks);
    let configuration = Keeper::new(endpoints.clone(), tables(&config.configuration_tables_file)?, &engine);
    let rows = configuration.rows.clone();
    tasks.spawn("configuration.again", configuration.clone().run(tasks.stopping()));
    let deliver = Deliver {
        book,
        renderer: renderer.clone(),
        offers: engine.offers.clone(),
        configuration,
        dispatcher: dispatcher.clone(),
        store: store.clone(),
    };
    tasks.spawn("deliver", consume::run(peer.separate(), "vendor-sync", deliver, tasks.stopping()));

    // How integrations are connected, and how they stand.
    let database = Database::new(credentials.clone(), outbound.clone());
    let probe = Arc::new(Probing { caller: engine.caller.clone(), database });
    let connecting = Connecting {
        credentials: credentials.clone(),
        integrations: integrations.clone(),
        authorizations: Authorizations::new(store.clone(), keys.clone(), clock.clone()),
        probe: probe.clone(),
        public_url: config.public_url()?,
    };
    let healths = Healths::new(store.clone(), keys.clone(), outbox.clone(), clock.clone(), changed.clone());
    let prober = Prober {
        healths: healths.clone(),
        credentials,
        integrations: integrations.clone(),
        probe,
        clock: clock.steady(),
    };
    tasks.spawn("health.probe", prober.run(tasks.stopping()));
    let marketing_outbox = outbox.clone();
    let behind = Behind {
        store: store.clone(),
        keys: keys.clone(),
        outbox,
        connections: connections.clone(),
        integrations: integrations.clone(),
        after: SignedDuration::from_secs(config.behind_after_s.into()),
        clock: clock.clone(),
    };
    tasks.spawn("health.behind", behind.run(tasks.stopping()));
    let view = View {
        store: store.clone(),
        dispatcher,
        integrations: integrations.clone(),
        connections,
        healths,
        changed,
        clock: clock.clone(),
    };
    let health_rpc = rpc::health::Service::new(view, tasks.clone(), chassis.draining());

    // Bulk: imports, and comparisons once a day.
    // They wait for times that are written down.
    let imports = Imports::new(store.clone(), keys.clone(), clock.steady());
    let worker = Worker::new(imports.clone(), integrations.clone(), &engine);
    tasks.spawn("imports", worker.clone().run(tasks.clone()));
    tasks.spawn("reconcile", worker.reconcile().run(tasks.clone()));

    // Campaigns of e-mail marketing, and what becomes of them.
    let campaigns = Campaigns::new(store.clone(), keys.clone(), marketing_outbox);
    let maker = Maker { campaigns, caller: engine.caller.clone(), clock: clock.clone() };
    let poller = Poller { maker: maker.clone(), integrations: integrations.clone() };
    tasks.spawn("campaigns", poller.run(tasks.stopping()));
    let campaign_rpc = rpc::campaigns::Service { maker, integrations: integrations.clone() };

    // Inbound: the seven steps of each webhook.
    let inbound =
        Inbound::new(integrations.clone(), &store, &keys, &peer, clock.clone()).with_vendors(engine.vendors());
    inbound.start(&tasks);

    let connectors =
        rpc::connectors::Service::new(catalogue.clone(), clock.clone()).with_accounts(engine.accounts.clone());
    let import_rpc = rpc::imports::Service::new(imports, integrations, rows, tasks.clone());
    let replays = Replays {
        endpoints: endpoints.clone(),
        router: router.clone(),
        renderer,
        offers: engine.offers.clone(),
        tasks,
    };
    let endpoint_rpc = rpc::endpoints::EndpointRpc { endpoints, webhooks, router, tried: Tried::default() };
    let records = rpc::records::RecordRpc { resolver: engine.resolver.clone() };
    let running = server
        .authenticator(Arc::new(RouterAuthenticator::new(&peer, clock)))
        .access(rpc::ACCESS)
        .add(EndpointServiceServer::new(endpoint_rpc))
        .add(
            DeliveryServiceServer::new(rpc::deliveries::DeliveryRpc { replays })
                .max_encoding_message_size(MESSAGE_LIMIT),
        )
        .add(IntegrationServiceServer::new(rpc::integrations::Service::new(
            connecting.clone(),
            engine.accounts.clone(),
        )))
        .add(IntegrationHealthServiceServer::new(health_rpc))
        .add(ConnectionServiceServer::new(rpc::connections::Service(connecting)))
        .add(RecordServiceServer::new(records).max_encoding_message_size(MESSAGE_LIMIT))
        .add(SyncServiceServer::new(rpc::sync::Service { engine }))
        .add(CampaignServiceServer::new(campaign_rpc))
        .add(ConnectorServiceServer::new(connectors))
        .add(ImportServiceServer::new(import_rpc).max_decoding_message_size(MESSAGE_LIMIT))
        .add(WebhookServiceServer::new(rpc::webhooks::Service::new(inbound)).max_decoding_message_size(MESSAGE_LIMIT))
        .serve();
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
