//! The sync engine: what happened, brought to the vendors that are to know it.
//!
//! [`read`] says what an event tells of a record, [`offer`] brings it into the record and offers it to each integration of
//! the kinds that its plan names, [`courier`] carries it. [`account`] knows every integration that is linked, [`known`]
//! what its vendor has, [`making`] what it is being given just now; [`poll`] and [`reread`] ask vendors themselves. What comes
//! in is `resolve`'s.

pub(crate) mod account;
pub(crate) mod bulk;
pub(crate) mod carry;
pub(crate) mod courier;
pub(crate) mod known;
pub(crate) mod letter;
pub(crate) mod making;
pub(crate) mod offer;
pub(crate) mod poll;
pub(crate) mod read;
pub(crate) mod reread;
#[cfg(test)]
pub(crate) mod tests;

use std::sync::{Arc, OnceLock};

use chassis::{
    clock::Clock, error::Result, lane::Dispatcher, outbound::Outbound, secret::DataKeys, store::Store, tasks::Tasks,
};

use tokio::sync::broadcast;

use self::{
    account::Accounts, carry::Carrier, courier::Vendors, known::Known, offer::Offers, poll::Polls, reread::Reader,
    reread::Rereads,
};
use crate::{
    connector::{call::Caller, catalogue::Catalogue, limits::Limits},
    credential::{Changed, Credentials},
    database::Database,
    inbound,
    integration::Integrations,
    outbox::Outbox,
    record::{Links, Records},
    resolve::Resolver,
    router::Router,
};

/// The engine's parts, as the service's other parts need them.
#[derive(Clone)]
pub(crate) struct Engine {
    pub(crate) accounts: Accounts,
    pub(crate) resolver: Resolver,
    pub(crate) offers: Offers,
    pub(crate) polls: Polls,
    pub(crate) known: Known,
    pub(crate) rereads: Rereads,
    pub(crate) dispatcher: Dispatcher,
    pub(crate) credentials: Credentials,
    pub(crate) caller: Caller,
}

/// What the engine stands on.
pub(crate) struct Ground {
    pub(crate) store: Store,
    pub(crate) keys: DataKeys,
    pub(crate) clock: Clock,
    pub(crate) dispatcher: Dispatcher,
    pub(crate) integrations: Integrations,
    pub(crate) outbound: Outbound,
    pub(crate) outbox: Outbox,
    pub(crate) catalogue: Catalogue,
    pub(crate) credentials: Credentials,
}

impl Engine {
    /// Puts the parts together, gives the courier what it needs (`vendors`), and only then opens the lanes.
    ///
    /// # Errors
    /// Those of the store.
    pub(crate) async fn open(ground: Ground, vendors: &Arc<OnceLock<Vendors>>) -> Result<Self> {
        let Ground { store, keys, clock, dispatcher, integrations, outbound, outbox, catalogue, credentials } = ground;
        let connections = credentials.connections.clone();
        let limits = Limits::new(store.clone(), clock.clone());
        let caller = Caller::new(
            catalogue.clone(),
            credentials.clone(),
            integrations.clone(),
            outbound.clone(),
            limits,
            clock.clone(),
        );
        let records = Records::new(store.clone(), keys.clone(), clock.clone());
        let links = Links::new(store.clone(), keys.clone());
        let resolver = Resolver::new(store.clone(), keys.clone(), clock.clone(), records.clone(), links, outbox);
        let known = Known::over(&resolver);
        let accounts = Accounts::new(integrations, catalogue, connections, dispatcher.clone());
        let database = Database::new(credentials.clone(), outbound);
        let carrier =
            Carrier { caller: caller.clone(), records, known: known.clone(), resolver: resolver.clone(), database };
        let _ = vendors.set(Vendors { accounts: accounts.clone(), carrier });
        accounts.load().await?;
        let offers = Offers { accounts: accounts.clone(), resolver: resolver.clone() };
        let rereads = Rereads::new(store.clone(), keys, clock.clone());
        let polls =
            Polls { store, clock, accounts: accounts.clone(), caller: caller.clone(), resolver: resolver.clone() };
        Ok(Self { accounts, resolver, offers, polls, known, rereads, dispatcher, credentials, caller })
    }

    /// What runs by itself, until the process stops. What waits to be told is told from now on, since the lanes are open: a
    /// letter to one that isn't is dropped.
    pub(crate) fn start(&self, changed: broadcast::Receiver<Changed>, router: Router, tasks: &Tasks) {
        self.resolver.outbox.start(router, tasks);
        tasks.spawn("sync.accounts", self.accounts.clone().follow(changed, tasks.clone()));
        tasks.spawn("sync.purge", self.known.clone().purge_at_times(tasks.clone()));
        tasks.spawn("sync.poll", self.polls.clone().run(tasks.clone()));
        tasks.spawn("sync.reread", self.reader().run(tasks.clone()));
    }

    /// What reads the hints that wait.
    fn reader(&self) -> Reader {
        Reader {
            rereads: self.rereads.clone(),
            accounts: self.accounts.clone(),
            caller: self.caller.clone(),
            resolver: self.resolver.clone(),
            polls: self.polls.clone(),
        }
    }

    /// For the way in.
    pub(crate) fn vendors(&self) -> inbound::vendor::Vendors {
        let (accounts, resolver) = (self.accounts.clone(), self.resolver.clone());
        inbound::vendor::Vendors { accounts, resolver, rereads: self.rereads.clone() }
    }
}
