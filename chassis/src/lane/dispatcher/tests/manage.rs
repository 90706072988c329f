//! What services do to lanes and to deliveries that have ended.

use std::time::Duration;

use super::world::{DESTINATION_FAILED, World, offer, on_each_engine, ordered, organization, retries};
use crate::{
    lane::{
        Offer, Outcome, Settings, State,
        rows::{self, Filter},
    },
    store::Engine,
    testing::noon,
};

#[tokio::test]
async fn a_paused_lane_waits_and_a_resumed_one_drains() {
    on_each_engine(|store| async {
        let world = World::<true>::new(store).await;
        world.open("ada/a", Settings::default()).await;
        world.open("ada/a", Settings { paused: true, ..Settings::default() }).await;
        for event in 1..=20 {
            world.give(offer("ada/a", event)).await;
        }
        world.pass(Duration::from_secs(3600)).await;
        assert_eq!(world.courier.calls().len(), 0);
        world.open("ada/a", Settings::default()).await;
        world.quiet().await;
        assert_eq!(world.courier.events("ada/a"), (1..=20).collect::<Vec<_>>());
        assert_eq!(world.states("ada/a").await, [(State::Delivered, 20)].into());
    })
    .await;
}

#[tokio::test]
async fn what_is_in_a_removed_lane_is_cancelled_wherever_it_stands() {
    on_each_engine(|store| async {
        let world = World::<true>::new(store).await;
        world.open("ada/a", retries(&[3600])).await;
        world.courier.event(1, [DESTINATION_FAILED]);
        world.give(offer("ada/a", 1)).await;
        world.courier.hold("ada/a");
        world.courier.event(2, [Outcome::Delivered]);
        world.courier.event(3, [DESTINATION_FAILED]);
        // Under way; then more than there are slots for, the last not even committed.
        let mut promises = Vec::new();
        for event in 2..=40 {
            promises.push(world.offer(offer("ada/a", event)).await);
        }
        world.pass(Duration::from_millis(10)).await;
        promises.push(world.offer(offer("ada/a", 41)).await);
        world.dispatcher.remove("ada/a", &organization("ada/a"), State::Cancelled, "removed").await.expect("removed");
        world.courier.let_go("ada/a");
        world.quiet().await;
        for durable in promises {
            super::world::kept(durable).await.expect("durable");
        }
        world.pass(Duration::from_secs(7200)).await;
        let states = world.states("ada/a").await;
        let tried = world.courier.calls().len();
        assert_eq!(world.state("ada/a", 1).await, State::Cancelled);
        assert_eq!(world.state("ada/a", 2).await, State::Delivered);
        assert_eq!(world.state("ada/a", 3).await, State::Cancelled);
        assert_eq!(states, [(State::Delivered, tried - 2), (State::Cancelled, 41 - (tried - 2))].into());
        assert_eq!(world.dispatcher.breaker("ada/a").await.expect("an answer"), None);
    })
    .await;
}

#[tokio::test]
async fn an_attempt_that_fails_just_before_its_lane_is_removed_is_not_left_waiting() {
    on_each_engine(|store| async move {
        for event in 1..=30 {
            let lane = format!("ada/{event}");
            let world = World::<true>::new(store.clone()).await;
            world.open(&lane, retries(&[3600])).await;
            world.courier.lane(&lane, DESTINATION_FAILED);
            let durable = world.offer(offer(&lane, event)).await;
            let calls = world.courier.calls().len() + usize::from(event % 2 == 0);
            world.courier.until("an attempt", |now| now.len() >= calls).await;
            world.dispatcher.remove(&lane, &organization(&lane), State::Cancelled, "removed").await.expect("removed");
            super::world::kept(durable).await.expect("durable");
            world.quiet().await;
            assert_eq!(world.state(&lane, event).await, State::Cancelled);
            world.tasks.stop(Duration::from_secs(5)).await;
        }
    })
    .await;
}

#[tokio::test]
async fn a_lanes_statistics_tell_what_became_of_its_deliveries_and_which_wait() {
    on_each_engine(|store| async {
        let world = World::<true>::new(store).await;
        world.open("ada/a", retries(&[3600])).await;
        world.courier.event(3, [DESTINATION_FAILED]);
        for event in 1..=3 {
            world.give(Offer { priority: 2, ..offer("ada/a", event) }).await;
        }
        let midnight = noon() - jiff::SignedDuration::from_hours(12);
        let all = rows::statistics(&world.store, "ada/a", midnight).await.expect("statistics");
        assert_eq!(all.states, [(State::Waiting, 1), (State::Delivered, 2)]);
        assert_eq!((all.waiting, all.attempts, all.failed_attempts), (vec![(2, 1)], 3, 1));
        assert_eq!(all.oldest_waiting_at, Some(world.record("ada/a", 3).await.created_at));
        let later = noon() + jiff::SignedDuration::from_hours(1);
        let none = rows::statistics(&world.store, "ada/a", later).await.expect("statistics");
        assert_eq!((none.states, none.waiting, none.attempts), (vec![], vec![(2, 1)], 0));
    })
    .await;
}

