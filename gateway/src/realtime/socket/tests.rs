//! What a socket does for a client that takes what is sent to it as slowly as it can.

use axum::body::Body;
use chassis::{
    clock::ManualClock,
    grpc::Peer,
    id::OrganizationId,
    service::Chassis,
    testing::{manual_clock, noon},
};
use futures_util::poll;
use hyper::{body::Incoming, server::conn::http1, service::service_fn};
use hyper_util::rt::TokioIo;
use proto::{
    common::v1::Position,
    router::v1::{Broadcast, Content},
};
use serde_json::json;
use tokio::{
    io::{AsyncReadExt as _, AsyncWriteExt as _, DuplexStream},
    sync::mpsc,
};

use super::*;
use crate::realtime::{RealtimeConfig, handshake::Handshake, hub::Hub};

/// How much a client takes at a time, and how long it then takes nothing.
const SIP: usize = 1 << 10;
const PAUSE: Duration = Duration::from_millis(500);
/// What would never come counts as missing after this time.
const PATIENCE: Duration = Duration::from_secs(300);
const LARGE: usize = 1 << 20;
const HANDSHAKE: &[u8] = b"GET / HTTP/1.1\r\nHost: a\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n\
    Sec-WebSocket-Version: 13\r\nSec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\n\r\n";

struct Stage {
    chassis: Chassis,
    clock: ManualClock,
    realtime: Arc<Realtime>,
    hub: Arc<Hub>,
}

impl Stage {
    async fn new() -> Self {
        let (clock, clocks) = manual_clock();
        let mut chassis = Chassis::for_test();
        chassis.clock = clocks;
        let nowhere = Peer::new("gateway", "http://127.0.0.1:1", &chassis).expect("an address");
        let secret = "a secret that only this test shares".to_owned();
        let config = RealtimeConfig { jwt_secret: secret.into(), ..RealtimeConfig::default() };
        let realtime = Realtime::start(&config, &nowhere, &chassis).await.expect("settings that hold");
        let organization = OrganizationId::parse("org").expect("well-formed");
        let hub = realtime.hubs.fed_by(&organization, std::future::pending());
        hub.progress(Position { log_id: "log".to_owned(), sequence: 1 });
        hub.set_live(true);
        Self { chassis, clock, realtime, hub }
    }

    /// A socket that is served, and its client's end.
    async fn socket(&self) -> DuplexStream {
        let (near, mut far) = tokio::io::duplex(SIP);
        let (upgraded, mut sockets) = mpsc::channel(1);
        let answer = service_fn(move |request: hyper::Request<Incoming>| {
            let handshake = Handshake::read(&mut request.map(Body::new)).expect("it asks for one");
            let (response, socket) = handshake.accept::<Body>();
            let upgraded = upgraded.clone();
            async move { upgraded.try_send(socket).map(|()| response).map_err(|_| "one socket each") }
        });
        let served = http1::Builder::new().serve_connection(TokioIo::new(near), answer).with_upgrades();
        self.chassis.tasks.spawn("test.http", async move { drop(served.await) });
        far.write_all(HANDSHAKE).await.expect("there is room");
        let mut head = Vec::new();
        while !head.ends_with(b"\r\n\r\n") {
            head.push(far.read_u8().await.expect("an answer"));
        }
        let socket = sockets.recv().await.expect("an upgrade").await.expect("a socket");
        let expires = noon().as_second() + 86_400;
        let claims = json!({ "organization_id": "org", "app_role": "admin", "exp": expires });
        let key = self.realtime.tokens.issue(&claims).expect("there is a secret");
        let Ok(connected) = self.realtime.connect() else { panic!("there is room") };
        let socket = Socket::new(socket, self.realtime.clone(), Encoding::V2, key, connected);
        self.chassis.tasks.spawn("test.socket", socket.run());
        far
    }

