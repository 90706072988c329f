//! The machine's clock steps forward and back while deliveries wait for their retries: nothing is lost, and nothing waits
//! for as long as the step.
//!
//! libfaketime gives the process another wall clock and leaves the monotonic one alone, as a step of the real clock does.
//! Steps stay below the five minutes that receivers allow a signature.

use std::{fs, path::Path, time::Instant};

use tokio::process::Command;

use super::Tried;
use crate::{
    crash::{Mood, Verdict, World},
    harness::{Engine, Wedsync, root, text},
};

const STEPS_S: [i64; 4] = [240, -240, 200, 0];
/// How soon after a step what waits must be tried: the schedule's first waits and a breaker's first opening.
const TRIED_WITHIN_MS: u64 = 30_000;

pub(super) async fn run(engine: &Engine, rate: u32) -> Tried {
    let library = library().await?;
    let folder = tempfile::tempdir().map_err(|error| error.to_string())?;
    let clock = folder.path().join("clock");
    step(&clock, 0);
    let settings = [
        ("LD_PRELOAD", library.as_str()),
        ("FAKETIME_TIMESTAMP_FILE", text(&clock)),
        ("FAKETIME_NO_CACHE", "1"),
        ("FAKETIME_DONT_FAKE_MONOTONIC", "1"),
    ];
    let mut verdict = Verdict::on(engine, "clock");
    let world = World::start(Wedsync::start_on(engine, &settings).await, rate).await;
    for seconds in STEPS_S {
        world.acknowledges(50).await;
        world.targets[0].catcher.feel(Mood::Failing);
        world.acknowledges(200).await;
        step(&clock, seconds);
        let stepped = Instant::now();
        world.targets[0].catcher.feel(Mood::Well);
        world.targets[0].catcher.mark();
        let recovery = crate::crash::kill::millis(world.targets[0].arrival().await.saturating_duration_since(stepped));
        verdict.recovered(recovery);
        if recovery > TRIED_WITHIN_MS {
            verdict.broke(format!("after a step to {seconds:+} s what waited was tried only after {recovery} ms"));
        }
        world.acknowledges(50).await;
    }
    verdict.note = format!("steps to {STEPS_S:?} s of the real time");
    Ok(verdict.settle(world).await)
}

/// From now on the process's clock is off by this much.
fn step(clock: &Path, seconds: i64) {
    // At once, so that nobody reads half of it.
    let new = clock.with_extension("new");
    fs::write(&new, format!("{seconds:+}\n")).expect("a temporary file");
    fs::rename(new, clock).expect("the same folder");
}

async fn library() -> Result<String, String> {
    let tools = root().join("tests/harness/tools.sh");
    let output = Command::new(tools).arg("faketime").output().await.map_err(|error| error.to_string())?;
    let said = |text: &[u8]| String::from_utf8_lossy(text).trim().to_owned();
    if output.status.success() { Ok(said(&output.stdout)) } else { Err(said(&output.stderr)) }
}
