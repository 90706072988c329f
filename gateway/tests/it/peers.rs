//! The services behind the gateway as their protos document them, each answering what a test tells it to.

use std::{
    net::SocketAddr,
    sync::{Arc, Mutex},
};

use chassis::{
    auth::{self, Access, AccessTable, Authenticator, Caller, Role, Scope},
    error::Error,
    grpc::{Running, Server},
    id::OrganizationId,
    service::Chassis,
    trace::{self, TraceContext},
};
use futures_util::future::BoxFuture;
use proto::{
    notifier::v1::{
        self as notifier, callback_service_server as callback, confirmation_service_server as confirmation,
        preference_service_server as preference,
    },
    router::v1::{self as router, route_service_server as route},
    vendorsync::v1::{
        self as vendorsync, connection_service_server as connection, delivery_service_server as delivery,
        endpoint_service_server as endpoint, integration_health_service_server as integration_health,
        webhook_service_server as webhook,
    },
};
use tonic::{Request, Response, Status};

const ROUTER: AccessTable = &[("/wedsync.router.v1.RouteService/ConfigureChannel", Access::Scope(Scope::Manage))];
const VENDOR_SYNC: AccessTable = &[
    ("/wedsync.vendorsync.v1.WebhookService/ReceiveWebhook", Access::Service),
    ("/wedsync.vendorsync.v1.ConnectionService/OpenConnection", Access::Service),
    ("/wedsync.vendorsync.v1.ConnectionService/CompleteConnection", Access::Service),
    ("/wedsync.vendorsync.v1.DeliveryService/ListDeliveries", Access::Scope(Scope::Manage)),
    ("/wedsync.vendorsync.v1.IntegrationHealthService/ListIntegrationHealth", Access::Scope(Scope::Manage)),
    ("/wedsync.vendorsync.v1.EndpointService/ListEndpoints", Access::Scope(Scope::Manage)),
    ("/wedsync.vendorsync.v1.EndpointService/GetEndpointStatistics", Access::Scope(Scope::Manage)),
];
const NOTIFIER: AccessTable = &[
    ("/wedsync.notifier.v1.CallbackService/ReceiveCallback", Access::Service),
    ("/wedsync.notifier.v1.ConfirmationService/Acknowledge", Access::Scope(Scope::Consume)),
    ("/wedsync.notifier.v1.PreferenceService/Unsubscribe", Access::Scope(Scope::Manage)),
];

/// What a peer was asked, by whom, and in which trace.
#[derive(Debug, Clone)]
pub(crate) struct Asked<T> {
    pub(crate) request: T,
    pub(crate) caller: Caller,
    pub(crate) trace: TraceContext,
}

/// One RPC: what it was asked, and what it answers; none: it never does.
pub(crate) struct Rpc<Q, A> {
    asked: Mutex<Vec<Asked<Q>>>,
    answer: Mutex<Option<Result<A, Status>>>,
}

impl<Q, A: Default> Default for Rpc<Q, A> {
    fn default() -> Self {
        Self { asked: Mutex::default(), answer: Mutex::new(Some(Ok(A::default()))) }
    }
}

impl<Q: Clone, A: Clone> Rpc<Q, A> {
    pub(crate) fn answers(&self, answer: Result<A, Status>) {
        *self.answer.lock().expect("no holder panics") = Some(answer);
    }

    pub(crate) fn hangs(&self) {
        *self.answer.lock().expect("no holder panics") = None;
    }

    pub(crate) fn asked(&self) -> Vec<Asked<Q>> {
        self.asked.lock().expect("no holder panics").clone()
    }

    /// The one request that there was.
    pub(crate) fn only(&self) -> Asked<Q> {
        let [asked] = self.asked().try_into().map_err(|all: Vec<_>| all.len()).expect("asked once");
        asked
    }

    async fn call(&self, request: Request<Q>) -> Result<Response<A>, Status> {
        let caller = auth::caller(&request)?;
        let trace = trace::current().expect("every call is part of a trace");
        self.asked.lock().expect("no holder panics").push(Asked { request: request.into_inner(), caller, trace });
        let answer = self.answer.lock().expect("no holder panics").clone();
        match answer {
            Some(answer) => answer.map(Response::new),
            None => std::future::pending().await,
        }
    }
}

#[derive(Default)]
pub(crate) struct Router {
    pub(crate) configure_channel: Rpc<router::ConfigureChannelRequest, router::ConfigureChannelResponse>,
}

#[derive(Default)]
pub(crate) struct VendorSync {
    pub(crate) receive: Rpc<vendorsync::ReceiveWebhookRequest, vendorsync::ReceiveWebhookResponse>,
    pub(crate) open: Rpc<vendorsync::OpenConnectionRequest, vendorsync::OpenConnectionResponse>,
    pub(crate) complete: Rpc<vendorsync::CompleteConnectionRequest, vendorsync::CompleteConnectionResponse>,
    pub(crate) list_deliveries: Rpc<vendorsync::ListDeliveriesRequest, vendorsync::ListDeliveriesResponse>,
    pub(crate) list_health: Rpc<vendorsync::ListIntegrationHealthRequest, vendorsync::ListIntegrationHealthResponse>,
    pub(crate) list_endpoints: Rpc<vendorsync::ListEndpointsRequest, vendorsync::ListEndpointsResponse>,
    pub(crate) statistics: Rpc<vendorsync::GetEndpointStatisticsRequest, vendorsync::GetEndpointStatisticsResponse>,
}

