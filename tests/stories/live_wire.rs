//! Live subscriptions, frame by frame: refusals, limits, resumption, event streams, broadcasts over HTTP, and the stop.

use proto::router::v1::{GetOrganizationRequest, organization_service_client::OrganizationServiceClient};
use serde_json::{Value, json};

use super::{
    story::{Story, Tenant, eventually, inserted, on_each_engine, told},
    web,
    wire::{Events, Socket, token},
};
use crate::harness::{Engine, Wedsync, client};

pub(super) const TOPIC: &str = "realtime:supplier_s1";

pub(super) async fn start_with(settings: &[(&str, &str)]) -> Story {
    let system = Wedsync::start_on(&Engine::Sqlite, settings).await;
    let acme = Tenant::of(&system, "Acme").await;
    Story { system, acme }
}

impl Story {
    /// A supplier's token.
    pub(super) async fn supplier(&self, id: &str) -> String {
        self.supplier_of(&self.acme, id).await
    }

    pub(super) async fn supplier_of(&self, tenant: &Tenant, id: &str) -> String {
        let mut organizations = OrganizationServiceClient::new(client(tenant.addresses.router, &tenant.key));
        let found = organizations.get_organization(GetOrganizationRequest::default()).await.expect("its own");
        let organization = found.into_inner().organization.expect("the answer holds it").id;
        token(&self.system, json!({ "organization_id": organization, "supplier_id": id, "app_role": "supplier" }))
    }

    /// Something that a supplier hears on its channel.
    pub(super) async fn pay(&self, number: u64) {
        let data = json!({ "supplier_id": "s1", "n": number });
        self.acme.publish(told("", "payment.received", &data.to_string())).await;
    }
}

pub(super) fn reason(reply: &Value) -> &str {
    assert_eq!(reply["status"], "error", "{reply}");
    reply["response"]["reason"].as_str().expect("a reason")
}

#[tokio::test]
async fn who_shows_no_good_token_gets_no_socket_stream_or_broadcast() {
    let story = start_with(&[]).await;
    let expired = token(&story.system, json!({ "organization_id": "o", "exp": 1_000 }));
    let mut forged = story.supplier("s1").await;
    forged.replace_range(forged.len() - 4.., "AAAA");
    let at = story.system.addresses.gateway;
    for key in ["", "nonsense", &expired, &forged] {
        let refused = web::get(at, &format!("/realtime/v1/websocket?vsn=2.0.0&apikey={key}"), &[]).await;
        assert_eq!((refused.status, refused.json()["error"].is_string()), (401, true), "{refused:?}");
        let refused = web::get(at, &format!("/realtime/v1/sse?channel=room&apikey={key}"), &[]).await;
        assert_eq!((refused.status, refused.json()["message"].is_string()), (401, true), "{refused:?}");
        let headers = [("apikey", key)];
        let refused = web::post(at, "/realtime/v1/api/broadcast", &headers, b"{\"messages\":[]}").await;
        assert_eq!(refused.status, 401);
    }
    let key = story.supplier("s1").await;
    assert_eq!(web::get(at, &format!("/realtime/v1/websocket?vsn=3.0.0&apikey={key}"), &[]).await.status, 400);
}

#[tokio::test]
async fn a_join_is_refused_in_the_protocols_words_and_harms_no_other() {
    let story = start_with(&[("WEDSYNC_GATEWAY__REALTIME__CHANNELS_PER_CONNECTION", "2")]).await;
    let mut socket = Socket::open(&story.system, &story.supplier("s1").await).await;
    let refused = socket.join("1", "realtime:supplier_s2", json!({})).await;
    assert!(reason(&refused).starts_with("Unauthorized: "));
    let refused = socket.join("2", TOPIC, json!({ "access_token": "nonsense" })).await;
    assert!(reason(&refused).starts_with("InvalidJWTToken: "));
    assert!(reason(&socket.join("3", "no topic", json!({})).await).starts_with("TopicNameRequired: "));
    let changes = json!([{ "event": "*", "schema": "public", "table": "a", "filter": "no=filter" }]);
    let reply = socket.join("4", TOPIC, json!({ "config": { "postgres_changes": changes } })).await;
    assert_eq!(reply["status"], "ok");
    assert_eq!(socket.event(TOPIC, "system").await["status"], "error", "the subscription alone");
    assert_eq!(socket.event(TOPIC, "system").await["status"], "ok");
    assert_eq!(socket.join("5", "realtime:room", json!({})).await["status"], "ok");
    let refused = socket.join("6", "realtime:other", json!({})).await;
    assert!(reason(&refused).starts_with("ChannelRateLimitReached: "));
    socket.send(json!(["9", "7", "realtime:nowhere", "broadcast", {}])).await;
    assert_eq!(reason(&socket.event("realtime:nowhere", "phx_reply").await), "unmatched topic");
    socket.send(json!([null, "8", "phoenix", "heartbeat", {}])).await;
    assert_eq!(socket.event("phoenix", "phx_reply").await["status"], "ok");
    story.pay(1).await;
    assert_eq!(socket.event(TOPIC, "broadcast").await["payload"]["n"], 1);
}

