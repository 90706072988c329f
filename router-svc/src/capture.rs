//! Change capture: what is committed in a PostgreSQL database comes as events, through logical replication.
//!
//! The way of a change: `wire` (the connection) -> `stream` (queue, answers to the server) -> `pgoutput` and `decode` (whose
//! transaction, which number) -> `row` and `value` (JSON records, whose they are) -> `intake` (published, followed until it
//! is durable). `slot`, `publication` and `snapshot` make the beginning; `state` is what the router's store keeps, `report` what
//! people may see of it.
//!
//! Guarantee: each committed change is in the log exactly once, in commit order, whatever is killed or cut: the server is
//! told a place only when everything up to it is durable, what is read again has the same ids, and a change that isn't
//! taken holds back all later ones. What can't be an event is kept as a refusal; what was lost with a slot is told.

mod config;
mod decode;
mod feedback;
mod intake;
mod live;
mod notice;
mod pgoutput;
mod position;
mod publication;
mod report;
mod row;
mod slot;
mod snapshot;
mod state;
mod stream;
mod value;
mod watch;
mod wire;

use std::time::Duration;

use chassis::{error::Error, store::Store, tasks::Tasks};
use tokio_util::sync::CancellationToken;

pub use self::config::{OwnerSettings, SourceSettings, Unlisted};
pub(crate) use self::{
    config::{Source, sources},
    report::{Capture, Captures, Kept, Standing},
};
use self::{
    intake::{Failing, Intake},
    pgoutput::{Malformed, Relation},
    slot::text,
    state::State,
    value::{FIRST_OWN, Own, Types},
    wire::{Connection, WireError},
};
use crate::publish::Publisher;

/// Waits between sessions: doubles up to the last, each shortened by up to a half at random.
const FIRST_WAIT: Duration = Duration::from_millis(200);
const LONGEST_WAIT: Duration = Duration::from_secs(5);
/// How often, and how soon, it looks again for a type whose transaction isn't visible yet.
const LOOKS_MAX: u32 = 50;
const LOOK_AGAIN: Duration = Duration::from_millis(20);
const NOT_VISIBLE: &str = "a transaction with a new type was written, but is not visible yet";
const TOO_LONG: &str = "the row is longer than 16 MiB, far over what an event may hold";

