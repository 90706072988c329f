//! Clients that mean harm, or are broken: with a good token of one organization, against the gateway and against everybody
//! else. What they do fails alone, and is bounded.

use std::time::Duration;

use proto::router::v1::{BroadcastRequest, Content, subscription_service_client::SubscriptionServiceClient};
use serde_json::{Value, json};
use tokio::{
    io::{AsyncReadExt as _, AsyncWriteExt as _},
    net::{TcpSocket, TcpStream},
    time::{sleep, timeout},
};
use tokio_tungstenite::tungstenite::{
    Message,
    protocol::frame::{
        Frame,
        coding::{Data, OpCode},
    },
};

use super::{
    live::organization,
    story::{Story, Tenant, eventually, inserted, now},
    web,
    wire::{Events, Socket, token},
};
use crate::harness::{Engine, PATIENCE, Wedsync, client};

const ROOM: &str = "realtime:room";

struct Stage {
    story: Story,
    organization: String,
}

impl Stage {
    async fn with(settings: &[(&str, &str)]) -> Self {
        let system = Wedsync::start_on(&Engine::Sqlite, settings).await;
        let acme = Tenant::of(&system, "Acme").await;
        let organization = organization(&acme).await;
        Self { story: Story { system, acme }, organization }
    }

    fn token(&self, mut claims: Value) -> String {
        claims["organization_id"] = self.organization.as_str().into();
        token(&self.story.system, claims)
    }

    fn supplier(&self, id: &str) -> String {
        self.token(json!({ "app_role": "supplier", "supplier_id": id }))
    }

    async fn socket(&self, token: &str) -> Socket {
        Socket::open(&self.story.system, token).await
    }

    /// Somebody else, who is there all the time.
    async fn neighbour(&self) -> Socket {
        let mut socket = self.socket(&self.supplier("s1")).await;
        assert_eq!(socket.join("1", "realtime:supplier_s1", json!({})).await["status"], "ok");
        socket
    }

    /// The neighbour is still told of what happens, and before anything else.
    async fn is_unharmed(&self, neighbour: &mut Socket) {
        self.story.acme.publish(inserted("supplier_kpis", json!({ "supplier_id": "s1", "bookings": 1 }))).await;
        assert_eq!(neighbour.event("realtime:supplier_s1", "broadcast").await["event"], "kpi_update");
    }

    async fn order(&self, id: u32, supplier: &str) {
        self.story.acme.publish(inserted("orders", json!({ "id": id, "supplier_id": supplier }))).await;
    }

    /// Broadcasts of 100 KB in the room, as fast as four take turns at it.
    async fn flood(&self) {
        tokio::join!(self.flood_once(), self.flood_once(), self.flood_once(), self.flood_once());
    }

    async fn flood_once(&self) {
        let mut subscriptions =
            SubscriptionServiceClient::new(client(self.story.acme.addresses.router, &self.story.acme.key));
        let content = Content { content_type: String::new(), data: format!("\"{}\"", "x".repeat(100_000)).into() };
        let (channel, event, content) = ("room".to_owned(), "flood".to_owned(), Some(content));
        let request = BroadcastRequest { channel, event, content, ..BroadcastRequest::default() };
        loop {
            drop(subscriptions.broadcast(request.clone()).await);
        }
    }

    /// A connection that holds little of what isn't read yet, and what is asked for over it.
    async fn narrow(&self, path: &str, headers: &str) -> TcpStream {
        let address = self.story.system.addresses.gateway;
        let socket = TcpSocket::new_v4().expect("a socket");
        socket.set_recv_buffer_size(16 << 10).expect("a small one");
        let mut stream = socket.connect(address).await.expect("it listens");
        let request = format!("GET {path} HTTP/1.1\r\nhost: {address}\r\n{headers}\r\n");
        stream.write_all(request.as_bytes()).await.expect("it reads");
        stream
    }

