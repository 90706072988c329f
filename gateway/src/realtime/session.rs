//! What a socket's client asks for, frame by frame, and what it is answered. The channels it is on are here; what happens
//! on them comes through their seats into the socket's queue.
//!
//! The protocol is Supabase Realtime's (Phoenix channels): a client takes an answer for the one to its latest join only,
//! rejoins by itself after `phx_error`, and never after `phx_close`.

mod join;
mod push;
#[cfg(test)]
mod tests;

use std::{collections::HashMap, sync::Arc};

use jiff::{SignedDuration, Timestamp};
use proto::common::v1::Position;
use serde_json::{Value, json};
use tonic::Status;

use super::{
    Realtime,
    catch_up::{self, End, Page},
    claims::Claims,
    frame::{Body, Encoding, Frame, Push, Wire},
    hub::{MemberId, Seat},
    hubs::Lease,
    join::Cost,
    outbox::Outbox,
    pace::{Pace, Rate},
    token::LEEWAY,
    topic::{PHOENIX, Topic},
};

/// How long before its token's end a channel is told.
const WARNED: SignedDuration = SignedDuration::from_secs(60);

/// Nothing comes, but may soon.
const RESTARTING: &str = "RealtimeRestarting: try again";

/// One socket's.
pub(crate) struct Session {
    realtime: Arc<Realtime>,
    encoding: Encoding,
    /// What it was opened with; the token of channels that bring none.
    key: String,
    outbox: Arc<Outbox>,
    /// Its organization's, from the first join on.
    lease: Option<Lease>,
    channels: HashMap<String, Channel>,
    messages: Pace,
    presences: Pace,
}

/// One channel that it is on.
struct Channel {
    topic: Topic,
    join_ref: Option<String>,
    seat: Seat,
    acknowledge: bool,
    changes: bool,
    /// Of its subscriptions.
    cost: Cost,
    /// It is told how its resumption ends.
    resuming: bool,
    /// When its token does.
    expires: Timestamp,
    warned: bool,
    presences: Pace,
}

impl Channel {
    /// When it is told that its token ends: so long before what the token itself says.
    fn warns(&self) -> Timestamp {
        self.expires - LEEWAY - WARNED
    }
}

impl Session {
    pub(crate) fn new(realtime: Arc<Realtime>, encoding: Encoding, key: String, outbox: Arc<Outbox>) -> Self {
        let (channels, messages, presences) = (HashMap::new(), Pace::default(), Pace::default());
        Self { realtime, encoding, key, outbox, lease: None, channels, messages, presences }
    }

    /// Does what a frame asks for.
    pub(crate) async fn handle(&mut self, frame: Frame) {
        if frame.topic == PHOENIX {
            return self.reply(&frame, "ok", &json!({}));
        }
        let rate = Rate::new(self.realtime.config.messages_per_second, 1);
        if !self.messages.take(rate, self.now()) {
            return self.refuse(&frame, "MessagePerSecondRateLimitReached: too many messages per second");
        }
        let Frame { topic, body, .. } = &frame;
        match body {
            Body::Event { event, payload } if event == "phx_join" => self.join(&frame, payload.get()).await,
            Body::Event { event, .. } if event == "phx_leave" => self.leave(&frame),
            _ if !self.is_on(topic, frame.join_ref.as_deref()) => self.refuse(&frame, "unmatched topic"),
            Body::Event { event, payload } if event == "access_token" => self.refresh(topic, payload.get()).await,
            Body::Event { event, payload } if event == "presence" => self.presence(&frame, payload.get()),
            Body::Event { event, payload } if event == "broadcast" => match Push::parse(payload.get()) {
                Some(push) => self.broadcast(&frame, push).await,
                None => self.refuse(&frame, "a broadcast has an event and a payload"),
            },
            Body::Broadcast(Push { event, content }) => {
                let push = Push { event: event.clone(), content: content.clone() };
                self.broadcast(&frame, push).await;
            }
            Body::Event { .. } => {}
        }
    }

    /// A frame of an earlier join is for nobody.
    fn is_on(&self, topic: &str, join_ref: Option<&str>) -> bool {
        let channel = self.channels.get(topic);
        channel.is_some_and(|channel| join_ref.is_none() || join_ref == channel.join_ref.as_deref())
    }

