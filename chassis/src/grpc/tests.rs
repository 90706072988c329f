//! A small router that answers just enough, over real sockets.

use std::{
    io::{Read as _, Write as _},
    sync::atomic::{AtomicBool, AtomicUsize, Ordering},
    time::Duration,
};

use futures_util::{future::BoxFuture, stream};
use proto::router::v1::{
    self as router,
    organization_service_client::OrganizationServiceClient,
    organization_service_server::{OrganizationService, OrganizationServiceServer},
    subscription_service_client::SubscriptionServiceClient,
    subscription_service_server::{SubscriptionService, SubscriptionServiceServer},
};
use tokio::sync::Notify;
use tonic::{Code, Request, Response, Status, transport::Channel};
use tonic_health::pb::{HealthCheckRequest, health_check_response::ServingStatus, health_client::HealthClient};

use super::*;
use crate::{
    auth::{self, Caller, Role, Scope},
    error::Error,
    id::OrganizationId,
    trace::{self, TraceContext},
};

const ACCESS: AccessTable = &[
    ("/wedsync.router.v1.OrganizationService/CreateOrganization", Access::Operator),
    ("/wedsync.router.v1.OrganizationService/GetOrganization", Access::Scope(Scope::Manage)),
    ("/wedsync.router.v1.OrganizationService/ListOrganizations", Access::Any),
    ("/wedsync.router.v1.OrganizationService/ListApiKeys", Access::Any),
    ("/wedsync.router.v1.OrganizationService/DeleteApiKey", Access::Any),
    ("/wedsync.router.v1.OrganizationService/Authenticate", Access::Service),
    ("/wedsync.router.v1.SubscriptionService/Subscribe", Access::Scope(Scope::Manage)),
];

/// Answers with what it sees, panics in `ListOrganizations`, and holds `DeleteApiKey` until `release`.
#[derive(Clone, Default)]
pub(crate) struct FakeRouter {
    /// How often it was asked whose a secret is.
    pub(crate) asked: Arc<AtomicUsize>,
    entered: Arc<Notify>,
    release: Arc<Notify>,
}

#[tonic::async_trait]
impl OrganizationService for FakeRouter {
    async fn create_organization(
        &self,
        _: Request<router::CreateOrganizationRequest>,
    ) -> Result<Response<router::CreateOrganizationResponse>, Status> {
        Ok(Response::new(Default::default()))
    }

    async fn get_organization(
        &self,
        request: Request<router::GetOrganizationRequest>,
    ) -> Result<Response<router::GetOrganizationResponse>, Status> {
        let id = auth::caller(&request)?.organization(&request.get_ref().id)?.to_string();
        let name = trace::current().map(|context| context.to_string()).unwrap_or_default();
        let organization = router::Organization { id, name, ..Default::default() };
        Ok(Response::new(router::GetOrganizationResponse { organization: Some(organization) }))
    }

    async fn list_organizations(
        &self,
        _: Request<router::ListOrganizationsRequest>,
    ) -> Result<Response<router::ListOrganizationsResponse>, Status> {
        panic!("on purpose")
    }

    async fn create_api_key(
        &self,
        _: Request<router::CreateApiKeyRequest>,
    ) -> Result<Response<router::CreateApiKeyResponse>, Status> {
        Ok(Response::new(Default::default()))
    }

    async fn list_api_keys(
        &self,
        _: Request<router::ListApiKeysRequest>,
    ) -> Result<Response<router::ListApiKeysResponse>, Status> {
        std::future::pending().await
    }

    async fn delete_api_key(
        &self,
        _: Request<router::DeleteApiKeyRequest>,
    ) -> Result<Response<router::DeleteApiKeyResponse>, Status> {
        self.entered.notify_one();
        self.release.notified().await;
        Ok(Response::new(Default::default()))
    }

