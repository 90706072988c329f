//! The life of an endpoint, from its secret to its end.

use std::collections::HashMap;

use proto::vendorsync::v1::{
    DeleteEndpointRequest, DeliveryState, Endpoint, EndpointState, GetEndpointRequest, PauseEndpointRequest,
    ResumeEndpointRequest, RotateEndpointSecretRequest, UpdateEndpointRequest,
};
use tonic::Code;

use super::story::{Subscriber, millis, on_each_engine, refused};

#[tokio::test]
async fn a_secret_is_shown_once_and_custom_headers_never() {
    on_each_engine(async |story| {
        let headers = HashMap::from([("authorization".to_owned(), "Bearer hush-hush".to_owned())]);
        let mut subscriber = story.acme.subscribe_with(Endpoint { headers, ..Endpoint::default() }).await;
        assert!(subscriber.secret.starts_with("whsec_"), "{}", subscriber.secret);
        let shown = format!("{:?}", subscriber.endpoint().await);
        assert!(!shown.contains("whsec_") && !shown.contains("hush"), "{shown}");
        story.acme.publish_all(&["one"]).await;
        let received = subscriber.receiver.next().await;
        assert_eq!(received.header("authorization"), "Bearer hush-hush", "but it is sent");
        assert!(received.verifies_with(&subscriber.secret) && received.is_hex_signed_with(&subscriber.secret));
        let log = story.system.log();
        assert!(!log.contains("hush-hush") && !log.contains(&subscriber.secret), "secrets don't reach the log");
    })
    .await;
}

#[tokio::test]
async fn an_update_by_who_has_not_read_the_latest_version_changes_nothing() {
    on_each_engine(async |story| {
        let subscriber = story.acme.subscribe().await;
        let first = subscriber.endpoint().await;
        let update = async |description: &str| {
            let endpoint = Endpoint { description: description.to_owned(), ..first.clone() };
            story.acme.endpoints().update_endpoint(UpdateEndpointRequest { endpoint: Some(endpoint) }).await
        };
        let second = update("mine").await.expect("it is the latest").into_inner().endpoint.expect("it is given");
        assert_eq!((second.version, second.description.as_str()), (first.version + 1, "mine"));
        assert_eq!(refused(update("theirs").await).code(), Code::Aborted);
        assert_eq!(subscriber.endpoint().await, second);
    })
    .await;
}

#[tokio::test]
async fn an_endpoint_sees_only_what_is_published_after_its_creation() {
    on_each_engine(async |story| {
        let mut witness = story.acme.subscribe().await;
        story.acme.publish_all(&["before-1", "before-2"]).await;
        witness.receiver.several(2).await;
        let mut late = story.acme.subscribe().await;
        story.acme.publish_all(&["after"]).await;
        assert_eq!(late.receiver.next().await.event_id(), "after");
        late.receiver.has_nothing_more();
        let deliveries = late.settled(1, DeliveryState::Delivered).await;
        assert_eq!(deliveries[0].event_id, "after");
    })
    .await;
}

#[tokio::test]
async fn what_is_published_while_an_endpoint_is_paused_waits_and_arrives_once_it_is_resumed() {
    on_each_engine(async |story| {
        let mut witness = story.acme.subscribe().await;
        let mut paused = story.acme.subscribe().await;
        pause(&paused).await;
        assert_eq!(paused.endpoint().await.state(), EndpointState::Paused);
        story.acme.publish_all(&["one", "two", "three"]).await;
        witness.receiver.several(3).await;
        paused.settled(3, DeliveryState::Waiting).await;
        paused.receiver.has_nothing_more();
        let mut endpoints = story.acme.endpoints();
        endpoints.resume_endpoint(ResumeEndpointRequest { id: paused.id.clone() }).await.expect("it is resumed");
        let mut arrived: Vec<_> = paused.receiver.several(3).await.iter().map(|it| it.event_id()).collect();
        arrived.sort();
        assert_eq!(arrived, ["one", "three", "two"]);
        paused.settled(3, DeliveryState::Delivered).await;
        paused.receiver.has_nothing_more();
    })
    .await;
}