#[tokio::test]
async fn joining_again_closes_the_earlier_join_and_ids_stay_the_same() {
    let story = start_with(&[]).await;
    let mut socket = Socket::open(&story.system, &story.supplier("s1").await).await;
    let payload =
        json!({ "config": { "postgres_changes": [{ "event": "*", "schema": "public", "table": "orders" }] } });
    let first = socket.join("1", TOPIC, payload.clone()).await;
    socket.send(json!(["2", "2", TOPIC, "phx_join", payload])).await;
    let closed = loop {
        let frame = socket.next().await.expect("it stays open");
        if frame[3] == "phx_close" {
            break frame;
        }
    };
    assert_eq!((&closed[0], &closed[1]), (&json!("1"), &json!("1")), "the earlier one");
    assert_eq!(socket.event(TOPIC, "phx_reply").await, first);
    socket.send(json!(["2", "3", TOPIC, "phx_leave", {}])).await;
    assert_eq!(socket.event(TOPIC, "phx_reply").await["status"], "ok");
    socket.event(TOPIC, "phx_close").await;
}

#[tokio::test]
async fn one_who_reads_slowly_misses_nothing_that_is_in_the_log() {
    // A queue of 64 KiB, and two megabytes that nobody reads while they come.
    let story = start_with(&[("WEDSYNC_GATEWAY__REALTIME__QUEUE_BYTES", "65536")]).await;
    let mut socket = Socket::open(&story.system, &story.supplier("s1").await).await;
    socket.join("1", TOPIC, json!({})).await;
    socket.event(TOPIC, "system").await;
    let filler = "x".repeat(100_000);
    for number in 1..=100_u64 {
        let data = json!({ "supplier_id": "s1", "n": number, "filler": filler });
        story.acme.publish(told("", "payment.received", &data.to_string())).await;
    }
    for number in 1..=100_u64 {
        assert_eq!(socket.event(TOPIC, "broadcast").await["payload"]["n"], number);
    }
    story.pay(101).await;
    assert_eq!(socket.event(TOPIC, "broadcast").await["payload"]["n"], 101, "and is live again");
}

/// Events that are published while a socket is cut again and again.
const EVENTS: u64 = 400;

#[tokio::test]
async fn a_socket_that_is_cut_again_and_again_gets_every_event_once_and_in_order() {
    on_each_engine(async |story| {
        let mut reader = Reader::new(&story).await;
        let publish = async {
            for number in 1..=EVENTS {
                story.pay(number).await;
            }
        };
        let read = async {
            for cut in 0.. {
                if reader.read_some(&story, cut * 7 % 31).await {
                    break;
                }
            }
        };
        tokio::join!(publish, read);
    })
    .await;
}

#[tokio::test]
async fn what_happened_before_everything_was_killed_comes_after_it_is_back() {
    on_each_engine(async |mut story| {
        let mut reader = Reader::new(&story).await;
        for number in 1..=EVENTS {
            if number % 100 == 50 {
                reader.read_some(&story, 20).await;
                story.system.kill().await;
                story.system.restart().await;
            }
            story.pay(number).await;
        }
        while !reader.read_some(&story, EVENTS).await {}
    })
    .await;
}

/// Somebody who remembers how far it is.
struct Reader {
    token: String,
    resume: Value,
    next: u64,
}

impl Reader {
    /// Joins once, so as to have a position.
    async fn new(story: &Story) -> Self {
        let mut reader = Self { token: story.supplier("s1").await, resume: true.into(), next: 1 };
        let mut socket = Socket::open(&story.system, &reader.token).await;
        socket.join("1", TOPIC, json!({ "resume": true })).await;
        reader.resume = socket.event(TOPIC, "system").await;
        reader
    }