    async fn authenticate(
        &self,
        request: Request<router::AuthenticateRequest>,
    ) -> Result<Response<router::AuthenticateResponse>, Status> {
        self.asked.fetch_add(1, Ordering::Relaxed);
        if request.get_ref().secret != "wsk_known" {
            return Err(Error::NotFound("api key".into()).into());
        }
        let scopes = vec![router::Scope::Publish.into()];
        let answer = router::AuthenticateResponse {
            organization_id: "org".to_owned(),
            key_id: "key".to_owned(),
            scopes,
            operator: false,
        };
        Ok(Response::new(answer))
    }
}

/// A subscription to nothing.
#[tonic::async_trait]
impl SubscriptionService for FakeRouter {
    type SubscribeStream = stream::Pending<Result<router::SubscribeResponse, Status>>;

    async fn subscribe(&self, _: Request<router::SubscribeRequest>) -> Result<Response<Self::SubscribeStream>, Status> {
        Ok(Response::new(stream::pending()))
    }

    async fn broadcast(
        &self,
        _: Request<router::BroadcastRequest>,
    ) -> Result<Response<router::BroadcastResponse>, Status> {
        Ok(Response::new(Default::default()))
    }
}

/// Knows `manager`, `publisher` and `operator`, until they are revoked.
#[derive(Clone, Default)]
struct Keys {
    revoked: Arc<AtomicBool>,
}

impl Authenticator for Keys {
    fn authenticate<'a>(&'a self, secret: &'a str) -> BoxFuture<'a, crate::error::Result<Caller>> {
        let organization = Some(OrganizationId::parse("org").unwrap());
        let (organization, role, scope) = match secret {
            _ if self.revoked.load(Ordering::Relaxed) => {
                return Box::pin(async { Err(Error::Unauthenticated("revoked".into())) });
            }
            "manager" => (organization, Role::Member, Scope::Manage),
            "publisher" => (organization, Role::Member, Scope::Publish),
            "operator" => (None, Role::Operator, Scope::Admin),
            _ => return Box::pin(async { Err(Error::Unauthenticated("unknown".into())) }),
        };
        let caller = Caller { organization, role, scopes: [scope].into_iter().collect(), name: secret.to_owned() };
        Box::pin(async { Ok(caller) })
    }
}

/// A running [`FakeRouter`], and a client without credentials of its own.
pub(crate) struct Fixture {
    pub(crate) chassis: Chassis,
    pub(crate) router: FakeRouter,
    pub(crate) running: Running,
    keys: Keys,
    client: OrganizationServiceClient<Channel>,
}

impl Fixture {
    pub(crate) async fn start() -> Self {
        Self::start_on(Chassis::for_test()).await
    }

    async fn start_on(chassis: Chassis) -> Self {
        let (router, keys) = (FakeRouter::default(), Keys::default());
        let running = Server::bind("router", SocketAddr::from(([127, 0, 0, 1], 0)), &chassis)
            .await
            .expect("some port is free")
            .authenticator(Arc::new(keys.clone()))
            .access(ACCESS)
            .add(OrganizationServiceServer::new(router.clone()))
            .add(SubscriptionServiceServer::new(router.clone()))
            .serve();
        let client = OrganizationServiceClient::new(channel(running.address));
        Self { chassis, router, running, keys, client }
    }

    fn channel(&self) -> Channel {
        channel(self.running.address)
    }

    pub(crate) fn peer(&self) -> Peer {
        Peer::new("notifier", &format!("http://{}", self.running.address), &self.chassis).expect("a loopback address")
    }

    fn http(&self, path: &str) -> String {
        let mut stream = std::net::TcpStream::connect(self.running.address).expect("it listens");
        write!(stream, "GET {path} HTTP/1.1\r\nhost: x\r\nconnection: close\r\n\r\n").expect("it reads");
        let mut answer = String::new();
        stream.read_to_string(&mut answer).expect("it answers");
        answer
    }
}

