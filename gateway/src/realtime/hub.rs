//! One organization's subscribers, in one place: what its log brings reaches those whom it concerns, by an index, in one
//! encoding a group. `feed.rs` brings it; sockets and event streams hold a [`Seat`] each.
//!
//! Invariant: a subscriber that is live was given every event after the place where it became so; one whose queue was
//! full is behind from the first event that it wasn't given. Filling a queue never waits.
//! Invariant: nobody stays in a hub that nothing feeds any more; whoever was in it, or comes too late, is told.

mod seat;
mod state;
#[cfg(test)]
mod tests;

use std::{
    sync::{
        Arc, Mutex, MutexGuard, PoisonError,
        atomic::{AtomicU64, Ordering},
    },
    time::{Duration, Instant},
};

use chassis::id::OrganizationId;
use proto::{
    common::v1::Position,
    router::v1::{Broadcast, Event},
};
use serde_json::Value;
use tokio::{
    sync::{Semaphore, SemaphorePermit, watch},
    time::timeout,
};

pub(crate) use self::seat::Seat;
use self::state::State;
use super::{
    group::{Frames, Told},
    member::{Member, Place},
    notice::{self, Notice},
};

/// Names subscribers, in this process.
pub(crate) type MemberId = u64;

static NEXT: AtomicU64 = AtomicU64::new(1);

/// Pages of its log that one organization's subscribers read at a time: others' need the router as well.
const PAGES: usize = 8;

/// One organization's.
pub(crate) struct Hub {
    pub(crate) organization: OrganizationId,
    /// Begins the names that its subscribers send broadcasts under.
    sender: String,
    state: Mutex<State>,
    /// Whether events come.
    fed: watch::Sender<Fed>,
    /// For those who read on from the log.
    pages: Semaphore,
}

/// Whether events come into a hub.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Fed {
    NotYet,
    Live,
    /// And never will again.
    Closed,
}

impl Hub {
    pub(crate) fn new(organization: OrganizationId, gateway: &str) -> Self {
        Self {
            organization,
            sender: format!("{gateway}/"),
            state: Mutex::default(),
            fed: watch::Sender::new(Fed::NotYet),
            pages: Semaphore::new(PAGES),
        }
    }

    /// Waits for a turn at reading the log.
    pub(crate) async fn turn(&self) -> SemaphorePermit<'_> {
        self.pages.acquire().await.expect("it is never closed")
    }

    /// Waits until events come; false if they don't within this time, or never will.
    pub(crate) async fn is_live(&self, within: Duration) -> bool {
        let mut fed = self.fed.subscribe();
        let reached = timeout(within, fed.wait_for(|fed| *fed != Fed::NotYet)).await;
        reached.is_ok_and(|reached| reached.is_ok_and(|fed| *fed == Fed::Live))
    }

    pub(crate) fn set_live(&self, live: bool) {
        self.fed.send_replace(if live { Fed::Live } else { Fed::NotYet });
    }

    /// Nothing feeds it from here on: whoever is in it is told, and has to join another one.
    pub(crate) fn close(&self) {
        self.fed.send_replace(Fed::Closed);
        for member in self.state().members.values() {
            member.outbox.end();
        }
    }

    pub(crate) fn is_closed(&self) -> bool {
        *self.fed.borrow() == Fed::Closed
    }

    /// How far it is; none before its start.
    pub(crate) fn position(&self) -> Option<Position> {
        Some(self.state().position.clone()).filter(|position| !position.log_id.is_empty())
    }

    /// Everything up to here came or isn't this organization's.
    pub(crate) fn progress(&self, position: Position) {
        let mut state = self.state();
        state.position = position;
        state.recent.trim(Instant::now());
    }

    /// Events up to `position` can't be had: all subscribers read on from the log, which tells them so.
    pub(crate) fn restart(&self, position: Position) {
        let mut state = self.state();
        state.recent.restart(position.sequence);
        let before = std::mem::replace(&mut state.position, position);
        state.last = 0;
        for member in state.members.values_mut().filter(|member| matches!(member.place, Place::Live(_))) {
            member.place = Place::Behind(before.clone());
            member.outbox.fall_behind();
        }
    }

    /// Seats a subscriber; live from here on, unless it wants what came after an earlier place. `announce` is told where
    /// that is and who is present, before anything that comes.
    pub(crate) fn join(
        self: &Arc<Self>,
        mut member: Member,
        resume: Option<Position>,
        announce: impl FnOnce(&Position, Value),
    ) -> Seat {
        let id = NEXT.fetch_add(1, Ordering::Relaxed);
        let mut state = self.state();
        announce(&state.position, state.present(member.topic.channel()));
        member.place = Place::Live(state.position.sequence);
        if let Some(since) = resume {
            member.place = Place::Behind(since);
            member.outbox.fall_behind();
        }
        if self.is_closed() {
            member.outbox.end();
        }
        state.add(id, member);
        drop(state);
        Seat { hub: self.clone(), id }
    }

    /// Hands out one event.
    pub(crate) fn deliver(&self, event: Event) {
        let notice = Notice::read(&event);
        let mut state = self.state();
        let mut frames = Frames::new(&notice);
        for (id, concern) in state.concerned(&notice) {
            if let Some(member) = state.members.get_mut(&id) {
                member.tell(concern, &notice, &mut frames);
            }
        }
        let rows = notice.rows().clone();
        if let Some(position) = &event.position {
            (state.last, state.position) = (position.sequence, position.clone());
        }
        state.recent.add(event, rows, Instant::now());
    }

    /// Hands out one message that is in no log.
    pub(crate) fn broadcast(&self, broadcast: &Broadcast) {
        let Some(content) = &broadcast.content else { return };
        let json = notice::is_json(&content.content_type);
        let content = if json { Ok(notice::json(&content.data)) } else { Err(&content.data) };
        let told = Told { name: &broadcast.event, content, meta: None, id: None };
        let from: Option<MemberId> =
            broadcast.sender_id.strip_prefix(&self.sender).and_then(|number| number.parse().ok());
        let state = self.state();
        let hears = |id: MemberId, member: &Member| {
            member.is_on_channel() && member.may_hear(&broadcast.channel) && (member.own || from != Some(id))
        };
        state.tell_room(&broadcast.channel, hears, |member| told.frame(member.encoding, &member.topic));
    }

    /// So many messages that are in no log were lost on their way here: each subscriber is told.
    pub(crate) fn lost(&self, count: u64) {
        let state = self.state();
        for member in state.members.values() {
            member.outbox.lose(count);
        }
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
