//! Reports of providers: what the notifier gets to see, and what they are answered.

use proto::notifier::v1::{CallbackResult, ReceiveCallbackResponse};
use tonic::Status;

use crate::world::{World, problem};

fn result(result: CallbackResult) -> ReceiveCallbackResponse {
    ReceiveCallbackResponse { result: result.into(), ..Default::default() }
}

#[tokio::test]
async fn a_report_is_passed_on_byte_for_byte_and_answered_as_its_provider_expects() {
    let world = World::start().await;
    let taken = ReceiveCallbackResponse {
        content_type: "text/xml".to_owned(),
        answer: "<Response/>".to_owned(),
        ..result(CallbackResult::Taken)
    };
    world.peers.callbacks.receive.answers(Ok(taken));
    let request = world.post("/callbacks/twilio?message=a%20b&x=1").header("x-twilio-signature", "c2ln");
    let answer = request.body(b"Body=\xff&From=%2B1".to_vec()).send().await.expect("an answer");
    assert_eq!((answer.status().as_u16(), answer.headers()["content-type"].to_str().unwrap()), (200, "text/xml"));
    assert_eq!(answer.text().await.unwrap(), "<Response/>");
    let asked = world.peers.callbacks.receive.only().request;
    assert_eq!(
        (asked.provider.as_str(), asked.query.as_str(), asked.handshake),
        ("twilio", "message=a%20b&x=1", false)
    );
    assert_eq!(asked.body, &b"Body=\xff&From=%2B1"[..]);
    assert!(asked.headers.iter().any(|header| header.name == "x-twilio-signature" && header.value == "c2ln"));
}

#[tokio::test]
async fn a_handshake_comes_without_a_body() {
    let world = World::start().await;
    let taken = ReceiveCallbackResponse {
        answer: "1158201444".to_owned(),
        content_type: "text/plain".to_owned(),
        ..result(CallbackResult::Taken)
    };
    world.peers.callbacks.receive.answers(Ok(taken));
    let answer = world.get("/callbacks/whatsapp?hub.mode=subscribe&hub.challenge=1158201444").send().await.unwrap();
    assert_eq!(answer.text().await.unwrap(), "1158201444");
    assert!(world.peers.callbacks.receive.only().request.handshake);
}

#[tokio::test]
async fn each_refusal_has_its_answer_and_strangers_are_not_asked_for() {
    let world = World::start().await;
    for (kind, status) in [
        (CallbackResult::Unknown, 404),
        (CallbackResult::Unverified, 401),
        (CallbackResult::Forbidden, 403),
        (CallbackResult::Invalid, 400),
        (CallbackResult::Unspecified, 500),
    ] {
        world.peers.callbacks.receive.answers(Ok(result(kind)));
        problem(world.post("/callbacks/slack").body("{}").send().await.unwrap(), status).await;
    }
    world.peers.callbacks.receive.answers(Err(Status::unavailable("the store is away")));
    let away = world.post("/callbacks/resend").body("{}").send().await.unwrap();
    assert!(away.headers().contains_key("retry-after"));
    problem(away, 503).await;
    let asked = world.peers.callbacks.receive.asked().len();
    problem(world.post("/callbacks/telegram").body("{}").send().await.unwrap(), 404).await;
    assert_eq!(world.peers.callbacks.receive.asked().len(), asked);
}
