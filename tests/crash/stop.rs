//! SIGTERM under load beside a receiver that never answers: the end comes in time, and the healthy ones neither miss nor
//! repeat anything.

use std::time::{Duration, Instant};

use super::{Mood, Verdict, World, kill::millis};
use crate::harness::{Engine, Wedsync};

/// How long a stop may take.
const BOUND: Duration = Duration::from_secs(15);

/// Stops and starts it `times` times.
pub(crate) async fn run(engine: &Engine, rate: u32, times: u32) -> Verdict {
    let mut verdict = Verdict::on(engine, "stop");
    let mut world = World::start(Wedsync::start_on(engine, &[]).await, rate).await;
    let mut longest = Duration::ZERO;
    for _ in 0..times {
        world.targets[0].catcher.feel(Mood::Hanging);
        world.acknowledges(200).await;
        let began = Instant::now();
        let status = world.system.stop().await;
        longest = longest.max(began.elapsed());
        if !status.success() || began.elapsed() > BOUND {
            verdict.broke(format!("{status} after {:?}", began.elapsed()));
        }
        world.targets[0].catcher.feel(Mood::Well);
        world.mark();
        let started = Instant::now();
        world.system.restart().await;
        let recovery = world.recovery_ms(started).await;
        verdict.recovered(recovery);
    }
    verdict.note = format!("the longest stop took {} ms", millis(longest));
    // No fault is noted: any repeat is one too many, and `unprovoked`.
    verdict.settle(world).await
}
