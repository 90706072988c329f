//! When a lane may be tried: slots, turns, the breaker, the limit, priorities.

use std::time::Duration;

use jiff::SignedDuration;
use proptest::prelude::*;

use super::world::{Call, DESTINATION_FAILED, MESSAGE_REFUSED, World, kept, offer, on_each_engine, retries, sqlite};
use crate::lane::{Offer, Settings, Slots, State, breaker};

#[tokio::test]
async fn a_hanging_lane_never_delays_another() {
    on_each_engine(|store| async {
        let world = World::<true>::new(store).await;
        world.open("ada/hangs", Settings::default()).await;
        world.open("ada/well", Settings::default()).await;
        world.courier.hold("ada/hangs");
        let mut promises = Vec::new();
        for event in 1..=1_000 {
            promises.push(world.offer(offer("ada/hangs", event)).await);
        }
        world.give(offer("ada/well", 2_000)).await;
        assert_eq!(world.courier.events("ada/well"), [2_000]);
        world.pass(Duration::from_millis(10)).await;
        for durable in promises {
            kept(durable).await.expect("durable");
        }
        assert!(world.courier.inside() <= 64);
        world.courier.let_go("ada/hangs");
        world.quiet().await;
        assert_eq!(world.states("ada/hangs").await, [(State::Delivered, 1_000)].into());
        assert_eq!(world.courier.events("ada/hangs").len(), 1_000);
        assert!(world.courier.most_inside("ada/hangs") <= 64);
        world.assert_never_doubled();
    })
    .await;
}

#[tokio::test]
async fn slots_hold_for_a_lane_an_organization_and_all() {
    on_each_engine(|store| async {
        let world = World::<true>::with_slots(store, Slots { lane: 3, organization: 5, all: 8 }).await;
        let lanes = ["ada/a", "ada/b", "bob/a", "bob/b", "eve/a"];
        for lane in lanes {
            world.open(lane, Settings::default()).await;
            world.courier.hold(lane);
        }
        let offer_to = async |lanes: &[&str], first: u32| {
            for event in first..first + 10 {
                let offers = lanes.iter().map(|lane| offer(lane, event)).collect();
                drop(world.dispatcher.offer(offers, false).await.expect("taken"));
            }
            world.quiet().await;
            world.pass(Duration::from_millis(10)).await;
        };
        let inside = |prefix: &str| {
            world.courier.calls().iter().filter(|call| call.outcome.is_none() && call.lane.starts_with(prefix)).count()
        };
        offer_to(&lanes[..1], 1).await;
        assert_eq!(inside(""), 3);
        offer_to(&lanes[1..2], 11).await;
        assert_eq!((inside("ada/a"), inside("")), (3, 5));
        offer_to(&lanes[2..], 21).await;
        assert_eq!((inside("ada/"), inside("")), (5, 8));
        world.courier.let_go("ada/a");
        world.courier.let_go("ada/b");
        world.quiet().await;
        assert!(inside("bob/") <= 5 && inside("eve/") <= 3, "{} {}", inside("bob/"), inside("eve/"));
        lanes.iter().for_each(|lane| world.courier.let_go(lane));
        world.quiet().await;
        for lane in lanes {
            assert_eq!(world.states(lane).await, [(State::Delivered, 10)].into(), "{lane}");
            assert!(world.courier.most_inside(lane) <= 3);
        }
    })
    .await;
}

#[tokio::test]
async fn turns_are_fair_between_organizations_however_much_one_offers() {
    on_each_engine(|store| async {
        let world = World::<true>::with_slots(store, Slots { lane: 1, organization: 1, all: 1 }).await;
        for lane in 0..20 {
            world.open(&format!("loud/{lane}"), Settings { paused: true, ..Settings::default() }).await;
        }
        world.open("quiet/a", Settings { paused: true, ..Settings::default() }).await;
        for event in 0..100 {
            world.give(offer(&format!("loud/{}", event % 20), event)).await;
        }
        for event in 200..205 {
            world.give(offer("quiet/a", event)).await;
        }
        for lane in 0..20 {
            world.open(&format!("loud/{lane}"), Settings::default()).await;
        }
        world.open("quiet/a", Settings::default()).await;
        world.quiet().await;
        let calls = world.courier.calls();
        assert_eq!(calls.len(), 105);
        let turns: Vec<usize> =
            calls.iter().enumerate().filter(|(_, call)| &*call.lane == "quiet/a").map(|(turn, _)| turn).collect();
        let last = *turns.last().expect("it was served");
        assert!(last - turns[0] <= 12, "{turns:?}");
    })
    .await;
}