fn channel(address: SocketAddr) -> Channel {
    Channel::from_shared(format!("http://{address}")).expect("a URI").connect_lazy()
}

fn bare<T: Default>() -> Request<T> {
    Request::new(T::default())
}

fn with<T: Default>(secret: &str) -> Request<T> {
    let mut request = bare();
    request.metadata_mut().insert("authorization", format!("Bearer {secret}").parse().unwrap());
    request
}

#[tokio::test]
async fn credentials_that_nobody_holds_are_unauthenticated() {
    let mut fixture = Fixture::start().await;
    let foreign = auth::ServiceTokens::new(&"another secret".to_owned().into(), crate::clock::Clock::System);
    let mut bad = vec![bare(), with("stranger"), with(&foreign.issue("router")), with("")];
    let mut twice = with("manager");
    twice.metadata_mut().append("authorization", "Bearer manager".parse().unwrap());
    let mut basic = bare();
    basic.metadata_mut().insert("authorization", "Basic manager".parse().unwrap());
    let mut elsewhere = bare();
    elsewhere.metadata_mut().insert("x-api-key", "manager".parse().unwrap());
    bad.extend([twice, basic, elsewhere]);
    for request in bad {
        let shown = format!("{:?}", request.metadata());
        let status = fixture.client.get_organization(request).await.expect_err(&shown);
        assert_eq!(status.code(), Code::Unauthenticated, "{shown}");
    }
}

#[tokio::test]
async fn a_method_lets_in_whom_its_table_names() {
    let mut fixture = Fixture::start().await;
    let answer = fixture.client.get_organization(with("manager")).await.expect("the right scope");
    assert_eq!(answer.into_inner().organization.expect("an organization").id, "org");
    let status = fixture.client.get_organization(with("publisher")).await.expect_err("the wrong scope");
    assert_eq!((status.code(), status.message()), (Code::PermissionDenied, "this key lacks the scope Manage"));
    fixture.client.create_organization(with("operator")).await.expect("for the operator");
    for (secret, code) in [("manager", Code::PermissionDenied), ("operator", Code::PermissionDenied)] {
        assert_eq!(fixture.client.authenticate(with(secret)).await.expect_err("for services").code(), code);
    }
    let mut service = OrganizationServiceClient::new(fixture.peer().channel());
    let status = service.create_organization(bare()).await.expect_err("for the operator");
    assert_eq!(status.code(), Code::PermissionDenied);
    let named = router::GetOrganizationRequest { id: "any".to_owned() };
    service.get_organization(named).await.expect("a service passes every scope and names the organization");
}

#[tokio::test]
async fn a_method_without_an_entry_is_denied_to_everybody() {
    let mut fixture = Fixture::start().await;
    let status = fixture.client.create_api_key(with("operator")).await.expect_err("no entry");
    assert_eq!(status.code(), Code::PermissionDenied);
    let others = auth::uncovered(ACCESS, "wedsync.notifier.v1");
    assert!(others.contains(&"/wedsync.notifier.v1.NotificationService/Send".to_owned()), "{others:?}");
    let missing = auth::uncovered(ACCESS, "wedsync.router.v1");
    assert!(missing.contains(&"/wedsync.router.v1.OrganizationService/CreateApiKey".to_owned()), "{missing:?}");
    assert!(!missing.contains(&"/wedsync.router.v1.OrganizationService/GetOrganization".to_owned()), "{missing:?}");
}

#[tokio::test]
async fn a_panic_is_an_internal_error_of_one_call() {
    let mut fixture = Fixture::start().await;
    let status = fixture.client.list_organizations(with("manager")).await.expect_err("it panics");
    assert_eq!((status.code(), status.message()), (Code::Internal, "internal error"));
    fixture.client.get_organization(with("manager")).await.expect("the same connection serves on");
}

