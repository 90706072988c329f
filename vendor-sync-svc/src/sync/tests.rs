//! The engine from an event to a vendor on loopback and back, on each engine of the store.

use std::sync::{Arc, OnceLock};

use chassis::{
    clock::Clock,
    lane::{Dispatcher, Slots},
    outbound::{Outbound, OutboundSettings},
    secret::DataKeys,
    service::Chassis,
    store::Store,
};
use tokio::sync::mpsc;

use super::{
    Engine, Ground,
    courier::{Couriers, Vendors},
};
use crate::{endpoint::book::Book, integration::Integrations, webhook::Webhooks};

/// The engine over these parts.
pub(crate) async fn engine(
    store: &Store,
    keys: &DataKeys,
    dispatcher: &Dispatcher,
    outbound: &Outbound,
    vendors: &Arc<OnceLock<Vendors>>,
) -> Engine {
    let ground = Ground {
        store: store.clone(),
        keys: keys.clone(),
        clock: Clock::System,
        dispatcher: dispatcher.clone(),
        integrations: Integrations::new(store.clone(), keys.clone(), Clock::System),
        outbound: outbound.clone(),
    };
    Engine::open(ground, vendors).await.expect("it opens")
}

/// The engine over a store, with no endpoints beside it and loopback open.
pub(crate) async fn alone(store: Store) -> Engine {
    let chassis = Chassis::for_test();
    let keys = DataKeys::new(store.clone(), chassis.keyring().expect("a key"), Clock::System);
    let loopback = OutboundSettings { allow_networks: vec!["127.0.0.0/8".to_owned()], allow_http: true };
    let outbound = Outbound::new(&loopback).expect("a client");
    let (closing, _) = mpsc::channel(8);
    let webhooks = Webhooks::new(Book::default(), outbound.clone(), Clock::System, closing);
    let vendors = Arc::new(OnceLock::new());
    let courier = Arc::new(Couriers { webhooks, vendors: vendors.clone() });
    let slots = Slots::default();
    let dispatcher =
        Dispatcher::start(store.clone(), keys.clone(), courier, slots, Clock::System, &chassis.tasks).await;
    engine(&store, &keys, &dispatcher.expect("it starts"), &outbound, &vendors).await
}
