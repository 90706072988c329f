//! A process that dies at the worst moment, and one that stops in order.

use std::time::Duration;

use super::world::{DESTINATION_FAILED, World, kept, offer, on_each_engine, organization, retries};
use crate::{
    lane::{Settings, State},
    with,
};

#[tokio::test]
async fn where_a_repeat_cannot_be_dropped_sending_is_committed_before_the_attempt_begins() {
    on_each_engine(|store| async {
        let world = World::<false>::new(store).await;
        world.open("ada/a", Settings::default()).await;
        world.courier.hold("ada/a");
        let durable = world.offer(offer("ada/a", 1)).await;
        world.courier.until("the attempt", |calls| calls.len() == 1).await;
        assert_eq!(world.state("ada/a", 1).await, State::Sending);
        kept(durable).await.expect("durable");
        world.courier.let_go("ada/a");
        world.quiet().await;
        assert_eq!(world.state("ada/a", 1).await, State::Delivered);
    })
    .await;
}

#[tokio::test]
async fn where_a_repeat_cannot_be_dropped_a_retry_is_committed_as_sending_too() {
    on_each_engine(|store| async {
        let world = World::<false>::new(store).await;
        world.open("ada/a", retries(&[10])).await;
        world.courier.event(1, [DESTINATION_FAILED]);
        world.give(offer("ada/a", 1)).await;
        world.quiet().await;
        assert_eq!(world.state("ada/a", 1).await, State::Waiting);
        world.courier.hold("ada/a");
        world.manual.advance(Duration::from_secs(15));
        world.courier.until("the second attempt", |calls| calls.len() == 2).await;
        assert_eq!(world.state("ada/a", 1).await, State::Sending);
        world.courier.let_go("ada/a");
        world.quiet().await;
        assert_eq!((world.state("ada/a", 1).await, world.record("ada/a", 1).await.attempts), (State::Delivered, 2));
    })
    .await;
}

#[tokio::test]
async fn each_lane_says_for_itself_whether_a_crash_repeats() {
    on_each_engine(|store| async {
        let mut world = World::<true>::new(store).await;
        let lanes = [("ada/drops-repeats", true), ("ada/takes-all", false)];
        let open = async |world: &World<true>| {
            for (lane, repeatable) in lanes {
                let settings = Settings { repeatable, ..Settings::default() };
                world.dispatcher.open(lane, &organization(lane), settings).await.expect("it opens");
            }
        };
        open(&world).await;
        for (lane, _) in lanes {
            world.courier.hold(lane);
            world.give(offer(lane, 1)).await;
        }
        world.courier.until("both attempts", |calls| calls.len() == 2).await;
        world.quiet().await;
        world.crash().await;
        lanes.into_iter().for_each(|(lane, _)| world.courier.let_go(lane));
        open(&world).await;
        world.pass(Duration::from_secs(3600)).await;
        assert_eq!(lanes.map(|(lane, _)| world.courier.events(lane)), [vec![1, 1], vec![1]]);
        assert_eq!(world.state("ada/drops-repeats", 1).await, State::Delivered);
        assert_eq!(world.state("ada/takes-all", 1).await, State::Unknown);
    })
    .await;
}

#[tokio::test]
async fn a_crash_during_an_attempt_that_must_not_be_repeated_leaves_it_unknown() {
    on_each_engine(|store| async {
        let mut world = World::<false>::new(store).await;
        world.open("ada/a", Settings::default()).await;
        world.courier.hold("ada/a");
        world.give(offer("ada/a", 1)).await;
        world.quiet().await;
        world.crash().await;
        world.courier.let_go("ada/a");
        world.open("ada/a", Settings::default()).await;
        world.pass(Duration::from_secs(3600)).await;
        assert_eq!(world.courier.events("ada/a"), [1]);
        assert_eq!(world.state("ada/a", 1).await, State::Unknown);
        // And the event comes again, since its offer may not have been acknowledged.
        world.dispatcher.offer(vec![offer("ada/a", 1)], true).await.expect("taken").wait().await.expect("durable");
        world.quiet().await;
        assert_eq!(world.courier.events("ada/a"), [1]);
    })
    .await;
}

