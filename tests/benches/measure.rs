//! `measure`: every figure that was promised, each on a line of its own beside the machine's limit; non-zero when one is
//! not reached.

use clap::Args;

use crate::{
    backlog, bad_receivers, commit, health, inbound, live, neighbours, notifications,
    path::{self, Wanted},
    plan,
    report::{Stores, print},
    sockets, vendors,
};

const ROWS: usize = 1_000_000;
const RATE: u32 = 2_000;
const BACKLOG: usize = 1_000;
const SOCKETS: usize = 10_000;
const NOTIFICATIONS: usize = 10_000;

#[derive(Debug, Args)]
pub(crate) struct Measure {
    #[arg(long, value_enum, default_value = "both")]
    store: Stores,
    /// Only figures whose names begin with this: `throughput`, `live`, `notifications`, `backlog`.
    #[arg(long)]
    only: Option<String>,
    /// Events in the log before throughput is measured.
    #[arg(long, default_value_t = ROWS)]
    rows: usize,
    /// Events a second, all together, while some endpoints hang.
    #[arg(long, default_value_t = RATE)]
    rate: u32,
    /// Endpoints of the backlog, and events that wait for each.
    #[arg(long, default_value_t = BACKLOG)]
    backlog: usize,
    /// Browsers at one gateway; at most what one process may hold open.
    #[arg(long, default_value_t = SOCKETS)]
    sockets: usize,
    /// Notifications that come all at once, and while the process is killed; ten for each person.
    #[arg(long, default_value_t = NOTIFICATIONS)]
    notifications: usize,
}

impl Default for Measure {
    fn default() -> Self {
        let (rows, rate, backlog, sockets, notifications) = (ROWS, RATE, BACKLOG, SOCKETS, NOTIFICATIONS);
        Self { store: Stores::Both, only: None, rows, rate, backlog, sockets, notifications }
    }
}

impl Measure {
    pub(crate) async fn run(self) -> bool {
        let Self { store, only, rows, rate, backlog, sockets, notifications } = self;
        let wanted = Wanted { only, rows, rate, backlog, sockets, notifications };
        let mut good = true;
        let mut told = |figure: crate::figure::Figure| {
            good &= figure.ok;
            print(&figure);
        };
        plan::run(&wanted, &mut told);
        for engine in store.engines() {
            path::run(&engine, &wanted, &mut told).await;
            inbound::run(&engine, &wanted, &mut told).await;
            health::run(&engine, &wanted, &mut told).await;
            live::run(&engine, &wanted, &mut told).await;
            notifications::run(&engine, &wanted, &mut told).await;
            vendors::run(&engine, &wanted, &mut told).await;
            commit::run(&engine, &wanted, &mut told).await;
            sockets::run(&engine, &wanted, &mut told).await;
            neighbours::run(&engine, &wanted, &mut told).await;
            bad_receivers::run(&engine, &wanted, &mut told).await;
            backlog::run(&engine, &wanted, &mut told).await;
        }
        good
    }
}
