//! The whole HTTP surface on one page. `GET /healthz`, `/readyz` and `/metrics` stand beside it on every service's port
//! (`chassis::grpc`). Invariant: `openapi.json` describes these paths and no others; a test compares them.

use axum::{
    Router,
    handler::Handler,
    middleware,
    routing::{self, MethodRouter},
};
use http::Method;

use crate::{
    Gateway, callbacks, channel_config, delivery_status, edge, health, links, oauth, openapi,
    problem::Problem,
    realtime::{inspector, rest, sse, upgrade},
    webhooks,
};

/// The prefix under which paths that had it in the original system are served too.
pub(crate) const ALIAS: &str = "/api";

fn table() -> Vec<Route> {
    vec![
        // What vendors and other systems send us.
        post("/webhooks/{vendor}/{integration_id}", webhooks::by_path).aliased(),
        get("/webhooks/{vendor}/{integration_id}", webhooks::handshake).aliased(),
        post("/webhooks/client-sync", webhooks::client_sync).aliased(),
        post("/webhooks/channel-events", webhooks::channel_events).aliased(),
        post("/webhooks/supabase", webhooks::supabase).aliased(),
        // What the providers of channels report.
        post("/callbacks/{provider}", callbacks::report),
        get("/callbacks/{provider}", callbacks::handshake),
        // What people follow from their messages.
        get("/acknowledge/{token}", links::ask_to_acknowledge),
        post("/acknowledge/{token}", links::acknowledge),
        get("/unsubscribe/{token}", links::ask_to_unsubscribe),
        post("/unsubscribe/{token}", links::unsubscribe),
        // Where a browser goes to a vendor, and comes back, when somebody connects an account.
        get("/oauth/start/{ticket}", oauth::start),
        get(oauth::CALLBACK, oauth::callback),
        // What an organization asks for with its API key.
        get("/webhooks/delivery-status", delivery_status::list).aliased(),
        post("/integrations/channel-config", channel_config::configure).aliased(),
        get("/integrations/health", health::report).aliased(),
        // What happens, live, for whoever shows a token.
        get("/realtime/v1/websocket", upgrade::websocket),
        get("/socket/websocket", upgrade::websocket),
        get("/realtime/v1/sse", sse::stream),
        options("/realtime/v1/sse", rest::preflight),
        post("/realtime/v1/api/broadcast", rest::several),
        options("/realtime/v1/api/broadcast", rest::preflight),
        post("/realtime/v1/api/broadcast/{topic}/events/{event}", rest::one),
        options("/realtime/v1/api/broadcast/{topic}/events/{event}", rest::preflight),
        // What a developer sees of it; in development mode alone.
        get("/realtime/inspector", inspector::page),
        get("/realtime/inspector/tokens", inspector::tokens),
        // What is open to everybody.
        get("/openapi.json", openapi::document),
    ]
}

/// All of it, with what happens around each request.
pub(crate) fn router(gateway: Gateway) -> Router {
    let mut router = Router::new();
    for Route { path, aliased, handler, .. } in table() {
        if aliased {
            router = router.route(&format!("{ALIAS}{path}"), handler.clone());
        }
        router = router.route(path, handler);
    }
    router
        .fallback(async || Problem::not_found())
        .method_not_allowed_fallback(async || Problem::method_not_allowed())
        .layer(middleware::from_fn_with_state(gateway.edge.clone(), edge::around))
        .with_state(gateway)
}

struct Route {
    #[cfg_attr(not(test), expect(dead_code, reason = "the handler knows its method; the test of openapi.json asks"))]
    method: Method,
    path: &'static str,
    aliased: bool,
    handler: MethodRouter<Gateway>,
}

impl Route {
    fn aliased(self) -> Self {
        Self { aliased: true, ..self }
    }
}

fn get<T: 'static>(path: &'static str, handler: impl Handler<T, Gateway>) -> Route {
    Route { method: Method::GET, path, aliased: false, handler: routing::get(handler) }
}

fn post<T: 'static>(path: &'static str, handler: impl Handler<T, Gateway>) -> Route {
    Route { method: Method::POST, path, aliased: false, handler: routing::post(handler) }
}

fn options<T: 'static>(path: &'static str, handler: impl Handler<T, Gateway>) -> Route {
    Route { method: Method::OPTIONS, path, aliased: false, handler: routing::options(handler) }
}

/// Every route's method and path, and whether it has an alias.
#[cfg(test)]
pub(crate) fn surface() -> Vec<(Method, &'static str, bool)> {
    table().into_iter().map(|route| (route.method, route.path, route.aliased)).collect()
}
