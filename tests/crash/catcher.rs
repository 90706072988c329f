//! A webhook receiver on loopback that verifies every request with the public `standardwebhooks` library and remembers,
//! for each event, under which id and with which body it came and how often.

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
use tokio::{net::TcpListener, task::JoinSet, time::sleep};

use super::load::Item;

/// Receivers take a moment, each request another: so a kill finds requests at every stage.
const SLOWEST_MS: u64 = 6;

/// The receiver; it ends when it is dropped.
pub(crate) struct Catcher {
    address: SocketAddr,
    caught: Shared,
    _server: JoinSet<()>,
}

type Shared = Arc<Mutex<Caught>>;

/// What is known of one event's requests.
#[derive(Debug, Clone)]
pub(crate) struct Seen {
    /// When the first one came.
    pub(crate) at: Instant,
    webhook_id: String,
    body: u64,
}

/// What must not happen, and what may.
#[derive(Debug, Clone, Copy, Default)]
pub(crate) struct Tally {
    pub(crate) repeated: u64,
    pub(crate) altered: u64,
    pub(crate) unverified: u64,
    pub(crate) out_of_order: u64,
}

#[derive(Default)]
struct Caught {
    webhook: Option<Webhook>,
    ordered: bool,
    seen: HashMap<Item, Seen>,
    /// The latest number of each ordering key.
    latest: HashMap<String, u64>,
    tally: Tally,
    first_since_mark: Option<Instant>,
}

#[derive(Deserialize)]
struct Body {
    data: Item,
}

impl Catcher {
    /// Listens on a free port; `ordered` when first arrivals must keep each key's order.
    pub(crate) async fn start(ordered: bool) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.expect("a free port");
        let address = listener.local_addr().expect("it is bound");
        let caught = Shared::new(Mutex::new(Caught { ordered, ..Caught::default() }));
        let app = Router::new().route("/webhook", post(receive)).with_state(caught.clone());
        let mut server = JoinSet::new();
        server.spawn(async move { axum::serve(listener, app).await.expect("it serves until it is dropped") });
        Self { address, caught, _server: server }
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

async fn receive(State(caught): State<Shared>, headers: HeaderMap, body: Bytes) -> StatusCode {
    let at = Instant::now();
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
        match self.seen.get(&item) {
            Some(seen) => {
                self.tally.repeated += 1;
                self.tally.altered += u64::from(seen.webhook_id != webhook_id || seen.body != hash);
            }
            None => {
                self.seen.insert(item, Seen { at, webhook_id: webhook_id.to_owned(), body: hash });
                let latest = self.latest.entry(item.key()).or_default();
                self.tally.out_of_order += u64::from(self.ordered && item.number < *latest);
                *latest = item.number.max(*latest);
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
