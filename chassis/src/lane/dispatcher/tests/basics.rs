//! One delivery from its offer to its end.

use std::time::Duration;

use jiff::SignedDuration;

use super::world::{DESTINATION_FAILED, World, offer, on_each_engine, retries};
use crate::{
    lane::{Blame, Offer, Outcome, Settings, State},
    store::Engine,
    with,
};

/// Counts changes to rows that were there already.
async fn count_updates(world: &World) {
    match world.store.writer() {
        Engine::Sqlite(c) => {
            sqlx::raw_sql(
                "CREATE TABLE changes (id INTEGER);
                 CREATE TRIGGER changed AFTER UPDATE ON deliveries BEGIN INSERT INTO changes VALUES (new.id); END",
            )
            .execute(c)
            .await
            .map(drop)
        }
        Engine::Postgres(c) => {
            sqlx::raw_sql(
                "CREATE TABLE changes (id BIGINT);
                 CREATE FUNCTION note() RETURNS trigger LANGUAGE plpgsql AS 'BEGIN INSERT INTO changes VALUES (NEW.id); RETURN NULL; END';
                 CREATE TRIGGER changed AFTER UPDATE ON deliveries FOR EACH ROW EXECUTE FUNCTION note()",
            )
            .execute(c)
            .await
            .map(drop)
        }
    }
    .expect("a trigger");
}

#[tokio::test]
async fn an_offer_that_was_answered_is_durable_and_a_quick_one_is_written_once() {
    on_each_engine(|store| async {
        let world = World::<true>::new(store).await;
        count_updates(&world).await;
        world.open("ada/a", Settings::default()).await;
        world.open("ada/b", Settings::default()).await;
        let offers = vec![offer("ada/a", 1), offer("ada/b", 1), offer("ada/nowhere", 1)];
        world.dispatcher.offer(offers, false).await.expect("taken").wait().await.expect("durable");
        for lane in ["ada/a", "ada/b"] {
            let record = world.record(lane, 1).await;
            assert_eq!((record.state, record.attempts, record.status_code), (State::Delivered as i64, 1, Some(200)));
            let attempts = world.attempts(lane, 1).await;
            assert_eq!(attempts.len(), 1);
            assert_eq!(
                (attempts[0].number, attempts[0].outcome.as_str(), &attempts[0].response[..]),
                (1, "delivered", &b"its answer"[..])
            );
        }
        assert_eq!(world.count("SELECT COUNT(*) FROM deliveries").await, 2);
        assert_eq!(world.count("SELECT COUNT(*) FROM deliveries WHERE content IS NOT NULL").await, 0);
        assert_eq!(world.count("SELECT COUNT(*) FROM changes").await, 0);
    })
    .await;
}

#[tokio::test]
async fn a_slow_attempt_does_not_hold_its_answer_back() {
    on_each_engine(|store| async {
        let world = World::<true>::new(store).await;
        world.open("ada/a", Settings::default()).await;
        world.courier.hold("ada/a");
        let durable = world.offer(offer("ada/a", 1)).await;
        world.quiet().await;
        world.manual.advance(Duration::from_millis(10));
        super::world::kept(durable).await.expect("durable");
        assert_eq!(world.state("ada/a", 1).await, State::Sending);
        world.courier.let_go("ada/a");
        world.quiet().await;
        assert_eq!(world.state("ada/a", 1).await, State::Delivered);
        assert_eq!(world.count("SELECT COUNT(*) FROM deliveries WHERE content IS NOT NULL").await, 0);
    })
    .await;
}

