//! A vendor on loopback: jobs with versions, and a switch; and how its API is declared.

use std::{
    collections::BTreeMap,
    net::SocketAddr,
    sync::{Arc, Mutex},
};

use axum::{
    Json, Router as Http,
    extract::{Path, Query, State},
    http::{HeaderMap, StatusCode},
    routing::{get, post},
};
use chassis::tasks::Tasks;
use serde_json::{Value, json};
use tokio::net::TcpListener;

/// A vendor's API as `CONNECTOR` speaks it: jobs with versions, and a switch.
#[derive(Clone)]
pub(super) struct Peer {
    pub(super) address: SocketAddr,
    pub(super) shop: Arc<Mutex<Shop>>,
}

#[derive(Default)]
pub(super) struct Shop {
    pub(super) jobs: BTreeMap<String, Job>,
    /// Method and body of what changed something, or tried to.
    log: Vec<(String, Value)>,
    /// From when on changes were asked for.
    pub(super) lists: Vec<String>,
    /// Answers instead of its own.
    refuses: Option<u16>,
}

#[derive(Clone, Default)]
pub(super) struct Job {
    pub(super) version: u64,
    pub(super) body: Value,
}

const CONNECTOR: &str = r#"
name = "shop"
title = "A shop"
kind = "photography_crm"
base_url = "{settings.url}"
[[auth]]
kind = "api_key"
in = "header"
name = "x-api-key"
[settings.url]
description = "Where it is"
required = true
[operations.find_job]
method = "GET"
path = "/jobs"
query = { reference = "{record.id}" }
[operations.find_job.reply]
external_id = "(body.items | first).id if body['items'] else none"
external_version = "(body.items | first).version if body['items'] else none"
resource = "body['items'] | first"
[operations.create_job]
method = "POST"
path = "/jobs"
body = "out"
idempotency = "look_up"
[operations.create_job.reply]
external_id = "body.id"
external_version = "body.version"
[operations.read_job]
method = "GET"
path = "/jobs/{link.external_id}"
[operations.read_job.reply]
external_id = "body.id"
external_version = "body.version"
[operations.update_job]
method = "PUT"
path = "/jobs/{link.external_id}"
headers = { "if-match" = "{link.external_version}" }
body = "out"
[operations.update_job.reply]
external_id = "body.id"
external_version = "body.version"
[records.wedding]
fields = ["wedding_date", "guest_count", "venue_name"]
find = "find_job"
create = "create_job"
read = "read_job"
update = "update_job"
external_id = "item.id"
external_version = "item.version"
out = { date = "record.wedding_date", guests = "record.guest_count", place = "record.venue_name", reference = "record.id" }
into = { wedding_date = "item.date", guest_count = "item.guests", venue_name = "item.place" }
[inbound]
[[inbound.verify]]
kind = "hmac"
header = "x-shop-signature"
[[inbound.events]]
when = "item.event == 'job.updated'"
type = "booking.updated"
record = "wedding"
external_id = "item.job.id"
external_version = "item.job.version"
fields = { wedding_date = "item.job.date", guest_count = "item.job.guests" }
"#;
/// What of it these tests need beyond records out and webhooks in: hints, handshakes, a list, an event's own operation.
const MORE: &str = r#"
[[inbound.events]]
when = "item.event == 'job.hinted'"
type = "booking.updated"
record = "wedding"
external_id = "item.job.id"
read_first = true
[[inbound.handshakes]]
method = "GET"
echo = "query.challenge"
[[events]]
types = ["wedding.milestone_reached"]
operation = "note_milestone"
[operations.note_milestone]
method = "POST"
path = "/notes"
idempotency = "upsert"
[operations.note_milestone.body]
text = "event.type"
[operations.list_jobs]
method = "GET"
path = "/changed"
query = { since = "{since}" }
[operations.list_jobs.pages]
kind = "page"
parameter = "page"
size = 100
items = "body['items']"
"#;

/// The shop's connector.
pub(super) fn connector() -> String {
    let list =
        "update = \"update_job\"\nlist = \"list_jobs\"\nincremental = { kind = \"since\", overlap_seconds = 60 }";
    CONNECTOR.replace("update = \"update_job\"", list) + MORE
}

