//! The stage: a running system, organizations in it, and their endpoints with a receiver behind each.

use std::time::{Duration, Instant};

use proto::{
    router::v1::{
        Change, Content, Event, ListEventsRequest, LoggedEvent, Metadata, Operation, PublishRequest, Receipt,
        event::Payload, event_service_client::EventServiceClient,
    },
    vendorsync::v1::{
        Attempt, CreateEndpointRequest, Delivery, DeliveryState, Endpoint, GetEndpointRequest, ListAttemptsRequest,
        ListDeliveriesRequest, delivery_service_client::DeliveryServiceClient,
        endpoint_service_client::EndpointServiceClient, integration_service_client::IntegrationServiceClient,
    },
};
use serde_json::Value;
use tokio::time::sleep;
use tonic::{Response, Status, service::interceptor::InterceptedService, transport::Channel};

use super::receiver::Receiver;
pub(super) use crate::harness::now;
use crate::harness::{Addresses, Engine, Key, PATIENCE, Wedsync, client};

/// A type that a built-in route sends to webhooks, and that means nothing here.
pub(super) const PLAIN: &str = "client.created";

/// One of our services, called with an organization's key.
pub(super) type Service = InterceptedService<Channel, Key>;

/// A system of its own, and an organization in it.
pub(super) struct Story {
    pub(super) system: Wedsync,
    pub(super) acme: Tenant,
}

impl Story {
    /// Another organization.
    pub(super) async fn tenant(&self, name: &str) -> Tenant {
        Tenant::of(&self.system, name).await
    }
}

/// Tells a story on every engine that is there.
pub(super) async fn on_each_engine(story: impl AsyncFn(Story)) {
    on_each_engine_with(&[], story).await;
}

/// The same with further settings (`WEDSYNC_...`).
pub(super) async fn on_each_engine_with(settings: &[(&str, &str)], story: impl AsyncFn(Story)) {
    for engine in Engine::all() {
        println!("on {engine:?}");
        let system = Wedsync::start_on(&engine, settings).await;
        let acme = Tenant::of(&system, "Acme").await;
        Box::pin(story(Story { system, acme })).await;
    }
}

/// An organization, and every service as its key reaches it.
#[derive(Clone)]
pub(super) struct Tenant {
    pub(super) key: Key,
    pub(super) addresses: Addresses,
    router: Service,
    vendor_sync: Service,
}

impl Tenant {
    pub(super) async fn of(system: &Wedsync, name: &str) -> Self {
        Self::at(system.addresses, system.tenant(name).await)
    }

    /// Whose key this is, at a system that listens there.
    pub(super) fn at(addresses: Addresses, key: Key) -> Self {
        Self {
            addresses,
            router: client(addresses.router, &key),
            vendor_sync: client(addresses.vendor_sync, &key),
            key,
        }
    }

    pub(super) fn events(&self) -> EventServiceClient<Service> {
        EventServiceClient::new(self.router.clone())
    }

    pub(super) fn endpoints(&self) -> EndpointServiceClient<Service> {
        EndpointServiceClient::new(self.vendor_sync.clone())
    }

    pub(super) fn deliveries(&self) -> DeliveryServiceClient<Service> {
        DeliveryServiceClient::new(self.vendor_sync.clone())
    }

    pub(super) fn integrations(&self) -> IntegrationServiceClient<Service> {
        IntegrationServiceClient::new(self.vendor_sync.clone())
    }

    /// Publishes one event, which must be taken.
    pub(super) async fn publish(&self, event: Event) -> Receipt {
        let published = self.events().publish(PublishRequest { event: Some(event) }).await;
        published.expect("it is stored").into_inner().receipt.expect("the answer holds it")
    }

    /// Publishes a domain event of no consequence under each of these ids.
    pub(super) async fn publish_all(&self, ids: &[&str]) {
        for id in ids {
            self.publish(told(id, PLAIN, "{}")).await;
        }
    }

    /// What the log holds of these types (all, if none is named).
    pub(super) async fn logged(&self, types: &[&str]) -> Vec<LoggedEvent> {
        let types = types.iter().map(|type_| (*type_).to_owned()).collect();
        let request = ListEventsRequest { page_size: 500, types, ..ListEventsRequest::default() };
        self.events().list_events(request).await.expect("the log can be read").into_inner().events
    }

    /// Asks for an endpoint.
    pub(super) async fn create(&self, endpoint: Endpoint) -> Result<(Endpoint, String), Status> {
        let request = CreateEndpointRequest { endpoint: Some(endpoint) };
        let created = self.endpoints().create_endpoint(request).await?.into_inner();
        Ok((created.endpoint.expect("the answer holds it"), created.secret))
    }

    /// An endpoint for everything, and a receiver behind it.
    pub(super) async fn subscribe(&self) -> Subscriber {
        self.subscribe_with(Endpoint::default()).await
    }

