//! The hubs of all organizations in use: made with the first connection, ended a while after the last.

use std::{
    collections::HashMap,
    sync::{
        Arc, Mutex, PoisonError,
        atomic::{AtomicU32, Ordering},
    },
    time::Duration,
};

use chassis::{grpc::Peer, id::OrganizationId, service::Chassis};
use jiff::Timestamp;

use super::{
    RealtimeConfig, feed,
    hub::Hub,
    pace::{Pace, Rate},
};

/// Organizations that are followed at a time.
const HUBS_MAX: usize = 4_096;

/// All of them. Cheap to clone.
#[derive(Clone)]
pub(crate) struct Hubs(Arc<Shared>);

struct Shared {
    all: Mutex<HashMap<OrganizationId, Arc<Used>>>,
    router: Peer,
    chassis: Chassis,
    /// Begins the names of this process's subscribers.
    gateway: String,
    connections: u32,
    joins: Rate,
    linger: Duration,
}

struct Used {
    hub: Arc<Hub>,
    leases: AtomicU32,
    joins: Pace,
}

/// One connection's hold on its organization's hub.
pub(crate) struct Lease(Arc<Used>);

/// A hub as long as it is fed. However that ends, be it by a panic while an event is handed out, the next one who joins
/// finds a new hub.
struct Kept {
    hubs: Hubs,
    used: Arc<Used>,
}

impl Hubs {
    pub(crate) fn new(config: &RealtimeConfig, router: Peer, chassis: &Chassis) -> Self {
        Self(Arc::new(Shared {
            all: Mutex::default(),
            router,
            chassis: chassis.clone(),
            gateway: chassis::id::uuid(chassis.clock.now()),
            connections: config.connections_per_organization,
            joins: Rate::new(config.joins_per_second, 1),
            linger: Duration::from_millis(config.linger_ms),
        }))
    }

    /// Takes part in an organization's changes; none if it has too many connections already.
    pub(crate) fn lease(&self, organization: &OrganizationId) -> Option<Lease> {
        let mut all = self.0.all.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(used) = all.get(organization) {
            let free = |leases: u32| (leases < self.0.connections).then_some(leases + 1);
            used.leases.fetch_update(Ordering::Relaxed, Ordering::Relaxed, free).ok()?;
            return Some(Lease(used.clone()));
        }
        if all.len() >= HUBS_MAX {
            return None;
        }
        let hub = Arc::new(Hub::new(organization.clone(), &self.0.gateway));
        let used = Arc::new(Used { hub: hub.clone(), leases: AtomicU32::new(1), joins: Pace::default() });
        all.insert(organization.clone(), used.clone());
        metrics::gauge!("realtime_hubs").increment(1.0);
        self.keep(used.clone(), feed::run(hub, self.0.router.clone()));
        Some(Lease(used))
    }

    /// Whether one more channel may be joined now.
    pub(crate) fn admits(&self, lease: &Lease, now: Timestamp) -> bool {
        lease.0.joins.take(self.0.joins, now)
    }

    /// Keeps a hub fed until nobody has used it for a while, or the process stops.
    fn keep(&self, used: Arc<Used>, feed: impl Future<Output = ()> + Send + 'static) {
        let kept = Kept { hubs: self.clone(), used };
        self.0.chassis.tasks.spawn("realtime.feed", async move {
            let stopping = kept.hubs.0.chassis.tasks.stopping();
            tokio::select! {
                () = feed => {}
                () = kept.hubs.unused(&kept.used) => {}
                () = stopping.cancelled() => {}
            }
        });
    }

    async fn unused(&self, used: &Used) {
        let mut was_unused = false;
        loop {
            tokio::time::sleep(self.0.linger).await;
            let mut all = self.0.all.lock().unwrap_or_else(PoisonError::into_inner);
            let is_unused = used.leases.load(Ordering::Relaxed) == 0;
            if is_unused && was_unused {
                // Under the same lock, so that nobody takes it meanwhile.
                all.remove(&used.hub.organization);
                return;
            }
            was_unused = is_unused;
        }
    }
}

