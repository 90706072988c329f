//! Publishers that never give up: each event is offered under the same id until it is acknowledged, over every restart.
//!
//! Some publish by stream with many events under way, some one by one. An ordering key belongs to one publisher, whose
//! numbers rise, so that the log's order of a key is known.

use std::{
    collections::BTreeSet,
    net::SocketAddr,
    sync::{Arc, Mutex},
    time::Duration,
};

use proto::router::v1::{
    Content, Event, PublishRequest, PublishStreamRequest, PublishStreamResponse, event::Payload,
    event_service_client::EventServiceClient, publish_result,
};
use serde::{Deserialize, Serialize};
use tokio::{
    sync::{mpsc, watch},
    task::JoinSet,
    time::{Interval, MissedTickBehavior, interval, sleep, timeout},
};
use tokio_stream::wrappers::ReceiverStream;
use tonic::{Code, Status, service::interceptor::InterceptedService, transport::Channel};

use crate::harness::{Key, PATIENCE, client};

/// The type of every fourth event; the others are `client.created`. Built-in routes send both to webhooks.
pub(crate) const ORDERED: &str = "client.deleted";

const BY_STREAM: u32 = 3;
const ONE_BY_ONE: u32 = 3;
/// Events that one stream may have under way.
const WINDOW: usize = 128;
/// Between two tries while the system is away.
const RETRY: Duration = Duration::from_millis(50);

type Events = EventServiceClient<InterceptedService<Channel, Key>>;

/// An event: who published it, and their how-manieth it is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub(crate) struct Item {
    pub(crate) publisher: u32,
    pub(crate) number: u64,
}

impl Item {
    /// From an event's id.
    pub(crate) fn of(id: &str) -> Option<Self> {
        let (publisher, number) = id.strip_prefix("item-")?.split_once('-')?;
        Some(Self { publisher: publisher.parse().ok()?, number: number.parse().ok()? })
    }

    fn id(self) -> String {
        format!("item-{}-{}", self.publisher, self.number)
    }

    pub(crate) fn event_type(self) -> &'static str {
        if self.number.is_multiple_of(4) { ORDERED } else { "client.created" }
    }

    pub(crate) fn key(self) -> String {
        format!("key-{}-{}", self.publisher, self.number / 4 % 5)
    }

    /// What is published; always the same, since a repeat must be.
    pub(crate) fn event(self) -> Event {
        let data = serde_json::to_vec(&self).expect("two numbers");
        Event {
            id: self.id(),
            r#type: self.event_type().to_owned(),
            source: "crash".to_owned(),
            ordering_key: self.key(),
            payload: Some(Payload::Content(Content { content_type: String::new(), data: data.into() })),
            ..Event::default()
        }
    }
}

/// The publishers at work.
pub(crate) struct Load {
    acknowledged: Acknowledged,
    stop: watch::Sender<bool>,
    publishers: JoinSet<()>,
}

type Acknowledged = Arc<Mutex<BTreeSet<Item>>>;

impl Load {
    /// Publishes `rate` events a second, shared by all publishers, as far as the system takes them.
    pub(crate) fn start(router: SocketAddr, key: &Key, rate: u32) -> Self {
        let (acknowledged, stop, mut publishers) = (Acknowledged::default(), watch::Sender::new(false), JoinSet::new());
        let publisher = |number| Publisher {
            number,
            next: 1,
            events: EventServiceClient::new(client(router, key)),
            unacknowledged: BTreeSet::new(),
            acknowledged: acknowledged.clone(),
            stop: stop.subscribe(),
            pace: pace(rate / (BY_STREAM + ONE_BY_ONE)),
        };
        for number in 0..BY_STREAM {
            publishers.spawn(publisher(number).by_stream());
        }
        for number in BY_STREAM..BY_STREAM + ONE_BY_ONE {
            publishers.spawn(publisher(number).one_by_one());
        }
        Self { acknowledged, stop, publishers }
    }

    /// What was acknowledged until now.
    pub(crate) fn acknowledged(&self) -> BTreeSet<Item> {
        self.acknowledged.lock().expect("no holder panics").clone()
    }

