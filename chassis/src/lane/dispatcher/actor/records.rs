//! What is handed to the recorder, and what follows once it is durable.

use std::time::Duration;

use jiff::Timestamp;
use tokio::time::Instant;

use super::{Actor, DRAIN, REMOVED};
use crate::{
    clock::from_micros,
    lane::{
        delivery::{Delivery, State},
        dispatcher::{Courier, flight::Phase},
        recorder::{End, Found, Group, Insert, Update},
    },
};

/// Rows in one commit.
const GROUP_ROWS_MAX: usize = 1_000;

impl<C: Courier> Actor<C> {
    /// Hands to the recorder what is ready, if it is idle.
    pub(super) fn flush(&mut self) {
        if self.recording {
            return;
        }
        let now = Instant::now() + if self.stopping { DRAIN.unsigned_abs() } else { Duration::ZERO };
        let nothing = self.updates.is_empty()
            && self.changed_lanes.is_empty()
            && self.releases.is_empty()
            && self.unordered.is_empty()
            && self.barriers.is_empty();
        if nothing && self.pendings.due().is_none_or(|at| at > now) {
            return;
        }
        self.passing = std::mem::take(&mut self.barriers);
        let mut group = Group {
            updates: std::mem::take(&mut self.updates),
            attempts: std::mem::take(&mut self.attempts),
            releases: std::mem::take(&mut self.releases),
            unordered: std::mem::take(&mut self.unordered),
            lanes: std::mem::take(&mut self.changed_lanes)
                .iter()
                .filter_map(|number| Some(self.lanes.get(number)?.row()))
                .collect(),
            ..Group::default()
        };
        for Update { id, end } in &group.updates {
            if let Some(flight) = self.flights.get(id) {
                group.releases.extend(self.release(&flight.delivery, end));
            }
        }
        while group.inserts.len() < GROUP_ROWS_MAX
            && let Some((number, pending)) = self.pendings.pop(now)
        {
            for mut insert in pending.inserts {
                if insert.is_queued() {
                    // No slot came in time.
                    self.unqueue(&insert.delivery);
                    self.lanes.entry(insert.delivery.lane).and_modify(|lane| lane.wait(insert.delivery.priority));
                    insert.tried = false;
                }
                if !insert.tried {
                    self.reconsider(&mut insert);
                } else if let Some(flight) = self.flights.get_mut(&insert.delivery.id) {
                    flight.offer = None;
                }
                if !insert.end.state.is_final()
                    && let Some(lane) = self.lanes.get_mut(&insert.delivery.lane)
                {
                    // What is dead in the store may come to be behind it there.
                    lane.block(&insert.delivery);
                }
                group.releases.extend(self.release(&insert.delivery, &insert.end));
                group.inserts.push(insert);
            }
            group.attempts.extend(pending.attempts);
            group.offers.push((number, pending.event));
        }
        if group.is_empty() {
            return self.passed();
        }
        // The recorder is idle, so its channel has room; it is gone only when the runtime ends.
        self.recording = self.groups.try_send(group).is_ok();
    }

    /// Ends a row that came to wait in a lane that was removed or closed since.
    fn reconsider(&self, insert: &mut Insert) {
        let (state, reason) = match self.lanes.get(&insert.delivery.lane) {
            None => (State::Cancelled, REMOVED),
            Some(lane) if lane.closed => (State::Dead, "the destination was closed"),
            Some(_) => return,
        };
        insert.end = End::final_at(state, reason, self.clock.now());
    }

    /// Whose key may go on once this end of a delivery is written: that of one that others may be blocked behind, or that is
    /// blocked itself, and whom it was behind has left memory.
    fn release(&self, delivery: &Delivery, end: &End) -> Option<(i64, String)> {
        let lane = self.lanes.get(&delivery.lane)?;
        let goes_on = match end.state {
            State::Blocked => !lane.key_is_busy(delivery),
            state => state.is_final() && lane.blocks(delivery),
        };
        goes_on.then(|| (delivery.lane, delivery.ordering_key.clone()))
    }

