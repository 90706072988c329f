//! Messages to whoever listens: live ones reach subscribers of their channel and nobody else, durable ones stay.

use futures_util::future::join_all;
use proto::router::v1::{
    Broadcast, BroadcastRequest, Content, PublishBatchRequest, SubscribeRequest, SubscribeResponse,
    subscribe_response::Message,
};
use serde_json::json;
use tokio::time::timeout;
use tonic::{Code, Streaming};

use crate::world::{Client, PATIENCE, QUIET, content, on_each};

fn request(channel: &str, event: &str, json: &str) -> BroadcastRequest {
    let content = Content { content_type: String::new(), data: json.as_bytes().to_vec().into() };
    BroadcastRequest {
        channel: channel.to_owned(),
        event: event.to_owned(),
        content: Some(content),
        ..BroadcastRequest::default()
    }
}

async fn listen(client: &Client, channels: &[&str], types: &[&str]) -> Streaming<SubscribeResponse> {
    let owned = |texts: &[&str]| texts.iter().map(|text| (*text).to_owned()).collect();
    let request = SubscribeRequest { channels: owned(channels), types: owned(types), ..SubscribeRequest::default() };
    client.subscriptions().subscribe(request).await.unwrap().into_inner()
}

async fn message(stream: &mut Streaming<SubscribeResponse>) -> Message {
    loop {
        let next = timeout(PATIENCE, stream.message()).await.expect("a message in time");
        match next.unwrap().expect("the stream goes on").message.unwrap() {
            Message::Progress(_) => {}
            other => return other,
        }
    }
}

async fn heard(stream: &mut Streaming<SubscribeResponse>) -> Broadcast {
    match message(stream).await {
        Message::Broadcast(broadcast) => broadcast,
        other => panic!("no broadcast: {other:?}"),
    }
}

#[tokio::test]
async fn a_broadcast_reaches_who_listens_on_its_channel_in_its_organization() {
    on_each(|world| async move {
        let (a, b) = (world.organization("a").await, world.organization("b").await);
        let mut all = listen(&a, &[], &[]).await;
        let mut dashboard = listen(&a, &["supplier_7"], &[]).await;
        let mut typed = listen(&a, &[], &["broadcast.client_updated"]).await;
        let mut elsewhere = listen(&a, &["wedding:*"], &[]).await;
        let mut stranger = listen(&b, &[], &[]).await;
        let sent = BroadcastRequest { sender_id: "me".to_owned(), ..request("supplier_7", "cursor", r#"{"x": 1.50}"#) };
        a.subscriptions().broadcast(sent).await.unwrap();
        a.subscriptions().broadcast(request("any room", "client-updated", "{}")).await.unwrap();
        for stream in [&mut all, &mut dashboard] {
            let broadcast = heard(stream).await;
            assert_eq!((&*broadcast.channel, &*broadcast.event), ("supplier:dashboard:7", "cursor"));
            let content = broadcast.content.unwrap();
            assert_eq!((&*content.content_type, &content.data[..]), ("application/json", &br#"{"x": 1.50}"#[..]));
            assert_eq!(broadcast.sender_id, "me");
        }
        assert_eq!(heard(&mut all).await.channel, "any room");
        assert_eq!(heard(&mut typed).await.event, "client-updated");
        let quiet =
            join_all([&mut elsewhere, &mut stranger, &mut dashboard].map(|stream| timeout(QUIET, message(stream))));
        assert!(quiet.await.iter().all(Result::is_err));
    })
    .await;
}

#[tokio::test]
async fn a_durable_one_is_an_event_that_is_there_later() {
    on_each(|world| async move {
        let a = world.organization("a").await;
        let sent =
            BroadcastRequest { durable: true, ..request("client-list-s1", "client-updated", r#"{"clientId":"c1"}"#) };
        let position =
            a.subscriptions().broadcast(sent).await.unwrap().into_inner().position.expect("it is in the log");
        let since = Some(a.position(position.sequence - 1).await);
        let request = SubscribeRequest { channels: vec!["client-list:s1".to_owned()], since, ..Default::default() };
        let mut later = a.subscriptions().subscribe(request).await.unwrap().into_inner();
        let Message::Event(event) = message(&mut later).await else { panic!("no event") };
        assert_eq!((&*event.r#type, &*event.subject), ("broadcast.client_updated", "client-updated"));
        assert_eq!(event.position, Some(position));
    })
    .await;
}

#[tokio::test]
async fn what_is_no_broadcast_is_refused_by_field() {
    on_each(|world| async move {
        let a = world.organization("a").await;
        let refused = async |request| a.subscriptions().broadcast(request).await.expect_err("it is refused");
        for (bad, field) in [
            (request("", "e", "{}"), "channel"),
            (request("c", "", "{}"), "event"),
            (request("c", "e", "{"), "content.data"),
            (BroadcastRequest { content: None, ..request("c", "e", "{}") }, "content"),
            (BroadcastRequest { durable: true, ..request("no channel of events", "e", "{}") }, "channel"),
            (BroadcastRequest { durable: true, sender_id: "me".to_owned(), ..request("c", "e", "{}") }, "sender_id"),
        ] {
            let status = refused(bad).await;
            assert_eq!(status.code(), Code::InvalidArgument);
            assert!(status.message().starts_with(field), "{field}: {}", status.message());
        }
        let other = BroadcastRequest { organization_id: "b".to_owned(), ..request("c", "e", "{}") };
        assert_eq!(refused(other).await.code(), Code::NotFound);
    })
    .await;
}

#[tokio::test]
async fn who_catches_up_hears_what_is_sent_meanwhile() {
    on_each(|world| async move {
        let a = world.organization("a").await;
        let text = json!("x".repeat(20_000));
        // More pages of the log than can be on their way to somebody who doesn't read.
        let events: Vec<_> =
            (0..1_000).map(|number| content(&number.to_string(), "test.happened", text.clone())).collect();
        for batch in events.chunks(100) {
            let request = PublishBatchRequest { events: batch.to_vec() };
            a.events().publish_batch(request).await.unwrap();
        }
        let since = Some(a.position(0).await);
        let request_all = SubscribeRequest { since, ..SubscribeRequest::default() };
        let mut stream = a.subscriptions().subscribe(request_all).await.unwrap().into_inner();
        a.subscriptions().broadcast(request("room", "cursor", "{}")).await.unwrap();
        let mut before = 0;
        while !matches!(message(&mut stream).await, Message::Broadcast(_)) {
            before += 1;
        }
        assert!(before < 1_000, "it came behind everything");
    })
    .await;
}
