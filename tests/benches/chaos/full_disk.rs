//! The disk is full, and then has room again: publishers are told to try again, nothing that was acknowledged is lost, and
//! it goes on by itself.

use std::{
    os::unix::fs::symlink,
    time::{Duration, Instant},
};

use tokio::time::sleep;

use super::Tried;
use crate::{
    crash::{Verdict, World},
    disk::Disk,
    harness::{Engine, Postgres, Wedsync},
};

const SQLITE_BYTES: u64 = 64 << 20;
/// A PostgreSQL server takes a hundred MiB before it holds anything.
const POSTGRES_BYTES: u64 = 384 << 20;
/// How long nothing is acknowledged when the disk counts as full.
const REFUSING: Duration = Duration::from_secs(2);
/// How long it is tried to fill it: what a store has reserved goes first.
const FILLED_WITHIN: Duration = Duration::from_secs(60);
const TIMES: u32 = 3;
/// How soon after there is room something must be delivered.
const BACK_WITHIN_MS: u64 = 5_000;

pub(super) async fn run(engine: &Engine, rate: u32) -> Tried {
    let postgres = matches!(engine, Engine::Postgres(_));
    let disk = Disk::make(if postgres { POSTGRES_BYTES } else { SQLITE_BYTES }).await?;
    let folder = tempfile::tempdir().map_err(|error| error.to_string())?;
    // What the process logs, and on PostgreSQL its few files, have room elsewhere.
    if !postgres {
        symlink(disk.folder("data"), folder.path().join("data")).map_err(|error| error.to_string())?;
    }
    let mut server = if postgres { Some(Postgres::start_in(&disk.folder("postgres"), &[]).await) } else { None };
    let engine = server.as_ref().map_or(Engine::Sqlite, |server| Engine::Postgres(server.url()));
    let mut verdict = Verdict::on(&engine, "full-disk");
    let mut world = World::start(Wedsync::start_in(folder.path(), &engine, &[]).await, rate).await;
    for _ in 0..TIMES {
        world.acknowledges(200).await;
        let from = Instant::now();
        if !fill(&disk, &world).await {
            verdict.broke("the disk could not be filled: this proves nothing");
            break;
        }
        sleep(Duration::from_secs(3)).await;
        world.mark();
        disk.free();
        let freed = Instant::now();
        if let Some(server) = &mut server
            && server.has_ended().await
        {
            verdict.note = "PostgreSQL ended itself for want of room, and was started again".to_owned();
            server.run().await;
        }
        world.acknowledges(50).await;
        let recovery = world.recovery_ms(freed).await;
        world.broken_since(from);
        verdict.recovered(recovery);
        if let Some(end) = world.system.ended(Duration::ZERO).await {
            verdict.broke(format!("the process ended: {end}"));
            world.system.restart().await;
        }
    }
    if verdict.recovery_ms > BACK_WITHIN_MS {
        verdict.broke(format!("nothing was delivered for {} ms after there was room", verdict.recovery_ms));
    }
    Ok(verdict.settle(world).await)
}

/// Takes all room until nothing is acknowledged any more.
async fn fill(disk: &Disk, world: &World) -> bool {
    let began = Instant::now();
    let (mut acknowledged, mut since) = (world.load.acknowledged().len(), Instant::now());
    while since.elapsed() < REFUSING {
        disk.fill().await;
        sleep(Duration::from_millis(100)).await;
        let now = world.load.acknowledged().len();
        if now != acknowledged {
            (acknowledged, since) = (now, Instant::now());
        }
        if began.elapsed() > FILLED_WITHIN {
            return false;
        }
    }
    true
}
