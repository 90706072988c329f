//! The simulation: random offers, outcomes, stops and crashes over several lanes, on a clock that steps back and a store
//! that fails. Nothing is lost, nothing is tried twice at once, no limit is passed and no open breaker overlooked.
//!
//! A script follows from its seed; how the store's own thread and the jitter fall in with it doesn't.

use std::{collections::BTreeMap, time::Duration};

use proptest::{
    prelude::*,
    test_runner::{RngSeed, TestRunner},
};

use super::world::{DESTINATION_FAILED, MESSAGE_REFUSED, World, kept, offer, organization, sqlite};
use crate::{
    lane::{Durable, Offer, Outcome, Settings, Slots, State, rows},
    store::{Engine, Store},
    testing,
};

/// Seeds where nobody asks for more (`make simulate`).
const FEW: u64 = 16;

const LANES: [&str; 4] = ["ada/a", "ada/b", "bob/a", "bob/b"];

#[derive(Clone, Debug)]
enum Step {
    Offer {
        lanes: u8,
        priority: i64,
        outcomes: Vec<u8>,
        key: u8,
    },
    Again(u8),
    Pass(u64),
    /// The clock steps back.
    SetBack(u64),
    Hold(usize),
    LetGo(usize),
    /// The destination fails, or is well again.
    Fail(usize, bool),
    Pause(usize, bool),
    /// Commits fail from now on.
    Jam,
    Unjam,
    /// What can go on without the store goes on.
    Yield,
    Settle,
    Restart,
    Crash,
}

fn steps() -> impl Strategy<Value = Vec<Step>> {
    let outcomes = prop_oneof![Just(Vec::new()), prop::collection::vec(0u8..5, 0..4)];
    let offer = (1u8..16, 1i64..=4, outcomes, 0u8..4);
    let step = prop_oneof![
        12 => offer.prop_map(|(lanes, priority, outcomes, key)| Step::Offer { lanes, priority, outcomes, key }),
        2 => any::<u8>().prop_map(Step::Again),
        4 => (1u64..20_000).prop_map(Step::Pass),
        4 => (1u64..3_000).prop_map(Step::Pass),
        1 => (1u64..600_000).prop_map(Step::SetBack),
        2 => (0..LANES.len()).prop_map(Step::Hold),
        3 => (0..LANES.len()).prop_map(Step::LetGo),
        3 => (0..LANES.len(), prop::bool::weighted(0.7)).prop_map(|(lane, fails)| Step::Fail(lane, fails)),
        2 => (0..LANES.len(), any::<bool>()).prop_map(|(lane, paused)| Step::Pause(lane, paused)),
        1 => Just(Step::Jam),
        1 => Just(Step::Unjam),
        2 => Just(Step::Yield),
        3 => Just(Step::Settle),
        1 => Just(Step::Restart),
        2 => Just(Step::Crash),
    ];
    prop::collection::vec(step, 1..50)
}

fn outcome(number: u8) -> Outcome {
    [Outcome::Delivered, MESSAGE_REFUSED, DESTINATION_FAILED, Outcome::Permanent, Outcome::Unknown][usize::from(number)]
}

/// One of each kind: plain, limited, ordered, ordered and limited.
const LIMITS: [u32; 4] = [0, 8, 0, 3];

fn settings(lane: usize) -> Settings {
    Settings { rate_limit: LIMITS[lane], ordered: lane >= 2, ..super::world::retries(&[1, 2, 4, 8]) }
}

/// Lets every commit fail while there is a row in `jam`.
async fn make_jam(store: &Store) {
    let Engine::Sqlite(pool) = store.writer() else { unreachable!("the simulation runs on SQLite") };
    let jam = "CREATE TABLE jam (row INTEGER);
        CREATE TRIGGER jam_insert BEFORE INSERT ON deliveries WHEN EXISTS (SELECT 1 FROM jam) BEGIN SELECT RAISE(ABORT, 'jammed'); END;
        CREATE TRIGGER jam_update BEFORE UPDATE ON deliveries WHEN EXISTS (SELECT 1 FROM jam) BEGIN SELECT RAISE(ABORT, 'jammed'); END;";
    sqlx::raw_sql(jam).execute(pool).await.expect("made");
}

struct Run<const REPEATABLE: bool> {
    world: World<REPEATABLE>,
    events: Vec<Vec<Offer>>,
    unanswered: BTreeMap<usize, Durable>,
    paused: [bool; 4],
    jammed: bool,
}

impl<const REPEATABLE: bool> Run<REPEATABLE> {
    async fn open(&self) {
        for (lane, name) in LANES.into_iter().enumerate() {
            self.world.open(name, Settings { paused: self.paused[lane], ..settings(lane) }).await;
        }
    }

    /// A lane whose pause ends is given another chance.
    async fn pause(&mut self, paused: [bool; 4]) {
        self.jam(false).await;
        let resumed: Vec<_> = (0..LANES.len()).filter(|lane| self.paused[*lane] && !paused[*lane]).collect();
        self.paused = paused;
        let forgive = || resumed.iter().for_each(|lane| self.world.courier.breakers(|all| all.forgive(LANES[*lane])));
        forgive();
        self.open().await;
        self.world.dispatcher.breaker(LANES[0]).await.expect("it has heard of it");
        forgive();
    }

