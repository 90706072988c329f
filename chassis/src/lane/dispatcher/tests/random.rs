//! Random offers, outcomes, stops and crashes over several lanes: nothing is lost and nothing is tried twice at once.

use std::{collections::BTreeMap, time::Duration};

use proptest::prelude::*;

use super::world::{DESTINATION_FAILED, MESSAGE_REFUSED, World, kept, offer, organization, sqlite};
use crate::lane::{Durable, Offer, Outcome, Settings, Slots, State, rows};

const LANES: [&str; 4] = ["ada/a", "ada/b", "bob/a", "bob/b"];

#[derive(Clone, Debug)]
enum Step {
    Offer { lanes: u8, priority: i64, outcomes: Vec<u8>, key: u8 },
    Again(u8),
    Pass(u64),
    Hold(usize),
    LetGo(usize),
    Pause(usize, bool),
    Settle,
    Restart,
    Crash,
}

fn steps() -> impl Strategy<Value = Vec<Step>> {
    let offer = (1u8..16, 1i64..=4, prop::collection::vec(0u8..5, 0..4), 0u8..4);
    let step = prop_oneof![
        12 => offer.prop_map(|(lanes, priority, outcomes, key)| Step::Offer { lanes, priority, outcomes, key }),
        2 => any::<u8>().prop_map(Step::Again),
        5 => (1u64..20_000).prop_map(Step::Pass),
        2 => (0..LANES.len()).prop_map(Step::Hold),
        3 => (0..LANES.len()).prop_map(Step::LetGo),
        2 => (0..LANES.len(), any::<bool>()).prop_map(|(lane, paused)| Step::Pause(lane, paused)),
        3 => Just(Step::Settle),
        1 => Just(Step::Restart),
        1 => Just(Step::Crash),
    ];
    prop::collection::vec(step, 1..50)
}

fn outcome(number: u8) -> Outcome {
    [Outcome::Delivered, MESSAGE_REFUSED, DESTINATION_FAILED, Outcome::Permanent, Outcome::Unknown][usize::from(number)]
}

/// One of each kind: plain, limited, ordered, ordered and limited.
fn settings(lane: usize) -> Settings {
    let rate_limit = if lane % 2 == 1 { 20 } else { 0 };
    Settings { rate_limit, ordered: lane >= 2, ..super::world::retries(&[1, 2, 4, 8]) }
}

struct Run<const REPEATABLE: bool> {
    world: World<REPEATABLE>,
    events: Vec<Vec<Offer>>,
    unanswered: BTreeMap<usize, Durable>,
    paused: [bool; 4],
}

impl<const REPEATABLE: bool> Run<REPEATABLE> {
    async fn open(&self) {
        for (lane, name) in LANES.into_iter().enumerate() {
            self.world.open(name, Settings { paused: self.paused[lane], ..settings(lane) }).await;
        }
    }

    async fn offer(&mut self, index: usize, redelivered: bool) {
        let durable = self.world.dispatcher.offer(self.events[index].clone(), redelivered).await.expect("taken");
        self.unanswered.insert(index, durable);
    }

    async fn crash(&mut self) {
        let mut lost = Vec::new();
        for (index, durable) in std::mem::take(&mut self.unanswered) {
            if futures_util::FutureExt::now_or_never(durable.wait()).is_none_or(|answer| answer.is_err()) {
                lost.push(index);
            }
        }
        self.world.crash().await;
        self.open().await;
        for index in lost {
            self.offer(index, true).await;
        }
    }

    async fn restart(&mut self) {
        LANES.iter().for_each(|lane| self.world.courier.let_go(lane));
        self.world.restart().await;
        self.open().await;
        for (index, durable) in std::mem::take(&mut self.unanswered) {
            if kept(durable).await.is_err() {
                self.offer(index, true).await;
            }
        }
    }

