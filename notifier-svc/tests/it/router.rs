//! A router that knows two API keys and hands out the events it is given until they are acknowledged.

use std::{
    collections::BTreeSet,
    net::SocketAddr,
    sync::{Arc, Mutex},
};

use chassis::{
    auth::{Access, AccessTable},
    error::Error,
    grpc::Server,
    service::Chassis,
    tasks::Tasks,
};
use proto::router::v1::{
    self as wire, ConsumeRequest, ConsumeResponse, ConsumedEvent,
    consume_request::Message,
    consumer_service_server::{ConsumerService, ConsumerServiceServer},
    organization_service_server::{OrganizationService, OrganizationServiceServer},
};
use tokio::sync::{Notify, mpsc};
use tokio_stream::wrappers::ReceiverStream;
use tonic::{Request, Response, Status, Streaming};

const ACCESS: AccessTable = &[
    ("/wedsync.router.v1.OrganizationService/Authenticate", Access::Service),
    ("/wedsync.router.v1.ConsumerService/Consume", Access::Service),
];

#[derive(Default)]
struct Log {
    events: Vec<ConsumedEvent>,
    acknowledged: BTreeSet<u64>,
}

/// The router's memory.
#[derive(Clone)]
pub(crate) struct Router {
    log: Arc<Mutex<Log>>,
    changed: Arc<Notify>,
    tasks: Tasks,
}

impl Router {
    pub(crate) async fn start(chassis: &Chassis) -> (Self, SocketAddr) {
        let router = Self { log: Arc::default(), changed: Arc::new(Notify::new()), tasks: chassis.tasks.clone() };
        let server = Server::bind("router", SocketAddr::from(([127, 0, 0, 1], 0)), chassis).await.unwrap();
        let running = server
            .access(ACCESS)
            .add(OrganizationServiceServer::new(router.clone()))
            .add(ConsumerServiceServer::new(router.clone()))
            .serve();
        (router, running.address)
    }

    /// Appends an event; gives its sequence.
    pub(crate) fn append(&self, mut event: wire::Event, plan: wire::Plan) -> u64 {
        let mut log = self.log.lock().unwrap();
        let sequence = log.events.len() as u64 + 1;
        event.position = Some(proto::common::v1::Position { log_id: "log".to_owned(), sequence });
        log.events.push(ConsumedEvent {
            event: Some(event),
            plan: Some(plan),
            redelivered: false,
            replayed: false,
            credit_bytes: 100,
        });
        drop(log);
        self.changed.notify_waiters();
        sequence
    }

    /// Hands an event out once more, as after a crash.
    pub(crate) fn again(&self, sequence: u64) {
        let mut log = self.log.lock().unwrap();
        let mut event = log.events[sequence as usize - 1].clone();
        event.redelivered = true;
        log.acknowledged.remove(&sequence);
        log.events.push(event);
        drop(log);
        self.changed.notify_waiters();
    }

    pub(crate) fn is_acknowledged(&self, sequence: u64) -> bool {
        self.log.lock().unwrap().acknowledged.contains(&sequence)
    }
}

#[tonic::async_trait]
impl ConsumerService for Router {
    type ConsumeStream = ReceiverStream<Result<ConsumeResponse, Status>>;

    async fn consume(
        &self,
        request: Request<Streaming<ConsumeRequest>>,
    ) -> Result<Response<Self::ConsumeStream>, Status> {
        let mut requests = request.into_inner();
        let (responses, stream) = mpsc::channel(64);
        let router = self.clone();
        self.tasks.spawn("test.consume", async move {
            let mut next = 0;
            loop {
                let changed = router.changed.notified();
                let events: Vec<_> = router.log.lock().unwrap().events[next..].to_vec();
                next += events.len();
                if !events.is_empty() && responses.send(Ok(ConsumeResponse { events, started: None })).await.is_err() {
                    return;
                }
                tokio::select! {
                    () = changed => {}
                    request = requests.message() => match request {
                        Ok(Some(ConsumeRequest { message: Some(Message::Acknowledge(done)) })) => {
                            router.log.lock().unwrap().acknowledged.extend(done.sequences);
                        }
                        Ok(Some(_)) => {}
                        Ok(None) | Err(_) => return,
                    },
                }
            }
        });
        Ok(Response::new(ReceiverStream::new(stream)))
    }

    async fn list_groups(
        &self,
        _: Request<wire::ListGroupsRequest>,
    ) -> Result<Response<wire::ListGroupsResponse>, Status> {
        Err(Status::unimplemented("not asked here"))
    }

    async fn delete_group(
        &self,
        _: Request<wire::DeleteGroupRequest>,
    ) -> Result<Response<wire::DeleteGroupResponse>, Status> {
        Err(Status::unimplemented("not asked here"))
    }
}

macro_rules! unasked {
    ($($name:ident: $request:ident -> $response:ident),* $(,)?) => {
        /// Knows whose `wsk_a` and `wsk_b` are.
        #[tonic::async_trait]
        impl OrganizationService for Router {
            async fn authenticate(&self, request: Request<wire::AuthenticateRequest>) -> Result<Response<wire::AuthenticateResponse>, Status> {
                let secret = request.into_inner().secret;
                let organization_id = secret.strip_prefix("wsk_").ok_or_else(|| Error::NotFound("key".into()))?.to_owned();
                let scopes = vec![wire::Scope::Admin.into()];
                Ok(Response::new(wire::AuthenticateResponse { organization_id, key_id: "key".to_owned(), scopes, operator: false }))
            }

            $(async fn $name(&self, _: Request<wire::$request>) -> Result<Response<wire::$response>, Status> {
                Err(Status::unimplemented("not asked here"))
            })*
        }
    };
}

unasked! {
    create_organization: CreateOrganizationRequest -> CreateOrganizationResponse,
    get_organization: GetOrganizationRequest -> GetOrganizationResponse,
    list_organizations: ListOrganizationsRequest -> ListOrganizationsResponse,
    create_api_key: CreateApiKeyRequest -> CreateApiKeyResponse,
    list_api_keys: ListApiKeysRequest -> ListApiKeysResponse,
    delete_api_key: DeleteApiKeyRequest -> DeleteApiKeyResponse,
}
