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
        let (hubs, watched) = (self.clone(), used.clone());
        self.0.chassis.tasks.spawn("realtime.feed", async move { hubs.keep(hub, watched).await });
        Some(Lease(used))
    }

    /// Whether one more channel may be joined now.
    pub(crate) fn admits(&self, lease: &Lease, now: Timestamp) -> bool {
        lease.0.joins.take(self.0.joins, now)
    }

    /// Feeds a hub until nobody has used it for a while, or the process stops.
    async fn keep(&self, hub: Arc<Hub>, used: Arc<Used>) {
        let stopping = self.0.chassis.tasks.stopping();
        tokio::select! {
            () = feed::run(hub, self.0.router.clone()) => {}
            () = self.unused(&used) => {}
            () = stopping.cancelled() => {}
        }
    }

    async fn unused(&self, used: &Used) {
        let mut was_unused = false;
        loop {
            tokio::time::sleep(self.0.linger).await;
            let mut all = self.0.all.lock().unwrap_or_else(PoisonError::into_inner);
            let is_unused = used.leases.load(Ordering::Relaxed) == 0;
            if is_unused && was_unused {
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

impl Drop for Lease {
    fn drop(&mut self) {
        self.0.leases.fetch_sub(1, Ordering::Relaxed);
    }
}
