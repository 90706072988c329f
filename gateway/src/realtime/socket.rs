//! The life of one WebSocket: frames in, frames out, until either side has enough. It holds little while nothing happens:
//! small buffers, no compression, and what handles a frame is in memory only meanwhile.

#[cfg(test)]
mod tests;

use std::{collections::VecDeque, future::poll_fn, sync::Arc, time::Duration};

use futures_util::{SinkExt as _, StreamExt as _, future::BoxFuture};
use jiff::{SignedDuration, Timestamp};
use tokio::time::timeout;
use tokio_tungstenite::tungstenite::{self, Message, protocol::CloseFrame};
use tonic::Status;

use super::{
    Connected, Realtime,
    catch_up::Page,
    frame::{Encoding, Fragments, Wire},
    handshake::{WRITE_BUFFER, WebSocket},
    hub::MemberId,
    outbox::Outbox,
    pace::{Pace, Rate},
    session::Session,
};

/// How long a client may take none of what is sent to it.
pub(super) const WRITE_WITHIN: Duration = Duration::from_secs(30);
const STUCK_FOR: SignedDuration = SignedDuration::from_secs(WRITE_WITHIN.as_secs() as i64);
/// How long it may take what is said at the end: nobody who stops waits longer.
const CLOSED_WITHIN: Duration = Duration::from_secs(2);
/// How long it may send before it looks after everything else.
const SENDS_FOR: SignedDuration = SignedDuration::from_secs(1);
/// A connection that sends so many times its messages, of whatever kind, is closed.
const FLOOD: u32 = 10;

/// Why a socket is closed (RFC 6455, section 7.4.1).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Close {
    /// The client has left, or can't be reached.
    Gone,
    /// Nothing came from it for too long.
    Idle,
    /// What it sent is none of the protocol.
    Malformed,
    /// It asks and reads none of the answers.
    Overflow,
    /// It sends far more than it may.
    Flood,
    /// This process stops.
    Restart,
}

/// A channel's topic and place, and how far its reading on from the log is.
struct Reading {
    topic: String,
    seat: MemberId,
    step: Step,
}

enum Step {
    /// What comes next for it.
    Page(BoxFuture<'static, Result<Page, Status>>),
    /// What of the last page isn't sent yet.
    Told(VecDeque<Wire>),
}

/// One socket.
pub(super) struct Socket {
    socket: WebSocket,
    session: Session,
    realtime: Arc<Realtime>,
    encoding: Encoding,
    outbox: Arc<Outbox>,
    /// What goes before anything that waits in the queue: what a channel missed before it became live.
    first: VecDeque<Wire>,
    /// What of the message that is being sent is left.
    sending: Option<Fragments>,
    /// Something waits in the socket's own buffer.
    unsent: bool,
    /// Since when the client takes nothing.
    stuck: Option<Timestamp>,
    heard: Timestamp,
    /// When it is closed because this process stops.
    leaves: Option<Timestamp>,
    /// Some channel may be behind.
    behind: bool,
    /// What one reads on from the log, and who.
    reading: Option<Reading>,
    connected: Connected,
    received: Pace,
}

impl Socket {
    pub(super) fn new(
        socket: WebSocket,
        realtime: Arc<Realtime>,
        encoding: Encoding,
        key: String,
        connected: Connected,
    ) -> Self {
        let outbox = Arc::new(Outbox::new(realtime.config.queue_bytes as usize));
        let session = Session::new(realtime.clone(), encoding, key, outbox.clone());
        let heard = realtime.chassis.clock.now();
        Self {
            socket,
            session,
            realtime,
            encoding,
            outbox,
            first: VecDeque::new(),
            sending: None,
            unsent: false,
            stuck: None,
            heard,
            leaves: None,
            behind: false,
            reading: None,
            connected,
            received: Pace::default(),
        }
    }