#[tokio::test]
async fn fresh_events_of_a_loud_organization_do_not_take_the_slots_that_others_wait_for() {
    on_each_engine(|store| async {
        let world = World::<true>::with_slots(store, Slots { lane: 1, organization: 1, all: 1 }).await;
        world.open("loud/a", Settings::default()).await;
        world.open("quiet/a", Settings { paused: true, ..Settings::default() }).await;
        world.give(offer("quiet/a", 1)).await;
        world.courier.hold("loud/a");
        drop(world.offer(offer("loud/a", 100)).await);
        world.open("quiet/a", Settings::default()).await;
        world.quiet().await;
        world.courier.let_go("loud/a");
        for event in 101..200 {
            drop(world.offer(offer("loud/a", event)).await);
        }
        world.quiet().await;
        let turn = world.courier.calls().iter().position(|call| &*call.lane == "quiet/a").expect("it was served");
        assert!(turn <= 3, "its turn came after {turn} others");
    })
    .await;
}

/// Five failures of two deliveries; what is offered then waits.
async fn broken(world: &World) {
    world.open("ada/a", Settings { schedule: retries(&[1, 1, 3600]).schedule, ..Settings::default() }).await;
    world.courier.lane("ada/a", DESTINATION_FAILED);
    for event in 1..=2 {
        world.give(offer("ada/a", event)).await;
    }
    world.pass(Duration::from_millis(1_200)).await;
    world.pass(Duration::from_millis(1_200)).await;
}

#[tokio::test]
async fn a_broken_destination_is_left_alone_until_one_probe_then_met_gently() {
    on_each_engine(|store| async {
        let world = World::<true>::new(store).await;
        broken(&world).await;
        let tried = world.courier.calls().len();
        assert_eq!(tried, 5, "the breaker opens with the fifth failure");
        let Some(breaker::State::Open(until)) = world.dispatcher.breaker("ada/a").await.expect("an answer") else {
            panic!("the breaker is closed");
        };
        for event in 10..40 {
            world.give(offer("ada/a", event)).await;
        }
        world.quiet().await;
        assert_eq!(world.courier.calls().len(), tried, "tried behind an open breaker");
        assert_eq!(world.record("ada/a", 10).await.attempts, 0);
        let tell = until.duration_since(world.courier.calls()[4].at);
        assert!(tell <= SignedDuration::from_secs(13), "{tell:?}");
        world.courier.hold("ada/a");
        world.pass(Duration::from_secs(13)).await;
        assert_eq!(world.courier.inside(), 1, "one probe");
        // The probe fails: nobody else is tried, and the next probe comes later.
        world.courier.let_go("ada/a");
        world.quiet().await;
        assert_eq!(world.courier.calls().len(), tried + 1);
        world.courier.lane("ada/a", crate::lane::Outcome::Delivered);
        world.courier.hold("ada/a");
        world.pass(Duration::from_secs(15)).await;
        assert_eq!(world.courier.inside(), 0, "the second opening lasts longer");
        world.pass(Duration::from_secs(10)).await;
        assert_eq!(world.courier.inside(), 1);
        world.courier.let_go("ada/a");
        world
            .courier
            .until("everything", |calls| {
                calls.iter().filter(|call| call.outcome.is_some() && call.event >= 10).count() >= 30
            })
            .await;
        world.quiet().await;
        for event in 11..40 {
            let record = world.record("ada/a", event).await;
            assert_eq!(
                (record.state, record.attempts),
                (State::Delivered as i64, 1),
                "event {event}: waiting used its schedule up"
            );
        }
    })
    .await;
}

