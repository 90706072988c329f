//! The stream, from its slot to the log: one side reads messages and answers the server, the other turns them into events
//! and follows them until they are durable, a third stores how far that is.
//!
//! Between the first two is a bounded queue. While the log is slow the queue is full and nothing is read from the server,
//! which waits; what the server must hear, so that it doesn't hang up, is sent every second all the same.
//!
//! Invariant: the server is told a place only when every event up to it is durable in the log, and after that place was
//! stored as told.

use std::{sync::Arc, time::Duration};

use tokio::{
    select,
    sync::{OwnedSemaphorePermit, Semaphore, mpsc, watch},
    time::{Instant, MissedTickBehavior, interval, sleep, timeout},
};
use tokio_util::sync::CancellationToken;

use super::{
    CaptureError, Session,
    config::{identifier, literal},
    decode::Decoder,
    feedback::{Incoming, Payload, SILENCE_MAX, STATUS_EVERY, status},
    intake::{Done, Intake},
    position::{Lsn, Origin},
    wire::{Connection, Message, WireError},
};

/// Messages, and bytes of them, that may wait between the server and the log.
const QUEUE: usize = 1_024;
const QUEUE_BYTES: usize = 8 << 20;
/// How often what is durable is stored, and the server told, at most.
const ACKNOWLEDGE_EVERY: Duration = Duration::from_millis(500);
/// How long the store may be away before the stream is given up: a server that is told to end waits until everybody who
/// streams from it has acknowledged all that it wrote, and it may be the very server that the store is on.
const STORE_AWAY_MAX: Duration = Duration::from_secs(5);
/// How long a stop waits for the events under way.
const STOP_WITHIN: Duration = Duration::from_secs(3);

/// A message of the stream, with its share of the bytes that may wait.
struct Queued {
    payload: Payload,
    is_cut: bool,
    _room: OwnedSemaphorePermit,
}

/// Streams until told to stop, or until something breaks.
pub(super) async fn run(
    session: &mut Session<'_>,
    mut connection: Connection,
    origin: &Origin,
    start: Lsn,
    stopping: &CancellationToken,
) -> Result<(), CaptureError> {
    let source = session.source;
    let publication = literal(&identifier(&source.publication));
    let slot = identifier(&source.slot);
    let begin =
        format!("START_REPLICATION SLOT {slot} LOGICAL 0/0 (proto_version '1', publication_names {publication})");
    connection.start_copy(&begin).await?;
    session.connected();
    tracing::info!(source = source.name, %start, "changes are streaming");
    let (durable, told) = (watch::Sender::new(start), watch::Sender::new(start));
    let (queue, queued) = mpsc::channel(QUEUE);
    let state = session.state;
    let name = source.name.clone();
    let mut saving = Box::pin(save(state, origin.generation, durable.subscribe(), &told));
    let mut reader = Reader { connection, told: told.subscribe(), durable: durable.subscribe(), name, received: start };
    let publishing = publish(session, origin, queued, &durable);
    tokio::pin!(publishing);
    let ended = select! {
        ended = reader.run(queue, stopping) => ended,
        published = &mut publishing => published,
        saved = &mut saving => saved,
    };
    // Nobody polls it any more: it must not hold the store's connection meanwhile.
    drop(saving);
    if ended.is_err() {
        // Whether a server that takes over has all that is in the log is judged by this place.
        let place = *durable.borrow();
        let _ = timeout(STOP_WITHIN, state.acknowledge(origin.generation, place)).await;
    }
    ended?;
    // In order: what was read is published, then stored as done, and the server hears it.
    let _ = timeout(STOP_WITHIN, publishing).await;
    let place = *durable.borrow();
    state.acknowledge(origin.generation, place).await?;
    reader.connection.copy(&status(place, false)).await?;
    reader.connection.close().await;
    Ok(())
}

struct Reader {
    connection: Connection,
    told: watch::Receiver<Lsn>,
    durable: watch::Receiver<Lsn>,
    name: String,
    received: Lsn,
}

impl Reader {
    async fn run(&mut self, queue: mpsc::Sender<Queued>, stopping: &CancellationToken) -> Result<(), CaptureError> {
        let room = Arc::new(Semaphore::new(QUEUE_BYTES));
        let mut tick = interval(STATUS_EVERY);
        tick.set_missed_tick_behavior(MissedTickBehavior::Delay);
        let (mut waiting, mut heard) = (None::<Message>, Instant::now());
        loop {
            select! {
                biased;
                () = stopping.cancelled() => return Ok(()),
                _ = tick.tick() => self.tick(heard, waiting.is_some()).await?,
                Ok(()) = self.told.changed() => self.tell(false).await?,
                (room, place) = space(&room, &queue, waiting.as_ref()), if waiting.is_some() => {
                    let Some(message) = waiting.take() else { continue };
                    // While nothing was read, nothing could be heard.
                    heard = Instant::now();
                    let place = place.map_err(|_| WireError::Protocol("nobody publishes any more"))?;
                    if let Some(queued) = self.queued(message, room).await? {
                        place.send(queued);
                    }
                }
                message = self.connection.copied(), if waiting.is_none() => {
                    waiting = Some(message?);
                    heard = Instant::now();
                }
            }
        }
    }