    fn leave(&mut self, frame: &Frame) {
        let left = self.channels.remove(&frame.topic);
        self.reply(frame, "ok", &json!({}));
        let join_ref = left.map_or_else(|| frame.join_ref.clone(), |channel| channel.join_ref);
        self.send(join_ref.as_deref(), join_ref.as_deref(), &frame.topic, "phx_close", &json!({}));
    }

    /// Goes on under a newer token; one that isn't good ends what it was for.
    async fn refresh(&mut self, topic: &str, payload: &str) {
        let payload: Value = serde_json::from_str(payload).unwrap_or_default();
        let Some(token) = payload["access_token"].as_str().filter(|token| !is_of_the_socket(token)) else { return };
        let renewed = self.realtime.authenticate(token).await;
        let hub = self.lease.as_ref().map(|lease| lease.hub().organization.clone());
        let Some(channel) = self.channels.get_mut(topic) else { return };
        let (reason, event) = match renewed {
            // It may come back with a better one.
            Err(error) => (format!("InvalidJWTToken: {error}"), "phx_error"),
            Ok(claims) if Some(&claims.organization) != hub.as_ref() || !claims.may_join(channel.topic.channel()) => {
                ("You no longer have permission to read from this channel".to_owned(), "phx_close")
            }
            Ok(claims) => {
                (channel.expires, channel.warned) = (expiry(&claims), false);
                return channel.seat.reauthorize(claims);
            }
        };
        self.end(topic, &reason, event);
    }

    /// Ends a channel, with the reason.
    fn end(&mut self, topic: &str, reason: &str, event: &str) {
        let Some(channel) = self.channels.remove(topic) else { return };
        let join_ref = channel.join_ref.as_deref();
        self.system(&channel.topic, join_ref, "system", "error", reason, &json!({}));
        self.send(join_ref, join_ref, topic, event, &json!({}));
    }

    /// Ends all channels, since what they were in is no more. Clients join again by themselves.
    pub(crate) fn end_all(&mut self) {
        self.lease = None;
        let topics: Vec<_> = self.channels.keys().cloned().collect();
        for topic in topics {
            self.end(&topic, RESTARTING, "phx_error");
        }
    }

    /// Warns channels whose token ends soon, and ends those whose has; when this must be asked again.
    pub(crate) fn expire(&mut self) -> Option<Timestamp> {
        let now = self.now();
        let over: Vec<_> = self.channels.iter().filter(|(_, channel)| channel.expires <= now).collect();
        let over: Vec<_> = over.into_iter().map(|(topic, channel)| (topic.clone(), channel.expires)).collect();
        for (topic, expired) in over {
            let seconds = (now.duration_since(expired) + LEEWAY).as_secs();
            self.end(&topic, &format!("Token has expired {seconds} seconds ago"), "phx_error");
        }
        let ending = |channel: &&mut Channel| !channel.warned && channel.warns() <= now;
        let mut warned = Vec::new();
        for channel in self.channels.values_mut().filter(ending) {
            channel.warned = true;
            warned.push((channel.topic.clone(), channel.join_ref.clone(), channel.expires - LEEWAY));
        }
        for (topic, join_ref, expires) in warned {
            let more = json!({ "expires_at": expires.as_second() });
            self.system(&topic, join_ref.as_deref(), "system", "ok", "The access token expires soon", &more);
        }
        let due = |channel: &Channel| if channel.warned { channel.expires } else { channel.warns() };
        self.channels.values().map(due).min()
    }

    pub(crate) fn is_on_any(&self) -> bool {
        !self.channels.is_empty()
    }

    /// Whether the subscriber `seat` is still the one on a topic.
    pub(crate) fn is_seated(&self, topic: &str, seat: MemberId) -> bool {
        self.channels.get(topic).is_some_and(|channel| channel.seat.id() == seat)
    }

    /// Some channel that reads on from the log, and from where.
    pub(crate) fn behind(&self) -> Option<(&str, &Seat)> {
        let behind = self.channels.iter().find(|(_, channel)| channel.seat.behind().is_some());
        behind.map(|(topic, channel)| (topic.as_str(), &channel.seat))
    }

