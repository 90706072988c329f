//! Accounts: the integrations that are linked with a vendor, as offers and the courier see them, each with its lane.
//!
//! They are in memory; the store has the truth, and whoever changes it calls [`Accounts::refresh`].
//!
//! Invariant: an account is in the book only while its lane is open, since an offer to a lane that isn't is dropped.

use std::{
    collections::{BTreeMap, HashMap, HashSet},
    sync::{Arc, PoisonError, RwLock, RwLockReadGuard, RwLockWriteGuard},
    time::Duration,
};

use chassis::{
    error::{Error, Result},
    id::OrganizationId,
    lane::{self, Dispatcher, State as End},
    tasks::Tasks,
};
use tokio::{
    sync::{
        Mutex,
        broadcast::{self, error::RecvError},
    },
    time::timeout,
};

use crate::{
    connector::{Connector, catalogue::Catalogue},
    credential::{Changed, Connections, State},
    database,
    integration::{Integration, Integrations, Kind, Settings},
};

/// Accounts that are read at once at the start.
const PAGE: i64 = 500;
/// An integration that fails is never given up: it is shown as failing, and what waits for it waits.
const NEVER: Duration = Duration::from_secs(10 * 365 * 24 * 3600);
/// A look at what could not be read.
const AGAIN: Duration = Duration::from_secs(1);
/// The kind of WedSync's own database.
pub(crate) const DATABASE: &str = "database";

/// Whether a connector is WedSync's own database by SQL: it has nothing to ask by HTTP.
pub(crate) fn is_sql(connector: &Connector) -> bool {
    connector.kind() == DATABASE && connector.operations().next().is_none()
}

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

    /// Has the accounts of a connector go by its new text.
    ///
    /// # Errors
    /// Those of the store.
    pub(crate) async fn renew(&self, organization: &OrganizationId, connector: &str) -> Result<()> {
        for account in self.all() {
            let Integration { id, organization: owner, settings, .. } = &account.integration;
            if owner == organization && settings.connector == connector {
                self.refresh(organization, id).await?;
            }
        }
        Ok(())
    }

    /// Makes `change` of an integration and puts it in force. What can't be read now is followed by [`Accounts::follow`].
    ///
    /// # Errors
    /// Those of the change; those of the store, with which it may have been made.
    pub(crate) async fn change<T>(
        &self,
        organization: &OrganizationId,
        id: &str,
        change: impl Future<Output = Result<T>>,
    ) -> Result<T> {
        let changed = change.await;
        let refreshed = self.refresh(organization, id).await;
        if refreshed.is_err() {
            self.connections.tell_of(Changed { organization: organization.clone(), id: id.to_owned() });
        }
        let changed = changed?;
        refreshed.map(|()| changed)
    }

    /// Follows what `changed` tells of connections, until the process stops. What can't be read now is read again each
    /// second.
    pub(crate) async fn follow(self, mut changed: broadcast::Receiver<Changed>, tasks: Tasks) {
        let (stopping, mut behind) = (tasks.stopping(), HashSet::new());
        loop {
            let wait = if behind.is_empty() { NEVER } else { AGAIN };
            match stopping.run_until_cancelled(timeout(wait, changed.recv())).await {
                Some(Ok(Ok(told))) => behind.extend([(told.organization, told.id)]),
                // Which ones was missed: all are looked at.
                Some(Ok(Err(RecvError::Lagged(_)))) => {
                    let all = self.all().into_iter().map(|account| account.integration.clone());
                    behind.extend(all.map(|integration| (integration.organization, integration.id)));
                }
                Some(Err(_)) => {}
                Some(Ok(Err(RecvError::Closed))) | None => return,
            }
            if stopping.run_until_cancelled(self.catch_up(&mut behind)).await.is_none() {
                return;
            }
        }
    }

    /// Refreshes each; those that can't be stay.
    async fn catch_up(&self, behind: &mut HashSet<(OrganizationId, String)>) {
        for (organization, id) in behind.clone() {
            match self.refresh(&organization, &id).await {
                Ok(()) => drop(behind.remove(&(organization, id))),
                Err(error) => {
                    tracing::warn!(%error, integration.id = id, "how an integration is connected can't be read; trying again");
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
        if is_sql(&connector) {
            let checked = database::check_parameters(&settings.parameters);
            return checked.map_err(|(name, reason)| Error::invalid(format!("parameters.{name}"), reason));
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

#[cfg(test)]
mod tests {
    use chassis::{service::Chassis, testing::on_each_engine, with};

    use super::*;
    use crate::{
        import::tests::{MIGRATIONS, World},
        reconcile::tests::{Vendor, account},
    };

    #[tokio::test]
    async fn a_change_that_could_not_be_read_is_read_again_by_itself() {
        on_each_engine(MIGRATIONS, async |store| {
            let world = World::over(store, Chassis::for_test()).await;
            let (_vendor, address) = Vendor::start(0).await;
            let integration = account(&world, address).await;
            let change = async |text: &'static str| {
                let changed = with!(world.store.writer(), c => sqlx::query(text).execute(c).await.map(drop));
                changed.expect("it is changed");
            };
            let (sender, receiver) = broadcast::channel(4);
            let (accounts, tasks) = (world.engine.accounts.clone(), world.chassis.tasks.clone());
            tasks.spawn("accounts", accounts.clone().follow(receiver, tasks.clone()));
            world.engine.credentials.disconnect(&integration).await.expect("it is noted");
            change("UPDATE connectors SET source = 'x' || source, version = version + 1").await;
            // Of the first it is known what came of it once the second is taken.
            for id in [integration.id.as_str(), "unknown"] {
                let organization = integration.organization.clone();
                sender.send(Changed { organization, id: id.to_owned() }).expect("it follows");
            }
            let until = async |holds: &dyn Fn() -> bool| {
                let wait = async {
                    while !holds() {
                        tokio::task::yield_now().await;
                    }
                };
                timeout(Duration::from_secs(30), wait).await.expect("in time");
            };
            until(&|| sender.is_empty()).await;
            let state = || accounts.get(&integration.id).expect("it is there").state;
            assert_eq!(state(), State::Connected, "it can't be read");
            change("UPDATE connectors SET source = substr(source, 2), version = version + 1").await;
            until(&|| state() == State::Disconnected).await;
        })
        .await;
    }
}
