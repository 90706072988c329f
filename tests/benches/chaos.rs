//! `chaos`: what is broken on purpose, one fault after the other, and whether every promise held. One line of JSON each;
//! the run fails if one didn't.
//!
//! Kills at fail points need a build with `--features fail-points`, a full disk needs root, a stepping clock needs
//! libfaketime: where one is missing, the line says that it was skipped, and why.

mod clock;
mod fail_points;
mod full_disk;

use std::time::Duration;

use clap::Args;
use serde::Serialize;

use crate::{
    crash::{Chance, Verdict, database, name, receiver, standstill, stop},
    disk,
    harness::{Engine, Postgres},
    report::{Stores, print},
};

#[derive(Debug, Args)]
pub(crate) struct Chaos {
    /// Only faults whose name begins so: `fail-point`, `fail-point:lane.attempt.sent`, `full-disk`.
    #[arg(long, default_value = "")]
    only: String,
    #[arg(long, value_enum, default_value = "both")]
    store: Stores,
    /// How often the process dies at each fail point, on each store.
    #[arg(long, default_value_t = 3)]
    kills: u32,
    /// Decides the moments; without one, another each time.
    #[arg(long)]
    seed: Option<u64>,
    /// Events published a second, altogether; each goes to two endpoints, every fourth to a third one.
    #[arg(long, default_value_t = 300)]
    rate: u32,
    #[arg(long, hide = true)]
    inside: bool,
}

/// A fault that can't be brought about here.
#[derive(Debug, Serialize)]
struct Skipped<'a> {
    fault: &'a str,
    store: &'a str,
    skipped: String,
}

/// What a run of one fault gives: a verdict, or why there is none.
type Tried = Result<Verdict, String>;

impl Chaos {
    pub(crate) async fn run(self) -> bool {
        if !self.inside && self.wants("full-disk") && disk::is_allowed().await {
            return disk::again_inside().await;
        }
        let seed = self.seed.unwrap_or_else(Chance::seed);
        eprintln!("chaos: --seed {seed}");
        let server = if self.store.postgres() { Some(Postgres::start().await) } else { None };
        let postgres = server.as_ref().map(|server| Engine::Postgres(server.url()));
        let sqlite = self.store.sqlite().then_some(Engine::Sqlite);
        let mut good = true;
        for engine in sqlite.iter().chain(&postgres) {
            good &= self.on(engine, seed).await;
        }
        good
    }

    /// Every fault, as one line each.
    async fn on(&self, engine: &Engine, seed: u64) -> bool {
        let (rate, mut good) = (self.rate, true);
        for point in chassis::fail::POINTS {
            let fault = format!("fail-point:{point}");
            if self.wants(&fault) {
                good &= told(&fault, engine, fail_points::run(engine, point, rate, self.kills, seed).await);
            }
        }
        if self.wants("standstill") {
            good &= told("standstill", engine, Ok(standstill::run(engine, rate, Duration::from_secs(20), 2).await));
        }
        if self.wants("stop") {
            good &= told("stop", engine, Ok(stop::run(engine, rate, 3).await));
        }
        if self.wants("receiver-down") {
            good &= told("receiver-down", engine, Ok(receiver::run(engine, rate, 5, Duration::from_secs(20)).await));
        }
        if self.wants("full-disk") {
            good &= told("full-disk", engine, full_disk::run(engine, rate).await);
        }
        if self.wants("clock") {
            good &= told("clock", engine, clock::run(engine, rate).await);
        }
        if matches!(engine, Engine::Postgres(_)) {
            if self.wants("database-restart") {
                good &= told("database-restart", engine, Ok(database::run(rate, 10, 1_500, seed).await));
            }
            if self.wants("taken-over") {
                good &= told("taken-over", engine, Ok(standstill::taken_over(rate).await));
            }
        }
        good
    }

    fn wants(&self, fault: &str) -> bool {
        fault.starts_with(&self.only) || self.only.starts_with(&format!("{fault}:"))
    }
}

/// Prints the line; whether the promises held.
fn told(fault: &str, engine: &Engine, tried: Tried) -> bool {
    match tried {
        Ok(verdict) => {
            print(&verdict);
            verdict.ok
        }
        Err(skipped) => {
            print(&Skipped { fault, store: name(engine), skipped });
            true
        }
    }
}
