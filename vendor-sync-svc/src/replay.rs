//! Sends deliveries again, on request: one, all of an endpoint since a time, or those that are dead.
//!
//! What is sent again is written anew from the event in the log and the endpoint's settings as they are now; the delivery
//! and its `webhook-id` stay the same. Dead letters that are recovered go out as they were written.

use std::sync::Arc;

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
    manage::Endpoints,
    router::Router,
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
    pub(crate) tasks: Tasks,
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
        let endpoint = self.endpoints.book.of(organization, &record.lane_id);
        let endpoint = endpoint.map_err(|_| Error::FailedPrecondition("its endpoint was deleted".into()))?;
        open(&endpoint)?;
        if !State::from_number(record.state).is_some_and(State::is_final) {
            return Err(Error::FailedPrecondition("the delivery is still on its way".into()));
        }
        self.reopen(&endpoint, &record, &self.content(&endpoint, &record).await?).await?;
        rows::get(&self.endpoints.store, organization, delivery).await
    }

    /// Opens everything of an endpoint again that was made in the range and has come to its end, oldest first. Gives the
    /// number. It runs to its end even if nobody waits for it any more.
    ///
    /// # Errors
    /// `Error::Invalid` for a range that holds too many; those of the store and the router.
    pub(crate) async fn replay(&self, endpoint: Arc<Endpoint>, range: Range, dry_run: bool) -> Result<u64> {
        let records = self.records(&endpoint, range).await?;
        if dry_run {
            return Ok(records.len() as u64);
        }
        open(&endpoint)?;
        let (done, replayed) = oneshot::channel();
        let replays = self.clone();
        self.tasks.spawn("replay", async move {
            // The asker may have gone away; the deliveries are on their way all the same.
            let _ = done.send(replays.reopen_all(&endpoint, records).await);
        });
        replayed.await.map_err(|_| Error::Unavailable("the service is stopping".into()))?
    }

    /// Lets the dead letters of an endpoint made since `since` wait again. Gives their number.
    ///
    /// # Errors
    /// Those of the store.
    pub(crate) async fn recover(&self, endpoint: &Endpoint, since: Timestamp, dry_run: bool) -> Result<u64> {
        if !dry_run {
            open(endpoint)?;
        }
        let (organization, ordered) = (&endpoint.organization, endpoint.settings.ordered);
        self.endpoints.dispatcher.recover(&endpoint.id, organization, ordered, since, dry_run).await
    }

    /// Oldest first.
    async fn records(&self, endpoint: &Endpoint, range: Range) -> Result<Vec<Record>> {
        let mut filter = Filter {
            lane_id: Some(endpoint.id.to_string()),
            states: FINAL.to_vec(),
            since: Some(range.since.as_microsecond()),
            until: range.until.map(Timestamp::as_microsecond),
            ..Filter::default()
        };
        let mut records: Vec<Record> = Vec::new();
        loop {
            let page = rows::list(&self.endpoints.store, &endpoint.organization, &filter, PAGE).await?;
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

    async fn reopen_all(&self, endpoint: &Endpoint, records: Vec<Record>) -> Result<u64> {
        let write = |record: Record| async move {
            match self.content(endpoint, &record).await {
                Ok(content) => Ok(Some((record, content))),
                // Purged from the log, or not this supplier's to see: the others still go.
                Err(Error::NotFound(_)) => Ok(None),
                Err(error) => Err(error),
            }
        };
        let written = stream::iter(records).map(write).buffered(AHEAD);
        let reopened = written.try_fold(0, |count, written| async move {
            let Some((record, content)) = written else { return Ok(count) };
            match self.reopen(endpoint, &record, &content).await {
                Ok(()) => Ok(count + 1),
                // It was opened by somebody else since it was listed.
                Err(Error::FailedPrecondition(_)) => Ok(count),
                Err(error) => Err(error),
            }
        });
        reopened.await
    }

    /// The letter, written anew.
    async fn content(&self, endpoint: &Endpoint, record: &Record) -> Result<bytes::Bytes> {
        let uid = <[u8; 16]>::try_from(record.event.as_slice());
        let uid =
            uid.map_err(|_| Error::internal(anyhow::anyhow!("delivery {} has a malformed event uid", record.id)))?;
        let event = self.router.event(&endpoint.organization, uid).await?;
        if !endpoint.may_see(&event) {
            return Err(Error::NotFound("event".into()));
        }
        Ok(self.renderer.letter(endpoint, &event).seal())
    }

    async fn reopen(&self, endpoint: &Endpoint, record: &Record, content: &[u8]) -> Result<()> {
        self.endpoints.dispatcher.reopen(&endpoint.organization, record, content).await
    }
}

/// A disabled endpoint's lane is closed: what were opened again would wait unseen.
fn open(endpoint: &Endpoint) -> Result<()> {
    if endpoint.state == EndpointState::Disabled {
        return Err(Error::FailedPrecondition("the endpoint is disabled: resume it first".into()));
    }
    Ok(())
}
