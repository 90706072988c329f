//! How long a commit in the planner's database takes to subscribers: from when an UPDATE was due, in a transaction of its
//! own, to the change's arrival over gRPC and over a browser's WebSocket.

use std::{net::SocketAddr, time::Instant};

use proto::router::v1::{
    SubscribeRequest, SubscribeResponse, event::Payload, subscribe_response::Message,
    subscription_service_client::SubscriptionServiceClient,
};
use serde_json::{Value, json};
use tokio::{sync::oneshot, task::JoinSet, time::timeout};
use tonic::Streaming;

use super::{
    figure::{Figure, percentile},
    path::{Wanted, blocking},
    publisher::pace,
    sink::on_one_thread,
    wire::{Socket, token},
};
use crate::{
    crash::name,
    harness::{Engine, Key, PATIENCE, Source, Wedsync, client, organization},
};

/// Of the gRPC subscriber, and of the one over the gateway.
const FIGURES: [&str; 2] = ["commit_to_subscriber", "commit_to_subscriber_websocket"];
const RATE: u32 = 200;
/// Updates that are counted, 20 s of them, and those before.
const COUNTED: usize = 20 * RATE as usize;
const WARM: usize = 200;
const ALL: usize = COUNTED + WARM;
/// No row is updated twice at once.
const ROWS: usize = 1_000;
const MOST_MS: f64 = 20.0;

const TABLE: &str = "wedding_details";
const TOPIC: &str = "realtime:bench";
const SETUP: [&str; 2] = [
    "CREATE TABLE wedding_details (id text PRIMARY KEY, organization_id text, wedding_date date, number int)",
    "ALTER TABLE wedding_details REPLICA IDENTITY FULL",
];
const UPDATE: &str = "UPDATE wedding_details SET wedding_date = wedding_date + 1, number = $1 WHERE id = $2";

/// Measures on one store; `told` hears of each figure.
pub(crate) async fn run(engine: &Engine, wanted: &Wanted, told: &mut impl FnMut(Figure)) {
    let figures = FIGURES.map(|figure| (format!("{figure}_p50"), format!("{figure}_p99")));
    if !figures.iter().any(|(p50, p99)| wanted.wants(p50) || wanted.wants(p99)) {
        return;
    }
    let Some(source) = Source::create(&SETUP).await else { return };
    let mut system = source.captured(engine, &[TABLE]).await;
    let (due, arrivals) = measured(&system, &source).await;
    system.stop().await;
    source.remove().await;
    for ((p50, p99), arrivals) in figures.iter().zip(arrivals) {
        let taken = due.iter().zip(arrivals).map(|(due, at)| at.saturating_duration_since(*due).as_secs_f64() * 1e3);
        let mut latencies: Vec<f64> = taken.skip(WARM).collect();
        latencies.sort_by(f64::total_cmp);
        for (figure, percent) in [(p50, 50.0), (p99, 99.0)] {
            told(Figure::at_most(figure, name(engine), percentile(&latencies, percent), "ms", MOST_MS));
        }
    }
}

/// When each update was due, and when it arrived at each subscriber.
async fn measured(system: &Wedsync, source: &Source) -> (Vec<Instant>, [Vec<Instant>; 2]) {
    let key = system.tenant("Commit").await;
    let (router, gateway) = (system.addresses.router, system.addresses.gateway);
    let organization = organization(router, &key).await;
    let token = token(system, json!({ "organization_id": organization, "app_role": "owner" }));
    source.streams().await;
    source.run(&format!(
        "INSERT INTO wedding_details SELECT 'w' || n, '{organization}', '2027-06-19', -1 FROM generate_series(0, {ROWS} - 1) n"
    ))
    .await;
    source.caught_up().await;
    let (standing, stands) = oneshot::channel();
    let listening = blocking(move || on_one_thread(listen(router, key, gateway, token, standing)));
    let committing = async {
        stands.await.expect("the subscribers stand");
        commit(source).await
    };
    let (arrivals, due) = tokio::join!(listening, committing);
    (due, arrivals)
}

/// Updates a row each time that one is due, however long the others take.
async fn commit(source: &Source) -> Vec<Instant> {
    let (mut pace, mut all_due, mut under_way) = (pace(RATE, 0..ALL), Vec::with_capacity(ALL), JoinSet::new());
    while let Some((number, due)) = pace.recv().await {
        all_due.push(due);
        let pool = source.pool.clone();
        let number = i32::try_from(number).expect("a short run");
        let update = sqlx::query(UPDATE).bind(number).bind(format!("w{}", number as usize % ROWS));
        under_way.spawn(async move { update.execute(&pool).await.expect("it is committed") });
    }
    under_way.join_all().await;
    all_due
}

/// When each number arrived, over gRPC and over a WebSocket; says on `standing` when both stand.
async fn listen(
    router: SocketAddr,
    key: Key,
    gateway: SocketAddr,
    token: String,
    standing: oneshot::Sender<()>,
) -> [Vec<Instant>; 2] {
    let mut subscriptions = SubscriptionServiceClient::new(client(router, &key));
    let request = SubscribeRequest { types: vec![format!("{TABLE}.update")], ..SubscribeRequest::default() };
    let mut stream = subscriptions.subscribe(request).await.expect("a subscription").into_inner();
    // The first message says that it has caught up.
    stream.message().await.expect("the stream goes on").expect("a first message");
    let mut socket = Socket::open_at(gateway, &token).await;
    let changes = json!([{ "event": "UPDATE", "schema": "public", "table": TABLE }]);
    socket.join("1", TOPIC, json!({ "config": { "postgres_changes": changes } })).await;
    assert_eq!(socket.event(TOPIC, "system").await["status"], "ok", "it streams");
    standing.send(()).expect("the updates wait");
    let (over_grpc, over_websocket) = tokio::join!(over_grpc(stream), over_websocket(socket));
    [over_grpc, over_websocket]
}

async fn over_grpc(mut stream: Streaming<SubscribeResponse>) -> Vec<Instant> {
    let mut arrivals = Arrivals::new();
    while arrivals.missing > 0 {
        let told = timeout(PATIENCE, stream.message()).await.expect("a change in time").expect("the stream goes on");
        let Some(Message::Event(event)) = told.expect("it doesn't end").message else { continue };
        let Some(Payload::Change(change)) = event.payload else { continue };
        arrivals.note(&serde_json::from_slice(&change.new_record).expect("JSON"));
    }
    arrivals.all()
}

async fn over_websocket(mut socket: Socket) -> Vec<Instant> {
    let mut arrivals = Arrivals::new();
    while arrivals.missing > 0 {
        arrivals.note(&socket.event(TOPIC, "postgres_changes").await["data"]["record"]);
    }
    arrivals.all()
}

/// When each number first came.
struct Arrivals {
    at: Vec<Option<Instant>>,
    missing: usize,
}

impl Arrivals {
    fn new() -> Self {
        Self { at: vec![None; ALL], missing: ALL }
    }

    fn note(&mut self, row: &Value) {
        let now = Instant::now();
        let number = row["number"].as_u64().and_then(|number| usize::try_from(number).ok()).expect("a row of ours");
        self.missing -= usize::from(self.at[number].replace(now).is_none());
    }

    fn all(self) -> Vec<Instant> {
        self.at.into_iter().map(|at| at.expect("none is missing")).collect()
    }
}