#[derive(Default)]
pub(crate) struct Callbacks {
    pub(crate) receive: Rpc<notifier::ReceiveCallbackRequest, notifier::ReceiveCallbackResponse>,
}

#[derive(Default)]
pub(crate) struct Links {
    pub(crate) acknowledge: Rpc<notifier::AcknowledgeRequest, notifier::AcknowledgeResponse>,
    pub(crate) unsubscribe: Rpc<notifier::UnsubscribeRequest, notifier::UnsubscribeResponse>,
}

/// All three, running.
pub(crate) struct Peers {
    pub(crate) router: Arc<Router>,
    pub(crate) vendor_sync: Arc<VendorSync>,
    pub(crate) callbacks: Arc<Callbacks>,
    pub(crate) links: Arc<Links>,
    pub(crate) router_address: SocketAddr,
    pub(crate) vendor_sync_address: SocketAddr,
    pub(crate) notifier_address: SocketAddr,
    pub(crate) notifier: Running,
    pub(crate) chassis: Chassis,
}

impl Peers {
    pub(crate) async fn start() -> Self {
        let chassis = Chassis::for_test();
        let (router, vendor_sync) = (Arc::new(Router::default()), Arc::new(VendorSync::default()));
        let running = server("router", &chassis).await.access(ROUTER);
        let running = running.add(route::RouteServiceServer::from_arc(Arc::clone(&router)));
        let router_address = running.serve().address;
        let running = server("vendor-sync", &chassis).await.access(VENDOR_SYNC);
        let running = running
            .add(webhook::WebhookServiceServer::from_arc(Arc::clone(&vendor_sync)))
            .add(connection::ConnectionServiceServer::from_arc(Arc::clone(&vendor_sync)))
            .add(delivery::DeliveryServiceServer::from_arc(Arc::clone(&vendor_sync)))
            .add(integration_health::IntegrationHealthServiceServer::from_arc(Arc::clone(&vendor_sync)))
            .add(endpoint::EndpointServiceServer::from_arc(Arc::clone(&vendor_sync)));
        let vendor_sync_address = running.serve().address;
        let callbacks = Arc::new(Callbacks::default());
        let running = server("notifier", &chassis).await.access(NOTIFIER);
        let links = Arc::new(Links::default());
        let running = running
            .add(callback::CallbackServiceServer::from_arc(Arc::clone(&callbacks)))
            .add(confirmation::ConfirmationServiceServer::from_arc(Arc::clone(&links)))
            .add(preference::PreferenceServiceServer::from_arc(Arc::clone(&links)));
        let notifier = running.serve();
        let notifier_address = notifier.address;
        Self {
            router,
            vendor_sync,
            callbacks,
            links,
            router_address,
            vendor_sync_address,
            notifier_address,
            notifier,
            chassis,
        }
    }
}

async fn server(name: &'static str, chassis: &Chassis) -> Server {
    let listen = SocketAddr::from(([127, 0, 0, 1], 0));
    Server::bind(name, listen, chassis).await.expect("some port is free").authenticator(Arc::new(Keys))
}

/// Knows `wsk_manager` and `wsk_publisher`, of the organization `org`.
struct Keys;

impl Authenticator for Keys {
    fn authenticate<'a>(&'a self, secret: &'a str) -> BoxFuture<'a, chassis::error::Result<Caller>> {
        let scope = match secret {
            "wsk_manager" => Scope::Manage,
            "wsk_publisher" => Scope::Publish,
            _ => return Box::pin(async { Err(Error::Unauthenticated("unknown key of 10.0.0.7".into())) }),
        };
        let organization = Some(OrganizationId::parse("org").expect("well-formed"));
        let scopes = [scope].into_iter().collect();
        Box::pin(async move { Ok(Caller { organization, role: Role::Member, scopes, name: secret.to_owned() }) })
    }
}

/// The RPCs of a service: those that a field of the fake answers, and those that the gateway has no business with.
macro_rules! service {
    ($service:path, $fake:ty, $wire:ident { $($method:ident => $field:ident: $request:ident -> $response:ident;)* }
     unused { $($unused:ident: $unused_request:ident -> $unused_response:ident;)* }) => {
        #[tonic::async_trait]
        impl $service for $fake {
            $(async fn $method(&self, request: Request<$wire::$request>) -> Result<Response<$wire::$response>, Status> {
                self.$field.call(request).await
            })*
            $(async fn $unused(&self, _: Request<$wire::$unused_request>) -> Result<Response<$wire::$unused_response>, Status> {
                Err(Status::unimplemented("the gateway doesn't call it"))
            })*
        }
    };
}

