//! The credential that counts now, from memory where it can be, and what else to try when a vendor refuses it.

use std::{
    collections::BTreeMap,
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
    time::Duration,
};

use chassis::{clock::Clock, error::Result as Answer, tasks::Tasks};
use futures_util::future::BoxFuture;
use jiff::{SignedDuration, Timestamp};
use moka::sync::Cache;

use super::{App, Connection, Connections, Credential, CredentialError, Kept, State, renew::Flights};
use crate::{
    connector::catalogue::Catalogue,
    integration::Integration,
    oauth::{Client, Provider},
};

/// Connections in memory; the least used make room.
const HELD: u64 = 10_000;
/// As long as one is believed without a look at the store. Whatever changes one here drops it at once.
const HELD_FOR: Duration = Duration::from_secs(300);
/// A token that is refused so soon after it was granted isn't refreshed once more: that would go on for ever.
const FRESH_FOR: Duration = Duration::from_secs(60);
/// A token that expires sooner than this isn't worth a request.
const MARGIN: SignedDuration = SignedDuration::from_secs(20);

/// How connectors declare that tokens are granted.
pub(crate) trait Providers: Send + Sync + 'static {
    /// None: this integration's vendor grants none.
    fn provider<'a>(&'a self, integration: &'a Integration) -> BoxFuture<'a, Answer<Option<Provider>>>;
}

/// What integrations authenticate with. Cheap to clone.
#[derive(Clone)]
pub(crate) struct Credentials {
    pub(crate) connections: Connections,
    pub(super) providers: Arc<dyn Providers>,
    /// Configured clients, by built-in connector.
    pub(super) apps: Arc<BTreeMap<String, App>>,
    pub(super) oauth: Client,
    pub(crate) tasks: Tasks,
    pub(super) clock: Clock,
    pub(super) flights: Flights,
    pub(super) fresh: Cache<String, ()>,
    held: Cache<String, Arc<Connection>>,
    /// How often something was dropped.
    forgotten: Arc<AtomicU64>,
}

impl Credentials {
    pub(crate) fn new(
        connections: Connections,
        providers: Arc<dyn Providers>,
        apps: BTreeMap<String, App>,
        oauth: Client,
        tasks: Tasks,
        clock: Clock,
    ) -> Self {
        Self {
            connections,
            providers,
            apps: Arc::new(apps),
            oauth,
            tasks,
            clock,
            flights: Flights::default(),
            fresh: Cache::builder().max_capacity(HELD).time_to_live(FRESH_FOR).build(),
            held: Cache::builder().max_capacity(HELD).time_to_live(HELD_FOR).build(),
            forgotten: Arc::default(),
        }
    }

    /// What a request of `integration` carries.
    ///
    /// # Errors
    /// Why there is nothing to carry.
    pub(crate) async fn of(&self, integration: &Integration) -> Result<Credential, CredentialError> {
        let connection = self.connection(integration).await?;
        let kept = in_force(&connection)?;
        let now = self.clock.now();
        let Some(expires_at) = expires_at(kept).filter(|at| *at <= now + MARGIN) else { return Ok(kept.credential()) };
        // Where refreshing failed, its next try has a time of its own.
        let put_off = connection.failures > 0 && connection.refresh_at.is_some_and(|at| at > now);
        let newer = match put_off {
            true => Err(CredentialError::Unavailable(format!("no fresh token yet: {}", connection.reason))),
            false => self.newer(integration, connection.version).await,
        };
        match newer {
            Ok(newer) => Ok(in_force(&newer)?.credential()),
            Err(CredentialError::Unavailable(_)) if now < expires_at => Ok(kept.credential()),
            Err(error) => Err(error),
        }
    }

    /// The vendor refused all that one call has `tried`: what to try next. Without anything to try, the integration must be
    /// connected again from here on. Late news of the key before a rotation says nothing of the one that is in force.
    ///
    /// # Errors
    /// Why there is nothing else.
    pub(crate) async fn refused(
        &self,
        integration: &Integration,
        tried: &[Credential],
    ) -> Result<Credential, CredentialError> {
        self.forget(integration);
        let connection = self.connection(integration).await?;
        let kept = in_force(&connection)?;
        let old = connection.old.as_ref().map(|(old, _)| old.credential());
        if !tried.contains(&kept.credential()) {
            return Ok(kept.credential());
        }
        match (kept, old) {
            (Kept::Tokens { .. }, _) if !self.fresh.contains_key(&integration.id) => {
                let newer = self.newer(integration, connection.version).await?;
                Ok(in_force(&newer)?.credential())
            }
            (_, Some(old)) if !tried.contains(&old) => {
                self.connections.old_was_needed(integration).await?;
                self.forget(integration);
                Ok(old)
            }
            _ => {
                let reason = "the vendor refuses what it authenticates with";
                self.connections.refuse(integration, connection.version, reason).await?;
                self.forget(integration);
                Err(CredentialError::NeedsReconnect(reason.to_owned()))
            }
        }
    }

    /// Settings that the vendor gave when `integration` was connected.
    ///
    /// # Errors
    /// As [`Credentials::of`].
    pub(crate) async fn yielded(&self, integration: &Integration) -> Result<BTreeMap<String, String>, CredentialError> {
        Ok(self.connection(integration).await?.yielded.clone())
    }

    /// Id of the OAuth client in whose name `credential` was granted; none: it is no token. Vendors count requests by it.
    pub(crate) fn client_of<'a>(&'a self, connector: &str, credential: &'a Credential) -> Option<&'a str> {
        match credential {
            Credential::Token { client, .. } if client.is_empty() => self.ours(connector).map(|app| app.id.as_str()),
            Credential::Token { client, .. } => Some(client),
            _ => None,
        }
    }

    /// How tokens are granted to `integration`, and in whose name.
    pub(super) async fn provider(
        &self,
        integration: &Integration,
        own: Option<&App>,
    ) -> Result<(Provider, App), CredentialError> {
        let unavailable = |reason: &str| CredentialError::Unavailable(reason.to_owned());
        let provider = self.providers.provider(integration).await?;
        let provider = provider.ok_or_else(|| unavailable("its connector grants no tokens any more"))?;
        let app = own.or_else(|| self.ours(&integration.settings.connector));
        let app = app.ok_or_else(|| unavailable("there is no OAuth client for its connector: configure one"))?;
        Ok((provider, app.clone()))
    }

    /// Our client of a built-in connector. An organization's own says itself where its tokens come from: our secret would
    /// go there.
    fn ours(&self, connector: &str) -> Option<&App> {
        Catalogue::built_in(connector).and_then(|_| self.apps.get(connector))
    }

    pub(super) async fn connection(&self, integration: &Integration) -> Result<Arc<Connection>, CredentialError> {
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

fn in_force(connection: &Connection) -> Result<&Kept, CredentialError> {
    match (connection.state, &connection.kept) {
        (State::Connected, Some(kept)) => Ok(kept),
        (State::NeedsReconnect, _) => Err(CredentialError::NeedsReconnect(connection.reason.clone())),
        _ => Err(not_connected()),
    }
}

fn expires_at(kept: &Kept) -> Option<Timestamp> {
    match kept {
        Kept::Tokens { tokens, .. } => tokens.expires_at,
        _ => None,
    }
}

fn not_connected() -> CredentialError {
    CredentialError::NeedsReconnect("it was never connected, or was disconnected: connect it".to_owned())
}
