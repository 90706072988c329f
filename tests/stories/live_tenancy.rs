//! Whose live channels are whose: each way to hear, and each way to speak, with the credential of the one whose they are
//! and with everybody else's. The rightful one stands beside the others each time, so what they don't hear was there.

use std::collections::BTreeSet;

use base64::{Engine as _, prelude::BASE64_URL_SAFE_NO_PAD};
use proto::{
    common::v1::Position,
    router::v1::{
        BroadcastRequest, Content, SubscribeRequest, SubscribeResponse, event::Payload, subscribe_response::Message,
        subscription_service_client::SubscriptionServiceClient,
    },
};
use serde_json::{Value, json};
use tokio::time::timeout;
use tonic::{Status, Streaming};

use super::{
    live::organization,
    story::{Story, Tenant, inserted, on_each_engine, told},
    web,
    wire::{Events, Socket, token},
};
use crate::harness::{Key, PATIENCE, client};

/// The channel of supplier `s1`, as a browser names it.
const OWN: &str = "realtime:supplier_s1";
/// What a row says that is published after all that is listened for.
const LAST: u32 = 999;

/// A way to hear.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Path {
    /// `postgres_changes` of everything, on a channel that is free to all of an organization.
    Changes,
    /// The supplier's channel: broadcasts, presence, and what the log has for it.
    Channel,
    StreamOfTable,
    StreamOfChannel,
    Subscribe,
}

/// A way to speak.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Way {
    Said,
    Present,
    Posted,
    PostedAlone,
    PostedForGood,
    Called,
    CalledForGood,
    /// Naming the organization that it is meant for.
    CalledInTheirName,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Who {
    Rightful,
    /// The owner of another organization, who is of a supplier with the same id.
    OtherOrganization,
    /// Of the same organization, at the same wedding.
    OtherSupplier,
    Expired,
    WithoutToken,
    Unsigned,
    /// With another organization's API key.
    OtherKey,
}

const PATHS: [Path; 5] = [Path::Changes, Path::Channel, Path::StreamOfTable, Path::StreamOfChannel, Path::Subscribe];
const WAYS: [Way; 8] = [
    Way::Said,
    Way::Present,
    Way::Posted,
    Way::PostedAlone,
    Way::PostedForGood,
    Way::Called,
    Way::CalledForGood,
    Way::CalledInTheirName,
];
const OTHERS: [Who; 6] =
    [Who::OtherOrganization, Who::OtherSupplier, Who::Expired, Who::WithoutToken, Who::Unsigned, Who::OtherKey];

/// Whether there is anything to listen to: else the other is refused.
fn may_listen(who: Who, path: Path) -> bool {
    match who {
        Who::Rightful => true,
        Who::OtherKey => path == Path::Subscribe,
        Who::OtherOrganization => path != Path::Subscribe,
        Who::OtherSupplier => matches!(path, Path::Changes | Path::StreamOfTable),
        Who::Expired | Who::WithoutToken | Who::Unsigned => false,
    }
}

/// Whether a message is taken; it then goes to the speaker's own organization.
fn may_speak(who: Who, way: Way) -> bool {
    let is_call = matches!(way, Way::Called | Way::CalledForGood | Way::CalledInTheirName);
    match who {
        Who::Rightful => true,
        Who::OtherKey => is_call && way != Way::CalledInTheirName,
        Who::OtherOrganization => !is_call,
        Who::OtherSupplier | Who::Expired | Who::WithoutToken | Who::Unsigned => false,
    }
}

/// What the rightful one is told of on a path, at once or after it comes back.
fn told_on(path: Path, again: bool) -> BTreeSet<String> {
    let logged: &[&str] = match path {
        Path::Changes | Path::StreamOfTable => &["change"],
        Path::Channel | Path::StreamOfChannel | Path::Subscribe => {
            &["kpi_update", "payment.received", "PostedForGood", "CalledForGood"]
        }
    };
    let live: &[&str] = match path {
        Path::Channel => &["Said", "Posted", "PostedAlone", "Called", "CalledInTheirName", "Present"],
        Path::StreamOfChannel | Path::Subscribe => &["Said", "Posted", "PostedAlone", "Called", "CalledInTheirName"],
        Path::Changes | Path::StreamOfTable => &[],
    };
    // Whoever is present still is.
    let still = live.iter().filter(|name| !again || **name == "Present");
    logged.iter().chain(still).map(|name| (*name).to_owned()).collect()
}