service! { webhook::WebhookService, VendorSync, vendorsync {
    receive_webhook => receive: ReceiveWebhookRequest -> ReceiveWebhookResponse;
} unused {
    list_spooled_webhooks: ListSpooledWebhooksRequest -> ListSpooledWebhooksResponse;
    get_spooled_webhook: GetSpooledWebhookRequest -> GetSpooledWebhookResponse;
    retry_spooled_webhook: RetrySpooledWebhookRequest -> RetrySpooledWebhookResponse;
} }

service! { connection::ConnectionService, VendorSync, vendorsync {
    open_connection => open: OpenConnectionRequest -> OpenConnectionResponse;
    complete_connection => complete: CompleteConnectionRequest -> CompleteConnectionResponse;
} unused {} }

#[tonic::async_trait]
impl integration_health::IntegrationHealthService for VendorSync {
    type WatchIntegrationHealthStream =
        futures_util::stream::Empty<Result<vendorsync::WatchIntegrationHealthResponse, Status>>;

    async fn list_integration_health(
        &self,
        request: Request<vendorsync::ListIntegrationHealthRequest>,
    ) -> Result<Response<vendorsync::ListIntegrationHealthResponse>, Status> {
        self.list_health.call(request).await
    }

    async fn get_integration_health(
        &self,
        _: Request<vendorsync::GetIntegrationHealthRequest>,
    ) -> Result<Response<vendorsync::GetIntegrationHealthResponse>, Status> {
        Err(Status::unimplemented("the gateway doesn't call it"))
    }

    async fn watch_integration_health(
        &self,
        _: Request<vendorsync::WatchIntegrationHealthRequest>,
    ) -> Result<Response<Self::WatchIntegrationHealthStream>, Status> {
        Err(Status::unimplemented("the gateway doesn't call it"))
    }
}

service! { callback::CallbackService, Callbacks, notifier {
    receive_callback => receive: ReceiveCallbackRequest -> ReceiveCallbackResponse;
} unused {} }

service! { confirmation::ConfirmationService, Links, notifier {
    acknowledge => acknowledge: AcknowledgeRequest -> AcknowledgeResponse;
} unused {
    list_informed: ListInformedRequest -> ListInformedResponse;
    explain_notification: ExplainNotificationRequest -> ExplainNotificationResponse;
} }

service! { preference::PreferenceService, Links, notifier {
    unsubscribe => unsubscribe: UnsubscribeRequest -> UnsubscribeResponse;
} unused {
    get_preference: GetPreferenceRequest -> GetPreferenceResponse;
    update_preference: UpdatePreferenceRequest -> UpdatePreferenceResponse;
} }

service! { delivery::DeliveryService, VendorSync, vendorsync {
    list_deliveries => list_deliveries: ListDeliveriesRequest -> ListDeliveriesResponse;
} unused {
    get_delivery: GetDeliveryRequest -> GetDeliveryResponse;
    list_attempts: ListAttemptsRequest -> ListAttemptsResponse;
    resend_delivery: ResendDeliveryRequest -> ResendDeliveryResponse;
    replay_deliveries: ReplayDeliveriesRequest -> ReplayDeliveriesResponse;
    recover_deliveries: RecoverDeliveriesRequest -> RecoverDeliveriesResponse;
} }

service! { endpoint::EndpointService, VendorSync, vendorsync {
    list_endpoints => list_endpoints: ListEndpointsRequest -> ListEndpointsResponse;
    get_endpoint_statistics => statistics: GetEndpointStatisticsRequest -> GetEndpointStatisticsResponse;
} unused {
    create_endpoint: CreateEndpointRequest -> CreateEndpointResponse;
    get_endpoint: GetEndpointRequest -> GetEndpointResponse;
    update_endpoint: UpdateEndpointRequest -> UpdateEndpointResponse;
    delete_endpoint: DeleteEndpointRequest -> DeleteEndpointResponse;
    pause_endpoint: PauseEndpointRequest -> PauseEndpointResponse;
    resume_endpoint: ResumeEndpointRequest -> ResumeEndpointResponse;
    rotate_endpoint_secret: RotateEndpointSecretRequest -> RotateEndpointSecretResponse;
    send_test_event: SendTestEventRequest -> SendTestEventResponse;
} }

service! { route::RouteService, Router, router {
    configure_channel => configure_channel: ConfigureChannelRequest -> ConfigureChannelResponse;
} unused {
    list_routes: ListRoutesRequest -> ListRoutesResponse;
    create_route: CreateRouteRequest -> CreateRouteResponse;
    update_route: UpdateRouteRequest -> UpdateRouteResponse;
    delete_route: DeleteRouteRequest -> DeleteRouteResponse;
    test_route: TestRouteRequest -> TestRouteResponse;
    list_channel_configurations: ListChannelConfigurationsRequest -> ListChannelConfigurationsResponse;
} }