#[tokio::test]
async fn a_call_ends_at_the_servers_deadline() {
    let mut shared = (*Chassis::for_test().shared).clone();
    shared.server.request_deadline_ms = 20;
    let chassis = Chassis::new(shared, crate::clock::Clock::System).expect("test settings hold");
    let mut fixture = Fixture::start_on(chassis).await;
    let status = fixture.client.list_api_keys(with("manager")).await.expect_err("it never answers");
    assert_eq!(status.code(), Code::DeadlineExceeded);
}

#[tokio::test]
async fn the_callers_trace_arrives_at_the_callee() {
    let fixture = Fixture::start().await;
    let mut client = OrganizationServiceClient::new(fixture.peer().channel());
    let context = TraceContext::new_root();
    let named = router::GetOrganizationRequest { id: "org".to_owned() };
    let answer = trace::within(context, client.get_organization(named)).await.expect("a service may");
    let seen: TraceContext =
        answer.into_inner().organization.expect("an organization").name.parse().expect("a context");
    assert_eq!(seen.trace_id(), context.trace_id());
    assert_ne!(seen, context, "the callee is a step of its own");
}

#[tokio::test]
async fn a_port_in_use_is_named_with_its_setting() {
    let fixture = Fixture::start().await;
    let error =
        Server::bind("vendor-sync", fixture.running.address, &fixture.chassis).await.err().expect("it is taken");
    let port = fixture.running.address.port();
    assert_eq!(error.to_string(), format!("port {port} of vendor-sync is in use: set [vendor_sync] listen"));
}

#[tokio::test]
async fn plaintext_beyond_loopback_is_refused_in_both_directions() {
    let chassis = Chassis::for_test();
    assert!(Server::bind("router", SocketAddr::from(([0, 0, 0, 0], 0)), &chassis).await.is_err());
    assert!(Peer::new("notifier", "http://router:7410", &chassis).is_err());
    assert!(Peer::new("notifier", "https://router:7410", &chassis).is_ok());
    assert!(Peer::new("notifier", "http://[::1]:7410", &chassis).is_ok());
}

#[tokio::test(flavor = "multi_thread")]
async fn health_readiness_and_metrics_stand_on_the_same_port() {
    let mut fixture = Fixture::start().await;
    fixture.client.get_organization(with("manager")).await.expect("one call to count");
    assert!(fixture.http("/healthz").starts_with("HTTP/1.1 200"));
    assert!(fixture.http("/readyz").ends_with("ready\n"));
    let counted = "rpc_duration_seconds_count{service=\"wedsync.router.v1.OrganizationService\",method=\"GetOrganization\",code=\"OK\"}";
    assert!(fixture.http("/metrics").contains(counted));
    fixture.running.health.set_serving("store", false);
    let answer = fixture.http("/readyz");
    assert!(answer.starts_with("HTTP/1.1 503") && answer.ends_with("store is not serving\n"), "{answer}");
}

#[tokio::test]
async fn a_drain_turns_health_first_and_ends_streams() {
    let fixture = Fixture::start().await;
    let mut health = HealthClient::new(fixture.channel());
    let mut watched = health.watch(HealthCheckRequest::default()).await.expect("health is open").into_inner();
    assert_eq!(watched.message().await.expect("no error").expect("a status").status(), ServingStatus::Serving);
    let (clean, ()) = tokio::join!(fixture.chassis.drain(), async {
        let status = watched.message().await.expect("no error").expect("a status").status();
        assert_eq!(status, ServingStatus::NotServing);
        assert_eq!(watched.message().await.expect_err("the stream is cut").code(), Code::Unavailable);
    });
    assert!(clean);
    assert!(tokio::net::TcpStream::connect(fixture.running.address).await.is_err(), "the listener is closed");
}

