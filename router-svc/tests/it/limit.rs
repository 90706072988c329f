//! An organization that publishes too fast is refused for the moment; nobody else notices.

use std::time::Duration;

use proto::router::v1::{
    Event, PublishBatchRequest, PublishResult, PublishStreamRequest, Refusal, UpsertWeddingRequest, Wedding,
    publish_result::Result as Kind,
};
use serde_json::Value;
use tokio::sync::mpsc;
use tokio_stream::wrappers::ReceiverStream;
use tonic::{Code, Status};
use tonic_types::StatusExt as _;

use crate::world::{World, content, keyed, on_each};

const BURST: u32 = 3;

/// 10 events a second, 3 at once.
async fn limited(world: World) -> World {
    let config = router_svc::Config { publish_per_second: 10, publish_burst: BURST, ..world.config.clone() };
    World { config, ..world }.restart().await
}

fn wait(refused: &Status) -> Duration {
    assert_eq!(refused.code(), Code::ResourceExhausted, "{refused:?}");
    let info = refused.get_details_retry_info().expect("it says when to try again");
    info.retry_delay.expect("it says when to try again")
}

fn refusal(result: Option<PublishResult>) -> Option<Refusal> {
    match result.unwrap().result.unwrap() {
        Kind::Receipt(_) => None,
        Kind::Refusal(refusal) => Some(refusal),
    }
}

#[tokio::test]
async fn the_loud_organization_is_refused_and_another_one_is_not() {
    on_each(|world| async move {
        let world = limited(world).await;
        let (loud, other) = (world.organization("loud").await, world.organization("other").await);
        for event in ["e1", "e2", "e2"] {
            loud.publish(keyed(event, "k")).await;
        }
        let wait = wait(&loud.try_publish(keyed("e1", "k")).await.unwrap_err());
        other.publish(keyed("e1", "k")).await;
        assert_eq!(loud.head().await.sequence, 3);
        world.time.advance(wait);
        loud.publish(keyed("e4", "k")).await;
        assert!(loud.try_publish(keyed("e5", "k")).await.is_err());
    })
    .await;
}

#[tokio::test]
async fn in_a_batch_and_in_a_stream_single_events_are_refused_for_the_moment() {
    on_each(|world| async move {
        let world = limited(world).await;
        let a = world.organization("a").await;
        let events = (0..5).map(|number| keyed(&format!("b{number}"), "k")).collect();
        let batch = a.events().publish_batch(PublishBatchRequest { events }).await.unwrap().into_inner();
        let refused: Vec<_> = batch.results.into_iter().map(|result| refusal(Some(result))).collect();
        assert!(refused[..3].iter().all(Option::is_none), "{refused:?}");
        for refusal in &refused[3..] {
            let refusal = refusal.as_ref().unwrap();
            assert!(refusal.retryable && refusal.code == Code::ResourceExhausted as i32, "{refusal:?}");
        }

        let (requests, outgoing) = mpsc::channel(8);
        let mut answers = a.events().publish_stream(ReceiverStream::new(outgoing)).await.unwrap().into_inner();
        let mut refused = Vec::new();
        for correlation_id in 0..4 {
            let event = Some(keyed(&format!("s{correlation_id}"), "k"));
            requests.send(PublishStreamRequest { correlation_id, event }).await.unwrap();
            let answer = answers.message().await.unwrap().expect("the stream goes on");
            assert_eq!(answer.correlation_id, correlation_id);
            refused.push(refusal(answer.result).is_some_and(|refusal| refusal.retryable));
            world.time.advance(Duration::from_millis(50));
        }
        assert_eq!(refused, [true, true, false, true], "20 a second where 10 may be");
    })
    .await;
}

#[tokio::test]
async fn services_share_the_limit_of_whom_they_publish_for_but_always_tell_of_its_endpoints() {
    on_each(|world| async move {
        let world = limited(world).await;
        let (a, service) = (world.organization("a").await, world.service());
        let of = |id: &str, type_: &str| Event { organization_id: "a".to_owned(), ..content(id, type_, Value::Null) };
        for number in 0..BURST {
            service.publish(of(&format!("e{number}"), "test.happened")).await;
        }
        wait(&service.try_publish(of("more", "test.happened")).await.unwrap_err());
        wait(&a.try_publish(of("more", "test.happened")).await.unwrap_err());
        service.publish(of("disabled", "endpoint.disabled")).await;
        service.publish(of("failing", "integration.failing")).await;
        wait(&a.try_publish(of("claimed", "endpoint.disabled")).await.unwrap_err());
    })
    .await;
}

#[tokio::test]
async fn a_refusal_comes_before_the_event_is_read() {
    on_each(|world| async move {
        let world = limited(world).await;
        let a = world.organization("a").await;
        let faulty = || Event { payload: None, ..keyed("e1", "k") };
        for _ in 0..BURST {
            assert_eq!(a.try_publish(faulty()).await.unwrap_err().code(), Code::InvalidArgument);
        }
        wait(&a.try_publish(faulty()).await.unwrap_err());
    })
    .await;
}

#[tokio::test]
async fn a_limit_that_lets_nothing_through_is_refused_at_the_start() {
    on_each(|world| async move {
        let config = router_svc::Config { publish_per_second: 1, publish_burst: 0, ..world.config.clone() };
        let refused = router_svc::start(config, &world.another_chassis()).await.unwrap_err();
        assert!(refused.to_string().contains("publish_burst"), "{refused:#}");
    })
    .await;
}

#[tokio::test]
async fn what_is_said_of_weddings_counts_as_events_do() {
    on_each(|world| async move {
        let world = limited(world).await;
        let a = world.organization("a").await;
        let say = async |id: &str| {
            let wedding = Some(Wedding { id: id.to_owned(), ..Wedding::default() });
            a.weddings().upsert_wedding(UpsertWeddingRequest { wedding }).await
        };
        for id in ["w1", "w2", "w3"] {
            say(id).await.unwrap();
        }
        world.time.advance(wait(&say("w4").await.unwrap_err()));
        say("w4").await.unwrap();
    })
    .await;
}
