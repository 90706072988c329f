//! What waits in the store: when a lane is looked at again, whose turn it is, and what a look brought.

use std::sync::Arc;

use jiff::{SignedDuration, Timestamp};

use super::Actor;
use crate::{
    clock::from_micros,
    error::Result,
    lane::{
        delivery::{CRITICAL, Delivery, State},
        dispatcher::{Courier, Signal, lane::Ready},
        recorder::{End, Update},
        rows::{self, Due},
    },
};

/// Looks into the store at once.
const LOADS_MAX: usize = 4;
/// When a look into the store failed, the next comes after this.
const RELOAD: SignedDuration = SignedDuration::from_secs(1);

impl<C: Courier> Actor<C> {
    pub(super) fn next_wake(&self) -> Option<Timestamp> {
        self.timers.first().map(|(at, _)| *at)
    }

    pub(super) fn ring(&mut self) {
        let now = self.clock.now();
        while let Some(timer) = self.timers.first().copied()
            && timer.0 <= now
        {
            self.timers.remove(&timer);
            let number = timer.1;
            if let Some(lane) = self.lanes.get_mut(&number)
                && let Some((_, priority)) = lane.alarm.take()
            {
                lane.hold(priority);
                self.consider(number, now);
            }
        }
    }

    /// Looks at a lane again at `at`, when something of this priority is due, or before.
    pub(super) fn arm(&mut self, number: i64, at: Timestamp, priority: i64) {
        let Some(lane) = self.lanes.get_mut(&number) else { return };
        if lane.alarm.is_none_or(|(alarm, _)| at < alarm) {
            if let Some((later, _)) = lane.alarm.replace((at, priority)) {
                self.timers.remove(&(later, number));
            }
            self.timers.insert((at, number));
        }
    }

    /// Queues a lane for a turn if something may be due in it, or sets the timer for when it may be tried.
    pub(super) fn consider(&mut self, number: i64, now: Timestamp) {
        let Some(lane) = self.lanes.get_mut(&number) else { return };
        let Some(priority) = lane.backlog else { return };
        if lane.loading || self.stopping {
            return;
        }
        match lane.ready(now) {
            Ready::Now if lane.free(now) > 0 => self.turns.push(&lane.organization, number, priority == CRITICAL),
            // A running attempt of the lane will end and bring it here again.
            Ready::Now | Ready::Held => {}
            Ready::At(at) => self.arm(number, at, priority),
        }
    }

    /// Gives turns to lanes while there are slots: looks into the store for what they can send now.
    pub(super) fn serve(&mut self) {
        let now = self.clock.now();
        while !self.stalled && !self.stopping && self.loads < LOADS_MAX && self.running + self.reserved < self.slots.all
        {
            let (running_of, most) = (&self.running_of, self.slots.organization);
            let Some(number) =
                self.turns.pop(|organization| running_of.get(organization).is_none_or(|running| *running < most))
            else {
                return;
            };
            let Some(lane) = self.lanes.get_mut(&number) else { continue };
            if lane.ready(now) == Ready::Now && lane.free(now) > 0 {
                self.load(number, now);
            } else {
                self.consider(number, now);
            }
        }
    }

    fn load(&mut self, number: i64, now: Timestamp) {
        let Some(lane) = self.lanes.get_mut(&number) else { return };
        let reserved = (lane.free(now) as usize).min(self.slots.all - self.running - self.reserved);
        (lane.loading, lane.touched, lane.passed_over) = (true, false, None);
        lane.settled_meanwhile.clear();
        self.loads += 1;
        self.reserved += reserved;
        // Deliveries that are in memory may still be waiting in the store.
        let (id, known) = (lane.id.clone(), lane.known.clone());
        let (store, keys, signals) = (self.store.clone(), self.keys.clone(), self.signals.clone());
        self.tasks.spawn("lane.load", async move {
            let due = rows::due(&store, &keys, (number, &id), &known, now.as_microsecond(), reserved).await;
            // As for attempts: only a drain that has ended hears nothing.
            let _ = signals.send(Signal::Loaded { lane: number, reserved, due }).await;
        });
    }

    pub(super) fn loaded(&mut self, number: i64, due: Result<Due>, now: Timestamp) {
        let Some(lane) = self.lanes.get_mut(&number) else { return };
        lane.loading = false;
        let due = match due {
            Ok(due) => due,
            Err(error) => {
                tracing::warn!(%error, lane.id = %lane.id, "could not look into a lane; trying again in a second");
                let priority = lane.backlog.unwrap_or(1);
                return self.arm(number, now + RELOAD, priority);
            }
        };
        let settled = std::mem::take(&mut lane.settled_meanwhile);
        if let Some((at, priority)) = due.next {
            self.arm(number, from_micros(at), priority);
        }
        let mut left = due.more;
        for delivery in due.deliveries {
            let Some(lane) = self.lanes.get_mut(&number) else { return };
            crate::fail::point("lane.due.loaded");
            let priority = delivery.priority;
            if self.flights.contains_key(&delivery.id) || settled.contains(&delivery.id) {
                continue;
            }
            if lane.key_is_busy(&delivery) {
                lane.passed_over = [lane.passed_over, Some(priority)].into_iter().flatten().min();
            } else if !self.start_waiting(delivery, now) {
                left = [left, Some(priority)].into_iter().flatten().min();
            }
        }
        due.unreadable
            .into_iter()
            .filter(|delivery| !settled.contains(&delivery.id))
            .for_each(|delivery| self.give_up(delivery, now));
        let Some(lane) = self.lanes.get_mut(&number) else { return };
        lane.looked(left, due.next.is_some());
        self.consider(number, now);
    }

    /// Ends a delivery that can't be read, and never could be tried.
    fn give_up(&mut self, delivery: Delivery, now: Timestamp) {
        tracing::error!(delivery.id, lane.id = %delivery.lane_id, "what waits can't be read; it is a dead letter");
        let end = End {
            attempts: delivery.attempts,
            ..End::final_at(
                State::Dead,
                "its content was erased, or can't be read: was a master key or the store replaced?",
                now,
            )
        };
        self.updates.push(Update { id: delivery.id, end });
        self.releases.push((delivery.lane, delivery.ordering_key));
    }

    /// Tries a delivery that waited in the store, if it still may.
    fn start_waiting(&mut self, delivery: Delivery, now: Timestamp) -> bool {
        let has_slot = self.has_slot(&delivery.organization);
        let Some(lane) = self.lanes.get_mut(&delivery.lane) else { return false };
        if self.stopping || !has_slot || lane.ready(now) != Ready::Now || lane.free(now) == 0 {
            return false;
        }
        if !lane.settings.repeatable {
            let end = End {
                state: State::Sending,
                attempts: delivery.attempts,
                next_at: now.as_microsecond(),
                finished_at: None,
                status_code: None,
                reason: String::new(),
            };
            self.updates.push(Update { id: delivery.id, end });
        }
        self.lift_off(Arc::new(delivery), None, now);
        true
    }
}