struct Stage {
    story: Story,
    rival: Tenant,
    organization: String,
    rivals: String,
}

impl Stage {
    async fn new(story: Story) -> Self {
        let rival = story.tenant("Rival").await;
        let (organization, rivals) = (organization(&story.acme).await, organization(&rival).await);
        Self { story, rival, organization, rivals }
    }

    /// What somebody shows; calls take API keys.
    fn credential(&self, who: Who, is_call: bool) -> String {
        let of = |organization: &str, mut claims: Value| {
            claims["organization_id"] = organization.into();
            token(&self.story.system, claims)
        };
        let supplier = |id: &str| json!({ "app_role": "supplier", "supplier_id": id, "wedding_ids": ["w1"] });
        match who {
            Who::Rightful if is_call => self.story.acme.key.0.clone(),
            Who::Rightful => of(&self.organization, supplier("s1")),
            Who::OtherOrganization => of(&self.rivals, json!({ "app_role": "owner", "supplier_id": "s1" })),
            Who::OtherSupplier => of(&self.organization, supplier("s2")),
            Who::Expired => of(&self.organization, json!({ "app_role": "owner", "supplier_id": "s1", "exp": 1_000 })),
            Who::WithoutToken => String::new(),
            Who::Unsigned => {
                let claims = of(&self.organization, json!({ "app_role": "owner", "supplier_id": "s1" }));
                let claims = claims.split('.').nth(1).expect("a token has three parts");
                format!("{}.{claims}.", BASE64_URL_SAFE_NO_PAD.encode(r#"{"alg":"none","typ":"JWT"}"#))
            }
            Who::OtherKey => self.rival.key.0.clone(),
        }
    }

    /// A socket with the key that all of an installation share, and a channel with what somebody shows.
    async fn join(&self, who: Who, topic: &str, mut payload: Value) -> Result<Socket, (Socket, String)> {
        let mut socket = Socket::open(&self.story.system, &token(&self.story.system, json!({ "role": "anon" }))).await;
        payload["access_token"] = self.credential(who, false).into();
        let reply = socket.join("1", topic, payload).await;
        if reply["status"] == "ok" { Ok(socket) } else { Err((socket, reply["response"].to_string())) }
    }

    /// Begins to listen; from after a position, if it was there before.
    async fn listen(&self, who: Who, path: Path, since: Option<&Position>) -> Result<Ear, String> {
        let everything = json!({ "postgres_changes": [{ "event": "*", "schema": "*", "table": "*" }] });
        let resume = since.map(|since| json!({ "epoch": since.log_id, "seq": since.sequence }));
        let last = since.map(|since| format!("{}:{}", since.log_id, since.sequence)).unwrap_or_default();
        let joined = async |topic, config| {
            let joined = self.join(who, topic, json!({ "config": config, "resume": resume })).await;
            joined.map(Ear::Socket).map_err(|(_, reason)| reason)
        };
        let stream = async |query| {
            let credential = self.credential(who, false);
            Events::try_open(&self.story.system, query, &credential, &last).await.map(Ear::Events)
        };
        match path {
            Path::Changes => joined("realtime:room", everything).await,
            Path::Channel => joined(OWN, json!({})).await,
            Path::StreamOfTable => stream("table=supplier_kpis").await,
            Path::StreamOfChannel => stream("channel=supplier_s1").await,
            Path::Subscribe => {
                let channels = vec!["supplier_s1".to_owned()];
                let request = SubscribeRequest { channels, since: since.cloned(), ..SubscribeRequest::default() };
                let stream = self.subscriptions(who).subscribe(request).await;
                stream.map(|stream| Ear::Stream(stream.into_inner())).map_err(|status| status.to_string())
            }
        }
    }

    /// Says something on the supplier's channel that is called as the way that it goes.
    async fn speak(&self, who: Who, way: Way) -> Result<Option<Socket>, String> {
        let name = format!("{way:?}");
        match way {
            Way::Said => self.push(who, "broadcast", json!({ "type": "broadcast", "event": name })).await,
            Way::Present => self.push(who, "presence", json!({ "event": "track", "payload": {} })).await,
            Way::Posted => {
                let body = json!({ "messages": [{ "topic": "supplier_s1", "event": name }] });
                self.post(who, "", &body).await
            }
            Way::PostedAlone => self.post(who, &format!("/supplier_s1/events/{name}"), &json!({})).await,
            Way::PostedForGood => self.post(who, &format!("/supplier_s1/events/{name}?persist=true"), &json!({})).await,
            Way::Called | Way::CalledForGood | Way::CalledInTheirName => {
                let organization = (way == Way::CalledInTheirName).then(|| self.organization.clone());
                let request = BroadcastRequest {
                    channel: "supplier_s1".to_owned(),
                    event: name,
                    content: Some(Content { content_type: String::new(), data: "{}".into() }),
                    durable: way == Way::CalledForGood,
                    organization_id: organization.unwrap_or_default(),
                    ..BroadcastRequest::default()
                };
                let called = self.subscriptions(who).broadcast(request).await;
                called.map(|_| None).map_err(|status| status.to_string())
            }
        }
    }

    /// Over a socket, whether or not the join was refused; who is present is so as long as the socket is kept.
    async fn push(&self, who: Who, event: &str, payload: Value) -> Result<Option<Socket>, String> {
        let config = json!({ "broadcast": { "ack": true }, "presence": { "key": "Present" } });
        let joined = self.join(who, OWN, json!({ "config": config })).await;
        let mut socket = joined.unwrap_or_else(|(socket, _)| socket);
        socket.send(json!(["1", "2", OWN, event, payload])).await;
        let reply = socket.event(OWN, "phx_reply").await;
        if reply["status"] == "ok" { Ok(Some(socket)) } else { Err(reply.to_string()) }
    }

    async fn post(&self, who: Who, path: &str, body: &Value) -> Result<Option<Socket>, String> {
        let bearer = format!("Bearer {}", self.credential(who, false));
        let (at, path) = (self.story.system.addresses.gateway, format!("/realtime/v1/api/broadcast{path}"));
        let answer = web::post(at, &path, &[("authorization", &bearer)], body.to_string().as_bytes()).await;
        if answer.status == 202 { Ok(None) } else { Err(format!("{} {}", answer.status, answer.body)) }
    }

    fn subscriptions(&self, who: Who) -> SubscriptionServiceClient<super::story::Service> {
        let key = Key(self.credential(who, true));
        SubscriptionServiceClient::new(client(self.story.acme.addresses.router, &key))
    }

    /// Each of the supplier's, and then one that everybody who may listen at all is told of.
    async fn last(&self) {
        for (tenant, supplier) in [(&self.story.acme, "s2"), (&self.rival, "s1"), (&self.story.acme, "s1")] {
            tenant.publish(figures(supplier, LAST)).await;
        }
    }
}

fn figures(supplier: &str, bookings: u32) -> proto::router::v1::Event {
    inserted("supplier_kpis", json!({ "supplier_id": supplier, "wedding_id": "w1", "bookings": bookings }))
}

/// Somebody who listens.
enum Ear {
    Socket(Socket),
    Events(Events),
    Stream(Streaming<SubscribeResponse>),
}

impl Ear {
    /// What it is called that is heard next; none for the last.
    async fn next(&mut self) -> Option<String> {
        loop {
            let (name, content) = match self {
                Self::Socket(socket) => frame(socket.next().await.expect("it stays open")),
                Self::Events(events) => {
                    let event = events.next().await;
                    (event.name.replace("postgres_changes", "change"), event.data)
                }
                Self::Stream(stream) => {
                    let told = timeout(PATIENCE, stream.message()).await.expect("in time").expect("it goes on");
                    message(told.expect("it doesn't end"))
                }
            };
            let row = content["data"].get("record").unwrap_or_else(|| &content["record"]);
            if row["bookings"] == LAST {
                return None;
            }
            if !name.is_empty() {
                return Some(name);
            }
        }
    }

    /// All that is heard up to the last.
    async fn all(&mut self) -> BTreeSet<String> {
        let mut all = BTreeSet::new();
        while let Some(name) = self.next().await {
            all.insert(name);
        }
        all
    }
}

fn frame(mut frame: Value) -> (String, Value) {
    let (event, mut payload) = (frame[3].take(), frame[4].take());
    let keys = |present: &Value| present.as_object().into_iter().flatten().map(|(key, _)| key.clone()).collect();
    match event.as_str().expect("an event has a name") {
        "postgres_changes" => ("change".to_owned(), payload),
        "broadcast" => (payload["event"].as_str().expect("a name").to_owned(), payload["payload"].take()),
        "presence_state" => (keys(&payload), Value::Null),
        "presence_diff" => (keys(&payload["joins"]), Value::Null),
        _ => (String::new(), Value::Null),
    }
}

fn message(told: SubscribeResponse) -> (String, Value) {
    match told.message {
        Some(Message::Broadcast(broadcast)) => (broadcast.event, Value::Null),
        Some(Message::Event(event)) => match event.payload {
            Some(Payload::Change(change)) => {
                let record = serde_json::from_slice::<Value>(&change.new_record).expect("JSON");
                ("kpi_update".to_owned(), json!({ "record": record }))
            }
            _ if !event.subject.is_empty() => (event.subject, Value::Null),
            _ => (event.r#type, Value::Null),
        },
        Some(Message::Progress(_) | Message::BroadcastsLost(_)) | None => (String::new(), Value::Null),
    }
}

#[tokio::test]
async fn nobody_else_hears_what_is_a_suppliers_over_any_path_at_once_or_later() {
    on_each_engine(async |story| {
        let stage = Stage::new(story).await;
        let before = stage.rival.publish(told("", "client.created", "{}")).await.position.expect("it is stored");
        let mut ears = Vec::new();
        let listen = async |again: bool, ears: &mut Vec<_>| {
            for path in PATHS {
                for who in [Who::Rightful].into_iter().chain(OTHERS) {
                    let heard = stage.listen(who, path, again.then_some(&before)).await;
                    let reason = heard.as_ref().err().cloned();
                    assert_eq!(heard.is_ok(), may_listen(who, path), "{who:?} {path:?}: {reason:?}");
                    ears.extend(heard.ok().map(|ear| (who, path, again, ear)));
                }
            }
        };
        listen(false, &mut ears).await;
        let mut spoken = Vec::new();
        for way in WAYS {
            spoken.push(stage.speak(Who::Rightful, way).await.expect("it may"));
        }
        let paid = json!({ "supplier_id": "s1", "wedding_id": "w1" }).to_string();
        stage.story.acme.publish(told("", "payment.received", &paid)).await;
        stage.story.acme.publish(figures("s1", 7)).await;
        listen(true, &mut ears).await;
        for (who, path, again, ear) in &mut ears {
            let mut missing = told_on(*path, *again);
            while *who == Who::Rightful && !missing.is_empty() {
                let name = ear.next().await.expect("there is no last one yet");
                assert!(missing.remove(&name), "{path:?} {again}: {name} beside {missing:?}");
            }
        }
        stage.last().await;
        for (who, path, again, ear) in &mut ears {
            assert_eq!(ear.all().await, BTreeSet::new(), "{who:?} {path:?}, again: {again}");
        }
    })
    .await;
}

#[tokio::test]
async fn nobody_else_is_heard_on_a_suppliers_channel_by_any_way() {
    on_each_engine(async |story| {
        let stage = Stage::new(story).await;
        let mut ears = Vec::new();
        for path in [Path::Channel, Path::StreamOfChannel, Path::Subscribe] {
            ears.push((path, stage.listen(Who::Rightful, path, None).await.expect("its own")));
        }
        for way in WAYS {
            for who in OTHERS {
                let spoken = stage.speak(who, way).await;
                let reason = spoken.as_ref().err().cloned();
                assert_eq!(spoken.is_ok(), may_speak(who, way), "{who:?} {way:?}: {reason:?}");
            }
        }
        stage.last().await;
        for (path, ear) in &mut ears {
            assert_eq!(ear.all().await, BTreeSet::new(), "{path:?}");
        }
    })
    .await;
}

#[tokio::test]
async fn an_organization_is_not_named_by_another_whose_key_it_is_not() {
    on_each_engine(async |story| {
        let stage = Stage::new(story).await;
        let request = SubscribeRequest { organization_id: stage.organization.clone(), ..SubscribeRequest::default() };
        for who in OTHERS {
            let refused: Result<_, Status> = stage.subscriptions(who).subscribe(request.clone()).await;
            refused.expect_err(&format!("{who:?} names it"));
        }
    })
    .await;
}