    /// Comes back and reads so many of the events that go on from where it was; whether it has them all.
    async fn read_some(&mut self, story: &Story, count: u64) -> bool {
        let mut socket = Socket::open(&story.system, &self.token).await;
        assert_eq!(socket.join("1", TOPIC, json!({ "resume": self.resume })).await["status"], "ok");
        for _ in 0..count.min(EVENTS + 1 - self.next) {
            let told = socket.event(TOPIC, "broadcast").await;
            assert_eq!(told["payload"]["n"], self.next);
            (self.resume, self.next) = (told["meta"].clone(), self.next + 1);
        }
        self.next > EVENTS
    }
}

#[tokio::test]
async fn too_many_messages_are_refused_and_none_of_the_protocol_closes() {
    let story = start_with(&[("WEDSYNC_GATEWAY__REALTIME__MESSAGES_PER_SECOND", "5")]).await;
    let mut socket = Socket::open(&story.system, &story.supplier("s1").await).await;
    socket.join("1", "realtime:room", json!({})).await;
    for _ in 0..20 {
        socket.send(json!(["1", "2", "realtime:room", "nothing", {}])).await;
    }
    let refused = socket.event("realtime:room", "phx_reply").await;
    assert!(reason(&refused).starts_with("MessagePerSecondRateLimitReached: "));
    socket.send(json!({ "no": "frame" })).await;
    let closed = loop {
        if let Err(code) = socket.next().await {
            break code;
        }
    };
    assert_eq!(closed, 1003);
}

#[tokio::test]
async fn an_event_stream_goes_on_after_its_last_id_and_says_when_it_can_not() {
    let story = start_with(&[]).await;
    let token = story.supplier("s1").await;
    let mut events = Events::open(&story.system, "channel=supplier_s1", &token, "").await;
    let start = events.next().await;
    assert!(start.name.is_empty() && start.id.contains(':'), "{start:?}");
    story.pay(1).await;
    let seen = events.next().await;
    assert_eq!((&*seen.name, &seen.data["n"]), ("payment.received", &json!(1)));
    drop(events);
    for number in 2..=300 {
        story.pay(number).await;
    }
    let mut events = Events::open(&story.system, "channel=supplier_s1", &token, &seen.id).await;
    for number in 2..=300 {
        assert_eq!(events.next().await.data["n"], number);
    }
    story.pay(301).await;
    assert_eq!(events.next().await.data["n"], 301, "and is live again");
    let mut events = Events::open(&story.system, "channel=supplier_s1", &token, "another-log:7").await;
    assert_eq!(events.next().await.name, "resync");
    story.pay(302).await;
    assert_eq!(events.next().await.data["n"], 302);
    let path = format!("/realtime/v1/sse?channel=supplier_s2&apikey={token}");
    assert_eq!(web::get(story.system.addresses.gateway, &path, &[]).await.status, 403);
}

#[tokio::test]
async fn broadcasts_over_http_reach_sockets_and_a_page_may_ask() {
    let story = start_with(&[]).await;
    let (at, token) = (story.system.addresses.gateway, story.supplier("s1").await);
    let mut socket = Socket::open(&story.system, &token).await;
    socket.join("1", TOPIC, json!({})).await;
    socket.event(TOPIC, "system").await;
    let bearer = format!("Bearer {token}");
    let headers = [("authorization", bearer.as_str())];
    let body = json!({ "messages": [{ "topic": "supplier:dashboard:s1", "event": "e", "payload": { "a": 1 } }] });
    let sent = web::post(at, "/realtime/v1/api/broadcast", &headers, body.to_string().as_bytes()).await;
    assert_eq!((sent.status, &*sent.body, &*sent.headers["access-control-allow-origin"]), (202, "", "*"));
    assert_eq!(socket.event(TOPIC, "broadcast").await["payload"], json!({ "a": 1 }));
    let path = "/realtime/v1/api/broadcast/supplier_s1/events/kept?persist=true";
    assert_eq!(web::post(at, path, &headers, b"{\"b\":2}").await.status, 202);
    let kept = socket.event(TOPIC, "broadcast").await;
    assert_eq!((&kept["event"], &kept["payload"]["b"]), (&json!("kept"), &json!(2)));
    assert!(kept["meta"]["seq"].is_u64(), "it is in the log");
    let body = json!({ "messages": [{ "topic": "supplier_s2", "event": "e" }] });
    assert_eq!(web::post(at, "/realtime/v1/api/broadcast", &headers, body.to_string().as_bytes()).await.status, 403);
    assert_eq!(web::post(at, "/realtime/v1/api/broadcast", &headers, b"{").await.status, 422);
}