    /// Tells those who waited for the group.
    fn passed(&mut self) {
        for done in self.passing.drain(..) {
            // Whoever waited may have gone away.
            let _ = done.send(());
        }
    }

    pub(super) fn committed(&mut self, group: Group, found: Found, now: Timestamp) {
        (self.recording, self.stalled) = (false, false);
        self.passed();
        for (number, event) in &group.offers {
            if self.uncommitted.get(event) == Some(number) {
                self.uncommitted.remove(event);
            }
            for done in self.promises.remove(number).into_iter().flatten() {
                // Whoever offered may have gone away; the deliveries are durable all the same.
                let _ = done.send(());
            }
        }
        for id in found.repeated {
            self.forget_repeated(id, now);
        }
        for Update { id, end } in &group.updates {
            self.durable(*id, end, now);
        }
        for Insert { delivery, end, tried, .. } in &group.inserts {
            match tried {
                true => self.durable(delivery.id, end, now),
                // A look into the store may have found it already.
                false => self.written(delivery, end, now),
            }
        }
        for number in found.released {
            // The one released may have any priority: the look into the store tells.
            self.lanes.entry(number).and_modify(|lane| lane.hold(1));
            self.consider(number, now);
        }
    }

    /// The row of a delivery that came to wait is durable.
    fn written(&mut self, delivery: &Delivery, end: &End, now: Timestamp) {
        let Some(lane) = self.lanes.get_mut(&delivery.lane) else { return };
        lane.written(delivery.priority);
        match end.state {
            State::Waiting => self.waits(delivery.lane, delivery.priority, end.next_at, now),
            State::Blocked => lane.keep(),
            _ => {}
        }
    }

    /// The store has this event's delivery under another id: one that hasn't begun never does, and leaves its slot.
    fn forget_repeated(&mut self, id: i64, now: Timestamp) {
        if let Some(flight) = self.flights.get(&id)
            && flight.phase == Phase::Claiming
        {
            let delivery = flight.delivery.clone();
            self.free_slots(&delivery);
            self.forget(&delivery);
            self.consider(delivery.lane, now);
        }
    }

    fn forget(&mut self, delivery: &Delivery) {
        self.flights.remove(&delivery.id);
        if let Some(lane) = self.lanes.get_mut(&delivery.lane) {
            lane.forget(delivery);
        }
    }

    /// A row is durable: a claimed delivery begins its attempt, one that has settled leaves memory.
    fn durable(&mut self, id: i64, end: &End, now: Timestamp) {
        let Some(flight) = self.flights.get_mut(&id) else { return };
        let delivery = flight.delivery.clone();
        match (end.state, flight.phase) {
            (State::Sending, Phase::Claiming) if self.lanes.contains_key(&delivery.lane) => {
                if self.lanes.get_mut(&delivery.lane).is_some_and(|lane| lane.still_lets(now)) {
                    flight.phase = Phase::Running;
                    self.attempt(delivery, now);
                } else {
                    // The commit took long, and its destination failed meanwhile: it waits after all.
                    flight.phase = Phase::Settling;
                    self.free_slots(&delivery);
                    self.updates.push(Update { id, end: End { state: State::Waiting, ..end.clone() } });
                }
            }
            (State::Sending, Phase::Claiming) => {
                self.free_slots(&delivery);
                self.forget(&delivery);
                let end = End { attempts: delivery.attempts, ..End::final_at(State::Cancelled, REMOVED, now) };
                self.updates.push(Update { id, end });
            }
            (State::Sending, _) => {}
            (state, _) => {
                self.forget(&delivery);
                match state {
                    State::Waiting => self.waits(delivery.lane, delivery.priority, end.next_at, now),
                    _ => self.consider(delivery.lane, now),
                }
            }
        }
    }

    /// A delivery waits in the store, durably: its lane is looked at now, or when it is due.
    fn waits(&mut self, number: i64, priority: i64, next_at: i64, now: Timestamp) {
        let Some(lane) = self.lanes.get_mut(&number) else { return };
        let at = from_micros(next_at);
        if at > now {
            lane.keep();
            self.arm(number, at, priority);
        } else {
            lane.hold(priority);
        }
        self.consider(number, now);
    }
}
