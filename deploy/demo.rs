//! `wedsync demo`: eight stories, played on a system of its own and shown as they happen.
//!
//! The four services are real, on SQLite, with gRPC between them; vendors' receivers verify with the public
//! `standardwebhooks` library, and webhooks come in over HTTP. What isn't ours stands on loopback and keeps to its contract: a
//! mail server, the providers of messages, vendors' systems, and WedSync's own database as PostgREST serves it. The exit code
//! is 0 only if every expected message arrived, verified, nothing came twice, and everybody who was to confirm has.

mod cast;
mod mail;
mod people;
mod provider;
mod system;
mod tally;
mod vendors;

use std::{process::ExitCode, time::Duration};

use anyhow::{Context as _, Result, ensure};
use chassis::{clock::Clock, service::Chassis, telemetry};
use clap::Args;
use proto::router::v1::{
    Change, Event, Operation, PublishRequest, UpsertWeddingRequest, Wedding, event::Payload,
    event_service_client::EventServiceClient, wedding_service_client::WeddingServiceClient,
};
use serde_json::json;

use self::{
    cast::{COUPLE, Cast, WEDDING},
    mail::MailServer,
    people::Stage,
    provider::Providers,
    tally::{Tally, Via},
};
use crate::{
    client::{Authorized, authorized, register},
    serve::{self, Addresses},
    settings::Settings,
    table::say,
};

/// How long a message may take before the demo counts it as missing.
const PATIENCE: Duration = Duration::from_secs(60);
/// After the last expected message: long enough to see one that comes twice.
const AFTERMATH: Duration = Duration::from_millis(500);

/// Play eight stories on a temporary system and show who received what.
#[derive(Args)]
pub(crate) struct Demo {
    /// Which log lines to show, for example `info`.
    #[arg(long, default_value = "error", value_name = "FILTER")]
    log: String,
}

pub(crate) async fn run(demo: Demo) -> Result<ExitCode> {
    let folder = tempfile::tempdir().context("a temporary folder")?;
    let mail = MailServer::start().await?;
    let providers = Providers::start().await.context("the providers")?;
    let mut settings = settings(folder.path(), &mail, &providers)?;
    settings.shared.telemetry.filter = demo.log;
    telemetry::init(&settings.shared.telemetry)?;
    let key_file = settings.router.bootstrap_key_file.clone();
    let chassis = Chassis::new(settings.shared.clone(), Clock::System)?;
    let addresses = serve::start(settings, &chassis).await?;
    let operator = std::fs::read_to_string(key_file)?;
    let key = register(&serve::at(addresses.router), operator.trim(), "rose-and-oak").await?;

    let outcome = play(&addresses, &key, mail, providers).await;
    chassis.drain().await;
    let passed = outcome?;
    say(if passed {
        "\nEverything arrived, verified, once, and everybody knows."
    } else {
        "\nSomething is missing, unverified, unconfirmed, or came twice."
    });
    Ok(if passed { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}

/// Development settings, but on ports of its own and with the demo's mail server and providers.
fn settings(data: &std::path::Path, mail: &MailServer, providers: &Providers) -> Result<Settings> {
    let mut settings = Settings::load_for_demo(data, providers.settings())?;
    let any_port = std::net::SocketAddr::from(([127, 0, 0, 1], 0));
    (settings.router.listen, settings.vendor_sync.listen) = (any_port, any_port);
    (settings.notifier.listen, settings.gateway.listen) = (any_port, any_port);
    settings.notifier.smtp.host = mail.address.ip().to_string();
    settings.notifier.smtp.port = mail.address.port();
    settings.notifier.smtp.tls = notifier_svc::Tls::None;
    settings.notifier.smtp.from = "hello@rose-and-oak.example".into();
    settings.notifier.public_url = people::PUBLIC_URL.into();
    settings.notifier.escalation.otherwise_ms = people::WAIT.as_millis().try_into()?;
    Ok(settings)
}

async fn play(addresses: &Addresses, key: &str, mail: MailServer, providers: Providers) -> Result<bool> {
    let router = authorized(&serve::at(addresses.router), key).await?;
    let mut tally = Tally::default();
    introduce(&router).await?;
    let cast = Cast::assemble(addresses, key, &mail, &tally).await?;
    people::know(&mail);
    tally.collect_mail(mail);
    let workflow = providers.workflow("kit");
    people::collect(providers, &tally);
    say("A wedding in June: Ada photographs, Oak Hall hosts, Flora does the flowers, Pia plans it.");

    let mut events = EventServiceClient::new(router.clone());
    tally.begin("The couple moves the ceremony from 3 pm to 4 pm");
    tally.expect(&cast.vendors(), Via::Webhook);
    tally.expect(&cast.people(), Via::Email);
    tally.expect(&cast.people(), Via::InApp);
    publish(&mut events, "demo-timeline", details("15:00"), details("16:00")).await?;
    let mut passed = tally.finish(PATIENCE, AFTERMATH).await;

    tally.begin("Ada's CRM reports a new phone number by a signed webhook");
    tally.expect(&cast.vendors(), Via::Webhook);
    tally.expect(&cast.people(), Via::Email);
    tally.expect(&cast.people(), Via::InApp);
    cast.crm_reports(addresses.gateway, COUPLE).await?;
    passed &= tally.finish(PATIENCE, AFTERMATH).await;

    let notifier = authorized(&serve::at(addresses.notifier), key).await?;
    let stage = Stage { router: &router, notifier: &notifier, gateway: addresses.gateway };
    passed &= people::date_moves(&stage, &cast.vendors(), &workflow, &mut tally).await?;
    let vendor_sync = authorized(&serve::at(addresses.vendor_sync), key).await?;
    cast.leave(&vendor_sync).await?;
    passed &= vendors::are_linked(&stage, &vendor_sync, &mut tally).await?;
    Ok(passed)
}

async fn introduce(router: &Authorized) -> Result<()> {
    let wedding = Wedding {
        id: WEDDING.into(),
        wedding_date: "2026-06-20".into(),
        ceremony_time: "15:00".into(),
        time_zone: "Europe/London".into(),
        couple_id: COUPLE.into(),
        supplier_ids: cast::VENDORS.iter().map(|vendor| vendor.id.to_owned()).collect(),
        ..Default::default()
    };
    WeddingServiceClient::new(router.clone()).upsert_wedding(UpsertWeddingRequest { wedding: Some(wedding) }).await?;
    Ok(())
}

fn details(time: &str) -> Vec<u8> {
    let row = json!({
        "id": WEDDING, "couple_id": COUPLE, "bride_name": "Rosa", "groom_name": "Otto", "wedding_date": "2026-06-20", "ceremony_time": time,
        "time_zone": "Europe/London", "venue_id": "oak-hall", "venue_name": "Oak Hall", "guest_count": 120,
        "vendor_ids": cast::VENDORS.iter().map(|vendor| vendor.id).collect::<Vec<_>>(),
    });
    row.to_string().into_bytes()
}

async fn publish(events: &mut EventServiceClient<Authorized>, id: &str, old: Vec<u8>, new: Vec<u8>) -> Result<()> {
    let change = Change {
        schema: "public".into(),
        table: "wedding_details".into(),
        operation: Operation::Update.into(),
        old_record: old.into(),
        new_record: new.into(),
    };
    let event =
        Event { id: id.into(), source: "demo".into(), payload: Some(Payload::Change(change)), ..Default::default() };
    let receipt = events.publish(PublishRequest { event: Some(event) }).await?.into_inner().receipt.unwrap_or_default();
    ensure!(!receipt.duplicate, "the demo's store is fresh, yet event {id} was known");
    Ok(())
}