    /// What is to be published; what the server asks for is answered here.
    async fn queued(&mut self, message: Message, room: OwnedSemaphorePermit) -> Result<Option<Queued>, CaptureError> {
        let Incoming { end, payload, asks } = Incoming::parse(message.body)?;
        self.received = self.received.max(end);
        if asks {
            self.tell(false).await?;
        }
        Ok(payload.map(|payload| Queued { payload, is_cut: message.is_cut, _room: room }))
    }

    async fn tell(&mut self, asks: bool) -> Result<(), CaptureError> {
        let place = *self.told.borrow_and_update();
        Ok(self.connection.copy(&status(place, asks)).await?)
    }

    /// Keeps the connection known to be alive, on both ends. Nothing is read while the queue is full: then silence is ours.
    async fn tick(&mut self, heard: Instant, is_full: bool) -> Result<(), CaptureError> {
        if !is_full && heard.elapsed() > SILENCE_MAX {
            return Err(WireError::Slow.into());
        }
        let lag = self.received.0.saturating_sub(self.durable.borrow().0);
        metrics::gauge!("capture_pending_bytes", "source" => self.name.clone()).set(lag as f64);
        self.tell(heard.elapsed() > SILENCE_MAX / 3).await
    }
}

/// Waits for room for a message.
async fn space<'q>(
    room: &Arc<Semaphore>,
    queue: &'q mpsc::Sender<Queued>,
    message: Option<&Message>,
) -> (OwnedSemaphorePermit, Result<mpsc::Permit<'q, Queued>, mpsc::error::SendError<()>>) {
    let bytes = message.map_or(0, |message| message.body.len() + 64).min(QUEUE_BYTES);
    let share = u32::try_from(bytes).unwrap_or(u32::MAX);
    let share = room.clone().acquire_many_owned(share).await.expect("it is never closed");
    (share, queue.reserve().await)
}

async fn publish(
    session: &mut Session<'_>,
    origin: &Origin,
    mut queue: mpsc::Receiver<Queued>,
    durable: &watch::Sender<Lsn>,
) -> Result<(), CaptureError> {
    let mut intake = session.intake();
    let mut decoder = Decoder::new(origin.clone());
    let mut is_open = true;
    loop {
        select! {
            biased;
            Some(outcome) = intake.next(), if !intake.is_empty() => {
                report(session, intake.settle(outcome).await?, durable);
            }
            queued = queue.recv(), if is_open && intake.has_room() => match queued {
                Some(queued) => take(session, &mut decoder, &mut intake, queued).await?,
                None => is_open = false,
            },
            else => return Ok(()),
        }
    }
}

async fn take(
    session: &mut Session<'_>,
    decoder: &mut Decoder,
    intake: &mut Intake<'_>,
    queued: Queued,
) -> Result<(), CaptureError> {
    match queued.payload {
        Payload::Idle(end) if !decoder.is_inside() => intake.mark(end, None),
        Payload::Idle(_) => {}
        Payload::Output(output) => decoder.take(session, intake, output, queued.is_cut).await?,
    }
    Ok(())
}

fn report(session: &Session<'_>, done: Done, durable: &watch::Sender<Lsn>) {
    let Done::Through { end, committed_at } = done else { return };
    durable.send_if_modified(|place| {
        let moves = end > *place;
        *place = end.max(*place);
        moves
    });
    let late = committed_at.map_or(0.0, |at| session.publisher.clock.now().duration_since(at).as_secs_f64().max(0.0));
    session.source.live.is_late(late);
}

/// Stores what is durable, then lets the server be told. While the store is away nothing moves, and the server is told
/// the last place again.
///
/// # Errors
/// The store is away for too long.
async fn save(
    state: &super::state::State,
    generation: i64,
    mut durable: watch::Receiver<Lsn>,
    told: &watch::Sender<Lsn>,
) -> Result<(), CaptureError> {
    let mut asked = None;
    while durable.changed().await.is_ok() {
        let place = *durable.borrow_and_update();
        let since = *asked.get_or_insert_with(Instant::now);
        match state.acknowledge(generation, place).await {
            Ok(()) => {
                told.send_replace(place);
                asked = None;
            }
            Err(error) if since.elapsed() >= STORE_AWAY_MAX => return Err(error.into()),
            Err(error) => {
                tracing::warn!(%error, "how far a source is can't be stored; trying again");
                durable.mark_changed();
            }
        }
        sleep(ACKNOWLEDGE_EVERY).await;
    }
    Ok(())
}
