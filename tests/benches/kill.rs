//! `crash`: many cycles of kill -9 under load on each store, and whether anything acknowledged was lost or altered.

use clap::Args;

use crate::{
    crash::{
        Chance,
        kill::{self, Kills},
    },
    report::{Stores, print},
};

#[derive(Debug, Args)]
pub(crate) struct Crash {
    /// How often the process is killed, on each store.
    #[arg(long, default_value_t = 20)]
    cycles: u32,
    #[arg(long, value_enum, default_value = "both")]
    store: Stores,
    /// Decides the moments; without one, another each time.
    #[arg(long)]
    seed: Option<u64>,
    /// Events published a second, altogether; each goes to two endpoints, every fourth to a third one.
    #[arg(long, default_value_t = 600)]
    rate: u32,
}

impl Crash {
    pub(crate) async fn run(self) -> bool {
        let seed = self.seed.unwrap_or_else(Chance::seed);
        eprintln!("crash: --seed {seed}");
        let kills = Kills { cycles: self.cycles, seed, rate: self.rate, life_ms: 20..2_000 };
        let mut good = true;
        for engine in self.store.engines() {
            let summary = kill::run(&engine, &kills, print).await;
            good &= summary.outcome.is_good();
            print(&summary);
        }
        good
    }
}
