//! kill -9 at random moments under load, again and again on the same store.

use std::{
    ops::Range,
    time::{Duration, Instant},
};

use serde::Serialize;
use tokio::time::sleep;

use super::{Chance, Outcome, World, name};
use crate::harness::{Engine, Wedsync};

/// How often, how hard and when.
#[derive(Debug, Clone)]
pub(crate) struct Kills {
    pub(crate) cycles: u32,
    /// Decides every moment.
    pub(crate) seed: u64,
    /// Events a second.
    pub(crate) rate: u32,
    /// How long a process lives after its first delivery.
    pub(crate) life_ms: Range<u64>,
}

/// One life of the process.
#[derive(Debug, Serialize)]
pub(crate) struct Cycle {
    pub(crate) store: &'static str,
    pub(crate) cycle: u32,
    pub(crate) seed: u64,
    /// From its first delivery to its end.
    pub(crate) lived_ms: u64,
    /// Lives before it that were ended while they started.
    pub(crate) killed_at_start: u32,
    /// From its start until it called itself ready.
    pub(crate) ready_ms: u64,
    /// From its start until its first delivery.
    pub(crate) recovery_ms: u64,
    /// Events acknowledged so far, by all lives.
    pub(crate) acknowledged: usize,
}

/// What a run came to.
#[derive(Debug, Serialize)]
pub(crate) struct Summary {
    pub(crate) store: &'static str,
    pub(crate) seed: u64,
    pub(crate) cycles: u32,
    #[serde(flatten)]
    pub(crate) outcome: Outcome,
    pub(crate) longest_ready_ms: u64,
    pub(crate) longest_recovery_ms: u64,
}

/// Kills and restarts; `told` hears of each cycle.
pub(crate) async fn run(engine: &Engine, kills: &Kills, mut told: impl FnMut(&Cycle)) -> Summary {
    let Kills { cycles, seed, rate, life_ms } = kills.clone();
    let mut chance = Chance::new(seed);
    let mut world = World::start(Wedsync::start_on(engine, &[]).await, rate).await;
    world.first_arrival().await;
    let (mut longest_ready_ms, mut longest_recovery_ms) = (0, 0);
    for cycle in 1..=cycles {
        let lived_ms = chance.within(life_ms.clone());
        sleep(Duration::from_millis(lived_ms)).await;
        world.kill().await;
        let killed_at_start = killed_at_start(&mut world, &mut chance).await;
        world.mark();
        let started = Instant::now();
        world.system.restart().await;
        let ready_ms = millis(started.elapsed());
        let recovery_ms = millis(world.first_arrival().await.saturating_duration_since(started));
        longest_ready_ms = longest_ready_ms.max(ready_ms);
        longest_recovery_ms = longest_recovery_ms.max(recovery_ms);
        let acknowledged = world.load.acknowledged().len();
        told(&Cycle {
            store: name(engine),
            cycle,
            seed,
            lived_ms,
            killed_at_start,
            ready_ms,
            recovery_ms,
            acknowledged,
        });
    }
    let outcome = world.settle().await;
    Summary { store: name(engine), seed, cycles, outcome, longest_ready_ms, longest_recovery_ms }
}

/// One life in four never gets as far as being ready.
async fn killed_at_start(world: &mut World, chance: &mut Chance) -> u32 {
    let early = chance.within(0..4) == 0;
    if early {
        world.system.spawn_again();
        sleep(Duration::from_millis(chance.within(1..250))).await;
        world.kill().await;
    }
    u32::from(early)
}

pub(crate) fn millis(duration: Duration) -> u64 {
    u64::try_from(duration.as_millis()).unwrap_or(u64::MAX)
}