    /// Serves it to its end.
    pub(super) async fn run(mut self) {
        let close = loop {
            if let Err(close) = self.turn().await {
                break close;
            }
        };
        tracing::debug!(?close, "a socket ended");
        if let Some((code, reason)) = close.frame() {
            let frame = Message::Close(Some(CloseFrame { code: code.into(), reason: reason.into() }));
            drop(timeout(CLOSED_WITHIN, self.socket.send(frame)).await);
        }
    }

    /// Sends what waits, then does what comes first.
    async fn turn(&mut self) -> Result<(), Close> {
        let wake = self.wake()?;
        self.flush().await?;
        let draining = self.realtime.chassis.draining();
        let is_draining = self.leaves.is_some();
        tokio::select! {
            // Its words first, since one that takes slowly what is sent isn't silent; what comes for it is sent each turn.
            biased;
            message = self.socket.next() => Box::pin(self.receive(message)).await,
            () = draining.cancelled(), if !is_draining => {
                self.leaves = Some(self.realtime.leaves(self.connected.number));
                Ok(())
            }
            page = read(&mut self.reading), if self.reading.is_some() => {
                page.into_iter().for_each(|page| self.catch_up(page));
                Ok(())
            }
            () = self.outbox.ready() => Ok(()),
            () = std::future::ready(()), if self.has_more() => Ok(()),
            () = self.realtime.chassis.clock.sleep_until(wake) => Ok(()),
        }
    }

    /// Sends what waits, and begins to read for a channel that is behind. However slowly the client takes it, however
    /// large a message is and however fast more comes, it is asked now and then what it says, whether its tokens are good,
    /// and whether this process stops.
    async fn flush(&mut self) -> Result<(), Close> {
        if self.outbox.is_broken() {
            return Err(Close::Overflow);
        }
        let until = self.now() + SENDS_FOR;
        while self.takes(until, false).await? {
            let Some(fragment) = self.next() else {
                if !self.unsent || self.takes(until, true).await? {
                    self.unsent = false;
                    self.look_after();
                }
                return Ok(());
            };
            self.unsent = true;
            self.socket.start_send_unpin(fragment).map_err(|_| Close::Gone)?;
            if self.now() >= until {
                return Ok(());
            }
        }
        Ok(())
    }

    /// Whether there is room for a fragment in time, or `all` that was sent is written. One that takes nothing for too long
    /// is gone; that it takes something again shows only when all is written, since there may be room all the time.
    async fn takes(&mut self, until: Timestamp, all: bool) -> Result<bool, Close> {
        let all = all || self.stuck.is_some();
        let clock = &self.realtime.chassis.clock;
        let (began, socket) = (clock.now(), &mut self.socket);
        let taken =
            poll_fn(|context| if all { socket.poll_flush_unpin(context) } else { socket.poll_ready_unpin(context) });
        tokio::select! {
            biased;
            taken = taken => {
                self.stuck = None;
                taken.map(|()| true).map_err(|_| Close::Gone)
            }
            () = clock.sleep_until(until) => {
                let stuck = *self.stuck.get_or_insert(began);
                if clock.now().duration_since(stuck) >= STUCK_FOR { Err(Close::Gone) } else { Ok(false) }
            }
        }
    }

    /// Does what else is to be done once everything was sent.
    fn look_after(&mut self) {
        if self.outbox.take_ended() {
            self.session.end_all();
        }
        self.session.tell_lost();
        self.behind |= self.outbox.take_behind();
        if self.behind && self.reading.is_none() {
            // One channel at a time, so that no more waits than one has missed.
            if let Some(missed) = self.session.catch_up() {
                self.first = missed.into();
                return;
            }
            self.reading = self.session.behind().and_then(|(topic, seat)| {
                let page = self.realtime.read(seat.hub(), seat.behind()?);
                Some(Reading { topic: topic.to_owned(), seat: seat.id(), step: Step::Page(page) })
            });
            self.behind = self.reading.is_some();
        }
    }

