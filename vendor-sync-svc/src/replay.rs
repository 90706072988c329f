//! Sends deliveries again, on request: one, all of an endpoint or an integration since a time, or those that are dead.
//!
//! What is sent again is written anew from the event in the log and the endpoint's settings, or the record, as they are
//! now; the delivery and its `webhook-id` stay the same. What an integration's vendor is known to have isn't asked of it
//! again. Dead letters that are recovered go out as they were written.

use std::sync::Arc;

use bytes::Bytes;
use chassis::{
    error::{Error, Result},
    id::OrganizationId,
    lane::{
        State,
        rows::{self, Filter, Record},
    },
    tasks::Tasks,
};
use futures_util::{StreamExt as _, TryStreamExt as _, stream};
use jiff::Timestamp;
use tokio::sync::oneshot;

use crate::{
    body::Renderer,
    endpoint::{Endpoint, State as EndpointState},
    event::Event,
    manage::Endpoints,
    router::Router,
    sync::{account::Account, offer::Offers},
};

/// Deliveries in one replay.
const REPLAY_MAX: usize = 100_000;
/// Rows in one look into the store.
const PAGE: u32 = 500;
/// Events that are fetched ahead.
const AHEAD: usize = 16;
/// What has come to its end, and can be sent again.
const FINAL: [State; 4] = [State::Delivered, State::Dead, State::Cancelled, State::Unknown];

/// Sends again. Cheap to clone.
#[derive(Clone)]
pub(crate) struct Replays {
    pub(crate) endpoints: Arc<Endpoints>,
    pub(crate) router: Router,
    pub(crate) renderer: Renderer,
    pub(crate) offers: Offers,
    pub(crate) tasks: Tasks,
}

/// Where deliveries go.
#[derive(Clone)]
pub(crate) enum Target {
    Endpoint(Arc<Endpoint>),
    Integration(Arc<Account>),
}

impl Target {
    fn id(&self) -> &str {
        match self {
            Self::Endpoint(endpoint) => &endpoint.id,
            Self::Integration(account) => &account.integration.id,
        }
    }

    fn organization(&self) -> &OrganizationId {
        match self {
            Self::Endpoint(endpoint) => &endpoint.organization,
            Self::Integration(account) => &account.integration.organization,
        }
    }

    fn is_ordered(&self) -> bool {
        match self {
            Self::Endpoint(endpoint) => endpoint.settings.ordered,
            Self::Integration(_) => true,
        }
    }

    /// A disabled endpoint's lane is closed, and a disconnected integration is told of nothing: what were opened again would
    /// wait unseen.
    fn check_open(&self) -> Result<()> {
        let closed = match self {
            Self::Endpoint(endpoint) if endpoint.state == EndpointState::Disabled => {
                "the endpoint is disabled: resume it first"
            }
            Self::Integration(account) if !account.is_told() => "the integration is disabled, or not connected",
            _ => return Ok(()),
        };
        Err(Error::FailedPrecondition(closed.into()))
    }
}

/// From `since`, before `until`.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Range {
    pub(crate) since: Timestamp,
    pub(crate) until: Option<Timestamp>,
}

impl Replays {
    /// Opens one delivery again.
    ///
    /// # Errors
    /// `Error::FailedPrecondition` while it is on its way, or its endpoint gets nothing; `Error::NotFound` when there is no
    /// such delivery, or its event is no longer kept.
    pub(crate) async fn resend(&self, organization: &OrganizationId, delivery: i64) -> Result<Record> {
        let record = rows::get(&self.endpoints.store, organization, delivery).await?;
        let target = self.target(organization, &record.lane_id);
        let target = target.map_err(|_| Error::FailedPrecondition("where it went was deleted".into()))?;
        target.check_open()?;
        if !State::from_number(record.state).is_some_and(State::is_final) {
            return Err(Error::FailedPrecondition("the delivery is still on its way".into()));
        }
        self.reopen(&target, &record, &self.content(&target, &record).await?).await?;
        rows::get(&self.endpoints.store, organization, delivery).await
    }

    /// The organization's endpoint, or integration, of this id.
    ///
    /// # Errors
    /// `Error::NotFound` for an unknown id, and for another organization's.
    pub(crate) fn target(&self, organization: &OrganizationId, id: &str) -> Result<Target> {
        let missing = match self.endpoints.book.of(organization, id) {
            Ok(endpoint) => return Ok(Target::Endpoint(endpoint)),
            Err(error) => error,
        };
        self.offers.accounts.of(organization, id).map(Target::Integration).map_err(|_| missing)
    }