#[tokio::test]
async fn a_crash_during_an_attempt_that_may_be_repeated_repeats_it() {
    on_each_engine(|store| async {
        let mut world = World::<true>::new(store).await;
        world.open("ada/a", Settings::default()).await;
        world.courier.hold("ada/a");
        let durable = world.offer(offer("ada/a", 1)).await;
        world.quiet().await;
        world.pass(Duration::from_millis(10)).await;
        kept(durable).await.expect("durable");
        world.crash().await;
        world.courier.let_go("ada/a");
        world.open("ada/a", Settings::default()).await;
        world.quiet().await;
        assert_eq!(world.courier.events("ada/a"), [1, 1]);
        assert_eq!(world.state("ada/a", 1).await, State::Delivered);
    })
    .await;
}

#[tokio::test]
async fn an_event_that_is_offered_twice_where_nothing_may_be_repeated_is_sent_once() {
    on_each_engine(|store| async {
        let world = World::<false>::new(store).await;
        world.open("ada/a", Settings::default()).await;
        let first = world.offer(offer("ada/a", 1)).await;
        let second = world.offer(offer("ada/a", 1)).await;
        kept(first).await.expect("durable");
        kept(second).await.expect("durable");
        world.quiet().await;
        // Not marked as one that may be known.
        world.give(offer("ada/a", 1)).await;
        world.quiet().await;
        assert_eq!(world.courier.events("ada/a"), [1]);
        assert_eq!(world.count("SELECT COUNT(*) FROM attempts").await, 1);
        assert_eq!(world.state("ada/a", 1).await, State::Delivered);
    })
    .await;
}

#[tokio::test]
async fn a_stop_in_order_records_what_was_under_way_and_leaves_nothing_to_repeat() {
    on_each_engine(|store| async {
        let mut world = World::<true>::new(store).await;
        world.open("ada/a", Settings { rate_limit: 50, ..Settings::default() }).await;
        world.courier.hold("ada/a");
        let mut promises = Vec::new();
        for event in 1..=30 {
            promises.push(world.offer(offer("ada/a", event)).await);
        }
        world.courier.until("attempts", |calls| calls.len() == 8).await;
        world.tasks.stopping().cancel();
        world.courier.let_go("ada/a");
        world.restart().await;
        for durable in promises {
            kept(durable).await.expect("durable");
        }
        assert_eq!(world.states("ada/a").await, [(State::Delivered, 8), (State::Waiting, 22)].into());
        let clean: i64 =
            with!(world.store.reader(), c => sqlx::query_scalar("SELECT COUNT(*) FROM attempts").fetch_one(c).await)
                .expect("a count");
        assert_eq!(clean, 8);
        world.open("ada/a", Settings { rate_limit: 50, ..Settings::default() }).await;
        world.quiet().await;
        assert_eq!(world.courier.events("ada/a"), (1..=30).collect::<Vec<_>>());
    })
    .await;
}

#[tokio::test]
async fn a_stop_does_not_wait_for_ever_for_an_attempt_that_hangs() {
    on_each_engine(|store| async {
        let mut world = World::<true>::new(store).await;
        world.open("ada/a", Settings::default()).await;
        world.courier.hold("ada/a");
        let durable = world.offer(offer("ada/a", 1)).await;
        world.quiet().await;
        world.tasks.stopping().cancel();
        kept(durable).await.expect("durable");
        assert!(world.tasks.running().contains_key("lane.dispatcher"));
        super::world::within("over", async {
            while world.tasks.running().contains_key("lane.dispatcher") {
                world.manual.advance(Duration::from_secs(10));
                tokio::task::yield_now().await;
            }
        })
        .await;
        world.crash().await;
        world.courier.let_go("ada/a");
        world.open("ada/a", Settings::default()).await;
        world.quiet().await;
        assert_eq!(world.courier.events("ada/a"), [1, 1]);
    })
    .await;
}
