//! The consuming end of a router's durable group: takes events in order, acknowledges each once its effects are durable,
//! and joins again whenever the stream ends.
//!
//! Guarantee: an event is acknowledged only after its handler's promise is kept; whatever was not acknowledged when a
//! stream ends comes again, marked `redelivered`. One that can't be handled for good is tried a number of times and then
//! passed over, since it would hold back what follows, of every organization; it stays in the log, to be replayed.

use std::time::Duration;

use futures_util::{
    FutureExt as _, StreamExt as _,
    future::{self, BoxFuture},
    stream::FuturesUnordered,
};
use proto::router::v1::{
    Acknowledge, ConsumeRequest, ConsumedEvent, Credit, StartConsuming, consume_request::Message,
    consumer_service_client::ConsumerServiceClient,
};
use tokio::sync::mpsc;
use tokio_stream::wrappers::ReceiverStream;
use tokio_util::sync::CancellationToken;

use crate::{
    error::{Error, Result},
    grpc::{MESSAGE_LIMIT, Peer},
};

/// Events that may be under way at once.
const CREDIT_EVENTS: u32 = 1_024;
/// Bytes that may be under way at once.
const CREDIT_BYTES: u64 = 2 << 20;
/// Acknowledgements in one message.
const ACKNOWLEDGEMENTS: usize = 512;
/// How often an event is tried whose handling fails for good: over ten seconds, in which what isn't its own fault may pass.
const TRIES: u32 = 8;
/// Waits between tries to join: doubles up to the last.
const FIRST_WAIT: Duration = Duration::from_millis(100);
const LONGEST_WAIT: Duration = Duration::from_secs(5);

/// What is done with an event, in two steps: `take` is called for one event after the other, in the group's order; the
/// promise it gives is kept beside the others', and the event is acknowledged then.
pub trait Handler: Send + Sync + 'static {
    /// Takes an event in. The promise resolves once its effects are durable.
    ///
    /// # Errors
    /// Any error, here or of the promise, ends the stream; the event comes again, as often as [`TRIES`] where the error here
    /// isn't retryable.
    fn take(&self, event: ConsumedEvent) -> impl Future<Output = Result<BoxFuture<'static, Result<()>>>> + Send;
}

/// Consumes a group until told to stop.
pub async fn run<H: Handler>(router: Peer, group: &'static str, handler: H, stopping: CancellationToken) {
    let (mut wait, mut failing) = (FIRST_WAIT, Failing::default());
    loop {
        let outcome = stopping.run_until_cancelled(stream(&router, group, &handler, &mut wait, &mut failing)).await;
        let Some(Err(error)) = outcome else {
            if outcome.is_none() {
                return;
            }
            continue;
        };
        tracing::warn!(%error, group, wait_ms = wait.as_millis(), "the stream of events ended; joining again");
        if stopping.run_until_cancelled(tokio::time::sleep(wait)).await.is_none() {
            return;
        }
        wait = (wait * 2).min(LONGEST_WAIT);
    }
}

/// The event whose handling last failed for good.
#[derive(Default)]
struct Failing {
    sequence: u64,
    times: u32,
}

impl Failing {
    /// Whether an event that fails was tried often enough.
    fn gives_up(&mut self, sequence: u64, error: &Error) -> bool {
        self.times = if self.sequence == sequence { self.times + 1 } else { 1 };
        self.sequence = sequence;
        let gives_up = self.times >= TRIES;
        tracing::error!(sequence, times = self.times, passed_over = gives_up, ?error, "an event can't be handled");
        metrics::counter!("events_passed_over_total").increment(u64::from(gives_up));
        gives_up
    }
}

/// One stream, from joining to its end.
async fn stream<H: Handler>(
    router: &Peer,
    group: &str,
    handler: &H,
    wait: &mut Duration,
    failing: &mut Failing,
) -> Result<()> {
    // Room for every acknowledgement that can be due: the stream never waits for itself.
    let (requests, outgoing) = mpsc::channel(CREDIT_EVENTS as usize + 16);
    let start = StartConsuming {
        group: group.to_owned(),
        credit: Some(Credit { events: CREDIT_EVENTS, bytes: CREDIT_BYTES }),
        ..Default::default()
    };
    send(&requests, Message::Start(start)).await?;
    let mut client = ConsumerServiceClient::new(router.channel()).max_decoding_message_size(MESSAGE_LIMIT);
    let mut incoming = client.consume(ReceiverStream::new(outgoing)).await?.into_inner();
    let mut promises = FuturesUnordered::new();
    loop {
        tokio::select! {
            biased;
            Some(kept) = promises.next(), if !promises.is_empty() => {
                let mut done = vec![kept?];
                while done.len() < ACKNOWLEDGEMENTS
                    && let Some(Some(kept)) = promises.next().now_or_never()
                {
                    done.push(kept?);
                }
                *wait = FIRST_WAIT;
                acknowledge(&requests, &done).await?;
            }
            response = incoming.message() => {
                // A router that took us in and goes is soon back; an event that can't be handled comes again at once.
                let response = response.inspect_err(|_| *wait = FIRST_WAIT)?;
                let Some(response) = response else {
                    *wait = FIRST_WAIT;
                    return Err(Error::Unavailable("the router ended the stream".into()));
                };
                for event in response.events {
                    let sequence = event.event.as_ref().and_then(|event| event.position.as_ref()).map_or(0, |position| position.sequence);
                    let bytes = event.credit_bytes;
                    let promise = match handler.take(event).await {
                        Err(error) if !error.is_retryable() && failing.gives_up(sequence, &error) => {
                            future::ready(Ok(())).boxed()
                        }
                        taken => taken?,
                    };
                    promises.push(async move { promise.await.map(|()| (sequence, bytes)) });
                }
            }
        }
    }
}

