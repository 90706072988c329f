//! `wedsync`: the four services in one process, and what a developer wants at hand.
//!
//! `serve` (the default) starts everything over the same gRPC as in production; `demo` plays its stories on a system of
//! its own and shows who received what; the other commands talk to a system that runs.

mod captures;
mod client;
mod command;
mod conflicts;
mod demo;
mod erase;
mod imports;
mod integrations;
mod listen;
mod pages;
mod progress;
mod serve;
mod settings;
mod spooled;
mod table;

use std::{path::PathBuf, process::ExitCode};

use anyhow::Result;
use clap::{Args, Parser, Subcommand};

#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

/// What happens to a wedding reaches every system and every person concerned.
#[derive(Parser)]
#[command(name = "wedsync", version, args_conflicts_with_subcommands = true)]
struct Cli {
    #[command(subcommand)]
    command: Option<Command>,
    #[command(flatten)]
    serve: Serve,
}

/// Where a system takes its settings and keeps its data.
#[derive(Args, Clone)]
pub(crate) struct Serve {
    /// Settings in TOML. Without one: development mode, on loopback, with secrets of its own.
    #[arg(long, value_name = "FILE")]
    config: Option<PathBuf>,
    /// Where data and, in development mode, secrets are kept.
    #[arg(long, value_name = "DIR", default_value = "./data")]
    data: PathBuf,
    /// Print the settings in force, without secrets, and end.
    #[arg(long)]
    print_config: bool,
}

#[derive(Subcommand)]
enum Command {
    /// Start the four services (what happens without a command).
    Serve(Serve),
    /// Play eight stories on a temporary system and show who received what.
    Demo(demo::Demo),
    /// Publish one event.
    Publish(command::Publish),
    /// Receive webhooks here, verify and print them.
    Listen(listen::Listen),
    /// List webhook endpoints, or make one.
    Endpoints(command::Endpoints),
    /// How far captured databases are, and changes that the log didn't take. For the operator.
    Captures(captures::Captures),
    /// Take in everything that a vendor, a table or a calendar has.
    Import(imports::ImportCommand),
    /// List imports, follow one, or answer what it asks.
    Imports(imports::ImportsCommand),
    /// Compare a vendor's list with what is linked, and mend what differs.
    Reconcile(imports::ReconcileCommand),
    /// List integrations: accounts at other systems, and how each stands; make, connect, test or pause one.
    Integrations(integrations::Integrations),
    /// List where systems disagree about a record, or decide it.
    Conflicts(conflicts::Conflicts),
    /// List webhooks that couldn't be taken and that nobody sends again, or try one again.
    Spooled(spooled::Spooled),
    /// List deliveries, show the attempts of one, or send one again.
    Deliveries(command::Deliveries),
    /// Erase what is kept of a client, a wedding or a booking, for good.
    Erase(erase::Erase),
    /// List what was erased, and by whom.
    Erasures(erase::Erasures),
}

fn main() -> ExitCode {
    let cli = Cli::parse();
    match run(cli) {
        Ok(code) => code,
        Err(error) => {
            // What a service refused says it in its message; the rest of a status is for programs.
            let refusal = error.downcast_ref::<tonic::Status>().map(|status| status.message().to_owned());
            table::complain(&format!("wedsync: {}", refusal.unwrap_or_else(|| format!("{error:#}"))));
            ExitCode::FAILURE
        }
    }
}

fn run(cli: Cli) -> Result<ExitCode> {
    // Both providers of rustls may be compiled in by dependencies; this is the one we use.
    let _ = rustls::crypto::ring::default_provider().install_default();
    let runtime = tokio::runtime::Builder::new_multi_thread().enable_all().build()?;
    let code = runtime.block_on(async {
        match cli.command {
            None => serve::run(cli.serve).await,
            Some(Command::Serve(serve)) => serve::run(serve).await,
            Some(Command::Demo(demo)) => demo::run(demo).await,
            Some(Command::Publish(publish)) => publish.run().await,
            Some(Command::Listen(listen)) => listen.run().await,
            Some(Command::Endpoints(endpoints)) => endpoints.run().await,
            Some(Command::Captures(captures)) => captures.run().await,
            Some(Command::Import(import)) => import.run().await,
            Some(Command::Imports(imports)) => imports.run().await,
            Some(Command::Reconcile(reconcile)) => reconcile.run().await,
            Some(Command::Integrations(integrations)) => integrations.run().await,
            Some(Command::Conflicts(conflicts)) => conflicts.run().await,
            Some(Command::Spooled(spooled)) => spooled.run().await,
            Some(Command::Deliveries(deliveries)) => deliveries.run().await,
            Some(Command::Erase(erase)) => erase.run().await,
            Some(Command::Erasures(erasures)) => erasures.run().await,
        }
    });
    // What blocks a thread beyond its deadline must not hold the process.
    runtime.shutdown_timeout(std::time::Duration::ZERO);
    code
}

#[cfg(test)]
mod tests {
    use clap::CommandFactory as _;

    #[test]
    fn no_two_arguments_of_a_command_share_a_name() {
        super::Cli::command().debug_assert();
    }
}
