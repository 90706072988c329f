//! How long a live update takes: from when its publish was due to its arrival at each of ten subscribers of its channel.

use std::{net::SocketAddr, time::Instant};

use proto::router::v1::{
    Event, SubscribeRequest, SubscribeResponse, subscribe_response::Message,
    subscription_service_client::SubscriptionServiceClient,
};
use tokio::sync::oneshot;
use tonic::Streaming;

use super::{
    figure::{Figure, percentile},
    machine,
    path::{Wanted, blocking, fresh},
    publisher::{self, TO_NOBODY},
    sink::on_one_thread,
};
use crate::{
    crash::name,
    harness::{Engine, Key, Wedsync, client},
};

const CHANNEL: &str = "bench:live";
const SUBSCRIBERS: usize = 10;
const RATE: u32 = 200;
const EVENTS: usize = 10 * RATE as usize;
/// Events before those that aren't counted.
const WARM: usize = 200;
/// What may come on top of the disk's own time.
const MORE_MS: f64 = 10.0;

/// Measures on one store; `told` hears of each figure.
pub(crate) async fn run(engine: &Engine, wanted: &Wanted, told: &mut impl FnMut(Figure)) {
    if !wanted.wants("live_p50") && !wanted.wants("live_p99") {
        return;
    }
    let system = Wedsync::start_on(engine, &[("WEDSYNC_ROUTER__PUBLISH_PER_SECOND", "0")]).await;
    let key = system.tenant("Live").await;
    let folder = system.folder().to_owned();
    let (fsync_p50, fsync_p99) = blocking(move || machine::fsync_ms(&folder)).await;

    let (router, all) = (system.addresses.router, EVENTS + WARM);
    let (standing, stands) = oneshot::channel();
    let listener = key.clone();
    let listening = blocking(move || on_one_thread(listen(router, listener, all, standing)));
    let publishing = async {
        stands.await.expect("the subscribers stand");
        let type_ = fresh(TO_NOBODY, "live");
        let event = |number| Event { channels: vec![CHANNEL.to_owned()], ..publisher::event(type_, number) };
        blocking(move || publisher::paced_events(router, &key, RATE, 0..all, event)).await
    };
    let (arrivals, published) = tokio::join!(listening, publishing);

    let counted = published.iter().filter(|published| published.number >= WARM);
    let taken = |due: Instant, number: usize| {
        arrivals.iter().map(move |of_one| of_one[number].saturating_duration_since(due).as_secs_f64() * 1e3)
    };
    let mut latencies: Vec<f64> = counted.flat_map(|published| taken(published.due, published.number)).collect();
    latencies.sort_by(f64::total_cmp);
    let store = name(engine);
    told(Figure::above("live_p50", store, percentile(&latencies, 50.0), "ms", fsync_p50, MORE_MS));
    told(Figure::above("live_p99", store, percentile(&latencies, 99.0), "ms", fsync_p99, MORE_MS));
}

/// When each number arrived, for each subscriber; says on `standing` when all of them stand.
async fn listen(router: SocketAddr, key: Key, events: usize, standing: oneshot::Sender<()>) -> Vec<Vec<Instant>> {
    let mut streams = Vec::new();
    for _ in 0..SUBSCRIBERS {
        let mut subscriptions = SubscriptionServiceClient::new(client(router, &key));
        let request = SubscribeRequest { channels: vec![CHANNEL.to_owned()], ..SubscribeRequest::default() };
        let mut stream = subscriptions.subscribe(request).await.expect("a subscription").into_inner();
        // The first message says that it has caught up.
        stream.message().await.expect("the stream goes on").expect("a first message");
        streams.push(stream);
    }
    standing.send(()).expect("the publisher waits");
    let arrivals = streams.into_iter().map(|stream| arrivals(stream, events));
    futures_util::future::join_all(arrivals).await
}

async fn arrivals(mut stream: Streaming<SubscribeResponse>, events: usize) -> Vec<Instant> {
    let (mut at, mut missing) = (vec![None; events], events);
    while missing > 0 {
        let response = stream.message().await.expect("the stream goes on").expect("it doesn't end");
        let Some(Message::Event(event)) = response.message else { continue };
        let number = event.id.rsplit_once('-').and_then(|(_, number)| number.parse::<usize>().ok());
        missing -= usize::from(at[number.expect("an event of ours")].replace(Instant::now()).is_none());
    }
    at.into_iter().map(|at| at.expect("none is missing")).collect()
}
