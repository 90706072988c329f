//! The engine from an event to a vendor on loopback and back, on each engine of the store.

use std::sync::{Arc, OnceLock};

use chassis::{clock::Clock, lane::Dispatcher, outbound::Outbound, secret::DataKeys, store::Store};

use super::{Engine, Ground, courier::Vendors};
use crate::integration::Integrations;

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