#[tokio::test]
async fn retries_follow_the_schedule_to_the_microsecond_with_the_same_bytes_until_it_is_exhausted() {
    on_each_engine(|store| async {
        let world = World::<true>::new(store).await;
        let schedule = [5, 10, 40];
        world.open("ada/a", retries(&schedule)).await;
        world.courier.lane("ada/a", DESTINATION_FAILED);
        world.give(offer("ada/a", 1)).await;
        for (index, base) in schedule.into_iter().enumerate() {
            let record = world.record("ada/a", 1).await;
            assert_eq!((record.state, record.attempts), (State::Waiting as i64, index as i64 + 1));
            let wait = Duration::from_micros(
                u64::try_from(record.next_at - world.courier.calls()[index].at.as_microsecond()).expect("later"),
            );
            let base = Duration::from_secs(base);
            assert!(wait >= base.mul_f64(0.799) && wait <= base.mul_f64(1.201), "retry {index} after {wait:?}");
            world.pass(wait - Duration::from_micros(1)).await;
            assert_eq!(world.courier.calls().len(), index + 1, "a microsecond early");
            world.pass(Duration::from_micros(1)).await;
            assert_eq!(world.courier.calls().len(), index + 2);
        }
        let record = world.record("ada/a", 1).await;
        assert_eq!((record.state, record.attempts), (State::Dead as i64, 4));
        assert!(record.reason.contains("exhausted") && record.reason.contains("answered 500"), "{}", record.reason);
        world.pass(Duration::from_secs(100 * 3600)).await;
        let calls = world.courier.calls();
        assert_eq!(calls.iter().map(|call| call.attempt).collect::<Vec<_>>(), [1, 2, 3, 4]);
        assert!(calls.iter().all(|call| call.content == "content of 1"));
        assert_eq!(world.attempts("ada/a", 1).await.len(), 4);
        assert_eq!(world.count("SELECT COUNT(*) FROM deliveries WHERE content IS NOT NULL").await, 1);
    })
    .await;
}

#[tokio::test]
async fn retry_after_lengthens_a_wait() {
    on_each_engine(|store| async {
        let world = World::<true>::new(store).await;
        world.open("ada/a", retries(&[1, 1])).await;
        let asked = Duration::from_secs(600);
        world.courier.event(1, [Outcome::Retry { after: Some(asked), blame: Blame::Destination }]);
        world.give(offer("ada/a", 1)).await;
        world.pass(asked - Duration::from_micros(1)).await;
        assert_eq!(world.courier.events("ada/a"), [1]);
        world.pass(Duration::from_micros(1)).await;
        assert_eq!(world.courier.events("ada/a"), [1, 1]);
        assert_eq!(world.state("ada/a", 1).await, State::Delivered);
    })
    .await;
}

#[tokio::test]
async fn what_is_permanent_is_dead_at_once_and_what_is_unknown_is_never_tried_again() {
    on_each_engine(|store| async {
        let world = World::<true>::new(store).await;
        world.open("ada/a", Settings::default()).await;
        world.courier.event(1, [Outcome::Permanent]);
        world.courier.event(2, [Outcome::Unknown]);
        world.give(offer("ada/a", 1)).await;
        world.give(offer("ada/a", 2)).await;
        assert_eq!(world.state("ada/a", 1).await, State::Dead);
        assert_eq!(world.state("ada/a", 2).await, State::Unknown);
        world.pass(Duration::from_secs(100 * 3600)).await;
        assert_eq!(world.courier.events("ada/a"), [1, 2]);
    })
    .await;
}

#[tokio::test]
async fn gone_closes_a_lane_once_and_everything_in_it_is_a_dead_letter() {
    on_each_engine(|store| async {
        let world = World::<true>::new(store).await;
        world.open("ada/a", retries(&[3600])).await;
        world.courier.event(1, [super::world::MESSAGE_REFUSED]);
        world.give(offer("ada/a", 1)).await;
        // Attempts under way when it closes, of which two more say so; and one that failed in another way.
        world.courier.hold("ada/a");
        let mut promises = Vec::new();
        for event in 2..=5 {
            world.courier.event(event, [if event == 5 { DESTINATION_FAILED } else { Outcome::Gone }]);
            promises.push(world.offer(offer("ada/a", event)).await);
        }
        world.quiet().await;
        world.courier.let_go("ada/a");
        world.quiet().await;
        for durable in promises {
            super::world::kept(durable).await.expect("durable");
        }
        world.give(offer("ada/a", 6)).await;
        world.quiet().await;
        assert_eq!(world.courier.closed_lanes(), ["ada/a"]);
        assert_eq!(world.states("ada/a").await, [(State::Dead, 6)].into());
        world.pass(Duration::from_secs(7200)).await;
        assert_eq!(world.courier.events("ada/a"), [1, 2, 3, 4, 5]);
    })
    .await;
}

