//! A subscriber's place in its hub; leaving it empties the place.

use std::sync::Arc;

use proto::{common::v1::Position, router::v1::Event};
use serde_json::{Map, Value};

use super::{Hub, MemberId, Notice};
use crate::realtime::{
    claims::Claims,
    frame::Wire,
    group::Frames,
    member::{Member, Place},
};

/// One subscriber's place.
pub(crate) struct Seat {
    pub(super) hub: Arc<Hub>,
    pub(super) id: MemberId,
}

impl Seat {
    pub(crate) fn id(&self) -> MemberId {
        self.id
    }

    pub(crate) fn hub(&self) -> &Arc<Hub> {
        &self.hub
    }

    /// What its broadcasts are sent under, so that they needn't come back to it.
    pub(crate) fn sender(&self) -> String {
        format!("{}{}", self.hub.sender, self.id)
    }

    /// Goes on under other claims: what they don't allow isn't told from here on.
    pub(crate) fn reauthorize(&self, claims: Claims) {
        let mut state = self.hub.state();
        let Some(mut member) = state.remove(self.id) else { return };
        member.predicate = Arc::new(claims.predicate());
        member.claims = Arc::new(claims);
        for subscribed in &mut member.changes {
            subscribed.binding.predicate = member.predicate.clone();
        }
        state.add(self.id, member);
    }

    /// Where it reads on from the log, if it does.
    pub(crate) fn behind(&self) -> Option<Position> {
        match &self.hub.state().members.get(&self.id)?.place {
            Place::Behind(since) => Some(since.clone()),
            Place::Live(_) => None,
        }
    }

    /// What it is told of events that it read from the log; it then has everything up to the last of them.
    pub(crate) fn read(&self, events: &[Event]) -> Vec<Wire> {
        let mut state = self.hub.state();
        let Some(member) = state.members.get_mut(&self.id) else { return Vec::new() };
        let index = member.index();
        let mut told = Vec::new();
        for event in events {
            let notice = Notice::read(event);
            let concern = member.concern(&notice, &index);
            told.extend(member.frames(concern, &notice, &mut Frames::new(&notice)));
        }
        if let Some(position) = events.last().and_then(|event| event.position.clone()) {
            member.place = Place::Behind(position);
        }
        told
    }

    /// Gives it all that it missed, where the hub still has that: it is live then. Where it is `announce` is told before
    /// anything that comes.
    pub(crate) fn catch_up(&self, announce: impl FnOnce(&Position)) -> Option<Vec<Wire>> {
        let state = &mut *self.hub.state();
        let member = state.members.get_mut(&self.id)?;
        let Place::Behind(since) = &member.place else { return None };
        // A place that this hub hasn't reached is the log's to judge.
        if since.log_id != state.position.log_id || since.sequence > state.position.sequence {
            return None;
        }
        let missed = state.recent.after(since.sequence)?;
        let index = member.index();
        let mut told = Vec::new();
        for notice in missed {
            let concern = member.concern(&notice, &index);
            told.extend(member.frames(concern, &notice, &mut Frames::new(&notice)));
        }
        announce(&state.position);
        member.place = Place::Live(state.position.sequence);
        Some(told)
    }

    /// It has read the log to its end: from here on it is told what comes, unless more was handed out meanwhile, or the hub
    /// follows another log by now. Where it is `announce` is told before anything that comes.
    pub(crate) fn go_live(&self, announce: impl FnOnce(&Position)) -> bool {
        let mut state = self.hub.state();
        let (last, position) = (state.last, state.position.clone());
        let Some(member) = state.members.get_mut(&self.id) else { return false };
        let Place::Behind(since) = &member.place else { return false };
        if since.log_id != position.log_id || since.sequence < last {
            return false;
        }
        announce(if since.sequence > position.sequence { since } else { &position });
        member.place = Place::Live(since.sequence);
        true
    }

    /// It can't have what it missed: it is told what comes after now, and where that is.
    pub(crate) fn skip(&self, announce: impl FnOnce(&Position)) {
        let mut state = self.hub.state();
        let position = state.position.clone();
        announce(&position);
        if let Some(member) = state.members.get_mut(&self.id) {
            member.place = Place::Live(position.sequence);
        }
    }

    /// Says of itself what `payload` holds.
    ///
    /// # Errors
    /// What the client is told: the channel is full.
    pub(crate) fn track(&self, payload: Map<String, Value>) -> Result<(), &'static str> {
        let mut state = self.hub.state();
        let Some(member) = state.members.get(&self.id) else { return Ok(()) };
        let (channel, key) = (member.topic.channel().clone(), member.presence_key.clone());
        let diff = state.presences.entry(channel.clone()).or_default().track(self.id, &key, payload)?;
        state.tell_presence(&channel, &diff);
        Ok(())
    }

    /// Is no longer present.
    pub(crate) fn untrack(&self) {
        let mut state = self.hub.state();
        if let Some(channel) = state.members.get(&self.id).map(|member| member.topic.channel().clone()) {
            state.untrack(self.id, &channel);
        }
    }
}

impl super::State {
    fn untrack(&mut self, id: MemberId, channel: &Arc<str>) {
        let Some(presence) = self.presences.get_mut(channel) else { return };
        let diff = presence.untrack(id);
        if presence.is_empty() {
            self.presences.remove(channel);
        }
        if let Some(diff) = diff {
            self.tell_presence(channel, &diff);
        }
    }
}

impl Drop for Seat {
    fn drop(&mut self) {
        let mut state = self.hub.state();
        if let Some(Member { topic, .. }) = state.remove(self.id) {
            state.untrack(self.id, topic.channel());
        }
    }
}
