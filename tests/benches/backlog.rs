//! A great many waiting deliveries: what publishing, memory and a start cost beside them, how fast they drain once their
//! endpoints are resumed, and whether an emergency overtakes them.

use std::time::{Duration, Instant};

use futures_util::{StreamExt as _, stream};
use proto::{
    router::v1::{PublishRequest, event_service_client::EventServiceClient},
    vendorsync::v1::{
        Endpoint, GetEndpointStatisticsRequest, PauseEndpointRequest, ResumeEndpointRequest,
        endpoint_service_client::EndpointServiceClient,
    },
};
use tokio::time::sleep;
use tonic::{service::interceptor::InterceptedService, transport::Channel};

use super::{
    figure::{Figure, percentile},
    machine,
    path::{Wanted, blocking, fresh},
    publisher::{self, TO_WEBHOOKS},
    sink::Sink,
};
use crate::{
    crash::{create, endpoint, name},
    harness::{Engine, Key, Wedsync, client},
};

const FIGURES: [&str; 6] =
    ["backlog_publish_p99", "backlog_memory", "backlog_drain", "backlog_critical", "backlog", "start_backlog"];
/// Calls under way while endpoints are made, paused and resumed.
const AT_ONCE: usize = 16;
/// How publishing is measured: so many a second, for ten seconds, and events before those that aren't counted.
const RATE: u32 = 200;
const EVENTS: usize = 10 * RATE as usize;
const WARM: usize = 200;
/// The part of the drain that is measured.
const DRAINING: Duration = Duration::from_secs(30);
/// How long nothing at all may happen before the run is given up.
const PATIENCE: Duration = Duration::from_secs(60);
/// It overtakes everything that waits.
const EMERGENCY: &str = "emergency.raised";

/// Measures on one store; `told` hears of each figure.
pub(crate) async fn run(engine: &Engine, wanted: &Wanted, told: &mut impl FnMut(Figure)) {
    if !FIGURES.iter().any(|name| wanted.wants(name)) {
        return;
    }
    let store = name(engine);
    let mut backlog = Backlog::start(engine, wanted.backlog).await;
    let empty = backlog.publish_p99("empty").await;
    backlog.fill().await;
    let full = backlog.publish_p99("full").await;
    told(Figure::compared(
        "backlog_publish_p99",
        store,
        full,
        "ms",
        empty,
        empty * 1.5 + 1.0,
        "1.5 x without, and 1 ms",
    ));

    let filled = machine::resident_mib(backlog.system.pid()).1;
    told(Figure::at_most("start_backlog", store, backlog.start_again().await.as_secs_f64(), "s", 5.0));

    let began = Instant::now();
    let draining = async {
        backlog.resume().await;
        backlog.critical().await
    };
    let (per_second, critical) = tokio::join!(backlog.drained(began), draining);
    told(Figure::at_least("backlog_drain", store, per_second, "deliveries/s", 3_000.0));
    told(Figure::at_most("backlog_critical", store, critical.as_secs_f64(), "s", 2.0));
    let drained = machine::resident_mib(backlog.system.pid()).1;
    told(Figure::at_most("backlog_memory", store, filled.max(drained), "MiB", 300.0));
}

/// A system with as many paused endpoints as events that wait for each.
struct Backlog {
    system: Wedsync,
    key: Key,
    sink: Sink,
    /// Endpoints, in the order of their paths.
    ids: Vec<String>,
    size: usize,
    type_: &'static str,
}

impl Backlog {
    async fn start(engine: &Engine, size: usize) -> Self {
        let system = Wedsync::start_on(engine, &[("WEDSYNC_ROUTER__PUBLISH_PER_SECOND", "0")]).await;
        let key = system.tenant("Backlog").await;
        // One number more, for the emergency.
        let sink = Sink::start(size, size + 1);
        let type_ = fresh(TO_WEBHOOKS, "backlog");
        let paused = |path: usize| {
            let event_types = vec![type_.to_owned(), EMERGENCY.to_owned()];
            let endpoint = Endpoint { url: sink.url(path), event_types, ..endpoint(type_, false) };
            let (system, key) = (&system, &key);
            async move {
                let id = create(system, key, endpoint).await.0;
                let request = PauseEndpointRequest { id: id.clone() };
                endpoints(system, key).pause_endpoint(request).await.expect("it is there");
                id
            }
        };
        let ids = stream::iter(0..size).map(paused).buffered(AT_ONCE).collect().await;
        Self { system, key, sink, ids, size, type_ }
    }

