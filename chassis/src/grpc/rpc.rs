//! What happens around every call: trace, credentials, deadline, panics, metrics, and the end of streams on a stop or when
//! the key that opened them is revoked.

use std::{
    collections::{HashMap, HashSet},
    panic::AssertUnwindSafe,
    sync::Arc,
    time::{Duration, Instant},
};

use axum::{
    body::Body,
    extract::{Request, State},
    middleware::Next,
    response::Response,
};
use futures_util::{FutureExt as _, StreamExt as _, TryStream, future::BoxFuture, stream};
use http::{HeaderMap, HeaderValue, header::AUTHORIZATION};
use http_body_util::{BodyStream, StreamBody};
use tokio::time::timeout;
use tokio_util::{
    sync::CancellationToken,
    task::{TaskTracker, task_tracker::TaskTrackerToken},
};
use tonic::{Code, Status};
use tracing::{Instrument as _, Span, field::Empty};

use crate::{
    auth::{self, Access, Gate},
    clock::Clock,
    error::Error,
    service::Chassis,
    tasks::panic_text,
    trace::{self, TraceContext},
};

/// How long streams may take to end by themselves once draining began.
const STREAM_GRACE: Duration = Duration::from_millis(500);
/// How often the key behind an open stream is asked about again.
const STREAM_CHECK: Duration = Duration::from_secs(15);

/// `http_body::Frame`.
type Frame = <BodyStream<Body> as TryStream>::Ok;

/// What the calls of one server have in common.
pub(super) struct Calls {
    gate: Gate,
    methods: HashMap<&'static str, Method>,
    deadline: Duration,
    draining: CancellationToken,
    /// What a drain waits for, beside connections.
    open: TaskTracker,
    clock: Clock,
}

#[derive(Clone, Copy)]
struct Method {
    access: Access,
    streams: bool,
}

impl Calls {
    pub(super) fn new(gate: Gate, access: &HashMap<&'static str, Access>, chassis: &Chassis) -> Self {
        let described = [
            proto::DESCRIPTORS,
            tonic_health::pb::FILE_DESCRIPTOR_SET,
            tonic_reflection::pb::v1::FILE_DESCRIPTOR_SET,
            tonic_reflection::pb::v1alpha::FILE_DESCRIPTOR_SET,
        ];
        let streaming = described.into_iter().flat_map(super::rpcs).filter(|rpc| rpc.streams);
        let streaming: HashSet<_> = streaming.map(|rpc| rpc.path).collect();
        let methods = access.iter().map(|(path, access)| {
            let streams = streaming.contains(*path);
            (*path, Method { access: *access, streams })
        });
        Self {
            gate,
            methods: methods.collect(),
            deadline: chassis.shared.server.request_deadline(),
            draining: chassis.draining(),
            open: chassis.servers().clone(),
            clock: chassis.clock.clone(),
        }
    }

    async fn handle(&self, access: Option<Access>, mut request: Request, next: Next) -> Result<Response, Error> {
        let caller = self.gate.admit(access, request.headers()).await?;
        if let Some(caller) = caller {
            let span = Span::current();
            span.record("caller", caller.name.as_str());
            if let Some(organization) = &caller.organization {
                span.record("organization", organization.as_str());
            }
            request.extensions_mut().insert(caller);
        }
        Ok(next.run(request).await)
    }

    /// Resolves when a stream has to end, with what its caller is told.
    async fn cut(self: Arc<Self>, access: Access, key: Option<HeaderMap>) -> Status {
        tokio::select! {
            () = self.draining.cancelled() => {
                tokio::time::sleep(STREAM_GRACE).await;
                Status::unavailable("the server is stopping: try again")
            }
            refusal = self.revoked(access, key) => refusal.into(),
        }
    }

    /// The key in a call's headers, to ask about again. A service's token, which soon expires, only opens a stream.
    fn key(&self, headers: &HeaderMap) -> Option<HeaderMap> {
        let key = auth::bearer(headers).ok().filter(|secret| self.gate.tokens.verify(secret).is_none());
        key.and_then(|_| headers.get(AUTHORIZATION)).map(|value| HeaderMap::from_iter([(AUTHORIZATION, value.clone())]))
    }

