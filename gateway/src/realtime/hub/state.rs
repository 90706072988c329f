//! What a hub knows of its subscribers, under its lock.

use std::{
    collections::{BTreeMap, HashMap, HashSet},
    sync::Arc,
};

use proto::common::v1::Position;
use serde_json::{Value, json};

use super::{Member, MemberId, Notice};
use crate::realtime::{
    frame::{Encoding, Wire},
    index::Index,
    member::Concern,
    presence::Presence,
    recent::Recent,
    topic::{CLIENT_UPDATES, COUPLE},
};

#[derive(Default)]
pub(super) struct State {
    pub(super) members: HashMap<MemberId, Member>,
    /// Who is on each channel.
    rooms: HashMap<Arc<str>, HashSet<MemberId>>,
    pub(super) presences: HashMap<Arc<str>, Presence>,
    /// Of subscribers and the numbers of their subscriptions.
    index: Index<(MemberId, u32)>,
    /// Everything up to here was handed out.
    pub(super) position: Position,
    /// The last event that there was in it.
    pub(super) last: u64,
    pub(super) recent: Recent,
}

impl State {
    pub(super) fn add(&mut self, id: MemberId, member: Member) {
        for (number, subscribed) in (0..).zip(&member.changes) {
            self.index.insert(&subscribed.binding, (id, number));
        }
        self.rooms.entry(member.topic.channel().clone()).or_default().insert(id);
        self.members.insert(id, member);
    }

    pub(super) fn remove(&mut self, id: MemberId) -> Option<Member> {
        let member = self.members.remove(&id)?;
        for (number, subscribed) in (0..).zip(&member.changes) {
            self.index.remove(&subscribed.binding, (id, number));
        }
        let channel = member.topic.channel();
        if let Some(room) = self.rooms.get_mut(channel) {
            room.remove(&id);
            if room.is_empty() {
                self.rooms.remove(channel);
            }
        }
        Some(member)
    }

    /// Whether it keeps nothing of anybody.
    #[cfg(test)]
    pub(super) fn is_empty(&self) -> bool {
        self.members.is_empty() && self.rooms.is_empty() && self.presences.is_empty()
    }

    /// Everybody who is present on a channel.
    pub(super) fn present(&self, channel: &str) -> Value {
        self.presences.get(channel).map_or_else(|| json!({}), Presence::state)
    }

    /// Who is told of an event, and why.
    pub(super) fn concerned(&self, notice: &Notice<'_>) -> BTreeMap<MemberId, Concern> {
        let mut concerned: BTreeMap<MemberId, Concern> = BTreeMap::new();
        if let Some(change) = notice.change() {
            self.index.find(&change, |(id, number), fit| {
                if let Some(member) = self.members.get(&id) {
                    member.matched(concerned.entry(id).or_default(), number as usize, fit);
                }
            });
        }
        for channel in &notice.event.channels {
            for (id, member) in self.on(channel) {
                member.hears(concerned.entry(id).or_default(), notice, channel);
            }
        }
        concerned
    }

    /// Tells a message that is in no log to all on `channel` who hear it, in one frame a group.
    pub(super) fn tell_room(
        &self,
        channel: &str,
        hears: impl Fn(MemberId, &Member) -> bool,
        frame: impl Fn(&Member) -> Option<Wire>,
    ) {
        let mut frames: HashMap<(Encoding, &Arc<str>), Option<Wire>> = HashMap::new();
        for (_, member) in self.on(channel).filter(|(id, member)| hears(*id, member)) {
            let made = frames.entry((member.encoding, member.topic.text())).or_insert_with(|| frame(member));
            if let Some(wire) = made {
                member.outbox.offer_live(wire);
            }
        }
    }

    /// Tells a channel who came and left.
    pub(super) fn tell_presence(&self, channel: &str, diff: &Value) {
        let diff = diff.to_string();
        let frame = |member: &Member| match member.encoding {
            Encoding::Sse => None,
            encoding => Some(encoding.encode(None, None, member.topic.text(), "presence_diff", &diff)),
        };
        self.tell_room(channel, |_, member| member.presence && **member.topic.channel() == *channel, frame);
    }

    /// Everybody on `channel`, and who hears every couple's if it is one's.
    fn on(&self, channel: &str) -> impl Iterator<Item = (MemberId, &Member)> {
        let all = self.rooms.get(CLIENT_UPDATES).filter(|_| channel.starts_with(COUPLE));
        let ids = self.rooms.get(channel).into_iter().chain(all).flatten();
        ids.filter_map(|id| self.members.get(id).map(|member| (*id, member)))
    }
}