#[tokio::test]
async fn after_a_good_probe_slots_grow_from_one() {
    on_each_engine(|store| async {
        let world = World::<true>::new(store).await;
        broken(&world).await;
        for event in 10..40 {
            world.give(offer("ada/a", event)).await;
        }
        world.courier.lane("ada/a", crate::lane::Outcome::Delivered);
        world.courier.hold("ada/a");
        world.pass(Duration::from_secs(13)).await;
        assert_eq!(world.courier.inside(), 1);
        // The first success restarts the window at one slot; each further one adds a slot.
        let tried = world.courier.calls().len();
        world.courier.let_go("ada/a");
        world.courier.until("the next", |calls| calls.len() > tried).await;
        world.courier.hold("ada/a");
        world.quiet().await;
        let inside = world.courier.inside();
        assert!(inside <= world.courier.calls().len() - tried + 1, "{inside} at once");
        world.courier.let_go("ada/a");
        world.quiet().await;
        for event in 10..40 {
            assert_eq!(world.state("ada/a", event).await, State::Delivered);
        }
    })
    .await;
}

#[tokio::test]
async fn a_message_that_is_refused_never_opens_the_breaker() {
    on_each_engine(|store| async {
        let world = World::<true>::new(store).await;
        world.open("ada/a", retries(&[1])).await;
        world.courier.lane("ada/a", MESSAGE_REFUSED);
        for event in 1..=20 {
            world.give(offer("ada/a", event)).await;
        }
        assert_eq!(world.dispatcher.breaker("ada/a").await.expect("an answer"), Some(breaker::State::Closed));
    })
    .await;
}

#[tokio::test]
async fn after_a_start_each_waits_for_its_own_time() {
    on_each_engine(|store| async {
        let mut world = World::<true>::new(store).await;
        world.open("ada/a", retries(&[100])).await;
        for (event, priority) in [(1, 4), (2, 1)] {
            world.courier.event(event, [MESSAGE_REFUSED]);
            world.pass(Duration::from_secs(50)).await;
            world.give(Offer { priority, ..offer("ada/a", event) }).await;
        }
        world.quiet().await;
        world.restart().await;
        world.open("ada/a", retries(&[100])).await;
        world.quiet().await;
        world.pass(Duration::from_secs(75)).await;
        assert_eq!(world.courier.events("ada/a"), [1, 2, 1]);
        world.pass(Duration::from_secs(50)).await;
        assert_eq!(world.courier.events("ada/a"), [1, 2, 1, 2]);
    })
    .await;
}

#[tokio::test]
async fn a_breaker_stays_open_over_a_restart() {
    on_each_engine(|store| async {
        let mut world = World::<true>::new(store).await;
        broken(&world).await;
        world.quiet().await;
        world.restart().await;
        world.open("ada/a", Settings::default()).await;
        world.pass(Duration::from_secs(5)).await;
        assert_eq!(world.courier.calls().len(), 5);
        assert!(matches!(world.dispatcher.breaker("ada/a").await.expect("an answer"), Some(breaker::State::Open(_))));
        world.courier.lane("ada/a", crate::lane::Outcome::Delivered);
        world.pass(Duration::from_secs(8)).await;
        assert_eq!(world.dispatcher.breaker("ada/a").await.expect("an answer"), Some(breaker::State::Closed));
    })
    .await;
}

#[tokio::test]
async fn the_urgent_goes_before_what_waits_and_nothing_fresh_before_its_equals() {
    on_each_engine(|store| async {
        let world = World::<true>::with_slots(store, Slots { lane: 1, ..Slots::default() }).await;
        world.open("ada/a", Settings::default()).await;
        world.courier.hold("ada/a");
        let of = |event, priority| Offer { priority, ..offer("ada/a", event) };
        drop(world.offer(of(1, 3)).await);
        world.quiet().await;
        for (event, priority) in [(40, 4), (41, 4), (30, 3), (31, 3), (10, 1), (20, 2), (11, 1)] {
            world.give(of(event, priority)).await;
        }
        world.courier.let_go("ada/a");
        world.quiet().await;
        assert_eq!(world.courier.events("ada/a"), [1, 10, 11, 20, 30, 31, 40, 41]);
    })
    .await;
}

