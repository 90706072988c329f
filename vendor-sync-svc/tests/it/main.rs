//! The running service over gRPC, without a router: what it refuses before it needs one, and what it purges by itself.

use std::time::Duration;

use chassis::{
    clock::Clock,
    config::{Secret, StoreSettings},
    error::Error,
    grpc::Peer,
    lane,
    service::Chassis,
    store::{self, Store},
    testing::{manual_clock, noon},
    with,
};
use proto::vendorsync::v1::{
    CreateEndpointRequest, Endpoint, GetEndpointRequest, ListDeliveriesRequest, ListEndpointsRequest,
    delivery_service_client::DeliveryServiceClient, endpoint_service_client::EndpointServiceClient,
};
use tonic::{Code, Status};
use vendor_sync_svc::Config;

struct Running {
    service: vendor_sync_svc::Service,
    chassis: Chassis,
    uri: String,
    _folder: tempfile::TempDir,
}

impl Running {
    async fn start() -> Self {
        Self::start_in(tempfile::tempdir().expect("a folder"), Chassis::for_test()).await
    }

    async fn start_in(folder: tempfile::TempDir, chassis: Chassis) -> Self {
        let mut config =
            Config { listen: ([127, 0, 0, 1], 0).into(), router: "http://127.0.0.1:9".to_owned(), ..Config::default() };
        config.store.url = url(&folder);
        let service = vendor_sync_svc::start(config, &chassis).await.expect("it starts");
        let uri = format!("http://{}", service.address);
        Self { service, chassis, uri, _folder: folder }
    }

    async fn create(&self, url: &str) -> Result<(), Status> {
        let peer = Peer::new("tester", &self.uri, &self.chassis).expect("an address");
        let endpoint = Endpoint {
            organization_id: "acme".to_owned(),
            url: url.to_owned(),
            event_types: vec!["*".to_owned()],
            ..Endpoint::default()
        };
        EndpointServiceClient::new(peer.channel())
            .create_endpoint(CreateEndpointRequest { endpoint: Some(endpoint) })
            .await
            .map(drop)
    }

    async fn stop(self) {
        assert!(self.chassis.drain().await, "it stops in time");
    }
}

fn url(folder: &tempfile::TempDir) -> Secret {
    Secret::from(format!("sqlite:{}", folder.path().join("vendor-sync.db").display()))
}

/// Stores deliveries that were made now and ended at once.
async fn deliver(folder: &tempfile::TempDir, count: i64) {
    let settings = StoreSettings { url: url(folder), ..StoreSettings::default() };
    let store = Store::open(&settings, &[&store::MIGRATIONS, &lane::MIGRATIONS]).await.expect("a fresh store");
    let insert = |text| with_text(&store, text);
    insert("INSERT INTO lanes (number, id, organization_id, breaker_openings) VALUES (1, 'e', 'acme', 0)".to_owned())
        .await;
    for id in 1..=count {
        let now = noon().as_microsecond();
        insert(format!(
            "INSERT INTO deliveries (id, lane, organization_id, event, event_id, event_type, ordering_key, priority, state, origin, attempts,
                 reopened_after, next_at, created_at, finished_at, reason)
             VALUES ({id}, 1, 'acme', x'{id:032x}', 'e{id}', 'a.b', 'k', 3, 3, 'realtime', 1, 0, {now}, {now}, {now}, '')"
        ))
        .await;
    }
    store.close().await;
}

async fn with_text(store: &Store, text: String) {
    with!(store.writer(), c => sqlx::query(sqlx::AssertSqlSafe(text.as_str())).execute(c).await.map(drop))
        .expect("it is stored");
}

#[tokio::test]
async fn old_deliveries_go_while_it_runs_and_the_newest_stays() {
    let folder = tempfile::tempdir().expect("a folder");
    deliver(&folder, 3).await;
    let (time, clock) = manual_clock();
    let chassis = Chassis::new((*Chassis::for_test().shared).clone(), clock).expect("test settings hold");
    let running = Running::start_in(folder, chassis).await;
    // Tokens are made by the clock that the service checks them by.
    let caller = Chassis::new((*running.chassis.shared).clone(), Clock::Manual(time.clone())).expect("they hold");
    let mut deliveries =
        DeliveryServiceClient::new(Peer::new("tester", &running.uri, &caller).expect("an address").channel());
    let mut left = async || {
        let list = ListDeliveriesRequest { organization_id: "acme".to_owned(), ..ListDeliveriesRequest::default() };
        let listed = deliveries.list_deliveries(list).await.expect("it is allowed to ask").into_inner();
        listed.deliveries.into_iter().map(|delivery| delivery.id).collect::<Vec<_>>()
    };
    assert_eq!(left().await.len(), 3);
    time.advance(Duration::from_secs(91 * 86_400));
    while left().await.len() > 1 {
        time.advance(Duration::from_secs(3_600));
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    assert_eq!(left().await, ["3"]);
    running.stop().await;
}

#[tokio::test]
async fn a_private_address_is_refused_at_creation_however_it_is_written() {
    let running = Running::start().await;
    for host in [
        "127.0.0.1",
        "127.1",
        "2130706433",
        "0x7f000001",
        "0177.0.0.1",
        "10.0.0.1",
        "192.168.1.1",
        "172.16.0.1",
        "169.254.169.254",
        "100.64.0.1",
        "0.0.0.0",
        "[::1]",
        "[::ffff:127.0.0.1]",
        "[fe80::1]",
        "[fd00::1]",
        "[64:ff9b::7f00:1]",
        "localhost",
        "metadata.google.internal",
        "１２７.0.0.1",
    ] {
        let refused = running.create(&format!("https://{host}/hook")).await.expect_err(host);
        assert_eq!(refused.code(), Code::InvalidArgument, "{host}: {refused}");
        let Error::Invalid { field, .. } = Error::from(refused) else { panic!("{host}") };
        assert_eq!(field, "endpoint.url", "{host}");
    }
    for url in ["http://example.com/", "ftp://example.com/", "https://user:word@example.com/", "example.com", ""] {
        assert_eq!(running.create(url).await.expect_err(url).code(), Code::InvalidArgument, "{url}");
    }
    running.stop().await;
}

#[tokio::test]
async fn without_credentials_nothing_is_answered_and_an_unknown_organization_has_no_endpoints() {
    let running = Running::start().await;
    let channel = tonic::transport::Endpoint::from_shared(running.uri.clone()).expect("an address").connect_lazy();
    let anonymous = EndpointServiceClient::new(channel).get_endpoint(GetEndpointRequest::default()).await;
    assert_eq!(anonymous.expect_err("no credentials").code(), Code::Unauthenticated);
    let peer = Peer::new("tester", &running.uri, &running.chassis).expect("an address");
    let list = ListEndpointsRequest { organization_id: "acme".to_owned(), ..ListEndpointsRequest::default() };
    let listed = EndpointServiceClient::new(peer.channel()).list_endpoints(list).await.expect("it is allowed to ask");
    assert!(listed.into_inner().endpoints.is_empty());
    running.stop().await;
}

#[tokio::test]
async fn its_own_port_is_no_target() {
    let running = Running::start().await;
    let own = format!("https://127.0.0.1:{}/", running.service.address.port());
    assert!(running.service.outbound.vet(&own).is_err());
    running.stop().await;
}
