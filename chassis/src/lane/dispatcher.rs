//! The task that owns every lane: it takes offers, starts attempts, learns how they ended, and hands groups to the
//! recorder. It never waits for a store or a receiver itself; those run in tasks that report back.

mod actor;
mod flight;
mod lane;
#[cfg(all(test, feature = "testing"))]
mod tests;

use std::{sync::Arc, time::Duration};

use bytes::Bytes;
use jiff::Timestamp;
use tokio::sync::{mpsc, oneshot};

use self::actor::Actor;
use super::{
    backoff::Schedule,
    delivery::{Attempted, Delivery, State},
    recorder::{self, Found, Group},
    rows::{self, Due},
};
use crate::{
    clock::Clock,
    error::{Error, Result},
    id::OrganizationId,
    secret::DataKeys,
    store::Store,
    tasks::Tasks,
};

/// Carries one delivery to its destination: what a service gives to the dispatcher.
pub trait Courier: Send + Sync + 'static {
    /// Makes one attempt. It must end by itself, within a bound of its own.
    fn attempt(&self, delivery: Arc<Delivery>) -> impl Future<Output = Attempted> + Send;

    /// A lane was closed because its destination is gone or failed for too long. Called once for each closing.
    fn closed(&self, lane_id: &str, reason: &str) -> impl Future<Output = ()> + Send;
}

/// How a lane behaves.
#[derive(Clone, Debug)]
pub struct Settings {
    /// Attempts in any 60 s; 0 means no limit.
    pub rate_limit: u32,
    /// A delivery waits for its predecessor of the same ordering key, of those offered since this is set.
    pub ordered: bool,
    /// Delays between attempts.
    pub schedule: Schedule,
    /// Failing for this long, the lane is closed.
    pub disable_after: Duration,
    /// Deliveries are recorded but not tried.
    pub paused: bool,
    /// The receiver drops a repeat, or what is there already is looked up before anything is made. If not, `sending` is
    /// committed before every attempt, and an attempt that a crash interrupted is never repeated.
    pub repeatable: bool,
}

impl Default for Settings {
    fn default() -> Self {
        Self {
            rate_limit: 0,
            ordered: false,
            schedule: Schedule::default(),
            disable_after: Duration::from_secs(5 * 24 * 3600),
            paused: false,
            repeatable: false,
        }
    }
}

/// How many attempts may be under way at once.
#[derive(Clone, Copy, Debug)]
pub struct Slots {
    /// To one destination.
    pub lane: u32,
    /// For one organization.
    pub organization: usize,
    /// Altogether.
    pub all: usize,
}

impl Default for Slots {
    fn default() -> Self {
        Self { lane: 256, organization: 512, all: 1024 }
    }
}

/// What is asked of a lane: one event for one destination.
#[derive(Clone, Debug)]
pub struct Offer {
    /// The destination's own id, with a lane that was opened.
    pub lane_id: Arc<str>,
    /// The event's uid, 16 bytes of a UUID.
    pub event: [u8; 16],
    /// The event's idempotency key.
    pub event_id: String,
    /// The event's type.
    pub event_type: String,
    /// What must stay in order, where the lane asks for it.
    pub ordering_key: String,
    /// 1 CRITICAL to 4 LOW.
    pub priority: i64,
    /// `realtime`, `replay`, `test` or `import`.
    pub origin: String,
    /// The rendered message, in the courier's own form.
    pub content: Bytes,
}

/// What the dispatcher is told by its own tasks.
#[derive(Debug)]
pub(super) enum Signal {
    /// An attempt ended.
    Ended { delivery: i64, started_at: Timestamp, duration: Duration, attempted: Attempted },
    /// A look into a lane's waiting deliveries came back.
    Loaded { lane: i64, reserved: usize, due: Result<Due> },
    /// A group is durable.
    Committed(Group, Found),
    /// A commit failed; the recorder tries again.
    Stalled,
}

