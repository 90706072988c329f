//! A router on a store of its own, on a clock that the test moves, and clients that hold real keys.

use std::{collections::VecDeque, net::SocketAddr, path::Path, time::Duration};

use chassis::{
    clock::{Clock, ManualClock},
    config::StoreSettings,
    error::Error,
    grpc::{Connection, MESSAGE_LIMIT, Peer},
    service::Chassis,
    testing::{engines, manual_clock},
};
use proto::{
    common::v1::{Position, Priority},
    router::v1::{
        self as wire, Acknowledge, Change, ConsumeRequest, ConsumedEvent, Content, CreateApiKeyRequest,
        CreateOrganizationRequest, Credit, Event, GetHeadRequest, ListEventsRequest, LoggedEvent, Operation,
        Organization, PublishRequest, Receipt, Scope, StartConsuming, capture_service_client::CaptureServiceClient,
        consume_request::Message, consumer_service_client::ConsumerServiceClient, event::Payload,
        event_service_client::EventServiceClient, organization_service_client::OrganizationServiceClient,
        route_service_client::RouteServiceClient, subscription_service_client::SubscriptionServiceClient,
        wedding_service_client::WeddingServiceClient,
    },
};
use router_svc::Config;
use serde_json::Value;
use tokio::{sync::mpsc, time::timeout};
use tokio_stream::wrappers::ReceiverStream;
use tonic::{Code, Status, Streaming};

/// How long anything may take before a test gives up on it: generous, since builds may share the machine.
pub(crate) const PATIENCE: Duration = Duration::from_secs(120);
/// How long nothing must come for a test to believe that nothing comes.
pub(crate) const QUIET: Duration = Duration::from_millis(400);

/// A running router.
pub(crate) struct World {
    pub(crate) chassis: Chassis,
    pub(crate) time: ManualClock,
    pub(crate) config: Config,
    pub(crate) address: SocketAddr,
}

impl World {
    pub(crate) async fn start(store: StoreSettings, folder: &Path) -> Self {
        let (time, clock) = manual_clock();
        let chassis = Chassis::new((*Chassis::for_test().shared).clone(), clock).unwrap();
        let config = Config {
            listen: SocketAddr::from(([127, 0, 0, 1], 0)),
            bootstrap_key_file: folder.join(format!("{}.key", store.schema)),
            store,
            ..Config::default()
        };
        Self::start_with(config, time, chassis).await
    }

    pub(crate) async fn start_with(config: Config, time: ManualClock, chassis: Chassis) -> Self {
        let started = chassis.clock.now();
        let mut tries = 0;
        let service = loop {
            match router_svc::start(config.clone(), &chassis).await {
                Ok(service) => break service,
                // PostgreSQL takes a moment to see that the former owner's connection is gone.
                Err(error) if tries < 50 && error.to_string().contains("in use by another process") => {
                    tries += 1;
                    tokio::time::sleep(Duration::from_millis(100)).await;
                }
                Err(error) => panic!("started at {started}: {error:#}"),
            }
        };
        Self { chassis, time, config, address: service.address }
    }

    /// Another chassis with the same secrets on the same clock.
    pub(crate) fn another_chassis(&self) -> Chassis {
        Chassis::new((*self.chassis.shared).clone(), Clock::Manual(self.time.clone())).unwrap()
    }

    /// Stops it in order and starts it anew on the same store.
    pub(crate) async fn restart(self) -> Self {
        assert!(self.chassis.drain().await, "it stops in time");
        let chassis = self.another_chassis();
        Self::start_with(self.config, self.time, chassis).await
    }

    /// As another process calls it: over the wire.
    fn peer(&self) -> Peer {
        Peer::new("tester", &format!("http://{}", self.address), &self.another_chassis()).unwrap()
    }

    /// With the token of a service.
    pub(crate) fn service(&self) -> Client {
        Client(self.peer())
    }

    /// With the key that was made at the first start.
    pub(crate) fn operator(&self) -> Client {
        let secret = std::fs::read_to_string(&self.config.bootstrap_key_file).unwrap();
        self.client(secret.trim())
    }

    pub(crate) fn client(&self, secret: &str) -> Client {
        Client(self.peer().with_bearer(secret).unwrap())
    }

    /// Makes an organization and a key of it that may do all.
    pub(crate) async fn organization(&self, id: &str) -> Client {
        let organization = Organization { id: id.to_owned(), name: id.to_owned(), ..Organization::default() };
        let request = CreateOrganizationRequest { organization: Some(organization) };
        self.operator().organizations().create_organization(request).await.unwrap();
        self.client(&self.key(id, &[Scope::Admin]).await.1)
    }