#[tokio::test]
async fn a_destination_that_fails_for_too_long_is_closed() {
    on_each_engine(|store| async {
        let world = World::<true>::new(store).await;
        world.open("ada/a", Settings { disable_after: Duration::from_secs(100), ..retries(&[30; 50]) }).await;
        world.courier.lane("ada/a", DESTINATION_FAILED);
        world.give(offer("ada/a", 1)).await;
        world.pass_seconds(95).await;
        assert_eq!(world.courier.closed_lanes(), [""; 0]);
        world.pass_seconds(60).await;
        assert_eq!(world.courier.closed_lanes(), ["ada/a"]);
        assert_eq!(world.state("ada/a", 1).await, State::Dead);
    })
    .await;
}

#[tokio::test]
async fn an_event_that_is_offered_again_changes_nothing() {
    on_each_engine(|store| async {
        let world = World::<true>::new(store).await;
        world.open("ada/a", Settings::default()).await;
        world.open("ada/b", Settings::default()).await;
        world.give(offer("ada/a", 1)).await;
        let again = |lane| Offer { content: "another".into(), ..offer(lane, 1) };
        world
            .dispatcher
            .offer(vec![again("ada/a"), again("ada/b")], true)
            .await
            .expect("taken")
            .wait()
            .await
            .expect("durable");
        world.quiet().await;
        assert_eq!(world.courier.calls().len(), 1);
        assert_eq!(world.count("SELECT COUNT(*) FROM deliveries").await, 1);
    })
    .await;
}

#[tokio::test]
async fn an_event_that_is_offered_again_before_it_is_durable_is_tried_once() {
    on_each_engine(|store| async {
        let world = World::<true>::new(store).await;
        world.open("ada/a", Settings::default()).await;
        world.courier.hold("ada/a");
        let first = world.offer(offer("ada/a", 1)).await;
        let second = world.dispatcher.offer(vec![offer("ada/a", 1)], true).await.expect("taken");
        super::world::kept(first).await.expect("durable");
        super::world::kept(second).await.expect("durable");
        world.courier.let_go("ada/a");
        world.quiet().await;
        assert_eq!(world.courier.events("ada/a"), [1]);
        assert_eq!(world.count("SELECT COUNT(*) FROM attempts").await, 1);
    })
    .await;
}

#[tokio::test]
async fn a_courier_that_panics_costs_an_attempt_and_nothing_else() {
    on_each_engine(|store| async {
        let world = World::<true>::new(store).await;
        world.open("ada/a", Settings { ordered: true, ..retries(&[1]) }).await;
        let durable = world.offer(Offer { event_type: "panics".to_owned(), ..offer("ada/a", 1) }).await;
        super::world::kept(durable).await.expect("durable");
        world.pass_seconds(3).await;
        assert_eq!(world.state("ada/a", 1).await, State::Dead);
        let next = Offer { ordering_key: "key-1".to_owned(), ..offer("ada/a", 2) };
        world.give(next).await;
        assert_eq!(world.state("ada/a", 2).await, State::Delivered);
    })
    .await;
}

#[tokio::test]
async fn text_that_a_store_refuses_does_not_stop_it() {
    on_each_engine(|store| async {
        let world = World::<true>::new(store).await;
        world.open("ada/a", Settings::default()).await;
        world.give(Offer { ordering_key: "a\0b".to_owned(), event_type: "\0".to_owned(), ..offer("ada/a", 1) }).await;
        assert_eq!(world.state("ada/a", 1).await, State::Delivered);
    })
    .await;
}

#[tokio::test]
async fn one_delivery_that_cannot_be_read_does_not_stop_its_lane() {
    on_each_engine(|store| async {
        let world = World::<true>::new(store).await;
        world.open("ada/a", Settings { paused: true, ..Settings::default() }).await;
        world.give(offer("ada/a", 1)).await;
        world.give(offer("ada/a", 2)).await;
        with!(world.store.writer(), c => sqlx::query("UPDATE deliveries SET content = $1 WHERE event_id = 'event-1'")
            .bind(&b"not sealed"[..]).execute(c).await.map(drop))
        .expect("damaged");
        world.open("ada/a", Settings::default()).await;
        world.quiet().await;
        assert_eq!(world.state("ada/a", 2).await, State::Delivered);
        assert_eq!(world.state("ada/a", 1).await, State::Dead);
        assert!(
            world
                .record("ada/a", 1)
                .await
                .finished_at
                .is_some_and(|at| at <= (crate::testing::noon() + SignedDuration::from_secs(1)).as_microsecond())
        );
    })
    .await;
}
