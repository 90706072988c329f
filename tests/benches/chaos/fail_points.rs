//! The process dies at a chosen passing of a fail point, again and again, with load before, while and after.

use std::{
    os::unix::process::ExitStatusExt as _,
    time::{Duration, Instant},
};

use super::Tried;
use crate::{
    crash::{Chance, Mood, Verdict, World},
    harness::{Engine, Wedsync},
};

/// How long it may take to come past the point that often.
const PASSED_WITHIN: Duration = Duration::from_secs(40);
const SIGABRT: i32 = 6;

/// Dies `kills` times at `point`.
pub(super) async fn run(engine: &Engine, point: &str, rate: u32, kills: u32, seed: u64) -> Tried {
    if !cfg!(feature = "fail-points") {
        return Err("built without --features fail-points".to_owned());
    }
    let mut chance = Chance::new(seed);
    let mut verdict = Verdict::on(engine, &format!("fail-point:{point}"));
    let mut world = World::start(first_life(engine, point, &mut verdict).await, rate).await;
    for _ in 0..kills {
        world.acknowledges(50).await;
        world.system.stop().await;
        if is_of_trouble(point) {
            world.targets[0].catcher.feel(Mood::Failing);
        }
        let fault = format!("{point}=kill@{}", chance.within(passings(point)));
        world.system.spawn_with(&[("WEDSYNC_FAIL", &fault)]);
        died(&mut world.system, &fault, &mut verdict).await;
        world.broken_since(Instant::now());
        world.targets[0].catcher.feel(Mood::Well);
        world.mark();
        let started = Instant::now();
        world.system.restart().await;
        let recovery = world.recovery_ms(started).await;
        verdict.recovered(recovery);
    }
    Ok(verdict.settle(world).await)
}

/// A system on a fresh store; where the point is one of a start, the very first start dies there too.
async fn first_life(engine: &Engine, point: &str, verdict: &mut Verdict) -> Wedsync {
    if !is_of_start(point) {
        return Wedsync::start_on(engine, &[]).await;
    }
    let fault = format!("{point}=kill@2");
    let mut system = Wedsync::spawn_on(engine, &[("WEDSYNC_FAIL", &fault)]);
    died(&mut system, &fault, verdict).await;
    system.restart().await;
    verdict.tried += 1;
    system
}

/// Waits until it died there.
async fn died(system: &mut Wedsync, fault: &str, verdict: &mut Verdict) {
    match system.ended(PASSED_WITHIN).await {
        Some(status) if status.signal() == Some(SIGABRT) => {}
        Some(status) => verdict.broke(format!("{fault}: it ended by itself, {status}")),
        None => {
            verdict.broke(format!("{fault}: it never came there"));
            system.kill().await;
        }
    }
}

/// Which passings are chosen from: what is passed seldom in a life is not waited for.
fn passings(point: &str) -> std::ops::Range<u64> {
    match point {
        "lane.take_over.commit" => 1..3,
        _ if is_of_start(point) => 1..4,
        "lane.breaker.commit" => 1..3,
        _ if is_of_trouble(point) => 1..6,
        _ => 1..100,
    }
}

/// Passed when the process starts.
fn is_of_start(point: &str) -> bool {
    point.starts_with("store.migrate.") || point.starts_with("lane.take_over.")
}

/// Passed when a receiver fails.
fn is_of_trouble(point: &str) -> bool {
    ["lane.retry.scheduled", "lane.breaker.commit", "lane.due.loaded"].contains(&point)
}
