//! Vendors on loopback: HTTP servers that behave as the vendors' documentation and public clients say that theirs do,
//! with the state that a mere description of an API hasn't.
//!
//! Each vendor is a file, and in it one state machine: a request and the time in, an answer out. This file serves them,
//! keeps what they are asked, and lets a script answer in their place. They refuse what the real ones refuse; what isn't
//! known of the real ones is said in their files.

pub mod campaign;
pub mod constant_contact;
pub mod lead;
pub mod mailchimp;
pub mod postgrest;
pub mod profile;
pub mod rental;
pub mod vsco;
pub mod wedme;

use std::{
    collections::VecDeque,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
};

use axum::{
    Router,
    body::Body,
    extract::{Request, State},
    response::Response,
};
use bytes::Bytes;
use chassis::{clock::Clock, tasks::Tasks};
use http::HeaderMap;
use jiff::Timestamp;
use serde_json::{Map, Value};
use tokio_util::sync::{CancellationToken, DropGuard};

/// The longest request that any of them takes.
const BODY_BYTES: usize = 1024 * 1024;
/// Of so many requests what was asked is kept; older ones are forgotten.
const KEPT: usize = 20_000;

/// How one vendor behaves.
pub trait Vendor: Send + 'static {
    /// Takes one request at `now`.
    fn answer(&mut self, asked: &Asked, now: Timestamp) -> Said;
}

/// A request as it came.
#[derive(Debug, Clone)]
pub struct Asked {
    /// In capitals.
    pub method: String,
    /// Without the query.
    pub path: String,
    /// Decoded, in its order.
    pub query: Vec<(String, String)>,
    /// As they came.
    pub headers: HeaderMap,
    /// Whole.
    pub body: Bytes,
}

impl Asked {
    /// The path's parts, decoded.
    #[must_use]
    pub fn parts(&self) -> Vec<String> {
        let decode = |part: &str| {
            let part = part.replace('+', "%2B");
            url::form_urlencoded::parse(part.as_bytes()).next().map(|(name, _)| name.into_owned()).unwrap_or_default()
        };
        self.path.split('/').filter(|part| !part.is_empty()).map(decode).collect()
    }

    /// A header's text; empty if it isn't there.
    #[must_use]
    pub fn header(&self, name: &str) -> &str {
        self.headers.get(name).and_then(|value| value.to_str().ok()).unwrap_or_default()
    }

    /// The first value of a name in the query.
    #[must_use]
    pub fn query(&self, name: &str) -> Option<&str> {
        self.query.iter().find(|(known, _)| known == name).map(|(_, value)| value.as_str())
    }

    /// The body as JSON; null if it isn't.
    #[must_use]
    pub fn json(&self) -> Value {
        serde_json::from_slice(&self.body).unwrap_or_default()
    }

    /// The body as a form.
    #[must_use]
    pub fn form(&self) -> Map<String, Value> {
        let pairs = url::form_urlencoded::parse(&self.body);
        pairs.map(|(name, value)| (name.into_owned(), Value::String(value.into_owned()))).collect()
    }
}

/// An answer.
#[derive(Debug, Clone)]
pub struct Said {
    status: u16,
    headers: Vec<(String, String)>,
    body: String,
}

impl Said {
    /// A status and nothing else.
    #[must_use]
    pub fn status(status: u16) -> Self {
        Self { status, headers: Vec::new(), body: String::new() }
    }

    /// JSON.
    #[must_use]
    pub fn json(status: u16, body: &Value) -> Self {
        Self::text(status, body.to_string()).header("content-type", "application/json")
    }

    /// A text.
    #[must_use]
    pub fn text(status: u16, body: impl Into<String>) -> Self {
        Self { body: body.into(), ..Self::status(status) }
    }

    /// Puts a header in the place of one of that name.
    #[must_use]
    pub fn header(mut self, name: &str, value: &str) -> Self {
        self.headers.retain(|(known, _)| known != name);
        self.headers.push((name.to_owned(), value.to_owned()));
        self
    }
}

/// A vendor that is being served. Stops when dropped.
pub struct Server<V> {
    base: String,
    inner: Arc<Inner<V>>,
    _stop: DropGuard,
}

