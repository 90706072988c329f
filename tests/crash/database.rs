//! PostgreSQL is cut off in the middle of everything (`-m immediate`) and comes back: the process survives it, callers
//! are told to try again, and a commit whose answer was lost is found out.

use std::time::{Duration, Instant};

use tokio::time::sleep;

use super::{Chance, Verdict, World};
use crate::harness::{Engine, Postgres, Wedsync};

/// How soon after the server's return something must be delivered.
const BACK_WITHIN_MS: u64 = 5_000;

/// Restarts the server `times` times, each time after another moment; it stays away for up to `away_ms`.
pub(crate) async fn run(rate: u32, times: u32, away_ms: u64, seed: u64) -> Verdict {
    let (mut chance, mut server) = (Chance::new(seed), Postgres::start().await);
    let engine = Engine::Postgres(server.url());
    let mut verdict = Verdict::on(&engine, "database-restart");
    let mut world = World::start(Wedsync::start_on(&engine, &[]).await, rate).await;
    for _ in 0..times {
        world.acknowledges(50).await;
        sleep(Duration::from_millis(chance.within(0..500))).await;
        let from = Instant::now();
        server.stop_immediately().await;
        sleep(Duration::from_millis(chance.within(0..away_ms.max(1)))).await;
        world.mark();
        server.run().await;
        let back = Instant::now();
        world.acknowledges(50).await;
        let recovery = world.recovery_ms(back).await;
        world.broken_since(from);
        verdict.recovered(recovery);
        if let Some(end) = world.system.ended(Duration::ZERO).await {
            verdict.broke(format!("the process ended: {end}"));
            world.system.restart().await;
        }
    }
    if verdict.recovery_ms > BACK_WITHIN_MS {
        verdict.broke(format!("nothing was delivered for {} ms after the server's return", verdict.recovery_ms));
    }
    verdict.settle(world).await
}
