//! `powercut`: what is on the disk at one instant, and whether a system that starts from just that has all that was
//! acknowledged before it.
//!
//! The data lies on an ext4 file system in an image file. Everything that runs is stopped, the image is copied, and the
//! copy takes the original's place: what was written but not flushed is missing from it, as after a power cut. A control
//! run with `unsafe_durability` must lose something, else the harness proves nothing. It runs in a mount namespace of
//! its own, so that nothing stays mounted however it ends.

use std::{
    collections::BTreeSet,
    time::{Duration, Instant},
};

use clap::Args;
use serde::Serialize;
use tokio::time::sleep;

use crate::{
    crash::{Chance, Item, Outcome, World, kill::millis, name},
    disk::{self, Disk},
    harness::{Engine, Postgres, Wedsync},
    report::{Stores, print},
};

const IMAGE_BYTES: u64 = 1 << 30;
/// A control run may be lucky; so often it is tried.
const CONTROLS: u32 = 5;
const UNSAFE: [(&str, &str); 3] = [
    ("WEDSYNC_ROUTER__STORE__UNSAFE_DURABILITY", "true"),
    ("WEDSYNC_VENDOR_SYNC__STORE__UNSAFE_DURABILITY", "true"),
    ("WEDSYNC_NOTIFIER__STORE__UNSAFE_DURABILITY", "true"),
];

/// Nothing is flushed by the way, only by commits that wait for it.
const LAZY: [&str; 1] = ["wal_writer_delay=10s"];

#[derive(Debug, Args)]
pub(crate) struct Powercut {
    /// How often the power is cut, on each store.
    #[arg(long, default_value_t = 5)]
    cycles: u32,
    #[arg(long, value_enum, default_value = "both")]
    store: Stores,
    /// Decides the moments; without one, another each time.
    #[arg(long)]
    seed: Option<u64>,
    /// Events published a second, altogether.
    #[arg(long, default_value_t = 600)]
    rate: u32,
    #[arg(long, hide = true)]
    inside: bool,
}

/// One cut.
#[derive(Debug, Serialize)]
struct Cut {
    store: &'static str,
    seed: u64,
    /// Whether durability was switched off to prove the harness.
    control: bool,
    cut_after_ms: u64,
    /// Events acknowledged before the cut.
    acknowledged: usize,
    /// Of those, missing from the log afterwards.
    lost: usize,
    /// From the start on the copy until it was ready.
    ready_ms: u64,
    /// Everything, after recovery; not asked of a control run.
    outcome: Option<Outcome>,
}

impl Powercut {
    pub(crate) async fn run(self) -> bool {
        if !self.inside {
            return disk::again_inside().await;
        }
        if let Err(why) = Disk::make(IMAGE_BYTES).await {
            println!("skipped: {why}");
            return true;
        }
        let mut good = true;
        let seed = self.seed.unwrap_or_else(Chance::seed);
        eprintln!("powercut: --seed {seed}");
        for (postgres, chosen) in [(false, self.store.sqlite()), (true, self.store.postgres())] {
            if chosen {
                good &= self.safe(postgres, seed).await;
                good &= self.control(postgres, seed).await;
            }
        }
        good
    }

    /// Nothing that was acknowledged may be lost.
    async fn safe(&self, postgres: bool, seed: u64) -> bool {
        let mut good = true;
        for cycle in 0..u64::from(self.cycles) {
            let cut = self.cut(postgres, seed.wrapping_add(cycle), false).await;
            good &= cut.lost == 0 && cut.outcome.as_ref().is_some_and(Outcome::is_good);
            print(&cut);
        }
        good
    }

    /// Something must be lost.
    async fn control(&self, postgres: bool, seed: u64) -> bool {
        for cycle in 0..u64::from(CONTROLS) {
            let cut = self.cut(postgres, seed.wrapping_add(cycle), true).await;
            print(&cut);
            if cut.lost > 0 {
                return true;
            }
        }
        println!("the harness proves nothing: {CONTROLS} cuts without durability lost nothing");
        false
    }

    async fn cut(&self, postgres: bool, seed: u64, control: bool) -> Cut {
        let disk = Disk::make(IMAGE_BYTES).await.expect("it could be made before");
        let mut server = if postgres { Some(Postgres::start_in(&disk.folder("postgres"), &LAZY).await) } else { None };
        let engine = server.as_ref().map_or(Engine::Sqlite, |server| Engine::Postgres(server.url()));
        let settings = if control { &UNSAFE[..] } else { &[] };
        let system = Wedsync::start_in(&disk.folder("wedsync"), &engine, settings).await;
        let mut world = World::start(system, self.rate).await;
        if control {
            // It must not lose its tenant: nobody could ask then for what else it lost.
            disk.flush().await;
        }
        let cut_after_ms = Chance::new(seed).within(300..3_000);
        sleep(Duration::from_millis(cut_after_ms)).await;

        let before = cut_power(&mut world, &disk, server.as_mut()).await;
        let started = Instant::now();
        world.system.restart().await;
        let ready_ms = millis(started.elapsed());
        let log = world.log().await;
        let lost = before.iter().filter(|item| !log.contains_key(item)).count();
        let outcome = if control { None } else { Some(world.settle().await) };
        world.system.kill().await;
        Cut { store: name(&engine), seed, control, cut_after_ms, acknowledged: before.len(), lost, ready_ms, outcome }
    }
}

/// Stops everything, puts the copy in the disk's place, and gives what was acknowledged before.
async fn cut_power(world: &mut World, disk: &Disk, mut server: Option<&mut Postgres>) -> BTreeSet<Item> {
    world.system.freeze().await;
    if let Some(server) = &server {
        server.freeze().await;
    }
    // Answers that were sent before the stop are still on their way to the publishers.
    sleep(Duration::from_millis(200)).await;
    let acknowledged = world.load.acknowledged();
    disk.copy().await;
    world.kill().await;
    if let Some(server) = &mut server {
        server.kill().await;
    }
    disk.put_copy_in_place().await;
    if let Some(server) = server {
        server.run().await;
    }
    acknowledged
}
