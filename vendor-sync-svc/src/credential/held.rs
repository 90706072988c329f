//! The credential that counts now, from memory where it can be.

use std::{
    collections::BTreeMap,
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
    time::Duration,
};

use moka::sync::Cache;

use super::{Connection, Connections, Credential, CredentialError, State};
use crate::integration::Integration;

/// Connections in memory; the least used make room.
const HELD: u64 = 10_000;
/// As long as one is believed without a look at the store. Whatever changes one here drops it at once.
const HELD_FOR: Duration = Duration::from_secs(300);

/// What integrations authenticate with. Cheap to clone.
#[derive(Clone)]
pub(crate) struct Credentials {
    pub(crate) connections: Connections,
    held: Cache<String, Arc<Connection>>,
    /// How often something was dropped.
    forgotten: Arc<AtomicU64>,
}

impl Credentials {
    pub(crate) fn new(connections: Connections) -> Self {
        let held = Cache::builder().max_capacity(HELD).time_to_live(HELD_FOR).build();
        Self { connections, held, forgotten: Arc::default() }
    }

    /// What a request of `integration` carries.
    ///
    /// # Errors
    /// Why there is nothing to carry.
    pub(crate) async fn of(&self, integration: &Integration) -> Result<Credential, CredentialError> {
        let connection = self.connection(integration).await?;
        match (connection.state, &connection.kept) {
            (State::Connected, Some(kept)) => Ok(kept.credential()),
            (State::NeedsReconnect, _) => Err(CredentialError::NeedsReconnect(connection.reason.clone())),
            _ => Err(not_connected()),
        }
    }

    /// Settings that the vendor gave when `integration` was connected.
    ///
    /// # Errors
    /// As [`Credentials::of`].
    pub(crate) async fn yielded(&self, integration: &Integration) -> Result<BTreeMap<String, String>, CredentialError> {
        Ok(self.connection(integration).await?.yielded.clone())
    }

    async fn connection(&self, integration: &Integration) -> Result<Arc<Connection>, CredentialError> {
        if let Some(held) = self.held.get(&integration.id) {
            return Ok(held);
        }
        let forgotten = self.forgotten.load(Ordering::SeqCst);
        let read = Arc::new(self.connections.get(integration).await?.ok_or_else(not_connected)?);
        self.held.insert(integration.id.clone(), read.clone());
        // What was changed while it was read may have been dropped before it was kept.
        if self.forgotten.load(Ordering::SeqCst) != forgotten {
            self.held.invalidate(&integration.id);
        }
        Ok(read)
    }

    /// What is held of `integration` is out of date.
    pub(crate) fn forget(&self, integration: &Integration) {
        self.forgotten.fetch_add(1, Ordering::SeqCst);
        self.held.invalidate(&integration.id);
    }
}

fn not_connected() -> CredentialError {
    CredentialError::NeedsReconnect("it was never connected, or was disconnected: connect it".to_owned())
}