/// What the dispatcher is asked by others.
enum Request {
    Open {
        lane: i64,
        id: Arc<str>,
        organization: OrganizationId,
        settings: Settings,
        remembered: rows::Remembered,
    },
    /// Record all that was offered until now, as it stands.
    Record {
        done: oneshot::Sender<()>,
    },
    Drop {
        lane: i64,
        done: oneshot::Sender<()>,
    },
    Wake {
        lane: i64,
    },
    Offer {
        offers: Vec<Offer>,
        redelivered: bool,
        done: oneshot::Sender<()>,
    },
    /// Waits along with an offer of this event that isn't durable yet; says whether there is one.
    Join {
        event: [u8; 16],
        done: oneshot::Sender<()>,
        answer: oneshot::Sender<bool>,
    },
    Breaker {
        lane_id: Arc<str>,
        answer: oneshot::Sender<Option<super::breaker::State>>,
    },
    /// For tests: whether anything but an attempt is under way or due, and how many attempts are.
    #[cfg(test)]
    Look {
        answer: oneshot::Sender<(bool, usize)>,
    },
}

/// The handle that services hold. Cheap to clone.
#[derive(Clone)]
pub struct Dispatcher {
    store: Store,
    keys: DataKeys,
    clock: Clock,
    requests: mpsc::Sender<Request>,
    deaths: rows::Deaths,
    /// For tests: what dies in a crash.
    #[cfg(test)]
    mortal: [tokio::task::AbortHandle; 2],
}

impl Dispatcher {
    /// Takes the store's lanes over from an earlier process and starts to dispatch. Lanes must then be opened.
    ///
    /// # Errors
    /// Those of the store.
    pub async fn start<C: Courier>(
        store: Store,
        keys: DataKeys,
        courier: Arc<C>,
        slots: Slots,
        clock: Clock,
        tasks: &Tasks,
    ) -> Result<Self> {
        // Alarms and due times are times that are written down.
        let clock = clock.steady();
        let (deaths, last_id) = rows::take_over(&store, clock.now_micros()).await?;
        let (requests, asked) = mpsc::channel(64);
        let (signals, told) = mpsc::channel(slots.all.max(256) * 2);
        let (groups, to_record) = mpsc::channel(1);
        let _recorder =
            tasks.spawn("lane.recorder", recorder::run(store.clone(), keys.clone(), to_record, signals.clone()));
        let actor = Actor::new(
            store.clone(),
            keys.clone(),
            courier,
            slots,
            clock.clone(),
            tasks.clone(),
            signals,
            groups,
            last_id,
        );
        let _dispatcher = tasks.spawn("lane.dispatcher", actor.run(asked, told));
        Ok(Self {
            store,
            keys,
            clock,
            requests,
            deaths,
            #[cfg(test)]
            mortal: [_recorder, _dispatcher],
        })
    }

    /// Opens a destination's lane, or changes the settings of one that is open. What waits in it is taken up.
    ///
    /// # Errors
    /// Those of the store; `Error::Unavailable` while stopping.
    pub async fn open(&self, id: &str, organization: &OrganizationId, settings: Settings) -> Result<()> {
        let lane = rows::lane(&self.store, id, organization).await?;
        let window_start = self.clock.now() - super::limit::WINDOW;
        let mut remembered =
            rows::remembered(&self.store, lane, settings.rate_limit, window_start.as_microsecond()).await?;
        remembered.deaths = self.deaths;
        if remembered.repeatable != settings.repeatable {
            rows::set_repeatable(&self.store, lane, settings.repeatable).await?;
        }
        let (id, organization) = (Arc::from(id), organization.clone());
        self.ask(Request::Open { lane, id, organization, settings, remembered }).await
    }

    /// Ends everything that waits in a destination's lane as `state`, and forgets the lane. Gives the number ended.
    ///
    /// # Errors
    /// Those of the store; `Error::Unavailable` while stopping.
    pub async fn remove(&self, id: &str, organization: &OrganizationId, state: State, reason: &str) -> Result<u64> {
        let lane = rows::lane(&self.store, id, organization).await?;
        // What isn't recorded yet would be ended unseen, and not counted.
        let (done, recorded) = oneshot::channel();
        self.ask(Request::Record { done }).await?;
        recorded.await.map_err(|_| stopping())?;
        let (done, dropped) = oneshot::channel();
        self.ask(Request::Drop { lane, done }).await?;
        dropped.await.map_err(|_| stopping())?;
        rows::end_all(&self.store, lane, state, reason, self.clock.now_micros()).await
    }

