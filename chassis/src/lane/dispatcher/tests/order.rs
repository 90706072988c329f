//! Ordered lanes.

use std::{collections::BTreeMap, time::Duration};

use proptest::prelude::*;

use super::world::{
    Call, DESTINATION_FAILED, MESSAGE_REFUSED, World, kept, offer, on_each_engine, ordered, retries, sqlite,
};
use crate::lane::{Offer, Outcome, Settings, State};

fn of(lane: &str, event: u32, key: &str, priority: i64) -> Offer {
    Offer { ordering_key: key.to_owned(), priority, ..offer(lane, event) }
}

#[tokio::test]
async fn the_next_of_a_key_waits_for_its_predecessor_and_other_keys_pass() {
    on_each_engine(|store| async {
        let world = World::<true>::new(store).await;
        world.open("ada/a", Settings { ordered: true, ..retries(&[30]) }).await;
        world.courier.event(1, [MESSAGE_REFUSED]);
        world.give(of("ada/a", 1, "x", 3)).await;
        world.give(of("ada/a", 2, "x", 3)).await;
        world.give(of("ada/a", 3, "y", 3)).await;
        world.give(of("ada/a", 4, "x", 3)).await;
        world.quiet().await;
        assert_eq!(world.courier.events("ada/a"), [1, 3]);
        assert_eq!(world.state("ada/a", 2).await, State::Blocked);
        world.pass(Duration::from_secs(40)).await;
        assert_eq!(world.courier.events("ada/a"), [1, 3, 1, 2, 4]);
        assert_eq!(world.states("ada/a").await, [(State::Delivered, 4)].into());
    })
    .await;
}

#[tokio::test]
async fn a_dead_letter_and_an_unknown_one_release_their_key() {
    on_each_engine(|store| async {
        let world = World::<true>::new(store).await;
        world.open("ada/a", Settings { ordered: true, ..retries(&[30]) }).await;
        world.courier.event(1, [Outcome::Permanent]);
        world.courier.event(2, [Outcome::Unknown]);
        world.courier.hold("ada/a");
        let mut promises = Vec::new();
        for event in 1..=3 {
            promises.push(world.offer(of("ada/a", event, "x", 3)).await);
        }
        world.quiet().await;
        world.courier.let_go("ada/a");
        world.quiet().await;
        assert_eq!(world.courier.events("ada/a"), [1, 2, 3]);
        assert_eq!(world.state("ada/a", 3).await, State::Delivered);
    })
    .await;
}

#[tokio::test]
async fn an_urgent_successor_raises_its_predecessors() {
    on_each_engine(|store| async {
        let world = World::<true>::with_slots(store, crate::lane::Slots { lane: 1, ..Default::default() }).await;
        world.open("ada/a", ordered()).await;
        world.courier.hold("ada/a");
        drop(world.offer(of("ada/a", 1, "first", 3)).await);
        world.quiet().await;
        for (event, key, priority) in
            [(2, "low", 4), (10, "a", 3), (11, "b", 3), (12, "c", 3), (13, "d", 3), (3, "low", 1)]
        {
            world.give(of("ada/a", event, key, priority)).await;
        }
        for _ in 1..=3 {
            world.courier.let_one_go("ada/a");
            world.quiet().await;
        }
        // The first of its key goes before all others; another one at most uses the slot while that end is committed.
        let events = world.courier.events("ada/a");
        assert!(events[..2] == [1, 2] && events[2..4].contains(&3), "{events:?}");
        world.courier.let_go("ada/a");
        world.quiet().await;
    })
    .await;
}

#[tokio::test]
async fn predecessors_are_raised_to_the_most_urgent_behind_them_and_never_lowered() {
    on_each_engine(|store| async {
        let world = World::<true>::new(store).await;
        world.open("ada/a", Settings { ordered: true, ..retries(&[3600]) }).await;
        world.courier.event(1, [MESSAGE_REFUSED]);
        let mut priorities = Vec::new();
        for (event, priority) in [(1, 2), (2, 4), (3, 3), (4, 1)] {
            world.give(of("ada/a", event, "x", priority)).await;
            world.quiet().await;
            let mut now = Vec::new();
            for event in 1..=event {
                now.push(world.record("ada/a", event).await.priority);
            }
            priorities.push(now);
        }
        assert_eq!(priorities, [vec![2], vec![2, 4], vec![2, 3, 3], vec![1, 1, 1, 1]]);
    })
    .await;
}

