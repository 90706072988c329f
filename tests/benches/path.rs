//! The way of an event from its publish to its arrival at webhook endpoints, measured from outside on one store: how
//! many a second, how long each takes, and what it costs.
//!
//! Everything runs on one machine: the system under test, its store, the publisher and the receiver share its cores.

use std::time::Instant;

use super::{
    figure::{Figure, percentile},
    machine,
    publisher::{self, Published, TO_NOBODY, TO_WEBHOOKS},
    sink::Sink,
};
use crate::{
    crash::{self, endpoint, name},
    harness::{Engine, Key, Wedsync},
};

/// Events of one measured run to one endpoint, and to ten.
const TO_ONE: usize = 150_000;
const TO_TEN: usize = 30_000;
const IN_ORDER: usize = 50_000;
/// How long each rate of the open loop is held, in seconds, and events before it that aren't counted.
const HELD: usize = 20;
const WARM: usize = 500;

/// What is measured, by the names that `--only` takes.
const LATENCIES: [(&str, u32, f64); 3] =
    [("latency_200", 200, 2.5), ("latency_500", 500, 2.5), ("latency_2000", 2_000, 15.0)];

/// The others, those first that need a long log.
const ON_A_LONG_LOG: [&str; 5] = ["throughput_1", "throughput_10", "throughput_ordered", "memory_peak", "start"];
const MEMORY_IDLE: &str = "memory_idle";

/// What is asked for.
#[derive(Debug, Clone)]
pub(crate) struct Wanted {
    /// Figures whose names begin with this; all without one.
    pub(crate) only: Option<String>,
    /// Events in the log before throughput is measured.
    pub(crate) rows: usize,
    /// Events a second, all together, while some endpoints hang.
    pub(crate) rate: u32,
    /// Endpoints of the backlog, and events that wait for each.
    pub(crate) backlog: usize,
    /// Browsers at one gateway.
    pub(crate) sockets: usize,
    /// Notifications that come all at once, and while the process is killed; ten for each person.
    pub(crate) notifications: usize,
}

impl Wanted {
    /// Whether a figure of this name is asked for.
    pub(crate) fn wants(&self, name: &str) -> bool {
        self.only.as_deref().is_none_or(|only| name.starts_with(only))
    }
}

/// A system under test with a tenant of its own.
struct Bench {
    system: Wedsync,
    key: Key,
    engine: Engine,
}

/// Measures on one store; `told` hears of each figure.
pub(crate) async fn run(engine: &Engine, wanted: &Wanted, told: &mut impl FnMut(Figure)) {
    let names = LATENCIES.map(|(name, ..)| name);
    if !names.iter().chain(&ON_A_LONG_LOG).chain(&[MEMORY_IDLE]).any(|name| wanted.wants(name)) {
        return;
    }
    let mut bench = Bench::start(engine).await;
    if wanted.wants(MEMORY_IDLE) {
        told(bench.memory_idle());
    }
    for (name, rate, more) in LATENCIES {
        if wanted.wants(name) {
            bench.latency(name, rate, more).await.into_iter().for_each(&mut *told);
        }
    }
    if ON_A_LONG_LOG.into_iter().any(|name| wanted.wants(name)) {
        let (router, key, rows) = (bench.system.addresses.router, bench.key.clone(), wanted.rows);
        blocking(move || publisher::stream(router, &key, TO_NOBODY, 0..rows)).await;
    }
    if wanted.wants("throughput_1") {
        told(bench.throughput("throughput_1", 1, false, TO_ONE, 0.20).await);
    }
    if wanted.wants("throughput_10") {
        told(bench.throughput("throughput_10", 10, false, TO_TEN, 0.30).await);
    }
    if wanted.wants("throughput_ordered") {
        told(bench.throughput("throughput_ordered", 1, true, IN_ORDER, 0.05).await);
    }
    if wanted.wants("memory_peak") {
        told(bench.memory_peak());
    }
    if wanted.wants("start") {
        told(bench.start_again().await);
    }
}

impl Bench {
    async fn start(engine: &Engine) -> Self {
        let system = Wedsync::start_on(engine, &[("WEDSYNC_ROUTER__PUBLISH_PER_SECOND", "0")]).await;
        let key = system.tenant("Bench").await;
        Self { system, key, engine: engine.clone() }
    }

