//! `endure`: from a commit in a captured database to a browser, a script and a service, while processes are killed, the
//! database restarts and sockets are cut; whether each change came once and in its order. A JSON line a fault.

use clap::Args;

use crate::{
    crash::Chance,
    endure::{self, Layout, Plan},
    report::{Stores, print},
};

#[derive(Debug, Args)]
pub(crate) struct Endure {
    /// Changes that are committed with the processes apart, on each store; a fifth of it with all in one.
    #[arg(long, default_value_t = 10_000)]
    changes: usize,
    /// Of a hundred changes, those that are committed while the router is away: an hour's worth at one a second.
    #[arg(long, default_value_t = 36)]
    held_percent: usize,
    /// Changes a second.
    #[arg(long, default_value_t = 150)]
    rate: u32,
    /// How often each process is killed, and each way to restart the database taken.
    #[arg(long, default_value_t = 5)]
    times: u32,
    /// How often a subscriber is cut off.
    #[arg(long, default_value_t = 100)]
    cuts: u32,
    #[arg(long, value_enum, default_value = "both")]
    store: Stores,
    /// Decides the changes and the moments; without one, others each time.
    #[arg(long)]
    seed: Option<u64>,
}

impl Endure {
    pub(crate) async fn run(self) -> bool {
        let seed = self.seed.unwrap_or_else(Chance::seed);
        eprintln!("endure: --seed {seed}");
        let stores = [(self.store.sqlite(), true), (self.store.postgres(), false)];
        let mut good = true;
        for (_, in_files) in stores.into_iter().filter(|(wanted, _)| *wanted) {
            for (layout, changes) in [(Layout::Apart, self.changes), (Layout::Together, self.changes / 5)] {
                let held = changes * self.held_percent.min(100) / 100;
                let plan = Plan { seed, changes, held, rate: self.rate, times: self.times, cuts: self.cuts };
                good &= layout.is_there() && Box::pin(endure::run(layout, in_files, &plan, print)).await;
            }
        }
        good
    }
}