    /// Says one message on the channel.
    fn say(&self, bytes: usize) {
        let data = json!("x".repeat(bytes)).to_string().into_bytes().into();
        let content = Some(Content { content_type: String::new(), data });
        self.hub.broadcast(&Broadcast {
            channel: "room".to_owned(),
            event: "e".to_owned(),
            content,
            ..Broadcast::default()
        });
    }

    /// Takes what is sent in sips until nothing more comes; how much that was.
    async fn sip(&self, far: &mut DuplexStream) -> usize {
        let (mut taken, mut sip) = (0, [0; SIP]);
        loop {
            match far.read(&mut sip).await {
                Ok(0) | Err(_) => return taken,
                Ok(bytes) => taken += bytes,
            }
            self.clock.advance(PAUSE);
        }
    }
}

/// A client's text frame, masked with zeros.
fn frame(text: &str) -> Vec<u8> {
    let length = u8::try_from(text.len()).ok().filter(|length| *length < 126).expect("a short one");
    [&[0x81, 0x80 | length, 0, 0, 0, 0], text.as_bytes()].concat()
}

/// Joins the channel, and takes what is answered.
async fn join(far: &mut DuplexStream) {
    far.write_all(&frame(r#"["1","1","realtime:room","phx_join",{}]"#)).await.expect("there is room");
    let mut answered = Vec::new();
    while !String::from_utf8_lossy(&answered).contains("Subscribed") {
        answered.push(far.read_u8().await.expect("an answer"));
    }
    // The rest of that message.
    while !answered.ends_with(b"}]") {
        answered.push(far.read_u8().await.expect("an answer"));
    }
}

#[tokio::test]
async fn a_client_that_sips_at_a_large_message_is_closed_when_the_process_stops() {
    let stage = Stage::new().await;
    let mut far = stage.socket().await;
    join(&mut far).await;
    stage.say(LARGE);
    far.read_exact(&mut [0; 4 * SIP]).await.expect("it is being sent");
    let stops = stage.chassis.drain();
    tokio::pin!(stops);
    assert!(poll!(&mut stops).is_pending());
    let (clean, taken) = tokio::join!(stops, stage.sip(&mut far));
    assert!(clean && taken < LARGE / 4, "it took {taken} bytes");
}

#[tokio::test]
async fn a_client_that_sips_and_says_nothing_is_idle() {
    let stage = Stage::new().await;
    let mut far = stage.socket().await;
    join(&mut far).await;
    stage.say(LARGE);
    let taken = stage.sip(&mut far).await;
    assert!(taken < LARGE / 2, "it took {taken} bytes");
}

#[tokio::test]
async fn a_client_that_takes_nothing_is_gone_though_there_is_still_room_on_the_way() {
    let stage = Stage::new().await;
    let mut far = stage.socket().await;
    join(&mut far).await;
    stage.say(SIP * 3 / 2);
    // Short of the time in which it would be idle.
    for _ in 0..90 {
        stage.clock.advance(PAUSE);
        for _ in 0..20 {
            tokio::task::yield_now().await;
        }
    }
    assert!(!stage.chassis.tasks.running().contains_key("test.socket"));
}

#[tokio::test]
async fn a_page_is_read_to_its_end_though_nobody_looks_and_not_at_all_for_whoever_left() {
    let stage = Stage::new().await;
    let since = || Position { log_id: "log".to_owned(), sequence: 1 };
    let mut slow: Vec<_> = (0..8).map(|_| stage.realtime.read(&stage.hub, since())).collect();
    for page in &mut slow {
        assert!(poll!(page).is_pending());
    }
    // Nothing is at that address, which is an answer too.
    assert!(timeout(PATIENCE, stage.realtime.read(&stage.hub, since())).await.is_ok(), "eight hold up the ninth");
    let turns = futures_util::future::join_all((0..8).map(|_| stage.hub.turn())).await;
    drop(stage.realtime.read(&stage.hub, since()));
    while stage.chassis.tasks.running().contains_key("realtime.page") {
        tokio::task::yield_now().await;
    }
    drop((slow, turns));
}