    fn store(&self) -> &'static str {
        name(&self.engine)
    }

    /// Endpoints for the events that the benches publish, each with a path of the sink's.
    async fn endpoints(&self, sink: &Sink, count: usize, ordered: bool) -> Vec<String> {
        let mut ids = Vec::with_capacity(count);
        for path in 0..count {
            let endpoint =
                proto::vendorsync::v1::Endpoint { url: sink.url(path), ..endpoint("client_list_cache.*", ordered) };
            ids.push(crash::create(&self.system, &self.key, endpoint).await.0);
        }
        ids
    }

    async fn remove(&self, ids: Vec<String>) {
        for id in ids {
            crash::remove(&self.system, &self.key, id).await;
        }
    }

    /// CPU time of the system and of its store, in ms.
    fn cpu_ms(&self) -> f64 {
        let store = match self.engine {
            Engine::Sqlite => 0.0,
            Engine::Postgres(_) => machine::postgres_cpu_ms(),
        };
        machine::cpu_ms(self.system.pid()) + store
    }

    /// Deliveries a second, from the first publish to the last arrival, beside what a bare client posts.
    async fn throughput(&self, name: &str, endpoints: usize, ordered: bool, events: usize, part: f64) -> Figure {
        let sink = Sink::start(endpoints, events);
        let ids = self.endpoints(&sink, endpoints, ordered).await;
        let limit = blocking({
            let sink = sink.clone();
            move || machine::posts_per_second(&sink)
        })
        .await;
        let began = Instant::now();
        let (router, key, type_) = (self.system.addresses.router, self.key.clone(), fresh(TO_WEBHOOKS, name));
        let publishing = blocking(move || publisher::stream(router, &key, type_, 0..events));
        let all = (endpoints * events) as u64;
        let (arrived, ()) = tokio::join!(sink.wait(all), publishing);
        let taken = began.elapsed().as_secs_f64();
        assert!(arrived, "{} of {all} arrived", sink.arrived());
        assert_eq!(sink.repeated(), 0, "nothing comes twice while nothing fails");
        self.remove(ids).await;
        Figure::share(name, self.store(), all as f64 / taken, "deliveries/s", limit, part)
    }

    /// From when an event was due to its arrival, at a steady rate, each by a `Publish` of its own.
    async fn latency(&self, name: &str, rate: u32, more_p99: f64) -> Vec<Figure> {
        let events = rate as usize * HELD + WARM;
        let sink = Sink::start(1, events);
        let ids = self.endpoints(&sink, 1, false).await;
        let folder = self.system.folder().to_owned();
        let (fsync_p50, fsync_p99) = blocking(move || machine::fsync_ms(&folder)).await;
        let (router, key, type_) = (self.system.addresses.router, self.key.clone(), fresh(TO_WEBHOOKS, name));
        let before = self.cpu_ms();
        let published = blocking(move || publisher::paced(router, &key, type_, rate, 0..events)).await;
        assert!(sink.wait(events as u64).await, "{} of {events} arrived", sink.arrived());
        let cpu = (self.cpu_ms() - before) / events as f64;
        self.remove(ids).await;
        let arrival = |published: &Published| {
            let at = sink.at(0, published.number).expect("all have arrived");
            at.saturating_duration_since(published.due).as_secs_f64() * 1e3
        };
        let counted = || published.iter().filter(|published| published.number >= WARM);
        let mut latencies: Vec<f64> = counted().map(arrival).collect();
        latencies.sort_by(f64::total_cmp);
        let mut durable: Vec<f64> = counted().map(|published| published.durable.as_secs_f64() * 1e3).collect();
        durable.sort_by(f64::total_cmp);
        let (store, of) = (self.store(), |percent| percentile(&latencies, percent));
        let mut figures = Vec::new();
        if rate <= 500 {
            figures.push(Figure::above(&format!("{name}_p50"), store, of(50.0), "ms", fsync_p50, 0.8));
        }
        figures.push(Figure::above(&format!("{name}_p99"), store, of(99.0), "ms", fsync_p99, more_p99));
        figures.push(Figure::at_most(&format!("{name}_publish_p99"), store, percentile(&durable, 99.0), "ms", 50.0));
        figures.push(Figure::at_most(&format!("{name}_cpu_per_event"), store, cpu, "ms", 0.5));
        figures
    }

    fn memory_idle(&self) -> Figure {
        let (now, _) = machine::resident_mib(self.system.pid());
        Figure::at_most(MEMORY_IDLE, self.store(), now, "MiB", 40.0)
    }

    fn memory_peak(&self) -> Figure {
        let (_, peak) = machine::resident_mib(self.system.pid());
        Figure::at_most("memory_peak", self.store(), peak, "MiB", 150.0)
    }

    /// From the start of the process until it calls itself ready, on a log of a million rows.
    async fn start_again(&mut self) -> Figure {
        self.system.kill().await;
        let began = Instant::now();
        self.system.restart().await;
        Figure::at_most("start", self.store(), began.elapsed().as_secs_f64(), "s", 5.0)
    }
}

/// A type of the same family for each run: an event's id is made of its type and its number.
pub(crate) fn fresh(type_: &str, run: &str) -> &'static str {
    format!("{type_}_{run}").leak()
}

pub(crate) async fn blocking<T: Send + 'static>(work: impl FnOnce() -> T + Send + 'static) -> T {
    tokio::task::spawn_blocking(work).await.expect("it ends by itself")
}
