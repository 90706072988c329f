//! How long an event takes to healthy endpoints alone, and beside those that spoil it: endpoints of the same organization
//! that never answer, and another organization that publishes far more than it may.
//!
//! Open loop: latency counts from when an event was due.

use std::{ops::Range, time::Duration};

use proto::vendorsync::v1::Endpoint;
use tokio::time::sleep;

use super::{
    figure::{Figure, percentile},
    isolation::Hanging,
    path::{Wanted, blocking, fresh},
    publisher::{self, Published, TO_NOBODY, TO_WEBHOOKS},
    sink::Sink,
};
use crate::{
    crash::{create, endpoint, name, remove},
    harness::{Engine, Key, Wedsync},
};

/// Endpoints of one organization, and how many of them stay healthy.
const ENDPOINTS: usize = 100;
const HEALTHY: usize = 50;
/// How long all of them are healthy, and how long the others hang, in seconds.
const ALONE: usize = 20;
const BESIDE: usize = 30;
/// Seconds at the start that aren't counted: connections open.
const WARM: usize = 2;

/// Organizations that keep to the measure, and the events a second of each.
const QUIET: usize = 5;
const QUIET_RATE: u32 = 20;
/// What the loud one offers: twice what is taken from an organization, once its burst is used up.
const LOUD_RATE: u32 = 10_000;
/// How long the quiet ones are measured alone, and how long beside the loud one, in seconds.
const QUIET_SECONDS: usize = 20;
/// The loud one is heard first: its burst is over when the measure begins.
const LOUD_LEAD: usize = 3;

/// Measures on one store; `told` hears of each figure.
pub(crate) async fn run(engine: &Engine, wanted: &Wanted, told: &mut impl FnMut(Figure)) {
    if wanted.wants("neighbours_hanging_p99") {
        hanging(engine, wanted.rate, told).await;
    }
    // Its events are stored and go to nobody; or they go to an endpoint of its own.
    for (run, loud_type) in [("noisy", TO_NOBODY), ("noisy_webhooks", TO_WEBHOOKS)] {
        if ["p99", "refused", "failed"].iter().any(|what| wanted.wants(&format!("{run}_{what}"))) {
            noisy(engine, run, loud_type, told).await;
        }
    }
}

/// Half of an organization's endpoints stop answering.
async fn hanging(engine: &Engine, rate: u32, told: &mut impl FnMut(Figure)) {
    let system = Wedsync::start_on(engine, &[("WEDSYNC_ROUTER__PUBLISH_PER_SECOND", "0")]).await;
    let key = system.tenant("Neighbours").await;
    let second = rate as usize;
    let (alone, beside) = (0..ALONE * second, ALONE * second..(ALONE + BESIDE) * second);
    let sink = Sink::start(ENDPOINTS, beside.end.div_ceil(ENDPOINTS));
    let mut ids = Vec::new();
    for path in 0..ENDPOINTS {
        ids.push(join(&system, &key, &type_of(path), sink.url(path)).await);
    }
    let alone_p99 = {
        let published = publish(&system, &key, rate, alone.clone()).await;
        assert!(sink.wait(alone.len() as u64).await, "{} of {} arrived", sink.arrived(), alone.len());
        p99(&sink, published, WARM * second)
    };

    let mut hanging = Hanging::start().await;
    for id in ids.drain(HEALTHY..) {
        remove(&system, &key, id).await;
    }
    for path in HEALTHY..ENDPOINTS {
        hanging.join(&system, &key, &type_of(path)).await;
    }
    let published = publish(&system, &key, rate, beside.clone()).await;
    let expected = alone.len() + beside.filter(|number| is_healthy(*number)).count();
    assert!(sink.wait(expected as u64).await, "{} of {expected} arrived", sink.arrived());
    assert!(hanging.held() > 0, "nothing was ever sent to those that hang: the run measured nothing");
    let beside_p99 = p99(&sink, published, 0);
    let most = alone_p99 * 1.2 + 1.0;
    let how = "1.2 x alone and 1 ms";
    told(Figure::compared("neighbours_hanging_p99", name(engine), beside_p99, "ms", alone_p99, most, how));
}

/// Each endpoint has a type of its own, so that an event goes to one alone: number `n` to endpoint `n % ENDPOINTS`.
fn type_of(path: usize) -> String {
    format!("{TO_WEBHOOKS}_{path}")
}

fn is_healthy(number: usize) -> bool {
    number % ENDPOINTS < HEALTHY
}

