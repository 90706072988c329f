//! A webhook receiver on loopback that verifies every request with the public `standardwebhooks` library and remembers,
//! for each event, under which id and with which body it came and how often. It can also fail, hang, or be away.

use std::{
    collections::HashMap,
    hash::{DefaultHasher, Hash as _, Hasher as _},
    net::SocketAddr,
    sync::{Arc, Mutex, MutexGuard},
    time::{Duration, Instant},
};

use axum::{
    Router,
    body::Bytes,
    extract::State,
    http::{HeaderMap, StatusCode},
    routing::post,
};
use serde::Deserialize;
use standardwebhooks::Webhook;
use tokio::{
    net::TcpListener,
    runtime::{Builder, Runtime},
    time::sleep,
};

use super::load::Item;

/// Receivers take a moment, each request another: so a kill finds requests at every stage.
const SLOWEST_MS: u64 = 6;

/// The receiver; it ends when it is dropped.
pub(crate) struct Catcher {
    address: SocketAddr,
    caught: Shared,
    /// Of its own, so that its end cuts every connection. None while it is down.
    server: Option<Runtime>,
}

/// What it does with a request.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(crate) enum Mood {
    /// Takes it.
    #[default]
    Well,
    /// Refuses it with 503, unread.
    Failing,
    /// Reads it and never answers; it counts as not received.
    Hanging,
}

type Shared = Arc<Mutex<Caught>>;

/// What is known of one event's requests.
#[derive(Debug, Clone)]
pub(crate) struct Seen {
    /// When the first one came.
    pub(crate) at: Instant,
    /// When the latest one came.
    latest: Instant,
    pub(crate) webhook_id: String,
    body: u64,
}

/// What must not happen, and what may.
#[derive(Debug, Clone, Copy, Default)]
pub(crate) struct Tally {
    pub(crate) repeated: u64,
    pub(crate) altered: u64,
    pub(crate) unverified: u64,
}

#[derive(Default)]
struct Caught {
    webhook: Option<Webhook>,
    seen: HashMap<Item, Seen>,
    tally: Tally,
    /// When a repeat came, and when the request before it.
    repeats: Vec<(Instant, Instant)>,
    first_since_mark: Option<Instant>,
    mood: Mood,
}

#[derive(Deserialize)]
struct Body {
    data: Item,
}

impl Catcher {
    /// Listens on a free port.
    pub(crate) async fn start() -> Self {
        let caught = Shared::default();
        let (server, address) = serve(SocketAddr::from(([127, 0, 0, 1], 0)), caught.clone()).await;
        Self { address, caught, server: Some(server) }
    }

    /// Ends it: connections are cut, new ones refused.
    pub(crate) fn down(&mut self) {
        if let Some(server) = self.server.take() {
            server.shutdown_background();
        }
    }

    /// Listens again where it listened before.
    pub(crate) async fn up(&mut self) {
        self.server = Some(serve(self.address, self.caught.clone()).await.0);
    }

    /// What it does with requests from now on.
    pub(crate) fn feel(&self, mood: Mood) {
        self.lock().mood = mood;
    }

    /// Each repeat: when the request before it came, and when it came itself.
    pub(crate) fn repeats(&self) -> Vec<(Instant, Instant)> {
        self.lock().repeats.clone()
    }

    /// How many deliveries had their latest request in this time.
    pub(crate) fn requests_within(&self, from: Instant, until: Instant) -> usize {
        self.lock().seen.values().filter(|seen| seen.latest >= from && seen.latest <= until).count()
    }

    /// What an endpoint is created with.
    pub(crate) fn url(&self) -> String {
        format!("http://{}/webhook", self.address)
    }

    /// From now on requests must be signed with this secret.
    pub(crate) fn believe(&self, secret: &str) {
        self.lock().webhook = Some(Webhook::new(secret).expect("a secret as it is shown"));
    }

    pub(crate) fn mark(&self) {
        self.lock().first_since_mark = None;
    }

    pub(crate) fn first_since_mark(&self) -> Option<Instant> {
        self.lock().first_since_mark
    }

    pub(crate) fn tally(&self) -> Tally {
        self.lock().tally
    }

    /// Those of `items` that have not arrived.
    pub(crate) fn missing<'a>(&self, items: impl IntoIterator<Item = &'a Item>) -> Vec<Item> {
        let caught = self.lock();
        items.into_iter().filter(|item| !caught.seen.contains_key(item)).copied().collect()
    }

    /// All that arrived.
    pub(crate) fn seen(&self) -> HashMap<Item, Seen> {
        self.lock().seen.clone()
    }

    fn lock(&self) -> MutexGuard<'_, Caught> {
        lock(&self.caught)
    }
}

fn lock(caught: &Shared) -> MutexGuard<'_, Caught> {
    caught.lock().expect("no holder panics")
}

impl Drop for Catcher {
    fn drop(&mut self) {
        self.down();
    }
}

/// Serves at `address`, and says where that is.
async fn serve(address: SocketAddr, caught: Shared) -> (Runtime, SocketAddr) {
    let server = Builder::new_multi_thread().worker_threads(1).enable_all().build().expect("a thread");
    let listening = server.spawn(async move {
        let began = Instant::now();
        loop {
            match TcpListener::bind(address).await {
                Ok(listener) => return listener,
                // The one that was ended still holds it for a moment.
                Err(error) => assert!(began.elapsed() < Duration::from_secs(10), "{address}: {error}"),
            }
            sleep(Duration::from_millis(5)).await;
        }
    });
    let listener = listening.await.expect("the port becomes free");
    let address = listener.local_addr().expect("it is bound");
    let app = Router::new().route("/webhook", post(receive)).with_state(caught);
    server.spawn(async move { axum::serve(listener, app).await });
    (server, address)
}

async fn receive(State(caught): State<Shared>, headers: HeaderMap, body: Bytes) -> StatusCode {
    let at = Instant::now();
    let mood = lock(&caught).mood;
    match mood {
        Mood::Well => {}
        Mood::Failing => return StatusCode::SERVICE_UNAVAILABLE,
        Mood::Hanging => std::future::pending().await,
    }
    let (answer, body) = lock(&caught).take(at, &headers, &body);
    sleep(Duration::from_millis(body % SLOWEST_MS)).await;
    answer
}

impl Caught {
    fn take(&mut self, at: Instant, headers: &HeaderMap, body: &[u8]) -> (StatusCode, u64) {
        let hash = hash(body);
        let verified = self.webhook.as_ref().is_some_and(|webhook| webhook.verify(body, headers).is_ok());
        let (true, Ok(Body { data: item })) = (verified, serde_json::from_slice(body)) else {
            self.tally.unverified += 1;
            return (StatusCode::UNAUTHORIZED, hash);
        };
        let webhook_id = headers.get("webhook-id").and_then(|id| id.to_str().ok()).unwrap_or_default();
        self.first_since_mark.get_or_insert(at);
        match self.seen.get_mut(&item) {
            Some(seen) => {
                self.tally.repeated += 1;
                self.tally.altered += u64::from(seen.webhook_id != webhook_id || seen.body != hash);
                self.repeats.push((seen.latest, at));
                seen.latest = at;
            }
            None => {
                self.seen.insert(item, Seen { at, latest: at, webhook_id: webhook_id.to_owned(), body: hash });
            }
        }
        (StatusCode::NO_CONTENT, hash)
    }
}

fn hash(body: &[u8]) -> u64 {
    let mut hasher = DefaultHasher::new();
    body.hash(&mut hasher);
    hasher.finish()
}
