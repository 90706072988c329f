//! The four services in one process, each on its own port, meeting over gRPC as in production.

use std::{net::SocketAddr, path::Path, process::ExitCode};

use anyhow::{Context as _, Result};
use chassis::{clock::Clock, config, descriptors, service::Chassis, telemetry};
use serde::Serialize;

use crate::{Serve, settings::Settings, table::say};

/// Where the services listen; written to `addresses.json` beside the data, for commands and tests.
#[derive(Clone, Copy, Debug, Serialize)]
pub(crate) struct Addresses {
    pub(crate) router: SocketAddr,
    pub(crate) vendor_sync: SocketAddr,
    pub(crate) notifier: SocketAddr,
    pub(crate) gateway: SocketAddr,
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
    write_addresses(&serve.data, &addresses)?;
    say(&welcome(&addresses, &key_file, serve.config.is_none()));
    let clean = chassis.run().await?;
    Ok(if clean { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}

/// Starts all four; each is told where the ones before it really listen.
pub(crate) async fn start(settings: Settings, chassis: &Chassis) -> Result<Addresses> {
    let Settings { router, mut vendor_sync, mut notifier, mut gateway, .. } = settings;
    let at = |address: SocketAddr| format!("http://{address}");
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

fn write_addresses(data: &Path, addresses: &Addresses) -> Result<()> {
    let file = data.join("addresses.json");
    std::fs::create_dir_all(data)?;
    std::fs::write(&file, serde_json::to_string(addresses)?).with_context(|| format!("write {}", file.display()))
}

fn welcome(addresses: &Addresses, key_file: &Path, development: bool) -> String {
    let Addresses { router, vendor_sync, notifier, gateway } = addresses;
    let mode = if development {
        "development mode: loopback only, endpoints on loopback let through, secrets made here"
    } else {
        "settings from the given file"
    };
    let key = std::fs::read_to_string(key_file).unwrap_or_default();
    let key = if development { key.trim().to_owned() } else { format!("in {}", key_file.display()) };
    format!(
        "WedSync is up ({mode})\n\n  \
         gateway      http://{gateway}    vendors' webhooks, health, metrics\n  \
         router       {router}           events, routes, consumers (gRPC)\n  \
         vendor-sync  {vendor_sync}           endpoints, deliveries, integrations (gRPC)\n  \
         notifier     {notifier}           people (gRPC)\n  \
         operator key {key}\n\n\
         Try, in another terminal:\n  \
         wedsync listen                        a receiver: makes an endpoint, prints and verifies what comes\n  \
         wedsync publish --type wedding.date_changed --data '{{\"wedding_id\":\"w1\"}}'\n  \
         wedsync deliveries                    what became of it\n"
    )
}
