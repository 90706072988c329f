//! Ten thousand browsers at one gateway: what a socket costs while nothing happens, how long a broadcast to all takes
//! beside a bare loop that writes the same frames, and how soon five thousand that are cut off at once are back, with
//! nothing missed of what is published all the while.

pub(crate) mod bare;
mod crowd;

use std::{
    collections::HashSet,
    sync::Arc,
    time::{Duration, Instant},
};

use chassis::descriptors;
use proto::router::v1::{
    BroadcastRequest, Change, Content, Event, Operation, event::Payload,
    subscription_service_client::SubscriptionServiceClient,
};
use serde_json::json;
use tokio::{task::JoinHandle, time::sleep};

use self::{
    bare::Writer,
    crowd::{CHANNEL, Crowd, Order, PARTS},
};
use super::{
    figure::{Figure, percentile},
    machine,
    path::{Wanted, blocking},
    publisher::{pace, paced_events},
    sink::on_one_thread,
    wire::token,
};
use crate::{
    crash::name,
    harness::{Engine, Key, PATIENCE, Wedsync, client, organization},
};

/// Of all, those that memory is counted from, when everything that is there once is there; and those that are cut off.
const FIRST: usize = 5;
const CUT: usize = 2;
/// Broadcasts a second, and how many: 30 s.
const TICKS: u32 = 2;
const TICKED: usize = 60;
/// Rows a second, each for one part of all, and how many: 30 s.
const RATE: u32 = 100;
const ROWS: usize = 30 * RATE as usize;
/// How long memory may take to be given back.
const SETTLED: Duration = Duration::from_secs(5);
const TABLE: &str = "bench_rows";

const MOST_KIB: f64 = 10.0;
const MOST_SECONDS: f64 = 30.0;

/// All that one address may do otherwise is far below this.
const SETTINGS: [(&str, &str); 5] = [
    ("WEDSYNC_GATEWAY__REQUESTS_PER_MINUTE", "1000000"),
    ("WEDSYNC_GATEWAY__REQUEST_BURST", "100000"),
    ("WEDSYNC_GATEWAY__REALTIME__CONNECTS_PER_SECOND", "100000"),
    ("WEDSYNC_GATEWAY__REALTIME__JOINS_PER_SECOND", "100000"),
    ("WEDSYNC_ROUTER__PUBLISH_PER_SECOND", "0"),
];

/// Measures on one store; `told` hears of each figure.
pub(crate) async fn run(engine: &Engine, wanted: &Wanted, told: &mut impl FnMut(Figure)) {
    if !wanted.wants("sockets") {
        return;
    }
    let all = wanted.sockets;
    descriptors::raise();
    let bare = bare(all).await;
    let system = Wedsync::start_on(engine, &SETTINGS).await;
    let key = system.tenant("Sockets").await;
    let organization = organization(system.addresses.router, &key).await;
    let token = token(&system, json!({ "organization_id": organization, "app_role": "owner" }));
    let crowd = Crowd::new(system.addresses.gateway, Some(token));
    let bench = Bench { crowd, all, system, key, store: name(engine) };
    let crowd = gather(&bench.crowd, all);
    bench.open(told).await;
    bench.broadcast(&bare, told).await;
    bench.cut(crowd, told).await;
}

/// The crowd on a thread of its own; which rows came to each, once it is told to leave.
fn gather(crowd: &Arc<Crowd>, all: usize) -> JoinHandle<Vec<(usize, Vec<usize>)>> {
    let crowd = crowd.clone();
    #[expect(clippy::disallowed_methods, reason = "it is waited for")]
    tokio::spawn(blocking(move || on_one_thread(crowd.live(all))))
}

/// How long the bare loop takes to each socket, in ms, sorted.
async fn bare(all: usize) -> Vec<f64> {
    let mut writer = Writer::start().await;
    let crowd = Crowd::new(writer.address, None);
    let living = gather(&crowd, all);
    crowd.order(Order::Open(all));
    until("the bare sockets are open", || crowd.joined() == all).await;
    let mut due = Vec::new();
    let mut pace = pace(TICKS, 0..TICKED);
    while let Some((number, at)) = pace.recv().await {
        due.push(at);
        writer.send(number).await;
    }
    let taken = taken(&crowd, all, &due).await;
    crowd.order(Order::Leave);
    living.await.expect("no panic");
    taken
}

/// What a broadcast says.
fn content(number: usize) -> String {
    json!({ "n": number, "pad": "x".repeat(200) }).to_string()
}

/// From when each broadcast was due to its arrival at each socket, in ms, sorted.
async fn taken(crowd: &Crowd, all: usize, due: &[Instant]) -> Vec<f64> {
    until("every broadcast came to all", || crowd.heard() == all * due.len()).await;
    let heard = crowd.broadcasts().into_iter();
    let mut taken: Vec<f64> =
        heard.map(|(number, at)| at.saturating_duration_since(due[number]).as_secs_f64() * 1e3).collect();
    taken.sort_by(f64::total_cmp);
    taken
}

struct Bench {
    crowd: Arc<Crowd>,
    /// How many there are.
    all: usize,
    system: Wedsync,
    key: Key,
    store: &'static str,
}