    /// The same with these settings; the URL is the receiver's, and no types mean all of them.
    pub(super) async fn subscribe_with(&self, settings: Endpoint) -> Subscriber {
        let receiver = Receiver::start().await;
        let types = if settings.event_types.is_empty() { vec!["*".to_owned()] } else { settings.event_types.clone() };
        let endpoint = Endpoint { url: receiver.url(), event_types: types, ..settings };
        let (endpoint, secret) = self.create(endpoint).await.expect("an endpoint");
        Subscriber { tenant: self.clone(), id: endpoint.id, secret, receiver }
    }
}

/// An endpoint and who stands behind it.
pub(super) struct Subscriber {
    pub(super) tenant: Tenant,
    pub(super) id: String,
    pub(super) secret: String,
    pub(super) receiver: Receiver,
}

impl Subscriber {
    pub(super) async fn endpoint(&self) -> Endpoint {
        let request = GetEndpointRequest { id: self.id.clone() };
        let got = self.tenant.endpoints().get_endpoint(request).await.expect("it is there");
        got.into_inner().endpoint.expect("the answer holds it")
    }

    /// All of its deliveries, newest first.
    pub(super) async fn deliveries(&self) -> Vec<Delivery> {
        let request =
            ListDeliveriesRequest { endpoint_id: self.id.clone(), page_size: 500, ..ListDeliveriesRequest::default() };
        self.tenant.deliveries().list_deliveries(request).await.expect("a page").into_inner().deliveries
    }

    /// All of its deliveries, once there are `count` and each is in `state`.
    pub(super) async fn settled(&self, count: usize, state: DeliveryState) -> Vec<Delivery> {
        eventually(&format!("{count} deliveries are {}", state.as_str_name()), async || {
            let deliveries = self.deliveries().await;
            let settled = deliveries.len() == count && deliveries.iter().all(|delivery| delivery.state() == state);
            if settled { Ok(deliveries) } else { Err(format!("{deliveries:?}")) }
        })
        .await
    }

    /// Every attempt of a delivery, oldest first.
    pub(super) async fn attempts(&self, delivery: &Delivery) -> Vec<Attempt> {
        let request = ListAttemptsRequest { delivery_id: delivery.id.clone() };
        self.tenant.deliveries().list_attempts(request).await.expect("it is there").into_inner().attempts
    }
}

/// Looks until there is what was hoped for; `Err` says what there is instead.
pub(super) async fn eventually<T>(what: &str, mut look: impl AsyncFnMut() -> Result<T, String>) -> T {
    let began = Instant::now();
    loop {
        match look().await {
            Ok(found) => return found,
            Err(instead) => assert!(began.elapsed() < PATIENCE, "{what}: not within {PATIENCE:?}: {instead}"),
        }
        sleep(Duration::from_millis(20)).await;
    }
}

/// Why a call was refused.
pub(super) fn refused<T: std::fmt::Debug>(answer: Result<Response<T>, Status>) -> Status {
    answer.expect_err("it is refused")
}

/// A domain event with this JSON content.
pub(super) fn told(id: &str, type_: &str, data: &str) -> Event {
    Event {
        id: id.to_owned(),
        r#type: type_.to_owned(),
        source: "stories".to_owned(),
        payload: Some(Payload::Content(Content { content_type: String::new(), data: data.as_bytes().to_vec().into() })),
        ..Event::default()
    }
}

/// An UPDATE of a row of `wedding_details`.
pub(super) fn updated(id: &str, old: &Value, new: &Value) -> Event {
    let record = |value: &Value| value.to_string().into_bytes().into();
    let change = Change {
        schema: "public".to_owned(),
        table: "wedding_details".to_owned(),
        operation: Operation::Update.into(),
        old_record: record(old),
        new_record: record(new),
    };
    Event { payload: Some(Payload::Change(change)), r#type: String::new(), ..told(id, "", "") }
}

/// A change of a row; a record that there is none of is null.
pub(super) fn change(table: &str, operation: Operation, old: Value, new: Value) -> Event {
    let record = |value: Value| if value.is_null() { String::new() } else { value.to_string() }.into_bytes().into();
    let change = Change {
        schema: "public".to_owned(),
        table: table.to_owned(),
        operation: operation.into(),
        old_record: record(old),
        new_record: record(new),
    };
    Event { payload: Some(Payload::Change(change)), ..Event::default() }
}

/// A new row.
pub(super) fn inserted(table: &str, new: Value) -> Event {
    change(table, Operation::Insert, Value::Null, new)
}

/// `event` as one of this supplier's.
pub(super) fn of_supplier(supplier: &str, event: Event) -> Event {
    let metadata = Metadata { supplier_id: supplier.to_owned(), ..Metadata::default() };
    Event { metadata: Some(metadata), ..event }
}

pub(super) fn millis(millis: u32) -> prost_types::Duration {
    Duration::from_millis(millis.into()).try_into().expect("a short time")
}

/// A time before anything of the story happened.
pub(super) fn long_ago() -> Option<prost_types::Timestamp> {
    Some(prost_types::Timestamp { seconds: now().as_second() - 3600, nanos: 0 })
}