    /// Whether there is something to send, or to look after, that nothing will come for.
    fn has_more(&self) -> bool {
        self.sending.is_some() || self.unsent || !self.first.is_empty() || (self.behind && self.reading.is_none())
    }

    /// What is sent next; it may wait in the socket for what comes after it.
    fn next(&mut self) -> Option<Message> {
        if let Some(fragment) = self.sending.as_mut().and_then(Iterator::next) {
            return Some(fragment);
        }
        self.sending = self.wire().map(|wire| wire.fragments(WRITE_BUFFER));
        self.sending.as_mut()?.next()
    }

    /// What a channel has missed before it became live, then what comes now, then what a channel has read.
    fn wire(&mut self) -> Option<Wire> {
        if let Some(wire) = self.first.pop_front().or_else(|| self.outbox.take()) {
            return Some(wire);
        }
        let Some(Reading { step: Step::Told(told), .. }) = &mut self.reading else { return None };
        let next = told.pop_front();
        if next.is_none() {
            self.reading = None;
        }
        next
    }

    /// When something must be done even if nothing comes.
    fn wake(&mut self) -> Result<Timestamp, Close> {
        let now = self.now();
        let idle = self.heard + SignedDuration::from_millis(self.realtime.config.idle_timeout_ms as i64);
        if self.leaves.is_some_and(|leaves| leaves <= now) {
            return Err(Close::Restart);
        }
        if idle <= now {
            return Err(Close::Idle);
        }
        let expiry = self.session.expire();
        // What was read for a channel that has ended is for nobody.
        self.reading.take_if(|reading| !self.session.is_seated(&reading.topic, reading.seat));
        Ok([Some(idle), self.leaves, expiry].into_iter().flatten().min().unwrap_or(idle))
    }

    async fn receive(&mut self, message: Option<tungstenite::Result<Message>>) -> Result<(), Close> {
        let Some(Ok(message)) = message else { return Err(Close::Gone) };
        let rate = Rate::new(self.realtime.config.messages_per_second.saturating_mul(FLOOD), 1);
        if !self.received.take(rate, self.now()) {
            return Err(Close::Flood);
        }
        match message {
            // What it is answered is in the socket already.
            Message::Close(_) => {
                drop(timeout(CLOSED_WITHIN, self.socket.flush()).await);
                return Err(Close::Gone);
            }
            Message::Ping(_) | Message::Pong(_) => {}
            message => {
                let frame = self.encoding.decode(&message).ok_or(Close::Malformed)?;
                drop(message);
                self.session.handle(frame).await;
            }
        }
        // One that is on no channel takes up a place that somebody else may want.
        if self.session.is_on_any() {
            self.heard = self.now();
        }
        Ok(())
    }

    /// Takes in what a channel has read; it is sent in the next turn.
    fn catch_up(&mut self, page: Result<Page, Status>) {
        let Some(reading) = &mut self.reading else { return };
        reading.step = Step::Told(self.session.take_in(&reading.topic, reading.seat, page).into());
    }

    fn now(&self) -> Timestamp {
        self.realtime.chassis.clock.now()
    }
}

/// The next page; none where one is still being sent.
async fn read(reading: &mut Option<Reading>) -> Option<Result<Page, Status>> {
    match reading.as_mut().map(|reading| &mut reading.step) {
        Some(Step::Page(page)) => Some(page.await),
        Some(Step::Told(_)) => None,
        None => std::future::pending().await,
    }
}

impl Close {
    /// What the client is told; nothing if it isn't there.
    fn frame(self) -> Option<(u16, &'static str)> {
        match self {
            Self::Gone => None,
            Self::Idle => Some((1000, "idle")),
            Self::Malformed => Some((1003, "malformed frame")),
            Self::Overflow => Some((1008, "reads too slowly")),
            Self::Flood => Some((1008, "too many messages")),
            Self::Restart => Some((1012, "service restart")),
        }
    }
}
