//! Sending again, on request: one delivery, all since a time, those that are dead, and events from the log.

use proto::{
    common::v1::Position,
    router::v1::{GetHeadRequest, ReplayEventsRequest},
    vendorsync::v1::{
        DeliveryState, Endpoint, GetEndpointStatisticsRequest, PauseEndpointRequest, RecoverDeliveriesRequest,
        ReplayDeliveriesRequest, ResendDeliveryRequest, SendTestEventRequest,
    },
};
use tonic::Code;

use super::{
    receiver::Received,
    story::{PLAIN, Subscriber, eventually, long_ago, millis, now, on_each_engine, refused},
};

#[tokio::test]
async fn a_delivery_that_is_resent_keeps_its_id_and_counts_its_attempts_on() {
    on_each_engine(async |story| {
        let mut subscriber = story.acme.subscribe().await;
        story.acme.publish_all(&["one"]).await;
        let first = subscriber.receiver.next().await;
        let delivery = subscriber.settled(1, DeliveryState::Delivered).await.remove(0);
        let request = ResendDeliveryRequest { id: delivery.id.clone() };
        let resent = story.acme.deliveries().resend_delivery(request.clone()).await.expect("it is opened again");
        assert_eq!(resent.into_inner().delivery.expect("the answer holds it").id, delivery.id);
        let second = subscriber.receiver.next().await;
        assert_replays(&second, &first);
        assert!(second.verifies_with(&subscriber.secret));
        attempted(&subscriber, &[1, 2]).await;
        pause(&subscriber).await;
        story.acme.deliveries().resend_delivery(request.clone()).await.expect("a delivered one is opened again");
        let again = refused(story.acme.deliveries().resend_delivery(request).await);
        assert_eq!(again.code(), Code::FailedPrecondition, "it waits already: {again:?}");
        subscriber.receiver.has_nothing_more();
    })
    .await;
}

#[tokio::test]
async fn replaying_deliveries_sends_all_since_a_time_and_a_dry_run_only_counts_them() {
    on_each_engine(async |story| {
        let mut subscriber = story.acme.subscribe().await;
        story.acme.publish_all(&["1", "2", "3"]).await;
        let first = subscriber.receiver.several(3).await;
        subscriber.settled(3, DeliveryState::Delivered).await;
        let replay = async |since, dry_run| {
            let request = ReplayDeliveriesRequest { endpoint_id: subscriber.id.clone(), since, until: None, dry_run };
            story.acme.deliveries().replay_deliveries(request).await.expect("it is replayed").into_inner().deliveries
        };
        let from_now = Some(prost_types::Timestamp { seconds: now().as_second() + 60, nanos: 0 });
        assert_eq!((replay(long_ago(), true).await, replay(from_now, false).await), (3, 0));
        assert_eq!(subscriber.settled(3, DeliveryState::Delivered).await[0].attempts, 1, "nothing was sent");
        subscriber.receiver.has_nothing_more();
        assert_eq!(replay(long_ago(), false).await, 3);
        for second in subscriber.receiver.several(3).await {
            let first = first.iter().find(|it| it.event_id() == second.event_id()).expect("it came before");
            assert_replays(&second, first);
        }
        eventually("all are delivered again", async || {
            let deliveries = subscriber.deliveries().await;
            let done = deliveries.iter().all(|it| it.attempts == 2 && it.state() == DeliveryState::Delivered);
            if done && deliveries.len() == 3 { Ok(()) } else { Err(format!("{deliveries:?}")) }
        })
        .await;
        subscriber.receiver.has_nothing_more();
    })
    .await;
}

#[tokio::test]
async fn dead_letters_are_recovered_as_they_were_written_and_no_others() {
    on_each_engine(async |story| {
        let settings = Endpoint { retry_schedule: vec![millis(0)], ..Endpoint::default() };
        let mut subscriber = story.acme.subscribe_with(settings).await;
        story.acme.publish_all(&["well"]).await;
        subscriber.receiver.next().await;
        subscriber.settled(1, DeliveryState::Delivered).await;
        subscriber.receiver.answer(&[422, 422], 200);
        story.acme.publish_all(&["ill"]).await;
        let failed = subscriber.receiver.several(2).await;
        let dead = eventually("the schedule is exhausted", async || {
            let newest = subscriber.deliveries().await.remove(0);
            if newest.state() == DeliveryState::Dead { Ok(newest) } else { Err(format!("{newest:?}")) }
        })
        .await;
        assert!(dead.event_id == "ill" && !dead.reason.is_empty(), "{dead:?}");
        let recover = async |dry_run| {
            let request = RecoverDeliveriesRequest { endpoint_id: subscriber.id.clone(), since: long_ago(), dry_run };
            story.acme.deliveries().recover_deliveries(request).await.expect("recovered").into_inner().deliveries
        };
        assert_eq!(recover(true).await, 1);
        subscriber.receiver.has_nothing_more();
        assert_eq!(recover(false).await, 1);
        assert_replays(&subscriber.receiver.next().await, &failed[0]);
        subscriber.settled(2, DeliveryState::Delivered).await;
        assert_eq!(recover(false).await, 0, "nothing is dead any more");
        let numbers: Vec<_> = subscriber.attempts(&dead).await.iter().map(|it| it.number).collect();
        assert_eq!(numbers, [1, 2, 3]);
        subscriber.receiver.has_nothing_more();
    })
    .await;
}

