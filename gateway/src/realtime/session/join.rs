//! How a channel is joined: who asks, whether they may, what they want, and from where. `ok` is said only once changes
//! really come.

use std::{sync::Arc, time::Duration};

use proto::common::v1::Position;
use serde_json::json;

use super::{Channel, RESTARTING, Session, expiry, is_of_the_socket};
use crate::realtime::{
    claims::Claims,
    frame::Frame,
    hub::Hub,
    join::{Cost, Join, Resume},
    member::{Member, Place, Subscribed},
    pace::Pace,
    topic::Topic,
};

/// How long changes may take to come: clients wait for 10 s.
const LIVE_WITHIN: Duration = Duration::from_secs(8);

/// Of the subscriptions of one connection: parsed and in the index, a byte may take a hundred; a regular expression takes
/// up to 128 KiB, and a hostile pattern looks at each character of a text 256 times.
const MOST: Cost = Cost { bytes: 64 << 10, patterns: 64, expressions: 16 };

impl Session {
    pub(super) async fn join(&mut self, frame: &Frame, payload: &str) {
        // A client that joins again has forgotten the earlier one.
        if let Some(before) = self.channels.remove(&frame.topic) {
            let join_ref = before.join_ref.as_deref();
            self.send(join_ref, join_ref, &frame.topic, "phx_close", &json!({}));
        }
        match self.admit(frame, payload).await {
            Ok((topic, join, claims, hub)) => self.enter(frame, topic, join, claims, &hub),
            Err(reason) => self.refuse(frame, &reason),
        }
    }

    /// # Errors
    /// What the client is told.
    async fn admit(&mut self, frame: &Frame, payload: &str) -> Result<(Topic, Join, Claims, Arc<Hub>), String> {
        let config = &self.realtime.config;
        let topic = Topic::parse(&frame.topic).ok_or("TopicNameRequired: a topic is `realtime:` and a name")?;
        if self.channels.len() >= config.channels_per_connection as usize {
            return Err("ChannelRateLimitReached: too many channels on this connection".to_owned());
        }
        let join = Join::parse(payload).ok_or("MalformedPayload: the payload must be an object")?;
        if join.changes.len() > config.bindings_per_channel as usize {
            return Err("BindingLimitReached: too many subscriptions to changes on this channel".to_owned());
        }
        let cost = self.channels.values().map(|channel| channel.cost).fold(join.cost(), Cost::plus);
        if cost.bytes > MOST.bytes {
            return Err("BindingLimitReached: the filters on this connection are too long".to_owned());
        }
        if cost.patterns > MOST.patterns || cost.expressions > MOST.expressions {
            return Err("BindingLimitReached: too many regular expressions or patterns on this connection".to_owned());
        }
        let token = join.token.as_deref().filter(|token| !is_of_the_socket(token)).unwrap_or(&self.key);
        let claims = self.realtime.authenticate(token).await;
        let claims = claims.map_err(|error| format!("InvalidJWTToken: {error}"))?;
        let hub = self.hub(&claims)?;
        if !claims.may_join(topic.channel()) {
            let name = topic.name();
            return Err(format!("Unauthorized: You do not have permissions to read from this Channel topic: {name}"));
        }
        if hub.is_live(LIVE_WITHIN).await { Ok((topic, join, claims, hub)) } else { Err(RESTARTING.to_owned()) }
    }

    /// A socket is one organization's.
    fn hub(&mut self, claims: &Claims) -> Result<Arc<Hub>, String> {
        if self.lease.as_ref().is_none_or(|lease| lease.hub().is_closed()) {
            self.lease = self.realtime.hubs.lease(&claims.organization);
        }
        let Some(lease) = &self.lease else {
            return Err("ConnectionRateLimitReached: too many connections of this organization".to_owned());
        };
        if lease.hub().organization != claims.organization {
            return Err("Unauthorized: this connection is of another organization".to_owned());
        }
        if !self.realtime.hubs.admits(lease, self.now()) {
            return Err("ClientJoinRateLimitReached: too many joins per second".to_owned());
        }
        Ok(lease.hub().clone())
    }

    fn enter(&mut self, frame: &Frame, topic: Topic, join: Join, claims: Claims, hub: &Arc<Hub>) {
        self.reply(frame, "ok", &join.reply());
        let (expires, join_ref) = (expiry(&claims), frame.join_ref.clone().or_else(|| frame.reference.clone()));
        let (changes, cost) = (!join.changes.is_empty(), join.cost());
        let resume = match &join.resume {
            Resume::From { epoch, seq } => Some(Position { log_id: epoch.clone(), sequence: *seq }),
            Resume::No | Resume::Later => None,
        };
        let resuming = resume.is_some();
        let seat = hub.join(self.member(&topic, &join, claims), resume, |position, present| {
            if join.presence {
                self.send(join_ref.as_deref(), None, topic.text(), "presence_state", &present);
            }
            self.tell_failures(&topic, join_ref.as_deref(), &join);
            if !resuming {
                let more = json!({ "epoch": position.log_id, "seq": position.sequence });
                self.subscribed(&topic, join_ref.as_deref(), changes, &more);
            }
        });
        let (acknowledge, presences) = (join.acknowledge, Pace::default());
        let channel =
            Channel { topic, join_ref, seat, acknowledge, changes, cost, resuming, expires, warned: false, presences };
        self.channels.insert(frame.topic.clone(), channel);
    }

    /// A subscription that can't be is told of, and harms no other.
    fn tell_failures(&self, topic: &Topic, join_ref: Option<&str>, join: &Join) {
        for failure in join.changes.iter().filter_map(|wanted| wanted.parsed.as_ref().err()) {
            let message = format!("Unable to subscribe to changes with given parameters: {failure}");
            self.system(topic, join_ref, "postgres_changes", "error", &message, &json!({}));
        }
    }

    fn member(&self, topic: &Topic, join: &Join, claims: Claims) -> Member {
        let predicate = Arc::new(claims.predicate());
        let made = || chassis::id::uuid(self.now());
        Member {
            topic: topic.clone(),
            encoding: self.encoding,
            outbox: self.outbox.clone(),
            changes: Subscribed::all(&join.changes, &predicate),
            predicate,
            claims: Arc::new(claims),
            own: join.own,
            presence_key: Some(join.presence_key.clone()).filter(|key| !key.is_empty()).unwrap_or_else(made),
            presence: join.presence,
            positions: join.resume != Resume::No,
            place: Place::Live(0),
        }
    }
}