    /// How long a publish takes that no endpoint here wants, in ms.
    async fn publish_p99(&self, run: &str) -> f64 {
        let (router, key) = (self.system.addresses.router, self.key.clone());
        let type_ = fresh(TO_WEBHOOKS, run);
        let published = blocking(move || publisher::paced(router, &key, type_, RATE, 0..EVENTS + WARM)).await;
        let counted = published.iter().filter(|published| published.number >= WARM);
        let mut durable: Vec<f64> = counted.map(|published| published.durable.as_secs_f64() * 1e3).collect();
        durable.sort_by(f64::total_cmp);
        percentile(&durable, 99.0)
    }

    /// Publishes the events and waits until each of them waits for every endpoint.
    async fn fill(&self) {
        let (router, key, type_, events) = (self.system.addresses.router, self.key.clone(), self.type_, self.size);
        blocking(move || publisher::stream(router, &key, type_, 0..events)).await;
        let mut endpoints = endpoints(&self.system, &self.key);
        for id in &self.ids {
            let (mut seen, mut since) = (0, Instant::now());
            while seen < events as u64 {
                let request = GetEndpointStatisticsRequest { id: id.clone(), since: None };
                let waiting =
                    endpoints.get_endpoint_statistics(request).await.expect("statistics").into_inner().waiting;
                if waiting > seen {
                    (seen, since) = (waiting, Instant::now());
                } else {
                    sleep(Duration::from_millis(200)).await;
                }
                assert!(since.elapsed() < PATIENCE, "{seen} of {events} wait for an endpoint, and no more come");
            }
        }
    }

    /// From the start of the process until it calls itself ready.
    async fn start_again(&mut self) -> Duration {
        self.system.kill().await;
        let began = Instant::now();
        self.system.restart().await;
        began.elapsed()
    }

    async fn resume(&self) {
        let resume = |id: &String| {
            let request = ResumeEndpointRequest { id: id.clone() };
            async move { endpoints(&self.system, &self.key).resume_endpoint(request).await.expect("it is there") }
        };
        stream::iter(&self.ids).map(resume).buffer_unordered(AT_ONCE).for_each(|_| async {}).await;
    }

    /// Deliveries a second since `began`.
    async fn drained(&self, began: Instant) -> f64 {
        let all = (self.size * self.size) as u64;
        while self.sink.arrived() < all && began.elapsed() < DRAINING {
            sleep(Duration::from_millis(5)).await;
        }
        self.sink.arrived() as f64 / began.elapsed().as_secs_f64()
    }

    /// From the publish of an emergency to its last arrival, or until the run is given up.
    async fn critical(&self) -> Duration {
        let event = publisher::event(EMERGENCY, self.size);
        let mut events = EventServiceClient::new(client(self.system.addresses.router, &self.key));
        let began = Instant::now();
        events.publish(PublishRequest { event: Some(event) }).await.expect("it is taken");
        while began.elapsed() < PATIENCE {
            let arrivals = (0..self.size).map(|path| self.sink.at(path, self.size));
            if let Some(arrivals) = arrivals.collect::<Option<Vec<_>>>() {
                return arrivals.into_iter().max().map_or(Duration::ZERO, |last| last - began);
            }
            sleep(Duration::from_millis(20)).await;
        }
        began.elapsed()
    }
}

fn endpoints(system: &Wedsync, key: &Key) -> EndpointServiceClient<InterceptedService<Channel, Key>> {
    EndpointServiceClient::new(client(system.addresses.vendor_sync, key))
}
