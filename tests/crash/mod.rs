//! A running `wedsync` under load, and the question after every fault: has all that was acknowledged arrived?
//!
//! `load` publishes and remembers what was acknowledged, `catcher` receives and remembers what arrived; this compares
//! the two. What happens in between (kill -9, a power cut) is told by `kill` here and by the benches.

mod catcher;
mod chance;
pub(crate) mod kill;
mod load;

use std::{
    collections::BTreeSet,
    fmt::Write as _,
    time::{Duration, Instant},
};

use proto::{
    common::v1::Position,
    router::v1::{ListEventsRequest, event_service_client::EventServiceClient},
    vendorsync::v1::{
        CreateEndpointRequest, DeleteEndpointRequest, Endpoint, GetEndpointStatisticsRequest,
        endpoint_service_client::EndpointServiceClient,
    },
};
use serde::Serialize;
use tokio::time::{sleep, timeout};

pub(crate) use self::{
    catcher::Catcher,
    chance::Chance,
    load::{Item, Load},
};
use crate::harness::{Engine, Key, Wedsync, client};

/// How long nothing at all may arrive before what is missing counts as lost.
const SILENCE: Duration = Duration::from_secs(60);
/// Event types that endpoints ask for, and whether they ask for order.
const ENDPOINTS: [(&str, bool); 3] = [("*", false), ("client.*", false), (load::ORDERED, true)];
/// Far above any load here: the limit of 100 a minute would hold everything back.
const RATE_LIMIT: u32 = 1_000_000;

/// A system, its endpoints' receivers and its publishers.
pub(crate) struct World {
    pub(crate) system: Wedsync,
    pub(crate) key: Key,
    pub(crate) targets: Vec<Target>,
    pub(crate) load: Load,
}

/// One endpoint and what stands behind it.
pub(crate) struct Target {
    pub(crate) catcher: Catcher,
    id: String,
    pattern: &'static str,
}

/// What came of everything that was acknowledged.
#[derive(Debug, Default, Serialize)]
pub(crate) struct Outcome {
    /// Events.
    pub(crate) acknowledged: usize,
    /// Deliveries that they call for.
    pub(crate) deliveries: usize,
    /// Events that didn't arrive everywhere.
    pub(crate) lost: usize,
    /// Requests for a delivery that had arrived before.
    pub(crate) repeated: u64,
    /// Of those, with another webhook-id or another body.
    pub(crate) altered: u64,
    /// Requests whose signature is wrong.
    pub(crate) unverified: u64,
    /// First arrivals at the ordered endpoint that came before their predecessor.
    pub(crate) out_of_order: u64,
    /// Delivery rows that are too many, too few or not delivered.
    pub(crate) rows_amiss: u64,
    /// What is missing where, for people.
    #[serde(skip_serializing_if = "String::is_empty")]
    pub(crate) details: String,
}

impl Outcome {
    /// Whether every promise was kept.
    pub(crate) fn is_good(&self) -> bool {
        let Self { lost, altered, unverified, out_of_order, rows_amiss, .. } = self;
        *lost == 0 && altered + unverified + out_of_order + rows_amiss == 0
    }
}

impl World {
    /// Sets a fresh system up with its endpoints, and starts to publish `rate` events a second.
    pub(crate) async fn start(system: Wedsync, rate: u32) -> Self {
        let key = system.tenant("Crash").await;
        let mut targets = Vec::new();
        for (pattern, ordered) in ENDPOINTS {
            targets.push(Target::open(&system, &key, pattern, ordered).await);
        }
        let load = Load::start(system.addresses.router, &key, rate);
        Self { system, key, targets, load }
    }

    /// Forgets when something last arrived.
    pub(crate) fn mark(&self) {
        self.targets.iter().for_each(|target| target.catcher.mark());
    }

    /// Waits for the first delivery since [`World::mark`].
    pub(crate) async fn first_arrival(&self) -> Instant {
        let began = Instant::now();
        loop {
            if let Some(first) = self.targets.iter().filter_map(|target| target.catcher.first_since_mark()).min() {
                return first;
            }
            let known = || self.state();
            assert!(began.elapsed() < SILENCE, "nothing is delivered for {SILENCE:?} after the start: {}", known());
            sleep(Duration::from_millis(5)).await;
        }
    }

    /// What is known when something went wrong.
    fn state(&self) -> String {
        let tallies: Vec<_> = self.targets.iter().map(|target| (target.pattern, target.catcher.tally())).collect();
        format!("{} acknowledged, {tallies:?}\n{}", self.load.acknowledged().len(), self.system.log())
    }

