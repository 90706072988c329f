//! `isolation`: how long an event takes to a healthy endpoint alone, and beside one that accepts and never answers.
//!
//! Open loop: events are published on a fixed schedule whatever the system does, and latency counts from the moment
//! that an event was due, so that a stall is seen in full. Alone is measured before and after, since a machine has its moods.

use std::{
    net::SocketAddr,
    time::{Duration, Instant},
};

use clap::Args;
use proto::{
    router::v1::{PublishStreamRequest, event_service_client::EventServiceClient},
    vendorsync::v1::Endpoint,
};
use serde::Serialize;
use tokio::{
    net::TcpListener,
    sync::mpsc,
    task::JoinSet,
    time::{MissedTickBehavior, interval, sleep},
};
use tokio_stream::wrappers::ReceiverStream;

use crate::{
    crash::{Item, Target, create, endpoint, remove},
    figure::percentile,
    harness::{Key, PATIENCE, Wedsync, client},
    report::print,
};

/// What both endpoints get.
const PATTERN: &str = "client.*";
/// How much slower the healthy one's p95 may be beside the hanging one.
const FACTOR: f64 = 1.5;
/// What a machine's own noise may add to it.
const SLACK_MS: f64 = 1.0;
/// The consumer's stream stalls when nothing arrives for so long.
const STALL: Duration = Duration::from_secs(2);

#[derive(Debug, Args)]
pub(crate) struct Isolation {
    /// How long each of the two parts is measured.
    #[arg(long, default_value_t = 60)]
    seconds: u32,
    /// Events a second.
    #[arg(long, default_value_t = 100)]
    rate: u32,
}

impl Default for Isolation {
    fn default() -> Self {
        Self { seconds: 60, rate: 100 }
    }
}

/// Latencies from due to arrival, and the longest time without an arrival.
#[derive(Debug, Serialize)]
struct Measured {
    part: &'static str,
    events: usize,
    arrived: usize,
    p50_ms: f64,
    p95_ms: f64,
    p99_ms: f64,
    longest_ms: f64,
    longest_gap_ms: f64,
}

#[derive(Debug, Serialize)]
struct Verdict {
    part: &'static str,
    seconds: u32,
    rate: u32,
    /// Connections that the hanging endpoint holds or held.
    held: u64,
    p95_ratio: f64,
    allowed_p95_ms: f64,
    slack_ms: f64,
    within_bound: bool,
    flowing: bool,
    complete: bool,
}

impl Isolation {
    pub(crate) async fn run(self) -> bool {
        let system = Wedsync::start().await;
        let key = system.tenant("Isolation").await;
        let healthy = Target::open(&system, &key, PATTERN, false).await;
        let mut publisher = Publisher { system: &system, key: &key, rate: self.rate, part: 0 };
        publisher.publish(3).await; // Connections open, caches fill.

        let mut hanging = Hanging::start().await;
        let (mut alone, mut beside) = (Part::default(), Part::default());
        alone.take(&healthy, &publisher.publish(self.seconds / 2).await).await;
        let id = hanging.join(&system, &key, PATTERN).await;
        beside.take(&healthy, &publisher.publish(self.seconds).await).await;
        remove(&system, &key, id).await;
        alone.take(&healthy, &publisher.publish(self.seconds / 2).await).await;
        let (alone, beside) = (alone.measured("alone"), beside.measured("beside"));
        print(&alone);
        print(&beside);
        let verdict = self.judge(&alone, &beside, hanging.held());
        print(&verdict);
        verdict.within_bound && verdict.flowing && verdict.complete
    }

    fn judge(&self, alone: &Measured, beside: &Measured, held: u64) -> Verdict {
        let allowed_p95_ms = alone.p95_ms * FACTOR + SLACK_MS;
        assert!(held > 0, "nothing was ever sent to the hanging endpoint: the run measured nothing");
        Verdict {
            part: "verdict",
            seconds: self.seconds,
            rate: self.rate,
            held,
            p95_ratio: beside.p95_ms / alone.p95_ms,
            allowed_p95_ms,
            slack_ms: SLACK_MS,
            within_bound: beside.p95_ms <= allowed_p95_ms,
            flowing: beside.longest_gap_ms < ms(STALL),
            complete: alone.arrived == alone.events && beside.arrived == beside.events,
        }
    }
}

/// Publishes on a schedule; each part under numbers of its own.
struct Publisher<'a> {
    system: &'a Wedsync,
    key: &'a Key,
    rate: u32,
    part: u32,
}