#[tokio::test]
async fn replaying_events_offers_them_again_to_who_was_there_when_they_were_published() {
    on_each_engine(async |story| {
        let head = story.acme.events().get_head(GetHeadRequest {}).await.expect("a log").into_inner().head;
        let mut subscriber = story.acme.subscribe().await;
        story.acme.publish_all(&["1", "2", "3"]).await;
        let first = subscriber.receiver.several(3).await;
        subscriber.settled(3, DeliveryState::Delivered).await;
        let mut late = story.acme.subscribe().await;
        assert_eq!(replay_events(&subscriber, head.clone(), true).await, 3);
        assert_eq!(replay_events(&subscriber, head, false).await, 3);
        for second in subscriber.receiver.several(3).await {
            let first = first.iter().find(|it| it.event_id() == second.event_id()).expect("it came before");
            assert_replays(&second, first);
        }
        story.acme.publish_all(&["4"]).await;
        assert_eq!(late.receiver.next().await.event_id(), "4", "who came later isn't offered what came before");
        let logged = story.acme.logged(&[PLAIN]).await;
        assert_eq!(logged.len(), 4, "a replay appends nothing");
        late.settled(1, DeliveryState::Delivered).await;
    })
    .await;
}

#[tokio::test]
async fn a_test_event_goes_to_its_endpoint_alone_and_says_how_it_went() {
    on_each_engine(async |story| {
        let mut tested = story.acme.subscribe().await;
        let mut other = story.acme.subscribe().await;
        let send = async || {
            let request = SendTestEventRequest { id: tested.id.clone() };
            story.acme.endpoints().send_test_event(request).await.expect("it says how it went").into_inner()
        };
        tested.receiver.answer(&[200], 500);
        let (well, ill) = (send().await, send().await);
        assert!(well.delivered && well.status_code == 200 && well.error.is_empty(), "{well:?}");
        assert_eq!(well.response, "answered 200");
        assert!(!ill.delivered && ill.status_code == 500 && ill.error.contains("500"), "{ill:?}");
        for received in tested.receiver.several(2).await {
            assert_eq!((received.source(), received.header("x-wedsync-event")), ("test", "webhook.test"));
            assert!(received.verifies_with(&tested.secret));
        }
        story.acme.publish_all(&["real"]).await;
        assert_eq!(other.receiver.next().await.event_id(), "real");
        other.receiver.has_nothing_more();
        assert!(story.acme.logged(&["webhook.test"]).await.is_empty(), "no log holds it");
        other.settled(1, DeliveryState::Delivered).await;
    })
    .await;
}

#[tokio::test]
async fn statistics_count_what_was_tried_and_what_waits() {
    on_each_engine(async |story| {
        let settings = Endpoint { retry_schedule: vec![millis(20); 3], ..Endpoint::default() };
        let mut subscriber = story.acme.subscribe_with(settings).await;
        subscriber.receiver.answer(&[500, 500], 200);
        story.acme.publish_all(&["1"]).await;
        subscriber.receiver.several(3).await;
        story.acme.publish_all(&["2", "3"]).await;
        subscriber.receiver.several(2).await;
        subscriber.settled(3, DeliveryState::Delivered).await;
        pause(&subscriber).await;
        story.acme.publish_all(&["4", "5"]).await;
        let request = GetEndpointStatisticsRequest { id: subscriber.id.clone(), since: None };
        let counts = eventually("all is counted", async || {
            let counts = story.acme.endpoints().get_endpoint_statistics(request.clone()).await.expect("statistics");
            let counts = counts.into_inner();
            if counts.waiting == 2 && counts.delivered == 3 { Ok(counts) } else { Err(format!("{counts:?}")) }
        })
        .await;
        assert_eq!((counts.attempts, counts.failed_attempts, counts.dead, counts.cancelled), (5, 2, 0, 0));
        let (p50, p99) = (counts.latency_p50.expect("a median"), counts.latency_p99.expect("a tail"));
        assert!((p50.seconds, p50.nanos) <= (p99.seconds, p99.nanos) && p99.seconds < 60, "{p50:?} {p99:?}");
        assert!(counts.last_success_at.is_some() && counts.oldest_waiting_at.is_some(), "{counts:?}");
        assert_eq!(counts.waiting_by_priority.iter().map(|it| it.count).sum::<u64>(), 2);
    })
    .await;
}

/// The same event and content, sent again on purpose.
fn assert_replays(second: &Received, first: &Received) {
    assert_eq!(second.source(), "replay");
    assert_eq!(second.webhook_id(), first.webhook_id());
    assert_eq!(second.body, first.body);
}

async fn attempted(subscriber: &Subscriber, numbers: &[u32]) {
    eventually("the attempts are recorded", async || {
        let deliveries = subscriber.deliveries().await;
        let attempts: Vec<_> = subscriber.attempts(&deliveries[0]).await.iter().map(|it| it.number).collect();
        let done = attempts == numbers && deliveries[0].state() == DeliveryState::Delivered;
        if done { Ok(()) } else { Err(format!("{attempts:?} {deliveries:?}")) }
    })
    .await;
}

async fn replay_events(subscriber: &Subscriber, since: Option<Position>, dry_run: bool) -> u64 {
    let group = "vendor-sync".to_owned();
    let request = ReplayEventsRequest { group, since, until: None, dry_run, organization_id: String::new() };
    subscriber.tenant.events().replay_events(request).await.expect("it is replayed").into_inner().events
}

async fn pause(subscriber: &Subscriber) {
    let request = PauseEndpointRequest { id: subscriber.id.clone() };
    subscriber.tenant.endpoints().pause_endpoint(request).await.expect("it is paused");
}
