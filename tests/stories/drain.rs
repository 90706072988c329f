//! SIGTERM under load: an orderly end in time, and a start after it that begins where the end was.

use std::time::{Duration, Instant};

use super::story::eventually;
use crate::{
    crash::World,
    harness::{Engine, Wedsync},
};

/// Events a second.
const RATE: u32 = 200;
/// What is acknowledged before each signal, counted from the one before.
const BETWEEN: usize = 400;
const STOPS: usize = 2;

#[tokio::test]
async fn a_sigterm_under_load_ends_in_time_loses_nothing_and_nothing_is_sent_twice() {
    for engine in Engine::all() {
        println!("on {engine:?}");
        let mut world = World::start(Wedsync::start_on(&engine, &[]).await, RATE).await;
        for stop in 1..=STOPS {
            eventually("there is load", async || {
                let acknowledged = world.load.acknowledged().len();
                if acknowledged >= stop * BETWEEN { Ok(()) } else { Err(format!("{acknowledged} events")) }
            })
            .await;
            let began = Instant::now();
            let status = world.system.stop().await;
            let took = began.elapsed();
            println!("stop {stop}: {status} after {took:?}");
            assert!(status.success(), "{status} after {took:?}:\n{}", world.system.log());
            assert!(took < Duration::from_secs(15), "{took:?}:\n{}", world.system.log());
            world.system.restart().await;
        }
        let outcome = world.settle().await;
        println!("{outcome:?}");
        assert!(outcome.is_good() && outcome.acknowledged > STOPS * BETWEEN, "{outcome:?}");
        assert_eq!(outcome.repeated, 0, "an orderly end leaves nothing half said: {outcome:?}");
    }
}
