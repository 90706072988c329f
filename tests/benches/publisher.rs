//! Publishers of the benches: one that offers as much as is taken, and one that keeps to a schedule.

use std::{
    net::SocketAddr,
    time::{Duration, Instant},
};

use proto::router::v1::{
    Content, Event, PublishRequest, PublishStreamRequest, event::Payload, event_service_client::EventServiceClient,
    publish_result,
};
use tokio::{sync::mpsc, task::JoinSet};
use tokio_stream::wrappers::ReceiverStream;
use tonic::{Code, Status};

use super::sink::on_one_thread;
use crate::harness::{Key, PATIENCE, client};

/// The content of every event, in bytes.
pub(crate) const DATA_BYTES: usize = 1_000;
/// Weddings that the events belong to: order is kept within each.
const KEYS: usize = 1_000;
/// Connections of the publisher that keeps to a schedule.
const CONNECTIONS: usize = 4;
/// When it tries again what wasn't taken.
const AGAIN_AFTER: Duration = Duration::from_millis(100);

/// Goes to webhooks, and to nobody else.
pub(crate) const TO_WEBHOOKS: &str = "client_list_cache.refreshed";
/// No route names it: it is stored.
pub(crate) const TO_NOBODY: &str = "interaction.recorded";

/// What is published as number `number`: 1,000 bytes of JSON.
pub(crate) fn event(type_: &str, number: usize) -> Event {
    let mut data = format!("{{\"n\":{number},\"pad\":\"");
    data.extend(std::iter::repeat_n('x', DATA_BYTES - 2 - data.len()));
    data.push_str("\"}");
    Event {
        id: format!("{type_}-{number}"),
        r#type: type_.to_owned(),
        source: "bench".to_owned(),
        ordering_key: format!("w{}", number % KEYS),
        payload: Some(Payload::Content(Content { content_type: String::new(), data: data.into() })),
        ..Event::default()
    }
}

/// Publishes these numbers over one stream, as fast as they are taken, and returns once all are durable.
pub(crate) fn stream(router: SocketAddr, key: &Key, type_: &'static str, numbers: std::ops::Range<usize>) {
    on_one_thread(async {
        let mut events = EventServiceClient::new(client(router, key));
        let (requests, outgoing) = mpsc::channel(256);
        let count = numbers.len();
        let mut publishing = JoinSet::new();
        publishing.spawn(async move {
            for number in numbers {
                let request = PublishStreamRequest { correlation_id: number as u64, event: Some(event(type_, number)) };
                requests.send(request).await.expect("the stream goes on");
            }
        });
        let mut answers = events.publish_stream(ReceiverStream::new(outgoing)).await.expect("a stream").into_inner();
        for _ in 0..count {
            let answer = answers.message().await.expect("the stream goes on").expect("an answer to each");
            let result = answer.result.and_then(|result| result.result);
            assert!(matches!(result, Some(publish_result::Result::Receipt(_))), "refused: {result:?}");
        }
    });
}

/// What came of events that were offered whether or not they would be taken.
#[derive(Debug, Default)]
pub(crate) struct Offered {
    pub(crate) taken: usize,
    /// As too many.
    pub(crate) refused: usize,
    /// For another reason.
    pub(crate) failed: usize,
}

/// Offers these numbers over one stream, `rate` a second, and counts what comes of them.
pub(crate) fn offer(
    router: SocketAddr,
    key: &Key,
    type_: &'static str,
    rate: u32,
    numbers: std::ops::Range<usize>,
) -> Offered {
    let count = numbers.len();
    let mut pace = pace(rate, numbers);
    on_one_thread(async {
        let mut events = EventServiceClient::new(client(router, key));
        let (requests, outgoing) = mpsc::channel(256);
        let mut publishing = JoinSet::new();
        publishing.spawn(async move {
            while let Some((number, _)) = pace.recv().await {
                let request = PublishStreamRequest { correlation_id: number as u64, event: Some(event(type_, number)) };
                requests.send(request).await.expect("the stream goes on");
            }
        });
        let mut answers = events.publish_stream(ReceiverStream::new(outgoing)).await.expect("a stream").into_inner();
        let mut offered = Offered::default();
        for _ in 0..count {
            let answer = answers.message().await.expect("the stream goes on").expect("an answer to each");
            match answer.result.and_then(|result| result.result) {
                Some(publish_result::Result::Receipt(_)) => offered.taken += 1,
                Some(publish_result::Result::Refusal(refusal)) if refusal.code == Code::ResourceExhausted as i32 => {
                    offered.refused += 1;
                }
                _ => offered.failed += 1,
            }
        }
        offered
    })
}

/// Whether it may be taken when it is tried again.
fn is_passing(status: &Status) -> bool {
    // A connection that is reset while its server is killed is `Unknown` to tonic.
    [Code::Unavailable, Code::DeadlineExceeded, Code::Cancelled, Code::Unknown].contains(&status.code())
}

/// When an event was due, and how long its publish took until it was durable.
pub(crate) struct Published {
    pub(crate) number: usize,
    pub(crate) due: Instant,
    pub(crate) durable: Duration,
}

/// Gives each number when it is due, `rate` a second, whatever the reader does.
pub(crate) fn pace(rate: u32, numbers: std::ops::Range<usize>) -> mpsc::UnboundedReceiver<(usize, Instant)> {
    let (due, pace) = mpsc::unbounded_channel();
    // A thread's sleep is finer than a runtime's timer, whose steps are whole milliseconds.
    std::thread::spawn(move || {
        let began = Instant::now();
        for (place, number) in numbers.enumerate() {
            let at = began + Duration::from_secs(1) * u32::try_from(place).expect("a short run") / rate;
            std::thread::sleep(at.saturating_duration_since(Instant::now()));
            if due.send((number, at)).is_err() {
                return;
            }
        }
    });
    pace
}

/// Publishes these numbers one by one, `rate` a second, whatever the system does: what comes late counts from when it
/// was due.
pub(crate) fn paced(
    router: SocketAddr,
    key: &Key,
    type_: &'static str,
    rate: u32,
    numbers: std::ops::Range<usize>,
) -> Vec<Published> {
    paced_events(router, key, rate, numbers, |number| event(type_, number))
}

/// The same with events of the caller's.
pub(crate) fn paced_events(
    router: SocketAddr,
    key: &Key,
    rate: u32,
    numbers: std::ops::Range<usize>,
    event: impl Fn(usize) -> Event,
) -> Vec<Published> {
    let mut pace = pace(rate, numbers);
    on_one_thread(async {
        let clients: Vec<_> = (0..CONNECTIONS).map(|_| EventServiceClient::new(client(router, key))).collect();
        let mut under_way = JoinSet::new();
        while let Some((number, due)) = pace.recv().await {
            let mut events = clients[number % CONNECTIONS].clone();
            let request = PublishRequest { event: Some(event(number)) };
            under_way.spawn(async move {
                // Tried again it is the same event, and still counts from when it was due.
                while let Err(status) = events.publish(request.clone()).await {
                    assert!(is_passing(&status) && due.elapsed() < PATIENCE, "not taken: {status}");
                    tokio::time::sleep(AGAIN_AFTER).await;
                }
                Published { number, due, durable: due.elapsed() }
            });
        }
        under_way.join_all().await
    })
}