#[tokio::test]
async fn a_pause_outlives_a_restart() {
    on_each_engine(async |mut story| {
        let mut paused = story.acme.subscribe().await;
        pause(&paused).await;
        story.acme.publish_all(&["one"]).await;
        paused.settled(1, DeliveryState::Waiting).await;
        assert!(story.system.stop().await.success(), "{}", story.system.log());
        story.system.restart().await;
        assert_eq!(paused.endpoint().await.state(), EndpointState::Paused);
        paused.receiver.has_nothing_more();
        let mut endpoints = story.acme.endpoints();
        endpoints.resume_endpoint(ResumeEndpointRequest { id: paused.id.clone() }).await.expect("it is resumed");
        assert_eq!(paused.receiver.next().await.event_id(), "one");
    })
    .await;
}

#[tokio::test]
async fn a_new_secret_signs_beside_the_old_one_until_the_overlap_ends() {
    on_each_engine(async |story| {
        let mut subscriber = story.acme.subscribe().await;
        let first = subscriber.secret.clone();
        let second = rotate(&subscriber, None).await;
        story.acme.publish_all(&["overlapping"]).await;
        let received = subscriber.receiver.next().await;
        assert_eq!(received.header("webhook-signature").split(' ').count(), 2);
        assert!(received.verifies_with(&first) && received.verifies_with(&second));
        assert!(
            received.is_hex_signed_with(&second) && !received.is_hex_signed_with(&first),
            "the newest signs in hex"
        );
        let third = rotate(&subscriber, Some(millis(0))).await;
        story.acme.publish_all(&["without-overlap"]).await;
        let received = subscriber.receiver.next().await;
        assert!(received.verifies_with(&third) && !received.verifies_with(&second), "its overlap was none");
        assert!(!received.verifies_with(&first), "nor does an older one outlive it");
    })
    .await;
}

#[tokio::test]
async fn deleting_an_endpoint_cancels_what_waits_for_it_and_nothing_more_arrives() {
    on_each_engine(async |story| {
        let mut witness = story.acme.subscribe().await;
        let mut doomed = story.acme.subscribe().await;
        story.acme.publish_all(&["arrived"]).await;
        doomed.receiver.next().await;
        doomed.settled(1, DeliveryState::Delivered).await;
        pause(&doomed).await;
        story.acme.publish_all(&["waiting-1", "waiting-2"]).await;
        witness.receiver.several(3).await;
        let mut endpoints = story.acme.endpoints();
        let deleted = endpoints.delete_endpoint(DeleteEndpointRequest { id: doomed.id.clone() }).await;
        assert_eq!(deleted.expect("it is deleted").into_inner().cancelled, 2);
        let gone = refused(endpoints.get_endpoint(GetEndpointRequest { id: doomed.id.clone() }).await);
        assert_eq!(gone.code(), Code::NotFound);
        story.acme.publish_all(&["too-late"]).await;
        witness.settled(4, DeliveryState::Delivered).await;
        let states: Vec<_> = doomed.deliveries().await.iter().map(|it| (it.event_id.clone(), it.state())).collect();
        let expected = [
            ("waiting-2", DeliveryState::Cancelled),
            ("waiting-1", DeliveryState::Cancelled),
            ("arrived", DeliveryState::Delivered),
        ];
        assert_eq!(states, expected.map(|(id, state)| (id.to_owned(), state)));
        doomed.receiver.has_nothing_more();
    })
    .await;
}

async fn pause(subscriber: &Subscriber) {
    let request = PauseEndpointRequest { id: subscriber.id.clone() };
    subscriber.tenant.endpoints().pause_endpoint(request).await.expect("it is paused");
}

async fn rotate(subscriber: &Subscriber, overlap: Option<prost_types::Duration>) -> String {
    let request = RotateEndpointSecretRequest { id: subscriber.id.clone(), overlap };
    let rotated = subscriber.tenant.endpoints().rotate_endpoint_secret(request).await;
    rotated.expect("a new secret").into_inner().secret
}