    /// Takes up nothing new, and waits until everything is acknowledged. Gives what went wrong with publishers.
    pub(crate) async fn finish(&mut self) -> Vec<String> {
        self.stop.send_replace(true);
        let mut wrong = Vec::new();
        let all = async {
            while let Some(ended) = self.publishers.join_next().await {
                wrong.extend(ended.err().map(|panic| panic.to_string()));
            }
        };
        if timeout(PATIENCE, all).await.is_err() {
            wrong.push(format!("{} publishers are not answered within {PATIENCE:?}", self.publishers.len()));
        }
        wrong
    }
}

fn pace(rate: u32) -> Interval {
    let mut pace = interval(Duration::from_secs(1) / rate.max(1));
    pace.set_missed_tick_behavior(MissedTickBehavior::Delay);
    pace
}

struct Publisher {
    number: u32,
    next: u64,
    events: Events,
    unacknowledged: BTreeSet<u64>,
    acknowledged: Acknowledged,
    stop: watch::Receiver<bool>,
    pace: Interval,
}

impl Publisher {
    fn stopping(&self) -> bool {
        *self.stop.borrow()
    }

    fn item(&self, number: u64) -> Item {
        Item { publisher: self.number, number }
    }

    fn is_durable(&mut self, number: u64) {
        self.unacknowledged.remove(&number);
        self.acknowledged.lock().expect("no holder panics").insert(self.item(number));
    }

    async fn one_by_one(mut self) {
        while !self.stopping() {
            self.pace.tick().await;
            let item = self.item(self.next);
            self.next += 1;
            while let Err(status) = self.events.publish(PublishRequest { event: Some(item.event()) }).await {
                assert_transient(&status);
                sleep(RETRY).await;
            }
            self.is_durable(item.number);
        }
    }

    async fn by_stream(mut self) {
        while !self.stopping() || !self.unacknowledged.is_empty() {
            if let Err(status) = self.one_stream().await {
                assert_transient(&status);
                sleep(RETRY).await;
            }
        }
    }

    /// Publishes until the stream breaks or all is done; begins with what an earlier stream left open, in its order.
    async fn one_stream(&mut self) -> Result<(), Status> {
        let (requests, outgoing) = mpsc::channel(WINDOW);
        for number in &self.unacknowledged {
            // There is room: no more than the window is ever open.
            let _ = requests.try_send(self.request(*number));
        }
        let mut answers = self.events.publish_stream(ReceiverStream::new(outgoing)).await?.into_inner();
        while !self.stopping() || !self.unacknowledged.is_empty() {
            let has_room = !self.stopping() && self.unacknowledged.len() < WINDOW;
            tokio::select! {
                _ = self.pace.tick(), if has_room => {
                    self.unacknowledged.insert(self.next);
                    // The stream's end is told by its answers.
                    let _ = requests.try_send(self.request(self.next));
                    self.next += 1;
                }
                answer = answers.message() => match answer? {
                    Some(answer) => self.take(&answer)?,
                    None => return Ok(()),
                },
                Ok(()) = self.stop.changed() => {}
            }
        }
        Ok(())
    }

    fn request(&self, number: u64) -> PublishStreamRequest {
        PublishStreamRequest { correlation_id: number, event: Some(self.item(number).event()) }
    }

    fn take(&mut self, answer: &PublishStreamResponse) -> Result<(), Status> {
        match answer.result.as_ref().and_then(|result| result.result.as_ref()) {
            Some(publish_result::Result::Receipt(_)) => self.is_durable(answer.correlation_id),
            other => {
                let refused = format!("{other:?}");
                assert!(refused.contains("retryable: true"), "a valid event was refused for good: {refused}");
                return Err(Status::unavailable(refused));
            }
        }
        Ok(())
    }
}

/// A valid event of a valid caller is refused only for reasons that pass.
fn assert_transient(status: &Status) {
    use Code::{Cancelled, DeadlineExceeded, ResourceExhausted, Unavailable, Unknown};
    let passes = matches!(status.code(), Unavailable | Cancelled | Unknown | DeadlineExceeded | ResourceExhausted);
    assert!(passes || broken(status), "a publish failed for good: {status:?}");
}

/// The connection broke: tonic calls that an internal error.
fn broken(status: &Status) -> bool {
    status.code() == Code::Internal && std::error::Error::source(status).is_some()
}
