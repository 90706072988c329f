//! Accounts: the integrations that are linked with a vendor, as offers and the courier see them, each with its lane.
//!
//! They are in memory; the store has the truth, and whoever changes it calls [`Accounts::refresh`].
//!
//! Invariant: an account is in the book only while its lane is open, since an offer to a lane that isn't is dropped.

use std::{
    collections::{BTreeMap, HashMap},
    sync::{Arc, PoisonError, RwLock, RwLockReadGuard, RwLockWriteGuard},
    time::Duration,
};

use chassis::{
    error::{Error, Result},
    id::OrganizationId,
    lane::{self, Dispatcher, State as End},
    tasks::Tasks,
};
use tokio::sync::{
    Mutex,
    broadcast::{self, error::RecvError},
};

use crate::{
    connector::{Connector, catalogue::Catalogue},
    credential::{Changed, Connections, State},
    database::Mapping,
    integration::{Integration, Integrations, Kind, Settings},
};

/// Accounts that are read at once at the start.
const PAGE: i64 = 500;
/// An integration that fails is never given up: it is shown as failing, and what waits for it waits.
const NEVER: Duration = Duration::from_secs(10 * 365 * 24 * 3600);
/// The kind of WedSync's own database.
pub(crate) const DATABASE: &str = "database";

/// One integration with what is known of its vendor.
#[derive(Debug)]
pub(crate) struct Account {
    pub(crate) integration: Integration,
    pub(crate) connector: Arc<Connector>,
    pub(crate) state: State,
}

impl Account {
    /// Whether it is told of what happens, now or once it works again.
    pub(crate) fn is_told(&self) -> bool {
        !self.integration.settings.disabled && self.state != State::Disconnected
    }

    /// Whether it may be asked for changes now.
    pub(crate) fn is_asked(&self) -> bool {
        !self.is_paused()
    }

    fn is_paused(&self) -> bool {
        let settings = &self.integration.settings;
        settings.paused || settings.disabled || self.state != State::Connected
    }

    fn lane(&self) -> lane::Settings {
        lane::Settings {
            ordered: true,
            paused: self.is_paused(),
            repeatable: self.connector.is_repeatable(),
            disable_after: NEVER,
            ..lane::Settings::default()
        }
    }
}

/// All accounts. Cheap to clone.
#[derive(Clone)]
pub(crate) struct Accounts {
    pub(crate) integrations: Integrations,
    catalogue: Catalogue,
    connections: Connections,
    dispatcher: Dispatcher,
    book: Arc<RwLock<Book>>,
    /// One change at a time.
    changing: Arc<Mutex<()>>,
}

#[derive(Debug, Default)]
struct Book {
    by_id: HashMap<Arc<str>, Arc<Account>>,
    of_organization: HashMap<OrganizationId, BTreeMap<Arc<str>, Arc<Account>>>,
}

impl Accounts {
    /// None yet.
    pub(crate) fn new(
        integrations: Integrations,
        catalogue: Catalogue,
        connections: Connections,
        dispatcher: Dispatcher,
    ) -> Self {
        Self { integrations, catalogue, connections, dispatcher, book: Arc::default(), changing: Arc::default() }
    }

    /// Opens the lane of every integration that has a connector. Events may be offered once this returns.
    ///
    /// # Errors
    /// Those of the store.
    pub(crate) async fn load(&self) -> Result<()> {
        let mut after = String::new();
        loop {
            let page = self.integrations.linked(&after, PAGE).await?;
            let Some(last) = page.last() else { return Ok(()) };
            after.clone_from(&last.id);
            for integration in page {
                self.enforce(integration).await?;
            }
        }
    }

    /// Brings what is in memory up to date with the store, after a change of an integration or its connection.
    ///
    /// # Errors
    /// Those of the store.
    pub(crate) async fn refresh(&self, organization: &OrganizationId, id: &str) -> Result<()> {
        let _changing = self.changing.lock().await;
        match self.integrations.get(organization, id).await {
            Ok(integration) if integration.settings.kind == Kind::Connector => self.enforce(integration).await,
            Ok(_) => Ok(()),
            Err(Error::NotFound(_)) => self.remove(organization, id).await,
            Err(error) => Err(error),
        }
    }