    /// A key of an organization: its id and its secret.
    pub(crate) async fn key(&self, organization: &str, scopes: &[Scope]) -> (String, String) {
        let request = CreateApiKeyRequest {
            organization_id: organization.to_owned(),
            scopes: scopes.iter().map(|scope| *scope as i32).collect(),
            ..CreateApiKeyRequest::default()
        };
        let made = self.operator().organizations().create_api_key(request).await.unwrap().into_inner();
        (made.api_key.unwrap().id, made.secret)
    }
}

/// Runs `test` with a fresh router on each engine.
pub(crate) async fn on_each<F: Future<Output = ()>>(test: impl Fn(World) -> F) {
    let (folder, engines) = engines();
    for store in engines {
        Box::pin(test(World::start(store, folder.path()).await)).await;
    }
}

/// A caller with credentials of its own.
#[derive(Clone)]
pub(crate) struct Client(pub(crate) Peer);

impl Client {
    pub(crate) fn events(&self) -> EventServiceClient<Connection> {
        EventServiceClient::new(self.0.channel())
            .max_encoding_message_size(2 * MESSAGE_LIMIT)
            .max_decoding_message_size(MESSAGE_LIMIT)
    }

    pub(crate) fn consumers(&self) -> ConsumerServiceClient<Connection> {
        ConsumerServiceClient::new(self.0.channel()).max_decoding_message_size(MESSAGE_LIMIT)
    }

    pub(crate) fn subscriptions(&self) -> SubscriptionServiceClient<Connection> {
        SubscriptionServiceClient::new(self.0.separate().channel())
    }

    pub(crate) fn routes(&self) -> RouteServiceClient<Connection> {
        RouteServiceClient::new(self.0.channel())
    }

    pub(crate) fn captures(&self) -> CaptureServiceClient<Connection> {
        CaptureServiceClient::new(self.0.channel())
    }

    pub(crate) fn weddings(&self) -> WeddingServiceClient<Connection> {
        WeddingServiceClient::new(self.0.channel())
    }

    pub(crate) fn organizations(&self) -> OrganizationServiceClient<Connection> {
        OrganizationServiceClient::new(self.0.channel())
    }

    pub(crate) async fn try_publish(&self, event: Event) -> Result<Receipt, Status> {
        Ok(self.events().publish(PublishRequest { event: Some(event) }).await?.into_inner().receipt.unwrap())
    }

    pub(crate) async fn publish(&self, event: Event) -> Receipt {
        self.try_publish(event).await.unwrap()
    }

    /// Publishes an event and says where it stands.
    pub(crate) async fn sequence(&self, event: Event) -> u64 {
        self.publish(event).await.position.unwrap().sequence
    }

    pub(crate) async fn head(&self) -> Position {
        self.events().get_head(GetHeadRequest {}).await.unwrap().into_inner().head.unwrap()
    }

    /// A place in this log.
    pub(crate) async fn position(&self, sequence: u64) -> Position {
        Position { sequence, ..self.head().await }
    }

    /// Every event of the organization, page by page.
    pub(crate) async fn all(&self) -> Vec<LoggedEvent> {
        let (mut events, mut page_token) = (Vec::new(), String::new());
        loop {
            let request = ListEventsRequest { page_token, page_size: 500, ..ListEventsRequest::default() };
            let page = self.events().list_events(request).await.unwrap().into_inner();
            events.extend(page.events);
            page_token = page.next_page_token;
            if page_token.is_empty() {
                return events;
            }
        }
    }

    /// Joins a group with so much credit.
    pub(crate) async fn join(&self, group: &str, events: u32) -> Member {
        let credit = Some(Credit { events, bytes: 0 });
        self.start(StartConsuming { group: group.to_owned(), credit, ..StartConsuming::default() }).await.unwrap()
    }

    pub(crate) async fn start(&self, start: StartConsuming) -> Result<Member, Status> {
        let (requests, outgoing) = mpsc::channel(64);
        requests.send(ConsumeRequest { message: Some(Message::Start(start)) }).await.unwrap();
        let peer = self.0.separate();
        let mut client = ConsumerServiceClient::new(peer.channel()).max_decoding_message_size(MESSAGE_LIMIT);
        let mut answers = client.consume(ReceiverStream::new(outgoing)).await?.into_inner();
        let started = timeout(PATIENCE, answers.message()).await.expect("an answer in time")?.unwrap().started;
        assert!(started.is_some(), "the first answer says that the group was joined");
        Ok(Member { requests, answers, waiting: VecDeque::new() })
    }
}

