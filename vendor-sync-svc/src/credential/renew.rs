//! Tokens are refreshed before they expire, by one worker, and handed to everybody who waits for them.
//!
//! A refresh token that is good once makes one moment dangerous: between the vendor's answer and our commit. A refresh runs
//! in a task of its own, so that a caller who leaves doesn't end it; an orderly stop waits for it; a store that is away is
//! tried again while the answer is in memory. If the process dies in that moment, the row still says that somebody
//! refreshes: once that lease is over the old token is shown again, at once, since many vendors take it for a while. One
//! that doesn't makes the integration `needs_reconnect`, and its reason says that this is what happened.

use std::{
    collections::HashMap,
    sync::{Arc, Mutex, PoisonError},
    time::Duration,
};

use chassis::{error::Error, fail, secret};
use futures_util::{StreamExt as _, stream};
use jiff::{SignedDuration, Timestamp};
use tokio::sync::watch;

use super::{Connection, CredentialError, Credentials, Kept, State, Tokens};
use crate::{
    connector::{Grant, OAuth2},
    integration::{Integration, Integrations},
    oauth::grant::{self, Form, Refused},
};

/// How often it is looked for what is due, what is taken at a time, and how many at once.
const LOOK_EVERY: Duration = Duration::from_secs(2);
const TAKEN: i64 = 64;
const AT_ONCE: usize = 8;
/// A token that doesn't say how long it lasts is renewed so often all the same: refresh tokens die unused.
const AT_LEAST_EVERY: SignedDuration = SignedDuration::from_hours(24);
/// Delays after failures: the first is short, since a vendor that granted what never arrived takes the old token only for
/// a while.
const FIRST_DELAY: Duration = Duration::from_secs(2);
const LONGEST_DELAY: Duration = Duration::from_secs(300);
const LONGEST_RETRY_AFTER: Duration = Duration::from_secs(3_600);
/// For so long a granted token is tried to be stored.
const STORE_TRIES: u32 = 60;
const STORE_AGAIN: Duration = Duration::from_secs(1);

/// Refreshes under way in this process.
pub(super) type Flights = Arc<Mutex<HashMap<String, watch::Receiver<()>>>>;

/// Takes itself off the list, however it ends; who waits is woken by that.
struct Flight {
    flights: Flights,
    id: String,
    _sender: watch::Sender<()>,
}

impl Drop for Flight {
    fn drop(&mut self) {
        self.flights.lock().unwrap_or_else(PoisonError::into_inner).remove(&self.id);
    }
}

impl Credentials {
    /// Has tokens of a newer version than `version`, by a refresh that all callers share.
    pub(super) async fn newer(
        &self,
        integration: &Integration,
        version: u64,
    ) -> Result<Arc<Connection>, CredentialError> {
        let mut under_way = self.take_off(integration, version);
        while under_way.changed().await.is_ok() {}
        let connection = self.connection(integration).await?;
        match connection.state {
            State::Connected if connection.version > version => Ok(connection),
            State::Connected => Err(CredentialError::Unavailable(format!("no fresh token yet: {}", connection.reason))),
            _ => Err(CredentialError::NeedsReconnect(connection.reason.clone())),
        }
    }

    fn take_off(&self, integration: &Integration, version: u64) -> watch::Receiver<()> {
        let mut flights = self.flights.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(under_way) = flights.get(&integration.id) {
            return under_way.clone();
        }
        let (sender, receiver) = watch::channel(());
        flights.insert(integration.id.clone(), receiver.clone());
        let flight = Flight { flights: self.flights.clone(), id: integration.id.clone(), _sender: sender };
        let (this, integration) = (self.clone(), integration.clone());
        self.tasks.spawn("credential.renew", async move {
            let flight = flight;
            if let Err(error) = this.renew(&integration, version).await {
                tracing::warn!(integration.id, %error, "its token could not be refreshed");
            }
            this.forget(&integration);
            drop(flight);
        });
        receiver
    }

    /// One refresh of `version`, unless somebody else does it or has done it.
    async fn renew(&self, integration: &Integration, version: u64) -> Result<(), CredentialError> {
        let Some(connection) = self.connections.get(integration).await? else { return Ok(()) };
        let Some(Kept::Tokens { tokens, app }) = &connection.kept else { return Ok(()) };
        if connection.state != State::Connected || connection.version != version {
            return Ok(());
        }
        let (provider, client) = match self.provider(integration, app.as_ref()).await {
            Ok(found) => found,
            Err(error) => {
                self.put_off(integration, &connection, connection.lease_epoch, None, &error.to_string()).await?;
                return Err(error);
            }
        };
        let Some(form) = form(provider.declared(), tokens) else {
            let reason = "its token has expired, and the vendor gave none to refresh it with";
            self.connections.refuse(integration, version, reason).await?;
            return Ok(());
        };
        let Some(epoch) = self.connections.lease(integration, &connection).await? else {
            return Err(CredentialError::Unavailable("another worker refreshes it".to_owned()));
        };
        let answer = self.oauth.ask(provider.declared(), &client, &form).await;
        fail::point("credential.granted");
        match answer {
            Ok(granted) => {
                let refresh = if granted.refresh.is_empty() { tokens.refresh.clone() } else { granted.refresh.clone() };
                let tokens = Tokens { refresh, ..granted };
                self.keep(integration, version, Kept::Tokens { tokens, app: app.clone() }).await
            }
            Err(Refused::Grant(reason)) => {
                self.connections.refuse(integration, version, &explained(&reason, &connection)).await?;
                Ok(())
            }
            Err(Refused::Passing { reason, retry_after }) => {
                self.put_off(integration, &connection, epoch, retry_after, &reason).await?;
                Err(CredentialError::Unavailable(reason))
            }
        }
    }

