//! What happens around each request, whatever it asks for: trace, bounds on its head, the limit of its address, bounds
//! on how many run at once, a deadline, a net for panics, metrics. Nothing of a request is logged but its method, the
//! route it matched and its trace.

use std::{
    net::{IpAddr, SocketAddr},
    panic::AssertUnwindSafe,
    sync::Arc,
    time::{Duration, Instant},
};

use anyhow::{Result, ensure};
use axum::{
    extract::{ConnectInfo, MatchedPath, Request, State},
    middleware::Next,
    response::{IntoResponse as _, Response},
};
use chassis::{
    error::RETRY_AFTER,
    service::Chassis,
    trace::{self, TraceContext},
};
use futures_util::FutureExt as _;
use http::{
    HeaderMap, HeaderValue, Method, StatusCode,
    header::{ACCESS_CONTROL_ALLOW_ORIGIN, ACCESS_CONTROL_EXPOSE_HEADERS, CACHE_CONTROL, X_CONTENT_TYPE_OPTIONS},
};
use tokio::time::timeout;
use tracing::{Instrument as _, Span};

use crate::{
    Config,
    address::{self, Network},
    limit::{self, Limit},
    oauth,
    problem::Problem,
    slots::{Full, Slots},
};

/// Below it any page may ask, since nothing but a token counts, which pages don't send by themselves.
const OPEN: &str = "/realtime/v1/";
const URI_BYTES: usize = 8 * 1024;
const HEADER_COUNT: usize = 100;
const HEADER_BYTES: usize = 32 * 1024;

/// Who sent the request, as [`address::sender`] sees it; in the request's extensions.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Sender(pub(crate) IpAddr);

/// The bounds that all requests share.
pub(crate) struct Edge {
    trusted_proxies: Vec<Network>,
    limit: Limit,
    slots: Slots,
    request_within: Duration,
    /// How long a body may take to arrive.
    pub(crate) body_within: Duration,
}

impl Edge {
    /// # Errors
    /// Settings that can't hold, naming them.
    pub(crate) fn new(config: &Config, chassis: &Chassis) -> Result<Self> {
        let limits = [config.requests_per_minute, config.request_burst, config.max_requests_in_flight];
        ensure!(
            !limits.contains(&0),
            "[gateway] requests_per_minute, request_burst and max_requests_in_flight must be above 0"
        );
        ensure!(
            config.requests_per_minute <= limit::PER_MINUTE_MAX,
            "[gateway] requests_per_minute must be at most {}",
            limit::PER_MINUTE_MAX
        );
        ensure!(
            0 < config.body_timeout_ms && config.body_timeout_ms <= config.request_timeout_ms,
            "[gateway] body_timeout_ms must be above 0 and at most request_timeout_ms"
        );
        let trusted_proxies = config.trusted_proxies.iter().map(|text| Network::parse(text)).collect::<Result<_>>();
        Ok(Self {
            trusted_proxies: trusted_proxies.map_err(|error| error.context("[gateway] trusted_proxies"))?,
            limit: Limit::new(config.requests_per_minute, config.request_burst, chassis.clock.clone()),
            slots: Slots::new(config.max_requests_in_flight),
            request_within: Duration::from_millis(config.request_timeout_ms),
            body_within: Duration::from_millis(config.body_timeout_ms),
        })
    }

    async fn handle(&self, mut request: Request, next: Next) -> Result<Response, Problem> {
        let sender = self.sender(&request);
        self.limit.take(sender).map_err(|wait| Problem::limited(wait, "too many requests from this address"))?;
        check_head(&request)?;
        let _slot = self.slots.take(sender).map_err(|full| match full {
            Full::Everybodys => Problem::unavailable(RETRY_AFTER),
            Full::Addresses => Problem::limited(RETRY_AFTER, "too many requests of this address at once"),
        })?;
        request.extensions_mut().insert(Sender(sender));
        let within = match request.uri().path() {
            oauth::CALLBACK => self.request_within.max(oauth::COMPLETED_WITHIN),
            _ => self.request_within,
        };
        timeout(within, next.run(request)).await.map_err(|_elapsed| Problem::unavailable(RETRY_AFTER))
    }

    fn sender(&self, request: &Request) -> IpAddr {
        let ConnectInfo(peer) =
            request.extensions().get::<ConnectInfo<SocketAddr>>().expect("the server says who is connected");
        address::sender(peer.ip(), request.headers(), &self.trusted_proxies)
    }
}

