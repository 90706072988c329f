//! A running `wedsync` under load, and the question after every fault: has all that was acknowledged arrived?
//!
//! `load` publishes and remembers what was acknowledged, `catcher` receives and remembers what arrived, `conserve` holds
//! both against the rows. What happens in between is told by the other files here and, where it takes a build or rights
//! that a test doesn't have, by the benches.

mod catcher;
pub(crate) mod chance;
mod conserve;
pub(crate) mod database;
pub(crate) mod kill;
mod load;
pub(crate) mod receiver;
pub(crate) mod standstill;
pub(crate) mod stop;
mod verdict;

use std::{
    collections::{BTreeMap, BTreeSet},
    fmt::Write as _,
    time::{Duration, Instant},
};

use proto::{
    common::v1::Position,
    router::v1::{ListEventsRequest, event_service_client::EventServiceClient},
    vendorsync::v1::{
        CreateEndpointRequest, DeleteEndpointRequest, Endpoint, endpoint_service_client::EndpointServiceClient,
    },
};
use serde::Serialize;
use tokio::time::{sleep, timeout};

pub(crate) use self::{
    catcher::{Catcher, Mood},
    chance::Chance,
    load::{Item, Load},
    verdict::Verdict,
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
    /// When something was broken on purpose, from when until when.
    faults: Vec<(Instant, Instant)>,
}

/// One endpoint and what stands behind it.
pub(crate) struct Target {
    pub(crate) catcher: Catcher,
    id: String,
    pattern: &'static str,
    ordered: bool,
}

/// What came of everything that was acknowledged.
#[derive(Debug, Default, Serialize)]
pub(crate) struct Outcome {
    /// Events.
    pub(crate) acknowledged: usize,
    /// Deliveries that they call for.
    pub(crate) deliveries: usize,
    /// Publishers that were refused for good, or never answered.
    pub(crate) refused: usize,
    /// Events that didn't arrive everywhere.
    pub(crate) lost: usize,
    /// Requests for a delivery that had arrived before.
    pub(crate) repeated: u64,
    /// Of those, with another webhook-id or another body.
    pub(crate) altered: u64,
    /// Requests whose signature is wrong.
    pub(crate) unverified: u64,
    /// First arrivals at the ordered endpoint that came before their predecessor in the log.
    pub(crate) out_of_order: u64,
    /// Of the repeats, those that nothing excuses: their delivery was not under way when something broke.
    pub(crate) unprovoked: u64,
    /// Deliveries that were under way when something broke: repeats can't be more.
    pub(crate) in_flight: u64,
    /// Delivery rows that are too many, too few or not delivered.
    pub(crate) rows_amiss: u64,
    /// Rows that say delivered of what the receiver never got, or got under another id.
    pub(crate) unreceived: u64,
    /// Rows that should have been tried long ago.
    pub(crate) overdue: u64,
    /// What is missing where, for people.
    #[serde(skip_serializing_if = "String::is_empty")]
    pub(crate) details: String,
}

impl Outcome {
    /// Whether every promise was kept.
    pub(crate) fn is_good(&self) -> bool {
        let Self {
            refused, lost, altered, unverified, out_of_order, unprovoked, rows_amiss, unreceived, overdue, ..
        } = self;
        refused + lost == 0 && altered + unverified + out_of_order + unprovoked + rows_amiss + unreceived + overdue == 0
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
        Self { system, key, targets, load, faults: Vec::new() }
    }

    /// kill -9.
    pub(crate) async fn kill(&mut self) {
        self.system.kill().await;
        self.broken_since(Instant::now());
    }

    /// Something was broken from `from` until now: what was under way then may come twice.
    pub(crate) fn broken_since(&mut self, from: Instant) {
        self.faults.push((from, Instant::now()));
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

    /// From `started` until the first delivery since [`World::mark`].
    pub(crate) async fn recovery_ms(&self, started: Instant) -> u64 {
        kill::millis(self.first_arrival().await.saturating_duration_since(started))
    }

    /// Waits until this many more events are acknowledged.
    pub(crate) async fn acknowledges(&self, more: usize) {
        let (began, before) = (Instant::now(), self.load.acknowledged().len());
        while self.load.acknowledged().len() < before + more {
            assert!(began.elapsed() < SILENCE, "publishing stands still: {}", self.state());
            sleep(Duration::from_millis(10)).await;
        }
    }

    /// What is known when something went wrong.
    fn state(&self) -> String {
        let tallies: Vec<_> = self.targets.iter().map(|target| (target.pattern, target.catcher.tally())).collect();
        format!("{} acknowledged, {tallies:?}\n{}", self.load.acknowledged().len(), self.system.log())
    }

    /// Stops publishing once all is acknowledged, waits until it has arrived, and says what hasn't.
    pub(crate) async fn settle(&mut self) -> Outcome {
        let refused = self.load.finish().await;
        let acknowledged = self.load.acknowledged();
        self.arrive(&acknowledged).await;
        let mut outcome = Outcome {
            acknowledged: acknowledged.len(),
            refused: refused.len(),
            details: refused.join("; "),
            ..Outcome::default()
        };
        let (log, mut lost) = (self.log().await, BTreeSet::new());
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
            if target.ordered {
                outcome.out_of_order += conserve::out_of_order(target, &log);
            }
            outcome.unprovoked += conserve::unprovoked(target, &self.faults);
            outcome.in_flight += conserve::in_flight(target, &self.faults);
            let rows = conserve::rows(&self.system, &self.key, target, &acknowledged).await;
            outcome.rows_amiss += rows.amiss();
            outcome.unreceived += rows.unreceived;
            outcome.overdue += rows.overdue;
            if !rows.is_good() {
                let _ = write!(outcome.details, "rows of `{}`: {rows:?}; ", target.pattern);
            }
        }
        outcome.lost = lost.len();
        if !lost.is_empty() {
            let unlogged = lost.iter().filter(|item| !log.contains_key(item)).count();
            let _ = write!(outcome.details, "{unlogged} of them are not even in the log");
        }
        if !outcome.is_good() {
            self.system.keep();
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

    /// Everything that the log holds, and where.
    pub(crate) async fn log(&self) -> BTreeMap<Item, u64> {
        let mut events = EventServiceClient::new(client(self.system.addresses.router, &self.key));
        let mut items = BTreeMap::new();
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
            items.extend(page.events.iter().filter_map(|logged| {
                let event = logged.event.as_ref()?;
                Some((Item::of(&event.id)?, event.position.as_ref()?.sequence))
            }));
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
        let catcher = Catcher::start().await;
        let endpoint = Endpoint { url: catcher.url(), ..endpoint(pattern, ordered) };
        let (id, secret) = create(system, key, endpoint).await;
        catcher.believe(&secret);
        Self { catcher, id, pattern, ordered }
    }

    /// Waits for the first delivery since [`Catcher::mark`].
    pub(crate) async fn arrival(&self) -> Instant {
        let began = Instant::now();
        loop {
            if let Some(first) = self.catcher.first_since_mark() {
                return first;
            }
            assert!(began.elapsed() < SILENCE, "nothing is delivered to `{}` for {SILENCE:?}", self.pattern);
            sleep(Duration::from_millis(5)).await;
        }
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