    /// What some channel that is behind has missed, all of which its hub still has; it is live then. None where there is
    /// no such channel.
    pub(crate) fn catch_up(&mut self) -> Option<Vec<Wire>> {
        let missed = |(topic, channel): (&String, &Channel)| {
            let missed = channel.seat.catch_up(|position| self.caught_up(channel, End::Recovered, position))?;
            Some((topic.clone(), missed))
        };
        let (topic, missed) = self.channels.iter().find_map(missed)?;
        if let Some(channel) = self.channels.get_mut(&topic) {
            channel.resuming = false;
        }
        Some(missed)
    }

    /// Takes in what the subscriber `seat` on a topic read on from the log, and gives what is to be sent of it.
    pub(crate) fn take_in(&mut self, topic: &str, seat: MemberId, page: Result<Page, Status>) -> Vec<Wire> {
        // It may have left meanwhile, or joined anew.
        let Some(channel) = self.channels.get(topic).filter(|channel| channel.seat.id() == seat) else {
            return Vec::new();
        };
        let mut ended = false;
        let told = catch_up::step(&channel.seat, page, |end, position| {
            ended = true;
            self.caught_up(channel, end, position);
        });
        if let Some(channel) = self.channels.get_mut(topic).filter(|_| ended) {
            channel.resuming = false;
        }
        told
    }

    /// Tells a channel how its reading on went.
    fn caught_up(&self, channel: &Channel, end: End, position: &Position) {
        let recovered = end == End::Recovered;
        let mut more = json!({ "epoch": position.log_id, "seq": position.sequence, "recovered": recovered });
        let join_ref = channel.join_ref.as_deref();
        if !recovered {
            more["resync"] = true.into();
            let message = "What was missed is no longer in the log: read everything again";
            self.system(&channel.topic, join_ref, "resume", "error", message, &more);
        }
        if channel.resuming {
            self.subscribed(&channel.topic, join_ref, channel.changes, &more);
        }
    }

    /// Says how many messages didn't fit into the queue.
    pub(crate) fn tell_lost(&mut self) {
        let lost = self.outbox.take_lost();
        let Some(channel) = self.channels.values().next().filter(|_| lost > 0) else { return };
        let (topic, join_ref) = (channel.topic.clone(), channel.join_ref.clone());
        let message = "This connection reads too slowly: broadcasts were dropped";
        self.system(&topic, join_ref.as_deref(), "broadcast", "error", message, &json!({ "lost": lost }));
    }

    fn subscribed(&self, topic: &Topic, join_ref: Option<&str>, changes: bool, more: &Value) {
        let (extension, message) =
            if changes { ("postgres_changes", "Subscribed to PostgreSQL") } else { ("system", "Subscribed") };
        self.system(topic, join_ref, extension, "ok", message, more);
    }

    fn system(&self, topic: &Topic, join: Option<&str>, extension: &str, status: &str, message: &str, more: &Value) {
        let mut payload =
            json!({ "extension": extension, "status": status, "message": message, "channel": topic.name() });
        if let (Some(payload), Some(more)) = (payload.as_object_mut(), more.as_object()) {
            payload.extend(more.clone());
        }
        self.send(join, None, topic.text(), "system", &payload);
    }

    fn refuse(&self, frame: &Frame, reason: &str) {
        self.reply(frame, "error", &json!({ "reason": reason }));
    }

    fn reply(&self, frame: &Frame, status: &str, response: &Value) {
        let payload = json!({ "status": status, "response": response });
        self.send(frame.join_ref.as_deref(), frame.reference.as_deref(), &frame.topic, "phx_reply", &payload);
    }

    fn send(&self, join: Option<&str>, reference: Option<&str>, topic: &str, event: &str, payload: &Value) {
        self.outbox.answer(self.encoding.encode(join, reference, topic, event, &payload.to_string()));
    }

    fn now(&self) -> Timestamp {
        self.realtime.chassis.clock.now()
    }
}

/// When a channel ends: its token, with what clocks may be apart.
fn expiry(claims: &Claims) -> Timestamp {
    claims.expires.checked_add(LEEWAY).unwrap_or(Timestamp::MAX)
}

/// Some clients say so that the socket's own token is meant.
fn is_of_the_socket(token: &str) -> bool {
    token.is_empty() || token.starts_with("sb_")
}