pub(super) const SECRET: &str = "whsec_MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaSw";

impl Peer {
    pub(super) async fn start() -> Self {
        Self::behind(|app| app).await
    }

    /// With something in front of it.
    pub(super) async fn behind(front: impl FnOnce(Http) -> Http) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.expect("a port");
        let peer = Self { address: listener.local_addr().expect("bound"), shop: Arc::default() };
        let app = Http::new()
            .route("/jobs", get(find).post(create))
            .route("/jobs/{id}", get(read).put(update))
            .route("/changed", get(list))
            .route("/notes", post(note))
            .with_state(peer.clone());
        let app = front(app);
        Tasks::default().spawn("shop", async move { axum::serve(listener, app).await.expect("it serves") });
        peer
    }

    pub(super) fn shop(&self) -> std::sync::MutexGuard<'_, Shop> {
        self.shop.lock().expect("no panic")
    }

    /// The body of each request that was made to change something.
    pub(super) fn asked(&self) -> Vec<(String, Value)> {
        self.shop().log.clone()
    }

    pub(super) fn refuse(&self, status: Option<u16>) {
        self.shop().refuses = status;
    }

    /// Notes it; an answer, if it refuses.
    fn note(&self, method: &str, body: &Value) -> Option<Answered> {
        let mut shop = self.shop();
        shop.log.push((method.to_owned(), body.clone()));
        shop.refuses.map(|status| answer(status, json!({"message": "no"})))
    }
}

type Answered = (StatusCode, Json<Value>);

fn answer(status: u16, body: Value) -> Answered {
    (StatusCode::from_u16(status).expect("a status"), Json(body))
}

fn shown(id: &str, job: &Job) -> Value {
    let mut body = job.body.clone();
    body["id"] = json!(id);
    body["version"] = json!(job.version.to_string());
    body
}

async fn find(State(peer): State<Peer>, Query(query): Query<BTreeMap<String, String>>) -> Answered {
    let shop = peer.shop();
    let found = shop.jobs.iter().filter(|(_, job)| job.body["reference"] == json!(query["reference"]));
    answer(200, json!({"items": found.map(|(id, job)| shown(id, job)).collect::<Vec<_>>()}))
}

async fn read(State(peer): State<Peer>, Path(id): Path<String>) -> Answered {
    let shop = peer.shop();
    if let Some(status) = shop.refuses {
        return answer(status, json!({}));
    }
    shop.jobs.get(&id).map_or_else(|| answer(404, json!({})), |job| answer(200, shown(&id, job)))
}

async fn list(State(peer): State<Peer>, Query(query): Query<BTreeMap<String, String>>) -> Answered {
    let mut shop = peer.shop();
    if let Some(status) = shop.refuses {
        return answer(status, json!({}));
    }
    shop.lists.push(query.get("since").cloned().unwrap_or_default());
    answer(200, json!({"items": shop.jobs.iter().map(|(id, job)| shown(id, job)).collect::<Vec<_>>()}))
}

async fn note(State(peer): State<Peer>, Json(body): Json<Value>) -> Answered {
    peer.note("NOTE", &body).unwrap_or_else(|| answer(201, json!({})))
}

async fn create(State(peer): State<Peer>, Json(body): Json<Value>) -> Answered {
    if let Some(refusal) = peer.note("POST", &body) {
        return refusal;
    }
    let mut shop = peer.shop();
    let (id, job) = (format!("job-{}", shop.jobs.len() + 1), Job { version: 1, body });
    let body = shown(&id, &job);
    shop.jobs.insert(id, job);
    answer(201, body)
}

async fn update(
    State(peer): State<Peer>,
    Path(id): Path<String>,
    headers: HeaderMap,
    Json(body): Json<Value>,
) -> Answered {
    if let Some(refusal) = peer.note("PUT", &body) {
        return refusal;
    }
    let mut shop = peer.shop();
    let Some(job) = shop.jobs.get_mut(&id) else { return answer(404, json!({})) };
    if headers.get("if-match").is_some_and(|version| version != job.version.to_string().as_str()) {
        return answer(412, json!({}));
    }
    *job = Job { version: job.version + 1, body };
    answer(200, shown(&id, job))
}
