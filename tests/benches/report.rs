//! What all runs share: on which stores, and how results are printed.

use clap::ValueEnum;
use serde::Serialize;

use crate::harness::{Engine, provided};

/// Which engines a run is for.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub(crate) enum Stores {
    Sqlite,
    Postgres,
    Both,
}

impl Stores {
    /// Those of the chosen engines that are there; the others are said to be skipped.
    pub(crate) fn engines(self) -> Vec<Engine> {
        let postgres = if self.postgres() { provided("WEDSYNC_TEST_POSTGRES").map(Engine::Postgres) } else { None };
        self.sqlite().then_some(Engine::Sqlite).into_iter().chain(postgres).collect()
    }

    pub(crate) fn sqlite(self) -> bool {
        self != Self::Postgres
    }

    pub(crate) fn postgres(self) -> bool {
        self != Self::Sqlite
    }
}

/// One line of JSON.
pub(crate) fn print(result: &impl Serialize) {
    println!("{}", serde_json::to_string(result).expect("results are plain data"));
}