/// A member of a consumer group. Dropped, its stream ends.
pub(crate) struct Member {
    requests: mpsc::Sender<ConsumeRequest>,
    answers: Streaming<wire::ConsumeResponse>,
    waiting: VecDeque<ConsumedEvent>,
}

impl Member {
    pub(crate) async fn next(&mut self) -> ConsumedEvent {
        timeout(PATIENCE, self.receive()).await.expect("an event in time")
    }

    async fn receive(&mut self) -> ConsumedEvent {
        while self.waiting.is_empty() {
            let answer = self.answers.message().await.expect("the stream goes on").expect("the stream goes on");
            let bytes: usize = answer.events.iter().map(prost::Message::encoded_len).sum();
            assert!(bytes <= 1 << 20 || answer.events.len() == 1, "{bytes} bytes in one answer");
            self.waiting.extend(answer.events);
        }
        self.waiting.pop_front().unwrap()
    }

    /// Why its stream ends, which is what comes next.
    pub(crate) async fn broken_off(&mut self) -> Status {
        timeout(PATIENCE, self.answers.message()).await.expect("an end in time").expect_err("the stream ends")
    }

    /// The ids of the next events.
    pub(crate) async fn ids(&mut self, count: usize) -> Vec<String> {
        let mut ids = Vec::new();
        for _ in 0..count {
            ids.push(id_of(&self.next().await));
        }
        ids
    }

    /// Whatever comes until nothing does.
    pub(crate) async fn rest(&mut self) -> Vec<ConsumedEvent> {
        let mut rest = Vec::new();
        while let Ok(event) = timeout(QUIET, self.receive()).await {
            rest.push(event);
        }
        rest
    }

    pub(crate) async fn acknowledge(&self, events: impl IntoIterator<Item = &ConsumedEvent>) {
        let sequences = events.into_iter().map(sequence_of).collect();
        self.say(Message::Acknowledge(Acknowledge { sequences })).await;
    }

    pub(crate) async fn credit(&self, events: u32, bytes: u64) {
        self.say(Message::Credit(Credit { events, bytes })).await;
    }

    async fn say(&self, message: Message) {
        self.requests.send(ConsumeRequest { message: Some(message) }).await.unwrap();
    }
}

pub(crate) fn id_of(event: &ConsumedEvent) -> String {
    event.event.as_ref().unwrap().id.clone()
}

pub(crate) fn sequence_of(event: &ConsumedEvent) -> u64 {
    event.event.as_ref().unwrap().position.as_ref().unwrap().sequence
}

/// A domain event.
pub(crate) fn content(id: &str, type_: &str, data: Value) -> Event {
    raw(id, type_, data.to_string().into_bytes())
}

/// A domain event with these very bytes.
pub(crate) fn raw(id: &str, type_: &str, data: Vec<u8>) -> Event {
    let content = Content { content_type: String::new(), data: data.into() };
    Event { id: id.to_owned(), r#type: type_.to_owned(), payload: Some(Payload::Content(content)), ..Event::default() }
}

/// A domain event that says nothing, of one ordering key.
pub(crate) fn keyed(id: &str, key: &str) -> Event {
    Event { ordering_key: key.to_owned(), ..content(id, "test.happened", Value::Null) }
}

/// The same, which its publisher asks to be LOW.
pub(crate) fn low(id: &str, key: &str) -> Event {
    Event { priority: Priority::Low.into(), ..keyed(id, key) }
}

/// The same, of a type that is CRITICAL.
pub(crate) fn critical(id: &str, key: &str) -> Event {
    Event { r#type: "emergency.raised".to_owned(), ..keyed(id, key) }
}

/// A change of a row; null is no record.
pub(crate) fn change(id: &str, table: &str, operation: Operation, old: Value, new: Value) -> Event {
    let bytes = |record: Value| if record.is_null() { Vec::new() } else { record.to_string().into_bytes() };
    let change = Change {
        schema: "public".to_owned(),
        table: table.to_owned(),
        operation: operation.into(),
        old_record: bytes(old).into(),
        new_record: bytes(new).into(),
    };
    Event { id: id.to_owned(), payload: Some(Payload::Change(change)), ..Event::default() }
}

/// The field that a refusal names.
pub(crate) fn field(status: Status) -> String {
    assert_eq!(status.code(), Code::InvalidArgument, "{status:?}");
    match Error::from(status) {
        Error::Invalid { field, .. } => field.into_owned(),
        other => panic!("{other:?}"),
    }
}

/// Waits until `holds`.
pub(crate) async fn until<F: Future<Output = bool>>(what: &str, holds: impl Fn() -> F) {
    let waiting = async {
        while !holds().await {
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    };
    timeout(PATIENCE, waiting).await.unwrap_or_else(|_| panic!("not in time: {what}"));
}
