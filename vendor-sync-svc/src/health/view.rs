//! How an integration stands, put together: its connection, its standing, what probes found, and how its lane does.

use std::time::Duration;

use chassis::{
    clock::{Clock, from_micros},
    error::{Error, Result},
    id::OrganizationId,
    lane::{Dispatcher, breaker, rows},
    store::Store,
};
use futures_util::{StreamExt as _, TryStreamExt as _, stream};
use jiff::{SignedDuration, Timestamp};
use tokio::sync::{broadcast, mpsc};

use super::{Healths, Standing};
use crate::{
    credential::{Changed, Connections, State},
    integration::{Integration, Integrations},
};

/// What attempts are counted over.
const WINDOW: SignedDuration = SignedDuration::from_hours(1);
const PAGE: i64 = 100;
/// Of a page, looked at together: each is a handful of short reads.
const AT_ONCE: usize = 8;
/// Views that wait for one watcher; more wait for it.
const WAITING: usize = 16;

/// How one integration stands.
#[derive(Clone, Debug)]
pub(crate) struct Shown {
    pub(crate) integration: Integration,
    pub(crate) connection: State,
    pub(crate) connection_reason: String,
    pub(crate) connection_since: Option<Timestamp>,
    pub(crate) old_expires_at: Option<Timestamp>,
    pub(crate) old_used_at: Option<Timestamp>,
    /// None: not probed yet.
    pub(crate) standing: Option<(Standing, Timestamp)>,
    pub(crate) probe_error: String,
    pub(crate) probed_at: Option<Timestamp>,
    pub(crate) breaker: Option<breaker::State>,
    pub(crate) backlog: u64,
    pub(crate) oldest_waiting_at: Option<Timestamp>,
    pub(crate) attempts: u64,
    pub(crate) failed_attempts: u64,
    pub(crate) last_success_at: Option<Timestamp>,
}

/// Shows how integrations stand. Cheap to clone.
#[derive(Clone)]
pub(crate) struct View {
    pub(crate) store: Store,
    pub(crate) dispatcher: Dispatcher,
    pub(crate) integrations: Integrations,
    pub(crate) connections: Connections,
    pub(crate) healths: Healths,
    pub(crate) changed: broadcast::Sender<Changed>,
    pub(crate) clock: Clock,
}

impl View {
    /// How `integration` stands now.
    ///
    /// # Errors
    /// `Error::Unavailable` while the store is away.
    pub(crate) async fn of(&self, integration: Integration) -> Result<Shown> {
        let connection = self.connections.get(&integration).await?;
        let known = self.healths.of(&integration).await?;
        let breaker = self.dispatcher.breaker(&integration.id).await?;
        let lane = rows::statistics(&self.store, &integration.id, self.clock.now() - WINDOW).await?;
        let delivered_at = lane.last_success_at.map(from_micros);
        let (probe_error, probed_at, good_at) = match &known {
            Some(known) => (known.probe_error.clone(), known.probed_at, known.last_good_at),
            None => (String::new(), None, None),
        };
        Ok(Shown {
            connection: connection.as_ref().map_or(State::Disconnected, |connection| connection.state),
            connection_reason: connection.as_ref().map(|connection| connection.reason.clone()).unwrap_or_default(),
            connection_since: connection.as_ref().map(|connection| connection.since),
            old_expires_at: connection.as_ref().and_then(|connection| connection.old.as_ref()).map(|(_, until)| *until),
            old_used_at: connection.as_ref().and_then(|connection| connection.old_used_at),
            standing: known.map(|known| (known.health.standing, known.health.since)),
            probe_error,
            probed_at,
            breaker,
            backlog: lane.waiting.iter().map(|(_, count)| count).sum(),
            oldest_waiting_at: lane.oldest_waiting_at.map(from_micros),
            attempts: lane.attempts,
            failed_attempts: lane.failed_attempts,
            last_success_at: delivered_at.max(good_at),
            integration,
        })
    }

    /// A page of an organization's, after the one with the id `after`.
    ///
    /// # Errors
    /// `Error::Unavailable` while the store is away.
    pub(crate) async fn list(&self, organization: &OrganizationId, after: &str, limit: i64) -> Result<Vec<Shown>> {
        let page = self.integrations.list(organization, after, limit).await?;
        stream::iter(page).map(|integration| self.of(integration)).buffered(AT_ONCE).try_collect().await
    }

    /// How each stands now, then each change; of one integration, or (empty) of all of the organization. It ends when nobody
    /// takes what it gives. Who is slow holds up this stream alone: changes that it misses are made up for by showing all
    /// anew.
    pub(crate) fn watch(
        self,
        organization: OrganizationId,
        id: String,
    ) -> (mpsc::Receiver<Result<Shown>>, impl Future<Output = ()> + Send) {
        let (sender, receiver) = mpsc::channel(WAITING);
        // Listened to before the first look: what changes in between is shown twice, and not missed.
        let changes = self.changed.subscribe();
        let work = async move {
            let closed = sender.clone();
            let told = async {
                if let Err(error) = self.tell(&organization, &id, changes, &sender).await {
                    drop(sender.send(Err(error)).await);
                }
            };
            tokio::select! {
                () = told => {}
                () = closed.closed() => {}
            }
        };
        (receiver, work)
    }

    async fn tell(
        &self,
        organization: &OrganizationId,
        id: &str,
        mut changes: broadcast::Receiver<Changed>,
        to: &mpsc::Sender<Result<Shown>>,
    ) -> Result<()> {
        self.show_all(organization, id, to).await?;
        loop {
            match changes.recv().await {
                Ok(changed) if changed.organization == *organization && (id.is_empty() || changed.id == id) => {
                    match self.integrations.get(organization, &changed.id).await {
                        Ok(integration) => show(to, self.of(integration).await?).await?,
                        Err(Error::NotFound(_)) => {}
                        Err(error) => return Err(error),
                    }
                }
                Ok(_) => {}
                Err(broadcast::error::RecvError::Lagged(_)) => self.show_all(organization, id, to).await?,
                Err(broadcast::error::RecvError::Closed) => return Ok(()),
            }
        }
    }

    async fn show_all(&self, organization: &OrganizationId, id: &str, to: &mpsc::Sender<Result<Shown>>) -> Result<()> {
        if !id.is_empty() {
            let integration = self.integrations.get(organization, id).await?;
            return show(to, self.of(integration).await?).await;
        }
        let mut after = String::new();
        loop {
            let page = self.list(organization, &after, PAGE).await?;
            let Some(last) = page.last() else { return Ok(()) };
            after = last.integration.id.clone();
            for shown in page {
                show(to, shown).await?;
            }
        }
    }
}

/// How long one may take to read what it is shown.
const READ_WITHIN: Duration = Duration::from_secs(60);

async fn show(to: &mpsc::Sender<Result<Shown>>, shown: Shown) -> Result<()> {
    let slow = || Error::Unavailable("this stream isn't read: watch again".to_owned());
    to.send_timeout(Ok(shown), READ_WITHIN).await.map_err(|_| slow())
}