async fn join(system: &Wedsync, key: &Key, type_: &str, url: String) -> String {
    create(system, key, Endpoint { url, ..endpoint(type_, false) }).await.0
}

async fn publish(system: &Wedsync, key: &Key, rate: u32, numbers: Range<usize>) -> Vec<Published> {
    let (router, key) = (system.addresses.router, key.clone());
    let event = |number: usize| publisher::event(&type_of(number % ENDPOINTS), number / ENDPOINTS);
    blocking(move || publisher::paced_events(router, &key, rate, numbers, event)).await
}

/// Of the healthy endpoints, from number `first` on, in ms.
fn p99(sink: &Sink, published: Vec<Published>, first: usize) -> f64 {
    let counted = published.into_iter().filter(|it| it.number >= first && is_healthy(it.number));
    percentile_99(counted.map(|it| latency(sink, it.number % ENDPOINTS, it.number / ENDPOINTS, &it)))
}

/// One organization publishes far more than it may, events of `loud_type`, while others keep to the measure.
async fn noisy(engine: &Engine, run: &str, loud_type: &str, told: &mut impl FnMut(Figure)) {
    // With the limit that is shipped.
    let system = Wedsync::start_on(engine, &[]).await;
    let loud = system.tenant("Loud").await;
    let type_ = fresh(TO_WEBHOOKS, run);
    let each = QUIET_RATE as usize * QUIET_SECONDS;
    let sink = Sink::start(QUIET, 2 * each);
    // Under a path that the sink doesn't count.
    join(&system, &loud, "client_list_cache.*", format!("http://{}/loud", sink.address)).await;
    let mut quiet = Vec::new();
    for path in 0..QUIET {
        let key = system.tenant(&format!("Quiet {path}")).await;
        join(&system, &key, type_, sink.url(path)).await;
        quiet.push(key);
    }
    let alone = publish_quietly(&system, &sink, &quiet, type_, 0..each).await;

    let offering = {
        let (router, loud_type) = (system.addresses.router, fresh(loud_type, run));
        let offered = LOUD_RATE as usize * (QUIET_SECONDS + LOUD_LEAD);
        blocking(move || publisher::offer(router, &loud, loud_type, LOUD_RATE, 0..offered))
    };
    let measuring = async {
        sleep(Duration::from_secs(LOUD_LEAD as u64)).await;
        publish_quietly(&system, &sink, &quiet, type_, each..2 * each).await
    };
    let (offered, beside) = tokio::join!(offering, measuring);
    assert!(offered.taken > 0, "a limit isn't a lock");
    let (store, refused) = (name(engine), offered.refused as f64);
    let most = (2.0 * alone).max(20.0);
    told(Figure::compared(&format!("{run}_p99"), store, beside, "ms", alone, most, "2 x alone, or 20 ms"));
    told(Figure::at_least(&format!("{run}_refused"), store, refused, "events", 1.0));
    told(Figure::at_most(&format!("{run}_failed"), store, offered.failed as f64, "events", 0.0));
}

/// Publishes these numbers for each quiet organization, and gives the 99th percentile from due to arrival, in ms.
async fn publish_quietly(
    system: &Wedsync,
    sink: &Sink,
    quiet: &[Key],
    type_: &'static str,
    numbers: Range<usize>,
) -> f64 {
    let router = system.addresses.router;
    let publishing = quiet.iter().cloned().map(|key| {
        let numbers = numbers.clone();
        blocking(move || publisher::paced(router, &key, type_, QUIET_RATE, numbers))
    });
    let published = futures_util::future::join_all(publishing).await;
    let expected = (numbers.end * quiet.len()) as u64;
    assert!(sink.wait(expected).await, "{} of {expected} arrived", sink.arrived());
    let of_one = |(path, published): (usize, &Vec<Published>)| -> Vec<f64> {
        published.iter().map(|it| latency(sink, path, it.number, it)).collect()
    };
    percentile_99(published.iter().enumerate().flat_map(of_one))
}

fn latency(sink: &Sink, path: usize, number: usize, published: &Published) -> f64 {
    let at = sink.at(path, number).expect("all have arrived");
    at.saturating_duration_since(published.due).as_secs_f64() * 1e3
}

fn percentile_99(latencies: impl Iterator<Item = f64>) -> f64 {
    let mut latencies: Vec<f64> = latencies.collect();
    latencies.sort_by(f64::total_cmp);
    percentile(&latencies, 99.0)
}
