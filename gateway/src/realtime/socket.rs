//! The life of one WebSocket: frames in, frames out, until either side has enough. It holds little while nothing happens:
//! small buffers, no compression, and what handles a frame is in memory only meanwhile.

use std::{sync::Arc, time::Duration};

use futures_util::{SinkExt as _, StreamExt as _, future::BoxFuture};
use jiff::{SignedDuration, Timestamp};
use tokio::time::timeout;
use tokio_tungstenite::tungstenite::{self, Message, protocol::CloseFrame};
use tonic::Status;

use super::{
    Connected, Realtime,
    catch_up::Page,
    frame::{Encoding, Wire},
    handshake::{WRITE_BUFFER, WebSocket},
    hub::MemberId,
    outbox::Outbox,
    session::Session,
};

/// How long a client may take none of what is sent to it.
const WRITE_WITHIN: Duration = Duration::from_secs(30);

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
    /// This process stops.
    Restart,
}

/// A channel's topic and place, and what comes next for it.
struct Reading {
    topic: String,
    seat: MemberId,
    page: BoxFuture<'static, Result<Page, Status>>,
}

/// One socket.
pub(super) struct Socket {
    socket: WebSocket,
    session: Session,
    realtime: Arc<Realtime>,
    encoding: Encoding,
    outbox: Arc<Outbox>,
    /// Something waits in the socket's own buffer.
    unsent: bool,
    heard: Timestamp,
    /// When it is closed because this process stops.
    leaves: Option<Timestamp>,
    /// Some channel may be behind.
    behind: bool,
    /// What one reads on from the log, and who.
    reading: Option<Reading>,
    connected: Connected,
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
            unsent: false,
            heard,
            leaves: None,
            behind: false,
            reading: None,
            connected,
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
            drop(timeout(WRITE_WITHIN, self.socket.send(frame)).await);
        }
    }

    /// Sends what waits, then does what comes first.
    async fn turn(&mut self) -> Result<(), Close> {
        self.flush().await?;
        let wake = self.wake()?;
        let draining = self.realtime.chassis.draining();
        let is_draining = self.leaves.is_some();
        tokio::select! {
            message = self.socket.next() => Box::pin(self.receive(message)).await,
            () = self.outbox.ready() => Ok(()),
            page = read(&mut self.reading), if self.reading.is_some() => Box::pin(self.catch_up(page)).await,
            () = self.realtime.chassis.clock.sleep_until(wake) => Ok(()),
            () = draining.cancelled(), if !is_draining => {
                self.leaves = Some(self.realtime.leaves(self.connected.number));
                Ok(())
            }
        }
    }

    /// Sends all that waits, and begins to read for a channel that is behind.
    async fn flush(&mut self) -> Result<(), Close> {
        while let Some(wire) = self.outbox.take() {
            self.send(wire).await?;
        }
        if std::mem::take(&mut self.unsent) {
            within(self.socket.flush()).await?;
        }
        if self.outbox.is_broken() {
            return Err(Close::Overflow);
        }
        if self.outbox.take_ended() {
            self.session.end_all();
        }
        self.session.tell_lost();
        self.behind |= self.outbox.take_behind();
        if self.behind && self.reading.is_none() {
            for wire in self.session.catch_up() {
                self.send(wire).await?;
            }
            self.reading = self.session.behind().and_then(|(topic, seat)| {
                let page = self.realtime.read(seat.hub(), seat.behind()?);
                Some(Reading { topic: topic.to_owned(), seat: seat.id(), page })
            });
            self.behind = self.reading.is_some();
        }
        Ok(())
    }

    /// Writes a frame, which may wait for those after it until the next [`Socket::flush`].
    async fn send(&mut self, wire: Wire) -> Result<(), Close> {
        self.unsent = true;
        for fragment in wire.fragments(WRITE_BUFFER) {
            within(self.socket.feed(fragment)).await?;
        }
        Ok(())
    }

    /// When something must be done even if nothing comes.
    fn wake(&mut self) -> Result<Timestamp, Close> {
        let now = self.realtime.chassis.clock.now();
        let idle = self.heard + SignedDuration::from_millis(self.realtime.config.idle_timeout_ms as i64);
        if self.leaves.is_some_and(|leaves| leaves <= now) {
            return Err(Close::Restart);
        }
        if idle <= now {
            return Err(Close::Idle);
        }
        let expiry = self.session.expire();
        Ok([Some(idle), self.leaves, expiry].into_iter().flatten().min().unwrap_or(idle))
    }

    async fn receive(&mut self, message: Option<tungstenite::Result<Message>>) -> Result<(), Close> {
        let Some(Ok(message)) = message else { return Err(Close::Gone) };
        self.heard = self.realtime.chassis.clock.now();
        match message {
            // What it is answered is in the socket already.
            Message::Close(_) => within(self.socket.flush()).await.and(Err(Close::Gone)),
            Message::Ping(_) | Message::Pong(_) => Ok(()),
            message => {
                let frame = self.encoding.decode(&message).ok_or(Close::Malformed)?;
                drop(message);
                self.session.handle(frame).await;
                Ok(())
            }
        }
    }

    /// Sends what a channel has read; it goes on in the next turn.
    async fn catch_up(&mut self, page: Result<Page, Status>) -> Result<(), Close> {
        let Some(Reading { topic, seat, .. }) = self.reading.take() else { return Ok(()) };
        for wire in self.session.take_in(&topic, seat, page) {
            self.send(wire).await?;
        }
        Ok(())
    }
}

async fn within(written: impl Future<Output = tungstenite::Result<()>>) -> Result<(), Close> {
    match timeout(WRITE_WITHIN, written).await {
        Ok(Ok(())) => Ok(()),
        _ => Err(Close::Gone),
    }
}

async fn read(reading: &mut Option<Reading>) -> Result<Page, Status> {
    match reading {
        Some(reading) => (&mut reading.page).await,
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
            Self::Restart => Some((1012, "service restart")),
        }
    }
}