async fn acknowledge(requests: &mpsc::Sender<ConsumeRequest>, done: &[(u64, u64)]) -> Result<()> {
    crate::fail::point("consume.acknowledge");
    let sequences = done.iter().map(|(sequence, _)| *sequence).collect();
    send(requests, Message::Acknowledge(Acknowledge { sequences })).await?;
    let events = u32::try_from(done.len()).unwrap_or(u32::MAX);
    let bytes = done.iter().map(|(_, bytes)| *bytes).sum();
    send(requests, Message::Credit(Credit { events, bytes })).await
}

async fn send(requests: &mpsc::Sender<ConsumeRequest>, message: Message) -> Result<()> {
    let sent = requests.send(ConsumeRequest { message: Some(message) }).await;
    sent.map_err(|_| Error::Unavailable("the router ended the stream".into()))
}

#[cfg(all(test, feature = "testing"))]
mod tests {
    use std::net::SocketAddr;

    use futures_util::stream as streams;
    use proto::router::v1::{
        self as wire, ConsumeResponse, Started,
        consumer_service_server::{ConsumerService, ConsumerServiceServer},
    };
    use tonic::{Request, Response, Status, Streaming};

    use super::*;
    use crate::{auth::Access, grpc::Server, service::Chassis};

    /// A router that hands one event to whoever joins, and ends the stream then.
    struct OneEvent;

    #[tonic::async_trait]
    impl ConsumerService for OneEvent {
        type ConsumeStream = streams::Iter<std::vec::IntoIter<Result<ConsumeResponse, Status>>>;

        async fn consume(
            &self,
            _: Request<Streaming<ConsumeRequest>>,
        ) -> Result<Response<Self::ConsumeStream>, Status> {
            let started = ConsumeResponse { started: Some(Started::default()), ..Default::default() };
            let event = ConsumeResponse { events: vec![ConsumedEvent::default()], ..Default::default() };
            Ok(Response::new(streams::iter(vec![Ok(started), Ok(event)])))
        }

        async fn list_groups(
            &self,
            _: Request<wire::ListGroupsRequest>,
        ) -> Result<Response<wire::ListGroupsResponse>, Status> {
            Err(Status::unimplemented(""))
        }

        async fn delete_group(
            &self,
            _: Request<wire::DeleteGroupRequest>,
        ) -> Result<Response<wire::DeleteGroupResponse>, Status> {
            Err(Status::unimplemented(""))
        }
    }

    /// What becomes of every event.
    struct Always(fn() -> Result<()>);

    impl Handler for Always {
        async fn take(&self, _: ConsumedEvent) -> Result<BoxFuture<'static, Result<()>>> {
            (self.0)().map(|()| future::ready(Ok(())).boxed())
        }
    }

    async fn router() -> Peer {
        let chassis = Chassis::for_test();
        let server = Server::bind("router", SocketAddr::from(([127, 0, 0, 1], 0)), &chassis).await.expect("a port");
        let server = server.access(&[("/wedsync.router.v1.ConsumerService/Consume", Access::Any)]);
        let running = server.add(ConsumerServiceServer::new(OneEvent)).serve();
        Peer::new("tester", &format!("http://{}", running.address), &chassis).expect("an address")
    }

    #[tokio::test]
    async fn only_what_a_handler_could_not_do_is_waited_for_longer_each_time() {
        let (router, mut failing) = (router().await, Failing::default());
        let mut wait = LONGEST_WAIT;
        let away = Always(|| Err(Error::Unavailable("the store is away".into())));
        stream(&router, "g", &away, &mut wait, &mut failing).await.expect_err("it can't be handled");
        assert_eq!(wait, LONGEST_WAIT);
        stream(&router, "g", &Always(|| Ok(())), &mut wait, &mut failing).await.expect_err("the router ends it");
        assert_eq!(wait, FIRST_WAIT);
    }

    #[tokio::test]
    async fn what_fails_for_good_is_tried_a_number_of_times_and_then_passed_over() {
        let (router, mut wait, mut failing) = (router().await, FIRST_WAIT, Failing::default());
        let broken = Always(|| Err(Error::internal(anyhow::anyhow!("it can't be read"))));
        for time in 1..=2 * TRIES {
            let ended = stream(&router, "g", &broken, &mut wait, &mut failing).await.expect_err("it ends");
            assert_eq!(ended.is_retryable(), time >= TRIES, "{time}: {ended}");
        }
    }
}