    /// Opens everything of a target again that was made in the range and has come to its end, oldest first. Gives the
    /// number. It runs to its end even if nobody waits for it any more.
    ///
    /// # Errors
    /// `Error::Invalid` for a range that holds too many; those of the store and the router.
    pub(crate) async fn replay(&self, target: Target, range: Range, dry_run: bool) -> Result<u64> {
        let records = self.records(&target, range).await?;
        if dry_run {
            return Ok(records.len() as u64);
        }
        target.check_open()?;
        let (done, replayed) = oneshot::channel();
        let replays = self.clone();
        self.tasks.spawn("replay", async move {
            // The asker may have gone away; the deliveries are on their way all the same.
            let _ = done.send(replays.reopen_all(&target, records).await);
        });
        replayed.await.map_err(|_| Error::Unavailable("the service is stopping".into()))?
    }

    /// Lets the dead letters of a target made since `since` wait again. Gives their number.
    ///
    /// # Errors
    /// Those of the store.
    pub(crate) async fn recover(&self, target: &Target, since: Timestamp, dry_run: bool) -> Result<u64> {
        if !dry_run {
            target.check_open()?;
        }
        let dispatcher = &self.endpoints.dispatcher;
        dispatcher.recover(target.id(), target.organization(), target.is_ordered(), since, dry_run).await
    }

    /// Oldest first.
    async fn records(&self, target: &Target, range: Range) -> Result<Vec<Record>> {
        let mut filter = Filter {
            lane_id: Some(target.id().to_owned()),
            states: FINAL.to_vec(),
            since: Some(range.since.as_microsecond()),
            until: range.until.map(Timestamp::as_microsecond),
            ..Filter::default()
        };
        let mut records: Vec<Record> = Vec::new();
        loop {
            let page = rows::list(&self.endpoints.store, target.organization(), &filter, PAGE).await?;
            let Some(last) = page.last() else { break };
            filter.before = Some(last.id);
            records.extend(page);
            if records.len() > REPLAY_MAX {
                let reason = format!(
                    "more than {REPLAY_MAX} deliveries lie in the range: ask for a narrower one, by `since` and `until`"
                );
                return Err(Error::invalid("since", reason));
            }
        }
        records.reverse();
        Ok(records)
    }

    async fn reopen_all(&self, target: &Target, records: Vec<Record>) -> Result<u64> {
        let write = |record: Record| async move {
            match self.content(target, &record).await {
                Ok(content) => Ok(Some((record, content))),
                // Purged from the log, or not this supplier's to see: the others still go.
                Err(Error::NotFound(_)) => Ok(None),
                Err(error) => Err(error),
            }
        };
        let written = stream::iter(records).map(write).buffered(AHEAD);
        let reopened = written.try_fold(0, |count, written| async move {
            let Some((record, content)) = written else { return Ok(count) };
            match self.reopen(target, &record, &content).await {
                Ok(()) => Ok(count + 1),
                // It was opened by somebody else since it was listed.
                Err(Error::FailedPrecondition(_)) => Ok(count),
                Err(error) => Err(error),
            }
        });
        reopened.await
    }

    /// The letter, written anew.
    async fn content(&self, target: &Target, record: &Record) -> Result<Bytes> {
        let uid = <[u8; 16]>::try_from(record.event.as_slice());
        let uid =
            uid.map_err(|_| Error::internal(anyhow::anyhow!("delivery {} has a malformed event uid", record.id)))?;
        let event = self.router.event(target.organization(), uid).await?;
        self.letter(target, &event).await?.ok_or_else(|| Error::NotFound("event".into()))
    }

    /// None: it may not see the event, or no longer.
    async fn letter(&self, target: &Target, event: &Event) -> Result<Option<Bytes>> {
        match target {
            Target::Endpoint(endpoint) => {
                Ok(endpoint.may_see(event).then(|| self.renderer.letter(endpoint, event).seal()))
            }
            Target::Integration(account) => self.offers.again(event, account).await,
        }
    }

    async fn reopen(&self, target: &Target, record: &Record, content: &[u8]) -> Result<()> {
        self.endpoints.dispatcher.reopen(target.organization(), record, content).await
    }
}