    /// Follows what `changed` tells of connections, until the process stops.
    pub(crate) async fn follow(self, mut changed: broadcast::Receiver<Changed>, tasks: Tasks) {
        let stopping = tasks.stopping();
        loop {
            let told = match stopping.run_until_cancelled(changed.recv()).await {
                Some(Ok(told)) => vec![(told.organization, told.id)],
                // Which ones was missed: all are looked at.
                Some(Err(RecvError::Lagged(_))) => {
                    let all = self.all().into_iter().map(|account| account.integration.clone());
                    all.map(|integration| (integration.organization, integration.id)).collect()
                }
                Some(Err(RecvError::Closed)) | None => return,
            };
            for (organization, id) in told {
                if let Err(error) = self.refresh(&organization, &id).await {
                    tracing::warn!(%error, integration.id = id, "how an integration is connected is seen at its next change");
                }
            }
        }
    }

    /// Holds an integration's settings to what its connector declares.
    ///
    /// # Errors
    /// `Error::Invalid` naming the field; those of the store.
    pub(crate) async fn check(&self, organization: &OrganizationId, settings: &Settings) -> Result<()> {
        if settings.kind != Kind::Connector {
            return Ok(());
        }
        let connector = match self.catalogue.get(organization, &settings.connector).await {
            Ok(entry) => entry.connector,
            Err(Error::NotFound(_)) => return Err(Error::invalid("connector", "is the name of no connector")),
            Err(error) => return Err(error),
        };
        if connector.kind() == DATABASE {
            let mapping = settings.parameters.get("mapping").map(String::as_str).unwrap_or_default();
            return Mapping::parse(mapping).map(drop).map_err(|reason| Error::invalid("parameters.mapping", reason));
        }
        let checked = connector.check_settings(&settings.parameters);
        checked.map_err(|(name, reason)| Error::invalid(format!("parameters.{name}"), reason))
    }

    async fn enforce(&self, integration: Integration) -> Result<()> {
        let name = &integration.settings.connector;
        let connector = match self.catalogue.get(&integration.organization, name).await {
            Ok(entry) => entry.connector,
            Err(Error::NotFound(_)) => {
                tracing::error!(
                    integration.id,
                    connector = name,
                    "an integration's connector is gone; it is told of nothing"
                );
                return Ok(());
            }
            Err(error) => return Err(error),
        };
        let connection = self.connections.get(&integration).await?;
        let state = connection.map_or(State::Disconnected, |connection| connection.state);
        let account = Arc::new(Account { integration, connector, state });
        let (id, organization) = (&account.integration.id, &account.integration.organization);
        // The courier must know it before its lane sends, and its lane be open before it is offered anything.
        self.write().by_id.insert(id.as_str().into(), account.clone());
        self.dispatcher.open(id, organization, account.lane()).await?;
        let mut book = self.write();
        book.of_organization.entry(organization.clone()).or_default().insert(id.as_str().into(), account.clone());
        Ok(())
    }

    async fn remove(&self, organization: &OrganizationId, id: &str) -> Result<()> {
        if self.of(organization, id).is_err() {
            return Ok(());
        }
        self.take_out(organization, id);
        self.dispatcher.remove(id, organization, End::Cancelled, "the integration was deleted").await.map(drop)
    }

    fn take_out(&self, organization: &OrganizationId, id: &str) {
        let mut book = self.write();
        book.by_id.remove(id);
        if let Some(accounts) = book.of_organization.get_mut(organization) {
            accounts.remove(id);
        }
    }

    fn write(&self) -> RwLockWriteGuard<'_, Book> {
        self.book.write().unwrap_or_else(PoisonError::into_inner)
    }

    fn read(&self) -> RwLockReadGuard<'_, Book> {
        self.book.read().unwrap_or_else(PoisonError::into_inner)
    }

    /// Whoever's it is.
    pub(crate) fn get(&self, id: &str) -> Option<Arc<Account>> {
        self.read().by_id.get(id).cloned()
    }

    /// An organization's own.
    ///
    /// # Errors
    /// `Error::NotFound` for an unknown id, and for another organization's.
    pub(crate) fn of(&self, organization: &OrganizationId, id: &str) -> Result<Arc<Account>> {
        let found = self.get(id).filter(|account| account.integration.organization == *organization);
        found.ok_or_else(|| Error::NotFound("integration".into()))
    }

    /// All of an organization.
    pub(crate) fn all_of(&self, organization: &OrganizationId) -> Vec<Arc<Account>> {
        let book = self.read();
        book.of_organization.get(organization).map(|accounts| accounts.values().cloned().collect()).unwrap_or_default()
    }

    /// All.
    pub(crate) fn all(&self) -> Vec<Arc<Account>> {
        self.read().by_id.values().cloned().collect()
    }
}
