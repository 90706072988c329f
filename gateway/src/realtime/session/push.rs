//! What a client says on a channel that it is on: broadcasts, which go through the router to everybody who listens, and
//! what it is present as.

use serde::Deserialize;
use serde_json::{Map, Value, json, value::RawValue};

use super::Session;
use crate::realtime::{
    frame::{Content, Frame, Push},
    pace::Rate,
    presence::PAYLOAD_BYTES,
};

/// Presence changes of one channel within so many seconds.
const PRESENCES: (u32, u32) = (5, 30);
/// The same of all channels of a connection, whether it leaves and joins them again or not.
const PRESENCES_OF_ALL: (u32, u32) = (100, 30);

#[derive(Deserialize)]
struct Broadcast<'a> {
    event: String,
    #[serde(borrow)]
    payload: Option<&'a RawValue>,
}

#[derive(Deserialize)]
struct Present {
    event: String,
    #[serde(default)]
    payload: Map<String, Value>,
}

impl Push {
    /// Reads a broadcast's payload in a text frame.
    pub(super) fn parse(payload: &str) -> Option<Self> {
        let Broadcast { event, payload } = serde_json::from_str(payload).ok()?;
        let json = payload.map_or("{}", RawValue::get);
        Some(Self { event, content: Content::Json(json.to_owned().into()) })
    }
}

impl Session {
    /// Sends it; acknowledged where the join asked for that, once the router has taken it.
    pub(super) async fn broadcast(&mut self, frame: &Frame, push: Push) {
        let Some(channel) = self.channels.get(&frame.topic) else { return };
        let (topic, sender, acknowledge) = (channel.topic.clone(), channel.seat.sender(), channel.acknowledge);
        let organization = channel.seat.hub().organization.clone();
        let sent = self.realtime.send(&organization, topic.channel(), push, sender, false).await;
        match sent {
            Ok(()) if acknowledge => self.reply(frame, "ok", &json!({})),
            Ok(()) => {}
            Err(error) if acknowledge => self.refuse(frame, &error.to_string()),
            Err(error) => {
                let message = format!("A broadcast was not sent: {error}");
                self.system(&topic, frame.join_ref.as_deref(), "broadcast", "error", &message, &json!({}));
            }
        }
    }

    pub(super) fn presence(&mut self, frame: &Frame, payload: &str) {
        let now = self.now();
        let Some(channel) = self.channels.get(&frame.topic) else { return };
        let rate = |(count, seconds)| Rate::new(count, seconds);
        if !channel.presences.take(rate(PRESENCES), now) || !self.presences.take(rate(PRESENCES_OF_ALL), now) {
            return self.refuse(frame, "ClientPresenceRateLimitReached: too many presence messages");
        }
        let Ok(Present { event, payload: said }) = serde_json::from_str(payload) else {
            return self.refuse(frame, "a presence message has an event and a payload");
        };
        let done = match event.as_str() {
            "track" if payload.len() > PAYLOAD_BYTES => Err("Track message size exceeded"),
            "track" => channel.seat.track(said),
            "untrack" => {
                channel.seat.untrack();
                Ok(())
            }
            _ => Err("a presence event is track or untrack"),
        };
        match done {
            Ok(()) => self.reply(frame, "ok", &json!({})),
            Err(reason) => self.refuse(frame, reason),
        }
    }
}
