//! The services behind the gateway: how they are reached, and whether they serve, as their own grpc.health.v1 says.
//!
//! Each is asked every two seconds; one that doesn't answer in time doesn't serve. The gateway's own health has them as
//! parts, so that it is ready once they all are.

use std::{
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    time::Duration,
};

use anyhow::{Context as _, Result};
use chassis::{grpc::Peer, health::Health, service::Chassis};
use tokio::time::timeout;
use tonic_health::pb::{HealthCheckRequest, health_check_response::ServingStatus, health_client::HealthClient};

use crate::Config;

const PROBE_EVERY: Duration = Duration::from_secs(2);
const ANSWER_WITHIN: Duration = Duration::from_secs(2);
const OWN_NAME: &str = "gateway";

/// All services behind the gateway. Cheap to clone.
#[derive(Clone)]
pub(crate) struct Peers {
    pub(crate) router: Peer,
    pub(crate) vendor_sync: Peer,
    pub(crate) notifier: Peer,
    probed: Arc<[Probed]>,
}

struct Probed {
    name: &'static str,
    peer: Peer,
    serving: AtomicBool,
}

impl Peers {
    /// Connects at the first call to each.
    ///
    /// # Errors
    /// An address that can't be read, or one beyond loopback that isn't encrypted.
    pub(crate) fn new(config: &Config, chassis: &Chassis) -> Result<Self> {
        let addresses =
            [("router", &config.router), ("vendor-sync", &config.vendor_sync), ("notifier", &config.notifier)];
        let [router, vendor_sync, notifier] = addresses.map(|(name, uri)| {
            let peer = Peer::new(OWN_NAME, uri, chassis);
            peer.with_context(|| format!("[gateway] {}", name.replace('-', "_"))).map(|peer| (name, peer))
        });
        let all = [router?, vendor_sync?, notifier?];
        let [router, vendor_sync, notifier] = all.each_ref().map(|(_, peer)| peer.clone());
        let probed = all.map(|(name, peer)| Probed { name, peer, serving: AtomicBool::new(false) });
        Ok(Self { router, vendor_sync, notifier, probed: Arc::new(probed) })
    }

    /// The name of each, and whether it served when it was asked last.
    pub(crate) fn states(&self) -> impl Iterator<Item = (&'static str, bool)> {
        self.probed.iter().map(|probed| (probed.name, probed.serving.load(Ordering::Relaxed)))
    }

    /// Keeps asking each, and reports them to `health`, until the process stops.
    pub(crate) fn watch(&self, health: &Health, chassis: &Chassis) {
        for which in 0..self.probed.len() {
            let (peers, health, chassis) = (self.clone(), health.clone(), chassis.clone());
            let tasks = chassis.tasks.clone();
            health.set_serving(peers.probed[which].name, false);
            tasks.spawn("probe", async move {
                let stopping = chassis.tasks.stopping();
                let probing = peers.probed[which].watch(&health, &chassis);
                stopping.run_until_cancelled(probing).await;
            });
        }
    }
}

impl Probed {
    async fn watch(&self, health: &Health, chassis: &Chassis) {
        loop {
            let serving = self.serves().await;
            health.set_serving(self.name, serving);
            if self.serving.swap(serving, Ordering::Relaxed) != serving {
                tracing::info!(peer = self.name, serving, "a peer changed");
            }
            chassis.clock.sleep(PROBE_EVERY).await;
        }
    }

    async fn serves(&self) -> bool {
        let mut client = HealthClient::new(self.peer.channel());
        let answer = timeout(ANSWER_WITHIN, client.check(HealthCheckRequest::default())).await;
        matches!(answer, Ok(Ok(answer)) if answer.get_ref().status() == ServingStatus::Serving)
    }
}