    /// Resolves when a key that was good is good no more. While nobody can be asked, it stays good.
    async fn revoked(&self, access: Access, key: Option<HeaderMap>) -> Error {
        let Some(credentials) = &key else { return std::future::pending().await };
        loop {
            self.clock.sleep(STREAM_CHECK).await;
            let admitted = self.gate.admit(Some(access), credentials).await;
            if let Err(error @ (Error::Unauthenticated(_) | Error::PermissionDenied(_))) = admitted {
                return error;
            }
        }
    }
}

/// The middleware of every gRPC method.
pub(super) async fn rpc(State(calls): State<Arc<Calls>>, request: Request, next: Next) -> Response {
    let (path, method) = match calls.methods.get_key_value(request.uri().path()) {
        Some((path, method)) => (*path, Some(*method)),
        None => ("/unknown/unknown", None),
    };
    let sent = TraceContext::extract(request.headers());
    let context = sent.map_or_else(TraceContext::new_root, |caller| caller.new_child());
    // At the highest level, so that no filter takes the trace away from the lines inside; a caller in this process has its own.
    let span = tracing::error_span!(parent: None, "rpc", method = path, trace_id = context.trace_id(), organization = Empty, caller = Empty);
    let stream = method.filter(|method| method.streams).map(|method| (method.access, calls.key(request.headers())));
    // A stream within this process may stand unread: its caller ends with the process, and nobody waits for it.
    let open = stream.is_none().then(|| calls.open.token());
    let mut call = Call::begin(path, span.clone(), open);
    let deadline = asked_timeout(request.headers()).map_or(calls.deadline, |asked| asked.min(calls.deadline));
    let handled = timeout(deadline, calls.handle(method.map(|method| method.access), request, next));
    let caught = AssertUnwindSafe(trace::within(context, handled)).catch_unwind();
    let response = match caught.instrument(span.clone()).await {
        Ok(Ok(Ok(response))) => response,
        Ok(Ok(Err(refused))) => span.in_scope(|| Status::from(refused)).into_http(),
        Ok(Err(_elapsed)) => Status::deadline_exceeded("the deadline passed").into_http(),
        Err(panic) => call.panicked(&*panic).into_http(),
    };
    match response.headers().get(Status::GRPC_STATUS) {
        Some(code) => {
            call.code = Code::from_bytes(code.as_bytes());
            response
        }
        None => {
            let cut = stream.map(|(access, key)| calls.cut(access, key).boxed());
            watched(response, call, cut.unwrap_or_else(|| std::future::pending().boxed()))
        }
    }
}

/// The same response; its body tells `call` how it ended, and ends with a status if it panics or is cut.
fn watched(response: Response, call: Call, cut: BoxFuture<'static, Status>) -> Response {
    let (parts, body) = response.into_parts();
    let frames = AssertUnwindSafe(BodyStream::new(body)).catch_unwind();
    let frames = stream::unfold((frames, Some(call), cut), async |(mut frames, call, mut cut)| {
        let mut call = call?;
        let frame = tokio::select! {
            status = &mut cut => Ok(trailers(&status)),
            frame = frames.next() => match frame {
                Some(Ok(frame)) => frame,
                Some(Err(panic)) => Ok(trailers(&call.panicked(&*panic))),
                None => {
                    call.code = Code::Unknown;
                    return None;
                }
            },
        };
        let Some(ended) = frame.as_ref().ok().and_then(Frame::trailers_ref) else {
            return Some((frame, (frames, Some(call), cut)));
        };
        call.code = code(ended);
        Some((frame, (frames, None, cut)))
    });
    Response::from_parts(parts, Body::new(StreamBody::new(frames)))
}

fn code(trailers: &HeaderMap) -> Code {
    trailers.get(Status::GRPC_STATUS).map_or(Code::Unknown, |code| Code::from_bytes(code.as_bytes()))
}

fn trailers(status: &Status) -> Frame {
    let mut headers = HeaderMap::new();
    if status.add_header(&mut headers).is_err() {
        headers.insert(Status::GRPC_STATUS, HeaderValue::from(Code::Internal as u16));
    }
    Frame::trailers(headers)
}

