//! The event log: appended in group commits, read back in order. The spine that everything else hangs on.
//!
//! Sequences are gapless and in commit order: inside the append transaction the head is locked, only events that the log
//! doesn't know are numbered, and the head moves by their count. An append is answered after its commit, a duplicate
//! after its original's.
//!
//! Invariant: two routers never write one log. Each start raises the epoch, and every write carries it.

mod append;
mod entry;
mod order;
mod read;
mod retention;
mod tail;
mod write;

use std::sync::{Arc, Mutex, PoisonError};

use chassis::{
    clock::Clock,
    error::{Error, Result},
    id,
    secret::DataKeys,
    store::Store,
    tasks::Tasks,
    with,
};
use proto::common::v1::Position;
use tokio::sync::{Semaphore, mpsc, oneshot, watch};
use tokio_util::sync::CancellationToken;

pub(crate) use self::{
    entry::{Draft, Entry, aad},
    order::Order,
    read::{PAGE, Page},
    retention::Retention,
};
use self::{
    tail::Tail,
    write::{Append, Writer},
};
use crate::{consumer::cursor::Dirty, weddings::Weddings};

/// Bytes of drafts that may wait for their commit; publishers wait at the bound.
const PENDING_BYTES_MAX: usize = 16 << 20;
/// Drafts that may wait for their commit.
const PENDING_MAX: usize = 4_096;

/// How an append ended well.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Appended {
    pub(crate) sequence: u64,
    pub(crate) uid: [u8; 16],
    /// The log held it already; sequence and uid are the original's.
    pub(crate) duplicate: bool,
}

/// The durable event log. Cheap to clone.
#[derive(Clone)]
pub(crate) struct Log {
    store: Store,
    keys: DataKeys,
    log_id: Arc<str>,
    /// This router's: a higher one in the store is another's.
    epoch: i64,
    head: watch::Sender<u64>,
    oldest: Arc<Mutex<u64>>,
    tail: Arc<Tail>,
    appends: mpsc::Sender<Append>,
    room: Arc<Semaphore>,
    lost: CancellationToken,
    pub(crate) dirty: Arc<Dirty>,
}

impl Log {
    /// Opens the log, makes it where there is none, takes it over from an earlier router, and starts to write.
    ///
    /// # Errors
    /// Those of the store.
    pub(crate) async fn open(
        store: Store,
        keys: DataKeys,
        weddings: Weddings,
        clock: &Clock,
        tasks: &Tasks,
    ) -> Result<Self> {
        with!(store.writer(), c => sqlx::query(
            "INSERT INTO log (id, log_id, head, oldest, epoch) VALUES (1, $1, 0, 1, 0) ON CONFLICT (id) DO NOTHING",
        ).bind(id::uuid(clock.now())).execute(c).await.map(drop))?;
        let (log_id, head, oldest, epoch): (String, i64, i64, i64) = with!(store.writer(), c => sqlx::query_as(
            "UPDATE log SET epoch = epoch + 1 WHERE id = 1 RETURNING log_id, head, oldest, epoch",
        ).fetch_one(c).await)?;
        let (appends, queue) = mpsc::channel(PENDING_MAX);
        let log = Self {
            log_id: log_id.into(),
            epoch,
            head: watch::Sender::new(number(head)),
            oldest: Arc::new(Mutex::new(number(oldest))),
            tail: Arc::new(Tail::after(number(head))),
            appends,
            room: Arc::new(Semaphore::new(PENDING_BYTES_MAX)),
            lost: CancellationToken::new(),
            dirty: Arc::new(Dirty::default()),
            store,
            keys,
        };
        let writer = Writer { log: log.clone(), kept: log.store.keep(), weddings, clock: clock.clone() };
        let stopping = tasks.stopping();
        tasks.spawn("log.writer", writer.run(queue, stopping));
        Ok(log)
    }

    /// Takes an event in, in the order of the calls; durable when the promise resolves. Of an `order`, no event is taken
    /// once an earlier one wasn't.
    ///
    /// # Errors
    /// Of the promise: `Error::AlreadyExists` when the id stands for other content; `Error::Unavailable` while the store
    /// can't take it.
    pub(crate) async fn append(
        &self,
        draft: Draft,
        order: Option<Order>,
    ) -> Result<impl Future<Output = Result<Appended>> + Send + 'static> {
        let room = self.room.clone().acquire_many_owned(draft.weight()).await.map_err(|_| stopping())?;
        let (done, committed) = oneshot::channel();
        self.appends.send(Append { draft, order, done, _room: room }).await.map_err(|_| stopping())?;
        Ok(async move { committed.await.map_err(|_| stopping())? })
    }

    /// Cancelled once another router has taken the log over: this one can't write any more.
    pub(crate) fn lost(&self) -> CancellationToken {
        self.lost.clone()
    }

    /// The last event's sequence; 0 for an empty log.
    pub(crate) fn head(&self) -> u64 {
        *self.head.borrow()
    }

    /// Tells whenever the head moves.
    pub(crate) fn watch(&self) -> watch::Receiver<u64> {
        self.head.subscribe()
    }

    /// The first sequence that is still kept.
    pub(crate) fn oldest(&self) -> u64 {
        *self.oldest.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Events before `oldest` are no longer kept.
    fn begin_at(&self, oldest: u64) {
        *self.oldest.lock().unwrap_or_else(PoisonError::into_inner) = oldest;
    }

    /// A place in this log.
    pub(crate) fn position(&self, sequence: u64) -> Position {
        Position { log_id: self.log_id.to_string(), sequence }
    }

    pub(crate) fn id(&self) -> &str {
        &self.log_id
    }

    /// The sequence of a position that a caller gave: exclusive, 0 meaning before the first.
    ///
    /// # Errors
    /// `Error::OutOfRange` with what is needed to resync, for a position of another log, past the head or before retention.
    pub(crate) fn since(&self, position: &Position) -> Result<u64> {
        let head = self.head();
        if position.log_id != *self.log_id {
            Err(self.out_of_range("the position is of another log"))
        } else if position.sequence > head {
            Err(self.out_of_range("the position is past the head of the log"))
        } else {
            self.check_kept(position.sequence).map(|()| position.sequence)
        }
    }

    /// Whether everything after `since` is kept. Readers of the store ask once they have read: events go meanwhile.
    fn check_kept(&self, since: u64) -> Result<()> {
        let is_kept = since.saturating_add(1) >= self.oldest();
        if is_kept { Ok(()) } else { Err(self.out_of_range("the position is before what is kept")) }
    }

    fn out_of_range(&self, reason: &str) -> Error {
        let (head, oldest) = (self.head(), self.oldest());
        let metadata =
            vec![("log_id", self.log_id.to_string()), ("oldest", oldest.to_string()), ("head", head.to_string())];
        let reason = format!("{reason}: read again from the start, then continue from the head");
        Error::OutOfRange { reason, metadata }
    }
}

fn stopping() -> Error {
    Error::Unavailable("the router is stopping".into())
}

/// A sequence as the store holds it.
fn number(stored: i64) -> u64 {
    u64::try_from(stored).unwrap_or(0)
}

/// A sequence for the store.
pub(crate) fn stored(sequence: u64) -> i64 {
    i64::try_from(sequence).unwrap_or(i64::MAX)
}
