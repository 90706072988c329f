//! What is measured and what is broken on purpose, on the binary as it is released:
//! `cargo bench --bench main -- measure|crash|powercut|chaos|endure|isolation`. Results are JSON, one line each, on standard output.
//!
//! PostgreSQL is taken from `WEDSYNC_TEST_POSTGRES` as `tests/harness/run.sh` sets it; a power cut starts its own.

// `cfg(test)` tells the lints that everything here is test code.
#[cfg(test)]
mod backlog;
#[cfg(test)]
mod bad_receivers;
#[cfg(test)]
mod chaos;
#[cfg(test)]
mod commit;
#[cfg(test)]
#[path = "../crash/mod.rs"]
mod crash;
#[cfg(test)]
mod disk;
#[cfg(test)]
#[path = "../endure/mod.rs"]
mod endure;
#[cfg(test)]
mod enduring;
#[cfg(test)]
mod figure;
#[cfg(test)]
#[path = "../harness/mod.rs"]
#[expect(dead_code, unused_imports, reason = "the tests use more of it")]
mod harness;
#[cfg(test)]
mod health;
#[cfg(test)]
mod inbound;
#[cfg(test)]
mod isolation;
#[cfg(test)]
mod kill;
#[cfg(test)]
mod live;
#[cfg(test)]
mod machine;
#[cfg(test)]
mod measure;
#[cfg(test)]
mod neighbours;
#[cfg(test)]
mod notifications;
#[cfg(test)]
mod path;
#[cfg(test)]
mod plan;
#[cfg(test)]
mod powercut;
#[cfg(test)]
mod publisher;
#[cfg(test)]
mod report;
#[cfg(test)]
mod sink;
#[cfg(test)]
mod sockets;
#[cfg(test)]
mod vendors;
#[cfg(test)]
#[path = "../stories/wire.rs"]
#[expect(dead_code, reason = "the stories use more of it")]
mod wire;

use std::process::ExitCode;

use clap::{Parser, Subcommand};

#[derive(Parser)]
struct Arguments {
    #[command(subcommand)]
    command: Option<Command>,
    /// What cargo adds.
    #[arg(long, hide = true, global = true)]
    bench: bool,
}

#[derive(Subcommand)]
enum Command {
    /// kill -9 and restart under load, and look for anything lost or altered.
    Crash(kill::Crash),
    /// Cut the power under load, and look for anything lost; with a control run that must lose.
    Powercut(powercut::Powercut),
    /// Measure how much, how fast and at what cost; every figure beside the machine's own limit.
    Measure(measure::Measure),
    /// Break one thing after the other under load, and look for a promise that didn't hold.
    Chaos(chaos::Chaos),
    /// Break what is between a database's commit and its subscribers, and look for a change missing, repeated or altered.
    Endure(enduring::Endure),
    /// Measure a healthy endpoint alone and beside one that never answers.
    Isolation(isolation::Isolation),
    /// A bare loop beside which sockets are measured.
    #[command(hide = true)]
    Bare(sockets::bare::Bare),
}

#[tokio::main]
async fn main() -> ExitCode {
    // What a bare client needs; an error means that it is there.
    let _ = rustls::crypto::ring::default_provider().install_default();
    let command = Arguments::parse().command.unwrap_or_else(|| Command::Measure(measure::Measure::default()));
    let good = match command {
        Command::Crash(crash) => crash.run().await,
        Command::Powercut(powercut) => powercut.run().await,
        Command::Measure(measure) => measure.run().await,
        Command::Chaos(chaos) => chaos.run().await,
        Command::Endure(endure) => endure.run().await,
        Command::Isolation(isolation) => isolation.run().await,
        Command::Bare(bare) => bare.run().await,
    };
    if good { ExitCode::SUCCESS } else { ExitCode::FAILURE }
}