    async fn step(&mut self, step: Step) {
        match step {
            Step::Offer { lanes, priority, outcomes, key } => {
                let event = u32::try_from(self.events.len()).expect("few");
                self.world.courier.event(event, outcomes.into_iter().map(outcome));
                let to = LANES.into_iter().enumerate().filter(|(lane, _)| lanes >> lane & 1 == 1);
                let ordering_key = format!("key-{key}");
                self.events.push(
                    to.map(|(_, lane)| Offer { priority, ordering_key: ordering_key.clone(), ..offer(lane, event) })
                        .collect(),
                );
                self.offer(self.events.len() - 1, false).await;
            }
            Step::Again(event) if !self.events.is_empty() => {
                let index = usize::from(event) % self.events.len();
                let again = self.world.dispatcher.offer(self.events[index].clone(), true).await.expect("taken");
                self.unanswered.entry(index).or_insert(again);
            }
            Step::Again(_) => {}
            Step::Pass(millis) => self.world.manual.advance(Duration::from_millis(millis)),
            Step::Hold(lane) => self.world.courier.hold(LANES[lane]),
            Step::LetGo(lane) => self.world.courier.let_go(LANES[lane]),
            Step::Pause(lane, paused) => {
                self.paused[lane] = paused;
                self.open().await;
            }
            Step::Settle => self.world.quiet().await,
            Step::Restart => self.restart().await,
            Step::Crash => self.crash().await,
        }
    }
}

async fn conserved<const REPEATABLE: bool>(steps: Vec<Step>) {
    let (_folder, store) = sqlite().await;
    let slots = Slots { lane: 3, organization: 4, all: 6 };
    let world = World::<REPEATABLE>::with_slots(store, slots).await;
    let mut run = Run { world, events: Vec::new(), unanswered: BTreeMap::new(), paused: [false; 4] };
    run.open().await;
    for step in steps {
        run.step(step).await;
    }
    LANES.iter().for_each(|lane| run.world.courier.let_go(lane));
    run.paused = [false; 4];
    run.open().await;
    for _ in 0..run.events.len() + 30 {
        run.world.pass(Duration::from_secs(700)).await;
    }
    for durable in std::mem::take(&mut run.unanswered).into_values() {
        kept(durable).await.expect("durable");
    }
    run.world.assert_never_doubled();
    let calls = run.world.courier.calls();
    for lane in LANES {
        let offered = run.events.iter().flatten().filter(|offer| &*offer.lane_id == lane).count();
        let states = run.world.states(lane).await;
        assert_eq!(states.values().sum::<usize>(), offered, "rows of {lane}");
        let ends = [State::Delivered, State::Dead, State::Unknown];
        assert!(states.keys().all(|state| ends.contains(state)), "{lane}: {states:?}");
        let filter = rows::Filter { lane_id: Some(lane.to_owned()), ..rows::Filter::default() };
        for record in rows::list(&run.world.store, &organization(lane), &filter, 10_000).await.expect("listed") {
            let event = u32::from_be_bytes(record.event[12..].try_into().expect("4 bytes"));
            let of_it: Vec<_> = calls.iter().filter(|call| &*call.lane == lane && call.event == event).collect();
            // A crash takes the record of what was under way with it; nothing else is ever missing.
            let crashes = i64::from(calls.iter().map(|call| call.life).max().unwrap_or(0));
            let ended = of_it.len() as i64;
            assert!(
                (record.attempts..=record.attempts + crashes).contains(&ended),
                "{lane} {event}: {} of {ended}",
                record.attempts
            );
            if record.state == State::Delivered as i64 {
                assert!(of_it.last().is_some_and(|call| call.outcome == Some(Outcome::Delivered)));
            }
        }
    }
    assert_eq!(run.world.count("SELECT COUNT(*) FROM deliveries WHERE state = 3 AND content IS NOT NULL").await, 0);
    let missing = "SELECT COUNT(*) FROM deliveries AS d WHERE d.attempts <> (SELECT COUNT(*) FROM attempts AS a WHERE a.delivery = d.id)";
    assert_eq!(run.world.count(missing).await, 0, "attempts on record");
    let orphans = "SELECT COUNT(*) FROM attempts WHERE delivery NOT IN (SELECT id FROM deliveries)";
    assert_eq!(run.world.count(orphans).await, 0, "attempts of no delivery");
}

proptest! {
    #![proptest_config(ProptestConfig { cases: ProptestConfig::default().cases / 16, failure_persistence: None, max_shrink_iters: 300, ..ProptestConfig::default() })]

    #[test]
    fn every_delivery_comes_to_its_end_whatever_happens(steps in steps()) {
        super::block_on(conserved::<true>(steps));
    }

    #[test]
    fn every_delivery_comes_to_its_end_where_nothing_may_be_repeated(steps in steps()) {
        super::block_on(conserved::<false>(steps));
    }
}