struct Inner<V> {
    clock: Clock,
    vendor: Mutex<V>,
    script: Mutex<VecDeque<Said>>,
    asked: Mutex<VecDeque<Asked>>,
}

impl<V: Vendor> Server<V> {
    /// Serves `vendor` on a port of its own, on the machine's time.
    ///
    /// # Panics
    /// Without a free port.
    pub async fn start(vendor: V) -> Self {
        Self::start_at(vendor, Clock::System).await
    }

    /// Serves `vendor` on a port of its own.
    ///
    /// # Panics
    /// Without a free port.
    pub async fn start_at(vendor: V, clock: Clock) -> Self {
        let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.expect("a port");
        let base = format!("http://{}", listener.local_addr().expect("bound"));
        let (script, asked) = (Mutex::default(), Mutex::default());
        let inner = Arc::new(Inner { clock, vendor: Mutex::new(vendor), script, asked });
        let router = Router::new().fallback(take::<V>).with_state(Arc::clone(&inner));
        let stop = CancellationToken::new();
        let stopping = stop.clone();
        Tasks::default().spawn("testing.vendor", async move {
            tokio::select! {
                () = stopping.cancelled() => {}
                served = async { axum::serve(listener, router).await } => drop(served),
            }
        });
        Self { base, inner, _stop: stop.drop_guard() }
    }

    /// Its URL, without a slash at the end.
    #[must_use]
    pub fn base(&self) -> &str {
        &self.base
    }

    /// Its state, to look at and to change as its users would.
    pub fn vendor(&self) -> MutexGuard<'_, V> {
        lock(&self.inner.vendor)
    }

    /// Answers the next requests by `script`, and does nothing that they ask.
    pub fn next(&self, script: impl IntoIterator<Item = Said>) {
        lock(&self.inner.script).extend(script);
    }

    /// What it was asked, oldest first.
    #[must_use]
    pub fn asked(&self) -> Vec<Asked> {
        lock(&self.inner.asked).iter().cloned().collect()
    }
}

async fn take<V: Vendor>(State(inner): State<Arc<Inner<V>>>, request: Request) -> Response {
    let (head, body) = request.into_parts();
    let Ok(body) = axum::body::to_bytes(body, BODY_BYTES).await else { return said(Said::status(413)) };
    let query = url::form_urlencoded::parse(head.uri.query().unwrap_or_default().as_bytes());
    let asked = Asked {
        method: head.method.to_string(),
        path: head.uri.path().to_owned(),
        query: query.into_owned().collect(),
        headers: head.headers,
        body,
    };
    let scripted = lock(&inner.script).pop_front();
    let answer = scripted.unwrap_or_else(|| lock(&inner.vendor).answer(&asked, inner.clock.now()));
    let mut kept = lock(&inner.asked);
    kept.push_back(asked);
    if kept.len() > KEPT {
        kept.pop_front();
    }
    said(answer)
}

fn said(said: Said) -> Response {
    let mut response = Response::builder().status(said.status);
    for (name, value) in &said.headers {
        response = response.header(name, value);
    }
    response.body(Body::from(said.body)).expect("the peers' own headers are well-formed")
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Requests of the last `window`, at most `most`: how the vendors' limits work that are known.
#[derive(Debug)]
pub(crate) struct Window {
    most: usize,
    length: jiff::SignedDuration,
    times: VecDeque<Timestamp>,
}

impl Window {
    pub(crate) fn new(most: usize, length: jiff::SignedDuration) -> Self {
        Self { most, length, times: VecDeque::new() }
    }

    /// Whether one more is in order; if it isn't, after how many whole seconds.
    pub(crate) fn take(&mut self, now: Timestamp) -> Result<(), i64> {
        while self.times.front().is_some_and(|at| now.duration_since(*at) >= self.length) {
            self.times.pop_front();
        }
        if self.times.len() >= self.most {
            let oldest = self.times.front().copied().unwrap_or(now);
            let wait = self.length - now.duration_since(oldest);
            return Err((wait.as_millis() as i64 + 999) / 1_000);
        }
        self.times.push_back(now);
        Ok(())
    }
}