    /// Its next try has a time of its own, later after each failure.
    async fn put_off(
        &self,
        integration: &Integration,
        connection: &Connection,
        epoch: i64,
        retry_after: Option<Duration>,
        reason: &str,
    ) -> Result<(), CredentialError> {
        let again_at = self.clock.now() + delay(connection.failures, retry_after);
        Ok(self.connections.put_off(integration, epoch, again_at, reason).await?)
    }

    /// What the vendor granted exists nowhere else until this is through.
    async fn keep(&self, integration: &Integration, version: u64, kept: Kept) -> Result<(), CredentialError> {
        let refresh_at = refresh_at(&kept, self.clock.now());
        for _ in 0..STORE_TRIES {
            match self.connections.renewed(integration, version, &kept, refresh_at).await {
                Ok(_) => {
                    self.fresh.insert(integration.id.clone(), ());
                    return Ok(());
                }
                Err(error) => {
                    tracing::error!(integration.id, %error, "a granted token can't be stored yet; trying again");
                    tokio::time::sleep(STORE_AGAIN).await;
                }
            }
        }
        Err(CredentialError::Unavailable("the store is away".to_owned()))
    }

    /// Refreshes what is due, until the process stops.
    pub(crate) async fn run(self, integrations: Integrations) {
        let stopping = self.tasks.stopping();
        loop {
            match stopping.run_until_cancelled(self.turn(&integrations)).await {
                Some(Ok(())) => {}
                Some(Err(error)) => tracing::warn!(%error, "tokens to refresh can't be read; trying again"),
                None => return,
            }
            if stopping.run_until_cancelled(self.clock.sleep(LOOK_EVERY)).await.is_none() {
                return;
            }
        }
    }

    /// What is due now.
    pub(super) async fn turn(&self, integrations: &Integrations) -> Result<(), Error> {
        let due = self.connections.due(TAKEN).await?;
        // Whatever comes of one, it isn't the first in line again.
        self.connections.move_on(&due).await?;
        let each = due.into_iter().map(|(organization, id)| async move {
            // One that was deleted since goes with its integration.
            let Ok(integration) = integrations.get(&organization, &id).await else { return };
            match self.connections.get(&integration).await {
                Ok(Some(connection)) => drop(self.newer(&integration, connection.version).await),
                Ok(None) => {}
                Err(error) => tracing::error!(integration.id = id, ?error, "a connection can't be read"),
            }
        });
        stream::iter(each).buffer_unordered(AT_ONCE).collect::<Vec<()>>().await;
        Ok(())
    }
}

/// What gets new tokens; none: there is nothing to show.
fn form(provider: &OAuth2, tokens: &Tokens) -> Option<Form> {
    match provider.grant {
        Grant::ClientCredentials => Some(grant::client_credentials(provider)),
        Grant::AuthorizationCode if tokens.refresh.is_empty() => None,
        Grant::AuthorizationCode => Some(grant::refresh(provider, &tokens.refresh)),
    }
}

/// When to refresh: after 75 to 85 % of the time that a token lasts, so that those granted together aren't refreshed
/// together; never, if there is nothing to do it with.
pub(super) fn refresh_at(kept: &Kept, now: Timestamp) -> Option<Timestamp> {
    let Kept::Tokens { tokens, .. } = kept else { return None };
    match tokens.expires_at {
        None if tokens.refresh.is_empty() => None,
        None => Some(now + part(AT_LEAST_EVERY)),
        Some(expires_at) => Some(now + part(expires_at.duration_since(now)).min(AT_LEAST_EVERY)),
    }
}

fn part(whole: SignedDuration) -> SignedDuration {
    let share = 0.75 + 0.1 * secret::random_share();
    SignedDuration::from_millis((whole.as_secs_f64().max(0.0) * share * 1e3) as i64)
}

/// Doubling, with up to a quarter more by chance; a vendor's own wish counts for up to an hour.
fn delay(failures: u32, retry_after: Option<Duration>) -> SignedDuration {
    let doubled = FIRST_DELAY.saturating_mul(1 << failures.min(16)).min(LONGEST_DELAY);
    let wished = retry_after.unwrap_or_default().min(LONGEST_RETRY_AFTER);
    let delay = doubled.max(wished).mul_f64(1.0 + 0.25 * secret::random_share());
    SignedDuration::try_from(delay).unwrap_or(SignedDuration::ZERO)
}

fn explained(reason: &str, connection: &Connection) -> String {
    match connection.lease_until {
        None => reason.to_owned(),
        Some(_) => format!("{reason} (an earlier refresh was cut off before its answer could be stored)"),
    }
}
