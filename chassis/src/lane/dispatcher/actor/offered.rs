//! What is offered: one event's fresh deliveries, each tried at once, queued in memory for a slot, or left to wait in the
//! store. What becomes of an attempt is told by `attempts`, what is written by `records`.

use std::{sync::Arc, time::Duration};

use jiff::Timestamp;
use tokio::{sync::oneshot, time::Instant};

use super::{Actor, plain};
use crate::lane::{
    delivery::{Delivery, State},
    dispatcher::{
        Courier, Offer,
        flight::{Flight, Pending, Phase},
        lane::Ready,
    },
    recorder::{End, Insert},
};

/// Fresh deliveries that wait in memory for a slot of their lane, and altogether. Beyond these no offers are taken, for so
/// long at most: what isn't taken yet is safe in the router's log. After that further ones wait in the store. An event that
/// was taken is queued for all of its lanes, as far as a queue's worth more: whatever waits in the store sends those that
/// follow there as well.
const QUEUE_MAX: usize = 64;
const QUEUES_MAX: usize = 512;
pub(super) const PAUSE: Duration = Duration::from_millis(100);

impl<C: Courier> Actor<C> {
    /// Whether too many fresh deliveries wait in memory; notes since when.
    fn note_crowd(&mut self) {
        let crowded = self.queued > QUEUES_MAX || !self.crowded.is_empty();
        self.crowded_since = crowded.then(|| self.crowded_since.unwrap_or_else(Instant::now));
    }

    /// Takes one event's deliveries: tries those that may go at once, and lets the others wait.
    pub(super) fn take(&mut self, offers: Vec<Offer>, done: oneshot::Sender<()>, now: Timestamp) {
        let Some(event) = offers.first().map(|offer| offer.event) else { return };
        let number = self.pendings.next_number();
        self.promises.insert(number, vec![done]);
        self.uncommitted.entry(event).or_insert(number);
        let mut pending = Pending::new(event, offers.len());
        let most = if self.queued <= QUEUES_MAX { QUEUES_MAX + QUEUE_MAX } else { 0 };
        for offer in offers {
            // A destination that was removed meanwhile gets nothing.
            let Some(lane) = self.numbers.get(&offer.lane_id).copied() else { continue };
            self.last_id += 1;
            let delivery = self.delivery(lane, self.last_id, offer, now);
            let insert = self.place(delivery, (number, pending.inserts.len()), most, now);
            let repeatable = self.lanes[&lane].settings.repeatable;
            pending.open += usize::from(repeatable && insert.tried);
            pending.urgent |= insert.may_be_behind || (insert.tried && !repeatable);
            pending.inserts.push(insert);
        }
        self.pendings.add(number, pending);
    }

    fn delivery(&self, lane: i64, id: i64, offer: Offer, now: Timestamp) -> Delivery {
        let organization = self.lanes[&lane].organization.clone();
        Delivery {
            id,
            lane,
            lane_id: offer.lane_id,
            organization,
            event: offer.event,
            event_id: plain(offer.event_id),
            event_type: plain(offer.event_type),
            ordering_key: plain(offer.ordering_key),
            priority: offer.priority.clamp(1, 4),
            origin: offer.origin,
            attempts: 0,
            reopened_after: 0,
            created_at: now.as_microsecond(),
            content: offer.content,
        }
    }

    /// Decides whether a fresh delivery is tried at once, or queued while fewer than `most` are, and gives its row.
    fn place(&mut self, delivery: Delivery, offer: (u64, usize), most: usize, now: Timestamp) -> Insert {
        let has_slot = self.has_slot(&delivery.organization);
        let lane = self.lanes.get_mut(&delivery.lane).expect("the lane was found by its id");
        let key_is_busy = lane.key_is_busy(&delivery);
        let behind = lane.settings.ordered && (key_is_busy || lane.may_hold());
        let may_go = !self.stopping && !behind && !lane.has_before(delivery.priority) && lane.ready(now) == Ready::Now;
        let go = may_go && has_slot && lane.queue.is_empty() && lane.free(now) > 0;
        let has_room = self.queued < most && lane.queue.len() <= QUEUE_MAX;
        let repeatable = lane.settings.repeatable;
        let soon = may_go && !go && has_room && repeatable && !lane.settings.ordered && lane.flows(now);
        let state = match (go, key_is_busy) {
            (true, _) => State::Sending,
            (false, true) => State::Blocked,
            (false, false) => State::Waiting,
        };
        let end = End {
            state,
            attempts: 0,
            next_at: now.as_microsecond(),
            finished_at: None,
            status_code: None,
            reason: String::new(),
        };
        if key_is_busy {
            lane.block(&delivery);
        }
        let delivery = Arc::new(delivery);
        if go {
            self.lift_off(delivery.clone(), repeatable.then_some(offer), now);
        } else if soon {
            self.queue(delivery.clone(), offer);
        } else {
            lane.wait(delivery.priority);
        }
        Insert { delivery, end, may_be_behind: behind, tried: go || soon }
    }

    /// Keeps a fresh delivery in memory until a slot of its lane is free.
    fn queue(&mut self, delivery: Arc<Delivery>, offer: (u64, usize)) {
        let lane = self.lanes.get_mut(&delivery.lane).expect("the lane was found by its id");
        lane.queue.insert((delivery.priority, delivery.id));
        if lane.queue.len() > QUEUE_MAX {
            self.crowded.insert(lane.number);
        }
        self.queued += 1;
        self.note_crowd();
        self.flights.insert(delivery.id, Flight { delivery, phase: Phase::Queued, offer: Some(offer) });
    }

    /// Takes a fresh delivery from its lane's queue: to try it, or to write it as waiting.
    pub(super) fn unqueue(&mut self, delivery: &Delivery) -> Option<(u64, usize)> {
        let offer = self.flights.remove(&delivery.id).and_then(|flight| flight.offer);
        self.queued -= 1;
        if let Some(lane) = self.lanes.get_mut(&delivery.lane) {
            lane.queue.remove(&(delivery.priority, delivery.id));
        }
        if self.lanes.get(&delivery.lane).is_none_or(|lane| lane.queue.len() <= QUEUE_MAX) {
            self.crowded.remove(&delivery.lane);
        }
        self.note_crowd();
        offer
    }

    /// Tries what is queued in a lane, as far as there are slots.
    pub(super) fn serve_queue(&mut self, number: i64, now: Timestamp) {
        while let Some(lane) = self.lanes.get_mut(&number)
            && let Some((_, id)) = lane.queue.first().copied()
            && lane.ready(now) == Ready::Now
            && lane.free(now) > 0
            && let Some(delivery) = self.flights.get(&id).map(|flight| flight.delivery.clone())
            && !self.stopping
            && self.has_slot(&delivery.organization)
        {
            let offer = self.unqueue(&delivery);
            if let Some(offer) = offer {
                self.pendings.begin(offer);
            }
            self.lift_off(delivery, offer, now);
        }
    }
}
