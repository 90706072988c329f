//! What waits for one connection to take it: a queue bounded in bytes, or to one message. Filling it never waits.
//!
//! Answers always fit, since a client sends no faster than it reads them; changes and broadcasts only up to the bound.

use std::{
    collections::VecDeque,
    sync::{Mutex, MutexGuard, PoisonError},
};

use tokio::sync::Notify;

use super::frame::Wire;

/// What a frame costs besides its bytes.
const FRAME_BYTES: usize = 64;
/// Room for answers beyond the bound; a connection that takes none of so many is closed.
const ANSWERS_BYTES: usize = 512 << 10;
/// An idle queue gives memory back beyond this many frames.
const IDLE_FRAMES: usize = 8;

/// The queue of one connection.
#[derive(Debug)]
pub(crate) struct Outbox {
    state: Mutex<State>,
    ready: Notify,
    limit: usize,
}

#[derive(Debug, Default)]
struct State {
    queue: VecDeque<Wire>,
    bytes: usize,
    /// Live messages that didn't fit since it was last told.
    lost: u64,
    /// Some subscription on it reads on from the log.
    behind: bool,
    /// Nothing more fits: the connection must end.
    broken: bool,
    /// What its subscriptions were in is no more.
    ended: bool,
}

impl Outbox {
    pub(crate) fn new(limit: usize) -> Self {
        Self { state: Mutex::default(), ready: Notify::new(), limit }
    }

    /// Adds an answer.
    pub(crate) fn answer(&self, wire: Wire) {
        let mut state = self.state();
        if state.bytes + cost(&wire) > self.limit + ANSWERS_BYTES {
            state.broken = true;
        } else {
            state.add(wire);
        }
        self.ready.notify_one();
    }

    /// Adds all of them, or none if there is no room. Where nothing waits there is, however large they are: else nobody
    /// would ever be told of the largest.
    pub(crate) fn offer(&self, wires: &[Wire]) -> bool {
        let mut state = self.state();
        if state.bytes > 0 && state.bytes + wires.iter().map(cost).sum::<usize>() > self.limit {
            return false;
        }
        wires.iter().cloned().for_each(|wire| state.add(wire));
        self.ready.notify_one();
        true
    }

    /// Adds a message that nobody keeps; without room it is counted as lost.
    pub(crate) fn offer_live(&self, wire: &Wire) {
        if !self.offer(std::slice::from_ref(wire)) {
            self.lose(1);
        }
    }

    /// So many live messages were lost before they came here.
    pub(crate) fn lose(&self, count: u64) {
        self.state().lost += count;
        self.ready.notify_one();
    }

    /// Some subscription reads on from the log once what waits was taken.
    pub(crate) fn fall_behind(&self) {
        self.state().behind = true;
        self.ready.notify_one();
    }

    /// Whether one does; it is asked once, by whoever looks after all of them.
    pub(crate) fn take_behind(&self) -> bool {
        std::mem::take(&mut self.state().behind)
    }

    /// Nothing feeds its subscriptions any more.
    pub(crate) fn end(&self) {
        self.state().ended = true;
        self.ready.notify_one();
    }

    /// Whether that is so; as [`Outbox::take_behind`].
    pub(crate) fn take_ended(&self) -> bool {
        std::mem::take(&mut self.state().ended)
    }

    /// The next frame.
    pub(crate) fn take(&self) -> Option<Wire> {
        let mut state = self.state();
        let Some(wire) = state.queue.pop_front() else {
            if state.queue.capacity() > IDLE_FRAMES {
                state.queue = VecDeque::new();
            }
            return None;
        };
        state.bytes -= cost(&wire);
        Some(wire)
    }

    /// How many live messages were lost since this was last asked.
    pub(crate) fn take_lost(&self) -> u64 {
        std::mem::take(&mut self.state().lost)
    }

    pub(crate) fn is_broken(&self) -> bool {
        self.state().broken
    }

    /// Returns once there may be something to do.
    pub(crate) async fn ready(&self) {
        if self.is_idle() {
            self.ready.notified().await;
        }
    }

    fn is_idle(&self) -> bool {
        let state = self.state();
        state.queue.is_empty() && !state.behind && !state.broken && !state.ended && state.lost == 0
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl State {
    fn add(&mut self, wire: Wire) {
        self.bytes += cost(&wire);
        self.queue.push_back(wire);
    }
}

fn cost(wire: &Wire) -> usize {
    wire.len() + FRAME_BYTES
}

#[cfg(test)]
mod tests {
    use super::*;

    fn frame(bytes: usize) -> Wire {
        Wire::Text("x".repeat(bytes).into())
    }

    #[test]
    fn changes_fit_whole_or_not_at_all_and_answers_still_do() {
        let outbox = Outbox::new(1_000);
        assert!(outbox.offer(&[frame(300), frame(300)]));
        assert!(!outbox.offer(&[frame(100), frame(200)]), "both or none");
        outbox.offer_live(&frame(500));
        assert_eq!((outbox.take_lost(), outbox.take_lost()), (1, 0));
        outbox.answer(frame(500));
        assert!(!outbox.is_broken());
        assert_eq!(std::iter::from_fn(|| outbox.take()).map(|wire| wire.len()).collect::<Vec<_>>(), [300, 300, 500]);
        assert!(outbox.offer(&[frame(900)]), "what was taken makes room");
        assert!(!outbox.offer(&[frame(2_000)]) && outbox.take().is_some());
        assert!(outbox.offer(&[frame(2_000)]), "the largest comes alone");
    }

    #[test]
    fn a_client_that_asks_and_never_reads_breaks_its_own_connection() {
        let outbox = Outbox::new(1_000);
        (0..600).for_each(|_| outbox.answer(frame(1_000)));
        assert!(outbox.is_broken());
        assert!(std::iter::from_fn(|| outbox.take()).count() < 600);
    }

    #[tokio::test]
    async fn whoever_waits_wakes_for_a_frame_and_for_falling_behind() {
        let outbox = Outbox::new(1_000);
        tokio::join!(outbox.ready(), async { outbox.answer(frame(1)) });
        assert!(outbox.take().is_some());
        tokio::join!(outbox.ready(), async { outbox.fall_behind() });
        assert_eq!((outbox.take_behind(), outbox.take_behind()), (true, false));
    }
}