    async fn connections(&self) -> String {
        let metrics = web::get(self.story.system.addresses.gateway, "/metrics", &[]).await.body;
        let line = metrics.lines().find_map(|line| line.strip_prefix("realtime_connections "));
        line.unwrap_or("none").to_owned()
    }
}

fn reason(reply: &Value) -> &str {
    assert_eq!(reply["status"], "error", "{reply}");
    reply["response"]["reason"].as_str().expect("a reason")
}

#[tokio::test]
async fn what_is_none_of_the_protocol_ends_its_own_connection_alone() {
    let stage = Stage::with(&[]).await;
    let mut neighbour = stage.neighbour().await;
    let token = stage.supplier("s1");
    let text = |bytes: &'static [u8]| Message::Frame(Frame::message(bytes, OpCode::Data(Data::Text), true));
    let frames = [
        ("invalid UTF-8", text(b"[\"1\",\"1\",\"realtime:\xff\",\"phx_join\",{}]")),
        ("too large", Message::text("x".repeat(3 << 20))),
        ("binary of no kind", Message::binary(vec![9; 100])),
        ("lengths that don't fit", Message::binary(vec![3, 255, 255, 255, 255, 255, 0, 1])),
        ("deep", Message::text("[".repeat(1_000_000))),
        ("no frame", Message::text("{\"topic\":1}")),
    ];
    for (what, frame) in frames {
        let mut socket = stage.socket(&token).await;
        socket.join("1", ROOM, json!({})).await;
        socket.throw(frame).await;
        // A cut is one too, where what was sent wasn't read to its end.
        println!("{what}: closed with {}", socket.ended().await);
    }
    stage.is_unharmed(&mut neighbour).await;
}