impl Lease {
    pub(crate) fn hub(&self) -> &Arc<Hub> {
        &self.0.hub
    }
}

impl Drop for Kept {
    fn drop(&mut self) {
        metrics::gauge!("realtime_hubs").decrement(1.0);
        let shared = &self.hubs.0;
        let mut all = shared.all.lock().unwrap_or_else(PoisonError::into_inner);
        let organization = &self.used.hub.organization;
        if all.get(organization).is_some_and(|used| Arc::ptr_eq(used, &self.used)) {
            all.remove(organization);
        }
        drop(all);
        // A process that stops closes its sockets itself, each at its own time.
        if !shared.chassis.tasks.stopping().is_cancelled() {
            self.used.hub.close();
        }
    }
}

impl Drop for Lease {
    fn drop(&mut self) {
        self.0.leases.fetch_sub(1, Ordering::Relaxed);
    }
}

#[cfg(test)]
impl Hubs {
    /// A hub that `feed` feeds, in the place of any other of its organization.
    pub(crate) fn fed_by(
        &self,
        organization: &OrganizationId,
        feed: impl Future<Output = ()> + Send + 'static,
    ) -> Arc<Hub> {
        let hub = Arc::new(Hub::new(organization.clone(), &self.0.gateway));
        let used = Arc::new(Used { hub: hub.clone(), leases: AtomicU32::new(0), joins: Pace::default() });
        self.0.all.lock().expect("no panic").insert(organization.clone(), used.clone());
        self.keep(used, feed);
        hub
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const LINGER: Duration = Duration::from_secs(30);

    fn hubs() -> (Hubs, OrganizationId) {
        let (chassis, config) = (Chassis::for_test(), RealtimeConfig::default());
        let nowhere = Peer::new("gateway", "http://127.0.0.1:1", &chassis).expect("an address");
        (Hubs::new(&config, nowhere, &chassis), OrganizationId::parse("org").expect("well-formed"))
    }

    #[tokio::test(start_paused = true)]
    async fn a_hub_lingers_after_its_last_user_and_then_ends_and_the_next_one_finds_another() {
        let (hubs, organization) = hubs();
        let first = hubs.lease(&organization).expect("room").hub().clone();
        tokio::time::sleep(LINGER / 2).await;
        let lease = hubs.lease(&organization).expect("room");
        assert!(Arc::ptr_eq(lease.hub(), &first), "it lingers");
        tokio::time::sleep(LINGER * 5).await;
        assert!(!first.is_closed(), "it is used");
        drop(lease);
        tokio::time::sleep(LINGER * 3).await;
        assert!(first.is_closed() && hubs.0.all.lock().expect("no panic").is_empty());
        assert!(!Arc::ptr_eq(hubs.lease(&organization).expect("room").hub(), &first));
    }

    #[tokio::test]
    async fn a_hub_whose_feed_panics_is_closed_and_the_next_one_to_come_finds_another() {
        let (hubs, organization) = hubs();
        let broken = hubs.fed_by(&organization, async { panic!("on purpose") });
        broken.set_live(true);
        let lease = hubs.lease(&organization).expect("room");
        while !broken.is_closed() {
            tokio::task::yield_now().await;
        }
        assert!(!broken.is_live(Duration::from_secs(60)).await, "whoever waits is told at once");
        let other = hubs.lease(&organization).expect("room");
        assert!(!Arc::ptr_eq(other.hub(), &broken) && !other.hub().is_closed());
        drop(lease);
        assert!(!other.hub().is_closed(), "the earlier one's end is not its own");
    }

    #[tokio::test]
    async fn a_stop_closes_no_hub() {
        let (hubs, organization) = hubs();
        let lease = hubs.lease(&organization).expect("room");
        assert!(hubs.0.chassis.tasks.stop(Duration::from_secs(5)).await);
        assert!(!lease.hub().is_closed(), "its sockets end by themselves, each at its time");
    }
}