#[tokio::test]
async fn an_emergency_has_its_turn_before_the_lanes_that_were_queued_before_it() {
    on_each_engine(|store| async {
        let world = World::<true>::with_slots(store, Slots { lane: 1, organization: 1, all: 1 }).await;
        let lanes: Vec<String> = (0..20).map(|lane| format!("ada/{lane}")).collect();
        for (event, lane) in (0..).step_by(10).zip(&lanes) {
            world.open(lane, Settings { paused: true, ..Settings::default() }).await;
            world.give(offer(lane, event)).await;
            world.give(offer(lane, event + 1)).await;
        }
        world.courier.hold("ada/0");
        for lane in &lanes {
            world.open(lane, Settings::default()).await;
        }
        world.courier.until("the slot is taken", |calls| calls.len() == 1).await;
        for (event, lane) in [(1_018, &lanes[18]), (1_019, &lanes[19])] {
            world.give(Offer { priority: 1, ..offer(lane, event) }).await;
        }
        world.courier.let_go("ada/0");
        world.quiet().await;
        let calls: Vec<u32> = world.courier.calls().iter().map(|call| call.event).collect();
        assert_eq!(calls.len(), 42);
        assert_eq!(calls[1..3], [1_018, 1_019], "{calls:?}");
    })
    .await;
}

#[tokio::test]
async fn a_fresh_event_does_not_overtake_what_a_look_into_the_store_left_there() {
    on_each_engine(|store| async {
        let world = World::<true>::with_slots(store, Slots { lane: 1, ..Slots::default() }).await;
        world.open("ada/a", Settings { paused: true, ..Settings::default() }).await;
        let of = |event, priority| Offer { priority, ..offer("ada/a", event) };
        for event in 1..=3 {
            world.give(of(event, 2)).await;
        }
        world.courier.hold("ada/a");
        world.open("ada/a", Settings::default()).await;
        world.quiet().await;
        world.give(of(10, 3)).await;
        world.courier.let_go("ada/a");
        world.quiet().await;
        assert_eq!(world.courier.events("ada/a"), [1, 2, 3, 10]);
    })
    .await;
}

/// No 60 s hold more attempts than the limit.
fn assert_limit(calls: &[Call], most: usize) {
    for first in calls {
        let window = first.at..first.at + SignedDuration::from_secs(60);
        let inside = calls.iter().filter(|call| window.contains(&call.at)).count();
        assert!(inside <= most, "{inside} attempts in the minute from {}", first.at);
    }
}

#[tokio::test]
async fn after_a_death_a_limited_lane_holds_back_what_may_be_missing_from_the_record() {
    on_each_engine(|store| async {
        let mut world = World::<true>::new(store).await;
        let limited = Settings { rate_limit: 8, ..Settings::default() };
        world.open("ada/a", limited.clone()).await;
        world.give(offer("ada/a", 1)).await;
        world.crash().await;
        world.open("ada/a", limited.clone()).await;
        for event in 2..=9 {
            world.give(offer("ada/a", event)).await;
        }
        world.pass(Duration::from_secs(59)).await;
        assert_eq!(world.courier.events("ada/a"), [1, 2, 3, 4, 5, 6], "one is on record, and two may be missing");
        world.pass(Duration::from_secs(1)).await;
        assert_eq!(world.courier.events("ada/a"), [1, 2, 3, 4, 5, 6, 7, 8, 9]);
        world.open("ada/b", limited).await;
        for event in 11..=18 {
            world.give(offer("ada/b", event)).await;
        }
        world.quiet().await;
        assert_eq!(
            world.courier.events("ada/b"),
            (11..=18).collect::<Vec<_>>(),
            "long after it a lane holds nothing back"
        );
    })
    .await;
}

#[tokio::test]
async fn a_lane_with_a_high_limit_goes_on_after_many_deaths() {
    on_each_engine(|store| async {
        let mut world = World::<true>::new(store).await;
        let high = Settings { rate_limit: 1_000_000, ..Settings::default() };
        for _ in 1..=8 {
            world.open("ada/a", high.clone()).await;
            world.crash().await;
        }
        world.open("ada/a", high).await;
        world.give(offer("ada/a", 1)).await;
        world.quiet().await;
        assert_eq!(world.courier.events("ada/a"), [1]);
    })
    .await;
}