#[tokio::test]
async fn an_organizations_rooms_streams_and_presence_are_its_own() {
    let story = start_with(&[]).await;
    let rival = story.tenant("Rival").await;
    let (ours, theirs) = (story.supplier("s1").await, story.supplier_of(&rival, "s1").await);
    let mut socket = Socket::open(&story.system, &theirs).await;
    socket.join("1", TOPIC, json!({})).await;
    socket.event(TOPIC, "system").await;
    let mut events = Events::open(&story.system, "channel=supplier_s1", &theirs, "").await;
    events.next().await;
    let mut neighbour = Socket::open(&story.system, &ours).await;
    neighbour.join("1", TOPIC, json!({})).await;
    neighbour.send(json!(["1", "2", TOPIC, "presence", { "event": "track", "payload": {} }])).await;
    assert_eq!(neighbour.event(TOPIC, "phx_reply").await["status"], "ok");
    let body = json!({ "messages": [{ "topic": "supplier_s1", "event": "ours" }] }).to_string();
    let at = story.system.addresses.gateway;
    let headers = [("apikey", ours.as_str())];
    assert_eq!(web::post(at, "/realtime/v1/api/broadcast", &headers, body.as_bytes()).await.status, 202);
    neighbour.event(TOPIC, "broadcast").await;
    story.pay(1).await;
    neighbour.event(TOPIC, "broadcast").await;
    rival.publish(told("", "payment.received", r#"{"supplier_id":"s1","n":2}"#)).await;
    let first = socket.next().await.expect("it stays open");
    assert_eq!((&first[3], &first[4]["payload"]["n"]), (&json!("broadcast"), &json!(2)), "nothing came before");
    assert_eq!(events.next().await.data["n"], 2);
    let other = neighbour.join("3", "realtime:room", json!({ "access_token": theirs })).await;
    assert!(reason(&other).starts_with("Unauthorized: "), "a connection is one organization's");
}

#[tokio::test]
async fn an_event_stream_of_a_table_has_the_rows_that_its_holder_may_see() {
    let story = start_with(&[]).await;
    let mut events =
        Events::open(&story.system, "table=orders&filter=total=gt.5", &story.supplier("s1").await, "").await;
    events.next().await;
    let rows = [("s1", 3), ("s2", 9), ("s1", 7)];
    for (supplier, total) in rows {
        let row = json!({ "id": total, "supplier_id": supplier, "total": total, "wedding_id": "w1" });
        story.acme.publish(inserted("orders", row)).await;
    }
    let told = events.next().await;
    assert_eq!((&*told.name, &told.data["data"]["record"]["id"]), ("postgres_changes", &json!(7)));
}

#[tokio::test]
async fn an_organization_and_a_client_have_so_many_of_each() {
    let story = start_with(&[("WEDSYNC_GATEWAY__REALTIME__CONNECTIONS_PER_ORGANIZATION", "2")]).await;
    let token = story.supplier("s1").await;
    let mut sockets = Vec::new();
    for _ in 0..2 {
        let mut socket = Socket::open(&story.system, &token).await;
        assert_eq!(socket.join("1", "realtime:room", json!({})).await["status"], "ok");
        sockets.push(socket);
    }
    let mut third = Socket::open(&story.system, &token).await;
    let refused = third.join("1", "realtime:room", json!({})).await;
    assert!(reason(&refused).starts_with("ConnectionRateLimitReached: "));
    let mut first = sockets.remove(0);
    for _ in 0..6 {
        first.send(json!(["1", "2", "realtime:room", "presence", { "event": "track", "payload": {} }])).await;
    }
    for _ in 0..5 {
        assert_eq!(first.event("realtime:room", "phx_reply").await["status"], "ok");
    }
    let refused = first.event("realtime:room", "phx_reply").await;
    assert!(reason(&refused).starts_with("ClientPresenceRateLimitReached: "));
    drop(first);
    eventually("one that left makes room", async || {
        let reply = third.join("2", "realtime:room", json!({})).await;
        if reply["status"] == "ok" { Ok(()) } else { Err(reply.to_string()) }
    })
    .await;
}

#[tokio::test]
async fn a_stop_closes_sockets_as_a_restart() {
    let mut story = start_with(&[("WEDSYNC_GATEWAY__REALTIME__DRAIN_MS", "200")]).await;
    let mut socket = Socket::open(&story.system, &story.supplier("s1").await).await;
    socket.join("1", "realtime:room", json!({})).await;
    let stopped = story.system.stop().await;
    assert!(stopped.success(), "{stopped}");
    let closed = loop {
        if let Err(code) = socket.next().await {
            break code;
        }
    };
    assert_eq!(closed, 1012);
}
