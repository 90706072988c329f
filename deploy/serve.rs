//! The four services in one process, each on its own port, meeting over gRPC as in production.

use std::{net::SocketAddr, path::Path, process::ExitCode};

use anyhow::{Context as _, Result};
use chassis::{clock::Clock, config, descriptors, service::Chassis, telemetry};
use serde::{Deserialize, Serialize};

use crate::{Serve, settings::Settings, table::say};

/// Where the services listen.
#[derive(Clone, Copy, Debug, Serialize, Deserialize)]
pub(crate) struct Addresses {
    pub(crate) router: SocketAddr,
    pub(crate) vendor_sync: SocketAddr,
    pub(crate) notifier: SocketAddr,
    pub(crate) gateway: SocketAddr,
}

/// What a process says of itself in `addresses.json` beside its data, for commands and tests.
#[derive(Debug, Serialize, Deserialize)]
pub(crate) struct Running {
    #[serde(flatten)]
    pub(crate) addresses: Addresses,
    /// Whether commands may make an organization of their own.
    pub(crate) development: bool,
}

/// Serves until SIGTERM or SIGINT.
pub(crate) async fn run(serve: Serve) -> Result<ExitCode> {
    let settings = Settings::load(&serve)?;
    if serve.print_config {
        say(&config::print(&settings));
        return Ok(ExitCode::SUCCESS);
    }
    telemetry::init(&settings.shared.telemetry)?;
    descriptors::raise();
    let key_file = settings.router.bootstrap_key_file.clone();
    let chassis = Chassis::new(settings.shared.clone(), Clock::System)?;
    let addresses = start(settings, &chassis).await?;
    let running = Running { addresses, development: serve.config.is_none() };
    write_addresses(&serve.data, &running)?;
    say(&welcome(&running, &key_file));
    let clean = chassis.run().await?;
    Ok(if clean { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}

/// Starts all four; each is told where the ones before it really listen.
pub(crate) async fn start(settings: Settings, chassis: &Chassis) -> Result<Addresses> {
    let Settings { router, mut vendor_sync, mut notifier, mut gateway, .. } = settings;
    let router = router_svc::start(router, chassis).await.context("router")?.address;
    vendor_sync.router = at(router);
    let vendor_sync_service = vendor_sync_svc::start(vendor_sync, chassis).await.context("vendor-sync")?;
    let vendor_sync = vendor_sync_service.address;
    notifier.router = at(router);
    let notifier = notifier_svc::start(notifier, chassis).await.context("notifier")?.address;
    (gateway.router, gateway.vendor_sync, gateway.notifier) = (at(router), at(vendor_sync), at(notifier));
    let gateway = gateway::start(gateway, chassis).await.context("gateway")?.address;
    // Even where loopback is let through, our own ports are nobody's endpoint.
    [router, notifier, gateway].into_iter().for_each(|own| vendor_sync_service.outbound.refuse_own(own));
    Ok(Addresses { router, vendor_sync, notifier, gateway })
}

/// An address as its clients are given it.
pub(crate) fn at(address: SocketAddr) -> String {
    format!("http://{address}")
}

fn write_addresses(data: &Path, running: &Running) -> Result<()> {
    let file = data.join("addresses.json");
    std::fs::create_dir_all(data)?;
    std::fs::write(&file, serde_json::to_string(running)?).with_context(|| format!("write {}", file.display()))
}

fn welcome(running: &Running, key_file: &Path) -> String {
    let Running { addresses: Addresses { router, vendor_sync, notifier, gateway }, development } = running;
    let mode = if *development {
        "development mode: loopback only, endpoints on loopback let through, secrets made here"
    } else {
        "settings from the given file"
    };
    let key = std::fs::read_to_string(key_file).unwrap_or_default();
    let key = if *development { key.trim().to_owned() } else { format!("in {}", key_file.display()) };
    format!(
        "WedSync is up ({mode})\n\n  \
         gateway      http://{gateway}    vendors' webhooks, health, metrics\n  \
         router       {router}           events, routes, consumers (gRPC)\n  \
         vendor-sync  {vendor_sync}           endpoints, deliveries, integrations (gRPC)\n  \
         notifier     {notifier}           people (gRPC)\n  \
         operator key {key}\n{}",
        if *development { trials(&program()) } else { String::new() }
    )
}

/// As this process was called: it may not be where a shell looks for programs.
fn program() -> String {
    std::env::args().next().unwrap_or_else(|| "wedsync".to_owned())
}

fn trials(program: &str) -> String {
    format!(
        "\nTry, in another terminal:\n  \
         {program} listen                        a receiver: makes an endpoint, prints and verifies what comes\n  \
         {program} publish --type wedding.date_changed --data '{{\"wedding_id\":\"w1\"}}'\n  \
         {program} deliveries                    what became of it\n"
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_to_try_is_said_as_it_can_be_typed_here_and_in_development_mode_alone() {
        let here: SocketAddr = "127.0.0.1:1".parse().expect("an address");
        let addresses = Addresses { router: here, vendor_sync: here, notifier: here, gateway: here };
        let said = |development| welcome(&Running { addresses, development }, Path::new("key"));
        assert!(said(true).contains(&format!("{} listen ", program())));
        assert!(!said(false).contains("Try"), "it would need a key");
        assert!(trials("target/debug/wedsync").contains("\n  target/debug/wedsync deliveries "));
    }
}
