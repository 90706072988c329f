//! Receivers that restart, and one that is down for a while: what was meant for them waits, and arrives.

use std::time::{Duration, Instant};

use tokio::time::sleep;

use super::{Verdict, World};
use crate::harness::{Engine, Wedsync};

/// Restarts every receiver `times` times, then leaves one down for `down`.
pub(crate) async fn run(engine: &Engine, rate: u32, times: u32, down: Duration) -> Verdict {
    let mut verdict = Verdict::on(engine, "receiver-down");
    let mut world = World::start(Wedsync::start_on(engine, &[]).await, rate).await;
    for _ in 0..times {
        world.acknowledges(50).await;
        let from = Instant::now();
        for target in &mut world.targets {
            target.catcher.down();
            target.catcher.up().await;
        }
        world.mark();
        let up = Instant::now();
        world.broken_since(from);
        let recovery = world.recovery_ms(up).await;
        verdict.recovered(recovery);
    }
    let from = Instant::now();
    world.targets[0].catcher.down();
    sleep(down).await;
    world.targets[0].catcher.up().await;
    world.broken_since(from);
    let up = Instant::now();
    world.targets[0].catcher.mark();
    let recovery = super::kill::millis(world.targets[0].arrival().await.saturating_duration_since(up));
    verdict.recovered(recovery);
    verdict.settle(world).await
}