#[tokio::test]
async fn an_attempt_that_failed_keeps_its_place_though_its_row_is_not_written_yet() {
    on_each_engine(|store| async {
        let world = World::<true>::new(store).await;
        world.open("ada/a", Settings { ordered: true, ..retries(&[30]) }).await;
        world.open("ada/slow", Settings::default()).await;
        world.courier.hold("ada/slow");
        world.courier.event(1, [MESSAGE_REFUSED]);
        // The row of the first in lane a waits for its event's other attempt.
        let first =
            world.dispatcher.offer(vec![of("ada/a", 1, "x", 3), offer("ada/slow", 1)], false).await.expect("taken");
        world.courier.until("the first attempt's end", |calls| calls.iter().any(|call| call.outcome.is_some())).await;
        world.quiet().await;
        world.give(of("ada/a", 2, "x", 3)).await;
        world.pass(Duration::from_millis(10)).await;
        assert_eq!(world.courier.events("ada/a"), [1]);
        kept(first).await.expect("durable");
        world.pass(Duration::from_secs(40)).await;
        assert_eq!(world.courier.events("ada/a"), [1, 1, 2]);
        world.courier.let_go("ada/slow");
        world.quiet().await;
    })
    .await;
}

#[tokio::test]
async fn a_successor_whose_row_lingers_is_not_overtaken_by_its_own() {
    on_each_engine(|store| async {
        let world = World::<true>::new(store).await;
        world.open("ada/a", ordered()).await;
        world.open("ada/slow", Settings::default()).await;
        world.courier.hold("ada/slow");
        world.courier.hold("ada/a");
        let mut promises = vec![world.offer(of("ada/a", 1, "x", 3)).await];
        promises.push(
            world.dispatcher.offer(vec![of("ada/a", 2, "x", 3), offer("ada/slow", 2)], false).await.expect("taken"),
        );
        promises.push(world.offer(of("ada/a", 3, "x", 3)).await);
        world.quiet().await;
        world.courier.let_go("ada/a");
        world.quiet().await;
        world.pass(Duration::from_millis(10)).await;
        assert_eq!(world.courier.events("ada/a"), [1, 2, 3]);
        world.courier.let_go("ada/slow");
        world.quiet().await;
    })
    .await;
}

#[tokio::test]
async fn what_waits_behind_others_goes_when_its_lane_is_no_longer_ordered() {
    on_each_engine(|store| async {
        let world = World::<true>::new(store).await;
        world.open("ada/a", Settings { ordered: true, ..retries(&[3600]) }).await;
        world.courier.event(1, [DESTINATION_FAILED]);
        for event in 1..=3 {
            world.give(of("ada/a", event, "x", 3)).await;
        }
        world.open("ada/a", retries(&[3600])).await;
        world.quiet().await;
        world.quiet().await;
        assert_eq!(world.courier.events("ada/a"), [1, 2, 3]);
    })
    .await;
}

#[tokio::test]
async fn a_crash_behind_an_attempt_that_must_not_be_repeated_releases_the_next() {
    on_each_engine(|store| async {
        let mut world = World::<false>::new(store).await;
        world.open("ada/a", ordered()).await;
        world.courier.hold("ada/a");
        world.give(of("ada/a", 1, "x", 3)).await;
        world.give(of("ada/a", 2, "x", 3)).await;
        world.quiet().await;
        world.crash().await;
        world.courier.let_go("ada/a");
        world.open("ada/a", ordered()).await;
        world.quiet().await;
        assert_eq!(world.courier.events("ada/a"), [1, 2]);
        assert_eq!(world.state("ada/a", 1).await, State::Unknown);
    })
    .await;
}

#[tokio::test]
async fn what_is_behind_an_event_that_was_handled_before_goes_when_that_has_come_again() {
    on_each_engine(|store| async {
        let world = World::<true>::new(store).await;
        world.open("ada/a", ordered()).await;
        world.give(of("ada/a", 1, "x", 3)).await;
        world.quiet().await;
        world.courier.hold("ada/a");
        let again = world.offer(of("ada/a", 1, "x", 3)).await;
        world.give(of("ada/a", 2, "x", 3)).await;
        kept(again).await.expect("durable");
        world.courier.let_go("ada/a");
        world.quiet().await;
        assert_eq!(world.courier.events("ada/a"), [1, 1, 2]);
        assert_eq!(world.states("ada/a").await, [(State::Delivered, 2)].into());
    })
    .await;
}

#[derive(Clone, Debug)]
enum Step {
    Offer { key: u8, priority: i64, outcomes: Vec<u8>, also_elsewhere: bool },
    Pass(u64),
    Hold(bool),
    Settle,
    Restart,
    Crash,
}

fn steps() -> impl Strategy<Value = Vec<Step>> {
    let offer = (0u8..3, 1i64..=4, prop::collection::vec(0u8..4, 0..4), any::<bool>());
    let step = prop_oneof![
        12 => offer.prop_map(|(key, priority, outcomes, also_elsewhere)| Step::Offer { key, priority, outcomes, also_elsewhere }),
        5 => (1u64..3_000).prop_map(Step::Pass),
        3 => any::<bool>().prop_map(Step::Hold),
        3 => Just(Step::Settle),
        1 => Just(Step::Restart),
        1 => Just(Step::Crash),
    ];
    prop::collection::vec(step, 1..40)
}