/// The middleware of every route, and of paths and methods that there are not.
pub(crate) async fn around(State(edge): State<Arc<Edge>>, request: Request, next: Next) -> Response {
    let sent = TraceContext::extract(request.headers());
    let context = sent.map_or_else(TraceContext::new_root, |caller| caller.new_child());
    let exchange = Exchange::begin(&request, &context);
    let is_open = request.uri().path().starts_with(OPEN);
    let handled = AssertUnwindSafe(trace::within(context, edge.handle(request, next))).catch_unwind();
    let handled = handled.instrument(exchange.span.clone()).await;
    let mut response = match handled {
        Ok(handled) => handled.unwrap_or_else(|problem| problem.into_response()),
        Err(_panic) => exchange.panicked().into_response(),
    };
    harden(response.headers_mut());
    if is_open {
        open(response.headers_mut());
    }
    exchange.end(response.status());
    response
}

/// Answers are for the one who asked, and what we call them.
fn harden(headers: &mut HeaderMap) {
    headers.insert(X_CONTENT_TYPE_OPTIONS, HeaderValue::from_static("nosniff"));
    headers.entry(CACHE_CONTROL).or_insert(HeaderValue::from_static("no-store"));
}

/// Any page may read the answer, a refusal too, and when to come back.
fn open(headers: &mut HeaderMap) {
    headers.insert(ACCESS_CONTROL_ALLOW_ORIGIN, HeaderValue::from_static("*"));
    headers.insert(ACCESS_CONTROL_EXPOSE_HEADERS, HeaderValue::from_static("retry-after"));
}

fn check_head(request: &Request) -> Result<(), Problem> {
    if request.uri().path_and_query().is_some_and(|path| path.as_str().len() > URI_BYTES) {
        return Err(Problem::uri_too_long());
    }
    let headers = request.headers();
    let bytes: usize = headers.iter().map(|(name, value)| name.as_str().len() + value.len()).sum();
    if headers.len() > HEADER_COUNT || bytes > HEADER_BYTES {
        return Err(Problem::headers_too_large());
    }
    Ok(())
}

/// One request and its answer, measured.
struct Exchange {
    route: String,
    method: &'static str,
    span: Span,
    began: Instant,
}

impl Exchange {
    fn begin(request: &Request, context: &TraceContext) -> Self {
        // What was sent as a path or method is the sender's own text; what it matched is ours.
        let route = request.extensions().get::<MatchedPath>().map_or("unmatched", MatchedPath::as_str).to_owned();
        let method = known(request.method());
        // At the highest level, so that no filter takes the trace away from the lines inside.
        let span = tracing::error_span!("http", method, route = route.as_str(), trace_id = context.trace_id().as_str());
        Self { route, method, span, began: Instant::now() }
    }

    fn panicked(&self) -> Problem {
        metrics::counter!("http_panics_total", "route" => self.route.clone()).increment(1);
        self.span.in_scope(|| tracing::error!("a request panicked"));
        Problem::internal()
    }

    fn end(self, status: StatusCode) {
        let took = self.began.elapsed();
        let (method, code) = (self.method, status.as_u16());
        self.span.in_scope(|| tracing::debug!(code, took_ms = took.as_millis(), "request ended"));
        let labels = [("route", self.route), ("method", method.to_owned()), ("code", code.to_string())];
        metrics::histogram!("http_request_duration_seconds", &labels).record(took);
    }
}

fn known(method: &Method) -> &'static str {
    match *method {
        Method::GET => "GET",
        Method::HEAD => "HEAD",
        Method::POST => "POST",
        Method::PUT => "PUT",
        Method::PATCH => "PATCH",
        Method::DELETE => "DELETE",
        Method::OPTIONS => "OPTIONS",
        _ => "other",
    }
}

#[cfg(test)]
mod tests {
    use axum::{Router, body::Body, middleware, routing::get};
    use tower::ServiceExt as _;

    use super::*;

    async fn ask(path: &str) -> StatusCode {
        let edge = Arc::new(Edge::new(&Config::default(), &Chassis::for_test()).expect("the defaults hold"));
        let app = Router::new()
            .route("/panic", get(async || -> StatusCode { panic!("on purpose") }))
            .route("/traced", get(async || trace::current().map_or(StatusCode::NOT_FOUND, |_| StatusCode::OK)))
            .layer(middleware::from_fn_with_state(edge, around));
        let peer = ConnectInfo(SocketAddr::from(([192, 0, 2, 1], 1)));
        let request = Request::builder().uri(path).extension(peer).body(Body::empty()).expect("a request");
        app.oneshot(request).await.expect("an answer").status()
    }

    #[tokio::test]
    async fn a_panic_is_a_500_of_one_request() {
        assert_eq!(ask("/panic").await, StatusCode::INTERNAL_SERVER_ERROR);
    }

    #[tokio::test]
    async fn every_handler_runs_in_a_trace() {
        assert_eq!(ask("/traced").await, StatusCode::OK);
    }
}
