//! One subscriber of one channel, and what of an event it is told. Pure.

use std::sync::Arc;

use proto::common::v1::Position;

use super::{
    claims::{Claims, Predicate},
    frame::{Encoding, Wire},
    group::{Frames, What},
    index::{Binding, Fit, Index, Operation},
    join::Wanted,
    notice::{Notice, View},
    outbox::Outbox,
    topic::{CLIENT_UPDATES, COUPLE, Topic},
};

/// What begins a channel that is one supplier's or one couple's.
const OWNED: [&str; 4] = ["supplier:dashboard:", "client-list:", COUPLE, "journey:milestone:"];

/// A subscriber.
pub(crate) struct Member {
    pub(crate) topic: Topic,
    pub(crate) encoding: Encoding,
    pub(crate) outbox: Arc<Outbox>,
    pub(crate) claims: Arc<Claims>,
    pub(crate) predicate: Arc<Predicate>,
    pub(crate) changes: Vec<Subscribed>,
    /// Its own broadcasts come back to it.
    pub(crate) own: bool,
    pub(crate) presence_key: String,
    /// It is told who is present.
    pub(crate) presence: bool,
    /// It is told the position of each change beforehand.
    pub(crate) positions: bool,
    pub(crate) place: Place,
}

/// Where a subscriber is in the log.
#[derive(Clone, Debug, PartialEq)]
pub(crate) enum Place {
    /// It is told what comes after this sequence as it comes.
    Live(u64),
    /// It has everything up to here, and reads on from the log.
    Behind(Position),
}

/// One `postgres_changes` subscription that is in force.
pub(crate) struct Subscribed {
    pub(crate) id: u32,
    pub(crate) binding: Binding,
    pub(crate) leave: bool,
}

/// Why a subscriber is told of an event.
#[derive(Debug, Default, PartialEq, Eq)]
pub(crate) struct Concern {
    /// Subscriptions that match.
    ids: Vec<u32>,
    /// Subscriptions that the row left, and that asked to be told.
    left: Vec<u32>,
    /// It is on the subscriber's channel.
    on_channel: bool,
}

impl Subscribed {
    /// Those of a join that could be understood, under what the claims allow.
    pub(crate) fn all(wanted: &[Wanted], predicate: &Arc<Predicate>) -> Vec<Self> {
        let parsed = wanted.iter().filter_map(|wanted| Some((wanted.id, wanted.parsed.as_ref().ok()?)));
        parsed
            .map(|(id, parsed)| Self {
                id,
                binding: Binding {
                    event: parsed.event,
                    schema: parsed.schema.clone(),
                    table: parsed.table.clone(),
                    filter: parsed.filter.clone(),
                    predicate: predicate.clone(),
                },
                leave: parsed.leave,
            })
            .collect()
    }
}

impl Member {
    /// Adds one subscription's part.
    pub(crate) fn matched(&self, concern: &mut Concern, number: usize, fit: Fit) {
        let Some(subscribed) = self.changes.get(number) else { return };
        match fit {
            Fit::Matches => concern.ids.push(subscribed.id),
            Fit::Left if subscribed.leave => concern.left.push(subscribed.id),
            Fit::Left => {}
        }
    }

    /// Adds what being on `channel` gives. What the router put on somebody's own channel is for them; elsewhere a change
    /// or event is told only if the claims allow what it is about, and an event only where it is listened to.
    pub(crate) fn hears(&self, concern: &mut Concern, notice: &Notice<'_>, channel: &str) {
        let is_somebodys = OWNED.iter().any(|owned| channel.starts_with(owned));
        let (may_hear, may_see) = (|| self.may_hear(channel), || notice.is_for(&self.predicate));
        concern.on_channel |= match notice.change() {
            Some(_) => may_see() || (is_somebodys && may_hear()),
            None => may_hear() && (is_somebodys || may_see()),
        };
    }

    /// Whether it is on its channel at all. An event stream of a table isn't: each of its ids is one place in the log, and
    /// what others say must not look like a change.
    pub(crate) fn is_on_channel(&self) -> bool {
        self.encoding != Encoding::Sse || self.changes.is_empty()
    }

    /// Whether what is said on `channel` is for it: always on its own, and on a couple's where it may join that.
    pub(crate) fn may_hear(&self, channel: &str) -> bool {
        **self.topic.channel() == *channel || self.claims.may_join(channel)
    }

    /// Whether an event on `channel` is on its own.
    fn listens_to(&self, channel: &str) -> bool {
        let own = &**self.topic.channel();
        own == channel || (own == CLIENT_UPDATES && channel.starts_with(COUPLE))
    }

    /// Its subscriptions alone, by number.
    pub(crate) fn index(&self) -> Index<u32> {
        let mut index = Index::default();
        for (number, subscribed) in (0..).zip(&self.changes) {
            index.insert(&subscribed.binding, number);
        }
        index
    }

    /// The same by itself, for a subscriber that has missed something. `index` is its own.
    pub(crate) fn concern(&self, notice: &Notice<'_>, index: &Index<u32>) -> Concern {
        let mut concern = Concern::default();
        if let Some(change) = notice.change() {
            index.find(&change, |number, fit| self.matched(&mut concern, number as usize, fit));
        }
        for channel in notice.event.channels.iter().filter(|channel| self.listens_to(channel)) {
            self.hears(&mut concern, notice, channel);
        }
        concern
    }

    /// Puts all of what concerns it into its queue; where that has no room, it is behind from here on.
    pub(crate) fn tell(&mut self, concern: Concern, notice: &Notice<'_>, frames: &mut Frames<'_>) {
        if !matches!(self.place, Place::Live(after) if notice.sequence > after) {
            return;
        }
        let told = self.frames(concern, notice, frames);
        if !self.outbox.offer(&told) {
            self.place = Place::Behind(notice.before());
            self.outbox.fall_behind();
        }
    }

    /// What it is told.
    pub(crate) fn frames(&self, mut concern: Concern, notice: &Notice<'_>, frames: &mut Frames<'_>) -> Vec<Wire> {
        concern.ids.sort_unstable();
        concern.left.sort_unstable();
        let is_update = notice.change().is_some_and(|change| change.operation == Operation::Update);
        let may_see_old = || notice.old_row().is_none_or(|(table, row)| self.predicate.allows(table, row));
        let view = if is_update && !may_see_old() { View::New } else { View::Whole };
        let mut told = Vec::new();
        if self.positions && !(concern.ids.is_empty() && concern.left.is_empty()) {
            told.push(What::Position);
        }
        for (mut ids, view) in [(concern.ids, view), (concern.left, View::Left)] {
            ids.dedup();
            if !ids.is_empty() {
                told.push(What::Changes(ids, view));
            }
        }
        if concern.on_channel && self.is_on_channel() {
            told.push(What::Broadcast);
        }
        told.into_iter().filter_map(|what| frames.get(self.encoding, &self.topic, what)).collect()
    }
}
