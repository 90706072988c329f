//! The four services in the test's own process, on a clock that the test drives: as fast as the machine's, or hundreds of
//! times faster, so that hours pass in seconds. Sockets, stores and the vendors' answers are real, and take real time.

use std::{
    net::SocketAddr,
    sync::{
        Arc,
        atomic::{AtomicU32, Ordering},
    },
    time::Duration,
};

use chassis::{
    clock::{Clock, ManualClock},
    config::{Secret, Shared, StoreSettings},
    secret::{self, generate_master_key},
    service::Chassis,
};
use tempfile::TempDir;
use tokio::task::JoinSet;

use super::story::{Tenant, now};
use crate::harness::{Addresses, Engine, operator};

/// How often the clock is moved on, on the machine's own.
const TICK: Duration = Duration::from_millis(5);

/// A running system.
pub(super) struct Whole {
    pub(super) addresses: Addresses,
    pub(super) clock: Clock,
    speed: Arc<AtomicU32>,
    folder: TempDir,
    chassis: Chassis,
    _ticking: JoinSet<()>,
}

impl Whole {
    pub(super) async fn start_on(engine: &Engine) -> Self {
        let folder = tempfile::tempdir().expect("a temporary folder");
        let manual = ManualClock::at(now());
        let (clock, speed) = (Clock::Manual(manual.clone()), Arc::new(AtomicU32::new(1)));
        let mut ticking = JoinSet::new();
        ticking.spawn(tick(manual, speed.clone()));
        let chassis = Chassis::new(shared(), clock.clone()).expect("test settings hold");
        let addresses = start(engine, &folder, &chassis).await;
        Self { addresses, clock, speed, folder, chassis, _ticking: ticking }
    }

    /// Lets the clock run so many times as fast as the machine's.
    pub(super) fn runs(&self, times: u32) {
        self.speed.store(times, Ordering::Relaxed);
    }

    /// Lets time pass on the clock, at this speed; then it runs as the machine's again.
    pub(super) async fn pass(&self, time: Duration, times: u32) {
        self.runs(times);
        self.clock.sleep(time).await;
        self.runs(1);
    }

    pub(super) async fn tenant(&self, name: &str) -> Tenant {
        let key = crate::harness::tenant(self.addresses.router, &operator(self.folder.path()), name).await;
        Tenant::at(self.addresses, key)
    }

    pub(super) async fn stop(self) {
        self.runs(100);
        self.chassis.drain().await;
    }
}

async fn tick(clock: ManualClock, speed: Arc<AtomicU32>) {
    loop {
        tokio::time::sleep(TICK).await;
        clock.advance(TICK * speed.load(Ordering::Relaxed));
    }
}

fn shared() -> Shared {
    let mut shared = Shared::default();
    shared.secrets.master_keys = vec![generate_master_key(&Clock::System)];
    shared.auth.service_secret = Secret::from(hex::encode(secret::random::<32>()));
    shared.outbound.allow_networks = vec!["127.0.0.0/8".to_owned()];
    shared.outbound.allow_http = true;
    shared
}

async fn start(engine: &Engine, folder: &TempDir, chassis: &Chassis) -> Addresses {
    let anywhere = SocketAddr::from(([127, 0, 0, 1], 0));
    let at = |address: SocketAddr| format!("http://{address}");
    let named = engine.settings();
    let store = |name: &str, default: StoreSettings| {
        let of = |what: &str| format!("WEDSYNC_{name}__STORE__{what}");
        let given = |what: &str| named.iter().find(|(known, _)| *known == of(what)).map(|(_, value)| value.clone());
        let file = || format!("sqlite:{}", folder.path().join(format!("{name}.db")).display());
        let url = Secret::from(given("URL").unwrap_or_else(file));
        StoreSettings { url, schema: given("SCHEMA").unwrap_or_else(|| default.schema.clone()), ..default }
    };
    let config = router_svc::Config {
        listen: anywhere,
        bootstrap_key_file: folder.path().join("bootstrap-key"),
        store: store("ROUTER", router_svc::Config::default().store),
        ..router_svc::Config::default()
    };
    let router = router_svc::start(config, chassis).await.expect("the router").address;
    let config = vendor_sync_svc::Config {
        listen: anywhere,
        router: at(router),
        store: store("VENDOR_SYNC", vendor_sync_svc::Config::default().store),
        ..vendor_sync_svc::Config::default()
    };
    let vendor_sync = vendor_sync_svc::start(config, chassis).await.expect("vendor-sync").address;
    let config = notifier_svc::Config {
        listen: anywhere,
        router: at(router),
        store: store("NOTIFIER", notifier_svc::Config::default().store),
        ..notifier_svc::Config::default()
    };
    let notifier = notifier_svc::start(config, chassis).await.expect("the notifier").address;
    let mut config = gateway::Config {
        listen: anywhere,
        router: at(router),
        vendor_sync: at(vendor_sync),
        notifier: at(notifier),
        ..gateway::Config::default()
    };
    config.realtime.jwt_secret = Secret::from(hex::encode(secret::random::<32>()));
    let gateway = gateway::start(config, chassis).await.expect("the gateway").address;
    Addresses { router, vendor_sync, notifier, gateway }
}