    /// Takes one event's deliveries in, in the order of the calls, and tries those whose lanes allow it at once.
    /// They are durable when what it gives resolves.
    ///
    /// With `redelivered`, an event that was handled before is left as it is: its deliveries were fixed then.
    ///
    /// # Errors
    /// Those of the store; `Error::Unavailable` while stopping.
    pub async fn offer(&self, offers: Vec<Offer>, redelivered: bool) -> Result<Durable> {
        let Some(first) = offers.first() else { return Ok(Durable(None)) };
        // First what is in memory, then what is in the store: what leaves the one is in the other.
        if redelivered {
            let ((done, durable), (answer, joined)) = (oneshot::channel(), oneshot::channel());
            self.ask(Request::Join { event: first.event, done, answer }).await?;
            if joined.await.map_err(|_| stopping())? {
                return Ok(Durable(Some(durable)));
            }
            if rows::is_known(&self.store, &first.event).await? {
                return Ok(Durable(None));
            }
        }
        let (done, durable) = oneshot::channel();
        self.ask(Request::Offer { offers, redelivered, done }).await?;
        Ok(Durable(Some(durable)))
    }

    /// Opens a final delivery again: the same event and row, this content, a fresh schedule.
    ///
    /// # Errors
    /// `Error::FailedPrecondition` when it is still on its way; those of the store.
    pub async fn reopen(&self, organization: &OrganizationId, record: &rows::Record, content: &[u8]) -> Result<()> {
        rows::reopen(&self.store, &self.keys, organization, record.id, content, self.clock.now_micros()).await?;
        self.wake(&record.lane_id, organization).await
    }

    /// Lets the dead deliveries of a lane made since `since` wait again. Gives their number; `dry_run` only counts.
    ///
    /// # Errors
    /// Those of the store.
    pub async fn recover(
        &self,
        id: &str,
        organization: &OrganizationId,
        ordered: bool,
        since: Timestamp,
        dry_run: bool,
    ) -> Result<u64> {
        let lane = rows::lane(&self.store, id, organization).await?;
        if dry_run {
            return rows::count_dead(&self.store, lane, since.as_microsecond()).await;
        }
        let recovered =
            rows::recover(&self.store, lane, ordered, since.as_microsecond(), self.clock.now_micros()).await?;
        self.wake(id, organization).await?;
        Ok(recovered)
    }

    /// Has what waits for its next try be due now; a breaker, a limit and the order stay. Gives the number.
    ///
    /// # Errors
    /// Those of the store; `Error::Unavailable` while stopping.
    pub async fn hasten(&self, id: &str, organization: &OrganizationId) -> Result<u64> {
        let lane = rows::lane(&self.store, id, organization).await?;
        let hastened = rows::hasten(&self.store, lane, self.clock.now_micros()).await?;
        self.ask(Request::Wake { lane }).await?;
        Ok(hastened)
    }

    /// The breaker of an open lane; `None` for a lane that isn't open.
    ///
    /// # Errors
    /// `Error::Unavailable` while stopping.
    pub async fn breaker(&self, lane_id: &str) -> Result<Option<super::breaker::State>> {
        let (answer, state) = oneshot::channel();
        self.ask(Request::Breaker { lane_id: lane_id.into(), answer }).await?;
        state.await.map_err(|_| stopping())
    }

    async fn wake(&self, id: &str, organization: &OrganizationId) -> Result<()> {
        let lane = rows::lane(&self.store, id, organization).await?;
        self.ask(Request::Wake { lane }).await
    }

    async fn ask(&self, request: Request) -> Result<()> {
        self.requests.send(request).await.map_err(|_| stopping())
    }
}

/// A promise that what was offered is durable.
#[must_use]
pub struct Durable(Option<oneshot::Receiver<()>>);

impl Durable {
    /// Returns once it is.
    ///
    /// # Errors
    /// `Error::Unavailable` when the dispatcher stopped before: offer it again.
    pub async fn wait(self) -> Result<()> {
        match self.0 {
            Some(durable) => durable.await.map_err(|_| stopping()),
            None => Ok(()),
        }
    }
}

fn stopping() -> Error {
    Error::Unavailable("the service is stopping".into())
}
