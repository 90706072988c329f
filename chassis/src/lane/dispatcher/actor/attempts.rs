//! Attempts, from the slot that one takes to what its end means for its delivery and its lane.

use std::{any::Any, panic::AssertUnwindSafe, sync::Arc, time::Duration};

use bytes::Bytes;
use futures_util::FutureExt as _;
use jiff::Timestamp;
use tokio::sync::oneshot;

use super::{Actor, REMOVED, plain};
use crate::{
    id::OrganizationId,
    lane::{
        delivery::{Attempted, Blame, Delivery, Outcome, State},
        dispatcher::{
            Courier, Signal,
            flight::{Flight, Phase},
        },
        recorder::{AttemptRow, End, Update},
        rows,
    },
    secret::random_share,
    tasks::panic_text,
};

impl<C: Courier> Actor<C> {
    pub(super) fn has_slot(&self, organization: &OrganizationId) -> bool {
        !self.stalled
            && self.running + self.reserved < self.slots.all
            && self.running_of.get(organization).is_none_or(|running| *running < self.slots.organization)
    }

    /// Takes slots for a delivery. Its attempt begins now, or, where a repeat can't be dropped, once its row is durable.
    pub(super) fn lift_off(&mut self, delivery: Arc<Delivery>, offer: Option<(u64, usize)>, now: Timestamp) {
        let lane = self.lanes.get_mut(&delivery.lane).expect("only deliveries of open lanes are tried");
        // Nothing of its key was on its way when a fresh one came, else it would wait.
        lane.claim(&delivery, offer.is_none());
        self.running += 1;
        *self.running_of.entry(delivery.organization.clone()).or_default() += 1;
        let repeatable = lane.settings.repeatable;
        let phase = if repeatable { Phase::Running } else { Phase::Claiming };
        self.flights.insert(delivery.id, Flight { delivery: delivery.clone(), phase, offer });
        if repeatable {
            self.attempt(delivery, now);
        }
    }

    pub(super) fn attempt(&mut self, delivery: Arc<Delivery>, started_at: Timestamp) {
        let lane = self.lanes.get_mut(&delivery.lane);
        let repeatable = lane.as_ref().is_some_and(|lane| lane.settings.repeatable);
        lane.into_iter().for_each(|lane| lane.begin(&delivery, started_at));
        let (courier, signals) = (self.courier.clone(), self.signals.clone());
        self.tasks.spawn("lane.attempt", async move {
            let id = delivery.id;
            let clock = std::time::Instant::now();
            crate::fail::point("lane.attempt.begin");
            let attempted = AssertUnwindSafe(courier.attempt(delivery)).catch_unwind().await;
            let attempted = attempted.unwrap_or_else(|panic| panicked(id, &*panic, repeatable));
            crate::fail::point("lane.attempt.sent");
            // The dispatcher outlives its attempts save at the end of a drain, which records none of them.
            let _ =
                signals.send(Signal::Ended { delivery: id, started_at, duration: clock.elapsed(), attempted }).await;
        });
    }

    pub(super) fn ended(
        &mut self,
        id: i64,
        started_at: Timestamp,
        duration: Duration,
        attempted: Attempted,
        now: Timestamp,
    ) {
        let Some(flight) = self.flights.get_mut(&id) else { return };
        let delivery = flight.delivery.clone();
        flight.phase = Phase::Settling;
        let offer = flight.offer.take();
        self.free_slots(&delivery);
        metrics::counter!("lane_attempts_total", "outcome" => attempted.class).increment(1);
        let row = AttemptRow {
            delivery: id,
            number: delivery.attempts.saturating_add(1),
            lane: delivery.lane,
            organization: delivery.organization.clone(),
            started_at: started_at.as_microsecond(),
            duration: i64::try_from(duration.as_micros()).unwrap_or(i64::MAX),
            status_code: attempted.status_code.map(i64::from),
            outcome: attempted.class,
            error: plain(attempted.error.clone()),
            response: attempted.response.clone(),
        };
        let end = self.settle(&delivery, &attempted, now);
        match offer {
            Some(place) => self.pendings.settle(place, end, row),
            None => {
                self.updates.push(Update { id, end });
                self.attempts.push(row);
            }
        }
        self.serve_queue(delivery.lane, now);
        self.consider(delivery.lane, now);
    }

    pub(super) fn free_slots(&mut self, delivery: &Delivery) {
        self.running = self.running.saturating_sub(1);
        if let Some(running) = self.running_of.get_mut(&delivery.organization) {
            *running -= 1;
            if *running == 0 {
                self.running_of.remove(&delivery.organization);
            }
        }
        if let Some(lane) = self.lanes.get_mut(&delivery.lane) {
            lane.running = lane.running.saturating_sub(1);
        }
    }

    /// Draws the conclusions of an attempt for its delivery and its lane.
    fn settle(&mut self, delivery: &Delivery, attempted: &Attempted, now: Timestamp) -> End {
        let Some(lane) = self.lanes.get_mut(&delivery.lane) else {
            return removed(delivery, attempted, now);
        };
        let settled = lane.settle(delivery, attempted, now, random_share());
        if settled.lane_changed {
            self.changed_lanes.insert(delivery.lane);
        }
        if settled.end.state == State::Dead {
            metrics::counter!("lane_dead_total").increment(1);
        }
        if let Some(reason) = settled.closing {
            self.close(delivery.lane, reason);
        }
        settled.end
    }

    /// Turns what waits in a lane into dead letters and tells the service.
    fn close(&mut self, number: i64, reason: String) {
        let Some(lane) = self.lanes.get(&number) else { return };
        let (courier, store, id, now) =
            (self.courier.clone(), self.store.clone(), lane.id.clone(), self.clock.now_micros());
        let (done, durable) = oneshot::channel();
        self.barriers.push(done);
        self.tasks.spawn("lane.close", async move {
            // Without an answer the dispatcher is gone, and what it knew is durable or lost.
            let _ = durable.await;
            if let Err(error) = rows::end_all(&store, number, State::Dead, &reason, now).await {
                tracing::error!(%error, lane.id = %id, "could not end what waits in a closed lane; it is ended at the next closing");
            }
            courier.closed(&id, &reason).await;
        });
    }
}

/// The end of an attempt whose lane was removed while it ran.
fn removed(delivery: &Delivery, attempted: &Attempted, now: Timestamp) -> End {
    let (state, reason) = match attempted.outcome {
        Outcome::Delivered => (State::Delivered, ""),
        _ => (State::Cancelled, REMOVED),
    };
    End {
        attempts: delivery.attempts.saturating_add(1),
        status_code: attempted.status_code.map(i64::from),
        ..End::final_at(state, reason, now)
    }
}

/// The end of an attempt that panicked: what it did until then, nobody knows.
fn panicked(id: i64, panic: &(dyn Any + Send), repeatable: bool) -> Attempted {
    tracing::error!(delivery.id = id, reason = panic_text(panic), "an attempt panicked");
    Attempted {
        outcome: if repeatable { Outcome::Retry { after: None, blame: Blame::Message } } else { Outcome::Unknown },
        status_code: None,
        class: "panic",
        error: "the attempt ended in a fault of ours".to_owned(),
        response: Bytes::new(),
    }
}
