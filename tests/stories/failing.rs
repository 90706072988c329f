//! Receivers that fail, for a while or for good.

use proto::vendorsync::v1::{DeliveryState, Endpoint, EndpointState, ResumeEndpointRequest};
use serde_json::Value;

use super::story::{PLAIN, eventually, millis, on_each_engine};

#[tokio::test]
async fn a_receiver_that_fails_twice_gets_the_same_bytes_under_the_same_id_until_it_takes_them() {
    on_each_engine(async |story| {
        let schedule = vec![millis(50); 5];
        let settings = Endpoint { retry_schedule: schedule, ..Endpoint::default() };
        let mut subscriber = story.acme.subscribe_with(settings).await;
        subscriber.receiver.answer(&[500, 503], 200);
        story.acme.publish_all(&["hard-to-deliver"]).await;
        let received = subscriber.receiver.several(3).await;
        assert!(received.iter().all(|it| it.webhook_id() == received[0].webhook_id() && it.body == received[0].body));
        assert!(received.iter().all(|it| it.verifies_with(&subscriber.secret) && it.source() == "realtime"));
        let delivery = subscriber.settled(1, DeliveryState::Delivered).await.remove(0);
        assert_eq!((delivery.attempts, delivery.last_status_code), (3, 200));
        assert_eq!(delivery.webhook_id, received[0].webhook_id());
        let attempts = subscriber.attempts(&delivery).await;
        let told: Vec<_> = attempts.iter().map(|it| (it.number, it.status_code, it.outcome.as_str())).collect();
        assert_eq!(told, [(1, 500, "status"), (2, 503, "status"), (3, 200, "delivered")]);
        assert!(attempts.iter().all(|it| it.response == format!("answered {}", it.status_code)), "{attempts:?}");
        assert!(attempts.iter().all(|it| it.started_at.is_some() && it.duration.is_some()), "{attempts:?}");
        assert!(attempts[0].error.contains("500") && attempts[2].error.is_empty(), "{attempts:?}");
        subscriber.receiver.has_nothing_more();
    })
    .await;
}

#[tokio::test]
async fn a_receiver_that_asks_for_time_gets_it() {
    on_each_engine(async |story| {
        let settings = Endpoint { retry_schedule: vec![millis(0)], ..Endpoint::default() };
        let mut subscriber = story.acme.subscribe_with(settings).await;
        subscriber.receiver.answer(&[429], 200);
        story.acme.publish_all(&["later"]).await;
        subscriber.receiver.several(2).await;
        let delivery = subscriber.settled(1, DeliveryState::Delivered).await.remove(0);
        let started = subscriber.attempts(&delivery).await.into_iter().map(|it| it.started_at.expect("it began"));
        let started: Vec<_> = started.map(|at| at.seconds as f64 + f64::from(at.nanos) / 1e9).collect();
        assert!(started[1] - started[0] >= 1.0, "its Retry-After was 1: {started:?}");
    })
    .await;
}

#[tokio::test]
async fn a_receiver_that_is_gone_ends_its_endpoint_and_everybody_else_hears_of_it_once() {
    on_each_engine(async |mut story| {
        let mut witness = story.acme.subscribe().await;
        let gone = story.acme.subscribe().await;
        gone.receiver.answer(&[], 410);
        // Several at once: each of them may be answered 410.
        story.acme.publish_all(&["1", "2", "3", "4", "5"]).await;
        let endpoint = eventually("it is disabled", async || {
            let endpoint = gone.endpoint().await;
            let disabled = endpoint.state() == EndpointState::Disabled;
            if disabled { Ok(endpoint) } else { Err(format!("{endpoint:?}")) }
        })
        .await;
        assert!(endpoint.state_reason.contains("gone"), "{}", endpoint.state_reason);
        let heard = witness.receiver.several(6).await;
        let told = heard.iter().find(|it| it.header("x-wedsync-event") == "endpoint.disabled");
        let told: Value = told.expect("the witness hears of it").json();
        assert_eq!(
            (told["data"]["endpointId"].as_str(), told["data"]["reason"].as_str()),
            (Some(gone.id.as_str()), Some(endpoint.state_reason.as_str()))
        );
        witness.settled(6, DeliveryState::Delivered).await;
        let dead = gone.deliveries().await;
        assert!(dead.iter().all(|it| it.event_type == PLAIN), "it doesn't hear about itself: {dead:?}");
        gone.settled(dead.len(), DeliveryState::Dead).await;
        // A start looks for ends that weren't told.
        assert!(story.system.stop().await.success(), "{}", story.system.log());
        story.system.restart().await;
        story.acme.publish_all(&["afterwards"]).await;
        assert_eq!(witness.receiver.next().await.event_id(), "afterwards");
        assert_eq!(story.acme.logged(&["endpoint.disabled"]).await.len(), 1);
        witness.settled(7, DeliveryState::Delivered).await;
        witness.receiver.has_nothing_more();
        assert_eq!(gone.deliveries().await.len(), dead.len(), "a disabled endpoint gets nothing");
    })
    .await;
}

#[tokio::test]
async fn a_disabled_endpoint_that_is_resumed_gets_what_is_published_from_then_on() {
    on_each_engine(async |story| {
        let mut subscriber = story.acme.subscribe().await;
        subscriber.receiver.answer(&[410], 200);
        story.acme.publish_all(&["the-last"]).await;
        subscriber.receiver.next().await;
        subscriber.settled(1, DeliveryState::Dead).await;
        eventually("it is told", async || {
            let told = story.acme.logged(&["endpoint.disabled"]).await;
            if told.len() == 1 { Ok(()) } else { Err(format!("{told:?}")) }
        })
        .await;
        let mut endpoints = story.acme.endpoints();
        let resumed = endpoints.resume_endpoint(ResumeEndpointRequest { id: subscriber.id.clone() }).await;
        let endpoint = resumed.expect("it is resumed").into_inner().endpoint.expect("the answer holds it");
        assert_eq!((endpoint.state(), endpoint.state_reason.as_str()), (EndpointState::Active, ""));
        story.acme.publish_all(&["the-first"]).await;
        assert_eq!(subscriber.receiver.next().await.event_id(), "the-first");
    })
    .await;
}