    async fn jam(&mut self, jammed: bool) {
        if std::mem::replace(&mut self.jammed, jammed) == jammed {
            return;
        }
        let Engine::Sqlite(pool) = self.world.store.writer() else { unreachable!("the simulation runs on SQLite") };
        let change = if jammed { "INSERT INTO jam VALUES (1)" } else { "DELETE FROM jam" };
        sqlx::query(change).execute(pool).await.expect("changed");
    }

    async fn settle(&mut self) {
        self.jam(false).await;
        self.world.quiet().await;
        self.world.courier.breakers(|all| all.settle());
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
        self.jam(false).await;
        self.world.crash().await;
        self.world.courier.breakers(|all| all.restart(false));
        self.open().await;
        for index in lost {
            self.offer(index, true).await;
        }
    }

    async fn restart(&mut self) {
        LANES.iter().for_each(|lane| self.world.courier.let_go(lane));
        self.jam(false).await;
        self.world.restart().await;
        self.world.courier.breakers(|all| all.restart(true));
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
                let dispatcher = self.world.dispatcher.clone();
                let (again, ()) = tokio::join!(dispatcher.offer(self.events[index].clone(), true), self.jam(false));
                let again = again.expect("taken");
                self.unanswered.entry(index).or_insert(again);
            }
            Step::Again(_) => {}
            Step::Pass(millis) => {
                self.world.abreast().await;
                self.world.manual.advance(Duration::from_millis(millis));
            }
            Step::SetBack(millis) => {
                self.world.abreast().await;
                self.world.set_back(Duration::from_millis(millis));
            }
            Step::Hold(lane) => self.world.courier.hold(LANES[lane]),
            Step::LetGo(lane) => self.world.courier.let_go(LANES[lane]),
            Step::Fail(lane, fails) => {
                let outcome = if fails { DESTINATION_FAILED } else { Outcome::Delivered };
                self.world.courier.lane(LANES[lane], outcome);
            }
            Step::Pause(lane, is_paused) => {
                let mut paused = self.paused;
                paused[lane] = is_paused;
                self.pause(paused).await;
            }
            Step::Jam => self.jam(true).await,
            Step::Unjam => self.jam(false).await,
            Step::Yield => self.world.abreast().await,
            Step::Settle => self.settle().await,
            Step::Restart => self.restart().await,
            Step::Crash => self.crash().await,
        }
    }
}

async fn conserved<const REPEATABLE: bool>(steps: Vec<Step>) {
    let (_folder, store) = sqlite().await;
    make_jam(&store).await;
    let slots = Slots { lane: 3, organization: 4, all: 6 };
    let world = World::<REPEATABLE>::with_slots(store, slots).await;
    let mut run = Run { world, events: Vec::new(), unanswered: BTreeMap::new(), paused: [false; 4], jammed: false };
    run.open().await;
    for step in steps {
        run.step(step).await;
    }
    for lane in LANES {
        run.world.courier.let_go(lane);
        run.world.courier.lane(lane, Outcome::Delivered);
    }
    run.pause([false; 4]).await;
    run.settle().await;
    for _ in 0..run.events.len() * 2 + 30 {
        run.world.abreast().await;
        run.world.pass(Duration::from_secs(700)).await;
        if run.world.count("SELECT COUNT(*) FROM deliveries WHERE state IN (0, 1, 2)").await == 0 {
            break;
        }
    }
    for durable in std::mem::take(&mut run.unanswered).into_values() {
        kept(durable).await.expect("durable");
    }
    run.world.assert_never_doubled();
    run.world.courier.breakers(|all| assert_eq!(all.faults(), [""; 0]));
    for (lane, most) in LANES.into_iter().zip(LIMITS).filter(|(_, most)| *most > 0) {
        run.world.assert_limit(lane, most);
    }
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
            let crashes = i64::from(run.world.courier.deaths());
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

/// Runs the script of each seed; one that fails is made smaller, and printed with what runs it again.
fn simulate(name: &str, run: impl Fn(Vec<Step>)) {
    for seed in testing::seeds(FEW) {
        let config = ProptestConfig {
            cases: 1,
            rng_seed: RngSeed::Fixed(seed),
            failure_persistence: None,
            max_shrink_iters: 300,
            ..ProptestConfig::default()
        };
        let ran = TestRunner::new(config).run(&steps(), |steps| {
            run(steps);
            Ok(())
        });
        if let Err(fault) = ran {
            panic!("{fault}\nagain: WEDSYNC_TEST_SEED={seed} cargo test -p chassis --features testing {name}");
        }
    }
}

#[test]
fn every_delivery_comes_to_its_end_whatever_happens() {
    simulate("every_delivery_comes_to_its_end_whatever_happens", |steps| super::block_on(conserved::<true>(steps)));
}

#[test]
fn every_delivery_comes_to_its_end_where_nothing_may_be_repeated() {
    simulate("every_delivery_comes_to_its_end_where_nothing_may_be_repeated", |steps| {
        super::block_on(conserved::<false>(steps));
    });
}