impl Bench {
    /// How fast sockets are opened and joined, and what each keeps in memory.
    async fn open(&self, told: &mut impl FnMut(Figure)) {
        let (all, first) = (self.all, self.all / FIRST);
        self.opened(first).await;
        sleep(SETTLED).await;
        let (before, _) = machine::resident_mib(self.system.pid());
        let began = Instant::now();
        self.opened(all).await;
        let rate = (all - first) as f64 / began.elapsed().as_secs_f64();
        sleep(SETTLED).await;
        let (after, _) = machine::resident_mib(self.system.pid());
        let each = (after - before) * 1024.0 / (all - first) as f64;
        told(Figure::at_least("sockets_open_rate", self.store, rate, "sockets/s", 500.0));
        told(Figure::at_most("sockets_memory", self.store, each, "KiB", MOST_KIB));
    }

    async fn opened(&self, count: usize) {
        self.crowd.order(Order::Open(count));
        until("the sockets are open and joined", || self.crowd.joined() == count).await;
    }

    async fn broadcast(&self, bare: &[f64], told: &mut impl FnMut(Figure)) {
        let mut router = SubscriptionServiceClient::new(client(self.system.addresses.router, &self.key));
        let mut due = Vec::new();
        let mut pace = pace(TICKS, 0..TICKED);
        let cpu = machine::cpu_ms(self.system.pid());
        while let Some((number, at)) = pace.recv().await {
            due.push(at);
            let content = Content { content_type: String::new(), data: content(number).into() };
            let request = BroadcastRequest {
                channel: CHANNEL.to_owned(),
                event: "tick".to_owned(),
                content: Some(content),
                ..BroadcastRequest::default()
            };
            router.broadcast(request).await.expect("it is taken");
        }
        let taken = taken(&self.crowd, self.all, &due).await;
        let cpu = (machine::cpu_ms(self.system.pid()) - cpu) * 1e3 / taken.len() as f64;
        for percent in [50.0, 99.0] {
            let (value, limit) = (percentile(&taken, percent), percentile(bare, percent));
            let figure = format!("sockets_broadcast_p{percent}");
            told(Figure::compared(&figure, self.store, value, "ms", limit, 3.0 * limit, "three times a bare loop"));
        }
        told(Figure::at_most("sockets_broadcast_cpu", self.store, cpu, "us", 50.0));
    }

    /// Cuts off half of all while rows are published, and counts what comes.
    async fn cut(self, crowd: JoinHandle<Vec<(usize, Vec<usize>)>>, told: &mut impl FnMut(Figure)) {
        let (router, key) = (self.system.addresses.router, self.key.clone());
        let publishing = blocking(move || paced_events(router, &key, RATE, 0..ROWS, row));
        let back = async {
            until("rows come", || self.crowd.rows() > self.all).await;
            let began = Instant::now();
            self.crowd.order(Order::Cut(self.all / CUT));
            until("they are cut off", || self.crowd.joined() <= self.all - self.all / CUT).await;
            until("all are back", || self.crowd.joined() == self.all).await;
            began.elapsed().as_secs_f64()
        };
        let (_, back) = tokio::join!(publishing, back);
        told(Figure::at_most("sockets_back", self.store, back, "s", MOST_SECONDS));
        self.all_rows().await;
        self.crowd.order(Order::Leave);
        let (missed, repeated) = counted(&crowd.await.expect("no panic"));
        told(Figure::at_most("sockets_missed", self.store, missed, "rows", 0.0));
        told(Figure::at_most("sockets_repeated", self.store, repeated, "rows", 0.0));
    }

    /// Waits for every row to have come to whom it is for, as long as any come.
    async fn all_rows(&self) {
        let (mut seen, mut since) = (self.crowd.rows(), Instant::now());
        while seen < ROWS * self.all / PARTS && since.elapsed() < Duration::from_secs(20) {
            sleep(Duration::from_millis(50)).await;
            if self.crowd.rows() > seen {
                (seen, since) = (self.crowd.rows(), Instant::now());
            }
        }
    }
}

fn row(number: usize) -> Event {
    let record = json!({ "n": number, "part": number % PARTS, "pad": "x".repeat(200) }).to_string();
    let change = Change {
        schema: "public".to_owned(),
        table: TABLE.to_owned(),
        operation: Operation::Insert.into(),
        new_record: record.into(),
        ..Change::default()
    };
    Event {
        id: format!("{TABLE}-{number}"),
        source: "bench".to_owned(),
        payload: Some(Payload::Change(change)),
        ..Event::default()
    }
}

/// How many rows didn't come to whom they are for, and how many came again. Their order is the log's: publishes that run
/// side by side may overtake each other.
fn counted(crowd: &[(usize, Vec<usize>)]) -> (f64, f64) {
    let (mut missed, mut repeated) = (0, 0);
    for (number, rows) in crowd {
        let distinct: HashSet<_> = rows.iter().collect();
        missed += (number % PARTS..ROWS).step_by(PARTS).filter(|row| !distinct.contains(row)).count();
        repeated += rows.len() - distinct.len();
    }
    (missed as f64, repeated as f64)
}

async fn until(what: &str, is_so: impl Fn() -> bool) {
    let began = Instant::now();
    while !is_so() {
        assert!(began.elapsed() < 2 * PATIENCE, "{what}: not in time");
        sleep(Duration::from_millis(5)).await;
    }
}