#[tokio::test]
async fn deep_json_and_hostile_filters_are_refused_and_the_connection_stays() {
    let stage = Stage::with(&[]).await;
    let mut neighbour = stage.neighbour().await;
    let mut socket = stage.socket(&stage.supplier("s1")).await;
    let deep = format!("{}1{}", "[".repeat(100_000), "]".repeat(100_000));
    socket.throw(Message::text(format!(r#"["1","1","{ROOM}","phx_join",{{"config":{deep}}}]"#))).await;
    assert!(reason(&socket.event(ROOM, "phx_reply").await).starts_with("MalformedPayload: "));
    let config = json!({ "broadcast": { "self": true, "ack": true } });
    assert_eq!(socket.join("2", ROOM, json!({ "config": config })).await["status"], "ok");
    for broadcast in [format!(r#"{{"event":"e","payload":{deep}}}"#), r#"{"event":"a\nb","payload":{}}"#.to_owned()] {
        socket.throw(Message::text(format!(r#"["2","3","{ROOM}","broadcast",{broadcast}]"#))).await;
        println!("{}", reason(&socket.event(ROOM, "phx_reply").await));
    }
    let list = format!("a=in.({})", vec!["1"; 101].join(","));
    for filter in
        [&list, "a=match.(a{1000}){1000}", r"a=match.(\w{200}){200}", &format!("a=like.{}", "%_a".repeat(100))]
    {
        let changes = json!([{ "event": "*", "schema": "public", "table": "orders", "filter": filter }]);
        socket.join("4", ROOM, json!({ "config": { "postgres_changes": changes } })).await;
        let told = socket.event(ROOM, "system").await;
        assert_eq!(
            (&told["status"], &told["extension"]),
            (&json!("error"), &json!("postgres_changes")),
            "{filter:.60}"
        );
    }
    stage.is_unharmed(&mut neighbour).await;
}

#[tokio::test]
async fn what_one_connection_subscribes_to_has_a_bound() {
    let stage = Stage::with(&[]).await;
    let mut socket = stage.socket(&stage.supplier("s1")).await;
    let of = |count: usize, filter: &str| {
        let one = json!({ "event": "*", "schema": "public", "table": "orders", "filter": filter });
        json!({ "config": { "postgres_changes": vec![one; count] } })
    };
    let long = format!("a=eq.{}", "x".repeat(8_000));
    for (count, filter) in [(9, &*long), (65, "a=like.%b%"), (17, "a=match.b"), (101, "a=eq.1")] {
        let refused = socket.join("1", ROOM, of(count, filter)).await;
        assert!(reason(&refused).starts_with("BindingLimitReached: "), "{count} {refused}");
    }
    // Of all its channels together, and what it leaves is free again.
    assert_eq!(socket.join("2", ROOM, of(8, &long)).await["status"], "ok");
    let refused = socket.join("3", "realtime:other", of(8, &long)).await;
    assert!(reason(&refused).starts_with("BindingLimitReached: "));
    socket.send(json!(["2", "4", ROOM, "phx_leave", {}])).await;
    assert_eq!(socket.join("5", "realtime:other", of(8, &long)).await["status"], "ok");
}

#[tokio::test]
async fn a_stream_of_a_table_is_told_of_its_rows_alone_whatever_others_say() {
    let stage = Stage::with(&[]).await;
    let mut events = Events::open(&stage.story.system, "table=orders", &stage.supplier("s1"), "").await;
    events.next().await;
    let forged = json!({ "ids": [1], "data": { "type": "INSERT", "table": "orders", "record": { "id": 666 } } });
    let messages = json!({ "messages": [{ "topic": "table orders", "event": "postgres_changes", "payload": forged }] });
    let bearer = format!("Bearer {}", stage.supplier("s2"));
    let (at, headers) = (stage.story.system.addresses.gateway, [("authorization", bearer.as_str())]);
    let body = messages.to_string();
    assert_eq!(web::post(at, "/realtime/v1/api/broadcast", &headers, body.as_bytes()).await.status, 202);
    stage.order(1, "s1").await;
    assert_eq!(events.next().await.data["data"]["record"]["id"], 1);
}

#[tokio::test]
async fn line_breaks_make_no_fields_in_an_event_stream() {
    let stage = Stage::with(&[]).await;
    let token = stage.supplier("s1");
    let mut events = Events::open(&stage.story.system, "channel=room", &token, "").await;
    events.next().await;
    let bearer = format!("Bearer {token}");
    let (at, headers) = (stage.story.system.addresses.gateway, [("authorization", bearer.as_str())]);
    let name = "/realtime/v1/api/broadcast/room/events/a%0Aid:%20evil%0Adata:%20x";
    for path in
        [name.to_owned(), format!("{name}?persist=true"), "/realtime/v1/api/broadcast/a%0Ab/events/e".to_owned()]
    {
        assert_eq!(web::post(at, &path, &headers, b"{}").await.status, 422, "{path}");
    }
    let path = "/realtime/v1/api/broadcast/room/events/e?persist=true";
    assert_eq!(web::post(at, path, &headers, b"{\r\n\r\n\"a\":\n\"\\n\\nid: evil\"\r}").await.status, 202);
    let told = events.next().await;
    assert_eq!((&*told.name, &told.data["a"]), ("e", &json!("\n\nid: evil")));
    assert!(told.id.contains(':') && !told.id.contains("evil"), "{told:?}");
    for query in ["channel=a%0Ab", "table=a%0Ab", "channel=room&table=orders"] {
        let refused = Events::try_open(&stage.story.system, query, &token, "").await.err();
        assert!(refused.is_some_and(|status| status.contains("422")), "{query}");
    }
}

#[tokio::test]
async fn a_token_that_is_swapped_gives_no_more_than_it_says() {
    let stage = Stage::with(&[]).await;
    let rival = stage.story.tenant("Rival").await;
    let rivals = token(
        &stage.story.system,
        json!({ "organization_id": organization(&rival).await, "app_role": "owner", "supplier_id": "s1" }),
    );
    let changes = json!({ "config": { "postgres_changes": [{ "event": "*", "schema": "*", "table": "*" }] } });
    let topics = ["realtime:supplier_s1", "realtime:a", "realtime:b", "realtime:c"];
    let mut socket = stage.socket(&stage.supplier("s1")).await;
    for topic in topics {
        assert_eq!(socket.join("1", topic, changes.clone()).await["status"], "ok");
    }
    let expired = stage.token(json!({ "supplier_id": "s1", "exp": 1_000 }));
    // Another supplier's on a supplier's own channel and on a room; another organization's; one that has ended.
    let swaps = [stage.supplier("s2"), stage.supplier("s2"), rivals, expired];
    for (topic, swapped) in topics.iter().zip(swaps) {
        socket.send(json!(["1", null, topic, "access_token", { "access_token": swapped }])).await;
    }
    for (topic, end) in [(topics[0], "phx_close"), (topics[2], "phx_close"), (topics[3], "phx_error")] {
        socket.event(topic, end).await;
    }
    stage.story.acme.publish(inserted("supplier_kpis", json!({ "supplier_id": "s1", "bookings": 1 }))).await;
    rival.publish(inserted("orders", json!({ "id": 1, "supplier_id": "s1" }))).await;
    stage.order(1, "s1").await;
    stage.order(2, "s2").await;
    let told = socket.next().await.expect("it stays open");
    assert_eq!(
        (&told[2], &told[3], &told[4]["data"]["record"]["id"]),
        (&json!(topics[1]), &json!("postgres_changes"), &json!(2))
    );
}

#[tokio::test]
async fn a_slow_reader_hears_nothing_after_its_token_ends_however_much_is_said() {
    let stage = Stage::with(&[]).await;
    // Clocks may be 30 s apart: it ends in 4 s.
    let ends = stage.token(json!({ "supplier_id": "s1", "exp": now().as_second() - 26 }));
    let upgrade = "connection: upgrade\r\nupgrade: websocket\r\nsec-websocket-version: 13\r\n\
                   sec-websocket-key: dGhlIHNhbXBsZSBub25jZQ==\r\n";
    let mut stream = stage.narrow(&format!("/realtime/v1/websocket?vsn=2.0.0&apikey={ends}"), upgrade).await;
    // A text frame under a mask of zeros.
    let join = format!(r#"["1","1","{ROOM}","phx_join",{{}}]"#);
    let head = [0x81, 0x80 | u8::try_from(join.len()).expect("short"), 0, 0, 0, 0];
    stream.write_all(&[&head[..], join.as_bytes()].concat()).await.expect("it reads");
    let read = async {
        // Far slower than the others talk.
        let (mut seen, mut part) = (Vec::new(), vec![0; 64 << 10]);
        loop {
            let count = stream.read(&mut part).await.expect("it stays open");
            seen.extend_from_slice(&part[..count]);
            let is_told = |seen: &[u8]| seen.windows(17).any(|part| part == b"Token has expired");
            if is_told(&seen) {
                return;
            }
            assert!(count > 0, "it is told before it is closed");
            seen.drain(..seen.len().saturating_sub(32));
            sleep(Duration::from_millis(50)).await;
        }
    };
    tokio::select! {
        read = timeout(PATIENCE, read) => read.expect("it ends while the others go on"),
        () = stage.flood() => {}
    }
}

#[tokio::test]
async fn a_stream_that_nobody_reads_ends_with_its_token() {
    let stage = Stage::with(&[]).await;
    let ends = stage.token(json!({ "supplier_id": "s1", "exp": now().as_second() - 26 }));
    let stream = stage.narrow(&format!("/realtime/v1/sse?channel=room&apikey={ends}"), "").await;
    eventually("it is there", async || {
        let connections = stage.connections().await;
        if connections == "1" { Ok(()) } else { Err(connections) }
    })
    .await;
    let gone = eventually("it is forgotten, though its client holds on", async || {
        let connections = stage.connections().await;
        if connections == "0" { Ok(()) } else { Err(connections) }
    });
    tokio::select! {
        () = gone => {}
        () = stage.flood() => {}
    }
    drop(stream);
}

#[tokio::test]
async fn whoever_says_nothing_or_is_on_no_channel_gives_its_place_back() {
    let stage = Stage::with(&[("WEDSYNC_GATEWAY__REALTIME__IDLE_TIMEOUT_MS", "3000")]).await;
    let token = stage.supplier("s1");
    let mut silent = stage.socket(&token).await;
    silent.join("1", ROOM, json!({})).await;
    let (mut lonely, mut live) = (stage.socket(&token).await, stage.neighbour().await);
    let beats = async {
        loop {
            for socket in [&mut lonely, &mut live] {
                socket.throw(Message::text(r#"[null,"1","phoenix","heartbeat",{}]"#)).await;
            }
            let now = stage.connections().await;
            if now == "1" {
                return;
            }
            sleep(Duration::from_millis(200)).await;
        }
    };
    timeout(PATIENCE, beats).await.expect("one that is on a channel and alive stays");
    assert_eq!((silent.ended().await, lonely.ended().await), (1000, 1000));
    stage.is_unharmed(&mut live).await;
}

#[tokio::test]
async fn heartbeats_without_end_end_the_connection() {
    let stage = Stage::with(&[]).await;
    let mut neighbour = stage.neighbour().await;
    let mut socket = stage.socket(&stage.supplier("s1")).await;
    socket.join("1", ROOM, json!({})).await;
    for _ in 0..20_000 {
        socket.throw(Message::text(r#"[null,"1","phoenix","heartbeat",{}]"#)).await;
    }
    println!("closed with {}", socket.ended().await);
    stage.is_unharmed(&mut neighbour).await;
}

#[tokio::test]
async fn presence_is_no_way_to_flood_a_channel_or_to_keep_others_out() {
    let stage = Stage::with(&[]).await;
    let token = stage.supplier("s1");
    // Leaving and coming back gives nobody more of it.
    let mut restless = stage.socket(&token).await;
    let mut tracked = 0;
    let refused = loop {
        restless.join("1", ROOM, json!({})).await;
        restless.send(json!(["1", "2", ROOM, "presence", { "event": "track", "payload": {} }])).await;
        let reply = restless.event(ROOM, "phx_reply").await;
        if reply["status"] == "error" && reason(&reply).starts_with("ClientPresence") {
            break tracked;
        }
        tracked += 1;
        assert!(tracked < 500, "{reply}");
        sleep(Duration::from_millis(40)).await;
    };
    println!("refused after {refused}");
    let say = json!({ "event": "track", "payload": { "text": "x".repeat(15_000) } });
    let mut present = Vec::new();
    for _ in 0..100 {
        let mut socket = stage.socket(&token).await;
        socket.join("1", ROOM, json!({})).await;
        socket.send(json!(["1", "2", ROOM, "presence", say])).await;
        let reply = socket.event(ROOM, "phx_reply").await;
        present.push(socket);
        if reply["status"] == "error" {
            assert!(reason(&reply).starts_with("PresenceLimitReached: "), "{reply}");
            break;
        }
    }
    let mut newcomer = stage.socket(&token).await;
    assert_eq!(newcomer.join("1", ROOM, json!({})).await["status"], "ok");
    let state = newcomer.event(ROOM, "presence_state").await;
    assert_eq!(state.as_object().map(serde_json::Map::len), Some(present.len() - 1), "all who could say something");
}

#[tokio::test]
async fn the_largest_broadcast_that_may_be_sent_arrives() {
    let stage = Stage::with(&[]).await;
    let mut socket = stage.neighbour().await;
    let token = stage.supplier("s1");
    let bearer = format!("Bearer {token}");
    let (at, headers) = (stage.story.system.addresses.gateway, [("authorization", bearer.as_str())]);
    let largest = format!("\"{}\"", "x".repeat((1 << 20) - 2));
    let path = "/realtime/v1/api/broadcast/supplier_s1/events/large";
    assert_eq!(web::post(at, path, &headers, largest.as_bytes()).await.status, 202);
    let told = socket.event("realtime:supplier_s1", "broadcast").await;
    assert_eq!(told["payload"].as_str().map(str::len), Some((1 << 20) - 2));
}
