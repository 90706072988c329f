//! router-svc decides: it keeps the durable event log, plans where each event goes, hands events to durable consumers
//! and live subscribers. It calls nobody.
//!
//! The way of an event: `rpc/events` -> `publish` (its wedding, its plan) -> `log` (durable) -> `consumer` and `live`.

mod broadcast;
mod capture;
mod channel;
mod collapse;
mod config;
mod consumer;
mod destination;
mod event;
mod event_type;
mod facts;
mod json;
mod limit;
mod live;
mod log;
mod organizations;
mod plan;
mod priority;
mod publish;
mod remembered;
mod route;
mod routes;
mod rpc;
mod table;
#[cfg(feature = "testing")]
pub mod testing;
mod wedding;
mod weddings;

use std::{net::SocketAddr, sync::Arc};

use anyhow::Result;
use chassis::{
    grpc::{MESSAGE_LIMIT, Server},
    purge,
    secret::DataKeys,
    service::Chassis,
    store::{self, Migrations, Store},
};
use proto::router::v1::{
    capture_service_server::CaptureServiceServer, consumer_service_server::ConsumerServiceServer,
    event_service_server::EventServiceServer, organization_service_server::OrganizationServiceServer,
    route_service_server::RouteServiceServer, subscription_service_server::SubscriptionServiceServer,
    wedding_service_server::WeddingServiceServer,
};

use crate::{
    broadcast::Broadcasts,
    consumer::Consumers,
    limit::Limits,
    log::{Log, Retention},
    organizations::Organizations,
    publish::Publisher,
    routes::RouteTable,
    table::Tables,
    weddings::Weddings,
};
pub use crate::{
    capture::{OwnerSettings, SourceSettings, Unlisted},
    config::Config,
    table::TableNames,
};

/// Tables of the router.
static MIGRATIONS: Migrations =
    Migrations { sqlite: sqlx::migrate!("./migrations/sqlite"), postgres: sqlx::migrate!("./migrations/postgres") };

/// The running router.
#[derive(Debug)]
pub struct Service {
    /// Where it listens.
    pub address: SocketAddr,
}

/// Starts the router: the pieces in the order in which an event meets them.
///
/// # Errors
/// A store that can't be opened, a port in use, settings that can't hold.
pub async fn start(config: Config, chassis: &Chassis) -> Result<Service> {
    config.check()?;
    let sources = capture::sources(&config.capture)?;
    let server = Server::bind("router", config.listen, chassis).await?;
    let (clock, tasks) = (chassis.clock.clone(), chassis.tasks.clone());
    let store = Store::open(&config.store, &[&store::MIGRATIONS, &MIGRATIONS]).await?;
    store.maintain(&tasks);
    store.report(server.health(), &clock, &tasks);
    let keys = DataKeys::new(store.clone(), chassis.keyring()?, clock.clone());
    let organizations = Organizations::new(store.clone(), clock.clone());
    organizations.bootstrap(&config.bootstrap_key_file).await?;

    let weddings = Weddings::new(store.clone());
    let log = Log::open(store.clone(), keys.clone(), weddings.clone(), &clock, &tasks).await?;
    tasks.spawn("log.owner", stop_when_lost(log.clone(), chassis.clone()));
    let routes = RouteTable::new(store.clone(), clock.clone())?;
    let tables = Arc::new(Tables::new(&config.tables)?);
    let publisher = Publisher {
        log: log.clone(),
        keys,
        organizations: organizations.clone(),
        weddings: weddings.clone(),
        routes: routes.clone(),
        tables,
        clock: clock.clone(),
    };
    let captures = capture::start(sources, &publisher, &store, &tasks);
    let consumers = Consumers::open(store, log.clone(), clock.clone(), tasks.clone()).await?;
    if let Some(keep) = purge::period(config.keep_days) {
        let retention = Retention::new(log.clone(), keep);
        tasks.spawn("log.retention", purge::run(retention, clock.clone(), tasks.stopping()));
    }

    let limits = Arc::new(Limits::new(config.publish_per_second, config.publish_burst));
    let events = rpc::EventRpc {
        publisher: publisher.clone(),
        limits: limits.clone(),
        log: log.clone(),
        consumers: consumers.clone(),
    };
    let consume = rpc::ConsumerRpc { consumers, log: log.clone(), tasks: tasks.clone(), draining: chassis.draining() };
    let subscribe = rpc::SubscriptionRpc {
        log,
        broadcasts: Broadcasts::default(),
        publisher: publisher.clone(),
        limits: limits.clone(),
    };
    let weddings = rpc::WeddingRpc {
        weddings,
        organizations: organizations.clone(),
        limits,
        clock: clock.clone(),
        tasks: tasks.clone(),
    };
    let running = server
        .authenticator(organizations::authenticator(&organizations))
        .access(rpc::ACCESS)
        .add(
            EventServiceServer::new(events)
                .max_decoding_message_size(MESSAGE_LIMIT)
                .max_encoding_message_size(MESSAGE_LIMIT),
        )
        .add(ConsumerServiceServer::new(consume).max_encoding_message_size(MESSAGE_LIMIT))
        .add(SubscriptionServiceServer::new(subscribe))
        .add(
            RouteServiceServer::new(rpc::RouteRpc { routes, publisher, clock, tasks: tasks.clone() })
                .max_decoding_message_size(MESSAGE_LIMIT),
        )
        .add(OrganizationServiceServer::new(rpc::OrganizationRpc { organizations, tasks }))
        .add(WeddingServiceServer::new(weddings))
        .add(CaptureServiceServer::new(rpc::CaptureRpc { captures }))
        .serve();
    Ok(Service { address: running.address })
}

/// A router whose log another one has taken over can't do anything right: it stops.
async fn stop_when_lost(log: Log, chassis: Chassis) {
    let stopping = chassis.tasks.stopping();
    if stopping.run_until_cancelled(log.lost().cancelled_owned()).await.is_some() {
        chassis.give_up("another router has taken the log over");
    }
}