#[tokio::test]
async fn a_stream_ends_soon_after_its_key_is_revoked_and_a_services_goes_on() {
    let (manual, clock) = crate::testing::manual_clock();
    let shared = (*Chassis::for_test().shared).clone();
    let fixture = Fixture::start_on(Chassis::new(shared, clock).expect("test settings hold")).await;
    let mut by_key = SubscriptionServiceClient::new(fixture.channel());
    let mut by_key = by_key.subscribe(with("manager")).await.expect("it may").into_inner();
    let mut by_service = SubscriptionServiceClient::new(fixture.peer().channel());
    let mut by_service = by_service.subscribe(bare()).await.expect("it may").into_inner();
    fixture.keys.revoked.store(true, Ordering::Relaxed);
    let pass = async {
        for _ in 0..100_000 {
            manual.advance(Duration::from_secs(30));
            tokio::task::yield_now().await;
        }
    };
    let ended = tokio::select! {
        ended = by_key.message() => ended,
        ended = by_service.message() => panic!("a service's token opens a stream and isn't asked for again: {ended:?}"),
        () = pass => panic!("it goes on"),
    };
    assert_eq!(ended.expect_err("it is cut").code(), Code::Unauthenticated);
}

#[tokio::test]
async fn a_drain_lets_a_call_finish() {
    let fixture = Fixture::start().await;
    let mut client = fixture.client.clone();
    let (answer, clean, ()) = tokio::join!(
        client.delete_api_key(with("manager")),
        async {
            fixture.router.entered.notified().await;
            fixture.chassis.drain().await
        },
        async {
            fixture.chassis.draining().cancelled().await;
            fixture.router.release.notify_one();
        }
    );
    answer.expect("the call was under way");
    assert!(clean);
}

#[tokio::test]
async fn a_drain_ends_at_its_deadline_whatever_hangs() {
    let mut shared = (*Chassis::for_test().shared).clone();
    shared.server.stop_deadline_ms = 90;
    let chassis = Chassis::new(shared, crate::clock::Clock::System).expect("test settings hold");
    let mut fixture = Fixture::start_on(chassis.clone()).await;
    let drained = async {
        fixture.router.entered.notified().await;
        tokio::time::timeout(Duration::from_secs(5), chassis.drain()).await
    };
    let clean = tokio::select! {
        answer = fixture.client.delete_api_key(with("manager")) => panic!("nobody released it: {answer:?}"),
        clean = drained => clean,
    };
    assert_eq!(clean, Ok(false));
    assert!(chassis.tasks.running().contains_key("connection"));
}

#[tokio::test]
async fn reflection_describes_what_is_served_when_it_is_on() {
    use tonic_reflection::pb::{v1, v1alpha};
    let mut shared = (*Chassis::for_test().shared).clone();
    shared.server.reflection = true;
    let chassis = Chassis::new(shared, crate::clock::Clock::System).expect("test settings hold");
    let fixture = Fixture::start_on(chassis).await;
    // Both versions have the same messages, each of its own type.
    macro_rules! named {
        ($version:ident) => {{
            use $version::{
                server_reflection_client::ServerReflectionClient, server_reflection_request::MessageRequest,
                server_reflection_response::MessageResponse,
            };
            let mut client = ServerReflectionClient::new(fixture.channel());
            let list = MessageRequest::ListServices(String::new());
            let request = $version::ServerReflectionRequest { host: String::new(), message_request: Some(list) };
            let answers = client.server_reflection_info(futures_util::stream::iter([request])).await.expect("it is on");
            let answer = answers.into_inner().message().await.expect("no error").expect("one answer");
            let Some(MessageResponse::ListServicesResponse(list)) = answer.message_response else {
                panic!("a list: {answer:?}")
            };
            list.service.into_iter().map(|service| service.name).collect::<Vec<_>>()
        }};
    }
    for names in [named!(v1), named!(v1alpha), named!(v1)] {
        assert!(names.contains(&"wedsync.router.v1.OrganizationService".to_owned()), "{names:?}");
        assert!(!names.contains(&"wedsync.router.v1.EventService".to_owned()), "{names:?}");
    }
}