impl Publisher<'_> {
    /// Gives the events and when each was due.
    async fn publish(&mut self, seconds: u32) -> Vec<(Item, Instant)> {
        self.part += 1;
        let mut events = EventServiceClient::new(client(self.system.addresses.router, self.key));
        let (requests, outgoing) = mpsc::channel(1_024);
        let mut answers = events.publish_stream(ReceiverStream::new(outgoing)).await.expect("a stream").into_inner();
        let mut acknowledging = JoinSet::new();
        acknowledging.spawn(async move {
            let mut acknowledged = 0u32;
            while let Some(answer) = answers.message().await.expect("the stream goes on") {
                acknowledged += u32::from(answer.result.is_some());
            }
            acknowledged
        });
        let mut pace = interval(Duration::from_secs(1) / self.rate);
        pace.set_missed_tick_behavior(MissedTickBehavior::Burst);
        let mut published = Vec::new();
        for number in 1..=u64::from(seconds * self.rate) {
            let due = pace.tick().await.into_std();
            let item = Item { publisher: self.part, number };
            let request = PublishStreamRequest { correlation_id: number, event: Some(item.event()) };
            requests.send(request).await.expect("the stream goes on");
            published.push((item, due));
        }
        drop(requests);
        let acknowledged = acknowledging.join_next().await.expect("one task").expect("it ends by itself");
        assert_eq!(acknowledged as usize, published.len(), "every event is answered");
        published
    }
}

/// What is known of one part.
#[derive(Default)]
struct Part {
    events: usize,
    latencies: Vec<f64>,
    longest_gap: Duration,
}

impl Part {
    /// Waits for what was published in one turn and notes how long it took.
    async fn take(&mut self, healthy: &Target, published: &[(Item, Instant)]) {
        let began = Instant::now();
        while !healthy.catcher.missing(published.iter().map(|(item, _)| item)).is_empty() && began.elapsed() < PATIENCE
        {
            sleep(Duration::from_millis(50)).await;
        }
        let seen = healthy.catcher.seen();
        let arrived: Vec<_> = published.iter().filter_map(|(item, due)| Some((*due, seen.get(item)?.at))).collect();
        self.latencies.extend(arrived.iter().map(|(due, at)| ms(at.saturating_duration_since(*due))));
        let mut arrivals: Vec<Instant> = arrived.iter().map(|(_, at)| *at).collect();
        arrivals.sort_unstable();
        let gap = arrivals.windows(2).map(|pair| pair[1] - pair[0]).max().unwrap_or_default();
        self.longest_gap = self.longest_gap.max(gap);
        self.events += published.len();
    }

    fn measured(mut self, part: &'static str) -> Measured {
        self.latencies.sort_by(f64::total_cmp);
        let percentile = |percent| percentile(&self.latencies, percent);
        Measured {
            part,
            events: self.events,
            arrived: self.latencies.len(),
            p50_ms: percentile(50.0),
            p95_ms: percentile(95.0),
            p99_ms: percentile(99.0),
            longest_ms: percentile(100.0),
            longest_gap_ms: ms(self.longest_gap),
        }
    }
}

fn ms(duration: Duration) -> f64 {
    duration.as_secs_f64() * 1e3
}

/// An endpoint that accepts every connection, keeps it and says nothing.
pub(crate) struct Hanging {
    address: SocketAddr,
    accepted: mpsc::UnboundedReceiver<()>,
    _server: JoinSet<()>,
}

impl Hanging {
    pub(crate) async fn start() -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.expect("a free port");
        let address = listener.local_addr().expect("it is bound");
        let (sender, accepted) = mpsc::unbounded_channel();
        let mut server = JoinSet::new();
        server.spawn(async move {
            let mut held = Vec::new();
            while let Ok((connection, _)) = listener.accept().await {
                held.push(connection);
                // The run may have ended.
                let _ = sender.send(());
            }
        });
        Self { address, accepted, _server: server }
    }

    /// Makes it an endpoint for events of `pattern`, and gives its id.
    pub(crate) async fn join(&self, system: &Wedsync, key: &Key, pattern: &str) -> String {
        let url = format!("http://{}/webhook", self.address);
        create(system, key, Endpoint { url, ..endpoint(pattern, false) }).await.0
    }

    /// Connections since the last question.
    pub(crate) fn held(&mut self) -> u64 {
        std::iter::from_fn(|| self.accepted.try_recv().ok()).count() as u64
    }
}
