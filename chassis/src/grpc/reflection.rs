//! Server reflection (grpc/grpc, doc/server-reflection.md), v1 and v1alpha: tools ask what is served.
//!
//! The descriptors, comments included, are read when a tool first asks; until then they take no memory.

use std::sync::{Arc, OnceLock};

use axum::{Router, extract::Request};
use tonic_reflection::server::{Builder, Error};
use tower::{Service, ServiceExt as _, service_fn, util::Oneshot};

pub(super) const V1: &str = "/grpc.reflection.v1.ServerReflection/ServerReflectionInfo";
pub(super) const V1ALPHA: &str = "/grpc.reflection.v1alpha.ServerReflection/ServerReflectionInfo";

/// Describes `services`, and health.
pub(super) fn routes(services: Vec<&'static str>) -> Router {
    let builder = move || {
        let builder = Builder::configure()
            .register_encoded_file_descriptor_set(proto::DESCRIPTORS)
            .register_encoded_file_descriptor_set(tonic_health::pb::FILE_DESCRIPTOR_SET)
            .with_service_name("grpc.health.v1.Health");
        services.iter().fold(builder, |builder, service| builder.with_service_name(*service))
    };
    let again = builder.clone();
    Router::new()
        .route_service(V1, on_first_call(move || builder().build_v1()))
        .route_service(V1ALPHA, on_first_call(move || again().build_v1alpha()))
}

/// A service that is made when it is first called.
fn on_first_call<S>(
    make: impl Fn() -> Result<S, Error> + Clone,
) -> impl Service<Request, Response = S::Response, Error = S::Error, Future = Oneshot<S, Request>> + Clone
where
    S: Service<Request> + Clone,
{
    let made = Arc::new(OnceLock::new());
    service_fn(move |request| {
        let service = made.get_or_init(|| make().expect("descriptors are compiled in"));
        service.clone().oneshot(request)
    })
}
