//! Broadcasts, each way that there is to send one with each way that there is to hear one: over a socket and over HTTP,
//! by the newest and the older public client, and over gRPC.

use proto::router::v1::{
    BroadcastRequest, Content, SubscribeRequest, SubscribeResponse, subscribe_response::Message,
    subscription_service_client::SubscriptionServiceClient,
};
use serde_json::{Value, json};
use tokio::time::timeout;
use tonic::Streaming;

use super::{
    live::{start, supplier},
    story::{Service, Story},
    tab::{Library, Tab},
    wire::{Events, token},
};
use crate::harness::{PATIENCE, client};

/// One channel, by both of its names.
const CHANNEL: &str = "supplier:dashboard:s1";
const ALIAS: &str = "supplier_s1";
const WAYS: [&str; 5] = ["newest, socket", "older, socket", "newest, HTTP", "older, HTTP", "gRPC"];

fn subscriptions(story: &Story) -> SubscriptionServiceClient<Service> {
    SubscriptionServiceClient::new(client(story.acme.addresses.router, &story.acme.key))
}

/// Sends one that says which way it goes.
async fn send(story: &Story, [newest, older]: &mut [Tab; 2], way: &'static str) {
    let payload = json!({ "sent by": way });
    let order = |channel: &str| json!({ "channel": channel, "event": way, "payload": payload });
    let sent = match way {
        "newest, socket" => newest.order("send", order(ALIAS)).await,
        "older, socket" => older.order("send", order(CHANNEL)).await,
        // Under the name that the tab hasn't joined, which a client sends over HTTP.
        "newest, HTTP" => newest.order("post", order(CHANNEL)).await,
        "older, HTTP" => older.order("post", order(ALIAS)).await,
        _ => {
            let content = Content { content_type: String::new(), data: payload.to_string().into() };
            let (channel, event) = (ALIAS.to_owned(), way.to_owned());
            let request = BroadcastRequest { channel, event, content: Some(content), ..BroadcastRequest::default() };
            subscriptions(story).broadcast(request).await.expect("it is taken");
            return;
        }
    };
    assert_eq!(sent["what"], "done");
    let tab = if way.starts_with("newest") { newest } else { older };
    assert_eq!(tab.hear(|said| said["what"] == "sent").await["result"], "ok", "{way}");
}

/// The next broadcast of a gRPC subscription: its name and what it carries.
async fn called(stream: &mut Streaming<SubscribeResponse>) -> (String, Value) {
    loop {
        let told = timeout(PATIENCE, stream.message()).await.expect("in time").expect("it goes on");
        if let Some(Message::Broadcast(told)) = told.expect("it doesn't end").message {
            let content = told.content.expect("it carries something").data;
            return (told.event, serde_json::from_slice(&content).expect("JSON"));
        }
    }
}

#[tokio::test]
async fn a_broadcast_that_is_sent_any_way_is_heard_every_way_once() {
    let story = start().await;
    let claims = supplier(&story.acme, "s1").await;
    let mut tabs = Vec::new();
    for (library, channel) in
        [(Library::Newest, CHANNEL), (Library::Older, ALIAS), (Library::Newest, ALIAS), (Library::Older, CHANNEL)]
    {
        let Some(mut tab) = Tab::open(library, &story.system, claims.clone()).await else { return };
        tab.join(channel, json!({ "config": { "broadcast": { "ack": true } } })).await;
        tabs.push(tab);
    }
    let Ok([mut newest, mut older, sends_newest, sends_older]) = <[Tab; 4]>::try_from(tabs) else { panic!("four") };
    let mut senders = [sends_newest, sends_older];
    let mut events = Events::open(&story.system, "channel=supplier_s1", &token(&story.system, claims), "").await;
    events.next().await;
    let request = SubscribeRequest { channels: vec![ALIAS.to_owned()], ..SubscribeRequest::default() };
    let mut stream = subscriptions(&story).subscribe(request).await.expect("a subscription").into_inner();
    for way in WAYS {
        send(&story, &mut senders, way).await;
        let content = json!({ "sent by": way });
        for (tab, channel) in [(&mut newest, CHANNEL), (&mut older, ALIAS)] {
            let told = tab.broadcast(channel).await;
            assert_eq!((&told["event"], &told["payload"]), (&json!(way), &content), "{channel}");
        }
        let streamed = events.next().await;
        assert_eq!((&*streamed.name, &streamed.data), (way, &content), "an event stream");
        assert_eq!(called(&mut stream).await, (way.to_owned(), content), "gRPC");
    }
    for tab in [&newest, &older] {
        tab.heard_nothing(|said| said["what"] == "broadcast");
    }
}