#[tokio::test]
async fn of_a_limited_lane_no_more_is_under_way_than_a_death_may_keep_from_the_record() {
    on_each_engine(|store| async {
        let mut world = World::<true>::new(store).await;
        let limited = Settings { rate_limit: 8, ..Settings::default() };
        world.open("ada/a", limited.clone()).await;
        world.courier.hold("ada/a");
        for deaths in 1..=4 {
            let mut promises = Vec::new();
            for event in 1..=9 {
                promises.push(world.offer(offer("ada/a", event)).await);
            }
            world.quiet().await;
            assert_eq!(world.courier.calls().len(), 2 * deaths, "two for each life");
            world.crash().await;
            world.open("ada/a", limited.clone()).await;
        }
        world.courier.let_go("ada/a");
        world.give(offer("ada/a", 1)).await;
        world.pass(Duration::from_secs(59)).await;
        assert_eq!(world.courier.calls().len(), 8, "four deaths in a minute may have used the limit up");
        world.pass(Duration::from_secs(1)).await;
        assert_eq!(world.courier.calls().len(), 16, "and a minute later none of that counts");
    })
    .await;
}

#[tokio::test]
async fn a_stop_in_order_does_not_hide_the_death_before_it() {
    on_each_engine(|store| async {
        let mut world = World::<true>::new(store).await;
        let limited = Settings { rate_limit: 1, ..retries(&[1]) };
        world.open("ada/a", limited.clone()).await;
        world.courier.hold("ada/a");
        drop(world.offer(offer("ada/a", 1)).await);
        world.courier.until("the attempt", |calls| calls.len() == 1).await;
        world.crash().await;
        world.courier.let_go("ada/a");
        world.restart().await;
        world.open("ada/a", limited).await;
        world.give(offer("ada/a", 1)).await;
        world.pass(Duration::from_secs(59)).await;
        assert_eq!(world.courier.events("ada/a"), [1], "the attempt that died with its process counts");
        world.pass(Duration::from_secs(1)).await;
        assert_eq!(world.courier.events("ada/a"), [1, 1]);
    })
    .await;
}

#[derive(Clone, Debug)]
enum Step {
    Offer(u8),
    Pass(u64),
    Restart,
    Crash,
}

fn steps() -> impl Strategy<Value = Vec<Step>> {
    let step = prop_oneof![
        6 => (1u8..8).prop_map(Step::Offer),
        6 => (1u64..40_000).prop_map(Step::Pass),
        1 => Just(Step::Restart),
        1 => Just(Step::Crash),
    ];
    prop::collection::vec(step, 1..25)
}

async fn limited(steps: Vec<Step>, most: u32) {
    let (_folder, store) = sqlite().await;
    let mut world = World::<true>::new(store).await;
    let settings = Settings { rate_limit: most, ..Settings::default() };
    world.open("ada/a", settings.clone()).await;
    let mut event = 0;
    for step in steps {
        match step {
            Step::Offer(number) => {
                for _ in 0..number {
                    event += 1;
                    world.give(offer("ada/a", event)).await;
                }
            }
            Step::Pass(millis) => world.pass(Duration::from_millis(millis)).await,
            Step::Restart => {
                world.restart().await;
                world.open("ada/a", settings.clone()).await;
            }
            Step::Crash => {
                world.crash().await;
                world.open("ada/a", settings.clone()).await;
            }
        }
    }
    world.quiet().await;
    for _ in 0..=event / most + 2 {
        world.pass(Duration::from_secs(60)).await;
    }
    let delivered = world.states("ada/a").await.get(&State::Delivered).copied().unwrap_or(0);
    assert_eq!(delivered, event as usize);
    assert_limit(&world.courier.calls(), most as usize);
}

proptest! {
    #![proptest_config(ProptestConfig { cases: ProptestConfig::default().cases / 16, failure_persistence: None, max_shrink_iters: 300, ..ProptestConfig::default() })]

    #[test]
    fn a_limit_holds_in_any_window_over_restarts_and_crashes_and_loses_nothing(steps in steps(), most in 1u32..10) {
        super::block_on(limited(steps, most));
    }
}