    /// Stops publishing once all is acknowledged, waits until it has arrived, and says what hasn't.
    pub(crate) async fn settle(&mut self) -> Outcome {
        self.load.finish().await;
        let acknowledged = self.load.acknowledged();
        self.arrive(&acknowledged).await;
        let mut outcome = Outcome { acknowledged: acknowledged.len(), ..Outcome::default() };
        let mut lost = BTreeSet::new();
        for target in &self.targets {
            let missing = target.missing(&acknowledged);
            if !missing.is_empty() {
                let some = &missing[..missing.len().min(5)];
                let _ = write!(outcome.details, "{} of `{}` are missing: {some:?}; ", missing.len(), target.pattern);
            }
            lost.extend(missing);
            let deliveries = acknowledged.iter().filter(|item| target.wants(**item)).count();
            let tally = target.catcher.tally();
            outcome.deliveries += deliveries;
            outcome.repeated += tally.repeated;
            outcome.altered += tally.altered;
            outcome.unverified += tally.unverified;
            outcome.out_of_order += tally.out_of_order;
            outcome.rows_amiss += self.rows_amiss(target, deliveries).await;
        }
        outcome.lost = lost.len();
        if !lost.is_empty() {
            let logged = self.logged().await;
            let unlogged = lost.iter().filter(|item| !logged.contains(item)).count();
            let _ = write!(outcome.details, "{unlogged} of them are not even in the log");
        }
        outcome
    }

    /// Waits until all of `items` has arrived everywhere, as long as anything arrives.
    async fn arrive(&self, items: &BTreeSet<Item>) {
        let mut left = usize::MAX;
        let mut progress = Instant::now();
        while left > 0 && progress.elapsed() < SILENCE {
            let missing = |target: &Target| target.missing(items).len();
            let now = self.targets.iter().map(missing).sum();
            if now < left {
                (left, progress) = (now, Instant::now());
            }
            if left > 0 {
                sleep(Duration::from_millis(100)).await;
            }
        }
    }

    /// Each event has exactly one row for the endpoint, and that one says that it was delivered. The commit of the last
    /// ones may still be under way.
    async fn rows_amiss(&self, target: &Target, expected: usize) -> u64 {
        let mut endpoints = EndpointServiceClient::new(client(self.system.addresses.vendor_sync, &self.key));
        let began = Instant::now();
        loop {
            let request = GetEndpointStatisticsRequest { id: target.id.clone(), since: None };
            let counts = endpoints.get_endpoint_statistics(request).await.expect("statistics").into_inner();
            let others = counts.waiting + counts.dead + counts.cancelled;
            let amiss = counts.delivered.abs_diff(expected as u64) + others;
            if amiss == 0 || began.elapsed() > Duration::from_secs(10) {
                return amiss;
            }
            sleep(Duration::from_millis(50)).await;
        }
    }

    /// Everything that the log holds.
    pub(crate) async fn logged(&self) -> BTreeSet<Item> {
        let mut events = EventServiceClient::new(client(self.system.addresses.router, &self.key));
        let mut items = BTreeSet::new();
        let mut page_token = String::new();
        loop {
            let request = ListEventsRequest {
                page_size: 500,
                page_token,
                since: None::<Position>,
                types: vec!["client.*".to_owned()],
                organization_id: String::new(),
            };
            let page = timeout(Duration::from_secs(30), events.list_events(request)).await.expect("a page in time");
            let page = page.expect("the log can be read").into_inner();
            items.extend(page.events.iter().filter_map(|logged| Item::of(&logged.event.as_ref()?.id)));
            page_token = page.next_page_token;
            if page_token.is_empty() {
                return items;
            }
        }
    }
}

impl Target {
    /// An endpoint of the key's organization for events of `pattern`, received here.
    pub(crate) async fn open(system: &Wedsync, key: &Key, pattern: &'static str, ordered: bool) -> Self {
        let catcher = Catcher::start(ordered).await;
        let endpoint = Endpoint { url: catcher.url(), ..endpoint(pattern, ordered) };
        let (id, secret) = create(system, key, endpoint).await;
        catcher.believe(&secret);
        Self { catcher, id, pattern }
    }

    fn missing(&self, items: &BTreeSet<Item>) -> Vec<Item> {
        self.catcher.missing(items.iter().filter(|item| self.wants(**item)))
    }

    fn wants(&self, item: Item) -> bool {
        self.pattern.ends_with('*') || self.pattern == item.event_type()
    }
}

/// An endpoint that nothing holds back; it lacks its URL.
pub(crate) fn endpoint(pattern: &str, ordered: bool) -> Endpoint {
    let event_types = vec![pattern.to_owned()];
    Endpoint { event_types, ordered, rate_limit_per_minute: RATE_LIMIT, ..Endpoint::default() }
}

/// Makes an endpoint, and gives its id and secret.
pub(crate) async fn create(system: &Wedsync, key: &Key, endpoint: Endpoint) -> (String, String) {
    let mut endpoints = EndpointServiceClient::new(client(system.addresses.vendor_sync, key));
    let request = CreateEndpointRequest { endpoint: Some(endpoint) };
    let created = endpoints.create_endpoint(request).await.expect("an endpoint").into_inner();
    (created.endpoint.expect("the answer holds it").id, created.secret)
}

/// Removes an endpoint.
pub(crate) async fn remove(system: &Wedsync, key: &Key, id: String) {
    let mut endpoints = EndpointServiceClient::new(client(system.addresses.vendor_sync, key));
    endpoints.delete_endpoint(DeleteEndpointRequest { id }).await.expect("it is there");
}

/// How an engine is called in what is printed.
pub(crate) fn name(engine: &Engine) -> &'static str {
    match engine {
        Engine::Sqlite => "sqlite",
        Engine::Postgres(_) => "postgres",
    }
}