fn outcome(number: u8) -> Outcome {
    [Outcome::Delivered, MESSAGE_REFUSED, DESTINATION_FAILED, Outcome::Permanent][usize::from(number)]
}

/// The process under a random script, with the events whose offers it has not answered.
struct Run<const REPEATABLE: bool> {
    world: World<REPEATABLE>,
    offered: u32,
    unanswered: BTreeMap<u32, (Vec<Offer>, crate::lane::Durable)>,
}

impl<const REPEATABLE: bool> Run<REPEATABLE> {
    async fn open(&self) {
        self.world.open("ada/a", ordered()).await;
        self.world.open("ada/other", Settings::default()).await;
    }

    async fn offer(&mut self, event: u32, offers: Vec<Offer>, redelivered: bool) {
        let durable = self.world.dispatcher.offer(offers.clone(), redelivered).await.expect("taken");
        self.unanswered.insert(event, (offers, durable));
    }

    /// After a crash, what was not answered is offered again, in its order.
    async fn crash(&mut self) {
        let mut lost = Vec::new();
        for (event, (offers, durable)) in std::mem::take(&mut self.unanswered) {
            // What was answered by now won't come again.
            if futures_util::FutureExt::now_or_never(durable.wait()).is_none_or(|answer| answer.is_err()) {
                lost.push((event, offers));
            }
        }
        self.world.crash().await;
        self.open().await;
        for (event, offers) in lost {
            self.offer(event, offers, true).await;
        }
    }

    async fn step(&mut self, step: Step) {
        let world = &self.world;
        match step {
            Step::Offer { key, priority, outcomes, also_elsewhere } => {
                self.offered += 1;
                let event = self.offered;
                world.courier.event(event, outcomes.into_iter().map(outcome));
                let mut offers = vec![of("ada/a", event, &format!("key-{key}"), priority)];
                if also_elsewhere {
                    offers.push(offer("ada/other", event));
                }
                self.offer(event, offers, false).await;
            }
            Step::Pass(millis) => world.manual.advance(Duration::from_millis(millis)),
            Step::Hold(true) => world.courier.hold("ada/other"),
            Step::Hold(false) => world.courier.let_go("ada/other"),
            Step::Settle => world.quiet().await,
            Step::Restart => {
                world.courier.let_go("ada/other");
                self.world.restart().await;
                // A stop in order answers everything that it took; the rest comes again.
                for (event, (offers, durable)) in std::mem::take(&mut self.unanswered) {
                    if kept(durable).await.is_err() {
                        self.open().await;
                        self.offer(event, offers, true).await;
                    }
                }
                self.open().await;
            }
            Step::Crash => self.crash().await,
        }
    }
}

async fn in_order<const REPEATABLE: bool>(steps: Vec<Step>) {
    let (_folder, store) = sqlite().await;
    let mut run = Run { world: World::<REPEATABLE>::new(store).await, offered: 0, unanswered: BTreeMap::new() };
    run.open().await;
    for step in steps {
        run.step(step).await;
    }
    let Run { world, offered, unanswered } = run;
    world.courier.let_go("ada/other");
    for _ in 0..offered + 30 {
        world.pass(Duration::from_secs(700)).await;
    }
    for (_, durable) in unanswered.into_values() {
        kept(durable).await.expect("durable");
    }
    let states = world.states("ada/a").await;
    assert_eq!(states.values().sum::<usize>(), offered as usize, "rows");
    assert!(states.keys().all(|state| state.is_final()), "left over: {states:?}");
    world.assert_never_doubled();
    let calls: Vec<Call> = world.courier.calls().into_iter().filter(|call| &*call.lane == "ada/a").collect();
    for (index, call) in calls.iter().enumerate() {
        for later in &calls[index + 1..] {
            assert!(
                later.key != call.key || later.event >= call.event,
                "{} came after {}: {calls:#?}",
                later.event,
                call.event
            );
            let delivered = call.event == later.event && call.outcome == Some(Outcome::Delivered);
            assert!(
                !delivered || (REPEATABLE && later.life > call.life),
                "sent after it was delivered: {later:?} {calls:#?}"
            );
            assert!(
                REPEATABLE || later.event != call.event || later.life == call.life || call.outcome.is_some(),
                "repeated: {later:?}"
            );
        }
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: ProptestConfig::default().cases / 16, failure_persistence: None, max_shrink_iters: 300, ..ProptestConfig::default() })]

    #[test]
    fn each_key_arrives_in_the_order_of_its_offers_whatever_happens(steps in steps()) {
        super::block_on(in_order::<true>(steps));
    }

    #[test]
    fn each_key_arrives_in_order_where_nothing_may_be_repeated(steps in steps()) {
        super::block_on(in_order::<false>(steps));
    }
}