#[tokio::test]
async fn a_long_record_is_never_read_whole_for_one_lane_or_one_event() {
    on_each_engine(|store| async move {
        let Engine::Sqlite(pool) = store.reader() else { return };
        for (query, index) in [
            (rows::COUNTS, "COVERING INDEX deliveries_lane"),
            (
                &*rows::listing(&Filter { lane_id: Some("ada/a".to_owned()), ..Filter::default() }),
                "INDEX deliveries_lane",
            ),
            (&*rows::listing(&Filter { event: Some([0; 16]), ..Filter::default() }), "INDEX deliveries_event"),
            (&*rows::listing(&Filter::default()), "INDEX deliveries_organization"),
        ] {
            let explained = sqlx::AssertSqlSafe(format!("EXPLAIN QUERY PLAN {query}"));
            let plan: Vec<(i64, i64, i64, String)> = sqlx::query_as(explained).fetch_all(pool).await.expect("a plan");
            let steps: Vec<_> = plan.into_iter().map(|(.., step)| step).collect();
            assert!(steps.iter().any(|step| step.contains(index)), "{query}: {steps:?}");
        }
    })
    .await;
}

#[tokio::test]
async fn a_reopened_delivery_is_the_same_row_with_a_fresh_schedule() {
    on_each_engine(|store| async {
        let world = World::<true>::new(store).await;
        world.open("ada/a", retries(&[1, 1])).await;
        world.courier.event(1, [DESTINATION_FAILED; 5]);
        world.give(offer("ada/a", 1)).await;
        let waiting = world.record("ada/a", 1).await;
        let early = world.dispatcher.reopen(&organization("ada/a"), &waiting, b"early").await;
        assert!(matches!(early, Err(crate::error::Error::FailedPrecondition(_))), "{early:?}");
        world.pass_seconds(5).await;
        let dead = world.record("ada/a", 1).await;
        assert_eq!((dead.state, dead.attempts), (State::Dead as i64, 3));
        world.dispatcher.reopen(&organization("ada/a"), &dead, b"again").await.expect("reopened");
        world.quiet().await;
        world.pass_seconds(5).await;
        let delivered = world.record("ada/a", 1).await;
        assert_eq!((delivered.id, delivered.state, delivered.attempts), (dead.id, State::Delivered as i64, 6));
        let calls = world.courier.calls();
        assert!(
            calls[3..].iter().all(|call| call.content == "again")
                && calls[..3].iter().all(|call| call.content == "content of 1")
        );
        assert_eq!(world.attempts("ada/a", 1).await.len(), 6);
        assert_eq!(world.count("SELECT COUNT(*) FROM deliveries WHERE content IS NOT NULL").await, 0);
    })
    .await;
}

#[tokio::test]
async fn a_dead_letter_that_is_recovered_behind_an_attempt_goes_after_it() {
    on_each_engine(|store| async move {
        let world = World::<true>::new(store).await;
        world.open("ada/a", Settings { ordered: true, ..retries(&[]) }).await;
        let of = |event| Offer { ordering_key: "x".to_owned(), ..offer("ada/a", event) };
        world.courier.event(1, [Outcome::Permanent]);
        world.give(of(1)).await;
        world.quiet().await;
        world.courier.hold("ada/a");
        world.give(of(2)).await;
        let recovered = world.dispatcher.recover("ada/a", &organization("ada/a"), true, noon(), false).await;
        assert_eq!(recovered.expect("recovered"), 1);
        world.courier.let_go("ada/a");
        world.quiet().await;
        assert_eq!(world.courier.events("ada/a"), [1, 2, 1]);
        assert_eq!(world.states("ada/a").await, [(State::Delivered, 2)].into());
    })
    .await;
}

#[tokio::test]
async fn recovered_dead_letters_are_tried_afresh_in_their_order() {
    on_each_engine(|store| async move {
        for settings in [retries(&[]), Settings { ordered: true, ..retries(&[]) }] {
            let lane = if settings.ordered { "ada/ordered" } else { "ada/a" };
            let world = World::<true>::new(store.clone()).await;
            world.open(lane, settings.clone()).await;
            world.courier.lane(lane, Outcome::Permanent);
            for event in 1..=12 {
                world.give(Offer { ordering_key: format!("key-{}", event % 3), ..offer(lane, event) }).await;
            }
            world.courier.lane(lane, Outcome::Delivered);
            let recover = async |dry_run| {
                let organization = organization(lane);
                world
                    .dispatcher
                    .recover(lane, &organization, settings.ordered, noon(), dry_run)
                    .await
                    .expect("recovered")
            };
            assert_eq!((recover(true).await, world.courier.calls().len()), (12, 12));
            assert_eq!(recover(false).await, 12);
            world.quiet().await;
            assert_eq!(world.states(lane).await, [(State::Delivered, 12)].into());
            for key in 0..3 {
                let events: Vec<u32> =
                    world.courier.events(lane)[12..].iter().copied().filter(|event| event % 3 == key).collect();
                assert!(events.is_sorted(), "{events:?}");
            }
            world.tasks.stop(Duration::from_secs(5)).await;
        }
    })
    .await;
}

#[tokio::test]
async fn a_delivery_of_a_busy_key_that_is_reopened_waits_quietly_for_its_turn() {
    on_each_engine(|store| async {
        let world = World::<true>::new(store).await;
        world.open("ada/a", ordered()).await;
        let of = |event| Offer { ordering_key: "same".to_owned(), ..offer("ada/a", event) };
        world.give(of(1)).await;
        world.courier.hold("ada/a");
        drop(world.offer(of(2)).await);
        world.quiet().await;
        let record = world.record("ada/a", 1).await;
        world.dispatcher.reopen(&organization("ada/a"), &record, b"again").await.expect("reopened");
        // A dispatcher that looks into the store again and again never comes to rest.
        world.quiet().await;
        assert_eq!(world.courier.events("ada/a"), [1, 2]);
        world.courier.let_go("ada/a");
        world.quiet().await;
        assert_eq!(world.courier.events("ada/a"), [1, 2, 1]);
    })
    .await;
}