/// One call, measured from its headers to the end of its answer.
struct Call {
    service: &'static str,
    method: &'static str,
    span: Span,
    began: Instant,
    code: Code,
    _open: Option<TaskTrackerToken>,
}

impl Call {
    fn begin(path: &'static str, span: Span, open: Option<TaskTrackerToken>) -> Self {
        let (service, method) = path.trim_start_matches('/').split_once('/').unwrap_or((path, ""));
        metrics::gauge!("rpc_in_flight", "service" => service, "method" => method).increment(1.0);
        Self { service, method, span, began: Instant::now(), code: Code::Cancelled, _open: open }
    }

    fn panicked(&self, panic: &(dyn std::any::Any + Send)) -> Status {
        metrics::counter!("rpc_panics_total", "service" => self.service, "method" => self.method).increment(1);
        self.span.in_scope(|| tracing::error!(reason = panic_text(panic), "call panicked"));
        Status::internal("internal error")
    }
}

/// A call that is dropped without an answer was cancelled by its caller.
impl Drop for Call {
    fn drop(&mut self) {
        let (service, method, took) = (self.service, self.method, self.began.elapsed());
        metrics::gauge!("rpc_in_flight", "service" => service, "method" => method).decrement(1.0);
        metrics::histogram!("rpc_duration_seconds", "service" => service, "method" => method, "code" => name(self.code))
            .record(took);
        self.span.in_scope(|| tracing::debug!(code = name(self.code), took_ms = took.as_millis(), "call ended"));
    }
}

fn name(code: Code) -> &'static str {
    match code {
        Code::Ok => "OK",
        Code::Cancelled => "CANCELLED",
        Code::Unknown => "UNKNOWN",
        Code::InvalidArgument => "INVALID_ARGUMENT",
        Code::DeadlineExceeded => "DEADLINE_EXCEEDED",
        Code::NotFound => "NOT_FOUND",
        Code::AlreadyExists => "ALREADY_EXISTS",
        Code::PermissionDenied => "PERMISSION_DENIED",
        Code::ResourceExhausted => "RESOURCE_EXHAUSTED",
        Code::FailedPrecondition => "FAILED_PRECONDITION",
        Code::Aborted => "ABORTED",
        Code::OutOfRange => "OUT_OF_RANGE",
        Code::Unimplemented => "UNIMPLEMENTED",
        Code::Internal => "INTERNAL",
        Code::Unavailable => "UNAVAILABLE",
        Code::DataLoss => "DATA_LOSS",
        Code::Unauthenticated => "UNAUTHENTICATED",
    }
}

/// The caller's own deadline: at most 8 digits and a unit, by the gRPC over HTTP/2 protocol.
fn asked_timeout(headers: &HeaderMap) -> Option<Duration> {
    let text = headers.get("grpc-timeout")?.to_str().ok()?;
    let (digits, unit) = text.split_at_checked(text.len().checked_sub(1)?)?;
    if digits.len() > 8 {
        return None;
    }
    let count = digits.parse().ok()?;
    match unit {
        "H" => Some(Duration::from_secs(count * 3600)),
        "M" => Some(Duration::from_secs(count * 60)),
        "S" => Some(Duration::from_secs(count)),
        "m" => Some(Duration::from_millis(count)),
        "u" => Some(Duration::from_micros(count)),
        "n" => Some(Duration::from_nanos(count)),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_callers_timeout_is_read_by_the_protocols_grammar() {
        let asked = |text: &str| {
            asked_timeout(&HeaderMap::from_iter([(
                http::header::HeaderName::from_static("grpc-timeout"),
                text.parse().unwrap(),
            )]))
        };
        assert_eq!(asked("250m"), Some(Duration::from_millis(250)));
        assert_eq!(asked("99999999H"), Some(Duration::from_secs(99_999_999 * 3600)));
        for bad in ["", "m", "-1S", "1", "1s", "100000000S", "1é"] {
            let value = HeaderValue::from_bytes(bad.as_bytes()).unwrap();
            let headers = HeaderMap::from_iter([(http::header::HeaderName::from_static("grpc-timeout"), value)]);
            assert_eq!(asked_timeout(&headers), None, "{bad}");
        }
    }
}
