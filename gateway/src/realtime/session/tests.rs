//! What a client is told when what it listens to ends without its doing.

use chassis::{
    grpc::Peer,
    id::OrganizationId,
    service::Chassis,
    testing::{manual_clock, noon},
};
use proto::router::v1::Event;
use tokio::sync::oneshot;

use super::*;
use crate::realtime::{RealtimeConfig, notice::tests::content};

const TOPIC: &str = "realtime:room";

/// A socket's session with a token of `org`.
async fn session() -> (Session, OrganizationId) {
    session_of(Chassis::for_test()).await
}

async fn session_of(chassis: Chassis) -> (Session, OrganizationId) {
    let nowhere = Peer::new("gateway", "http://127.0.0.1:1", &chassis).expect("an address");
    let secret = "a secret that only this test shares".to_owned();
    let config = RealtimeConfig { jwt_secret: secret.into(), ..RealtimeConfig::default() };
    let realtime = Realtime::start(&config, &nowhere, &chassis).await.expect("settings that hold");
    let expires = chassis.clock.now().as_second() + 3_600;
    let claims = json!({ "organization_id": "org", "app_role": "admin", "exp": expires });
    let key = realtime.tokens.issue(&claims).expect("there is a secret");
    let session = Session::new(realtime, Encoding::V2, key, Arc::new(Outbox::new(1 << 20)));
    (session, OrganizationId::parse("org").expect("well-formed"))
}

/// Joins, and gives the reply's status.
async fn join(session: &mut Session) -> Value {
    enter(session, TOPIC, json!({})).await
}

async fn enter(session: &mut Session, topic: &str, payload: Value) -> Value {
    let text = json!(["1", "1", topic, "phx_join", payload]).to_string();
    let frame = session.encoding.decode(&tokio_tungstenite::tungstenite::Message::Text(text.into())).expect("a frame");
    session.handle(frame).await;
    let reply = told(session).into_iter().find(|frame| frame[3] == "phx_reply");
    reply.expect("a reply")[4]["status"].take()
}

fn told(session: &Session) -> Vec<Value> {
    let wires = std::iter::from_fn(|| session.outbox.take());
    wires
        .map(|wire| match wire {
            Wire::Text(text) => serde_json::from_str(text.as_str()).expect("JSON"),
            Wire::Binary(_) => panic!("no text"),
        })
        .collect()
}

#[tokio::test]
async fn a_channel_whose_hub_breaks_ends_with_an_error_that_clients_come_back_from() {
    let (mut session, organization) = session().await;
    let (breaks, broken) = oneshot::channel::<()>();
    let hub = session.realtime.hubs.fed_by(&organization, async move {
        drop(broken.await);
        panic!("on purpose");
    });
    hub.set_live(true);
    assert_eq!(join(&mut session).await, "ok");
    drop(breaks);
    while !session.outbox.take_ended() {
        session.outbox.ready().await;
    }
    assert!(session.is_on(TOPIC, None));
    session.end_all();
    let told = told(&session);
    assert_eq!((&told[0][3], &told[0][4]["status"]), (&json!("system"), &json!("error")), "{told:?}");
    assert_eq!((&told[1][3], told.len()), (&json!("phx_error"), 2), "{told:?}");
    assert!(!session.is_on(TOPIC, None));

    let another = session.realtime.hubs.fed_by(&organization, std::future::pending());
    another.set_live(true);
    assert_eq!(join(&mut session).await, "ok");
    assert!(Arc::ptr_eq(session.lease.as_ref().expect("it joined").hub(), &another));
}

#[tokio::test]
async fn whoever_holds_on_to_a_hub_that_has_ended_finds_another_by_joining() {
    let (mut session, organization) = session().await;
    let hub = session.realtime.hubs.fed_by(&organization, std::future::pending());
    hub.set_live(true);
    assert_eq!(join(&mut session).await, "ok");
    hub.close();
    let another = session.realtime.hubs.fed_by(&organization, std::future::pending());
    another.set_live(true);
    assert_eq!(join(&mut session).await, "ok");
    assert!(Arc::ptr_eq(session.lease.as_ref().expect("it joined").hub(), &another));
}

#[tokio::test]
async fn what_channels_have_missed_is_given_one_channel_at_a_time() {
    let (mut session, organization) = session().await;
    let hub = session.realtime.hubs.fed_by(&organization, std::future::pending());
    let at = |sequence| Position { log_id: "log".to_owned(), sequence };
    hub.restart(at(0));
    hub.set_live(true);
    let channels = vec!["a".to_owned(), "b".to_owned()];
    hub.deliver(Event { position: Some(at(1)), channels, ..content("a.b", "{}") });
    let resume = json!({ "resume": { "epoch": "log", "seq": 0 } });
    for topic in ["realtime:a", "realtime:b"] {
        assert_eq!(enter(&mut session, topic, resume.clone()).await, "ok");
    }
    let missed = [session.catch_up(), session.catch_up(), session.catch_up()];
    assert_eq!(missed.map(|missed| missed.map(|wires| wires.len())), [Some(1), Some(1), None]);
}

#[tokio::test]
async fn a_tokens_end_is_told_a_minute_before_what_the_token_says() {
    let (clock, clocks) = manual_clock();
    let mut chassis = Chassis::for_test();
    chassis.clock = clocks;
    let (mut session, organization) = session_of(chassis).await;
    session.realtime.hubs.fed_by(&organization, std::future::pending()).set_live(true);
    assert_eq!(join(&mut session).await, "ok");
    let ends = noon() + SignedDuration::from_hours(1);
    assert_eq!(session.expire(), Some(ends - WARNED));
    clock.set(ends - WARNED);
    assert_eq!(session.expire(), Some(ends + LEEWAY));
    let told = told(&session);
    assert_eq!(told.last().expect("a warning")[4]["expires_at"], ends.as_second());
}