/// Why a session ended.
#[derive(Debug, thiserror::Error)]
enum CaptureError {
    #[error(transparent)]
    Wire(#[from] WireError),
    #[error("the stream can't be read: {0}")]
    Malformed(#[from] Malformed),
    #[error("the router can't take a change now: {0}")]
    Router(#[from] Error),
    #[error("{0}")]
    Source(String),
}

/// Starts to read every source. None of them is waited for.
pub(crate) fn start(sources: Vec<Source>, publisher: &Publisher, store: &Store, tasks: &Tasks) -> Captures {
    let mut known = Vec::new();
    for source in sources {
        let (store, clock, keyring) = (store.clone(), publisher.clock.clone(), publisher.keys.keyring().clone());
        let state = State { source: source.name.clone(), store, clock, keyring };
        known.push((source.live.clone(), state.clone()));
        tasks.spawn("capture", run(source, publisher.clone(), state, tasks.stopping()));
    }
    Captures { sources: known.into(), store: store.clone(), keyring: publisher.keys.keyring().clone() }
}

/// One session after the other, until told to stop.
async fn run(source: Source, publisher: Publisher, state: State, stopping: CancellationToken) {
    let failing = Failing::default();
    let mut wait = FIRST_WAIT;
    while !stopping.is_cancelled() {
        let mut session = Session {
            source: &source,
            publisher: &publisher,
            state: &state,
            failing: &failing,
            types: Types::default(),
            wait: &mut wait,
        };
        let ended = session.run(&stopping).await;
        source.live.streams(false);
        let Err(error) = ended else { continue };
        let code = if let CaptureError::Wire(error) = &error { error.code() } else { "" };
        let pause = jittered(wait);
        tracing::error!(source = source.name, %error, code, wait_ms = pause.as_millis(), "changes don't stream; trying again");
        metrics::counter!("capture_reconnects_total", "source" => source.name.clone()).increment(1);
        wait = (wait * 2).min(LONGEST_WAIT);
        stopping.run_until_cancelled(tokio::time::sleep(pause)).await;
    }
}

fn jittered(wait: Duration) -> Duration {
    wait.mul_f64(0.5 + f64::from(chassis::secret::random::<1>()[0]) / 512.0)
}

/// One connection's life.
struct Session<'s> {
    source: &'s Source,
    publisher: &'s Publisher,
    state: &'s State,
    failing: &'s Failing,
    types: Types,
    wait: &'s mut Duration,
}

impl<'s> Session<'s> {
    async fn run(&mut self, stopping: &CancellationToken) -> Result<(), CaptureError> {
        let opening = async {
            let mut connection = Connection::open(&self.source.address).await?;
            let (origin, start) = Box::pin(slot::open(self, &mut connection)).await?;
            Ok::<_, CaptureError>((connection, origin, start))
        };
        let Some(opened) = stopping.run_until_cancelled(opening).await else { return Ok(()) };
        let (connection, origin, start) = opened?;
        let watching = watch::run(self.source);
        tokio::select! {
            ended = stream::run(self, connection, &origin, start, stopping) => ended,
            () = watching => Ok(()),
        }
    }

    /// The stream has begun: the next wait is a short one.
    fn connected(&mut self) {
        *self.wait = FIRST_WAIT;
        self.source.live.streams(true);
    }

    fn intake(&self) -> Intake<'s> {
        Intake::new(self.source.label(), self.publisher, self.state, self.failing)
    }

    /// Reads what the database's own types stand for.
    async fn load_types(&mut self, connection: &mut Connection) -> Result<(), CaptureError> {
        let select = format!(
            "SELECT oid, typtype, typbasetype, CASE WHEN typcategory = 'A' THEN typelem ELSE 0 END FROM pg_type WHERE oid >= {FIRST_OWN}"
        );
        for row in connection.query(&select).await? {
            let number = |column| text(&row, column).parse::<u32>().ok();
            let Some(oid) = number(0) else { continue };
            let own = match (text(&row, 1).as_str(), number(2), number(3)) {
                ("d", Some(base), _) => Own::Domain(base),
                (_, _, Some(element @ 1..)) => Own::Array(element),
                _ => Own::Other,
            };
            self.types.0.insert(oid, own);
        }
        Ok(())
    }

    /// Makes sure of every type of a table, before a row of it is read. One that has gone meanwhile is text.
    ///
    /// The stream brings a transaction as soon as it is written; others see it a little later, when it has let go of its
    /// locks. Its types are looked for then.
    async fn learn_types(&mut self, relation: &Relation, xid: u32) -> Result<(), CaptureError> {
        let know_all = |types: &Types| relation.columns.iter().all(|column| types.knows(column.type_));
        if know_all(&self.types) {
            return Ok(());
        }
        let mut connection = Connection::open(&self.source.address).await?;
        let is_open = format!(
            "SELECT 1 FROM pg_locks WHERE locktype = 'transactionid' AND transactionid = '{xid}' AND mode = 'ExclusiveLock'"
        );
        for look in 0.. {
            let is_open = !connection.query(&is_open).await?.is_empty();
            self.load_types(&mut connection).await?;
            match is_open && !know_all(&self.types) {
                false => break,
                true if look == LOOKS_MAX => return Err(CaptureError::Source(NOT_VISIBLE.to_owned())),
                true => tokio::time::sleep(LOOK_AGAIN).await,
            }
        }
        connection.close().await;
        for column in relation.columns.iter().filter(|column| column.type_ >= FIRST_OWN) {
            self.types.0.entry(column.type_).or_insert(Own::Other);
        }
        Ok(())
    }
}
